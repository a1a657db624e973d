"""Dead-letter counts by day and reason."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.sql_cache import CompiledSql, compile_once
from retail_assets.transforms import events

if TYPE_CHECKING:
    from retail_assets.consumers.keyed.round import KeyedRound, Kind


def _compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, nw.LazyFrame]:
    of_keys = "" if keys is None else f" WHERE received_date IN (SELECT received_date FROM {keys})"
    dead = f"SELECT * FROM lake.dead_letter_events{of_keys}"
    return {tables.DEAD_LETTER_COUNTS.name: _counts(connection, dead)}


def _follow(round_: "KeyedRound") -> None:
    """What there was, less those that are gone, plus those that came."""
    source, table = tables.DEAD_LETTER_EVENTS, tables.DEAD_LETTER_COUNTS
    if not round_.changed(source):
        return
    own = round_.load(table, "received_date", round_.keys("received_date", source))
    parts = [f"SELECT received_date, reason, dead_letters FROM {own}"]
    kinds: tuple[tuple[str, Kind], ...] = (("-", "gone"), ("", "new"))
    for sign, kind in kinds:
        if round_.count(kind, source):
            rows = f"SELECT * FROM temp.main.{kind}_{source.name}"
            found = _COMPILED.of(kind, lambda: _counts(round_.connection, rows))  # noqa: B023
            parts.append(f"SELECT received_date, reason, {sign}dead_letters FROM ({found})")
    round_.compare(
        table,
        "SELECT received_date, reason, sum(dead_letters) AS dead_letters FROM"
        f" ({' UNION ALL '.join(parts)}) GROUP BY ALL HAVING sum(dead_letters) <> 0",
        own,
    )


def _counts(connection: duckdb.DuckDBPyConnection, letters: str) -> nw.LazyFrame:
    return events.dead_letter_counts(nw.from_native(connection.sql(letters)))


_COMPILED = CompiledSql()

CONSUMER = Consumer(
    "dead_letter_counts",
    "received_date",
    (tables.DEAD_LETTER_COUNTS,),
    compile_once(_compute),
    sources=(tables.DEAD_LETTER_EVENTS,),
    follow=_follow,
)
