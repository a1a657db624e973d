"""Where each partition of a Kafka topic goes on: where the ledger says, if the topic has that."""

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


class PartitionAwayError(RetailAssetsError):
    """Where a partition begins and ends cannot be found out now: others may still answer."""


@dataclass(frozen=True)
class Place:
    """Where to read on (an offset of Kafka), and the next position of the ledger, if it has one.

    `day` is the one that the message before it counts for, if one was taken in.
    """

    offset: int
    position: int | None
    day: date | None = None


@dataclass
class Places:
    """Where partitions go on, by number, and why some of them cannot: for good, or for now."""

    placed: dict[int, Place] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    away: dict[int, str] = field(default_factory=dict)


class Beginnings:
    """Finds the places; `lost` counts messages that were removed before they were read."""

    def __init__(self, lake: "Lake", topic: Topic) -> None:
        self._lake = lake
        self._topic = topic
        self._identity = Identity(lake, topic)
        self._told: dict[int, int] = {}
        self._away_at: dict[int, float] = {}
        self.lost = 0

    def check(self, consumer: "Consumer") -> None:
        """Make sure that the topic is there, and has what was read of it before.

        That a partition is away is not looked upon as wrong: the others can be read.

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
        """Find out which topic of this name it is; returns whether it is another than before.

        Raises:
            RetailAssetsError: if no broker answers, or the lake cannot be read or written to.
        """
        is_another = self._identity.find(self._topic.partitions(consumer))
        if is_another:
            self._told.clear()
        return is_another

    def has_another_topic(self) -> bool:
        """Whether there is another topic by now, as far as the broker tells."""
        return self._identity.has_changed()

    def source_name(self, number: int) -> str:
        """The name of a partition in the lake."""
        return f"{self._identity.prefix}{number}"

    def find(self, consumer: "Consumer", numbers: Sequence[int]) -> Places:
        """Find where some partitions go on: without an entry in the ledger, from the start.

        Those that there was no time to ask are in none of the places.

        Raises:
            RetailAssetsError: if no broker answers, or the lake cannot be read.
        """
        from confluent_kafka import OFFSET_BEGINNING

        found = self._positions([self.source_name(number) for number in numbers])
        positions = {number: found.get(self.source_name(number)) for number in numbers}
        known = {number: position for number, position in positions.items() if position is not None}
        places = self._look(consumer, known)
        for sentence in places.refused.values():
            logger.error("%s", sentence)
        days = self._days({number: known[number] for number in places.placed})
        for number, place in places.placed.items():
            self._count_lost(number, known[number], place.offset)
            places.placed[number] = replace(place, day=days.get(number))
        for number in positions.keys() - known.keys():
            places.placed[number] = Place(OFFSET_BEGINNING, None)
        return places

    def _look(self, consumer: "Consumer", positions: Mapping[int, int]) -> Places:
        """Compare partitions with their positions in the ledger, for as long as one may take.

        Nothing is read meanwhile. So those come last next time that kept the others waiting.
        """
        places = Places()
        without_leader = self._topic.without_leader(consumer) if positions else set()
        until = time.monotonic() + ANSWER_SECONDS
        for number in sorted(positions, key=lambda number: self._away_at.get(number, 0)):
            if number in without_leader:
                places.away[number] = self._topic.partition_away(number, "it has no leader")
            elif time.monotonic() < until:
                try:
                    start = self._check_end(consumer, number, positions[number])
                except OtherTopicError as error:
                    places.refused[number] = str(error)
                except PartitionAwayError as error:
                    places.away[number] = str(error)
                    self._away_at[number] = time.monotonic()
                else:
                    place = Place(max(positions[number], start), positions[number])
                    places.placed[number] = place
        return places

    def _positions(self, source_names: Sequence[str] | None = None) -> dict[str, int]:
        try:
            with self._lake.connect(read_only=True) as connection:
                return offsets.next_positions(connection, "kafka", source_names)
        except NoLakeError:
            return {}

    def _days(self, positions: Mapping[int, int]) -> dict[int, date]:
        """The days that the last messages before some positions count for."""
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
            PartitionAwayError: if it does not answer.
        """
        from confluent_kafka import KafkaException

        try:
            start, end = consumer.get_watermark_offsets(
                self._topic.partition(number), timeout=ANSWER_SECONDS
            )
        except KafkaException as error:
            raise self._away(number, error.args[0].str()) from None
        # A broker that has just become the leader may name an end that lags behind.
        if position > end and not self._reaches(number, position):
            raise self._other_topic(number, position, end)
        return start

    def _reaches(self, number: int, position: int) -> bool:
        """Whether a partition has all messages before a position, by trying to read on from it."""
        place = self._topic.partition(number, position)
        reader = self._topic.consumer()
        try:
            reader.assign([place])
            until = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < until:
                for message in reader.consume(1, 0.05):
                    return message.error() is None
                end = reader.get_watermark_offsets(place, cached=True)[1]
                if end >= 0:
                    return end >= position
        finally:
            reader.close()
        raise self._away(number, "it does not answer")

    def _away(self, number: int, reason: str) -> PartitionAwayError:
        return PartitionAwayError(self._topic.partition_away(number, reason))

    def _other_topic(self, number: int, position: int, end: int) -> OtherTopicError:
        return OtherTopicError(
            f"Partition {number} of the Kafka topic {self._topic.topic} at {self._topic.bootstrap}"
            f" ends at {end}, but the lake has ingested it up to {position}: the brokers have lost"
            " messages, or their topic was set back; bring them back, or make the topic again, then"
            " it is read from its beginning."
        )

    def _count_lost(self, number: int, position: int, start: int) -> None:
        lost = start - max(position, self._told.get(number, 0))
        if lost > 0:
            self._told[number] = start
            self.lost += lost
            logger.error(
                "%d messages of partition %d of the Kafka topic %s are lost: the topic had removed"
                " them before they were read, from %d to %d; let it keep messages for longer",
                *(lost, number, self._topic.topic, position, start - 1),
            )
