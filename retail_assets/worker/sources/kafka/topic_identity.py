"""Which topic a name stands for: an offset belongs to a topic as it was made, not to its name.

A topic that is deleted and made again, or one of another cluster, has the same name and offsets.
The lake calls the first topic of a name `orders`, the next one `orders@2`, and so on: each has
positions of its own, so that another one is read from its beginning. The broker names the id of a
topic (KIP-516); where it does not, its messages are compared with the last ones in the lake.
"""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retail_assets.ingest.events.lines import MAX_LINE_BYTES
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.ledgers.offsets import KnownTopic
from retail_assets.ingest.messages.payloads import payloads_to_arrow
from retail_assets.lake.connection import NoLakeError
from retail_assets.worker.sources.kafka.client import Topic
from retail_assets.worker.sources.kafka.partition_buffer import payload_of

if TYPE_CHECKING:
    from confluent_kafka import Message

    from retail_assets.lake.connection import Lake

logger = logging.getLogger(__name__)

CHECK_SECONDS = 30.0
"""How often the id of the topic is checked."""


class Identity:
    """Finds which of the topics that the lake knows by this name the broker has."""

    def __init__(self, lake: "Lake", topic: Topic) -> None:
        self._lake = lake
        self._topic = topic
        self._now = KnownTopic(1)
        self._asked_at = time.monotonic()

    @property
    def prefix(self) -> str:
        """The names of this topic's parts in the lake, up to the number."""
        return _prefix(self._topic.topic, self._now)

    def find(self, partitions: int) -> bool:
        """Find out which topic it is, and enter it in the lake if it is not known.

        Args:
            partitions: how many it has.

        Returns:
            Whether it is another one than before.

        Raises:
            RetailAssetsError: if the lake cannot be written to.
        """
        before = self._now
        topic_id = self._topic.id()
        while True:
            known = self._known()
            found, is_new = self._choose(topic_id, known, partitions)
            if found in known or self._enter(found, known):
                break
        self._now = found
        if is_new and found.number > 1:
            logger.warning(
                "The Kafka topic %s at %s is not the one that the lake has read so far (it was made"
                " again, or this is another cluster): it is read from its beginning, as %s; what"
                " was read before counts as duplicate",
                *(self._topic.topic, self._topic.bootstrap, self.prefix.removesuffix(":")),
            )
        return found.number != before.number

    def has_changed(self) -> bool:
        """Whether the broker names another id, as of the last check."""
        if not self._now.topic_id or time.monotonic() < self._asked_at + CHECK_SECONDS:
            return False
        self._asked_at = time.monotonic()
        return self._topic.id() not in (None, self._now.topic_id)

    def _known(self) -> list[KnownTopic]:
        """The topics of this name, the newest first."""
        try:
            with self._lake.connect(read_only=True) as connection:
                known = offsets.known_topics(connection, self._topic.topic)
                # Older ledgers do not name the first topic.
                if not any(topic.number == 1 for topic in known) and any(
                    part.startswith(_prefix(self._topic.topic, KnownTopic(1)))
                    for part in offsets.next_positions(connection, "kafka")
                ):
                    known.append(KnownTopic(1))
        except NoLakeError:
            return []
        return sorted(known, key=lambda topic: -topic.number)

    def _choose(
        self, topic_id: str | None, known: Sequence[KnownTopic], partitions: int
    ) -> tuple[KnownTopic, bool]:
        """The topic, and whether it is new."""
        for topic in known:
            if topic_id and topic.topic_id == topic_id:
                return topic, False
        for topic in known:
            if topic_id and topic.topic_id:
                continue
            alike = self._is_alike(topic, partitions)
            if alike is None:
                return topic, False
            if alike:
                return KnownTopic(topic.number, topic_id or topic.topic_id), False
        return KnownTopic(known[0].number + 1 if known else 1, topic_id), True

    def _enter(self, topic: KnownTopic, known: Sequence[KnownTopic]) -> bool:
        """Enter a topic, unless another worker has just done so."""
        with (
            self._lake.connect() as connection,
            self._lake.transaction(connection, "enter a Kafka topic"),
        ):
            there = offsets.known_topics(connection, self._topic.topic)
            if not set(there) <= set(known):
                return False
            offsets.enter_topic(connection, self._topic.topic, topic)
        return True

    def _is_alike(self, topic: KnownTopic, partitions: int) -> bool | None:
        """Whether the last messages that the lake has of a topic are in this one; None: unknown."""
        last = self._last_lines(topic)
        if any(number >= partitions for number in last):
            return False
        if not last:
            return True
        found = self._topic.messages({number: offset for number, (offset, _) in last.items()})
        alike = [
            _is_line(found[number], offset, line)
            for number, (offset, line) in last.items()
            if number in found
        ]
        if False in alike:
            return False
        return True if True in alike else None

    def _last_lines(self, topic: KnownTopic) -> dict[int, tuple[int, str | None]]:
        """Offset and line of the last message of each partition; None: no such line."""
        prefix = _prefix(self._topic.topic, topic)
        with self._lake.connect(read_only=True) as connection:
            positions = {
                part: position
                for part, position in offsets.next_positions(connection, "kafka").items()
                if part.startswith(prefix) and position
            }
            lines = dict(
                connection.execute(
                    "SELECT source_name, payload FROM lake.raw_events"
                    " JOIN (SELECT unnest(?::VARCHAR[]) AS source_name,"
                    " unnest(?::BIGINT[]) - 1 AS position)"
                    " USING (source_name, position) WHERE source = 'kafka'",
                    [list(positions), list(positions.values())],
                ).fetchall()
            )
        return {
            int(part.removeprefix(prefix)): (position - 1, lines.get(part))
            for part, position in positions.items()
        }


def _prefix(name: str, topic: KnownTopic) -> str:
    # Kafka allows no @ in a topic's name.
    return f"{name}:" if topic.number == 1 else f"{name}@{topic.number}:"


def _is_line(message: "Message | None", offset: int, line: str | None) -> bool | None:
    """Whether a message is the one that a line was made of; None if unknown."""
    if message is None:
        return False
    if message.offset() != offset or line is None:
        # The topic or the lake has removed it.
        return None
    [text] = payloads_to_arrow([payload_of(message)])["payload"].to_pylist()
    # Older lakes kept nothing of a message without value, and only the start of a long one.
    is_short = not line and message.value() is None
    is_cut = len(text) > MAX_LINE_BYTES and line != "" and text.startswith(line)
    return text == line or is_short or is_cut
