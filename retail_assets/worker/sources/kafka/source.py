"""A Kafka topic as a source of the worker: its partitions, shared among the workers of a group.

The lake says where each partition goes on. The ledger skips messages that two members read, or
that a member ingests after it lost a partition. So a rebalance needs no agreement among members,
and offsets are committed to the broker only for its tools.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.messages.load import Received
from retail_assets.worker.sources.kafka.client import Topic
from retail_assets.worker.sources.kafka.partition_buffer import PartitionQueue
from retail_assets.worker.sources.kafka.start_offsets import StartOffsets
from retail_assets.worker.sources.received_dates import ReceivedDates

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

    from retail_assets.lake.connection import Lake
    from retail_assets.settings import Settings
    from retail_assets.worker.inbox import Inbox

logger = logging.getLogger(__name__)

KAFKA = "kafka"
"""The name of the source in the lake."""

WAITING_BYTES = 256 << 20
"""Bytes that may wait for the inbox or be in it; then reading pauses."""

READ_AT_ONCE = 10_000
IDLE_SECONDS, BUSY_SECONDS = 0.1, 0.001
"""How long to wait for a message: while nothing else is to be done, and while the next batch waits
for the acknowledgement of the one before."""

MANY, MANY_SECONDS = 20_000, 0.25
"""While there is more to read than is read at once, messages of a partition are gathered up to this
number or time before they are ingested: large batches cost less."""

HANDOVER_SECONDS = 5
"""How long a revoked partition waits for batches under way: the next member need not read them."""

PATIENCE_SECONDS = 0.5
"""How long to wait for room before the partitions are paused, which drops what was fetched."""

RETRY_SECONDS = 1
REPORT_SECONDS = 1
TROUBLE_SECONDS = 2
"""How long after its last sign trouble is over."""


class KafkaSource:
    """Reads a topic in a thread of its own; see `worker.sources.base.Source`.

    `lake` is only read, to find where each partition goes on.
    """

    name = KAFKA

    def __init__(
        self, settings: "Settings", lake: "Lake", *, bootstrap: str, topic: str, group: str
    ) -> None:
        """Check the names and options.

        Raises:
            UsageError: if one of them cannot be used.
        """
        self._topic = Topic(bootstrap, topic, group, settings.kafka_options)
        self._dates = ReceivedDates(settings.timezone, settings.start_date)
        self._start_offsets = StartOffsets(lake, self._topic)
        self._outcomes: SimpleQueue[tuple[PartitionQueue, str | None]] = SimpleQueue()
        self._queues: dict[int, PartitionQueue] = {}
        self._unassigned: set[int] = set()
        self._out_of_range: set[int] = set()
        self._is_another = False
        self._refused: dict[int, str] = {}
        self._unavailable: dict[int, str] = {}
        self._committed: dict[int, int] = {}
        self._trouble: str | None = None
        self._trouble_at: float = 0
        self._lag: float = 0
        self._paused = False
        self._more = False
        self._full_since: float | None = None
        self._reported_at: float = 0
        self._assign_at: float = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._consumer: Consumer | None = None

    def start(self, inbox: "Inbox") -> None:
        """Join the group and begin to read.

        Raises:
            RetailAssetsError: if no broker answers, the topic is not there or may not be read, or
                it ends before what the lake has of it.
        """
        consumer = self._topic.consumer(error_cb=self._client_error)
        try:
            self._start_offsets.check(consumer)
            consumer.subscribe(
                [self._topic.topic],
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._lost,
            )
        except BaseException as error:
            consumer.poll(0)
            consumer.close()
            if isinstance(error, RetailAssetsError) and self._trouble:
                # The client has reported why there was no answer.
                raise RetailAssetsError(self._trouble) from None
            raise
        self._trouble = None
        self._consumer = consumer
        self._thread = threading.Thread(target=self._run, args=(consumer, inbox), name=KAFKA)
        self._thread.start()

    def stop(self) -> None:
        """Read nothing new; the next reader gets the messages that are not in the inbox yet."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Leave the group; another member takes over at once."""
        self.stop()
        if self._consumer is not None:
            self._drain_acknowledgements()
            self._commit(self._consumer)
            self._consumer.close()
            self._consumer = None

    def metrics(self) -> Mapping[str, float]:
        """Return the metrics of this member.

        `kafka_lag` counts the messages of its partitions that are not in the lake yet,
        `kafka_waiting_bytes` is the memory of those that were read, `kafka_partitions` counts its
        partitions, and `kafka_lost` the messages that the topic removed before they were read.
        """
        return {
            "kafka_lag": self._lag,
            "kafka_waiting_bytes": self._waiting_bytes(),
            "kafka_partitions": len(self._queues),
            "kafka_lost": self._start_offsets.lost,
        }

    def problem(self) -> str | None:
        """One sentence about what is wrong right now."""
        failures = (queue.failure for queue in tuple(self._queues.values()))
        known = (*self._refused.values(), self._trouble, *self._unavailable.values(), *failures)
        return next(filter(None, known), None)

    def _run(self, consumer: "Consumer", inbox: "Inbox") -> None:
        while not self._stopping.is_set():
            if not self._goes_well(partial(self._iterate, consumer, inbox)):
                self._stopping.wait(RETRY_SECONDS)

    def _goes_well(self, step: Callable[[], None]) -> bool:
        """Take a step, and keep its error: a thread that ends would leave its partitions unread."""
        try:
            step()
        except RetailAssetsError as error:
            self._has_trouble(str(error))
            return False
        except Exception as error:
            logger.exception("Reading the Kafka topic %s failed", self._topic.topic)
            self._has_trouble(f"Reading the Kafka topic {self._topic.topic} failed: {error}")
            return False
        return True

    def _iterate(self, consumer: "Consumer", inbox: "Inbox") -> None:
        self._drain_acknowledgements()
        self._offer(inbox)
        # Read on even if this fails: a member that does not poll leaves the group.
        self._goes_well(partial(self._assign, consumer))
        if time.monotonic() >= self._reported_at + REPORT_SECONDS:
            self._report(consumer)
        if self._has_room(consumer):
            self._sort(self._read(consumer))

    def _read(self, consumer: "Consumer") -> "list[Message]":
        """New messages; waits only for the first one, and never long."""
        busy = any(queue.waits for queue in self._queues.values())
        messages = consumer.consume(1, BUSY_SECONDS if busy else IDLE_SECONDS)
        if messages:
            messages += consumer.consume(READ_AT_ONCE, 0)
        self._more = len(messages) > READ_AT_ONCE
        return messages

    def _sort(self, messages: "Iterable[Message]") -> None:
        found: dict[int | None, list[Message]] = {}
        for message in messages:
            error = message.error()
            if error is None:
                found.setdefault(message.partition(), []).append(message)
            else:
                self._partition_error(message.partition(), error)
        for number, some in found.items():
            queue = self._queues.get(number)  # type: ignore[arg-type]
            if queue is not None:
                queue.extend(some)

    def _offer(self, inbox: "Inbox") -> None:
        """Put waiting chunks of all partitions into the inbox together, as one batch."""
        if any(queue.under_way for queue in self._queues.values()):
            return
        found: list[tuple[PartitionQueue, Received]] = []
        for queue in self._queues.values():
            chunk = queue.first()
            if chunk is None or (self._more and not chunk.is_much(MANY, MANY_SECONDS)):
                continue
            received = Received(
                KAFKA,
                queue.source_name,
                chunk.received_date,
                chunk.positions,
                chunk.payloads,
                chunk.offered_at,
                recorded_us=chunk.recorded_us,
                received_at=chunk.began,
                done=partial(self._outcomes.put, (queue, None)),
                failed=self._failed(queue),
            )
            found.append((queue, received))
        if found and inbox.offer(*(received for _, received in found)):
            for queue, _ in found:
                queue.under_way = True

    def _failed(self, queue: PartitionQueue) -> Callable[[str], None]:
        return lambda reason: self._outcomes.put((queue, reason))

    def _drain_acknowledgements(self, wait_seconds: float = 0) -> None:
        """Apply the outcomes of chunks under way; waits up to `wait_seconds` for the first one."""
        with suppress(Empty):
            outcome = self._outcomes.get(wait_seconds > 0, wait_seconds)
            while True:
                queue, reason = outcome
                if reason is None:
                    queue.is_durable()
                else:
                    logger.error("%s: %s", queue.source_name, reason)
                    queue.has_failed(reason, RETRY_SECONDS)
                outcome = self._outcomes.get_nowait()

    def _has_room(self, consumer: "Consumer") -> bool:
        """Whether to read; while partitions are paused, reading only keeps the membership."""
        if self._waiting_bytes() < WAITING_BYTES:
            self._full_since = None
            if self._paused:
                consumer.resume(consumer.assignment())
                self._paused = False
            return True
        if not self._paused:
            self._full_since = self._full_since or time.monotonic()
            if time.monotonic() < self._full_since + PATIENCE_SECONDS:
                self._drain_acknowledgements(BUSY_SECONDS)
                return False
            consumer.pause(consumer.assignment())
            self._paused = True
        return True

    def _waiting_bytes(self) -> int:
        """Bytes that were read and are not in the lake yet."""
        return sum(queue.weight for queue in tuple(self._queues.values()))

    def _assign(self, consumer: "Consumer") -> None:
        """Assign the partitions that are new here, and again those that are out of range.

        If the topic was made again, assign all of them: some may be out of range, others not.
        """
        gone = {number for number in self._out_of_range if self._queues[number].is_empty}
        if self._start_offsets.has_another_topic():
            self._is_another = True
        if not (gone or self._unassigned or self._is_another) or time.monotonic() < self._assign_at:
            return
        try:
            if (gone or self._is_another) and self._start_offsets.identify(consumer):
                gone = self._queues.keys() | self._refused.keys()
            self._is_another = False
            if gone:
                self._drop(consumer, gone)
                self._unassigned |= gone
            self._begin(consumer)
        finally:
            self._assign_at = time.monotonic() + RETRY_SECONDS

    def _begin(self, consumer: "Consumer") -> None:
        assignment = self._start_offsets.find(consumer, sorted(self._unassigned))
        consumer.incremental_assign(
            [
                self._topic.partition(number, start.offset)
                for number, start in assignment.found.items()
            ]
        )
        for number, start in assignment.found.items():
            name = self._start_offsets.source_name(number)
            self._queues[number] = PartitionQueue(name, self._dates, start.position, start.day)
        self._refused.update(assignment.refused)
        self._unassigned -= assignment.found.keys() | assignment.refused.keys()
        self._note_unavailable(assignment.unavailable)
        if self._paused:
            consumer.pause(consumer.assignment())

    def _note_unavailable(self, found: Mapping[int, str]) -> None:
        """Keep why partitions cannot be read, until they are assigned."""
        for number, sentence in found.items():
            if sentence != self._unavailable.get(number):
                logger.warning("%s", sentence)
        both = {**self._unavailable, **found}
        self._unavailable = {
            number: both[number] for number in sorted(both.keys() & self._unassigned)
        }

    def _assigned(self, consumer: "Consumer", partitions: "list[TopicPartition]") -> None:
        # Their start offsets are found later: an error here would let them begin anywhere.
        consumer.incremental_assign([])
        self._unassigned |= {partition.partition for partition in partitions}
        self._assign_at = 0

    def _revoked(self, consumer: "Consumer", partitions: "list[TopicPartition]") -> None:
        numbers = {partition.partition for partition in partitions}
        until = time.monotonic() + HANDOVER_SECONDS
        while (
            not self._stopping.is_set()
            and any(self._queues[number].under_way for number in numbers & self._queues.keys())
            and (left := until - time.monotonic()) > 0
        ):
            self._drain_acknowledgements(left)
        self._commit(consumer)
        self._drop(consumer, numbers)

    def _lost(self, consumer: "Consumer", partitions: "list[TopicPartition]") -> None:
        self._drop(consumer, {partition.partition for partition in partitions})

    def _drop(self, consumer: "Consumer", numbers: set[int]) -> None:
        """Drop partitions, and their messages that are not in the inbox yet."""
        assigned = [self._topic.partition(number) for number in numbers if number in self._queues]
        consumer.incremental_unassign(assigned)
        self._unassigned -= numbers
        self._out_of_range -= numbers
        for number in numbers:
            for kept in (self._queues, self._refused, self._unavailable, self._committed):
                kept.pop(number, None)

    def _report(self, consumer: "Consumer") -> None:
        """Once a second: commit offsets, measure the lag, and see whether trouble is over."""
        self._reported_at = time.monotonic()
        self._commit(consumer)
        self._lag = sum(
            _behind(queue.position, *self._known_range(consumer, number))
            for number, queue in self._queues.items()
        )
        if self._trouble and time.monotonic() > self._trouble_at + TROUBLE_SECONDS:
            self._topic.partitions(consumer, REPORT_SECONDS)
            logger.warning("The Kafka topic %s can be read again", self._topic.topic)
            self._trouble = None

    def _known_range(self, consumer: "Consumer", number: int) -> tuple[int, int]:
        """The first and next offset of a partition in the last answer of the broker."""
        low, high = consumer.get_watermark_offsets(self._topic.partition(number), cached=True)
        return low, high

    def _commit(self, consumer: "Consumer") -> None:
        """Commit the positions of the lake to the broker, whose tools show them."""
        from confluent_kafka import KafkaException

        positions = {
            number: queue.position
            for number, queue in self._queues.items()
            if queue.position is not None and queue.position != self._committed.get(number)
        }
        if positions:
            committed = [self._topic.partition(*entry) for entry in positions.items()]
            with suppress(KafkaException):
                consumer.commit(offsets=committed, asynchronous=True)
            self._committed.update(positions)

    def _client_error(self, error: "KafkaError") -> None:
        """Note trouble of the whole client; a single broker of several may be unavailable."""
        if error.name() in ("_TRANSPORT", "_RESOLVE", "_TIMED_OUT"):
            return
        # The brokers may be down for this worker because they do not let it in.
        if error.name() != "_ALL_BROKERS_DOWN" or not self._trouble:
            self._has_trouble(self._topic.sentence(error))

    def _partition_error(self, number: int | None, error: "KafkaError") -> None:
        if error.name() != "_AUTO_OFFSET_RESET":
            self._has_trouble(self._topic.sentence(error))
        elif number in self._queues:
            self._out_of_range.add(number)

    def _has_trouble(self, sentence: str) -> None:
        if sentence != self._trouble:
            logger.warning("%s", sentence)
        self._trouble, self._trouble_at = sentence, time.monotonic()


def _behind(position: int | None, low: int, high: int) -> int:
    """How many messages from a position (or the start) to the end; 0 while that is not known."""
    return max(0, high - (max(low, 0) if position is None else position))
