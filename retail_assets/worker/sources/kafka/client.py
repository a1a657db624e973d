"""Kafka clients: their options, and what their errors say to a person, with no secret in it."""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from retail_assets.errors import RetailAssetsError, UsageError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
    from confluent_kafka.admin import AdminClient

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5
"""How long a broker may take for an answer before it counts as unavailable."""

ID_SECONDS = 2
"""How long to wait for the id of a topic, which not every broker names."""

TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
"""Names that Kafka allows. A name that starts with ^ would be a pattern of many topics."""

_OURS = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    # The ledger says where to begin; messages that were removed must not be skipped silently.
    "auto.offset.reset": "error",
    "partition.assignment.strategy": "cooperative-sticky",
}
_DEFAULTS = {
    "client.id": "retail-assets",
    # How long the partitions of a worker that died stay with it; librdkafka waits 45 s.
    "session.timeout.ms": "10000",
    # librdkafka waits up to 10 s before it tries to reach an unavailable broker again.
    "reconnect.backoff.max.ms": "1000",
    # How soon new partitions are seen; librdkafka looks every five minutes.
    "topic.metadata.refresh.interval.ms": "30000",
    # A broker without new messages answers after this; with new ones, some do not answer sooner.
    "fetch.wait.max.ms": "20",
    # Memory of librdkafka, besides the messages that wait in this process.
    "queued.max.messages.kbytes": "32768",
    # How long librdkafka fetches nothing once that much waits; the default is 1 s.
    "fetch.queue.backoff.ms": "10",
}
_SECRET = re.compile(r"password|secret|token|\.pem|\.key|credential|oauthbearer", re.IGNORECASE)


