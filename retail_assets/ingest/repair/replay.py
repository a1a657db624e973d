"""Replay: recompute enriched events and dead letters from `raw_events`, by today's rules."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import duckdb

from retail_assets import tables
from retail_assets.ingest.events.batch import AbortError, EventBatch, abort, event_batch
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers.event_files import apply_deltas

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


def replay_day(session: EventSession, day: date) -> None:
    """Recompute a received day from its raw events, in one transaction."""
    with event_batch(session, f"replay {day}") as batch:
        _replay(session, batch, day)


def check_day(session: EventSession, day: date) -> Sequence[Difference]:
    """Replay a day, say what differs (`processed_at` aside), and take it back.

    Writers wait as they would for a replay.
    """
    found: list[Difference] = []
    connection = session.connection
    with suppress(AbortError), event_batch(session, f"check replay of {day}") as batch:
        # AT (VERSION …) would show what this transaction has changed as well.
        for table in TABLES:
            connection.execute(
                f"CREATE TEMP TABLE {_before(table)} AS {_rows(table, day, 'lake.' + table.name)}"
            )
        _replay(session, batch, day)
        found = [_difference(connection, table, day) for table in TABLES]
        abort()
    return [difference for difference in found if difference.gone or difference.new]


def _replay(session: EventSession, batch: EventBatch, day: date) -> None:
    batch.add_day(day)
    apply_deltas(session, batch.apply().deltas)


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
