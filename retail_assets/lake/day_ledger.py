"""The ledger of days: published ones, with the version of the outside data, and failed ones.

Every function works in the caller's transaction, so that the ledger and its rows are committed
together.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import date

import duckdb

from retail_assets.secrets import mask
from retail_assets.tables import Feed, Table


def mark_published(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    rows: Mapping[date, int],
    versions: Mapping[date, int],
) -> None:
    """Enter the row count and source version of each published day; clears earlier failures."""
    days = list(rows)
    if not days:
        return
    _delete(connection, "published_days", table, days)
    connection.execute(
        "INSERT INTO lake.published_days BY NAME SELECT ? AS table_name, day, version, row_count,"
        " now() AS published_at FROM (SELECT unnest(?::DATE[]) AS day,"
        " unnest(?::BIGINT[]) AS version, unnest(?::BIGINT[]) AS row_count)",
        [table.name, days, [versions.get(day, 0) for day in days], [rows[day] for day in days]],
    )
    _delete(connection, "failed_days", table, days)


def mark_failed(
    connection: duckdb.DuckDBPyConnection, table: Table, failed: Mapping[date, str]
) -> None:
    """Enter why each day failed, and replace the problem of an earlier attempt."""
    if not failed:
        return
    _delete(connection, "failed_days", table, list(failed))
    connection.execute(
        "INSERT INTO lake.failed_days BY NAME SELECT ? AS table_name, day, problem,"
        " now() AS failed_at FROM (SELECT unnest(?::DATE[]) AS day, unnest(?::VARCHAR[]) AS"
        " problem)",
        [table.name, list(failed), list(map(mask, failed.values()))],
    )


def forget_failures(connection: duckdb.DuckDBPyConnection, table: Table, days: list[date]) -> None:
    """Delete the failures of these days: their published rows are current."""
    _delete(connection, "failed_days", table, days)


def failures(
    connection: duckdb.DuckDBPyConnection, table: Table, days: Collection[date]
) -> dict[date, str]:
    """The days among these whose last attempt failed, and why."""
    return dict(
        connection.execute(
            "SELECT day, problem FROM lake.failed_days WHERE table_name = ?"
            " AND day IN (SELECT unnest(?::DATE[])) ORDER BY day",
            [table.name, list(days)],
        ).fetchall()
    )


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
) -> dict[date, int]:
    """The days among these that are published, with the version they were computed from."""
    return dict(
        connection.execute(
            "SELECT day, version FROM lake.published_days WHERE table_name = ?"
            " AND day IN (SELECT unnest(?::DATE[]))",
            [table.name, list(days)],
        ).fetchall()
    )


def versions(
    connection: duckdb.DuckDBPyConnection, feed: Feed, days: Collection[date]
) -> dict[date, int]:
    """How often outside data has changed each of these days; days never changed are left out."""
    return dict(
        connection.execute(
            "SELECT day, version FROM lake.changed_days WHERE feed = ?"
            " AND day IN (SELECT unnest(?::DATE[]))",
            [feed, list(days)],
        ).fetchall()
    )


def mark_changed(connection: duckdb.DuckDBPyConnection, feed: Feed, days: Iterable[date]) -> None:
    """Raise the version of each of these days: what was published from them is stale now."""
    changed = sorted(set(days))
    if not changed:
        return
    known = versions(connection, feed, changed)
    if known:
        connection.execute(
            "DELETE FROM lake.changed_days WHERE feed = ? AND day IN (SELECT unnest(?::DATE[]))",
            [feed, list(known)],
        )
    connection.execute(
        "INSERT INTO lake.changed_days BY NAME SELECT ? AS feed, day, version,"
        " now() AS changed_at FROM (SELECT unnest(?::DATE[]) AS day,"
        " unnest(?::BIGINT[]) AS version)",
        [feed, changed, [known.get(day, 0) + 1 for day in changed]],
    )


def stale_days(connection: duckdb.DuckDBPyConnection, table: Table) -> list[date]:
    """The days of a table that outside data has changed, and that are missing or behind."""
    return [
        day
        for (day,) in connection.execute(
            "SELECT c.day FROM lake.changed_days AS c"
            " LEFT JOIN lake.published_days AS p ON p.table_name = ? AND p.day = c.day"
            " WHERE c.feed = ? AND (p.version IS NULL OR p.version < c.version) ORDER BY c.day",
            [table.name, table.feed],
        ).fetchall()
    ]


def published_in_all(
    connection: duckdb.DuckDBPyConnection, tables: Collection[Table], days: Collection[date]
) -> set[date]:
    """The days among these that every one of some tables has published."""
    return set(days).intersection(*(published(connection, table, days) for table in tables))


def _delete(
    connection: duckdb.DuckDBPyConnection, ledger: str, table: Table, days: list[date]
) -> None:
    where = "WHERE table_name = ? AND day IN (SELECT unnest(?::DATE[]))"
    # A DELETE that finds nothing still costs a scan and a commit entry in DuckLake.
    found = connection.execute(
        f"SELECT 1 FROM lake.{ledger} {where} LIMIT 1", [table.name, days]
    ).fetchone()
    if found:
        connection.execute(f"DELETE FROM lake.{ledger} {where}", [table.name, days])
