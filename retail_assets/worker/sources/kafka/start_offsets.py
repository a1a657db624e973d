"""Start offsets: where each partition of a Kafka topic goes on, by the ledger and the broker."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.ledgers import offsets
from retail_assets.lake.connection import NoLakeError
from retail_assets.worker.sources.kafka.client import ANSWER_SECONDS, Topic
from retail_assets.worker.sources.kafka.topic_identity import Identity

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from retail_assets.lake.connection import Lake

logger = logging.getLogger(__name__)


class OtherTopicError(RetailAssetsError):
    """The lake has more of a partition than there is, though the topic is the same."""


class PartitionUnavailableError(RetailAssetsError):
    """The range of a partition is unknown now: others may still answer."""


@dataclass(frozen=True)
class StartOffset:
    """The offset to read on from, and the next position of the ledger, if it has one.

    `day` is the day of the message before, if one was ingested.
    """

    offset: int
    position: int | None
    day: date | None = None


@dataclass
class Assignment:
    """The start of each partition, and why others are refused, or unavailable for now."""

    found: dict[int, StartOffset] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    unavailable: dict[int, str] = field(default_factory=dict)


class StartOffsets:
    """Finds start offsets; `lost` counts messages that were removed before they were read."""

    def __init__(self, lake: "Lake", topic: Topic) -> None:
        self._lake = lake
        self._topic = topic
        self._identity = Identity(lake, topic)
        self._reported: dict[int, int] = {}
        self._unavailable_at: dict[int, float] = {}
        self.lost = 0

    def check(self, consumer: "Consumer") -> None:
        """Make sure that the topic is there, and has the messages that were ingested before.

        Unavailable partitions are no error: the others can be read.

        Raises:
            RetailAssetsError: with what is wrong and what to do.
        """
        self.identify(consumer)
        prefix = self._identity.prefix
        positions = {
            int(source_name.removeprefix(prefix)): position
            for source_name, position in self._positions().items()
            if source_name.startswith(prefix)
        }
        refused = self._look(consumer, positions).refused
        if refused:
            raise OtherTopicError(next(iter(refused.values())))

    def identify(self, consumer: "Consumer") -> bool:
        """Find which topic of this name it is; returns whether it is another one than before.

        Raises:
            RetailAssetsError: if no broker answers, or the lake cannot be read or written to.
        """
        is_another = self._identity.find(self._topic.partitions(consumer))
        if is_another:
            self._reported.clear()
        return is_another

    def has_another_topic(self) -> bool:
        """Whether the topic was made again, as far as the broker tells."""
        return self._identity.has_changed()

    def source_name(self, number: int) -> str:
        """The name of a partition in the lake."""
        return f"{self._identity.prefix}{number}"

    def find(self, consumer: "Consumer", numbers: Sequence[int]) -> Assignment:
        """Find where some partitions go on: without an entry in the ledger, from the start.

        Partitions that there was no time to check are left out.

        Raises:
            RetailAssetsError: if no broker answers, or the lake cannot be read.
        """
        from confluent_kafka import OFFSET_BEGINNING

        found = self._positions([self.source_name(number) for number in numbers])
        positions = {number: found.get(self.source_name(number)) for number in numbers}
        known = {number: position for number, position in positions.items() if position is not None}
        assignment = self._look(consumer, known)
        for sentence in assignment.refused.values():
            logger.error("%s", sentence)
        days = self._days({number: known[number] for number in assignment.found})
        for number, start in assignment.found.items():
            self._count_lost(number, known[number], start.offset)
            assignment.found[number] = replace(start, day=days.get(number))
        for number in positions.keys() - known.keys():
            assignment.found[number] = StartOffset(OFFSET_BEGINNING, None)
        return assignment

    def _look(self, consumer: "Consumer", positions: Mapping[int, int]) -> Assignment:
        """Compare partitions with their positions in the ledger, within `ANSWER_SECONDS`.

        Nothing is read meanwhile. So partitions that kept the others waiting come last next time.
        """
        assignment = Assignment()
        without_leader = self._topic.without_leader(consumer) if positions else set()
        until = time.monotonic() + ANSWER_SECONDS
        for number in sorted(positions, key=lambda number: self._unavailable_at.get(number, 0)):
            if number in without_leader:
                assignment.unavailable[number] = self._topic.partition_unavailable(
                    number, "it has no leader"
                )
            elif time.monotonic() < until:
                try:
                    first = self._check_end(consumer, number, positions[number])
                except OtherTopicError as error:
                    assignment.refused[number] = str(error)
                except PartitionUnavailableError as error:
                    assignment.unavailable[number] = str(error)
                    self._unavailable_at[number] = time.monotonic()
                else:
                    offset = max(positions[number], first)
                    assignment.found[number] = StartOffset(offset, positions[number])
        return assignment

    def _positions(self, source_names: Sequence[str] | None = None) -> dict[str, int]:
        try:
            with self._lake.connect(read_only=True) as connection:
                return offsets.next_positions(connection, "kafka", source_names)
        except NoLakeError:
            return {}

    def _days(self, positions: Mapping[int, int]) -> dict[int, date]:
        """The days of the last messages before some positions."""
        if not positions:
            return {}
        names = [self.source_name(number) for number in positions]
        before = [position - 1 for position in positions.values()]
        with self._lake.connect(read_only=True) as connection:
            # Unlike list_contains, a join lets the statistics leave nearly all rows unread.
            return dict(
                connection.execute(
                    "SELECT number, received_date FROM lake.raw_events"
                    " JOIN (SELECT unnest(?::INTEGER[]) AS number,"
                    " unnest(?::VARCHAR[]) AS source_name, unnest(?::BIGINT[]) AS position)"
                    " USING (source_name, position) WHERE source = 'kafka'",
                    [list(positions), names, before],
                ).fetchall()
            )

    def _check_end(self, consumer: "Consumer", number: int, position: int) -> int:
        """Return the first offset of a partition.

        Raises:
            OtherTopicError: if it ends before a position.
            PartitionUnavailableError: if it does not answer.
        """
        from confluent_kafka import KafkaException

        try:
            start, end = consumer.get_watermark_offsets(
                self._topic.partition(number), timeout=ANSWER_SECONDS
            )
        except KafkaException as error:
            raise self._unavailable(number, error.args[0].str()) from None
        # A new leader may name an end that lags behind.
        if position > end and not self._reaches(number, position):
            raise self._other_topic(number, position, end)
        return start

    def _reaches(self, number: int, position: int) -> bool:
        """Whether a partition has all messages before a position, by reading on from it."""
        partition = self._topic.partition(number, position)
        reader = self._topic.consumer()
        try:
            reader.assign([partition])
            until = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < until:
                for message in reader.consume(1, 0.05):
                    return message.error() is None
                end = reader.get_watermark_offsets(partition, cached=True)[1]
                if end >= 0:
                    return end >= position
        finally:
            reader.close()
        raise self._unavailable(number, "it does not answer")

    def _unavailable(self, number: int, reason: str) -> PartitionUnavailableError:
        return PartitionUnavailableError(self._topic.partition_unavailable(number, reason))

    def _other_topic(self, number: int, position: int, end: int) -> OtherTopicError:
        return OtherTopicError(
            f"Partition {number} of the Kafka topic {self._topic.topic} at {self._topic.bootstrap}"
            f" ends at {end}, but the lake has ingested it up to {position}: the brokers have lost"
            " messages, or their topic was set back; bring them back, or make the topic again, then"
            " it is read from its beginning."
        )

    def _count_lost(self, number: int, position: int, start: int) -> None:
        lost = start - max(position, self._reported.get(number, 0))
        if lost > 0:
            self._reported[number] = start
            self.lost += lost
            logger.error(
                "%d messages of partition %d of the Kafka topic %s are lost: the topic had removed"
                " them before they were read, from %d to %d; let it keep messages for longer",
                *(lost, number, self._topic.topic, position, start - 1),
            )
