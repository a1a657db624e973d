"""The webhook as a source of the worker."""
