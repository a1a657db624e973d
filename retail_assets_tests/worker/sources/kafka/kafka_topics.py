"""Topics of a real broker, and members of a group that read them into a lake or an inbox."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.kafka.source import KafkaSource
from retail_assets_tests.faults.boundaries import Boundaries
from tools.broker import HANG_SECONDS, QUICK_GROUP, Broker


def wait_until(condition: Callable[[], Any], *, every_seconds: float = 0.01) -> None:
    """Wait until something holds; fails instead of waiting for ever."""
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(every_seconds)


@dataclass(frozen=True)
class Topic:
    """A topic, and the brokers that have it."""

    bootstrap: str
    name: str
    group_options: Mapping[str, int] = field(default_factory=lambda: QUICK_GROUP)

    def send(
        self,
        values: Sequence[bytes | str | None],
        *,
        partition: int = 0,
        timestamp: int = 0,
        key: bytes | None = None,
    ) -> None:
        """Send messages and wait until the broker has them; timestamps 0: now."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "message.max.bytes": 20 << 20})
        refused: list[Any] = []
        for value in values:
            producer.produce(
                self.name,
                value=value,
                key=key,
                partition=partition,
                timestamp=timestamp,
                on_delivery=lambda error, _: error and refused.append(error),
            )
        assert producer.flush(HANG_SECONDS) == 0
        assert not refused

    def source(self, settings: Settings, *, group: str = "workers") -> KafkaSource:
        """A member of a group that is not started yet."""
        adapted = settings.model_copy(
            update={"kafka_options": {**self.group_options, **settings.kafka_options}}
        )
        return KafkaSource(
            adapted,
            Lake.from_settings(settings),
            bootstrap=self.bootstrap,
            topic=self.name,
            group=group,
        )


class Alone(Consumer):
    """A client that has all partitions of its topic at once: a group waits a second for members."""

    def subscribe(self, topics: list[str], **heard: Any) -> None:
        [topic] = self.list_topics(topics[0], timeout=HANG_SECONDS).topics.values()
        partitions = [TopicPartition(topics[0], number) for number in topic.partitions]
        heard["on_assign"](self, partitions)


def topic_of(broker: Broker, name: str, partitions: int = 1) -> Topic:
    """Create a topic."""
    broker.create_topic(name, partitions)
    return Topic(broker.bootstrap, name)


@contextmanager
def forgetful_topic(name: str) -> Iterator[Topic]:
    """A topic of four partitions that keep only 5 MB each: of the broker of librdkafka's own tests.

    Other than Tansu it removes old messages and says which offsets are out of range. The first
    member of a group waits for others for three seconds, whatever its session.
    """
    cluster = Producer(
        {"test.mock.num.brokers": 1, "bootstrap.servers": "replaced", "log_level": 0}
    )
    [broker] = cluster.list_topics(timeout=HANG_SECONDS).brokers.values()
    patient = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 300}
    yield Topic(f"{broker.host}:{broker.port}", name, patient)
    del cluster  # it was kept for as long as the cluster is needed


@dataclass
class Reading:
    """A source that is started, and its inbox."""

    source: KafkaSource
    inbox: Inbox = field(default_factory=Inbox)

    def next(self) -> Received:
        """Wait for the next that is put into the inbox."""
        batch: list[Received] = []

        def came() -> bool:
            batch.extend(self.inbox.take(max_events=1, linger_seconds=0, timeout_seconds=0.1))
            return bool(batch)

        wait_until(came)
        return batch[0]

    def nothing_comes(self, seconds: float = 0.3) -> bool:
        """Whether nothing is put into the inbox for a while."""
        return not self.inbox.take(max_events=1, linger_seconds=0, timeout_seconds=seconds)

    def messages(self, number: int) -> list[tuple[str, int, bytes]]:
        """Wait for so many messages, each durable at once: (source name, position, payload)."""
        found: list[tuple[str, int, bytes]] = []
        while len(found) < number:
            received = self.next()
            found += [
                (received.source_name, position, payload)
                for position, payload in zip(received.positions, received.payloads, strict=True)
            ]
            received.done()
        return found


@contextmanager
def reading(source: KafkaSource, inbox: Inbox | None = None) -> Iterator[Reading]:
    """Start a source, and let go of it in the end."""
    read = Reading(source, inbox or Inbox())
    source.start(read.inbox)
    try:
        yield read
    finally:
        source.stop()
        source.close()


@contextmanager
def member(source: KafkaSource, settings: Settings, *, max_events: int = 100) -> Iterator[None]:
    """A member of the group that takes everything into the lake, in a thread of its own."""
    lake = Lake.from_settings(settings)
    over = threading.Event()

    def run(inbox: Inbox) -> None:
        with lake.connect() as connection:
            session = EventSession(lake, connection)
            while not over.is_set() or inbox.events:
                batch = inbox.take(max_events=max_events, linger_seconds=0, timeout_seconds=0.05)
                if batch:
                    ingest(session, batch)
                for received in batch:
                    received.done()

    inbox = Inbox()
    thread = threading.Thread(target=run, args=[inbox])
    source.start(inbox)
    thread.start()
    try:
        yield
    finally:
        source.stop()
        over.set()
        thread.join()
        source.close()


def run_member(
    values: dict[str, Any],
    topic: Topic,
    mark: str,
    partitions: int,
    lines: int,
    kill_at: int | None,
) -> None:
    """A member in a process of its own, until so many lines are in the lake.

    It makes the file `mark` once it has so many partitions; it is killed at a commit boundary.
    """
    Boundaries(kill_at).watch()
    settings = Settings(**values)
    source = topic.source(settings)
    with member(source, settings):
        wait_until(lambda: source.metrics()["kafka_partitions"] == partitions)
        Path(mark).touch()
        wait_until_taken(settings, lines)


def wait_until_taken(settings: Settings, lines: int) -> None:
    """Wait until the ledger has exactly so many lines of all partitions."""
    # One connection, and few looks: they would take the time of those that are waited for.
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        total = "SELECT coalesce(sum(lines), 0) FROM stream_offsets"
        wait_until(
            lambda: (connection.execute(total).fetchone() or (0,))[0] == lines, every_seconds=0.1
        )


def rows(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    """What a query finds in the lake."""
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return connection.execute(sql).fetchall()
