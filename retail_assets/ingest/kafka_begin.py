"""Where each partition of a Kafka topic goes on: where the ledger says, if the topic has that."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest import offsets
from retail_assets.ingest.kafka_client import ANSWER_SECONDS, Topic
from retail_assets.lake.connection import NoLakeError

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from retail_assets.lake.connection import Lake

logger = logging.getLogger(__name__)


class OtherTopicError(RetailAssetsError):
    """The lake has more of a partition than there is: it is not the one that was read before."""


@dataclass(frozen=True)
class Place:
    """Where to read on (an offset of Kafka), and the next position of the ledger, if it has one."""

    offset: int
    position: int | None


@dataclass
class Places:
    """Where partitions go on, by number, and why some of them cannot."""

    placed: dict[int, Place] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


class Beginnings:
    """Finds the places; `lost` counts messages that were removed before they were read."""

    def __init__(self, lake: "Lake", topic: Topic) -> None:
        self._lake = lake
        self._topic = topic
        self._told: dict[int, int] = {}
        self.lost = 0

    def check(self, consumer: "Consumer") -> None:
        """Make sure that the topic is there and is the one that was read before.

        Raises:
            RetailAssetsError: with what is wrong and what to do.
        """
        partitions = self._topic.partitions(consumer)
        prefix = f"{self._topic.topic}:"
        for source_name, position in self._positions().items():
            if source_name.startswith(prefix):
                number = int(source_name.removeprefix(prefix))
                if number >= partitions:
                    raise self._other_topic(number, position, 0)
                self._check_end(consumer, number, position)

    def find(self, consumer: "Consumer", numbers: Sequence[int]) -> Places:
        """Find where some partitions go on: without an entry in the ledger, from the start.

        Raises:
            RetailAssetsError: if no broker answers, or the lake cannot be read.
        """
        from confluent_kafka import OFFSET_BEGINNING

        places = Places()
        positions = self._positions([self._topic.source_name(number) for number in numbers])
        for number in numbers:
            position = positions.get(self._topic.source_name(number))
            if position is None:
                places.placed[number] = Place(OFFSET_BEGINNING, None)
                continue
            try:
                start = self._check_end(consumer, number, position)
            except OtherTopicError as error:
                logger.error("%s", error)  # noqa: TRY400
                places.refused[number] = str(error)
                continue
            self._count_lost(number, position, start)
            places.placed[number] = Place(max(position, start), position)
        return places

    def _positions(self, source_names: Sequence[str] | None = None) -> dict[str, int]:
        try:
            with self._lake.connect(read_only=True) as connection:
                return offsets.next_positions(connection, "kafka", source_names)
        except NoLakeError:
            return {}

    def _check_end(self, consumer: "Consumer", number: int, position: int) -> int:
        """Return the first offset of a partition.

        Raises:
            OtherTopicError: if it ends before a position.
        """
        from confluent_kafka import KafkaException

        try:
            start, end = consumer.get_watermark_offsets(
                self._topic.partition(number), timeout=ANSWER_SECONDS
            )
        except KafkaException as error:
            raise RetailAssetsError(self._topic.sentence(error.args[0])) from None
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
        raise RetailAssetsError(self._topic.away)

    def _other_topic(self, number: int, position: int, end: int) -> OtherTopicError:
        return OtherTopicError(
            f"Partition {number} of the Kafka topic {self._topic.topic} at {self._topic.bootstrap}"
            f" ends at {end}, but the lake has taken it in up to {position}: the topic was made"
            " anew, or this is another cluster; go back to the one before, or give the topic"
            " another name."
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
