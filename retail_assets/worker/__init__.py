"""The resident worker: ingests events from its sources, and runs consumers."""
