"""Messages and requests: events that come by position, into the event tables."""
