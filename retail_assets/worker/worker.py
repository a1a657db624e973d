"""The resident worker: events from files, Kafka and a webhook into the lake within milliseconds.

Threads: each source has its own; one takes what they received into the lake; files have a lane of
their own, so that a large one holds nobody up; and each consumer follows at its own pace.
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
from retail_assets.worker.background import Loop, Turn, Turns
from retail_assets.worker.committer import Intake
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Figures
from retail_assets.worker.sources.base import Source
from retail_assets.worker.sources.files import FileLane

if TYPE_CHECKING:
    from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

LOG_SECONDS = 60.0

SWITCH_SECONDS = 0.001
"""How long a thread that computes in Python keeps the others waiting; by default it is 5 ms. The
intake waits so long after each of its thirty statements, if another thread is busy then."""

COLLECTED_AFTER = 20_000
"""How many new objects Python's garbage collector waits for. With its 700 it would look again and
again through what is being received."""

DRAIN_SHARE = 0.6
"""Share of the time that a worker has to end in which it may commit what waits."""


class Worker:
    """Takes events in until it is told to stop; what it has said it has, is durable."""

    def __init__(self, settings: "Settings", *, files: bool) -> None:
        self.settings = settings
        self.lake = Lake.from_settings(settings)
        self.name = heartbeat.new_worker()
        self.figures = Figures()
        self.inbox = Inbox()
        self.sources: list[Source] = []
        self._loops: list[Loop] = []
        self._turns = Turns()
        self._files = (
            FileLane(settings, self.lake, self.figures, on_commit=self._taken_in) if files else None
        )
        self._started_at = datetime.now(timezone.utc)
        self._beat_at = 0.0
        self._on_time_at = time.monotonic()
        self.stopping = False

    def add_loop(
        self,
        name: str,
        turn: Turn,
        *,
        seconds: float,
        on_wake: bool = True,
        shares_turns: bool = True,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Add work that follows: a turn whenever something was committed, or every so often.

        What computes shares its turns with the others: one at a time, on one core, so that the
        ingest has the other; in a long one, `give_way` lets others in between. What waits for
        somebody outside does not share.
        """
        self._loops.append(
            Loop(
                name,
                replace(self.lake, threads=1),
                self.figures,
                turn,
                seconds=seconds,
                on_wake=on_wake,
                turns=self._turns if shares_turns else None,
                at_end=at_end,
            )
        )

    def give_way(self) -> None:
        """In the middle of a turn that is shared, let others have theirs if it is a long one."""
        self._turns.give_way()

    def run(self, stop: threading.Event, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Work until `stop` is set; then commit what was received and end.

        Raises:
            RetailAssetsError: if a source cannot start, or the lake cannot be opened; nothing is
                taken in then.
        """
        with _tuned_python(), self.lake.connect() as connection:
            self._beat_in_transaction(connection)
            stay_connected(self.lake, connection)
            started: list[Source] = []
            draining, give_up = threading.Event(), threading.Event()
            intake = threading.Thread(
                target=self._intake().run, args=(draining, give_up), name="intake"
            )
            try:
                for source in self.sources:
                    source.start(self.inbox)
                    started.append(source)
                if self._files:
                    self._files.start()
                intake.start()
                for loop in self._loops:
                    loop.start()
                say(f"Worker {self.name} takes events from {', '.join(self._source_names())}.")
                self._wait(stop, intake)
                say("Stopping: what was received is committed first.")
            finally:
                # Also after a failure: from here on there is a deadline.
                stop.set()
                self.stopping = True
                self._stop_sources(started)
                draining.set()
                self.inbox.wake()
                if intake.ident is not None:
                    intake.join(DRAIN_SHARE * self.settings.stop_seconds)
                    give_up.set()
                    intake.join()
                self.inbox.close()
                self._end(started)
                self._beat_in_transaction(connection)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the worker does its work, and its figures."""
        self.measure()
        problem = self._problem()
        ok = problem is None and not self.stopping
        return ok, {"worker": self.name, "problem": problem, **self.figures.snapshot()}

    def measure(self) -> None:
        """Bring the figures that go up and down up to date."""
        for source in self.sources:
            self.figures.gauge(source.metrics())
        now = time.monotonic()
        if not heartbeat.is_late(self._problem(), self.figures.snapshot()):
            self._on_time_at = now
        self.figures.gauge(
            {
                "inbox_events": self.inbox.events,
                "inbox_bytes": self.inbox.bytes,
                "late_seconds": round(now - self._on_time_at, 1),
            }
        )

    def _intake(self) -> Intake:
        return Intake(
            self.lake,
            self.inbox,
            self.figures,
            beat=self._beat,
            beat_is_due=lambda: time.monotonic() - self._beat_at >= heartbeat.BEAT_SECONDS,
            on_commit=self._taken_in,
        )

    def _wait(self, stop: threading.Event, intake: threading.Thread) -> None:
        logged = time.monotonic()
        while not stop.wait(0.2):
            if not intake.is_alive():
                raise RuntimeError("The intake has ended: start the worker again.")
            if time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                logger.info("%s", self.figures.snapshot())

    def _stop_sources(self, started: Sequence[Source]) -> None:
        for source in started:
            source.stop()
        if self._files and self._files.started:
            self._files.stop()

    def _end(self, started: Sequence[Source]) -> None:
        for source in started:
            source.close()
        self._turns.stop_resting()
        begun = [loop for loop in self._loops if loop.started]
        # In their order: some follow what others keep.
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
            *self.figures.problems.values(),
            *filter(None, (source.problem() for source in self.sources)),
        ]
        return mask("; ".join(found)) or None

    def _beat(self, connection: duckdb.DuckDBPyConnection) -> None:
        """In a transaction, say that the worker lives."""
        self._beat_at = time.monotonic()
        self.measure()
        heartbeat.beat(
            connection,
            self.name,
            self._source_names(),
            heartbeat.STOPPED if self.stopping else heartbeat.RUNNING,
            self._problem(),
            self.figures.snapshot(),
            self._started_at,
        )

    def _beat_in_transaction(self, connection: duckdb.DuckDBPyConnection) -> None:
        with self.lake.transaction(connection, "heartbeat"):
            self._beat(connection)

    def _taken_in(self) -> None:
        self._turns.taken_in()
        self.wake()

    def wake(self) -> None:
        """Something was committed: let those that follow look at it."""
        for loop in self._loops:
            loop.wake()


@contextmanager
def _tuned_python() -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(COLLECTED_AFTER, *thresholds[1:])
    # All that was imported stays: no collection needs to look at it.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
