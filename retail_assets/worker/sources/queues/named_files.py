"""Event files that notifications name: read by their path, without a list of the bucket."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retail_assets.explain import told
from retail_assets.ingest.event_files import load as event_files
from retail_assets.ingest.event_files.folder import event_folder
from retail_assets.ingest.messages.load import warm_session, warn_of_new_fields
from retail_assets.worker.metrics import Batch, Metrics

if TYPE_CHECKING:
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.lake.connection import Lake
    from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 500
LOOKS_AT_ONCE = 8
"""How many objects are looked at in parallel: each look waits for the bucket."""

RETRY_SECONDS = 1.0
STOP_SECONDS = 30.0


@dataclass
class _Named:
    """A file, by all messages that name it: the time of the first, and what to call in the end."""

    sent_us: int
    finished: list[Callable[[str | None], None]] = field(default_factory=list)

    def plus(self, other: "_Named | None") -> "_Named":
        if other is None:
            return self
        return _Named(min(self.sent_us, other.sent_us), self.finished + other.finished)


class NamedFiles:
    """Ingests event files in a thread with a connection of its own, exactly once as ever.

    The ledger `event_files` decides what is new. A file that the folder no longer has is counted in
    `gone`; `problem` is why nothing can be ingested now.
    """

    def __init__(
        self,
        settings: "Settings",
        lake: "Lake",
        metrics: Metrics,
        *,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._metrics = metrics
        self._on_commit = on_commit
        self._folder = event_folder(settings)
        self._waiting: dict[str, _Named] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="named files", daemon=True)
        self.gone = 0
        self.problem: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End once lines that were read are committed; the other files are named again."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def put(self, path: str, sent_us: int, finished: Callable[[str | None], None]) -> None:
        """Have a file read; `finished` is called with its problem, or None once it is ingested."""
        with self._changed:
            named = _Named(sent_us, [finished])
            self._waiting[path] = named.plus(self._waiting.get(path))
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._lake.connect() as connection:
                    mappings = self._settings.source_mapping.events
                    session = warm_session(self._lake, connection, mappings)
                    while not self._stop.is_set():
                        self._ingest_waiting(session)
                        self.problem = None
            except Exception as error:  # noqa: BLE001  # it goes on, whatever one attempt met
                self.problem = f"event files that a queue named wait: {told(error)}"
                logger.warning("%s; they are tried again", self.problem)
                self._stop.wait(RETRY_SECONDS)

    def _ingest_waiting(self, session: "EventSession") -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
            named = {path: self._waiting.pop(path) for path in list(self._waiting)[:FILES_AT_ONCE]}
        try:
            outcomes = self._ingest(session, named)
        except BaseException:
            self._put_back(named)
            raise
        self._put_back({path: named[path] for path in named.keys() - outcomes.keys()})
        for path, problem in outcomes.items():
            for finished in named[path].finished:
                finished(problem)
        if len(outcomes) < len(named):
            # Another process is at the same files.
            self._stop.wait(RETRY_SECONDS)

    def _put_back(self, named: Mapping[str, _Named]) -> None:
        with self._changed:
            for path, one in named.items():
                self._waiting[path] = one.plus(self._waiting.get(path))

    def _ingest(
        self, session: "EventSession", named: Mapping[str, _Named]
    ) -> dict[str, str | None]:
        """Ingest some files; returns the problem of each that is finished, or None."""
        with ThreadPoolExecutor(LOOKS_AT_ONCE, "look at objects") as threads:
            is_there = dict(zip(named, threads.map(self._folder.has, named), strict=True))
        there = [path for path, found in is_there.items() if found]
        gone = [path for path, found in is_there.items() if not found]
        if gone:
            self.gone += len(gone)
            logger.warning(
                "%d event files that were named are gone, the first: %s", len(gone), gone[0]
            )
        outcomes: dict[str, str | None] = dict.fromkeys(gone)
        # To look a file up in a ledger of millions takes long; nearly always it is new.
        cache = session.cache
        unknown = [path for path in there if cache and not cache.may_have_files([path])]
        for paths, are_unknown in ((there, unknown), (unknown, [])):
            left = [path for path in paths if path not in outcomes]
            if left and not self._stop.is_set():
                outcomes |= self._ingest_some(session, named, left, are_unknown)
        return outcomes

    def _ingest_some(
        self,
        session: "EventSession",
        named: Mapping[str, _Named],
        paths: Sequence[str],
        unknown: Sequence[str],
    ) -> dict[str, str | None]:
        found = event_files.ingest(
            session,
            self._settings,
            paths,
            unknown=unknown,
            forget_gone=False,
            stop=self._stop.is_set,
            whole=True,
        )
        for problem in found.failed.values():
            logger.warning("%s", problem)
        warn_of_new_fields(found.new_fields)
        # A file of several chunks may not be done when the worker stops.
        done = {} if self._stop.is_set() else dict.fromkeys(found.files)
        results = found.files.values()
        lines = sum(file.lines for file in results)
        if lines:
            oldest = min(named[path].sent_us for path in found.files) / 1e6
            self._metrics.add(
                Batch(
                    "files",
                    lines,
                    sum(file.accepted for file in results),
                    sum(file.dead_lettered for file in results),
                    max(0.0, time.time() - oldest),
                )
            )
            self._on_commit()
        return done | found.failed
