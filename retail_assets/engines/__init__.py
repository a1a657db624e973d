"""Readers and try-casts, which differ between engines. DuckDB is the only engine today."""
