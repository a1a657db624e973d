"""Verifies that all files that the catalog names are there and whole.

The size and Parquet footer of each file are compared with the catalog, and on request its content
with the checksum that was noted after it was written. Nothing is locked, and only `quarantine`
changes the lake.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timezone
from functools import partial
from pathlib import Path
from typing import IO

import duckdb

from retail_assets import tables
from retail_assets.errors import RetailAssetsError
from retail_assets.lake import checksums
from retail_assets.lake.checksums import Verification
from retail_assets.lake.connection import CATALOG, Lake
from retail_assets.lake.files import FileStore, LakeFile, files_after, named_files, query_catalog
from retail_assets.lake.lock import write_lock

READERS = 4
"""How many files are read at once."""

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_SQLITE = b"SQLite format 3\0"

RESTORE = "restore it from a backup (docs/operations.md, Backup and restore)"


@dataclass(frozen=True)
class Damage:
    """A file that is not as the catalog says, and the days of its rows, if they have days."""

    table: str
    file: LakeFile
    location: str
    problem: str
    first: date | None
    last: date | None

    @property
    def newest(self) -> bool:
        """Whether the newest snapshot reads the file."""
        return self.file.newest


@dataclass(frozen=True)
class Report:
    """The outcome of a verification; `noted` files had no checksum and have one now."""

    summary: Verification
    noted: int
    damages: tuple[Damage, ...]


def verify(
    lake: Lake,
    *,
    deep: bool,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Report:
    """Verify the catalog and every file that it names in any snapshot.

    Args:
        lake: the lake.
        deep: read each file whole and compare its checksum. In a bucket the ETag is always
            compared, and objects are not read: their storage has checksums of its own.
        progress: called with the bytes that are done, and their total.

    Raises:
        RetailAssetsError: if the catalog is missing, empty or damaged.
    """
    check_catalog_file(lake)
    started = datetime.now(timezone.utc)
    with _connected(lake) as connection, checksums.opened_notes(lake) as notes:
        _check_catalog(lake, connection)
        run = _Run(lake, connection, notes, deep=deep)
        run.check_all(progress)
        damages = run.damages()
        checksums.delete_others(notes, started)
        summary = Verification(
            finished_at=datetime.now(timezone.utc),
            deep=deep,
            files=run.files,
            bytes=run.bytes,
            compared=run.compared,
            damaged=len(damages),
            found=f"{damages[0].table}: {damages[0].location} {damages[0].problem}"
            if damages
            else None,
        )
        checksums.enter(notes, summary)
        return Report(summary, run.noted, damages)


def check_catalog_file(lake: Lake) -> None:
    """Make sure that there is a catalog, and that it is a database.

    Raises:
        RetailAssetsError: with what is there instead, and what to do.
    """
    if lake.on_postgres:
        return
    catalog = Path(lake.catalog)
    if not lake.exists():
        files = _count_files(lake)
        if files:
            what = "is empty" if catalog.exists() else "is missing"
            raise RetailAssetsError(
                f"The catalog {catalog} {what}, but {files} of a lake lie in {lake.data_path}:"
                f" {RESTORE}."
            )
        lake.must_exist()
    try:
        with catalog.open("rb") as opened:
            head = opened.read(len(_SQLITE))
    except OSError as error:
        raise RetailAssetsError(
            f"The catalog {catalog} cannot be read: {error.strerror}."
        ) from error
    if head != _SQLITE:
        raise RetailAssetsError(f"The catalog {catalog} is damaged, no SQLite database: {RESTORE}.")


def _count_files(lake: Lake) -> str:
    if "://" in lake.data_path:
        return ""
    most = 1_000
    found = 0
    for _ in Path(lake.data_path).rglob("*.parquet"):
        found += 1
        if found >= most:
            return f"{most} Parquet files or more"
    return f"{found} Parquet files" if found else ""


@contextmanager
def _connected(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    """Connect to a lake whose catalog may have damaged pages."""
    try:
        connection = lake.open(read_only=True)
    except (duckdb.Error, RetailAssetsError) as error:
        if lake.on_postgres or "malformed" not in str(error):
            raise
        raise _damaged(lake, str(error)) from error
    with connection:
        yield connection


def _damaged(lake: Lake, reason: str) -> RetailAssetsError:
    reason = " ".join(reason.splitlines()[0].split())
    return RetailAssetsError(f"The catalog {lake.catalog} is damaged ({reason}): {RESTORE}.")


def _check_catalog(lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
    """Have SQLite check its pages, which also hold the rows that DuckLake inlines."""
    if lake.on_postgres:
        return
    try:
        found = [text for (text,) in query_catalog(lake, connection, "PRAGMA quick_check(1)")]
    except duckdb.Error as error:
        raise _damaged(lake, str(error)) from error
    if found != ["ok"]:
        raise _damaged(lake, found[0])


class _Run:
    """One verification, page by page of files, so that memory stays bounded."""

    def __init__(
        self,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        notes: sqlite3.Connection,
        *,
        deep: bool,
    ) -> None:
        self._lake, self._connection, self._notes, self._deep = lake, connection, notes, deep
        self._store = FileStore(lake)
        self._problems: dict[int, str] = {}
        self._suspects: list[LakeFile] = []
        self.files = self.bytes = self.compared = self.noted = 0

    def check_all(self, progress: Callable[[int, int], None]) -> None:
        """Check every file that the catalog names."""
        self._notes.execute("CREATE TEMP TABLE seen (path TEXT PRIMARY KEY) WITHOUT ROWID")
        total = self._total_bytes()
        last = -1
        with ThreadPoolExecutor(READERS) as readers:
            while page := files_after(self._lake, self._connection, last):
                last = page[-1].id
                known = checksums.noted(self._notes, page)
                check = partial(self._check, known)
                fresh = []
                for file, (problem, text) in zip(page, readers.map(check, page), strict=True):
                    self.files += 1
                    self.bytes += file.size_bytes
                    self.compared += file.path in known
                    if problem is not None:
                        self._problems[file.id] = problem
                        self._suspects.append(file)
                    elif file.path not in known and text is not None:
                        fresh.append((file, text))
                    progress(self.bytes, max(total, self.bytes))
                checksums.note(self._notes, fresh)
                self.noted += len(fresh)
                with self._notes:
                    self._notes.executemany(
                        "INSERT OR IGNORE INTO temp.seen VALUES (?)",
                        [(file.path,) for file in page],
                    )

    def damages(self) -> tuple[Damage, ...]:
        """The damaged files that the catalog still names: upkeep may have deleted others."""
        return tuple(
            Damage(
                file.table,
                file,
                file.location(self._lake),
                self._problems[file.id],
                *_days(self._connection, file),
            )
            for file in named_files(self._lake, self._connection, self._suspects)
        )

    def _total_bytes(self) -> int:
        sizes = [
            query_catalog(
                self._lake, self._connection, f"SELECT sum(file_size_bytes) AS bytes FROM {table}"
            )[0][0]
            for table in ("ducklake_data_file", "ducklake_delete_file")
        ]
        return sum(int(size or 0) for size in sizes)

    def _check(self, known: dict[str, str], file: LakeFile) -> tuple[str | None, str | None]:
        """The fault of a file, if any, and its checksum if that was computed."""
        expected = known.get(file.path)
        try:
            with self._store.open(file) as opened:
                problem = _shape_problem(opened, file)
                if problem is not None:
                    return problem, None
                remote = not self._store.is_local
                if expected is not None and not (self._deep or remote):
                    return None, None
                found = checksums.checksum(opened)
        except FileNotFoundError:
            return "is missing", None
        except OSError as error:
            return f"cannot be read: {error.strerror or error}", None
        if expected is not None and found != expected:
            return "has other bytes than when it was written", None
        return None, found


def _shape_problem(opened: IO[bytes], file: LakeFile) -> str | None:
    """The fault of a file's size or Parquet footer, if any."""
    size = opened.seek(0, 2)
    if size != file.size_bytes:
        return f"has {size:,} bytes instead of {file.size_bytes:,}"
    if file.format != "parquet":
        return None
    opened.seek(max(0, size - _TAIL_BYTES))
    if not opened.read().endswith(_MAGIC):
        return "does not end as a Parquet file does"
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened.seek(0)
    try:
        rows = pq.read_metadata(opened).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"has a Parquet footer that cannot be read ({str(error).splitlines()[0][:100]})"
    return None if rows == file.rows else f"has {rows:,} rows instead of {file.rows:,}"


