"""The resident worker: takes events from its sources through the ingest, and feeds consumers."""
