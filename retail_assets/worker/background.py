"""Work that follows the ingest, in threads of its own: one that fails holds nobody else up."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeAlias

import duckdb

from retail_assets.explain import told
from retail_assets.lake.connection import Lake
from retail_assets.worker.metrics import Figures

logger = logging.getLogger(__name__)

Turn: TypeAlias = Callable[[duckdb.DuckDBPyConnection, int], None]
"""One turn of some work: with a connection that can write, and how many turns failed just before.
"""

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)

REST, MOST_REST_SECONDS = 3, 1.0
"""After a turn nobody has one for so many times as long as it took, but no longer than that."""

LONG_SECONDS = 2.0
"""A turn that took longer is interrupted where it can be, for the others to have theirs."""

GIVE_WAY_SECONDS = 0.01


class Turns:
    """Turns of some threads, one at a time, with a rest after each while events come in.

    So all of them together leave the machine to the ingest for three quarters of the time, if it
    has something to do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = 0.0
        self._events_came = False
        self._no_rest = threading.Event()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._began, self._events_came = time.monotonic(), False

    def __exit__(self, *_: object) -> None:
        if self._events_came:
            took = time.monotonic() - self._began
            self._no_rest.wait(min(REST * took, MOST_REST_SECONDS))
        self._lock.release()

    def taken_in(self) -> None:
        """Note that events came in: after a turn in which some did there is a rest."""
        self._events_came = True

    def give_way(self) -> None:
        """In the middle of a turn that is long, rest, let others have theirs, and go on."""
        if time.monotonic() - self._began < LONG_SECONDS:
            return
        self.__exit__()
        # A lock that is asked for again at once is had by the same thread again.
        time.sleep(GIVE_WAY_SECONDS)
        self.__enter__()

    def stop_resting(self) -> None:
        """Have whoever rests go on at once, now and from now on."""
        self._no_rest.set()


class Loop:
    """Does some work again and again, every `seconds`, and sooner when woken.

    Those that share `turns` take one after the other. `at_end` is called once the last turn is
    over.
    """

    def __init__(
        self,
        name: str,
        lake: Lake,
        figures: Figures,
        turn: Turn,
        *,
        seconds: float,
        on_wake: bool,
        turns: Turns | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._lake = lake
        self._figures = figures
        self._turn = turn
        self._seconds = seconds
        self._on_wake = on_wake
        self._at_end = at_end
        self._turns = turns or nullcontext()
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
        """Something has changed: take a turn as soon as it is time."""
        if self._on_wake:
            self._wanted.set()

    def stop(self) -> None:
        """Take a last turn and end."""
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
                with self._turns:
                    self._turn(connection, failures)
                failures = 0
                self._figures.problem(self.name, None)
            except Exception as error:  # noqa: BLE001  # the loop goes on, whatever one turn met
                failures += 1
                logger.warning("%s failed and is tried again: %s", self.name, told(error))
                self._figures.problem(self.name, f"{self.name}: {told(error)}")
                if connection is not None:
                    connection.close()
                    connection = None
            if last:
                break
            if failures:
                pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
                self._stop.wait(pause)
            else:
                self._stop.wait(min(self._seconds, 0.5) if self._on_wake else 0)
                self._wanted.wait(self._seconds)
                self._wanted.clear()
        if connection is not None:
            connection.close()
        self._at_end()
