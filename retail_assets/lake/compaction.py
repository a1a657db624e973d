"""Keeping a lake that is committed to many times a second quick to read: few files, short history.

Each commit leaves a small file per table, a snapshot, and old versions of ledger rows. Here small
files are merged in tiers, so that a row is rewritten a few times only, however many come; rows that
DuckLake keeps in its catalog are put into files; snapshots are thinned; and files that were merged
away are deleted as soon as no reader can need them. Every step is one short hold of the write lock.

DuckLake merges under the lock: a merge that read an SQLite catalog before another commit fails
with "database is locked" at its own.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import duckdb

from retail_assets import tables
from retail_assets.lake.connection import CATALOG, Lake
from retail_assets.lake.lock import POLL_SECONDS, write_lock
from retail_assets.lake.sql import literal

GRACE = timedelta(days=2)
"""How long a snapshot stays, and a file that nothing needs: longer than any reader reads.

A reader at a snapshot that is forgotten finds fewer rows, without an error.
"""

MERGED_GRACE = timedelta(minutes=10)
"""How long a file that nothing needs stays, where no reader is open that began before."""

FULL_HISTORY = timedelta(hours=1)
"""For how long every snapshot is kept, however many there are."""

MAX_SNAPSHOTS = 20_000
"""Beyond so many the history is thinned: each transaction reads all, 0.3 ms for a thousand."""

FOLLOWED = frozenset(table.name for table in tables.ALL if table.followed)
"""Tables whose files are never rewritten: `table_changes` lists each row of a rewritten file as
updated, and whoever follows the table would send it on again, or have all of it to compute.

Rows of these are deleted now and then only. Other tables that consumers follow, `live_orders` and
`products`, are rewritten, so that deleted rows do not pile up; consumers then compute these rows
again, and find that nothing differs.
"""

MIN_FILES = 8
"""From how many files of a tier on they are merged: each merge makes files so much larger."""

INLINED_ROWS = 1_000
"""From how many rows in the catalog on they go to a file: an update reads them all, 1 µs each."""

LITTLE_TABLE = 4_000_000
"""Bytes up to which the files of a table are rewritten without the rows that were deleted."""

DELETED_FILES = 100
"""How many files are deleted in one hold of the lock."""

EXPIRED_SNAPSHOTS = 500
"""How many snapshots are forgotten in one hold of the lock; fewer are not worth one."""

_DUE = "1970-01-01 00:00:00+00"
_AFTER_DUE = "1971-01-01 00:00:00+00"


@dataclass(frozen=True)
class Tier:
    """Files of fewer bytes than `below` are merged, as many at once as have `target` bytes."""

    below: int
    target: int


TIERS = (Tier(32_000, 160_000), Tier(200_000, 1_600_000), Tier(1_600_000, 5_000_000))
"""A merge of 5 MB holds the lock for less than a tenth of a second. Larger files are left alone."""


@dataclass(frozen=True)
class Step:
    """The work of one hold of the write lock.

    `action` is `merge`, `flush`, `rewrite`, `expire` or `delete`; `count` the files merged,
    rewritten or deleted, rows flushed or snapshots expired; `seconds` how long the lock was held.
    After a `look` at what is due, which needs no lock, there was none.
    """

    action: str
    count: int
    seconds: float
    table: str | None = None


LOOK = Step("look", 0, 0.0)


@dataclass(frozen=True)
class Compacted:
    """Counts of a compaction, and the longest time that it held the write lock at once."""

    files_merged: int
    rows_flushed: int
    files_rewritten: int
    snapshots_expired: int
    files_deleted: int
    longest_hold_seconds: float


def compact(lake: Lake, connection: duckdb.DuckDBPyConnection, *, keep_days: int = 30) -> Compacted:
    """Do all that is due, and let other writers in between any two steps.

    For a process that does nothing else with the lake. A worker takes `steps` between its batches:
    on an SQLite catalog a transaction that begins just while another connection reads or commits
    may stand still for one second, because DuckDB's SQLite knows no shorter sleep.

    Args:
        lake: the lake.
        connection: a writing connection to it that is in no transaction and used by nobody else
            meanwhile, a cursor for example.
        keep_days: how many days back the lake stays readable; two at least.
    """
    done: dict[str, int] = {}
    longest = 0.0
    for step in steps(lake, connection, keep_days=keep_days):
        if step == LOOK:
            continue
        done[step.action] = done.get(step.action, 0) + step.count
        longest = max(longest, step.seconds)
        # Who waits for the lock looks every POLL_SECONDS, and may hold it as long as we did.
        time.sleep(max(4 * POLL_SECONDS, step.seconds))
    return Compacted(
        files_merged=done.get("merge", 0),
        rows_flushed=done.get("flush", 0),
        files_rewritten=done.get("rewrite", 0),
        snapshots_expired=done.get("expire", 0),
        files_deleted=done.get("delete", 0),
        longest_hold_seconds=longest,
    )


def steps(
    lake: Lake, connection: duckdb.DuckDBPyConnection, *, keep_days: int = 30
) -> Iterator[Step]:
    """Do what is due step by step, as `compact` does; the lock is free whenever this yields.

    Between two steps the connection may be used for other things. A `LOOK` takes some ms as well.
    """
    yield from flush(lake, connection, INLINED_ROWS)
    yield from rewrite(lake, connection, min_files=MIN_FILES)
    yield from merge(lake, connection, TIERS, min_files=MIN_FILES)
    yield from expire(lake, connection, keep_days, at_least=EXPIRED_SNAPSHOTS)
    yield from delete(lake, connection)


def reliable_since(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the smallest snapshot id from which on no snapshot was expired.

    `lake.table_changes(table, a, b)` gives every change, each once, where `a` is not smaller. Below
    that it may raise "No snapshot found at version", or leave out rows that came and went between
    two snapshots that were kept. So a consumer whose offset (the last snapshot that it has read) is
    smaller than this less one has to compute its results again.

    Args:
        connection: a connection to the lake, which may be read-only.
    """
    row = connection.execute(
        "SELECT max(snapshot_id) FROM (SELECT snapshot_id, lag(snapshot_id) OVER"
        f" (ORDER BY snapshot_id) AS before FROM {CATALOG}.ducklake_snapshot)"
        " WHERE before IS NULL OR before < snapshot_id - 1"
    ).fetchone()
    assert row is not None
    return int(row[0])


