"""Where a Kafka source goes on, and topics that are not what the ledger knows."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ClusterMetadata

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.ledgers.offsets import Offset, append
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.worker.sources.kafka import client as kafka_client
from retail_assets.worker.sources.kafka import source as kafka_source
from retail_assets.worker.sources.kafka import start_offsets as kafka_begin
from retail_assets.worker.sources.kafka import topic_identity as kafka_identity
from retail_assets.worker.sources.kafka.client import Topic as KafkaTopic
from retail_assets.worker.sources.kafka.start_offsets import StartOffsets
from retail_assets_tests.event_files import event
from retail_assets_tests.worker.sources.kafka.kafka_topics import (
    Alone,
    Topic,
    forgetful_topic,
    member,
    reading,
    rows,
    topic_of,
    wait_until,
    wait_until_taken,
)
from tools.broker import Broker, running_broker

pytestmark = pytest.mark.processes

RETRY_SECONDS = 0.2


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that join no group, and try again soon."""
    monkeypatch.setattr(kafka_source, "RETRY_SECONDS", RETRY_SECONDS)
    monkeypatch.setattr(kafka_source, "TROUBLE_SECONDS", 2 * RETRY_SECONDS)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[Topic]:
    # It never tells an id.
    monkeypatch.setattr(kafka_client, "ID_SECONDS", 0.1)
    with forgetful_topic("short") as topic:
        yield topic


def enter(lake: Lake, position: int, *parts: str) -> None:
    """Let the ledger of some partitions be at a position."""
    with lake.connect() as connection, lake.transaction(connection, "test"):
        connection.execute("DELETE FROM stream_offsets WHERE list_contains(?, part)", [list(parts)])
        append(connection, [Offset("kafka", part, position) for part in parts])


def topics(settings: Settings, name: str) -> list[tuple[str, int, bool]]:
    """Name, number and whether the id is known, of the topics in the ledger."""
    return rows(
        settings,
        "SELECT part, position, topic_id IS NOT NULL FROM stream_offsets"
        f" WHERE kind = 'topic' AND part = '{name}' ORDER BY position",
    )


def ingest_all(topic: Topic, settings: Settings, lines: int) -> None:
    """Ingest from where the lake is until it has so many lines of Kafka."""
    with member(topic.source(settings), settings):
        wait_until_taken(settings, lines)


def names(settings: Settings) -> list[tuple[str, int]]:
    return rows(
        settings,
        "SELECT source_name, count(*) FROM raw_events WHERE source = 'kafka' GROUP BY 1 ORDER BY 1",
    )


IDS = pytest.mark.parametrize("has_ids", [True, False])


