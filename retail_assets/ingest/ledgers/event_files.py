"""The ledger of event files: how far each was ingested, in which version; which failed, and why.

Every function that writes works in the caller's transaction, so that an entry and the rows that it
speaks of are committed together.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import duckdb

from retail_assets.ingest.events.batch import Delta
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.lake.rows import insert_columns
from retail_assets.secrets import mask

if TYPE_CHECKING:
    from retail_assets.settings import Settings


@dataclass(frozen=True)
class FoundFile:
    """An event file as it lies there: path relative to the folder, size in bytes, time in ns."""

    path: str
    size_bytes: int
    modified_ns: int

    def is_settled(self, now_ns: int, settle_seconds: float, seen_ns: int | None = None) -> bool:
        """Whether nobody has written to it for a while.

        Its time tells, or else, since that may be wrong and lie in the future, that it is as it was
        when it was ingested at `seen_ns`.
        """
        since = self.modified_ns if seen_ns is None else min(self.modified_ns, seen_ns)
        return now_ns - since >= settle_seconds * 1e9


DOCUMENTS, VALUES = "documents", "values"


WHOLE, OPEN, TAKEN = "whole", "open", "taken"
"""The last line: ended by a newline; without one, and left; without one, and ingested."""


@dataclass(frozen=True)
class Progress:
    """How far a file was ingested: bytes of its content (decompressed), their hash, lines.

    `checkpoint` is where `ContentHash` can go on, if the content is the file's bytes, or
    `DOCUMENTS`, if it was split into elements, or `VALUES`, if arrays were elements.
    """

    bytes_taken: int = 0
    content_hash: str = hashlib.sha256().hexdigest()
    lines: int = 0
    last_line: str = WHOLE
    checkpoint: str | None = None


FILE = "file"
"""The source of events that came in files."""


Key = tuple[str, int]
"""A version of a file: path and version."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Entry:
    """The ledger's entry of a version of a file, as it was last looked at.

    `received_us` is when its first lines were received, in microseconds since 1970;
    `superseded_us` when a later version came, null for the current one, and `retracted_us` when its
    events were retracted.
    """

    path: str
    version: int
    received_date: date
    size_bytes: int
    modified_ns: int
    progress: Progress
    accepted: int
    dead_lettered: int
    copy_of: str | None
    received_us: int
    superseded_us: int | None = None
    retracted_us: int | None = None
    ingested_ns: int | None = field(default=None, compare=False)

    @property
    def key(self) -> Key:
        """The version of the file."""
        return self.path, self.version

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
    """The lake's state of files: how far each was ingested, and how often it could not be read.

    `workers` are those that are alive and ingest files.
    """

    ingested: Mapping[str, tuple[int, int, int, int, str, int]] = field(default_factory=dict)
    failed: Mapping[str, tuple[int, int, str, int, int]] = field(default_factory=dict)
    workers: tuple[str, ...] = ()

    @classmethod
    def of_settings(cls, settings: "Settings", *, failed_only: bool = False) -> "LakeState":
        """Read it; of a lake that is not there yet it is empty."""
        try:
            with Lake.from_settings(settings).connect(read_only=True) as connection:
                return cls.read(connection, failed_only=failed_only)
        except NoLakeError:
            return cls()

    @classmethod
    def read(
        cls,
        connection: duckdb.DuckDBPyConnection,
        *,
        failed_only: bool = False,
        only: Collection[str] | None = None,
    ) -> "LakeState":
        """Read it, or as much of `ingested` as there is of those that failed, or of some files.

        `ingested` has size, time, version, bytes and last line of each file, and when that was
        ingested (ns since 1970); `failed` size, time, problem, attempts and when the last was.
        """
        ingested = {
            path: tuple(state)
            for path, *state in connection.execute(
                # A file that was retracted by hand is new when it is there again.
                "SELECT path, if(retracted_at IS NULL, size_bytes, -1), modified_ns, version,"
                " bytes_taken, last_line, epoch_ns(ingested_at) FROM lake.event_files"
                " WHERE superseded_at IS NULL"
                + (" AND path IN (SELECT path FROM lake.failed_event_files)" if failed_only else "")
                + (" AND concat(path) IN (SELECT unnest($paths::VARCHAR[]))" if only else ""),
                {"paths": list(only)} if only else {},
            ).fetchall()
        }
        failed = {
            path: tuple(state)
            for path, *state in connection.execute(
                "SELECT path, size_bytes, modified_ns, problem, attempts, epoch_ns(failed_at)"
                " FROM lake.failed_event_files"
            ).fetchall()
        }
        workers = tuple(found.worker for found in heartbeat.alive_workers(connection, "files"))
        return cls(ingested, failed, workers)


def apply_deltas(session: EventSession, deltas: Sequence[Delta]) -> None:
    """In a transaction, bring the ledgers in line with rows that came and went by other sources."""
    offsets.apply_deltas(session.connection, [delta for delta in deltas if delta.source != FILE])
    changes = {
        (delta.source_name, delta.version): delta
        for delta in deltas
        if delta.source == FILE and (delta.accepted or delta.dead_lettered)
    }
    if changes:
        found = versions(session.connection, {path for path, _ in changes})
        changed = [entry.counting(changes[entry.key]) for entry in found if entry.key in changes]
        write(session, changed, replaced=changes)