def _days(connection: duckdb.DuckDBPyConnection, file: LakeFile) -> tuple[date | None, date | None]:
    """The first and the last day of the rows in a file, by the statistics of the catalog."""
    table = tables.BY_NAME.get(file.table)
    if table is None or table.day is None:
        return None, None
    row = connection.execute(
        "SELECT min(min_value), max(max_value)"
        f" FROM {CATALOG}.ducklake_file_column_stats AS s JOIN {CATALOG}.ducklake_column AS c"
        " ON c.table_id = s.table_id AND c.column_id = s.column_id"
        " WHERE s.data_file_id = ? AND c.column_name = ?",
        [file.data_file_id, table.day],
    ).fetchone()
    if row is None or row[0] is None:
        return None, None
    return date.fromisoformat(row[0]), date.fromisoformat(row[1])


def quarantine(lake: Lake, connection: duckdb.DuckDBPyConnection, damages: Sequence[Damage]) -> int:
    """Take files out of the newest snapshot, so that their rows can be written again.

    Otherwise, commits that delete or read their rows fail. The catalog gets a new snapshot, as if
    all rows of these files had been deleted. Older snapshots stay as they are, and cannot be read
    where they need the files.

    Returns:
        The id of the new snapshot.
    """
    files = ", ".join(sorted({str(damage.file.data_file_id) for damage in damages}))
    with write_lock(lake.catalog):
        connection.execute("BEGIN")
        try:
            snapshot = _add_snapshot(connection, files)
            for table in ("ducklake_data_file", "ducklake_delete_file"):
                connection.execute(
                    f"UPDATE {CATALOG}.{table} SET end_snapshot = ?"
                    f" WHERE end_snapshot IS NULL AND data_file_id IN ({files})",
                    [snapshot],
                )
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    return snapshot


def _add_snapshot(connection: duckdb.DuckDBPyConnection, files: str) -> int:
    connection.execute(
        f"INSERT INTO {CATALOG}.ducklake_snapshot SELECT snapshot_id + 1, now(), schema_version,"
        f" next_catalog_id, next_file_id FROM {CATALOG}.ducklake_snapshot"
        " ORDER BY snapshot_id DESC LIMIT 1"
    )
    row = connection.execute(f"SELECT max(snapshot_id) FROM {CATALOG}.ducklake_snapshot").fetchone()
    assert row is not None
    snapshot = int(row[0])
    connection.execute(
        f"INSERT INTO {CATALOG}.ducklake_snapshot_changes SELECT ?,"
        " string_agg('deleted_from_table:' || table_id, ','), 'retail_assets',"
        " 'quarantine damaged files', NULL"
        f" FROM (SELECT DISTINCT table_id FROM {CATALOG}.ducklake_data_file"
        f" WHERE data_file_id IN ({files}))",
        [snapshot],
    )
    return snapshot
