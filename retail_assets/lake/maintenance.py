"""Upkeep of the lake: compact small files, expire old snapshots, delete files nobody needs."""

from dataclasses import dataclass
from datetime import datetime, timezone

import duckdb

from retail_assets import tables
from retail_assets.errors import RetailAssetsError
from retail_assets.lake import compaction
from retail_assets.lake.compaction import FOLLOWED, GRACE, Tier
from retail_assets.lake.connection import CATALOG, Lake
from retail_assets.lake.lock import write_lock

TIERS = (*compaction.TIERS, Tier(128_000_000, 256_000_000))
"""A merge of the last tier holds the lock for some seconds."""


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
    """Compact the lake as far as it goes, and forget the history older than some days.

    Readers see one snapshot before and after, and every open reader keeps its files. Writers wait
    for each step, not for the whole.

    Args:
        lake: the lake.
        keep_days: how many days back the lake stays readable as it was at any time (within a
            minute or an hour, where the history is long); two at least.

    Raises:
        RetailAssetsError: if there is no lake, or if its files do not lie where the catalog says.
    """
    lake.must_exist()
    with lake.connect() as connection:
        before = _files(connection)
        for _ in compaction.flush(lake, connection, rows=1):
            pass
        _rewrite(lake, connection)
        for _ in compaction.merge(lake, connection, TIERS, min_files=2, from_nothing=True):
            pass
        expired = sum(step.count for step in compaction.expire(lake, connection, keep_days))
        deleted = sum(step.count for step in compaction.delete(lake, connection))
        deleted += _delete_orphans(lake, connection)
        return Maintained(expired, before, _files(connection), deleted)


def _rewrite(lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
    """Rewrite the files almost all of whose rows were deleted."""
    for table in tables.ALL:
        if table.name not in FOLLOWED:
            with write_lock(lake.catalog):
                connection.execute(f"CALL ducklake_rewrite_data_files('lake', '{table.name}')")


def _delete_orphans(lake: Lake, connection: duckdb.DuckDBPyConnection) -> int:
    """Delete the files that the catalog does not know: a writer was killed before its commit."""
    when = datetime.now(timezone.utc) - GRACE
    with write_lock(lake.catalog):
        _check_orphans(connection, when)
        return len(
            connection.execute(
                "CALL ducklake_delete_orphaned_files('lake', older_than => ?::TIMESTAMPTZ)", [when]
            ).fetchall()
        )


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
