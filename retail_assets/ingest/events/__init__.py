"""Event lines into the event tables, whatever their source."""
