"""Event files for the worker: taken in as the operating system tells of them, else by a scan.

Notifications make it fast, the scan makes it complete: what was there before, what the operating
system did not tell of, and last lines that are taken for whole once their file is still. What is
new is decided by the ledger, as for the sensor: both may be at work on the same files.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.ingest import event_files
from retail_assets.ingest.event_folder import is_event_file
from retail_assets.ingest.received import warm_up
from retail_assets.lake.connection import Lake
from retail_assets.stream.figures import Batch, Figures

if TYPE_CHECKING:
    import duckdb

    from retail_assets.settings import Settings

SCAN_SECONDS = 10.0
RETRY_SECONDS = 1.0
FILES_AT_ONCE = 500
"""How many files are taken in before the next look at what is new."""

NOTICE_MS = 10
"""How long notifications are gathered."""

NAME = "files"


class FileLane:
    """Takes event files in, in a thread with a connection of its own."""

    def __init__(
        self,
        settings: "Settings",
        lake: Lake,
        figures: Figures,
        *,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._figures = figures
        self._on_commit = on_commit
        self._folder = event_files.event_folder(settings)
        self._stop = threading.Event()
        self._noticed: dict[str, float] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return bool(self._threads)

    def start(self) -> None:
        """Begin; what lies there already is taken in first."""
        work = [self._run]
        if self._folder.is_local:
            Path(self._folder.location).mkdir(parents=True, exist_ok=True)
            work.append(self._watch)
        self._threads = [threading.Thread(target=target, name=NAME) for target in work]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; the files that are being taken in are finished."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        from watchfiles import Change, watch

        root = self._folder.location
        for changes in watch(
            root,
            watch_filter=None,
            debounce=NOTICE_MS,
            step=NOTICE_MS,
            stop_event=self._stop,
            rust_timeout=1000,
            raise_interrupt=False,
        ):
            now = time.time()
            with self._changed:
                for change, path in changes:
                    relative = os.path.relpath(path, root)
                    if change != Change.deleted and is_event_file(relative):
                        self._noticed.setdefault(relative, now)
                self._changed.notify_all()

    def _run(self) -> None:
        next_scan = 0.0
        while not self._stop.is_set():
            try:
                with self._lake.connect() as connection:
                    warm_up(connection)
                    while not self._stop.is_set():
                        if time.monotonic() >= next_scan:
                            self._scan(connection)
                            next_scan = time.monotonic() + SCAN_SECONDS
                        self._take_noticed(connection, next_scan)
                        self._figures.problem(NAME, None)
            except Exception as error:  # noqa: BLE001  # the lane goes on, whatever one turn met
                self._figures.problem(NAME, f"event files: {error}")
                self._stop.wait(RETRY_SECONDS)

    def _scan(self, connection: "duckdb.DuckDBPyConnection") -> None:
        pending = event_files.pending_event_files(self._settings)
        files = list(pending.files.values())
        self._gauge(pending)
        for first in range(0, len(files), FILES_AT_ONCE):
            if self._stop.is_set():
                return
            some = files[first : first + FILES_AT_ONCE]
            # Nobody knows since when the others lie there.
            self._take(connection, [file.path for file in some], None)
        if files:
            self._gauge(event_files.pending_event_files(self._settings))

    def _gauge(self, pending: event_files.Pending) -> None:
        files = pending.files.values()
        now = time.time_ns()
        oldest = min((file.modified_ns for file in files), default=now)
        self._figures.gauge(
            {
                "pending_event_files": len(files),
                "pending_event_bytes": sum(file.size_bytes for file in files),
                "oldest_pending_event_file_seconds": max(0, round((now - oldest) / 1e9, 1)),
                "event_files_left_alone": len(pending.left_alone),
            }
        )

    def _take_noticed(self, connection: "duckdb.DuckDBPyConnection", until: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._noticed or self._stop.is_set(), max(0.0, until - time.monotonic())
            )
            paths = list(self._noticed)[:FILES_AT_ONCE]
            noticed = {path: self._noticed.pop(path) for path in paths}
        # A packed file is read once it is still: the scan finds it then.
        plain = [path for path in paths if not path.endswith(".gz")]
        if plain:
            self._take(connection, plain, min(noticed[path] for path in plain))

    def _take(
        self,
        connection: "duckdb.DuckDBPyConnection",
        paths: Sequence[str],
        noticed: float | None,
    ) -> None:
        there = [path for path in paths if self._folder.has(path)]
        if not there:
            return
        found = event_files.ingest(self._lake, connection, self._settings, there)
        taken = found.files.values()
        lines = sum(file.lines for file in taken)
        if not lines:
            return
        self._figures.add(
            Batch(
                NAME,
                lines,
                sum(file.accepted for file in taken),
                sum(file.dead_lettered for file in taken),
                None if noticed is None else time.time() - noticed,
            )
        )
        self._on_commit()