def flush(lake: Lake, connection: duckdb.DuckDBPyConnection, rows: int) -> Iterator[Step]:
    """Put the rows that the catalog keeps of a table into a file, where they are that many.

    The versions that a ledger row has had are among them.
    """
    found = _inlined_tables(connection, rows)
    yield LOOK
    for table in found:
        with _hold(lake, "flush") as held:
            flushed = _flush(lake, connection, table)
        yield Step("flush", flushed, held.seconds, table)


def rewrite(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    *,
    min_files: int,
    below: int = LITTLE_TABLE,
    deleted: float = 0.5,
) -> Iterator[Step]:
    """Rewrite the files of little tables most of whose rows were deleted, where they are that many.

    A ledger row that is updated all the time leaves one with each flush.

    Args:
        lake: the lake.
        connection: a writing connection to it.
        min_files: how many files of a table must have lost their rows.
        below: how many bytes the files of a table may have.
        deleted: the share of a file's rows that must have been deleted.
    """
    found = connection.execute(
        f"SELECT table_name FROM {CATALOG}.ducklake_data_file AS f"
        f" JOIN (SELECT * FROM {CATALOG}.ducklake_table WHERE end_snapshot IS NULL) AS t"
        " USING (table_id)"
        f" LEFT JOIN (SELECT data_file_id, delete_count FROM {CATALOG}.ducklake_delete_file"
        " WHERE end_snapshot IS NULL) AS d USING (data_file_id) WHERE f.end_snapshot IS NULL"
        " GROUP BY table_name HAVING sum(file_size_bytes) < ?"
        " AND count(*) FILTER (delete_count >= record_count * ?) >= ? ORDER BY table_name",
        [below, deleted, min_files],
    ).fetchall()
    yield LOOK
    for (table,) in found:
        if table in FOLLOWED:
            continue
        with _hold(lake, "rewrite") as held:
            # Deletions in the catalog that are flushed after their file was rewritten are dated
            # back, and change snapshots that are kept (ducklake#1406).
            _flush(lake, connection, table)
            with lake.locked_transaction(connection, f"rewrite {table}"):
                done = connection.execute(
                    f"CALL ducklake_rewrite_data_files('lake', {literal(table)},"
                    f" delete_threshold => {deleted})"
                ).fetchall()
        yield Step("rewrite", sum(row[2] for row in done), held.seconds, table)


def merge(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    tiers: tuple[Tier, ...],
    *,
    min_files: int,
    from_nothing: bool = False,
) -> Iterator[Step]:
    """Merge small files, tier by tier, where so many of a table and partition are in one.

    Args:
        lake: the lake.
        connection: a writing connection to it.
        tiers: from the smallest to the largest.
        min_files: two at least.
        from_nothing: a tier has all smaller files as well, not only those too large for the tier
            before.
    """
    above = 0
    for tier in tiers:
        found = _small_files(connection, above, tier.below, min_files)
        yield LOOK
        for table, count in found:
            left = count
            while left >= min_files:
                with (
                    _hold(lake, "merge") as held,
                    lake.locked_transaction(connection, f"merge {table}"),
                ):
                    merged = _merge(connection, table, above, tier)
                if merged == 0:
                    # Other files than those that the catalog can merge: of another schema, or
                    # with rows deleted.
                    break
                left -= merged
                yield Step("merge", merged, held.seconds, table)
        above = 0 if from_nothing else tier.below


