"""The rules of the business: pure functions of frames, written with narwhals.

No I/O, no Dagster, no engine. The batch assets, the stream, replays and the tests call the same
functions, on pandas (pyarrow types) and DuckDB alike.
"""
