"""Event files into the event tables, exactly once: only what the ledger does not have yet.

Which files are new, and from where on, is decided by the ledger `event_files`: path, size and hash
of what was ingested. Lines go in by chunks, each in one transaction with its ledger entries. A
transaction that finds that another process has read further in a file leaves that file alone. If a
transaction fails, bisection finds the failing file, and its failing lines, so that they stop no
others.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files.content_hash import CHUNK_BYTES
from retail_assets.ingest.event_files.folder import event_folder, is_compressed, landing_day
from retail_assets.ingest.event_files.plan import (
    COPY,
    FileResult,
    Plan,
    Waiting,
    content_of,
    state_of,
)
from retail_assets.ingest.event_files.reader import (
    LIMITS,
    Chunk,
    ReadLimits,
    plain_hash,
    read_new,
)
from retail_assets.ingest.events.batch import BatchResult, EventBatch, event_batch
from retail_assets.ingest.events.lines import to_arrow
from retail_assets.ingest.events.session import EventSession, FreshSessions
from retail_assets.ingest.ledgers import event_files as event_ledger
from retail_assets.ingest.ledgers.event_files import (
    FILE,
    Entry,
    FoundFile,
    Key,
    Progress,
    apply_deltas,
)
from retail_assets.ingest.messages.faults import failing_lines
from retail_assets.lake.failures import bisect, is_of_the_data, is_of_the_size

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

NO_FILES_FAULT = (RetailAssetsError, OSError, duckdb.IOException)
"""Met by a transaction, these say that the lake cannot be written to, or not now."""

LINES_PER_CORE = 20_480
"""How many lines a core validates at a time."""

BATCH_FILES = 5_000
"""How many files are ingested together at most."""


@dataclass
class IngestResult:
    """The results of event files by path; which failed, and why."""

    files: dict[str, FileResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    new_fields: list[tuple[str, str]] = field(default_factory=list)

    def add(self, later: "IngestResult") -> None:
        """Add the results of the same or other files later."""
        for path, one in later.files.items():
            before = self.files.get(path)
            self.files[path] = one if before is None else before.plus(one)
        self.failed |= later.failed
        self.new_fields += later.new_fields


def ingest(
    session: EventSession,
    settings: "Settings",
    paths: Iterable[str],
    *,
    progress: Callable[[int], None] = lambda _: None,
    unknown: Collection[str] = (),
    forget_gone: bool = True,
    stop: Callable[[], bool] = lambda: False,
    whole: bool = False,
    limits: ReadLimits = LIMITS,
) -> IngestResult:
    """Ingest the new lines of some event files; a bad file fails alone, by name.

    Args:
        session: a session of ingest.
        settings: where the files lie, and the days that there are.
        paths: the files, relative to the events folder.
        progress: called with the number of files done.
        unknown: files that the ledger should not have: it is not queried before they are read. If
            it has one of them, nothing of that file is ingested.
        forget_gone: also remove failures of files that are gone: nobody can correct them.
        stop: called after each chunk; says whether to leave the rest for another time.
        whole: whether nobody writes to the files any more, however new they are.
        limits: how much is read and committed at once.

    Returns:
        The result of each file. Problems of files are in the ledger as well.

    Raises:
        Exception: if the lake cannot be written to; no file is blamed for it.
    """
    work = _FileIngest(session, settings, progress, stop, limits, whole)
    found = work.run(list(paths), unknown)
    if forget_gone and not stop():
        work.forget_gone()
    return found


class _FileIngest:
    """Reads files and prepares their lines while a thread ingests what was read before."""

    def __init__(
        self,
        session: EventSession,
        settings: "Settings",
        progress: Callable[[int], None],
        stop: Callable[[], bool],
        limits: ReadLimits,
        whole: bool,
    ) -> None:
        self._session = session
        self._lake, self._connection = session.lake, session.connection
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._limits = limits
        self._whole = whole
        self._folder = event_folder(settings)
        self._waiting: list[Waiting] = []
        self._weight = 0
        self._unreadable: dict[FoundFile, str] = {}
        self._result = IngestResult()
        self._begun: dict[str, Key] = {}
        self._transactions = 0
        self._thread = ThreadPoolExecutor(1, "event_ingest")
        self._committing: Future[None] | None = None
        self._today = datetime.now(ZoneInfo(settings.timezone)).date()

    def run(self, paths: Sequence[str], unknown: Collection[str]) -> IngestResult:
        with self._thread:
            for first in range(0, len(paths), BATCH_FILES):
                some = list(dict.fromkeys(paths[first : first + BATCH_FILES]))
                self._wait()
                asked = [path for path in some if path not in unknown]
                known = event_ledger.entries(self._connection, asked)
                for path in some:
                    if not self._stop():
                        self._read(path, known.get(path))
                self._commit()
                self._progress(min(first + BATCH_FILES, len(paths)))
            self._wait()
        if self._transactions > 1:
            self._count_again()
        return self._result

    def _count_again(self) -> None:
        """Count what the versions that began in this run have now.

        Later transactions may have moved events from them, or made them copies or owners.
        """
        for path, entry in event_ledger.entries(self._connection, list(self._begun)).items():
            result = self._result.files.get(path)
            if result and entry.key == self._begun[path]:
                outcome = "new" if result.outcome == COPY else result.outcome
                self._result.files[path] = replace(
                    result,
                    outcome=COPY if entry.copy_of else outcome,
                    accepted=entry.accepted,
                    dead_lettered=entry.dead_lettered,
                )

    def forget_gone(self) -> None:
        failed = event_ledger.failed_paths(self._session)
        gone = [path for path in failed if not self._folder.has(path)]
        if gone:
            with self._lake.transaction(self._connection, "clear failures of files that are gone"):
                event_ledger.note_failures(self._connection, {}, gone, gone)

    def _wait(self) -> None:
        """Wait for the thread, which has the connection to itself until then."""
        committing, self._committing = self._committing, None
        if committing is not None:
            committing.result()

    def _read(self, path: str, entry: Entry | None) -> None:
        for file, chunk in self._new(path, entry):
            if path in self._result.failed:
                # A chunk before this one failed.
                return
            waiting = Waiting(file, entry, chunk, self._day(file))
            self._waiting.append(waiting)
            self._weight += len(chunk.data) + self._limits.line_bytes * chunk.lines
            if self._weight >= self._limits.chunk_bytes or not chunk.last:
                self._commit()
            if self._stop():
                return
            if not chunk.last:
                # The next chunk continues from what the ledger will have then, or is left out.
                entry = waiting.after()

    def _new(self, path: str, entry: Entry | None) -> Iterator[tuple[FoundFile, Chunk]]:
        """The new chunks of a file; that it cannot be read is noted, other errors are raised."""
        file = FoundFile(path, 0, 0)
        try:
            file = self._folder.stat(path)
            seen_ns = entry.seen_ns(file) if entry else None
            for chunk in read_new(
                lambda: self._folder.open(path),
                compressed=is_compressed(file.path),
                known=entry.progress if entry and entry.retracted_us is None else Progress(),
                settled=self._whole
                or file.is_settled(time.time_ns(), self._settings.event_settle_seconds, seen_ns),
                limits=self._limits,
            ):
                yield file, chunk
        except (OSError, RetailAssetsError) as error:
            self._unreadable[file] = f"{path} cannot be read: {error}"

    def _day(self, file: FoundFile) -> date:
        settings = self._settings
        return landing_day(file, settings.timezone, settings.start_date, self._today)

    def _commit(self) -> None:
        waiting, self._waiting, self._weight = self._waiting, [], 0
        unreadable, self._unreadable = self._unreadable, {}
        if not waiting and not unreadable:
            return
        staged = _arrow(waiting)
        self._wait()
        self._committing = self._thread.submit(self._ingest, waiting, staged, unreadable)

    def _ingest(
        self,
        waiting: Sequence[Waiting],
        staged: "tuple[pa.Table, pa.Table] | None",
        unreadable: Mapping[FoundFile, str],
    ) -> None:
        try:
            self._transact(self._session, waiting, staged, unreadable)
        except NO_FILES_FAULT:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the other files go on
            logger.warning("Event files could not be ingested, they are tried by parts: %s", error)
            with FreshSessions(self._lake, self._session.mappings) as sessions:
                self._ingest_parts(sessions, waiting, unreadable)

    def _ingest_parts(
        self,
        sessions: FreshSessions,
        waiting: Sequence[Waiting],
        unreadable: Mapping[FoundFile, str],
    ) -> None:
        """Ingest what failed but for the files that fail alone; these are named.

        An error that no file causes is raised once the others were tried.
        """
        failed = dict(unreadable)
        of_the_lake: Exception | None = None
        for item, error in bisect(waiting, partial(self._error, sessions)):
            try:
                problem = self._without_failing_lines(sessions, item, error)
            except NO_FILES_FAULT:
                raise
            except Exception as other:  # noqa: BLE001  # as above
                of_the_lake = other
            else:
                if problem:
                    failed[item.file] = f"{item.path} cannot be ingested: {problem}"
        if failed:
            with sessions.attempt() as session:
                self._transact(session, [], None, failed)
        if of_the_lake:
            raise of_the_lake

    def _error(self, sessions: FreshSessions, part: Sequence[Waiting]) -> Exception | None:
        """Ingest some chunks; returns why they fail together, if they do."""
        try:
            with sessions.attempt() as session:
                self._transact(session, part, _arrow(part), {})
        except NO_FILES_FAULT:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            return error
        return None

    def _without_failing_lines(
        self, sessions: FreshSessions, item: Waiting, error: Exception
    ) -> Exception | None:
        """Ingest what fails alone without the lines that do; returns why the rest fails, if so.

        Raises:
            Exception: if the file does not cause it.
        """
        if not (is_of_the_data(error) or is_of_the_size(error)):
            raise error
        staged = None if item.refused else _arrow([item])
        refused = failing_lines(sessions, *staged) if staged else {}
        if not refused:
            return error
        rest = replace(item, refused=refused)
        again = self._error(sessions, [rest])
        return self._without_failing_lines(sessions, rest, again) if again else None

    def _transact(
        self,
        session: EventSession,
        waiting: Sequence[Waiting],
        staged: "tuple[pa.Table, pa.Table] | None",
        unreadable: Mapping[FoundFile, str],
    ) -> None:
        with event_batch(session, "ingest event files", staged) as batch:
            results, new_fields = self._apply(session, batch, waiting, unreadable)
        self._transactions += 1
        self._begun |= {
            item.path: item.key for item in waiting if item.entry is None or item.restarted
        }
        for one in results:
            if one.notice:
                logger.warning("%s.", one.notice)
            before = self._result.files.get(one.path)
            self._result.files[one.path] = one if before is None else before.plus(one)
        self._result.failed |= {file.path: text for file, text in unreadable.items()}
        self._result.new_fields += new_fields

    def _apply(
        self,
        session: EventSession,
        batch: EventBatch,
        waiting: Sequence[Waiting],
        unreadable: Mapping[FoundFile, str],
    ) -> tuple[list[FileResult], Sequence[tuple[str, str]]]:
        """In the transaction: the rows, and the ledger that says where they came from.

        Returns:
            The result of each file, and the fields that are new.
        """
        paths = [item.path for item in waiting]
        self._renew_hashes(session.connection, waiting)
        replacing = self._settings.changed_event_files == "replace"
        found = _related(session, waiting, replacing=replacing)
        known = {entry.path: entry for entry in found if entry.superseded_us is None}
        overtaken = [
            item.path for item in waiting if state_of(known.get(item.path)) != state_of(item.entry)
        ]
        # The counts of a file may have changed since, though nobody has read further.
        current = [
            replace(item, entry=known.get(item.path))
            for item in waiting
            if item.path not in overtaken
        ]
        batch.leave_out(FILE, overtaken)
        result, results = apply(session, batch, Plan(current, found, replace_changed=replacing))
        failed = event_ledger.failed_paths(session)
        # A later chunk may have been read of a file that failed in this run.
        readable = [path for path in paths if path not in self._result.failed]
        event_ledger.note_failures(session.connection, unreadable, readable, failed)
        return results, result.new_fields

    def _renew_hashes(
        self, connection: duckdb.DuckDBPyConnection, waiting: Sequence[Waiting]
    ) -> None:
        """Enter the hash of today for contents that the ledger knows by one of an earlier release.

        Otherwise a large file would be no copy of one that was ingested then.
        """
        large: dict[int, list[Waiting]] = {}
        for item in waiting:
            size = item.chunk.progress.bytes_taken
            if item.content and size > CHUNK_BYTES and (item.entry is None or item.restarted):
                large.setdefault(size, []).append(item)
        if not large:
            return
        for size, known in event_ledger.hashes_without_checkpoint(connection, large).items():
            for item in large[size]:
                if item.content and item.content not in known:
                    with suppress(OSError, RetailAssetsError):
                        before = plain_hash(
                            partial(self._folder.open, item.path),
                            compressed=is_compressed(item.file.path),
                            size=size,
                        )
                        if before in known:
                            event_ledger.enter_hash(connection, before, item.content)


def _related(session: EventSession, waiting: Sequence[Waiting], *, replacing: bool) -> list[Entry]:
    """The entries of some files, and of all files whose owner they may change."""
    paths = [item.path for item in waiting]
    contents = {item.content for item in waiting}
    left = {
        content_of(item.entry)
        for item in waiting
        if item.entry and (replacing or item.chunk.resumed or not item.restarted)
    }
    found = event_ledger.related(session, paths, contents=contents, left=left)
    owners = {content_of(entry): entry for entry in found if entry.copy_of is None}
    taken_over = {
        item.content
        for item in waiting
        if item.content in owners and item.after().received_us < owners[item.content].received_us
    } - left
    if taken_over:
        found = event_ledger.related(session, paths, contents=contents, left=left | taken_over)
    return found


def apply(
    session: EventSession, batch: EventBatch, plan: Plan
) -> tuple[BatchResult, list[FileResult]]:
    """In the transaction, do what is planned: the rows, and the ledger that says whence they came.

    Returns:
        What was changed, and what came of each file of the transaction.
    """
    plan.move_rows(batch)
    result = batch.apply()
    changes = {
        (delta.source_name, delta.version): delta
        for delta in result.deltas
        if delta.source == FILE and plan.has((delta.source_name, delta.version))
    }
    written = plan.entries(changes)
    replaced = plan.known & {entry.key for entry in written}
    event_ledger.write(session, written, replaced=replaced)
    apply_deltas(
        session,
        [
            delta
            for delta in result.deltas
            if delta.source != FILE or (delta.source_name, delta.version) not in changes
        ],
    )
    return result, plan.results(changes)


def _arrow(waiting: Sequence[Waiting]) -> "tuple[pa.Table, pa.Table] | None":
    """All chunks end to end, so that a thousand small files are as fast as a large one.

    Returns:
        Lines and sources as `event_batch` takes them; None if there are no lines.
    """
    import numpy as np
    import pyarrow as pa

    counts = [item.chunk.lines for item in waiting]
    if not sum(counts):
        return None
    cut: list[int] = []
    refused: dict[int, str] = {}
    first = 0
    for item in waiting:
        cut += [first + number for number in item.chunk.cut]
        refused |= {first + number: defect for number, defect in item.refused.items()}
        first += item.chunk.lines
    lines = to_arrow(b"".join(item.chunk.data for item in waiting), cut)
    if refused:
        defects = lines["defect"].to_pylist()
        for line, defect in refused.items():
            defects[line] = defect
        lines = lines.set_column(1, "defect", pa.array(defects, pa.string()))
    firsts = [item.chunk.progress.lines - item.chunk.lines + 1 for item in waiting]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.arange(sum(counts), dtype=np.int64) - starts + np.repeat(firsts, counts)
    lines = lines.append_column("position", pa.array(numbers))
    written = np.array([item.file.modified_ns // 1000 for item in waiting], np.int64)
    lines = lines.append_column("received_us", pa.array(np.repeat(written, counts)))
    lines = lines.append_column(
        "source_no", pa.array(np.repeat(np.arange(len(waiting), dtype=np.int32), counts))
    )
    lines = pa.Table.from_batches(lines.to_batches(max_chunksize=LINES_PER_CORE))
    sources = pa.table(
        {
            "source_no": pa.array(range(len(waiting)), pa.int32()),
            "received_date": pa.array([item.received_date for item in waiting], pa.date32()),
            "source": pa.array([FILE] * len(waiting), pa.string()),
            "source_name": pa.array([item.path for item in waiting], pa.string()),
            "version": pa.array([item.key[1] for item in waiting], pa.int64()),
        }
    )
    return lines, sources
