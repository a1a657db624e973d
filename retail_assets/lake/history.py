"""The history of the lake: its snapshots, the changes of each commit, the row counts of tables.

The only module that reads these metadata tables of DuckLake, and parses its text for the changes of
a commit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import duckdb

from retail_assets.lake.connection import AUTHOR, CATALOG
from retail_assets.lake.sql import literal
from retail_assets.tables import Table

_CHANGE = re.compile(r"(\w+):(\d+)")
_INSERTED = frozenset(("inserted_into_table", "inlined_insert"))


@dataclass(frozen=True)
class Change:
    """A change of a table by a commit: it inserted rows, or did something else as well."""

    table_id: int
    inserted: bool


@dataclass(frozen=True)
class Commit:
    """A commit: its snapshot, its changes, and whether this connection made it."""

    snapshot: int
    changes: tuple[Change, ...]
    own: bool


def commits(connection: duckdb.DuckDBPyConnection, after: int, upto: int) -> list[Commit] | None:
    """The commits after a snapshot, up to another one; None if some of them are expired."""
    rows = connection.execute(
        f"SELECT snapshot_id, changes_made, commit_extra_info IS NOT DISTINCT FROM {AUTHOR}"
        f" FROM {CATALOG}.ducklake_snapshot_changes"
        " WHERE snapshot_id > ? AND snapshot_id <= ?",
        [after, upto],
    ).fetchall()
    if len(rows) != upto - after:
        return None
    return [Commit(snapshot, _changes(text or ""), own) for snapshot, text, own in rows]


def _changes(text: str) -> tuple[Change, ...]:
    return tuple(Change(int(id_), kind in _INSERTED) for kind, id_ in _CHANGE.findall(text))


def changed_days(
    connection: duckdb.DuckDBPyConnection, after: int, upto: int, *tables: Table
) -> dict[date, int] | None:
    """The days of tables whose rows commits have changed, with the last such snapshot of each.

    Args:
        connection: a connection to the lake.
        after: a snapshot, which may be expired.
        upto: a later one.
        tables: tables of days.

    Returns:
        None if a commit between them is expired.
    """
    found = commits(connection, after, upto)
    if found is None:
        return None
    names = table_names(connection) if found else {}
    changed = {names.get(change.table_id) for commit in found for change in commit.changes}
    # Rows of a file that was rewritten show as updates; no row of these tables is ever updated.
    queries = [
        f"SELECT {table.day} AS day, snapshot_id FROM"
        f" lake.table_changes('{table.name}', {after + 1}, {upto})"
        " WHERE change_type IN ('insert', 'delete')"
        for table in tables
        if table.name in changed
    ]
    if not queries:
        return {}
    rows = connection.execute(
        f"SELECT day, max(snapshot_id) FROM ({' UNION ALL '.join(queries)}) GROUP BY 1"
    ).fetchall()
    return dict(rows)


def changed_tables(connection: duckdb.DuckDBPyConnection, after: int, upto: int) -> frozenset[str]:
    """The tables whose rows commits after a snapshot, up to another, have changed."""
    rows = connection.execute(
        "SELECT DISTINCT unnest(regexp_extract_all(changes_made, ?, 1))::BIGINT"
        f" FROM {CATALOG}.ducklake_snapshot_changes"
        " WHERE snapshot_id > ? AND snapshot_id <= ?",
        [r"(?:insert|into_table|delete|from_table):(\d+)", after, upto],
    ).fetchall()
    names = table_names(connection) if rows else {}
    return frozenset(names[id_] for (id_,) in rows if id_ in names)


def rows_added(connection: duckdb.DuckDBPyConnection, after: int, *tables: Table) -> int:
    """About how many rows commits after a snapshot have added to some tables.

    Few rows of a commit, which DuckLake keeps in its catalog, are left out.
    """
    (rows,) = connection.execute(
        f"SELECT coalesce(sum(record_count), 0)::BIGINT FROM {CATALOG}.ducklake_data_file"
        f" WHERE begin_snapshot > ? AND table_id IN (SELECT table_id FROM {CATALOG}.ducklake_table"
        f" WHERE {_are_now(*tables)})",
        [after],
    ).fetchone() or (0,)
    return int(rows)


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """The number that grows with each change of tables, columns or views."""
    row = connection.execute(
        f"SELECT max(schema_version) FROM {CATALOG}.ducklake_snapshot"
    ).fetchone()
    assert row is not None
    return int(row[0])


def table_names(connection: duckdb.DuckDBPyConnection) -> dict[int, str]:
    """The name of each table, by its id."""
    rows = connection.execute(
        f"SELECT table_id, table_name FROM {CATALOG}.ducklake_table WHERE end_snapshot IS NULL"
    ).fetchall()
    return dict(rows)


def changes_since(
    connection: duckdb.DuckDBPyConnection, snapshot: int, *tables: Table
) -> tuple[bool, bool]:
    """Whether the changes of rows since a snapshot can still be read, and whether there are any.

    Rows deleted after an expired snapshot may be lost. Changes cannot be read from a thinned
    snapshot either: the next one has to exist as well.
    """
    kept, written = connection.execute(
        "SELECT count(*) FILTER (snapshot_id <= $snapshot + 1) = 2,"
        " count(*) FILTER (snapshot_id > $snapshot AND regexp_matches(changes_made, $writes)) > 0"
        f" FROM {CATALOG}.ducklake_snapshot_changes WHERE snapshot_id >= $snapshot",
        {"snapshot": snapshot, "writes": _writes(connection, *tables)},
    ).fetchone() or (False, False)
    return kept, written


def has_changes_since(connection: duckdb.DuckDBPyConnection, snapshot: int) -> bool:
    """Whether the changes of rows since a snapshot, which is not the newest, can still be read."""
    (kept,) = connection.execute(
        f"SELECT count(*) = 2 FROM {CATALOG}.ducklake_snapshot WHERE snapshot_id IN (?, ?)",
        [snapshot, snapshot + 1],
    ).fetchone() or (False,)
    return bool(kept)


def lag(connection: duckdb.DuckDBPyConnection, snapshot: int, *tables: Table) -> tuple[int, float]:
    """How many commits after a snapshot changed rows of tables, and seconds since the first."""
    count, milliseconds = connection.execute(
        "SELECT count(*), coalesce(date_diff('millisecond', min(s.snapshot_time::TIMESTAMPTZ),"
        f" now()), 0) FROM {CATALOG}.ducklake_snapshot AS s"
        f" JOIN {CATALOG}.ducklake_snapshot_changes AS c USING (snapshot_id)"
        " WHERE s.snapshot_id > ? AND regexp_matches(c.changes_made, ?)",
        [snapshot, _writes(connection, *tables)],
    ).fetchone() or (0, 0)
    return count, max(milliseconds, 0) / 1000


def changing(
    connection: duckdb.DuckDBPyConnection,
    most: int,
    *,
    every: Sequence[Table],
    hourly: Sequence[Table],
) -> list[tuple[int, datetime, str]]:
    """The newest commits that changed rows of tables: snapshot, time and message, newest first.

    Commits that changed other tables alone, such as heartbeats, are left out.

    Args:
        connection: a connection to the lake.
        most: how many.
        every: tables of which each commit is wanted.
        hourly: tables that are written all the time: the last commit of each hour is.
    """
    return connection.execute(
        "SELECT snapshot_id, committed, message FROM (SELECT snapshot_id,"
        " s.snapshot_time::TIMESTAMPTZ AS committed, coalesce(c.commit_message, '') AS message,"
        " regexp_matches(c.changes_made, $every) AS is_one,"
        " regexp_matches(c.changes_made, $hourly) AS is_hourly"
        f" FROM {CATALOG}.ducklake_snapshot AS s"
        f" JOIN {CATALOG}.ducklake_snapshot_changes AS c USING (snapshot_id))"
        " WHERE is_one OR is_hourly QUALIFY is_one OR row_number() OVER"
        " (PARTITION BY is_one, date_trunc('hour', committed) ORDER BY snapshot_id DESC) = 1"
        " ORDER BY snapshot_id DESC LIMIT $most",
        {
            "every": _writes(connection, *every),
            "hourly": _writes(connection, *hourly),
            "most": most,
        },
    ).fetchall()


def _writes(connection: duckdb.DuckDBPyConnection, *tables: Table) -> str:
    """A pattern of the catalog's text for a commit that changed rows of some tables."""
    (ids,) = connection.execute(
        f"SELECT string_agg(table_id, '|') FROM {CATALOG}.ducklake_table WHERE {_are_now(*tables)}"
    ).fetchone() or (None,)
    return rf"(insert|into_table|delete|from_table):({ids})\b"


