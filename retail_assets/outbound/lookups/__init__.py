"""Lookups: an API outside is asked about values of the events, beside the ingest."""