@dataclass(frozen=True)
class Topic:
    """A topic, the group that reads it, and how its brokers are reached.

    `options` are further ones of librdkafka; they are never shown.
    """

    bootstrap: str
    topic: str
    group: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not TOPIC_NAME.fullmatch(self.topic):
            raise UsageError(
                f"{self.topic!r} cannot be the name of a Kafka topic: use up to 249 letters,"
                " digits, dots, underscores and hyphens."
            )
        if not self.bootstrap or not self.group:
            raise UsageError("Kafka needs the address of a broker and the name of a group.")
        reserved = {*_OURS, "bootstrap.servers", "group.id"} & self.options.keys()
        if reserved:
            raise UsageError(
                f"RETAIL_KAFKA_OPTIONS cannot set {', '.join(sorted(reserved))}:"
                " the worker depends on its own value; remove it there."
            )

    def consumer(self, **more: Any) -> "Consumer":
        """Make a consumer, which has not contacted a broker yet.

        Raises:
            UsageError: if librdkafka does not take an option; names it, but not its value.
        """
        from confluent_kafka import Consumer, KafkaException

        own = {**_OURS, "bootstrap.servers": self.bootstrap, "group.id": self.group}
        given = {name: _text(value) for name, value in self.options.items()}
        try:
            return Consumer({**_DEFAULTS, **given, **own, "logger": logger, **more})
        except KafkaException as error:
            # The message has the value, which may be a password: only the name is shown.
            names = [name for name in given if f'"{name}"' in str(error)]
            what = f"the option {names[0]}" if names else "one of the options"
            message = f"RETAIL_KAFKA_OPTIONS: librdkafka does not take {what}: correct it there."
            raise UsageError(message) from None

    def partitions(self, consumer: "Consumer", timeout: float | None = None) -> int:
        """How many partitions the topic has.

        Raises:
            RetailAssetsError: if no broker answers, or the topic is not there for this worker.
        """
        return len(self._leaders(consumer, timeout or ANSWER_SECONDS))

    def without_leader(self, consumer: "Consumer") -> set[int]:
        """The partitions that no broker serves now; asking for their ends would only wait.

        Raises:
            RetailAssetsError: as `partitions`.
        """
        leaders = self._leaders(consumer, ANSWER_SECONDS)
        return {number for number, broker in leaders.items() if broker < 0}

    def _leaders(self, consumer: "Consumer", timeout: float) -> dict[int, int]:
        """The broker that serves each partition; -1 for none."""
        from confluent_kafka import KafkaException

        try:
            answer = consumer.list_topics(self.topic, timeout=timeout)
        except KafkaException as error:
            raise RetailAssetsError(self.sentence(error.args[0])) from None
        metadata = answer.topics[self.topic]
        if metadata.error is not None:
            raise RetailAssetsError(self.sentence(metadata.error))
        return {number: partition.leader for number, partition in metadata.partitions.items()}

    def messages(self, offsets: Mapping[int, int]) -> "dict[int, Message | None]":
        """Read the first message from an offset on, of some partitions.

        Returns:
            None for a partition that ends before it; nothing for one that does not answer in time,
            or that has removed it.
        """
        found: dict[int, Message | None] = {}
        gone: set[int] = set()
        reader = self.consumer()
        try:
            reader.assign([self.partition(*start) for start in offsets.items()])
            until = time.monotonic() + ANSWER_SECONDS
            while (left := offsets.keys() - found.keys() - gone) and time.monotonic() < until:
                for message in reader.consume(100, 0.05):
                    error, number = message.error(), message.partition()
                    if error is None and number is not None:
                        found.setdefault(number, message)
                    elif error and error.name() == "_AUTO_OFFSET_RESET" and number is not None:
                        gone.add(number)
                for number in left - found.keys():
                    end = reader.get_watermark_offsets(self.partition(number), cached=True)[1]
                    if 0 <= end <= offsets[number]:
                        found[number] = None
        finally:
            reader.close()
        return found

    def id(self) -> str | None:
        """The id of the topic; None if the broker does not name it in time."""
        from confluent_kafka import KafkaException, TopicCollection

        answer = self._admin.describe_topics(
            TopicCollection([self.topic]), request_timeout=ID_SECONDS
        )[self.topic]
        try:
            # Always wait: a client that is closed during a request crashes the process.
            given = answer.result().topic_id
        except KafkaException as error:
            logger.debug("The id of the Kafka topic %s is not known: %s", self.topic, error)
            return None
        bits = given.get_most_significant_bits(), given.get_least_significant_bits()
        return str(given) if any(bits) else None

    @cached_property
    def _admin(self) -> "AdminClient":
        from confluent_kafka.admin import AdminClient

        given = {name: _text(value) for name, value in self.options.items()}
        # The consumer reports problems of the brokers.
        return AdminClient({**given, "bootstrap.servers": self.bootstrap, "log_level": 0})

    def partition(self, number: int, offset: int | None = None) -> "TopicPartition":
        """A partition of the topic as clients name it, perhaps with an offset."""
        from confluent_kafka import OFFSET_INVALID, TopicPartition

        return TopicPartition(self.topic, number, OFFSET_INVALID if offset is None else offset)

    @property
    def no_broker(self) -> str:
        """The sentence for a broker that does not answer."""
        return f"No Kafka broker answers at {self.bootstrap}: start it, or correct the address."

    def sentence(self, error: "KafkaError") -> str:
        """A sentence for a client's error, with what to do."""
        where, no_broker = f"at {self.bootstrap}", self.no_broker
        absent = f"There is no Kafka topic {self.topic} {where}: create it, or correct its name."
        login = (
            f"The Kafka broker {where} does not accept this worker's credentials:"
            " correct RETAIL_KAFKA_OPTIONS."
        )
        known = {
            "_ALL_BROKERS_DOWN": no_broker,
            "_TRANSPORT": no_broker,
            "_TIMED_OUT": no_broker,
            "_RESOLVE": no_broker,
            "_UNKNOWN_TOPIC": absent,
            "UNKNOWN_TOPIC_OR_PART": absent,
            "_AUTHENTICATION": login,
            "SASL_AUTHENTICATION_FAILED": login,
            "_SSL": f"TLS with the Kafka broker {where} fails:"
            " correct security.protocol and the certificates in RETAIL_KAFKA_OPTIONS.",
            "TOPIC_AUTHORIZATION_FAILED": f"The Kafka broker {where} does not let this"
            f" worker read the topic {self.topic}: allow its user to read and describe it.",
            "GROUP_AUTHORIZATION_FAILED": f"The Kafka broker {where} does not let this"
            f" worker into the group {self.group}: allow its user to read with it.",
        }
        return known.get(error.name()) or (
            f"Kafka {where}, topic {self.topic}: {self._without_secrets(error.str())}."
        )

    def partition_unavailable(self, number: int, reason: str) -> str:
        """The sentence for a partition whose ends cannot be found out, while others may answer."""
        return (
            f"Partition {number} of the Kafka topic {self.topic} at {self.bootstrap} cannot be read"
            f" ({self._without_secrets(reason)}): see that the broker that has it runs; it is tried"
            " again, and the others are read meanwhile."
        )

    def _without_secrets(self, text: str) -> str:
        for name, value in self.options.items():
            if _SECRET.search(name) and str(value):
                text = text.replace(str(value), "•••")
        return text


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
