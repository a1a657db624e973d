"""Tables that follow from events, each consumer from an offset of its own."""
