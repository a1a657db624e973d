"""Replay: recompute enriched events and dead letters from `raw_events`, by today's rules."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import NoReturn

import duckdb

from retail_assets import tables
from retail_assets.ingest.events.batch import EventBatch
from retail_assets.ingest.ledgers.event_files import apply_deltas
from retail_assets.lake.connection import Lake

TABLES = (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS)

SHOWN = 3


@dataclass(frozen=True)
class Difference:
    """Rows that a replay of a day would delete and insert in a table, with some examples."""

    day: date
    table: str
    gone: int
    new: int
    examples: tuple[str, ...]


def event_days(connection: duckdb.DuckDBPyConnection, first: date, last: date) -> list[date]:
    """The received days in a range that have events."""
    return [
        day
        for (day,) in connection.execute(
            "SELECT DISTINCT received_date FROM lake.raw_events"
            " WHERE received_date BETWEEN ? AND ? ORDER BY ALL",
            [first, last],
        ).fetchall()
    ]


def replay_day(lake: Lake, connection: duckdb.DuckDBPyConnection, day: date) -> None:
    """Recompute a received day from its raw events, in one transaction."""
    with EventBatch(connection) as batch, lake.transaction(connection, f"replay {day}"):
        _replay(connection, batch, day)


def check_day(lake: Lake, connection: duckdb.DuckDBPyConnection, day: date) -> Sequence[Difference]:
    """Replay a day, say what differs (`processed_at` aside), and take it back.

    Writers wait as they would for a replay.
    """
    found: list[Difference] = []
    with (
        EventBatch(connection) as batch,
        suppress(_TakeBack),
        lake.transaction(connection, f"check replay of {day}"),
    ):
        # AT (VERSION …) would show what this transaction has changed as well.
        for table in TABLES:
            connection.execute(
                f"CREATE TEMP TABLE {_before(table)} AS {_rows(table, day, 'lake.' + table.name)}"
            )
        _replay(connection, batch, day)
        found = [_difference(connection, table, day) for table in TABLES]
        _take_back()
    return [difference for difference in found if difference.gone or difference.new]


class _TakeBack(Exception):  # noqa: N818  # it is no error
    """Ends a transaction without its changes."""


def _take_back() -> NoReturn:
    raise _TakeBack


def _replay(connection: duckdb.DuckDBPyConnection, batch: EventBatch, day: date) -> None:
    batch.add_day(day)
    apply_deltas(connection, batch.settle().deltas)


def _before(table: tables.Table) -> str:
    return f"before_replay_{table.name}"


def _rows(table: tables.Table, day: date, source: str) -> str:
    columns = ", ".join(name for name in table.column_names if name != "processed_at")
    return f"SELECT {columns} FROM {source} WHERE received_date = DATE '{day}'"


def _difference(
    connection: duckdb.DuckDBPyConnection, table: tables.Table, day: date
) -> Difference:
    before = f"FROM temp.main.{_before(table)}"
    now = _rows(table, day, f"lake.{table.name}")
    gone = f"({before} EXCEPT ALL {now})"
    new = f"({now} EXCEPT ALL {before})"
    counts = connection.execute(
        f"SELECT (SELECT count(*) FROM {gone}), (SELECT count(*) FROM {new})"
    ).fetchone()
    gone_rows, new_rows = counts or (0, 0)
    examples = connection.execute(
        "SELECT DISTINCT concat_ws(':', source, source_name, position)"
        f" FROM ({gone} UNION ALL {new}) ORDER BY ALL LIMIT {SHOWN}"
    ).fetchall()
    return Difference(day, table.name, gone_rows, new_rows, tuple(place for (place,) in examples))
