"""The ledger of event files: which were taken in, how far, in which version; which failed, and why.

Every function that writes works in the caller's transaction, so that an entry and the rows that it
speaks of are committed together.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

import duckdb

from retail_assets.ingest import heartbeat, offsets
from retail_assets.ingest.event_folder import FoundFile
from retail_assets.ingest.event_memory import memory_of
from retail_assets.ingest.event_reader import Progress
from retail_assets.ingest.events import Delta
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.lake.rows import insert_columns
from retail_assets.secrets import mask

if TYPE_CHECKING:
    from retail_assets.settings import Settings

FILE = "file"
"""The source of events that came in files."""


@dataclass(frozen=True)
class Entry:
    """What the ledger has of a file: its current version, as it was last looked at."""

    path: str
    version: int
    received_date: date
    size_bytes: int
    modified_ns: int
    progress: Progress
    accepted: int
    dead_lettered: int
    copy_of: str | None
    ingested_ns: int | None = field(default=None, compare=False)

    def seen_ns(self, file: FoundFile) -> int | None:
        """When a file was ingested as it is now; None if it has changed."""
        same = (self.size_bytes, self.modified_ns) == (file.size_bytes, file.modified_ns)
        return self.ingested_ns if same else None

    def counting(self, delta: Delta | None) -> "Entry":
        """This with rows that came or went."""
        if delta is None:
            return self
        return replace(
            self,
            accepted=self.accepted + delta.accepted,
            dead_lettered=self.dead_lettered + delta.dead_lettered,
        )


@dataclass(frozen=True)
class LakeState:
    """What the lake has of files: how far each was taken in, and how often it could not be read.

    `birth` tells this lake from one that lay in the same place before. `workers` are those that
    live and take files in.
    """

    birth: str = ""
    taken: Mapping[str, tuple[int, int, int, int, str, int]] = field(default_factory=dict)
    failed: Mapping[str, tuple[int, int, str, int, int]] = field(default_factory=dict)
    workers: tuple[str, ...] = ()

    @classmethod
    def of_settings(cls, settings: "Settings") -> "LakeState":
        """Read it; of a lake that is not there yet it is empty."""
        try:
            with Lake.from_settings(settings).connect(read_only=True) as connection:
                return cls.read(connection)
        except NoLakeError:
            return cls()

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection) -> "LakeState":
        """Read it.

        `taken` has size, time, version, bytes taken and last line of each file, and when it was
        ingested (ns since 1970); `failed` size, time, problem, attempts and when the last was.
        """
        (birth,) = connection.execute(
            "SELECT min(table_uuid::VARCHAR) FROM ducklake_table_info('lake')"
        ).fetchone() or ("",)
        taken = {
            path: tuple(state)
            for path, *state in connection.execute(
                "SELECT path, size_bytes, modified_ns, version, bytes_taken, last_line,"
                " epoch_ns(ingested_at) FROM lake.event_files WHERE retracted_at IS NULL"
            ).fetchall()
        }
        failed = {
            path: tuple(state)
            for path, *state in connection.execute(
                "SELECT path, size_bytes, modified_ns, problem, attempts, epoch_ns(failed_at)"
                " FROM lake.failed_event_files"
            ).fetchall()
        }
        workers = tuple(found.worker for found in heartbeat.living(connection, "files"))
        return cls(str(birth), taken, failed, workers)

    def of(self, path: str) -> tuple[object, ...]:
        """How far a file was taken in, and how often it could not be read."""
        return (*self.taken.get(path, ())[2:5], *self.failed.get(path, ())[3:4])


def apply_deltas(connection: duckdb.DuckDBPyConnection, deltas: Sequence[Delta]) -> None:
    """In a transaction, bring the ledgers in line with rows that came and went by other sources."""
    offsets.apply_deltas(connection, [delta for delta in deltas if delta.source != FILE])
    changes = {
        delta.source_name: delta
        for delta in deltas
        if delta.source == FILE and (delta.accepted or delta.dead_lettered)
    }
    found = [entry.counting(changes[path]) for path, entry in entries(connection, changes).items()]
    if found:
        write(connection, found, replaced=changes)


def entries(connection: duckdb.DuckDBPyConnection, paths: Collection[str]) -> dict[str, Entry]:
    """What the ledger has of these files, each in its current version."""
    if not paths:
        return {}
    # A bare `path` would have DuckLake compare it with the statistics of each file first.
    found = _read(connection, "concat(path) IN (SELECT unnest(?::VARCHAR[]))", [list(paths)])
    return {entry.path: entry for entry in found}


def copies_of(connection: duckdb.DuckDBPyConnection, paths: Collection[str]) -> list[Entry]:
    """The files that are copies of some others."""
    if not paths:
        return []
    return _read(connection, "copy_of IN (SELECT unnest(?::VARCHAR[]))", [list(paths)])


def related(
    connection: duckdb.DuckDBPyConnection, paths: Collection[str], hashes: Collection[str]
) -> list[Entry]:
    """What the ledger has of some files, of their copies, and of files of the same content.

    Within a transaction of an `EventBatch`, whose memory may know that there are none.

    Args:
        connection: a connection to the lake.
        paths: the files.
        hashes: of their contents, as far as these are whole. Who has a content is listed, but not
            the copies of that one.
    """
    memory = memory_of(connection)
    if memory and not memory.may_have_files((*paths, *hashes)):
        return []
    return _read(
        connection,
        "(path IN (SELECT unnest($paths::VARCHAR[]))"
        " OR copy_of IN (SELECT unnest($paths::VARCHAR[]))"
        " OR (copy_of IS NULL AND lines > 0"
        " AND content_hash IN (SELECT unnest($hashes::VARCHAR[]))))",
        {"paths": list(paths), "hashes": list(hashes)},
    )


def _read(
    connection: duckdb.DuckDBPyConnection,
    where: str,
    parameters: Sequence[object] | Mapping[str, object],
) -> list[Entry]:
    return [
        Entry(path, version, day, size, modified, Progress(*state), accepted, dead, copy_of, at)
        for path, version, day, size, modified, *state, accepted, dead, copy_of, at in (
            connection.execute(
                "SELECT path, version, received_date, size_bytes, modified_ns, bytes_taken,"
                " content_hash, lines, last_line, checkpoint, accepted, dead_lettered, copy_of,"
                " epoch_ns(ingested_at)"
                f" FROM lake.event_files WHERE retracted_at IS NULL AND {where}",
                parameters,
            ).fetchall()
        )
    ]


def write(
    connection: duckdb.DuckDBPyConnection,
    written: Sequence[Entry],
    *,
    replaced: Collection[str] = (),
    retracted: Collection[str] = (),
) -> None:
    """Enter files, in place of what there is of those `replaced`.

    Of those `retracted` the current version stays as well, as one that is retracted.
    """
    memory = memory_of(connection)
    if memory:
        memory.add_files(
            name
            for entry in written
            for name in (entry.path, entry.progress.content_hash, entry.copy_of)
        )
    if retracted:
        connection.execute(
            "UPDATE lake.event_files SET retracted_at = now() WHERE retracted_at IS NULL"
            " AND path IN (SELECT unnest(?::VARCHAR[]))",
            [list(retracted)],
        )
    if replaced:
        connection.execute(
            "DELETE FROM lake.event_files WHERE retracted_at IS NULL"
            " AND path IN (SELECT unnest(?::VARCHAR[]))",
            [list(replaced)],
        )
    columns: dict[str, list[object]] = {
        "path VARCHAR": [entry.path for entry in written],
        "version BIGINT": [entry.version for entry in written],
        "received_date DATE": [entry.received_date for entry in written],
        "size_bytes BIGINT": [entry.size_bytes for entry in written],
        "modified_ns BIGINT": [entry.modified_ns for entry in written],
        "bytes_taken BIGINT": [entry.progress.bytes_taken for entry in written],
        "content_hash VARCHAR": [entry.progress.content_hash for entry in written],
        "last_line VARCHAR": [entry.progress.last_line for entry in written],
        "checkpoint VARCHAR": [entry.progress.checkpoint for entry in written],
        "lines BIGINT": [entry.progress.lines for entry in written],
        "accepted BIGINT": [entry.accepted for entry in written],
        "dead_lettered BIGINT": [entry.dead_lettered for entry in written],
        "duplicate BIGINT": [
            entry.progress.lines - entry.accepted - entry.dead_lettered for entry in written
        ],
        "copy_of VARCHAR": [entry.copy_of for entry in written],
    }
    insert_columns(connection, "event_files", columns, "now() AS ingested_at")


def failed_paths(connection: duckdb.DuckDBPyConnection) -> Collection[str]:
    """The files that could not be read.

    On a connection with a memory, as of the last transaction of an `EventBatch`.
    """
    memory = memory_of(connection)
    remembered = memory.failed_files() if memory else None
    if remembered is not None:
        return remembered
    found = connection.execute("SELECT path FROM lake.failed_event_files").fetchall()
    return [path for (path,) in found]


def note_failures(
    connection: duckdb.DuckDBPyConnection,
    unreadable: Mapping[FoundFile, str],
    readable: Collection[str],
    failed: Collection[str],
) -> None:
    """Enter why files could not be read, and forget that of files that could.

    `failed` are those that the ledger has now, or more.
    """
    concerned = {*(file.path for file in unreadable), *readable}
    failed_before = [path for path in failed if path in concerned]
    before: dict[str, tuple[int, list[int]]] = {}
    if failed_before:
        where = "WHERE path IN (SELECT unnest(?::VARCHAR[]))"
        before = {
            path: (attempts, state)
            for path, attempts, *state in connection.execute(
                "SELECT path, attempts, size_bytes, modified_ns FROM lake.failed_event_files"
                f" {where}",
                [failed_before],
            ).fetchall()
        }
        connection.execute(f"DELETE FROM lake.failed_event_files {where}", [failed_before])
    if not unreadable:
        return
    attempts = [
        before[file.path][0] + 1
        if before.get(file.path, (0, []))[1] == [file.size_bytes, file.modified_ns]
        else 1
        for file in unreadable
    ]
    columns: dict[str, list[object]] = {
        "path VARCHAR": [file.path for file in unreadable],
        "size_bytes BIGINT": [file.size_bytes for file in unreadable],
        "modified_ns BIGINT": [file.modified_ns for file in unreadable],
        "problem VARCHAR": list(map(mask, unreadable.values())),
        "attempts BIGINT": [*attempts],
    }
    insert_columns(connection, "failed_event_files", columns, "now() AS failed_at")
