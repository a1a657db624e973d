"""The committer: micro-batches out of the inbox into the lake, one thread, in order."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import duckdb

from retail_assets.explain import told
from retail_assets.ingest.events.batch import SMALL
from retail_assets.ingest.events.lines import NOT_TAKEN, OUT_OF_MEMORY
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.ingest.messages.load import (
    Received,
    SourceResult,
    can_ingest,
    ingest,
    warm_session,
)
from retail_assets.lake.compaction import LIMITS, LOOK, Limits, Step, steps
from retail_assets.lake.connection import ROW_GROUP, Lake
from retail_assets.lake.failures import bisect, is_of_the_data, is_of_the_size
from retail_assets.mapping.model import EventMappings
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Batch, Metrics

if TYPE_CHECKING:
    from threading import Event

logger = logging.getLogger(__name__)

MAX_EVENTS = 2 * ROW_GROUP
"""A core writes one row group of a table: with less to write, the second would only wait."""

LINGER_SECONDS = 0.005
"""How long the first event of a micro-batch waits for others, since it was received: many that are
sent at once come in pieces. While a batch is committed the next one gathers anyway."""

IDLE_SECONDS = 0.5

ATTEMPTS = 3
"""How often a batch that fails is tried as a whole, before the failing event is looked for; and
an event that runs out of memory all alone, before it is refused."""

BACKOFF_SECONDS = (0.1, 0.5, 2.0, 5.0)

FIRST_UPKEEP_SECONDS, UPKEEP_SECONDS = 5.0, 30.0
"""When the lake is compacted first, and how often; by a worker that is killed all the time, too."""

STEP_SECONDS = 0.5
"""The pause between two steps of it: each holds the write lock for some tens of ms."""

BUSY_STEP_SECONDS = 10.0
"""The same while batches are large: then there are few files to merge, and no time for it."""

NAME = "intake"


class Committer:
    """Commits what waits in the inbox to the lake, until it has to stop and the inbox is empty.

    A batch that fails is tried again, for as long as it takes if the disk, the memory, the network
    or the catalog is the cause. If a single event is the cause, bisection finds it, and it becomes
    a dead letter. So does an event that runs out of memory alone, while others do not.
    """

    def __init__(
        self,
        lake: Lake,
        inbox: Inbox,
        metrics: Metrics,
        mappings: EventMappings = (),
        *,
        beat: Callable[[duckdb.DuckDBPyConnection], None],
        beat_is_due: Callable[[], bool],
        on_commit: Callable[[], None] = lambda: None,
        compaction: Limits = LIMITS,
    ) -> None:
        self._lake = lake
        self._session: EventSession
        self._inbox = inbox
        self._metrics = metrics
        self._mappings = mappings
        self._beat = beat
        self._beat_is_due = beat_is_due
        self._on_commit = on_commit
        self._compaction = compaction
        self._upkeep: Iterator[Step] | None = None
        self._upkeep_at = time.monotonic() + FIRST_UPKEEP_SECONDS
        self._stepped_at = time.monotonic()
        self._busy = False

    def run(self, draining: "Event", give_up: "Event") -> None:
        """Work until `draining` is set and nothing waits any more, or `give_up` is set."""
        self._session = self._open()
        try:
            while not give_up.is_set():
                batch = self._inbox.take(
                    max_events=MAX_EVENTS,
                    linger_seconds=LINGER_SECONDS,
                    timeout_seconds=IDLE_SECONDS,
                )
                if batch:
                    self._ingest_waiting(batch, give_up)
                elif draining.is_set():
                    return
                elif self._beat_is_due():
                    self._beat_alone()
                self._busy = self._busy and bool(batch)
                self._keep_up()
        finally:
            self._session.connection.close()

    def _open(self) -> EventSession:
        connection = self._lake.open()
        try:
            return warm_session(self._lake, connection, self._mappings)
        except BaseException:
            connection.close()
            raise

    def _ingest_waiting(self, batch: Sequence[Received], give_up: "Event") -> None:
        """Ingest a batch, whatever happens."""
        for attempt in range(ATTEMPTS):
            try:
                self._commit(batch)
            except Exception as error:  # noqa: BLE001  # whatever it is, the stream goes on
                self._failed(error)
                if give_up.wait(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]):
                    break
            else:
                return
        self._commit_parts(batch, give_up)

    def _commit_parts(self, batch: Sequence[Received], give_up: "Event") -> None:
        """Commit a batch that fails as a whole; events that fail alone become dead letters.

        Only what fails alone is split: what came together is in one transaction otherwise.
        """

        def attempt(part: Sequence[Received]) -> Exception | None:
            return self._error(part, give_up)

        for received, error in bisect(batch, attempt):
            if len(received.payloads) > 1:
                self._commit_parts(_events(received), give_up)
            else:
                attempt([_refused(received, error)])

    def _error(self, part: Sequence[Received], give_up: "Event") -> Exception | None:
        """Commit a part, as soon as the lake can be written to.

        Returns:
            Why it cannot be committed, if that may be due to its events; None once it is
            committed, or abandoned.
        """
        single = len(part) == len(part[0].payloads) == 1
        refused = single and part[0].defect is not None
        failures = shortages = 0
        while not give_up.is_set():
            try:
                self._commit(part)
            except Exception as error:  # noqa: BLE001  # as above
                self._failed(error)
                shortages = shortages + 1 if is_of_the_size(error) else 0
                if shortages and not single:
                    return error
                # A lake that cannot be written to says so in many ways.
                of_its_events = shortages >= ATTEMPTS or is_of_the_data(error)
                if of_its_events and not refused and self._can_write():
                    return error
                give_up.wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
                failures += 1
            else:
                return None
        for received in part:
            received.failed("the worker was stopped before the lake could be written to")
        return None

    def _failed(self, error: Exception) -> None:
        logger.warning("Events could not be ingested, they are tried again: %s", told(error))
        self._metrics.problem(NAME, f"events wait, the lake cannot be written to: {told(error)}")
        self._recover()

    def _succeeded(self) -> None:
        """Note that the lake can be written to; what failed with it is tried again at once."""
        if NAME in self._metrics.problems:
            self._upkeep_at = time.monotonic()
        self._metrics.problem(NAME, None)

    def _commit(self, batch: Sequence[Received]) -> None:
        session, beat = self._session, self._beat_is_due()
        results = ingest(
            session, batch, also=lambda: self._beat(session.connection) if beat else None
        )
        self._succeeded()
        self._busy = sum(found.lines for found in results.values()) > SMALL
        self._count(batch, results)
        for received in batch:
            received.done()
        self._on_commit()

    def _count(self, batch: Sequence[Received], results: Mapping[str, SourceResult]) -> None:
        now = time.time()
        for source, found in results.items():
            oldest = min(received.offered_at for received in batch if received.source == source)
            waited = max(0.0, now - oldest)
            self._metrics.add(
                Batch(source, found.lines, found.accepted, found.dead_lettered, waited)
            )

    def _recover(self) -> None:
        """After a failure nothing is known of the session: go on with another one."""
        self._upkeep = None
        try:
            fresh = self._open()
        except Exception:
            logger.exception("The lake cannot be opened")
            return
        self._session.connection.close()
        self._session = fresh

    def _can_write(self) -> bool:
        try:
            with self._lake.transaction(self._session.connection, "heartbeat"):
                self._beat(self._session.connection)
        except Exception:
            logger.exception("The lake cannot be written to")
            return False
        return can_ingest(self._session)

    def _keep_up(self) -> None:
        """Take a step of the lake's upkeep, if it is time.

        In this thread, between two batches: with an SQLite catalog, a second one that writes makes
        commits wait for a whole second now and then.
        """
        now = time.monotonic()
        if now < self._upkeep_at or (self._busy and now < self._stepped_at + BUSY_STEP_SECONDS):
            return
        self._upkeep = self._upkeep or self._steps(self._session.connection)
        try:
            step = next(self._upkeep, None)
        except Exception as error:  # noqa: BLE001  # it is begun again later
            logger.warning("The upkeep of the lake failed: %s", told(error))
            self._metrics.problem("upkeep", f"the lake is not compacted: {told(error)}")
            self._upkeep, self._upkeep_at = None, time.monotonic() + UPKEEP_SECONDS
            self._recover()
            return
        if step is None:
            self._metrics.problem("upkeep", None)
            self._upkeep, self._upkeep_at = None, time.monotonic() + UPKEEP_SECONDS
        elif step != LOOK:
            self._stepped_at = now
            self._metrics.gauge({"upkeep_hold_seconds": round(step.seconds, 3)})
            self._upkeep_at = time.monotonic() + STEP_SECONDS

    def _steps(self, connection: duckdb.DuckDBPyConnection) -> Iterator[Step]:
        for ledger in (offsets, heartbeat):
            is_long = ledger.is_long(connection)
            yield LOOK
            if is_long:
                with self._lake.transaction(connection, "compact the ledger"):
                    ledger.compact(connection)
        yield from steps(self._lake, connection, limits=self._compaction)

    def _beat_alone(self) -> None:
        try:
            with self._lake.transaction(self._session.connection, "heartbeat"):
                self._beat(self._session.connection)
        except Exception as error:  # noqa: BLE001  # tried again at the next beat
            self._failed(error)
        else:
            self._succeeded()


def _refused(received: Received, error: Exception) -> Received:
    """A single event that the lake cannot ingest, as a dead letter."""
    defect = OUT_OF_MEMORY if is_of_the_size(error) else NOT_TAKEN
    logger.error(
        "An event becomes the dead letter %s:%s:%d (%s): %s",
        *(received.source, received.source_name, received.positions[0], defect, error),
    )
    return replace(received, defect=defect)


def _events(received: Received) -> list[Received]:
    """Events that came together, each alone; their `done` or `failed` is called with the last."""
    events = [
        replace(
            received,
            positions=[position],
            payloads=[payload],
            recorded_us=received.recorded_us[number : number + 1],
            message=received.message.event(number) if received.message else None,
            done=lambda: None,
            failed=lambda _: None,
        )
        for number, (position, payload) in enumerate(
            zip(received.positions, received.payloads, strict=True)
        )
    ]
    events[-1] = replace(events[-1], done=received.done, failed=received.failed)
    return events
