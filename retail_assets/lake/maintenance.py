"""Upkeep of the lake: compact small files, expire old snapshots, delete files nobody needs."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.lake.connection import Lake
from retail_assets.lake.lock import write_lock

GRACE = timedelta(days=2)
"""How long a snapshot stays, and then its files: longer than any reader reads.

A reader whose snapshot is forgotten finds fewer rows, without an error. In an SQLite catalog
DuckLake compares the times of files as text, which comes down to the day alone, in the time zone of
whichever machine wrote it: of these two days, half a day is certain.
"""

CATALOG = "__ducklake_metadata_lake"
"""What DuckLake calls the database of the catalog of `lake`."""


@dataclass(frozen=True)
class Maintained:
    """What was done, counted.

    `files_before` and `files_after` are the data files that the newest snapshot reads.
    """

    snapshots_expired: int
    files_before: int
    files_after: int
    files_deleted: int


def maintain(lake: Lake, *, keep_days: int) -> Maintained:
    """Compact the lake and forget the history older than some days.

    Readers see one snapshot before and after; files that a reader may still need are kept for half
    a day at least. Writers wait for each step, not for the whole.

    Args:
        lake: the lake.
        keep_days: how many days back the lake stays readable as it was at any time; two at least.

    Raises:
        RetailAssetsError: if there is no lake, or if its files do not lie where the catalog says.
    """
    if not lake.exists():
        # To open it for writing would make one.
        with lake.connect(read_only=True):
            pass
    now = datetime.now(timezone.utc)
    with lake.connect() as connection:
        before = _files(connection)
        for action in ("flush_inlined_data", "rewrite_data_files", "merge_adjacent_files"):
            with write_lock(lake.catalog):
                connection.execute(f"CALL ducklake_{action}('lake')")
        with write_lock(lake.catalog):
            expired = _expire(connection, now - max(timedelta(days=keep_days), GRACE))
        with write_lock(lake.catalog):
            deleted = _delete(connection, "cleanup_old_files", now - GRACE)
        with write_lock(lake.catalog):
            _check_orphans(connection, now - GRACE)
            deleted += _delete(connection, "delete_orphaned_files", now - GRACE)
        return Maintained(expired, before, _files(connection), deleted)


def _expire(connection: duckdb.DuckDBPyConnection, horizon: datetime) -> int:
    """Forget the snapshots that no time since the horizon needs.

    The one that was the newest at the horizon stays: it is how the lake was then.
    """
    versions = [
        version
        for (version,) in connection.execute(
            "SELECT snapshot_id FROM lake.snapshots() WHERE snapshot_id < (SELECT max(snapshot_id)"
            " FROM lake.snapshots() WHERE snapshot_time <= ?::TIMESTAMPTZ)",
            [horizon],
        ).fetchall()
    ]
    if versions:
        connection.execute(
            "CALL ducklake_expire_snapshots('lake', versions => ?::UBIGINT[])", [versions]
        )
    return len(versions)


def _delete(connection: duckdb.DuckDBPyConnection, action: str, when: datetime) -> int:
    sql = f"CALL ducklake_{action}('lake', older_than => ?::TIMESTAMPTZ)"
    return len(connection.execute(sql, [when]).fetchall())


def _check_orphans(connection: duckdb.DuckDBPyConnection, when: datetime) -> None:
    """Make sure that no file in use would be taken for an orphan.

    DuckLake compares whole paths: were the data folder spelt in another way than the file system
    does (`//`, `file://`), all files would be orphans. Their names are unique.
    """
    orphans = connection.execute(
        "CALL ducklake_delete_orphaned_files('lake', dry_run => true,"
        " older_than => ?::TIMESTAMPTZ)",
        [when],
    ).fetchall()
    known = {
        path.rsplit("/", 1)[-1]
        for (path,) in connection.execute(
            f"SELECT path FROM {CATALOG}.ducklake_data_file"
            f" UNION ALL SELECT path FROM {CATALOG}.ducklake_delete_file"
            f" UNION ALL SELECT path FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
        ).fetchall()
    }
    for (path,) in orphans:
        if path.rsplit("/", 1)[-1] in known:
            raise RetailAssetsError(
                f"{path} is in use, but the catalog knows it by another path: no orphans were"
                " deleted. Write RETAIL_LAKE_DATA as a plain absolute path."
            )


def _files(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT sum(file_count) FROM ducklake_table_info('lake')").fetchone()
    return int(row[0] or 0) if row else 0
