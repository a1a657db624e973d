"""Checksums of the lake's files, noted after they were written, to find damage later.

Parquet files of DuckDB have no checksums: every second flipped bit reads as another value. So each
file's SHA-256 (for an object in a bucket its ETag) is noted soon after its commit: by the worker,
by runs and by commands, outside of any transaction and without the write lock. The notes are an
SQLite file beside the catalog, `CATALOG.checksums`, or below `lake/` on this machine if the catalog
is on a server. It also has the outcomes of verifications.
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.explain import explain_text
from retail_assets.lake.connection import Lake
from retail_assets.lake.files import FileStore, LakeFile, files_after, tag

logger = logging.getLogger(__name__)

MOST_BYTES = 256_000_000
"""How much is read at one time to note checksums; the next time goes on from there."""

_CHUNK = 1_048_576

_TABLES = """
CREATE TABLE IF NOT EXISTS file (
    path TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, checksum TEXT NOT NULL,
    noted_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS noted (last_file_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS verification (
    finished_at TEXT NOT NULL, deep INTEGER NOT NULL, files INTEGER NOT NULL,
    bytes INTEGER NOT NULL, compared INTEGER NOT NULL, damaged INTEGER NOT NULL, found TEXT
);
"""


@dataclass(frozen=True)
class Verification:
    """A verification that ended: `compared` files had a checksum, `found` is the first damage."""

    finished_at: datetime
    deep: bool
    files: int
    bytes: int
    compared: int
    damaged: int
    found: str | None


def checksums_path(lake: Lake) -> Path:
    """Where the checksums of a lake are noted."""
    if lake.on_postgres:
        return Path(lake.spill_dir).parent / "catalog.checksums"
    return Path(lake.catalog + ".checksums")


def note_new_files(lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
    """Note the checksums of the files that were committed since the last time, up to a limit.

    This reads the new files. It never fails the work that it follows: checksums that are not noted
    now are noted later, at the latest by a verification.
    """
    try:
        with _opened(lake) as notes:
            _note_new_files(lake, connection, notes)
    except (OSError, sqlite3.Error, duckdb.Error, RetailAssetsError) as error:
        logger.warning("Checksums of new files are not noted, and will be later: %s", error)


def _note_new_files(
    lake: Lake, connection: duckdb.DuckDBPyConnection, notes: sqlite3.Connection
) -> None:
    store = FileStore(lake)
    (last,) = notes.execute("SELECT max(last_file_id) FROM noted").fetchone()
    read = 0
    while read < MOST_BYTES:
        files = files_after(lake, connection, -1 if last is None else last, limit=100)
        if not files:
            return
        found = []
        for file in files:
            try:
                with store.open(file) as opened:
                    found.append((file, checksum(opened)))
            except OSError:
                # It was merged and deleted meanwhile; otherwise a verification will report it.
                continue
            finally:
                read += file.size_bytes
        last = files[-1].id
        note(notes, found)
        with notes:
            notes.execute("DELETE FROM noted")
            notes.execute("INSERT INTO noted VALUES (?)", [last])


def note(notes: sqlite3.Connection, found: Sequence[tuple[LakeFile, str]]) -> None:
    """Note checksums; earlier ones stay."""
    now = datetime.now(timezone.utc).isoformat()
    with notes:
        notes.executemany(
            "INSERT OR IGNORE INTO file VALUES (?, ?, ?, ?)",
            [(file.path, file.size_bytes, text, now) for file, text in found],
        )


def noted(notes: sqlite3.Connection, files: Sequence[LakeFile]) -> dict[str, str]:
    """The noted checksums of some files, by path."""
    marks = ", ".join("?" * len(files))
    return dict(
        notes.execute(
            f"SELECT path, checksum FROM file WHERE path IN ({marks})",
            [file.path for file in files],
        )
    )


def delete_others(notes: sqlite3.Connection, before: datetime) -> None:
    """Delete checksums noted before a time whose path is not in the temporary table `seen`."""
    with notes:
        notes.execute(
            "DELETE FROM file WHERE noted_at < ? AND path NOT IN (SELECT path FROM temp.seen)",
            [before.isoformat()],
        )


def checksum(opened: IO[bytes]) -> str:
    """The checksum of a file: the ETag of an object, or else the SHA-256."""
    found = tag(opened)
    if found is not None:
        return found
    digest = hashlib.sha256()
    opened.seek(0)
    while chunk := opened.read(_CHUNK):
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def enter(notes: sqlite3.Connection, done: Verification) -> None:
    """Enter the outcome of a verification."""
    with notes:
        notes.execute(
            "INSERT INTO verification VALUES (?, ?, ?, ?, ?, ?, ?)",
            [done.finished_at.isoformat(), *list(vars(done).values())[1:]],
        )


def last_verification(lake: Lake) -> Verification | None:
    """The outcome of the last verification of the lake, if there was one on this machine.

    Raises:
        RetailAssetsError: if the notes cannot be read.
    """
    if not checksums_path(lake).exists():
        return None
    with opened_notes(lake) as notes:
        row = notes.execute(
            "SELECT * FROM verification ORDER BY finished_at DESC LIMIT 1"
        ).fetchone()
    if row is None:
        return None
    when, deep, *others = row
    return Verification(datetime.fromisoformat(when), bool(deep), *others)


@contextmanager
def opened_notes(lake: Lake) -> Iterator[sqlite3.Connection]:
    """Open the notes of a lake for as long as they are used.

    Raises:
        RetailAssetsError: if the file cannot be used.
    """
    try:
        with _opened(lake) as notes:
            yield notes
    except sqlite3.Error as error:
        reason = f"{error}. Move the file away: `retail-assets verify` notes checksums again."
        if isinstance(error, sqlite3.OperationalError):
            reason = explain_text(f"OperationalError: {error}") or reason
        raise RetailAssetsError(
            f"The checksums in {checksums_path(lake)} cannot be used: {reason}"
        ) from error


@contextmanager
def _opened(lake: Lake) -> Iterator[sqlite3.Connection]:
    path = checksums_path(lake)
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the permissions of the lake's files, whatever the umask of the process is.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666 & ~lake.umask))
    # Never the catalog itself, which another SQLite has open: see docs/operations.md, Upkeep.
    with closing(sqlite3.connect(path, timeout=30)) as notes:
        # Notes that a power cut loses are made again.
        notes.execute("PRAGMA synchronous = NORMAL")
        if (
            notes.execute("SELECT 1 FROM sqlite_master WHERE name = 'verification'").fetchone()
            is None
        ):
            notes.executescript(_TABLES)
        yield notes
