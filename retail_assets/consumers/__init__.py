"""What follows from events, each from an offset of its own."""
