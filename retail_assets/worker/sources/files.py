"""Event files for the worker: ingested as the operating system notifies of them, else by a scan.

Notifications make it fast. The scan makes it complete: it finds files that were there before, files
without a notification, and last lines that count as whole once their file does not change. The
ledger decides what is new, as for the sensor: both may work on the same files.

One thread ingests; files that the other threads find wait for it, those just noticed first. A busy
shop never stops sending, so files that a scan found have their share in between.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from retail_assets.explain import told
from retail_assets.ingest.event_files import load as event_files
from retail_assets.ingest.event_files import pending as event_pending
from retail_assets.ingest.event_files.folder import event_folder, is_compressed, is_event_file
from retail_assets.ingest.messages.load import warm_session, warn_of_new_fields
from retail_assets.lake.connection import Lake
from retail_assets.worker.metrics import Batch, Metrics

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import duckdb

    from retail_assets.ingest.events.session import EventSession
    from retail_assets.ingest.ledgers.event_files import FoundFile
    from retail_assets.settings import Settings

T = TypeVar("T")

logger = logging.getLogger(__name__)

SCAN_SECONDS = 10.0
SCAN_PAUSE = 4
"""After a scan the thread pauses this many times as long as the scan took, if that is longer."""

WAIT_SECONDS = 10.0
RETRY_SECONDS = 1.0
FILES_AT_ONCE = 500
"""How many files are ingested before the next look at what is new."""

SHARE_FILES, SHARE_BYTES = 50, 8 << 20
"""How much of the files that a scan found is ingested at once while noticed files wait."""

SHARE_PAUSE = 4
"""Noticed files then have this many times as long for themselves as that took."""

STOP_SECONDS = 30.0
"""How long the end waits for a transaction, and for files that are being read."""

NOTICE_MS = 3
"""How long notifications are gathered."""

NAME, SCAN, WATCH = "files", "scan of files", "watch of files"


class FilePipeline:
    """Ingests event files in a thread with a connection of its own."""

    def __init__(
        self,
        settings: "Settings",
        lake: Lake,
        metrics: Metrics,
        *,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._metrics = metrics
        self._on_commit = on_commit
        self._folder = event_folder(settings)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._noticed: dict[str, float] = {}
        self._pending: dict[str, FoundFile] = {}
        self._known: set[str] | None = None
        self._share_at = time.monotonic()
        self._threads: list[threading.Thread] = []

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return bool(self._threads)

    def start(self) -> None:
        """Begin, with what lies there already."""
        work = [self._ingest_waiting, self._scan]
        if self._folder.is_local:
            Path(self._folder.location).mkdir(parents=True, exist_ok=True)
            work.append(self._watch)
        # A thread that a dead disk keeps waiting does not keep the process.
        self._threads = [threading.Thread(target=target, name=NAME, daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End once lines that were read are committed; the rest of the files is left for later.

        A thread that a dead disk keeps waiting is left to itself after a while.
        """
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            logger.warning(
                "Event files are still being read or committed after %g seconds, though the worker"
                " ends: what is not in the ledger is ingested when it starts again.",
                STOP_SECONDS,
            )

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001  # such as a folder that is gone: the scan goes on
                self._failed(WATCH, f"changes of the events folder are not seen: {told(error)}")
                self._stop.wait(RETRY_SECONDS)

    def _listen(self) -> None:
        from watchfiles import Change, watch

        root = self._folder.location
        before: list[str] = []
        for changes in watch(
            root,
            watch_filter=None,
            debounce=NOTICE_MS,
            step=NOTICE_MS,
            stop_event=self._stop,
            rust_timeout=1000,
            raise_interrupt=False,
            yield_on_timeout=True,
        ):
            self._metrics.problem(WATCH, None)
            now = time.time()
            names = [
                os.path.relpath(path, root) for kind, path in changes if kind != Change.deleted
            ]
            # What lands in a new folder before it is watched is not told of: look at it now, and
            # once more when it is surely watched.
            folders = [name for name in names if self._folder.is_folder(name)]
            for folder in (*before, *folders):
                names += self._folder.list(folder).files
            before = folders
            # A compressed file is read once it is settled: the scan finds it then.
            new = [name for name in names if is_event_file(name) and not is_compressed(name)]
            if new:
                self._notice(new, now)

    def _notice(self, paths: Sequence[str], now: float) -> None:
        with self._changed:
            for path in paths:
                # A file that waits keeps its position, and has waited since then.
                self._noticed.setdefault(path, now)
            self._changed.notify_all()

    def _scan(self) -> None:
        lake = replace(self._lake, threads=1)
        self._again_and_again(SCAN, lambda: lake.connect(read_only=True), self._scan_once)

    def _scan_once(self, connection: "duckdb.DuckDBPyConnection") -> float:
        """Look at the whole folder; returns how long to pause then."""
        began = time.monotonic()
        pending = event_pending.pending_event_files(self._settings, connection)
        with self._changed:
            if self._settings.events_listed:
                self._known = (self._known or set()) | pending.lake.ingested.keys()
            self._pending = dict(pending.files)
            self._changed.notify_all()
        self._metrics.gauge(
            {
                "event_files_left_alone": len(pending.left_alone),
                "event_files_not_read": len(pending.not_read),
            }
        )
        self._gauge()
        # A scan of a hundred thousand files takes seconds.
        return max(SCAN_SECONDS, SCAN_PAUSE * (time.monotonic() - began))

    def _gauge(self) -> None:
        with self._changed:
            files = list(self._pending.values())
        now = time.time_ns()
        oldest = min((file.modified_ns for file in files), default=now)
        self._metrics.gauge(
            {
                "pending_event_files": len(files),
                "pending_event_bytes": sum(file.size_bytes for file in files),
                "oldest_pending_event_file_seconds": max(0, round((now - oldest) / 1e9, 1)),
            }
        )

    def _ingest_waiting(self) -> None:
        self._again_and_again(NAME, self._warm_session, self._ingest_once)

    def _ingest_once(self, session: "EventSession") -> float:
        """Ingest some of what waits; there is no need to pause then."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._noticed or self._pending or self._stop.is_set(), WAIT_SECONDS
            )
            if self._stop.is_set():
                return 0
            share = self._share()
            paths = share or list(self._noticed)[:FILES_AT_ONCE]
            # Nobody knows since when files that a scan found are there.
            since = None if share else min(map(self._noticed.__getitem__, paths), default=None)
            unknown = set(paths) - self._known if since and self._known is not None else set()
            for path in paths:
                self._noticed.pop(path, None)
                self._pending.pop(path, None)
        there = [path for path in paths if self._folder.has(path)]
        began = time.monotonic()
        try:
            if there:
                self._ingest(session, there, unknown, since)
        finally:
            if share:
                now = time.monotonic()
                self._share_at = now + SHARE_PAUSE * (now - began)
        return 0

    def _share(self) -> list[str]:
        """The files to ingest now of those that a scan found, and nobody noticed since."""
        if self._noticed and time.monotonic() < self._share_at:
            return []
        files, left = (SHARE_FILES, SHARE_BYTES) if self._noticed else (FILES_AT_ONCE, math.inf)
        share = []
        for path, file in self._pending.items():
            if path not in self._noticed:
                share.append(path)
                left -= file.size_bytes
                if len(share) == files or left <= 0:
                    break
        return share

    def _ingest(
        self,
        session: "EventSession",
        paths: Sequence[str],
        unknown: Collection[str],
        noticed: float | None,
    ) -> None:
        found = event_files.ingest(
            session,
            self._settings,
            paths,
            unknown=unknown,
            forget_gone=noticed is None,
            stop=self._stop.is_set,
        )
        for problem in found.failed.values():
            logger.warning("%s", problem)
        warn_of_new_fields(found.new_fields)
        with self._changed:
            if self._known is not None:
                self._known.update(paths)
        if noticed is None:
            self._gauge()
        results = found.files.values()
        lines = sum(file.lines for file in results)
        if not lines:
            return
        self._metrics.add(
            Batch(
                NAME,
                lines,
                sum(file.accepted for file in results),
                sum(file.dead_lettered for file in results),
                None if noticed is None else time.time() - noticed,
            )
        )
        self._on_commit()

    @contextmanager
    def _warm_session(self) -> Iterator["EventSession"]:
        with self._lake.connect() as connection:
            yield warm_session(self._lake, connection, self._settings.source_mapping.events)

    def _again_and_again(
        self,
        name: str,
        connect: "Callable[[], AbstractContextManager[T]]",
        work: "Callable[[T], float]",
    ) -> None:
        """Do some work until the end, with a connection that is made again after a failure."""
        while not self._stop.is_set():
            try:
                with connect() as connection:
                    while not self._stop.is_set():
                        pause = work(connection)
                        self._metrics.problem(name, None)
                        self._stop.wait(pause)
            except Exception as error:  # noqa: BLE001  # it goes on, whatever one iteration met
                self._failed(name, f"event files: {told(error)}")
                self._stop.wait(RETRY_SECONDS)

    def _failed(self, name: str, problem: str) -> None:
        if self._metrics.problems.get(name) != problem:
            # Once, not with every attempt.
            logger.warning("The %s failed, it is tried again: %s", name, problem)
        self._metrics.problem(name, problem)
