"""Upkeep of the lake: compact small files, expire old snapshots, remove unneeded files.

Files that the catalog lists as merged are deleted. Files that it does not know are moved into a
trash folder, but only as many as killed writers can have left: a restored older catalog knows none
of the newer files.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.lake import compaction
from retail_assets.lake.compaction import GRACE, Tier
from retail_assets.lake.connection import CATALOG, Lake
from retail_assets.lake.durability import local_folder
from retail_assets.lake.lock import write_lock

TIERS = (*compaction.TIERS, Tier(128_000_000, 256_000_000))
"""A merge of the last tier holds the lock for some seconds."""

ANY_SIZE = 2**62

ORPHANS, ORPHAN_BYTES, ORPHAN_SHARE = 20, 100_000_000, 0.1
"""How many files and bytes killed writers may have left; or this share of those that the catalog
knows, if that is more."""

TRASH = "trash"
"""The folder below the lake's files for unknown ones, with a folder for each day of a move."""

TRASH_DAYS = 14
"""How many days they are kept there."""

_MADE_AT = re.compile(r"ducklake-([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-")
"""DuckLake names files by UUIDs of version 7, which begin with the time in ms."""


@dataclass(frozen=True)
class Maintained:
    """Counts of an upkeep.

    `files_before` and `files_after` are the data files that the newest snapshot reads,
    `files_to_trash` those that the catalog did not know.
    """

    snapshots_expired: int
    files_before: int
    files_after: int
    files_deleted: int
    files_to_trash: int = 0


def maintain(lake: Lake, *, keep_days: int, all_orphans: bool = False) -> Maintained:
    """Compact the lake as far as possible, and expire the history older than some days.

    Every open reader keeps its files. Writers wait for each step, not for the whole.

    Args:
        lake: the lake.
        keep_days: how many days back the lake stays readable as it was at any time (within a
            minute or an hour, where the history is long); two at least.
        all_orphans: move all files that the catalog does not know into the trash, however many.

    Raises:
        RetailAssetsError: if there is no lake, if its files do not lie where the catalog says, or
            if more of them are unknown than killed writers leave; all else is done then.
    """
    lake.must_exist()
    with lake.connect() as connection:
        before, last_commit = _files(connection), _last_commit(connection)
        for _ in compaction.flush(lake, connection, rows=1):
            pass
        for _ in compaction.rewrite(lake, connection, min_files=1, below=ANY_SIZE, deleted=0.95):
            pass
        for _ in compaction.merge(lake, connection, TIERS, min_files=2, from_nothing=True):
            pass
        expired = sum(step.count for step in compaction.expire(lake, connection, keep_days))
        deleted = sum(step.count for step in compaction.delete(lake, connection))
        trashed = _remove_orphans(lake, connection, last_commit, all_of_them=all_orphans)
        return Maintained(expired, before, _files(connection), deleted, trashed)


def _remove_orphans(
    lake: Lake, connection: duckdb.DuckDBPyConnection, last_commit: datetime, *, all_of_them: bool
) -> int:
    """Remove files that the catalog does not know, older than its last commit; returns how many.

    In a folder they are moved into the trash. In object storage, which may keep versions, DuckLake
    deletes them.
    """
    when = min(datetime.now(timezone.utc) - GRACE, last_commit)
    folder = local_folder(lake.data_path)
    with write_lock(lake.catalog, "move files that the catalog does not know"):
        if folder is not None:
            _empty_trash(folder / TRASH)
        orphans = [path for path in _orphans(connection, when) if _is_older(path, when, folder)]
        if not all_of_them:
            _check_number(lake, connection, orphans, folder)
        if folder is None:
            return len(
                connection.execute(
                    "CALL ducklake_delete_orphaned_files('lake', older_than => ?::TIMESTAMPTZ)",
                    [when],
                ).fetchall()
            )
        today = folder / TRASH / f"{datetime.now(timezone.utc):%Y-%m-%d}"
        for path in orphans:
            target = today / _local(path).relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _local(path).rename(target)
        return len(orphans)


def _orphans(connection: duckdb.DuckDBPyConnection, when: datetime) -> list[str]:
    """The files last written before a time that the catalog does not know.

    DuckLake compares whole paths: if the data folder is spelt in another way than by the file
    system (`//`, `file://`), all files would be orphans. So unique file names are compared as well.

    Raises:
        RetailAssetsError: if a file in use would be taken for an orphan.
    """
    orphans = [
        path
        for (path,) in connection.execute(
            "CALL ducklake_delete_orphaned_files('lake', dry_run => true,"
            " older_than => ?::TIMESTAMPTZ)",
            [when],
        ).fetchall()
    ]
    known = {
        path.rsplit("/", 1)[-1]
        for (path,) in connection.execute(
            f"SELECT path FROM {CATALOG}.ducklake_data_file"
            f" UNION ALL SELECT path FROM {CATALOG}.ducklake_delete_file"
            f" UNION ALL SELECT path FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
        ).fetchall()
    }
    for path in orphans:
        if path.rsplit("/", 1)[-1] in known:
            raise RetailAssetsError(
                f"{path} is in use, but the catalog knows it by another path: no orphans were"
                " moved. Write RETAIL_LAKE_DATA as a plain absolute path."
            )
    return orphans


def _is_older(path: str, when: datetime, folder: Path | None) -> bool:
    """Whether a file was made before a time, by its name, and is not in the trash."""
    made = _MADE_AT.search(path.rsplit("/", 1)[-1])
    if made is not None and int(made[1] + made[2], 16) >= when.timestamp() * 1000:
        return False
    return folder is None or folder / TRASH not in _local(path).parents


def _check_number(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    orphans: Sequence[str],
    folder: Path | None,
) -> None:
    """Make sure that killed writers can have left the files that the catalog does not know.

    Raises:
        RetailAssetsError: if they are too many or too large.
    """
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(file_size_bytes), 0) FROM {CATALOG}.ducklake_data_file"
    ).fetchone()
    assert row is not None
    files, size = len(orphans), 0
    if folder is not None:
        size = sum(_local(path).stat().st_size for path in orphans)
    if files > max(ORPHANS, ORPHAN_SHARE * row[0]) or size > max(
        ORPHAN_BYTES, ORPHAN_SHARE * float(row[1])
    ):
        raise RetailAssetsError(
            f"{files} files ({size:,} bytes) in {lake.data_path}, such as {orphans[0]}, are not in"
            " the catalog, more than killed writers leave: none were moved. If this catalog is an"
            " older copy, restore the newest; otherwise `retail-assets maintain --all-orphans`"
            " moves them to the trash."
        )


def _empty_trash(trash: Path) -> None:
    """Delete the old days of the trash."""
    last = datetime.now(timezone.utc).date() - timedelta(days=TRASH_DAYS)
    for day in trash.glob("????-??-??"):
        try:
            old = date.fromisoformat(day.name) < last
        except ValueError:
            continue
        if old:
            shutil.rmtree(day)


def _local(path: str) -> Path:
    return Path(path.removeprefix("file://"))


def _last_commit(connection: duckdb.DuckDBPyConnection) -> datetime:
    row = connection.execute(
        f"SELECT max(snapshot_time::TIMESTAMPTZ) FROM {CATALOG}.ducklake_snapshot"
    ).fetchone()
    assert row is not None
    last: datetime = row[0]
    return last


def _files(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT sum(file_count) FROM ducklake_table_info('lake')").fetchone()
    return int(row[0] or 0) if row else 0
