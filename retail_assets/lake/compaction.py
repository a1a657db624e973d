"""Compaction: few files and a short history, for a lake with many commits a second.

Each commit leaves a small file per table, a snapshot, and old versions of ledger rows. Compaction
merges small files in tiers, so that each row is rewritten only a few times. It flushes rows that
DuckLake keeps in its catalog to files, thins snapshots, and deletes merged files as soon as no
reader can need them. Every step is one short hold of the write lock.

DuckLake merges under the lock: a merge that read an SQLite catalog before another commit fails
with "database is locked".
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
"""How long a snapshot stays, and an unneeded file: longer than any reader reads.

A reader at an expired snapshot finds fewer rows, without an error.
"""

FOLLOWED = frozenset(table.name for table in tables.ALL if table.followed)
"""Tables whose files are never rewritten: `table_changes` lists each row of a rewritten file as
updated, and followers would produce or compute all of them again.

Rows of these tables are rarely deleted. Other tables that consumers follow, `live_orders` and
`products`, are rewritten, so that deleted rows do not pile up; consumers then compute these rows
again, and find no difference.
"""

SMALL_TABLE = 4_000_000
"""Bytes of a table up to which its files are rewritten without their deleted rows."""

DELETED_FILES = 100
"""How many files are deleted in one hold of the lock."""

_DUE = "1970-01-01 00:00:00+00"
_AFTER_DUE = "1971-01-01 00:00:00+00"


@dataclass(frozen=True)
class Tier:
    """Files of fewer bytes than `below` are merged into files of `target` bytes."""

    below: int
    target: int


TIERS = (Tier(32_000, 160_000), Tier(200_000, 1_600_000), Tier(1_600_000, 5_000_000))
"""A merge of 5 MB holds the lock for less than a tenth of a second. Larger files are left alone."""


@dataclass(frozen=True)
class Limits:
    """When there is enough to do.

    A merge takes `min_files` of a tier, so it makes files so many times
    larger. A flush takes `inlined_rows` in the catalog: an update reads them all, 1 µs each. The
    history is thinned above `max_snapshots`, beyond `full_history`: each transaction reads all, 0.3
    ms per 1,000; `expired_snapshots` go in one hold of the lock, fewer are not worth one. An
    unneeded file stays for `merged_grace` if no reader is open that began before.
    """

    tiers: tuple[Tier, ...] = TIERS
    min_files: int = 8
    inlined_rows: int = 1_000
    max_snapshots: int = 20_000
    full_history: timedelta = timedelta(hours=1)
    expired_snapshots: int = 500
    merged_grace: timedelta = timedelta(minutes=10)


LIMITS = Limits()


@dataclass(frozen=True)
class Step:
    """The work of one hold of the write lock.

    `action` is `merge`, `flush`, `rewrite`, `expire` or `delete`; `count` the files merged,
    rewritten or deleted, rows flushed or snapshots expired; `seconds` how long the lock was held. A
    `look` finds the work that is due, without the lock.
    """

    action: str
    count: int
    seconds: float
    table: str | None = None


LOOK = Step("look", 0, 0.0)


def steps(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    *,
    keep_days: int = 30,
    limits: Limits = LIMITS,
) -> Iterator[Step]:
    """Compact the lake step by step; the lock is free whenever this yields.

    A worker takes steps between its batches. On an SQLite catalog, a transaction that begins while
    another connection reads or commits may wait a whole second, because DuckDB's SQLite knows no
    shorter sleep. Between two steps the connection may be used for other things. A `LOOK` takes
    some ms as well.

    Args:
        lake: the lake.
        connection: a connection to it that can write, in no transaction, used by nobody else during
            a step.
        keep_days: how many days back the lake stays readable; two at least.
        limits: when there is enough to do.
    """
    yield from flush(lake, connection, limits.inlined_rows)
    yield from rewrite(lake, connection, min_files=limits.min_files)
    yield from merge(lake, connection, limits.tiers, min_files=limits.min_files)
    yield from expire(lake, connection, keep_days, limits, at_least=limits.expired_snapshots)
    yield from delete(lake, connection, limits)


def reliable_since(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the smallest snapshot id from which on no snapshot was expired.

    `lake.table_changes(table, a, b)` gives every change once if `a` is not smaller. Below that it
    may raise "No snapshot found at version", or leave out rows that came and went between two kept
    snapshots. So a consumer has to compute its results again if its offset (the last snapshot that
    it has read) + 1 is smaller.

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
    """Flush tables with so many rows in the catalog, old versions counted, to files."""
    found = _inlined_tables(connection, rows)
    yield LOOK
    for table in found:
        with _hold(lake, "flush") as held:
            flushed = _flush(lake, connection, table)
        yield Step("flush", flushed, held.seconds, table)


def flush_all(lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
    """Under the lock, flush all rows in the catalog to files."""
    for table in _inlined_tables(connection, 1):
        _flush(lake, connection, table)


def rewrite(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    *,
    min_files: int,
    below: int = SMALL_TABLE,
    deleted: float = 0.5,
) -> Iterator[Step]:
    """Rewrite files of small tables with mostly deleted rows, if there are enough of them.

    A ledger row that is updated all the time leaves such a file with each flush.

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
    """Merge small files, tier by tier, if a partition of a table has enough of them.

    Args:
        lake: the lake.
        connection: a writing connection to it.
        tiers: from the smallest to the largest.
        min_files: two at least.
        from_nothing: a tier has all smaller files, not only those too large for the tier before.
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
                    # DuckLake does not merge files of other schemas, or with deleted rows.
                    break
                left -= merged
                yield Step("merge", merged, held.seconds, table)
        above = 0 if from_nothing else tier.below


def expire(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    keep_days: int,
    limits: Limits = LIMITS,
    *,
    at_least: int = 1,
) -> Iterator[Step]:
    """Expire snapshots, the oldest first, if at least so many are due.

    All of the last `keep_days` stay, up to `max_snapshots`. If there are more, older ones than
    `full_history` are thinned to the last one of each minute, and of each hour beyond two days.
    """
    versions = _expendable(connection, keep_days, limits)
    yield LOOK
    if len(versions) < at_least:
        return
    for first in range(0, len(versions), limits.expired_snapshots):
        some = versions[first : first + limits.expired_snapshots]
        with (
            _hold(lake, "expire snapshots") as held,
            lake.locked_transaction(connection, "expire snapshots"),
        ):
            connection.execute(
                "CALL ducklake_expire_snapshots('lake', versions => ?::UBIGINT[])", [some]
            )
        yield Step("expire", len(some), held.seconds)


def delete(
    lake: Lake, connection: duckdb.DuckDBPyConnection, limits: Limits = LIMITS
) -> Iterator[Step]:
    """Delete the files that neither a snapshot nor a reader needs any more.

    DuckLake stores when a file became unneeded, but on an SQLite catalog compares times as text: in
    another time zone it deletes up to a day too early or too late. So due files are found here and
    marked with a time that any comparison gets right; DuckLake then deletes them.
    """
    due = _due_files(lake, connection, limits.merged_grace)
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
    """Under the lock, flush a table's rows in the catalog to files; returns how many."""
    with lake.locked_transaction(connection, f"flush {table}"):
        done = connection.execute(
            f"CALL ducklake_flush_inlined_data('lake', table_name => {literal(table)})"
        ).fetchall()
    return sum(count for *_, count in done)


