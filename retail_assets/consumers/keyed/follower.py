"""Follows the lake with all consumers of a worker: on keyed state, or from the lake meanwhile."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from filelock import FileLock, Timeout

from retail_assets.consumers.framework import Consumer, ConsumerError, consume
from retail_assets.consumers.keyed import build
from retail_assets.consumers.keyed.round import KeyedRound, Outcome
from retail_assets.consumers.keyed.stock import StockDays
from retail_assets.consumers.keyed.store import Store, StoreError, TooManyRowsError
from retail_assets.consumers.own_rows import OthersWereFasterError
from retail_assets.explain import told
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.setting_values import absolute
from retail_assets.tables import CONSUMER_DEAD_LETTERS

if TYPE_CHECKING:
    from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
"""How often consumers look at the lake themselves while nothing changes: offsets stay young."""

ROUND = "consumers"
"""The name of a round of all consumers among `problems`."""

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""When a consumer that failed is tried again, by how often it has; the others go on."""

BUILD_AGAIN_SECONDS = 60.0
"""When a state that could not be built is built again."""


def state_path(settings: "Settings") -> Path:
    """Where the keyed state of a worker lies."""
    return Path(absolute(settings.consumer_state or settings.lake_dir / "state.sqlite"))


class Follower:
    """Runs the rounds of consumers, for one thread.

    While the state is built, or a key is quarantined, or a round has failed, each consumer reads
    the lake: that is slower, with the same rows. A consumer that fails does not stop the others.
    """

    def __init__(self, lake: Lake, consumers: Sequence[Consumer], path: Path, since: str) -> None:
        """Follow with `consumers`; the state is at `path`, for stock since the day `since`."""
        self._lake = lake
        self._consumers = consumers
        self._path = path
        self._since = since
        self._stock = StockDays(since)
        self._file_lock = FileLock(f"{path}.used")
        self._store: Store | None = None
        self._builder: threading.Thread | None = None
        self._progress = build.Progress()
        self._build_at = 0.0
        self._stopped = threading.Event()
        self._reason = ""
        self._quiet_at = time.monotonic()
        self._quiet_snapshot: int | None = None
        self._failures: Counter[str] = Counter()
        self._retry_at: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        """Why consumers, or rounds of all of them, have failed and are tried again."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Whether the state is in use, its size, and how far it is built."""
        store, building = self._store, self._builder is not None
        return {
            "state_ready": int(store is not None),
            "state_bytes": store.bytes() if store else 0,
            "state_rows_built": self._progress.rows if building else 0,
            "state_rows_to_build": self._progress.all_rows if building else 0,
            "state_seconds_to_build": round(self._progress.seconds_left) if building else 0,
        }

    def iterate(
        self,
        connection: duckdb.DuckDBPyConnection,
        between_pieces: Callable[[], None] = lambda: None,
        on_failed_keys: Callable[[str, Mapping[str, str]], None] = lambda *_: None,
    ) -> bool:
        """Follow what has changed.

        Args:
            connection: a connection that can write, in no transaction.
            between_pieces: as for `consume`.
            on_failed_keys: called with a consumer and its quarantined keys, with the reasons.

        Returns:
            Whether a consumer has written, or may have more to do.

        Raises:
            Exception: the first, if rounds failed; the others were run. Go on with another
                connection: what failed is tried again when it is time, see `problems`.
        """
        outcome = self._round(connection) if self._may_use_state(connection) else None
        if outcome is None:
            reading = list(self._consumers)
        else:
            reading = [
                each for each in self._consumers if each.follow is None or each in outcome.stale
            ]
        wrote, errors = outcome is not None and outcome.wrote, []
        if not wrote and time.monotonic() >= self._quiet_at + QUIET_SECONDS:
            reading = list(self._consumers)
        if wrote or len(reading) == len(self._consumers):
            self._quiet_at = time.monotonic()
        for consumer in filter(self._is_due, reading):
            try:
                done = consume(
                    self._lake,
                    connection,
                    consumer,
                    failures=self._failures[consumer.name],
                    between_pieces=between_pieces,
                )
            except ConsumerError as error:
                errors.append(error)
                self._failed(consumer.name, error)
                continue
            self._succeeded(consumer.name)
            if done is not None:
                wrote = True
                on_failed_keys(consumer.name, done.failed)
        if errors:
            raise errors[0]
        return wrote

    def _may_use_state(self, connection: duckdb.DuckDBPyConnection) -> bool:
        if any(self._failures[consumer.name] for consumer in self._consumers):
            return False
        due = time.monotonic() >= self._retry_at.get(ROUND, 0.0)
        return due and not _any_quarantined(connection) and self.is_ready(connection)

    def _is_due(self, consumer: Consumer) -> bool:
        return time.monotonic() >= self._retry_at.get(consumer.name, 0.0)

    def _failed(self, name: str, error: Exception) -> None:
        self._failures[name] += 1
        pause = BACKOFF_SECONDS[min(self._failures[name], len(BACKOFF_SECONDS)) - 1]
        self._retry_at[name] = time.monotonic() + pause
        self.problems[name] = told(error)

    def _succeeded(self, name: str) -> None:
        self._failures.pop(name, None)
        self._retry_at.pop(name, None)
        self.problems.pop(name, None)

    def close(self) -> None:
        """Close the state; what is being built is given up."""
        self._stopped.set()
        if self._builder is not None:
            self._builder.join()
        self._drop_store()
        self._file_lock.release()

    def _round(self, connection: duckdb.DuckDBPyConnection) -> Outcome:
        assert self._store is not None
        keyed = [consumer for consumer in self._consumers if consumer.follow is not None]
        newest = current_snapshot(connection)
        if newest == self._quiet_snapshot:
            return Outcome()
        try:
            parts = (self._lake, connection, self._store, self._stock, keyed)
            try:
                outcome = KeyedRound(*parts).run()
            except TooManyRowsError:
                outcome = KeyedRound(*parts, only_state=True).run()
        except OthersWereFasterError:
            return Outcome(wrote=True)
        except StoreError as error:
            self._lose(str(error))
            return Outcome(stale=tuple(keyed))
        except Exception as error:
            # Consumers read the lake meanwhile, and find the keys that fail.
            self._failed(ROUND, error)
            raise
        self._succeeded(ROUND)
        if not outcome.wrote and not outcome.stale:
            self._quiet_snapshot = newest
        return outcome

    def is_ready(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Whether the state can be used; if not, it is opened, or built by another thread.

        Args:
            connection: a connection to the lake, in no transaction.
        """
        if self._store is not None:
            return True
        if self._builder is not None:
            if self._builder.is_alive():
                return False
            self._builder = None
        if time.monotonic() < self._build_at:
            return False
        try:
            self._file_lock.acquire(timeout=0)
            self._store = self._open(connection)
        except Timeout:
            self._say(f"Another process uses the keyed state {self._path}")
            self._build_at = time.monotonic() + BUILD_AGAIN_SECONDS
            return False
        except StoreError as error:
            self._lose(str(error))
            return False
        self._say(f"The keyed state {self._path} is in use")
        return True

    def _open(self, connection: duckdb.DuckDBPyConnection) -> Store:
        store = Store(self._path, self._since)
        position, problem = store.position, None
        if position.lake != history.lake_id(connection):
            problem = "it is of another lake"
        elif position.own_us != history.committed_us(connection, position.own):
            problem = "the lake does not have its snapshot"
        if problem is None:
            return store
        store.close()
        raise StoreError(problem)

    def _lose(self, reason: str) -> None:
        """Build the state again, in a thread."""
        self._say(f"The keyed state {self._path} is built from the lake: {reason}")
        self._drop_store()
        self._progress = build.Progress()
        self._build_at = time.monotonic()
        self._builder = threading.Thread(target=self._build, name="keyed state")
        self._builder.start()

    def _build(self) -> None:
        try:
            build.build(self._lake, self._path, self._since, self._progress, self._stopped.is_set)
        except build.StoppedError:
            return
        except Exception as error:  # noqa: BLE001  # consumers read the lake meanwhile
            self._build_at = time.monotonic() + BUILD_AGAIN_SECONDS
            logger.warning("The keyed state %s could not be built: %s", self._path, told(error))

    def _drop_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _say(self, text: str) -> None:
        if text != self._reason:
            self._reason = text
            logger.info("%s.", text)


def _any_quarantined(connection: duckdb.DuckDBPyConnection) -> bool:
    if not history.most_rows(connection, CONSUMER_DEAD_LETTERS):
        return False
    found = connection.execute("SELECT 1 FROM lake.consumer_dead_letters LIMIT 1").fetchone()
    return found is not None
