"""A message queue as a source of the worker: messages with events, or that name event files.

The position of an event is its number among those that this start of the worker got from the queue;
`source_name` has the names of both. So no position is given twice, and each batch moves one entry
of the ledger. That a message is delivered twice is not seen by its position but by its id: see
`ingest/ledgers/queue_messages.py`. Event files need no such entry: `event_files` knows them.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from retail_assets.ingest.ledgers import queue_messages
from retail_assets.ingest.ledgers.queue_messages import QueueMessage
from retail_assets.ingest.ledgers.workers import LAG
from retail_assets.ingest.messages.load import Received
from retail_assets.worker.sources.queues.base import Depth, Queue, QueueError
from retail_assets.worker.sources.queues.leases import Lease, Leases
from retail_assets.worker.sources.received_dates import ReceivedDates

if TYPE_CHECKING:
    import duckdb

    from retail_assets.lake.connection import Lake
    from retail_assets.settings import Settings
    from retail_assets.worker.inbox import Inbox
    from retail_assets.worker.sources.queues.bodies import Open, Opened
    from retail_assets.worker.sources.queues.named_files import NamedFiles

logger = logging.getLogger(__name__)

RECEIVERS = 4
"""How many threads receive while more waits than one call returns; else there is one."""

WAIT_SECONDS = 5.0
"""How long a call waits for a message; the end waits for it."""

MOST_MESSAGES, MOST_BYTES = 5_000, 64 << 20
"""How much is under way at most; then nothing is received."""

DEPTH_SECONDS = 10.0
BUSY_SECONDS = 1.0
ROOM_SECONDS = 0.05
PUT_SECONDS = 0.5
STOP_SECONDS = 30.0
NOTE_SECONDS = 60.0

RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0)

ATTEMPTS = 3
"""How often a notification of a file that cannot be read is delivered; then it is deleted, since
`failed_event_files` has the file."""

AGAIN_SECONDS = 30
"""How long such a notification waits for its next delivery, times the deliveries before."""


class QueueSource:
    """Reads a queue in threads of its own; see `worker.sources.base.Source`.

    Args:
        queue: the queue.
        name: the source in the lake.
        settings: the days that there are, and how long the queue holds a message back.
        worker: names this start of a worker alone.
        open_body: finds what a body has.
        files: reads the event files that bodies name, where they do.
    """

    def __init__(
        self,
        queue: Queue,
        name: str,
        *,
        settings: "Settings",
        worker: str,
        open_body: "Open",
        files: "NamedFiles | None" = None,
    ) -> None:
        self.name = name
        self._queue = queue
        self._open = open_body
        self._files = files
        self._hold_seconds = settings.sqs_visibility_seconds
        self._source_name = f"{queue.name}:{worker}"
        self._dates = ReceivedDates(settings.timezone, settings.start_date)
        self._leases = Leases(queue, self._hold_seconds, self._report)
        self._troubles: dict[str, str] = {}
        self._position = 1
        self._order = threading.Lock()
        self._stopping = threading.Event()
        self._is_busy = threading.Event()
        self._depth = Depth(0, 0)
        self._measured_at = -DEPTH_SECONDS
        self._last_sent_us: int | None = None
        self._repeated = self._ignored = 0
        self._noted_at, self._noted = -NOTE_SECONDS, 0
        self._threads: list[threading.Thread] = []

    def start(self, inbox: "Inbox") -> None:
        """Begin to receive.

        Raises:
            RetailAssetsError: if the queue is not there or may not be read.
        """
        self._queue.check()
        self._leases.start()
        if self._files:
            self._files.start()
        self._threads = [
            threading.Thread(
                target=self._receive,
                args=(inbox,),
                kwargs={"is_first": number == 0},
                name=f"{self.name} {number}",
                daemon=True,
            )
            for number in range(RECEIVERS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Receive nothing new; what a call brings later is given back."""
        self._stopping.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        # A thread that still waits for the queue puts nothing into the inbox any more.
        with self._order:
            pass
        if self._files:
            self._files.stop()

    def close(self) -> None:
        """Delete what was committed, and give the rest back to the queue."""
        self._leases.end()

    def metrics(self) -> Mapping[str, float]:
        """Return the metrics, their names beginning with that of the source.

        `lag` is about how many messages wait in the queue, `lag_seconds` the age of the oldest
        that is known, `under_way` those received and not deleted yet, `repeated_total` those that
        had been ingested before, and `ignored_total` what named no event file to read.
        """
        oldest = self._leases.oldest_us()
        if self._last_sent_us is not None and self._depth.waiting:
            oldest = min(filter(None, (oldest, self._last_sent_us)))
        found = {
            f"{self.name}_lag": self._depth.waiting,
            f"{self.name}{LAG}": max(0.0, round(time.time() - oldest / 1e6, 1)) if oldest else 0.0,
            f"{self.name}_under_way": self._leases.count,
            f"{self.name}_repeated_total": self._repeated,
        }
        if self._files:
            found[f"{self.name}_ignored_total"] = self._ignored
            found[f"{self.name}_gone_total"] = self._files.gone
        return found

    def problem(self) -> str | None:
        """One sentence about what is wrong right now."""
        files = self._files.problem if self._files else None
        return next(iter(tuple(self._troubles.values())), files)

    def note_deleted(self, lake: "Lake", connection: "duckdb.DuckDBPyConnection") -> None:
        """Enter which messages were deleted, and let those go that cannot come again."""
        deleted = self._leases.deleted()
        if not deleted and not queue_messages.has_expired(connection):
            return
        with lake.transaction(connection, "messages of a queue that were deleted"):
            queue_messages.note_deleted(connection, (self.name, self._queue.url), deleted)
            queue_messages.forget(connection)
        self._leases.forget_deleted(len(deleted))

    def _receive(self, inbox: "Inbox", *, is_first: bool) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                if is_first:
                    self._measure()
                if self._has_room() and (is_first or self._is_busy.wait(BUSY_SECONDS)):
                    self._receive_once(inbox, is_first=is_first)
                    failures = 0
                    self._report("receive", None)
            except QueueError as error:
                self._report("receive", str(error))
                self._stopping.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1
            except Exception as error:
                # A thread that ends would leave the queue unread.
                logger.exception("Reading the queue %s failed", self._queue.name)
                self._report("receive", f"Reading the queue {self._queue.name} failed: {error}")
                self._stopping.wait(RETRY_SECONDS[0])

    def _has_room(self) -> bool:
        if self._leases.count < MOST_MESSAGES and self._leases.bytes < MOST_BYTES:
            return True
        self._stopping.wait(ROOM_SECONDS)
        return False

    def _receive_once(self, inbox: "Inbox", *, is_first: bool) -> None:
        asked_at = time.monotonic()
        messages = self._queue.receive(wait_seconds=WAIT_SECONDS, hold_seconds=self._hold_seconds)
        if len(messages) >= self._queue.most_at_once:
            self._is_busy.set()
        elif is_first:
            self._is_busy.clear()
        self._last_sent_us = min((message.sent_us for message in messages), default=None)
        leases = self._leases.take(messages, asked_at)
        opened = [self._open(lease.message.body) for lease in leases]
        with self._order:
            # Positions only grow in the inbox: the ledger moves past the last one.
            if not self._stopping.is_set():
                self._put(inbox, leases, opened)

    def _put(self, inbox: "Inbox", leases: Sequence[Lease], opened: "Sequence[Opened]") -> None:
        """Hand on what messages have, unless the worker stops before there is room."""
        outcomes = [_Outcome(partial(self._finish, lease)) for lease in leases]
        received = [
            part
            for lease, found, outcome in zip(leases, opened, outcomes, strict=True)
            for part in self._events(lease, found, outcome)
        ]
        while received and not inbox.put(*received, timeout=PUT_SECONDS):
            if inbox.closed or self._stopping.is_set():
                return
        for lease, found, outcome in zip(leases, opened, outcomes, strict=True):
            if self._files:
                for path in found.paths:
                    self._files.put(path, lease.message.sent_us, outcome.expect())
            self._note_ignored(found.ignored)
            outcome.all_expected()

    def _events(self, lease: Lease, opened: "Opened", outcome: "_Outcome") -> list[Received]:
        """The events of a message, by their defects; in order, since the ledger counts them so."""
        message = lease.message
        found: list[Received] = []
        first = 0
        for defect, alike in groupby(opened.events, lambda event: event[1]):
            payloads = [payload for payload, _ in alike]
            positions = range(self._position, self._position + len(payloads))
            self._position += len(payloads)
            finished = outcome.expect()
            found.append(
                Received(
                    self.name,
                    self._source_name,
                    self._dates.of(message.sent_us // 1000, None),
                    positions,
                    payloads,
                    message.sent_us / 1e6,
                    defect=defect,
                    recorded_us=[message.sent_us] * len(payloads),
                    message=QueueMessage(
                        self.name,
                        self._queue.url,
                        message.message_id,
                        message.sent_us,
                        first,
                        is_held=lease.is_held,
                        on_repeat=self._count_repeated,
                    ),
                    done=partial(finished, None),
                    failed=finished,
                )
            )
            first += len(payloads)
        return found

    def _count_repeated(self) -> None:
        self._repeated += 1

    def _finish(self, lease: Lease, problem: str | None) -> None:
        """Delete a message whose content is in the lake; else have it delivered again."""
        message = lease.message
        if problem is None:
            self._leases.done(lease)
        elif self._files is None or self._stopping.is_set():
            return  # it is given back with all others
        elif message.deliveries < ATTEMPTS:
            self._leases.release(lease, AGAIN_SECONDS * message.deliveries)
        else:
            logger.error("%s (see failed_event_files)", problem)
            self._leases.done(lease)

    def _note_ignored(self, ignored: Sequence[str]) -> None:
        """Count what asks for nothing; the log has one of it each minute."""
        if not ignored:
            return
        self._ignored += len(ignored)
        if time.monotonic() >= self._noted_at + NOTE_SECONDS:
            logger.info(
                "%d notifications of the queue %s name no event file to read, the last: %s",
                *(self._ignored - self._noted, self._queue.name, ignored[-1]),
            )
            self._noted_at, self._noted = time.monotonic(), self._ignored

    def _measure(self) -> None:
        if time.monotonic() < self._measured_at + DEPTH_SECONDS:
            return
        self._measured_at = time.monotonic()
        self._depth = self._queue.depth()

    def _report(self, work: str, trouble: str | None) -> None:
        if trouble is None:
            with suppress(KeyError):
                del self._troubles[work]
                logger.info("The queue %s can be used again", self._queue.name)
        else:
            if self._troubles.get(work) != trouble:
                logger.warning("%s", trouble)
            self._troubles[work] = trouble


class _Outcome:
    """The outcome of a message that is handed on in parts: known once all of them are finished."""

    def __init__(self, finish: Callable[[str | None], None]) -> None:
        self._finish = finish
        self._expected = 1
        self._problem: str | None = None
        self._lock = threading.Lock()

    def expect(self) -> Callable[[str | None], None]:
        """Expect one more part; the result is called with its problem, or None."""
        with self._lock:
            self._expected += 1
        return self._part_finished

    def all_expected(self) -> None:
        """Note that there are no more parts."""
        self._part_finished(None)

    def _part_finished(self, problem: str | None) -> None:
        with self._lock:
            self._expected -= 1
            self._problem = self._problem or problem
            finished = not self._expected
        if finished:
            self._finish(self._problem)
