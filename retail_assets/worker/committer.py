"""The intake of the worker: micro-batches out of the inbox into the lake, one thread, in order."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import duckdb

from retail_assets.explain import told
from retail_assets.ingest.events.batch import SMALL
from retail_assets.ingest.events.cache import forget
from retail_assets.ingest.events.lines import NOT_TAKEN, OUT_OF_MEMORY
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.ingest.messages.load import Received, Taken, can_take, take, warm_up
from retail_assets.lake.compaction import LOOK, Step, steps
from retail_assets.lake.connection import ROW_GROUP, Lake
from retail_assets.lake.failures import is_of_the_data, is_of_the_size
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Batch, Figures

if TYPE_CHECKING:
    from threading import Event

logger = logging.getLogger(__name__)

MAX_EVENTS = 2 * ROW_GROUP
"""A core writes one row group of a table: with less to write, the second would only wait."""

LINGER_SECONDS = 0.005
"""How long the first event of a micro-batch waits for others, since it was received: many that are
sent at once come in pieces. While a batch is taken in the next one gathers anyway."""

IDLE_SECONDS = 0.5

ATTEMPTS = 3
"""How often a batch that fails is tried as a whole, before the event at fault is looked for; and
an event that runs out of memory all alone, before it is refused."""

BACKOFF_SECONDS = (0.1, 0.5, 2.0, 5.0)

FIRST_UPKEEP_SECONDS, UPKEEP_SECONDS = 5.0, 30.0
"""When the lake is compacted first, and how often; by a worker that is killed all the time, too."""

STEP_SECONDS = 0.5
"""The pause between two steps of it: each holds the write lock for some tens of ms."""

BUSY_STEP_SECONDS = 10.0
"""The same while batches are large: then there are few files to merge, and no time for it."""

NAME = "intake"


class Intake:
    """Takes what waits in the inbox into the lake, until it is told to stop and the inbox is empty.

    A batch that fails is tried again, for as long as it takes if the disk, the memory, the network
    or the catalog is at fault. If a single event is, it is found by halving, and becomes a dead
    letter. So does one for which alone the memory does not suffice, while it does for others.
    """

    def __init__(
        self,
        lake: Lake,
        inbox: Inbox,
        figures: Figures,
        *,
        beat: Callable[[duckdb.DuckDBPyConnection], None],
        beat_is_due: Callable[[], bool],
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._lake = lake
        self._inbox = inbox
        self._figures = figures
        self._beat = beat
        self._beat_is_due = beat_is_due
        self._on_commit = on_commit
        self._upkeep: Iterator[Step] | None = None
        self._upkeep_at = time.monotonic() + FIRST_UPKEEP_SECONDS
        self._stepped_at = time.monotonic()
        self._busy = False

    def run(self, draining: "Event", give_up: "Event") -> None:
        """Work until `draining` is set and nothing waits any more, or `give_up` is set."""
        connection = self._lake.open()
        try:
            warm_up(connection)
            while not give_up.is_set():
                batch = self._inbox.take(
                    max_events=MAX_EVENTS,
                    linger_seconds=LINGER_SECONDS,
                    timeout_seconds=IDLE_SECONDS,
                )
                if batch:
                    connection = self._take(connection, batch, give_up)
                elif draining.is_set():
                    return
                elif self._beat_is_due():
                    connection = self._beat_alone(connection)
                self._busy = self._busy and bool(batch)
                connection = self._keep_up(connection)
        finally:
            connection.close()

    def _take(
        self, connection: duckdb.DuckDBPyConnection, batch: Sequence[Received], give_up: "Event"
    ) -> duckdb.DuckDBPyConnection:
        """Take a batch in, whatever happens; returns the connection to go on with."""
        for attempt in range(ATTEMPTS):
            try:
                self._commit(connection, batch)
            except Exception as error:  # noqa: BLE001  # whatever it is, the stream goes on
                connection = self._failed(connection, error)
                if give_up.wait(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]):
                    break
            else:
                return connection
        return self._take_parts(connection, list(batch), give_up)

    def _take_parts(
        self, connection: duckdb.DuckDBPyConnection, batch: list[Received], give_up: "Event"
    ) -> duckdb.DuckDBPyConnection:
        """Take the halves of a batch in, and of these the halves, in their order."""
        waiting = [batch]
        failures = shortages = 0
        while waiting:
            if give_up.is_set():
                for received in (received for part in waiting for received in part):
                    received.failed("the worker was stopped before the lake could be written to")
                return connection
            part = waiting.pop(0)
            try:
                self._commit(connection, part)
            except Exception as error:  # noqa: BLE001  # as above
                connection = self._failed(connection, error)
                shortages = shortages + 1 if is_of_the_size(error) else 0
                smaller = self._smaller(connection, part, error, shortages)
                waiting[:0] = smaller or [part]
                if not smaller:
                    give_up.wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
                    failures += 1
                    continue
            failures = shortages = 0
        return connection

    def _smaller(
        self,
        connection: duckdb.DuckDBPyConnection,
        part: list[Received],
        error: Exception,
        shortages: int,
    ) -> list[list[Received]]:
        """What to try in place of a part that failed; nothing: the same again, it has no fault.

        Memory has failed it `shortages` times in a row.
        """
        halves = _halves(part)
        if shortages and halves:
            return halves
        # A lake that cannot be written to says so in many ways.
        at_fault = shortages >= ATTEMPTS or is_of_the_data(error)
        if not at_fault or not self._can_write(connection):
            return []
        if halves or part[0].defect:
            return halves
        return [[_refused(part[0], error)]]

    def _failed(
        self, connection: duckdb.DuckDBPyConnection, error: Exception
    ) -> duckdb.DuckDBPyConnection:
        logger.warning("Events could not be ingested, they are tried again: %s", told(error))
        self._figures.problem(NAME, f"events wait, the lake cannot be written to: {told(error)}")
        return self._recover(connection)

    def _succeeded(self) -> None:
        """Note that the lake can be written to; what failed with it is tried again at once."""
        if NAME in self._figures.problems:
            self._upkeep_at = time.monotonic()
        self._figures.problem(NAME, None)

    def _commit(self, connection: duckdb.DuckDBPyConnection, batch: Sequence[Received]) -> None:
        beat = self._beat_is_due()
        taken = take(
            self._lake,
            connection,
            batch,
            also=lambda: self._beat(connection) if beat else None,
        )
        self._succeeded()
        self._busy = sum(found.lines for found in taken.values()) > SMALL
        self._count(batch, taken)
        for received in batch:
            received.done()
        self._on_commit()

    def _count(self, batch: Sequence[Received], taken: Mapping[str, Taken]) -> None:
        now = time.time()
        for source, found in taken.items():
            oldest = min(received.offered_at for received in batch if received.source == source)
            waited = max(0.0, now - oldest)
            self._figures.add(
                Batch(source, found.lines, found.accepted, found.dead_lettered, waited)
            )

    def _recover(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """After a failure nothing is known of the connection: go on with another one."""
        self._upkeep = None
        fresh = None
        try:
            fresh = self._lake.open()
            warm_up(fresh)
        except Exception:
            logger.exception("The lake cannot be opened")
            if fresh is not None:
                fresh.close()
            return connection
        forget(connection)
        connection.close()
        return fresh

    def _can_write(self, connection: duckdb.DuckDBPyConnection) -> bool:
        try:
            with self._lake.transaction(connection, "heartbeat"):
                self._beat(connection)
        except Exception:
            logger.exception("The lake cannot be written to")
            return False
        return can_take(self._lake, connection)

    def _keep_up(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """Take a step of the lake's upkeep, if it is time.

        In this thread, between two batches: with an SQLite catalog, a second one that writes makes
        commits wait for a whole second now and then.
        """
        now = time.monotonic()
        if now < self._upkeep_at or (self._busy and now < self._stepped_at + BUSY_STEP_SECONDS):
            return connection
        self._upkeep = self._upkeep or self._steps(connection)
        try:
            step = next(self._upkeep, None)
        except Exception as error:  # noqa: BLE001  # it is begun again later
            logger.warning("The upkeep of the lake failed: %s", told(error))
            self._figures.problem("upkeep", f"the lake is not compacted: {told(error)}")
            self._upkeep, self._upkeep_at = None, time.monotonic() + UPKEEP_SECONDS
            return self._recover(connection)
        if step is None:
            self._figures.problem("upkeep", None)
            self._upkeep, self._upkeep_at = None, time.monotonic() + UPKEEP_SECONDS
        elif step != LOOK:
            self._stepped_at = now
            self._figures.gauge({"upkeep_hold_seconds": round(step.seconds, 3)})
            self._upkeep_at = time.monotonic() + STEP_SECONDS
        return connection

    def _steps(self, connection: duckdb.DuckDBPyConnection) -> Iterator[Step]:
        for ledger in (offsets, heartbeat):
            is_long = ledger.is_long(connection)
            yield LOOK
            if is_long:
                with self._lake.transaction(connection, "fold the ledger"):
                    ledger.fold(connection)
        yield from steps(self._lake, connection)

    def _beat_alone(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        try:
            with self._lake.transaction(connection, "heartbeat"):
                self._beat(connection)
        except Exception as error:  # noqa: BLE001  # tried again at the next beat
            return self._failed(connection, error)
        self._succeeded()
        return connection


def _refused(received: Received, error: Exception) -> Received:
    """A single event that the lake does not take in, as a dead letter."""
    defect = OUT_OF_MEMORY if is_of_the_size(error) else NOT_TAKEN
    logger.error(
        "An event becomes the dead letter %s:%s:%d (%s): %s",
        *(received.source, received.source_name, received.positions[0], defect, error),
    )
    return replace(received, defect=defect)


def _halves(batch: list[Received]) -> list[list[Received]]:
    """Two halves of a batch, in order; none of a single event."""
    if len(batch) > 1:
        middle = len(batch) // 2
        return [batch[:middle], batch[middle:]]
    received = batch[0]
    middle = len(received.payloads) // 2
    if not middle:
        return []
    first = replace(
        received,
        positions=received.positions[:middle],
        payloads=received.payloads[:middle],
        recorded_us=received.recorded_us[:middle],
        # Whoever offered them is told once all of them are durable.
        done=lambda: None,
        failed=lambda _: None,
    )
    second = replace(
        received,
        positions=received.positions[middle:],
        payloads=received.payloads[middle:],
        recorded_us=received.recorded_us[middle:],
    )
    return [[first], [second]]