def expire(
    lake: Lake, connection: duckdb.DuckDBPyConnection, keep_days: int, *, at_least: int = 1
) -> Iterator[Step]:
    """Forget snapshots, the oldest first, if they are so many.

    All of the last `keep_days` stay, up to `MAX_SNAPSHOTS`. Of more, all of `FULL_HISTORY` at
    least, of what is older the last one of each minute, beyond two days the last one of each hour.
    """
    versions = _expendable(connection, keep_days)
    yield LOOK
    if len(versions) < at_least:
        return
    for first in range(0, len(versions), EXPIRED_SNAPSHOTS):
        some = versions[first : first + EXPIRED_SNAPSHOTS]
        with (
            _hold(lake, "expire snapshots") as held,
            lake.locked_transaction(connection, "expire snapshots"),
        ):
            connection.execute(
                "CALL ducklake_expire_snapshots('lake', versions => ?::UBIGINT[])", [some]
            )
        yield Step("expire", len(some), held.seconds)


def delete(lake: Lake, connection: duckdb.DuckDBPyConnection) -> Iterator[Step]:
    """Delete the files that neither a snapshot nor a reader needs any more.

    DuckLake keeps the time since when, but on an SQLite catalog compares it as text: whoever is in
    another time zone deletes too early, or too late by up to a day. So what is due is found here,
    marked with a time that any comparison gets right, and left to DuckLake to delete.
    """
    due = _due_files(lake, connection)
    yield LOOK
    for first in range(0, len(due), DELETED_FILES):
        files = due[first : first + DELETED_FILES]
        with _hold(lake, "delete files that were merged away") as held:
            connection.execute(
                f"UPDATE {CATALOG}.ducklake_files_scheduled_for_deletion"
                f" SET schedule_start = '{_DUE}' WHERE data_file_id IN"
                f" ({', '.join(map(str, files))})"
            )
            done = connection.execute(
                f"CALL ducklake_cleanup_old_files('lake', older_than => TIMESTAMPTZ '{_AFTER_DUE}')"
            ).fetchall()
        yield Step("delete", len(done), held.seconds)


@dataclass
class _Held:
    seconds: float = 0.0


@contextmanager
def _hold(lake: Lake, purpose: str) -> Iterator[_Held]:
    held = _Held()
    with write_lock(lake.catalog, purpose):
        began = time.perf_counter()
        try:
            yield held
        finally:
            held.seconds = time.perf_counter() - began