def most_rows(connection: duckdb.DuckDBPyConnection, *tables: Table) -> int:
    """How many rows some tables have at most: the catalog does not subtract deleted rows.

    A query of a table, even an empty one, takes ten times longer.
    """
    (rows,) = connection.execute(
        f"SELECT coalesce(sum(record_count), 0)::BIGINT FROM {CATALOG}.ducklake_table_stats"
        f" JOIN {CATALOG}.ducklake_table USING (table_id) WHERE {_are_now(*tables)}"
    ).fetchone() or (0,)
    return int(rows)


def _are_now(*tables: Table) -> str:
    """A condition on `ducklake_table`: some tables, as they are now."""
    names = ", ".join(literal(table.name) for table in tables)
    return f"end_snapshot IS NULL AND table_name IN ({names})"


def is_kept(
    connection: duckdb.DuckDBPyConnection, snapshot: int, *, older_than: str | None = None
) -> bool:
    """Whether a snapshot is not expired, and older than an interval of SQL, if any.

    As long as it is kept, the lake knows its rows, and so which were deleted since.
    """
    old = f" AND snapshot_time::TIMESTAMPTZ < now() - {older_than}" if older_than else ""
    found = connection.execute(
        f"SELECT 1 FROM {CATALOG}.ducklake_snapshot WHERE snapshot_id = ?{old}", [snapshot]
    ).fetchone()
    return found is not None


def committed_us(connection: duckdb.DuckDBPyConnection, snapshot: int) -> int | None:
    """When a snapshot was committed, in µs since 1970; None if it is expired, or never was.

    With its id it tells the snapshots of a lake from those of the same lake restored from a backup.
    """
    (found,) = connection.execute(
        f"SELECT epoch_us(snapshot_time::TIMESTAMPTZ) FROM {CATALOG}.ducklake_snapshot"
        " WHERE snapshot_id = ?",
        [snapshot],
    ).fetchone() or (None,)
    return None if found is None else int(found)


def last_kept(connection: duckdb.DuckDBPyConnection, after: int, upto: int) -> int | None:
    """The last snapshot after one, up to another, that is not expired; None if all are."""
    (found,) = connection.execute(
        f"SELECT max(snapshot_id) FROM {CATALOG}.ducklake_snapshot"
        " WHERE snapshot_id > ? AND snapshot_id <= ?",
        [after, upto],
    ).fetchone() or (None,)
    return None if found is None else int(found)


def lake_id(connection: duckdb.DuckDBPyConnection) -> str:
    """An id that tells this lake from an earlier one at the same path."""
    (found,) = connection.execute(
        f"SELECT min(table_uuid::VARCHAR) FROM {CATALOG}.ducklake_table WHERE end_snapshot IS NULL"
    ).fetchone() or ("",)
    return str(found)
