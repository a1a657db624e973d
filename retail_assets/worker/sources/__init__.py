"""The sources of the worker: each receives events and gives them to the inbox."""
