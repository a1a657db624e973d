"""Work that follows the ingest, in threads of its own: one that fails does not block others."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeAlias

import duckdb

from retail_assets.explain import told
from retail_assets.lake.connection import Lake
from retail_assets.worker.metrics import Metrics

logger = logging.getLogger(__name__)

Iteration: TypeAlias = Callable[[duckdb.DuckDBPyConnection, int], None]
"""One iteration of some work: takes a connection that can write, and how many iterations have
failed in a row."""

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)

COOLDOWN_RATIO, MAX_COOLDOWN_SECONDS = 1, 1.0
"""A cooldown is this many times as long as the iteration before it, and never longer than that."""

LONG_ITERATION_SECONDS = 2.0
"""An iteration that takes longer yields to the others where it can be interrupted."""

YIELD_SECONDS = 0.01

PAUSE_SECONDS = 0.5


class CooldownLock:
    """A lock for iterations of several threads, with a cooldown after each while events come in.

    So all of them together leave the machine to the ingest for half of the time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = 0.0
        self._events_came = False
        self._cooled_down = threading.Event()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._began, self._events_came = time.monotonic(), False

    def __exit__(self, *_: object) -> None:
        if self._events_came:
            took = time.monotonic() - self._began
            self._cooled_down.wait(min(COOLDOWN_RATIO * took, MAX_COOLDOWN_SECONDS))
        self._lock.release()

    def note_events(self) -> None:
        """Note that events came in: a cooldown follows the iteration."""
        self._events_came = True

    def yield_to_others(self) -> None:
        """In the middle of a long iteration, let the cooldown pass and others have the lock."""
        if time.monotonic() - self._began < LONG_ITERATION_SECONDS:
            return
        self.__exit__()
        # A thread that acquires a lock again at once gets it before the others.
        time.sleep(YIELD_SECONDS)
        self.__enter__()

    def end_cooldowns(self) -> None:
        """End the cooldown, now and from now on."""
        self._cooled_down.set()


class Loop:
    """Does some work again and again, every `seconds`, and sooner when woken.

    An iteration follows the one before after `pause` seconds at the earliest; one that failed is
    tried again after those of `backoff`. Loops that share a `lock` iterate one at a time. `at_end`
    is called after the last iteration.
    """

    def __init__(
        self,
        name: str,
        lake: Lake,
        metrics: Metrics,
        iterate: Iteration,
        *,
        seconds: float,
        on_wake: bool,
        pause: float = PAUSE_SECONDS,
        backoff: Sequence[float] | None = None,
        lock: CooldownLock | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._lake = lake
        self._metrics = metrics
        self._iterate = iterate
        self._seconds = seconds
        self._on_wake = on_wake
        self._pause = min(seconds, pause) if on_wake else 0
        self._backoff = backoff
        self._at_end = at_end
        self._lock = lock or nullcontext()
        self._stop = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Iterate as soon as it is time: something has changed."""
        if self._on_wake:
            self._wanted.set()

    def stop(self) -> None:
        """Iterate a last time and end."""
        self._stop.set()
        self._wanted.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _run(self) -> None:
        failures = 0
        connection: duckdb.DuckDBPyConnection | None = None
        while True:
            last = self._stop.is_set()
            try:
                connection = connection or self._lake.open()
                with self._lock:
                    self._iterate(connection, failures)
                failures = 0
                self._metrics.problem(self.name, None)
            except Exception as error:  # noqa: BLE001  # the loop goes on, whatever happened
                failures += 1
                logger.warning("%s failed and is tried again: %s", self.name, told(error))
                self._metrics.problem(self.name, f"{self.name}: {told(error)}")
                if connection is not None:
                    connection.close()
                    connection = None
            if last:
                break
            if failures:
                backoff = self._backoff or BACKOFF_SECONDS
                pause = backoff[min(failures, len(backoff)) - 1]
                self._stop.wait(pause)
            else:
                self._stop.wait(self._pause)
                self._wanted.wait(self._seconds)
                self._wanted.clear()
        if connection is not None:
            connection.close()
        self._at_end()
