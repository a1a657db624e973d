"""The resident worker: events from all sources into the lake within milliseconds.

Threads: each source has its own; one commits what they received; files have their own, so that a
large one blocks nobody; and each consumer follows at its own pace.
"""

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import duckdb

from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.lake.connection import Lake
from retail_assets.lake.sqlite_locks import stay_connected
from retail_assets.secrets import mask
from retail_assets.worker.background import PAUSE_SECONDS, CooldownLock, Iteration, Loop
from retail_assets.worker.committer import Committer
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Metrics
from retail_assets.worker.sources.base import Source
from retail_assets.worker.sources.files import FilePipeline

if TYPE_CHECKING:
    from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

LOG_SECONDS = 60.0

SWITCH_SECONDS = 0.001
"""How long a thread that computes in Python keeps the others waiting; the default is 5 ms. The
committer may wait that long after each of its thirty statements."""

COLLECTED_AFTER = 20_000
"""How many new objects Python's garbage collector waits for. With its default of 700 it would scan
the received events again and again."""

DRAIN_SHARE = 0.6
"""Share of `stop_seconds` in which a worker that ends may commit what waits."""


class Worker:
    """Ingests events until it is stopped; acknowledged events are durable."""

    def __init__(self, settings: "Settings", *, files: bool) -> None:
        self.settings = settings
        self.lake = Lake.from_settings(settings)
        self._mappings = settings.source_mapping.events
        self.name = heartbeat.new_worker()
        self.metrics = Metrics()
        self.inbox = Inbox()
        self.sources: list[Source] = []
        self._loops: list[Loop] = []
        self._lock = CooldownLock()
        self._files = (
            FilePipeline(settings, self.lake, self.metrics, on_commit=self.note_ingest)
            if files
            else None
        )
        self._started_at = datetime.now(timezone.utc)
        self._beat_at = 0.0
        self._on_time_at = time.monotonic()
        self.stopping = False

    def add_loop(
        self,
        name: str,
        iterate: Iteration,
        *,
        seconds: float,
        on_wake: bool = True,
        shares_lock: bool = True,
        pause: float = PAUSE_SECONDS,
        backoff: Sequence[float] | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Add work that follows: an iteration after each commit, or every `seconds`.

        Between two pass `pause` seconds at least.

        Loops that compute share a lock: one iterates at a time, on one core, so that the ingest has
        the other. In a long iteration, `yield_to_others` lets others have the lock. Loops that wait
        for other services do not share it.
        """
        self._loops.append(
            Loop(
                name,
                replace(self.lake, threads=1),
                self.metrics,
                iterate,
                seconds=seconds,
                on_wake=on_wake,
                pause=pause,
                backoff=backoff,
                lock=self._lock if shares_lock else None,
                at_end=at_end,
            )
        )

    def yield_to_others(self) -> None:
        """In the middle of a long iteration that shares the lock, let others have it."""
        self._lock.yield_to_others()

    def run(self, stop: threading.Event, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Work until `stop` is set; then commit what was received and end.

        Raises:
            RetailAssetsError: if a source cannot start, or the lake cannot be opened; nothing is
                ingested then.
        """
        with _tuned_python(), self.lake.connect() as connection:
            self._beat_in_transaction(connection)
            stay_connected(self.lake, connection)
            started: list[Source] = []
            draining, give_up = threading.Event(), threading.Event()
            committer = threading.Thread(
                target=self._committer().run, args=(draining, give_up), name="committer"
            )
            try:
                for source in self.sources:
                    source.start(self.inbox)
                    started.append(source)
                if self._files:
                    self._files.start()
                committer.start()
                for loop in self._loops:
                    loop.start()
                say(f"Worker {self.name} ingests events from {', '.join(self._source_names())}.")
                self._wait(stop, committer)
                say("Stopping: what was received is committed first.")
            finally:
                # Also after a failure: the deadline counts from here.
                stop.set()
                self.stopping = True
                self._stop_sources(started)
                draining.set()
                self.inbox.wake()
                if committer.ident is not None:
                    committer.join(DRAIN_SHARE * self.settings.stop_seconds)
                    give_up.set()
                    committer.join()
                self.inbox.close()
                self._end(started)
                self._beat_in_transaction(connection)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the worker is well, and its metrics."""
        self.measure()
        problem = self._problem()
        ok = problem is None and not self.stopping
        return ok, {"worker": self.name, "problem": problem, **self.metrics.snapshot()}

    def measure(self) -> None:
        """Update the gauges."""
        for source in self.sources:
            self.metrics.gauge(source.metrics())
        now = time.monotonic()
        if not heartbeat.is_lagging(self._problem(), self.metrics.snapshot()):
            self._on_time_at = now
        self.metrics.gauge(
            {
                "inbox_events": self.inbox.events,
                "inbox_bytes": self.inbox.bytes,
                "late_seconds": round(now - self._on_time_at, 1),
            }
        )

    def _committer(self) -> Committer:
        return Committer(
            self.lake,
            self.inbox,
            self.metrics,
            self._mappings,
            beat=self._beat,
            beat_is_due=lambda: time.monotonic() - self._beat_at >= heartbeat.BEAT_SECONDS,
            on_commit=self.note_ingest,
        )

    def _wait(self, stop: threading.Event, intake: threading.Thread) -> None:
        logged = time.monotonic()
        while not stop.wait(0.2):
            if not intake.is_alive():
                raise RuntimeError("The intake has ended: start the worker again.")
            if time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                logger.info("%s", self.metrics.snapshot())

    def _stop_sources(self, started: Sequence[Source]) -> None:
        for source in started:
            source.stop()
        if self._files and self._files.started:
            self._files.stop()

    def _end(self, started: Sequence[Source]) -> None:
        for source in started:
            source.close()
        self._lock.end_cooldowns()
        begun = [loop for loop in self._loops if loop.started]
        # In their order: some follow the tables of others.
        for loop in begun:
            loop.stop()
            loop.join()

    def _source_names(self) -> list[str]:
        return [
            *([heartbeat.FILES] if self._files else []),
            *(source.name for source in self.sources),
        ]

    def _problem(self) -> str | None:
        found = [
            *self.metrics.problems.values(),
            *filter(None, (source.problem() for source in self.sources)),
        ]
        return mask("; ".join(found)) or None

    def _beat(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Write a heartbeat, in the caller's transaction."""
        self._beat_at = time.monotonic()
        self.measure()
        heartbeat.beat(
            connection,
            self.name,
            self._source_names(),
            heartbeat.STOPPED if self.stopping else heartbeat.RUNNING,
            self._problem(),
            self.metrics.snapshot(),
            self._started_at,
        )

    def _beat_in_transaction(self, connection: duckdb.DuckDBPyConnection) -> None:
        with self.lake.transaction(connection, "heartbeat"):
            self._beat(connection)

    def note_ingest(self) -> None:
        """Wake the loops that follow, and have them cool down: something was committed."""
        self._lock.note_events()
        self.wake()

    def wake(self) -> None:
        """Wake the loops that follow: something was committed."""
        for loop in self._loops:
            loop.wake()


@contextmanager
def _tuned_python() -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(COLLECTED_AFTER, *thresholds[1:])
    # Imported modules stay: no collection needs to scan them.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
