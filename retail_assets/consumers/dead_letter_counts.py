"""Dead-letter counts by day and reason."""

from collections.abc import Mapping

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.sql_cache import compile_once
from retail_assets.transforms import events


def _compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, nw.LazyFrame]:
    of_keys = "" if keys is None else f" WHERE received_date IN (SELECT received_date FROM {keys})"
    letters = connection.sql(f"SELECT * FROM lake.dead_letter_events{of_keys}")
    return {tables.DEAD_LETTER_COUNTS.name: events.dead_letter_counts(nw.from_native(letters))}


CONSUMER = Consumer(
    "dead_letter_counts",
    "received_date",
    (tables.DEAD_LETTER_COUNTS,),
    compile_once(_compute),
    sources=(tables.DEAD_LETTER_EVENTS,),
)