@pytest.fixture
def without_ids(has_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that tell no ids, as those from before Kafka 2.8."""
    if not has_ids:
        monkeypatch.setattr(KafkaTopic, "id", lambda _: None)


@IDS
@pytest.mark.usefixtures("lake", "without_ids")
def test_a_topic_made_again_that_is_longer_than_before_is_read_from_its_beginning(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with running_broker() as forgetful:
        topic = topic_of(forgetful, "orders", partitions=2)
        topic.send([event(number) for number in range(3)], partition=1)
        ingest_all(topic, settings, 3)
        forgetful.restart()
        topic_of(forgetful, "orders", partitions=2)
        topic.send([event(2), *(event(100 + number) for number in range(4))], partition=1)
        for lines in (8, 9):
            ingest_all(topic, settings, lines)
            # Once it is known nothing is read again.
            topic.send([event(200)], partition=1)

    assert names(settings) == [("orders:1", 3), ("orders@2:1", 6)]
    assert rows(settings, "SELECT event_id FROM enriched_events ORDER BY ALL") == [
        (f"E{number}",) for number in (0, 1, 100, 101, 102, 103, 2, 200)
    ]
    [warning] = [record.message for record in caplog.records if "is not the one" in record.message]
    assert warning == (
        f"The Kafka topic orders at {topic.bootstrap} is not the one that the lake has read so far"
        " (it was made again, or this is another cluster): it is read from its beginning, as"
        " orders@2; what was read before counts as duplicate"
    )


@IDS
@pytest.mark.usefixtures("lake", "without_ids")
def test_each_cluster_has_its_own_positions(
    settings: Settings, broker: Broker, has_ids: bool
) -> None:
    name = f"both_{has_ids}"
    with running_broker() as second:
        one, other = topic_of(broker, name), topic_of(second, name)
        one.send([event(number) for number in range(3)])
        other.send([event(10 + number) for number in range(5)])
        ingest_all(one, settings, 3)
        ingest_all(other, settings, 8)
        one.send([event(4)])
        ingest_all(one, settings, 9)
        other.send([event(20)])
        ingest_all(other, settings, 10)

    assert names(settings) == [(f"{name}:0", 4), (f"{name}@2:0", 6)]
    assert topics(settings, name) == [(name, 1, has_ids), (name, 2, has_ids)]


def test_a_topic_that_is_made_again_meanwhile_is_read_from_its_beginning(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_identity, "CHECK_SECONDS", 0.1)
    with running_broker() as forgetful:
        topic = topic_of(forgetful, "meanwhile")
        topic.send(list("abc"))
        with reading(topic.source(settings)) as read:
            read.messages(3)
            forgetful.restart()
            topic_of(forgetful, "meanwhile")
            topic.send(list("defgh"))
            found: list[tuple[str, int, bytes]] = []
            while len([each for each in found if "@" in each[0]]) < 5:
                found += read.messages(1)

    assert [each for each in found if "@" in each[0]] == [
        ("meanwhile@2:0", number, letter.encode()) for number, letter in enumerate("defgh")
    ]


def test_the_topic_of_a_lake_from_before_is_known_again(settings: Settings, lake: Lake) -> None:
    """It has no id of the topic, but its last messages."""
    with running_broker() as forgetful:
        topic = topic_of(forgetful, "old", partitions=3)
        topic.send([event(1), None], partition=1)
        topic.send(["x" * 1_000_001], partition=2)
        ingest_all(topic, settings, 3)
        with lake.connect() as connection, lake.transaction(connection, "test"):
            connection.execute("DELETE FROM stream_offsets WHERE kind = 'topic'")
            connection.execute("UPDATE raw_events SET payload = '' WHERE defect = 'tombstone'")
            connection.execute("UPDATE raw_events SET payload = left(payload, 1000)")
        topic.send([event(2)], partition=1)
        ingest_all(topic, settings, 4)
    assert names(settings) == [("old:1", 3), ("old:2", 1)]
    assert topics(settings, "old") == [("old", 1, True)]


def test_a_topic_that_has_fewer_partitions_than_the_ledger_is_another_one(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "fewer", partitions=2)
    topic.send(["a"])
    enter(lake, 1, "fewer:2")

    with reading(topic.source(settings)) as read:
        assert read.messages(1) == [("fewer@2:0", 0, b"a")]


def test_the_same_topic_that_ends_before_the_ledger_is_refused(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "set_back", partitions=2)
    topic.send(["a", "b", "c"], partition=1)
    with reading(topic.source(settings)) as read:
        read.messages(3)
    enter(lake, 1000, "set_back:1")

    with pytest.raises(RetailAssetsError) as refused, reading(topic.source(settings)):
        pass

    # Tansu says where its last batch begins instead of where the partition ends.
    assert str(refused.value).replace("ends at 1,", "ends at 3,") == (
        f"Partition 1 of the Kafka topic set_back at {broker.bootstrap} ends at 3, but the lake has"
        " ingested it up to 1000: the brokers have lost messages, or their topic was set back;"
        " bring them back, or make the topic again, then it is read from its beginning."
    )


def test_the_ledger_of_another_topic_does_not_matter(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "mine")
    topic.send(["a"])
    enter(lake, 1000, "mine.too:0")

    with reading(topic.source(settings)) as read:
        assert read.messages(1) == [("mine:0", 0, b"a")]


def test_a_topic_without_id_that_ends_before_the_ledger_is_another_one(
    forgetful: Topic, settings: Settings, lake: Lake
) -> None:
    forgetful.send(["a"] * 5)
    enter(lake, 6, "short:0")

    with reading(forgetful.source(settings)) as read:
        assert read.next().source_name == "short@2:0"


def test_a_partition_whose_ledger_went_ahead_is_refused_and_the_others_go_on(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "ahead", partitions=2)
    topic.send(["a"], partition=0)
    topic.send(["b"], partition=1)
    source = topic.source(settings)

    with reading(source) as read:
        read.messages(2)
        enter(lake, 6, "ahead:0")
        # As after a rebalance.
        source._out_of_range.add(0)
        wait_until(source.problem)
        problem = source.problem()
        topic.send(["c"], partition=1)
        assert read.messages(1) == [("ahead:1", 1, b"c")]

    assert problem is not None
    assert problem.startswith("Partition 0 of the Kafka topic ahead")


class WithoutLeader(Alone):
    """A client of a cluster in which the brokers of some partitions are unavailable."""

    unavailable: frozenset[int] = frozenset()
    is_known = True
    """Whether the other brokers have noticed."""

    def list_topics(self, *arguments: Any, **options: Any) -> ClusterMetadata:
        found = super().list_topics(*arguments, **options)
        for topic in found.topics.values():
            for number in self.unavailable & topic.partitions.keys() if self.is_known else ():
                topic.partitions[number].leader = -1
        return found

    def get_watermark_offsets(
        self, partition: TopicPartition, *, timeout: float = 0, cached: bool = False
    ) -> tuple[int, int]:
        if partition.partition in self.unavailable and not cached:
            assert not self.is_known, "nothing should wait for a partition without a leader"
            time.sleep(timeout)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        found: tuple[int, int] = super().get_watermark_offsets(
            partition, timeout=timeout, cached=cached
        )
        return found


@pytest.fixture
def unavailable_partitions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make partitions unavailable from now on; none: make all available again."""
    monkeypatch.setattr(confluent_kafka, "Consumer", WithoutLeader)
    monkeypatch.setattr(kafka_begin, "ANSWER_SECONDS", 0.2)

    def let(*numbers: int, is_known: bool = True) -> None:
        monkeypatch.setattr(WithoutLeader, "unavailable", frozenset(numbers))
        monkeypatch.setattr(WithoutLeader, "is_known", is_known)

    return let


@pytest.mark.parametrize(
    ("is_known", "reason"), [(True, "it has no leader"), (False, "Local: Timed out")]
)
def test_a_partition_without_a_leader_waits_and_the_others_are_read(
    is_known: bool,
    reason: str,
    broker: Broker,
    settings: Settings,
    lake: Lake,
    unavailable_partitions: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = topic_of(broker, f"leaderless_{is_known}", partitions=3)
    for number in range(3):
        topic.send(["a"], partition=number)
        topic.send(["b"], partition=number)
    enter(lake, 1, *(f"{topic.name}:{number}" for number in range(2)))
    unavailable_partitions(0, is_known=is_known)

    with reading(topic.source(settings)) as read:
        others = sorted(read.messages(3))
        wait_until(read.source.problem)
        problem = read.source.problem()
        for letter in "cd":
            # It is tried again meanwhile.
            threading.Event().wait(1.2 * RETRY_SECONDS)
            topic.send([letter], partition=1)
            assert read.messages(1)[0][2] == letter.encode()
        unavailable_partitions()
        late = read.messages(1)
        wait_until(lambda: read.source.problem() is None)

    assert others == [
        (f"{topic.name}:1", 1, b"b"),
        (f"{topic.name}:2", 0, b"a"),
        (f"{topic.name}:2", 1, b"b"),
    ]
    assert late == [(f"{topic.name}:0", 1, b"b")]
    assert problem == (
        f"Partition 0 of the Kafka topic {topic.name} at {broker.bootstrap} cannot be read"
        f" ({reason}): see that the broker that has it runs; it is tried again, and the others are"
        " read meanwhile."
    )
    assert [record.message for record in caplog.records].count(problem) == 1


def test_partitions_that_do_not_answer_delay_the_others_no_longer_than_one_may_take(
    broker: Broker, settings: Settings, lake: Lake, unavailable_partitions: Callable[..., None]
) -> None:
    name = "slow"
    source = topic_of(broker, name, partitions=6).source(settings)
    enter(lake, 0, *(f"{name}:{number}" for number in range(6)))
    unavailable_partitions(0, 1, 2, 3, is_known=False)
    start_offsets, consumer = StartOffsets(lake, source._topic), source._topic.consumer()

    found = [start_offsets.find(consumer, range(6)) for _ in range(5)]

    consumer.close()
    assert [(list(each.unavailable), list(each.found)) for each in found] == [
        ([0], []),
        ([1], []),
        ([2], []),
        ([3], []),
        ([0], [4, 5]),
    ]


def test_while_the_lake_cannot_be_read_assigned_partitions_are_read(
    broker: Broker, settings: Settings, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    topic = topic_of(broker, "unreadable", partitions=2)
    for number in range(2):
        topic.send(["a"], partition=number)
    catalog = Path(lake.catalog)

    with reading(topic.source(settings)) as read:
        read.messages(2)
        sound = catalog.rename(catalog.with_suffix(".sound"))
        catalog.write_bytes(b"no database" * 1_000)
        # As after a rebalance.
        read.source._out_of_range.add(0)
        wait_until(read.source.problem)
        for letter in "bc":
            topic.send([letter], partition=1)
            assert read.messages(1)[0][2] == letter.encode()
            threading.Event().wait(1.2 * RETRY_SECONDS)
        assert read.source.problem()

        sound.replace(catalog)
        topic.send(["d"], partition=0)
        wait_until(lambda: read.source.problem() is None)
        assert read.messages(1)[0][0] == "unreadable:0"


def test_messages_that_were_removed_before_they_were_read_are_counted_and_told(
    forgetful: Topic, settings: Settings, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    forgetful.send([b"%02d" % number + b"x" * 500_000 for number in range(30)])
    enter(lake, 3, "short:0")

    with caplog.at_level(logging.ERROR), reading(forgetful.source(settings)) as read:
        received = read.next()
        first = received.positions[0]
        lost = read.source.metrics()["kafka_lost"]

    assert first > 3
    assert received.payloads[0].startswith(b"%02d" % first)
    assert lost == first - 3
    assert f"{first - 3} messages of partition 0 of the Kafka topic short are lost" in caplog.text
