"""Readers and try-casts, which differ from engine to engine. DuckDB is the one engine today."""