def entries(connection: duckdb.DuckDBPyConnection, paths: Collection[str]) -> dict[str, Entry]:
    """The ledger's entries of these files, each in its current version."""
    if not paths:
        return {}
    # A bare `path` would have DuckLake compare it with the statistics of each file first.
    found = _read(
        connection,
        "superseded_at IS NULL AND concat(path) IN (SELECT unnest(?::VARCHAR[]))",
        [list(paths)],
    )
    return {entry.path: entry for entry in found}


def versions(connection: duckdb.DuckDBPyConnection, paths: Collection[str]) -> list[Entry]:
    """The entries of all versions of some files that were not retracted."""
    if not paths:
        return []
    return _read(
        connection,
        "retracted_at IS NULL AND concat(path) IN (SELECT unnest(?::VARCHAR[]))",
        [list(paths)],
    )


def related(
    session: EventSession,
    paths: Collection[str],
    *,
    contents: Collection[str | None],
    left: Collection[str | None],
) -> list[Entry]:
    """The entries of some files, and of files of the same content.

    In a transaction of the session, whose cache may know that there are none.

    Args:
        session: a session of ingest.
        paths: the files, of which the current versions are listed.
        contents: hashes of whole contents, of which the owners are listed.
        left: hashes of contents of which owner and copies are listed: the owner may change.
    """
    wanted, leaving = (sorted(filter(None, hashes)) for hashes in (contents, left))
    cache = session.cache
    if cache and not cache.may_have_files((*paths, *wanted, *leaving)):
        return []
    return _read(
        session.connection,
        "((superseded_at IS NULL AND path IN (SELECT unnest($paths::VARCHAR[])))"
        " OR (retracted_at IS NULL AND lines > 0"
        " AND ((copy_of IS NULL AND content_hash IN (SELECT unnest($wanted::VARCHAR[])))"
        " OR content_hash IN (SELECT unnest($leaving::VARCHAR[])))))",
        {"paths": list(paths), "wanted": wanted, "leaving": leaving},
    )


def hashes_without_checkpoint(
    connection: duckdb.DuckDBPyConnection, sizes: Collection[int]
) -> dict[int, list[str]]:
    """The contents of some sizes whose hash may be of the kind of an earlier release."""
    return dict(
        connection.execute(
            "SELECT bytes_taken, list(DISTINCT content_hash) FROM lake.event_files"
            " WHERE checkpoint IS NULL AND lines > 0"
            " AND bytes_taken IN (SELECT unnest(?::BIGINT[])) GROUP BY bytes_taken",
            [list(sizes)],
        ).fetchall()
    )


def enter_hash(connection: duckdb.DuckDBPyConnection, before: str, now: str) -> None:
    """Enter another hash for all files of a content."""
    connection.execute(
        "UPDATE lake.event_files SET content_hash = ? WHERE content_hash = ?", [now, before]
    )


def _read(
    connection: duckdb.DuckDBPyConnection,
    where: str,
    parameters: Sequence[object] | Mapping[str, object],
) -> list[Entry]:
    found = connection.execute(
        "SELECT path, version, received_date, size_bytes, modified_ns, bytes_taken, content_hash,"
        " lines, last_line, checkpoint, accepted, dead_lettered, copy_of,"
        " coalesce(epoch_us(received_at), modified_ns // 1000), epoch_us(superseded_at),"
        f" epoch_us(retracted_at), epoch_ns(ingested_at) FROM lake.event_files WHERE {where}",
        parameters,
    )
    entries: list[Entry] = []
    for row in found.fetchall():
        fields: list[Any] = [*row[:5], Progress(*row[5:10]), *row[10:]]
        entries.append(Entry(*fields))
    return entries


def write(session: EventSession, written: Sequence[Entry], *, replaced: Collection[Key]) -> None:
    """Enter versions of files, instead of the entries of those `replaced`."""
    if not written:
        return
    if session.cache:
        session.cache.add_files(
            name
            for entry in written
            for name in (entry.path, entry.progress.content_hash, entry.copy_of)
        )
    if replaced:
        session.connection.execute(
            "DELETE FROM lake.event_files WHERE (path, version) IN"
            " (SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[]))",
            [[path for path, _ in replaced], [version for _, version in replaced]],
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
        "received_at TIMESTAMPTZ": [_instant(entry.received_us) for entry in written],
        "superseded_at TIMESTAMPTZ": [_instant(entry.superseded_us) for entry in written],
        "retracted_at TIMESTAMPTZ": [_instant(entry.retracted_us) for entry in written],
    }
    insert_columns(session.connection, "event_files", columns, "now() AS ingested_at")


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def failed_paths(session: EventSession) -> Collection[str]:
    """The files that could not be read; with a cache, as of the session's last transaction."""
    cached = session.cache.failed_files() if session.cache else None
    if cached is not None:
        return cached
    found = session.connection.execute("SELECT path FROM lake.failed_event_files").fetchall()
    return [path for (path,) in found]


def note_failures(
    connection: duckdb.DuckDBPyConnection,
    unreadable: Mapping[FoundFile, str],
    readable: Collection[str],
    failed: Collection[str],
) -> None:
    """Enter why files could not be read, and remove the failures of files that could.

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