def _merge(connection: duckdb.DuckDBPyConnection, table: str, above: int, tier: Tier) -> int:
    """Merge files of a table once; returns how many."""
    # DuckLake takes no limit of files for a merge, but one of bytes.
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
    """The tables with so many files of that size, without deletions, in one partition.

    Returns:
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
    """The tables with so many rows in the catalog, old versions counted."""
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
            f"SELECT {literal(table)} AS name, count(*) AS rows FROM {CATALOG}.{inlined_table}"
            for table, inlined_table in inlined
        )
        + ") GROUP BY name"
    ).fetchall()
    return sorted(table for table, count in counts if count >= rows)


def _expendable(connection: duckdb.DuckDBPyConnection, keep_days: int, limits: Limits) -> list[int]:
    """The snapshots to expire, oldest first; see `expire`.

    The snapshot that was the newest `keep_days` ago stays: it is the state of the lake then.
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
            "hour_ago": now - limits.full_history,
            "most": limits.max_snapshots,
            "days_ago": now - GRACE,
        },
    ).fetchall()
    return [version for (version,) in found]


def _due_files(
    lake: Lake, connection: duckdb.DuckDBPyConnection, merged_grace: timedelta
) -> list[int]:
    """The ids of the files to delete."""
    now = datetime.now(timezone.utc)
    select = (
        f"SELECT data_file_id FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
        " WHERE schedule_start::TIMESTAMPTZ < ? ORDER BY ALL"
    )
    if not connection.execute(select, [now - merged_grace]).fetchone():
        return []
    oldest_reader = (_oldest_on_postgres if lake.on_postgres else _oldest_on_sqlite)(connection)
    until = now - GRACE
    if oldest_reader is not None:
        until = max(until, min(now, oldest_reader) - merged_grace)
    return [file for (file,) in connection.execute(select, [until]).fetchall()]


def _oldest_on_sqlite(connection: duckdb.DuckDBPyConnection) -> datetime | None:
    """A time that all open readers began after, or None if that is unknown now.

    SQLite checkpoints commits from its log to the database as far as no open reader needs the state
    before: once all are checkpointed, every reader sees all commits up to now. Python's sqlite3 is
    no alternative: closing the catalog there would drop the locks of all DuckDB connections of this
    process (SQLite, "How To Corrupt An SQLite Database File", 2.2.1).
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
    """When the oldest open transaction on the catalog began, or None if the server hides it."""
    row = connection.execute(
        f"SELECT * FROM postgres_query('{CATALOG}', 'SELECT CASE WHEN bool_or(state IS NULL)"
        " THEN NULL ELSE coalesce(min(xact_start), now()) END FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = ''client backend''')"
    ).fetchone()
    assert row is not None
    oldest: datetime | None = row[0]
    return oldest
