"""Upkeep of the lake: compact small files, expire old snapshots, delete files nobody needs."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import duckdb

from retail_assets.lake.connection import Lake
from retail_assets.lake.lock import write_lock

GRACE = timedelta(hours=1)
"""How long a file stays after nothing needs it any more: longer than any reader reads."""


@dataclass(frozen=True)
class Maintained:
    """What was done, counted."""

    snapshots_expired: int
    files_before: int
    files_after: int
    files_deleted: int


def maintain(lake: Lake, *, keep_days: int) -> Maintained:
    """Compact the lake and forget the history older than some days.

    Readers see one snapshot before and after; files that a reader may still need are kept for an
    hour. Writers wait for each step, not for the whole.

    Args:
        lake: the lake.
        keep_days: how many days of snapshots to keep.

    Raises:
        RetailAssetsError: if there is no lake.
    """
    now = datetime.now(timezone.utc)
    with lake.connect() as connection:
        before = _files(connection)
        _step(lake, connection, "CALL ducklake_flush_inlined_data('lake')")
        _step(lake, connection, "CALL ducklake_rewrite_data_files('lake')")
        _step(lake, connection, "CALL ducklake_merge_adjacent_files('lake')")
        expired = _step(
            lake,
            connection,
            "CALL ducklake_expire_snapshots('lake', older_than => ?::TIMESTAMPTZ)",
            now - timedelta(days=keep_days),
        )
        deleted = _step(
            lake,
            connection,
            "CALL ducklake_cleanup_old_files('lake', older_than => ?::TIMESTAMPTZ)",
            now - GRACE,
        ) + _step(
            lake,
            connection,
            "CALL ducklake_delete_orphaned_files('lake', older_than => ?::TIMESTAMPTZ)",
            now - GRACE,
        )
        return Maintained(expired, before, _files(connection), deleted)


def _step(
    lake: Lake, connection: duckdb.DuckDBPyConnection, sql: str, when: datetime | None = None
) -> int:
    with write_lock(lake.catalog):
        return len(connection.execute(sql, [when] if when else []).fetchall())


def _files(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT sum(file_count) FROM ducklake_table_info('lake')").fetchone()
    return int(row[0] or 0) if row else 0