def _flush(lake: Lake, connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """Under the lock, put what the catalog keeps of a table into files; returns how many rows."""
    with lake.locked_transaction(connection, f"flush {table}"):
        done = connection.execute(
            f"CALL ducklake_flush_inlined_data('lake', table_name => {literal(table)})"
        ).fetchall()
    return sum(count for *_, count in done)


def _merge(connection: duckdb.DuckDBPyConnection, table: str, above: int, tier: Tier) -> int:
    """Merge files of a table once; returns how many."""
    # How many files are merged at once cannot be given, but how many bytes.
    connection.execute(f"SET ducklake_target_file_size = '{tier.target}B'")
    try:
        done = connection.execute(
            f"CALL ducklake_merge_adjacent_files('lake', {literal(table)}, min_file_size => {above}"
            f", max_file_size => {tier.below}, max_compacted_files => 1)"
        ).fetchall()
    finally:
        connection.execute("RESET ducklake_target_file_size")
    return sum(row[2] for row in done)


def _small_files(
    connection: duckdb.DuckDBPyConnection, above: int, below: int, min_files: int
) -> list[tuple[str, int]]:
    """The tables that have so many files of that size without deletions in one partition.

    Each with the number of these files.
    """
    return connection.execute(
        "SELECT table_name, sum(files)::BIGINT FROM (SELECT table_id, count(*) AS files"
        f" FROM {CATALOG}.ducklake_data_file AS f"
        f" LEFT JOIN (SELECT DISTINCT data_file_id AS deleted FROM {CATALOG}.ducklake_delete_file)"
        " ON deleted = data_file_id WHERE end_snapshot IS NULL AND deleted IS NULL"
        " AND file_size_bytes >= ? AND file_size_bytes < ?"
        " GROUP BY table_id, regexp_replace(path, '[^/]*$', '') HAVING count(*) >= ?)"
        f" JOIN {CATALOG}.ducklake_table USING (table_id) WHERE end_snapshot IS NULL"
        " GROUP BY table_name ORDER BY table_name",
        [above, below, min_files],
    ).fetchall()


def _inlined_tables(connection: duckdb.DuckDBPyConnection, rows: int) -> list[str]:
    """The tables of which the catalog keeps so many rows, old versions counted."""
    inlined = connection.execute(
        f"SELECT t.table_name, i.table_name FROM {CATALOG}.ducklake_inlined_data_tables AS i"
        f" JOIN {CATALOG}.ducklake_table AS t USING (table_id) WHERE t.end_snapshot IS NULL"
    ).fetchall()
    if not inlined:
        return []
    # One statement: each opens the catalog.
    counts = connection.execute(
        "SELECT name, sum(rows) FROM ("
        + " UNION ALL ".join(
            f"SELECT {literal(table)} AS name, count(*) AS rows FROM {CATALOG}.{place}"
            for table, place in inlined
        )
        + ") GROUP BY name"
    ).fetchall()
    return sorted(table for table, count in counts if count >= rows)


def _expendable(connection: duckdb.DuckDBPyConnection, keep_days: int) -> list[int]:
    """The snapshots to forget, oldest first; see `expire`.

    The one that was the newest `keep_days` ago stays: it is how the lake was then.
    """
    now = datetime.now(timezone.utc)
    horizon = now - max(timedelta(days=keep_days), GRACE)
    found = connection.execute(
        "WITH all_snapshots AS (SELECT snapshot_id AS id, snapshot_time::TIMESTAMPTZ AS time,"
        f" row_number() OVER (ORDER BY snapshot_id DESC) AS n FROM {CATALOG}.ducklake_snapshot),"
        " bounds AS (SELECT max(id) FILTER (time <= $horizon) AS oldest,"
        " least($hour_ago, min(time) FILTER (n <= $most)) AS full_from FROM all_snapshots),"
        " last_ones AS (SELECT id, time, max(id) OVER (PARTITION BY date_trunc("
        "CASE WHEN time > $days_ago THEN 'minute' ELSE 'hour' END, time)) AS last_id"
        " FROM all_snapshots)"
        " SELECT id FROM last_ones, bounds WHERE id < oldest"
        " OR (time < full_from AND id <> last_id AND id IS DISTINCT FROM oldest) ORDER BY id",
        {
            "horizon": horizon,
            "hour_ago": now - FULL_HISTORY,
            "most": MAX_SNAPSHOTS,
            "days_ago": now - GRACE,
        },
    ).fetchall()
    return [version for (version,) in found]


def _due_files(lake: Lake, connection: duckdb.DuckDBPyConnection) -> list[int]:
    """The ids of the files to delete."""
    now = datetime.now(timezone.utc)
    select = (
        f"SELECT data_file_id FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
        " WHERE schedule_start::TIMESTAMPTZ < ? ORDER BY ALL"
    )
    if not connection.execute(select, [now - MERGED_GRACE]).fetchone():
        return []
    oldest_reader = (_oldest_on_postgres if lake.on_postgres else _oldest_on_sqlite)(connection)
    until = now - GRACE
    if oldest_reader is not None:
        until = max(until, min(now, oldest_reader) - MERGED_GRACE)
    return [file for (file,) in connection.execute(select, [until]).fetchall()]


def _oldest_on_sqlite(connection: duckdb.DuckDBPyConnection) -> datetime | None:
    """Since when all open readers read, or None where that cannot be told right now.

    SQLite moves what was committed from its log to the database only as far as no open reader
    needs the state before: once all is moved, every reader sees all that was committed by now.
    Not with Python's sqlite3: to close the catalog there would take the locks of all DuckDB
    connections of this process away (SQLite, "How To Corrupt An SQLite Database File", 2.2.1).
    """
    for _ in range(10):
        now = datetime.now(timezone.utc)
        [(_, logged, moved)] = connection.execute(
            f"SELECT * FROM sqlite_query('{CATALOG}', 'PRAGMA wal_checkpoint(PASSIVE)')"
        ).fetchall()
        if int(logged) == int(moved):
            return now
        # Most readers are done in a moment.
        time.sleep(2 * POLL_SECONDS)
    return None


def _oldest_on_postgres(connection: duckdb.DuckDBPyConnection) -> datetime | None:
    """When the oldest open transaction on the catalog began, or None where that is hidden."""
    row = connection.execute(
        f"SELECT * FROM postgres_query('{CATALOG}', 'SELECT CASE WHEN bool_or(state IS NULL)"
        " THEN NULL ELSE coalesce(min(xact_start), now()) END FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = ''client backend''')"
    ).fetchone()
    assert row is not None
    oldest: datetime | None = row[0]
    return oldest
