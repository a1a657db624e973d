"""The ledger of days: published ones, with the version of the outside data, and failed ones.

Every function works in the caller's transaction, so that the ledger and its rows are committed
together. A query of a small table of the lake costs as much as one of a large one, so `entries`
reads the ledgers of all tables at once, and whoever has read them passes them on.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb

from retail_assets.lake.connection import current_snapshot
from retail_assets.lake.history import most_rows
from retail_assets.secrets import mask
from retail_assets.tables import CHANGED_DAYS, FAILED_DAYS, PUBLISHED_DAYS, Feed, Table


@dataclass(frozen=True)
class Entries:
    """What the ledgers have of some days, as of a snapshot of the lake.

    By day: the version that a table was published from and why its last attempt failed (both by the
    name of the table), and how often outside data has changed (by feed).
    """

    snapshot: int
    days: frozenset[date]
    published: Mapping[str, Mapping[date, int]]
    failed: Mapping[str, Mapping[date, str]]
    changed: Mapping[str, Mapping[date, int]]


def entries(
    connection: duckdb.DuckDBPyConnection, days: Iterable[date], known: Entries | None = None
) -> Entries:
    """Read what the ledgers have of some days; `known`, if the lake has not changed since.

    In a transaction, all that is returned is of its snapshot.
    """
    wanted = frozenset(days)
    snapshot = current_snapshot(connection)
    if known is not None and known.snapshot == snapshot and wanted <= known.days:
        return known
    return Entries(
        snapshot,
        wanted,
        _read(connection, PUBLISHED_DAYS, "table_name, day, version", wanted),
        _read(connection, FAILED_DAYS, "table_name, day, problem", wanted),
        _read(connection, CHANGED_DAYS, "feed, day, version", wanted),
    )


def _read(
    connection: duckdb.DuckDBPyConnection, ledger: Table, columns: str, days: Collection[date]
) -> Mapping[str, Mapping[date, Any]]:
    """The entries of some days, by the first of the columns and the day."""
    found: dict[str, dict[date, Any]] = defaultdict(dict)
    # DuckLake asks its catalog again and again for what it knows of a table that never had a row.
    if days and (ledger is not FAILED_DAYS or most_rows(connection, ledger)):
        for name, day, value in connection.execute(
            f"SELECT {columns} FROM lake.{ledger.name} WHERE day BETWEEN ? AND ? ORDER BY day",
            [min(days), max(days)],
        ).fetchall():
            if day in days:
                found[name][day] = value
    return found


def mark_published(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    rows: Mapping[date, int],
    versions: Mapping[date, int],
    known: Entries | None = None,
) -> None:
    """Enter the row count and source version of each published day; clears earlier failures."""
    days = list(rows)
    if not days:
        return
    known = known or entries(connection, days)
    _delete(connection, PUBLISHED_DAYS, table, known.published[table.name].keys() & rows.keys())
    connection.execute(
        "INSERT INTO lake.published_days BY NAME SELECT ? AS table_name, day, version, row_count,"
        " now() AS published_at FROM (SELECT unnest(?::DATE[]) AS day,"
        " unnest(?::BIGINT[]) AS version, unnest(?::BIGINT[]) AS row_count)",
        [table.name, days, [versions.get(day, 0) for day in days], [rows[day] for day in days]],
    )
    _delete(connection, FAILED_DAYS, table, known.failed[table.name].keys() & rows.keys())


def mark_failed(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    failed: Mapping[date, str],
    known: Entries | None = None,
) -> None:
    """Enter why each day failed, and replace the problem of an earlier attempt."""
    if not failed:
        return
    known = known or entries(connection, failed)
    _delete(connection, FAILED_DAYS, table, known.failed[table.name].keys() & failed.keys())
    connection.execute(
        "INSERT INTO lake.failed_days BY NAME SELECT ? AS table_name, day, problem,"
        " now() AS failed_at FROM (SELECT unnest(?::DATE[]) AS day, unnest(?::VARCHAR[]) AS"
        " problem)",
        [table.name, list(failed), list(map(mask, failed.values()))],
    )


def forget_failures(connection: duckdb.DuckDBPyConnection, table: Table, days: list[date]) -> None:
    """Delete the failures of these days: their published rows are current."""
    _delete(connection, FAILED_DAYS, table, failures(connection, table, days))


def failures(
    connection: duckdb.DuckDBPyConnection, table: Table, days: Collection[date]
) -> Mapping[date, str]:
    """The days among these whose last attempt failed, and why."""
    return _read(connection, FAILED_DAYS, "table_name, day, problem", set(days))[table.name]


def failed_us(
    connection: duckdb.DuckDBPyConnection, tables: Iterable[Table], days: Collection[date]
) -> dict[date, int]:
    """When the last attempt at each of these days failed in one of some tables, in µs since 1970.

    Days that have not failed are left out. What ends a run, such as a full disk, enters nothing.
    """
    return dict(
        connection.execute(
            "SELECT day, max(epoch_us(failed_at)) FROM lake.failed_days"
            " WHERE table_name IN (SELECT unnest(?::VARCHAR[]))"
            " AND day IN (SELECT unnest(?::DATE[])) GROUP BY day",
            [[table.name for table in tables], list(days)],
        ).fetchall()
    )


def published(
    connection: duckdb.DuckDBPyConnection, table: Table, days: Collection[date]
) -> Mapping[date, int]:
    """The days among these that are published, with the version they were computed from."""
    return _read(connection, PUBLISHED_DAYS, "table_name, day, version", set(days))[table.name]


def versions(
    connection: duckdb.DuckDBPyConnection, feed: Feed, days: Collection[date]
) -> Mapping[date, int]:
    """How often outside data has changed each of these days; days never changed are left out."""
    return _read(connection, CHANGED_DAYS, "feed, day, version", set(days))[feed]


def mark_changed(
    connection: duckdb.DuckDBPyConnection,
    feed: Feed,
    days: Iterable[date],
    known: Entries | None = None,
) -> None:
    """Raise the version of each of these days: what was published from them is stale now."""
    changed = sorted(set(days))
    if not changed:
        return
    before = (known or entries(connection, changed)).changed[feed]
    again = [day for day in changed if day in before]
    if again:
        connection.execute(
            "DELETE FROM lake.changed_days WHERE feed = ? AND day IN (SELECT unnest(?::DATE[]))",
            [feed, again],
        )
    connection.execute(
        "INSERT INTO lake.changed_days BY NAME SELECT ? AS feed, day, version,"
        " now() AS changed_at FROM (SELECT unnest(?::DATE[]) AS day,"
        " unnest(?::BIGINT[]) AS version)",
        [feed, changed, [before.get(day, 0) + 1 for day in changed]],
    )


def stale_days(connection: duckdb.DuckDBPyConnection, *tables: Table) -> list[date]:
    """The days that outside data has changed, and that are missing or behind in one of tables."""
    return [
        day
        for (day,) in connection.execute(
            "SELECT DISTINCT c.day FROM (SELECT unnest(?::VARCHAR[]) AS table_name,"
            " unnest(?::VARCHAR[]) AS feed) AS t JOIN lake.changed_days AS c ON c.feed = t.feed"
            " LEFT JOIN lake.published_days AS p ON p.table_name = t.table_name AND p.day = c.day"
            " WHERE p.version IS NULL OR p.version < c.version ORDER BY c.day",
            [[table.name for table in tables], [table.feed for table in tables]],
        ).fetchall()
    ]


def published_in_all(
    connection: duckdb.DuckDBPyConnection, tables: Collection[Table], days: Collection[date]
) -> set[date]:
    """The days among these that every one of some tables has published."""
    found = _read(connection, PUBLISHED_DAYS, "table_name, day, version", set(days))
    return set(days).intersection(*(found[table.name] for table in tables))


def _delete(
    connection: duckdb.DuckDBPyConnection, ledger: Table, table: Table, days: Collection[date]
) -> None:
    # A DELETE that finds nothing still costs a scan and a commit entry in DuckLake.
    if days:
        connection.execute(
            f"DELETE FROM lake.{ledger.name} WHERE table_name = ?"
            " AND day IN (SELECT unnest(?::DATE[]))",
            [table.name, list(days)],
        )
