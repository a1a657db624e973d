"""Where a Kafka source goes on, and topics that are not what the ledger knows."""

import logging
from collections.abc import Iterator

import pytest

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.offsets import Offset, append
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.broker import Broker, running_broker
from retail_assets_tests.ingest.kafka_topics import (
    Topic,
    forgetful_topic,
    reading,
    topic_of,
    wait_until,
)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def forgetful() -> Iterator[Topic]:
    with forgetful_topic("short") as topic:
        yield topic


def enter(lake: Lake, part: str, position: int) -> None:
    """Let the ledger be at a position."""
    with lake.connect() as connection, lake.transaction(connection, "test"):
        connection.execute("DELETE FROM stream_offsets WHERE part = ?", [part])
        append(connection, [Offset("kafka", part, position)])


def test_a_topic_that_ends_before_the_ledger_is_refused(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "anew", partitions=2)
    topic.send(["a", "b", "c"], partition=1)
    enter(lake, "anew:1", 1000)

    with pytest.raises(RetailAssetsError) as refused, reading(topic.source(settings)):
        pass

    # Tansu says where its last batch begins instead of where the partition ends.
    assert str(refused.value).replace("ends at 1,", "ends at 3,") == (
        f"Partition 1 of the Kafka topic anew at {broker.bootstrap} ends at 3, but the lake has"
        " taken it in up to 1000: the topic was made anew, or this is another cluster; go back to"
        " the one before, or give the topic another name."
    )


def test_a_topic_that_has_fewer_partitions_than_the_ledger_is_refused(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "fewer", partitions=2)
    enter(lake, "fewer:2", 1)

    with (
        pytest.raises(RetailAssetsError, match=r"Partition 2 .* ends at 0, but .* up to 1:"),
        reading(topic.source(settings)),
    ):
        pass


def test_the_ledger_of_another_topic_does_not_matter(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "mine")
    topic.send(["a"])
    enter(lake, "mine.too:0", 1000)

    with reading(topic.source(settings)) as read:
        assert read.messages(1) == [("mine:0", 0, b"a")]


def test_offsets_out_of_range_are_refused_at_the_start(
    forgetful: Topic, settings: Settings, lake: Lake
) -> None:
    forgetful.send(["a"] * 5)
    enter(lake, "short:0", 6)

    with (
        pytest.raises(RetailAssetsError, match=r"short .* ends at 5, but .* up to 6:"),
        reading(forgetful.source(settings)),
    ):
        pass


def test_a_partition_whose_ledger_went_ahead_is_refused_and_the_others_go_on(
    forgetful: Topic, settings: Settings, lake: Lake
) -> None:
    forgetful.send(["a"], partition=0)
    forgetful.send(["b"], partition=1)
    source = forgetful.source(settings)

    with reading(source) as read:
        read.messages(2)
        enter(lake, "short:0", 6)
        # As after a rebalance.
        source._out_of_range.add(0)
        wait_until(source.problem)
        problem = source.problem()
        forgetful.send(["c"], partition=1)
        assert read.messages(1) == [("short:1", 1, b"c")]

    assert problem is not None
    assert problem.startswith("Partition 0 of the Kafka topic short")


def test_messages_that_were_removed_before_they_were_read_are_counted_and_told(
    forgetful: Topic, settings: Settings, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    forgetful.send([b"%02d" % number + b"x" * 500_000 for number in range(30)])
    enter(lake, "short:0", 3)

    with caplog.at_level(logging.ERROR), reading(forgetful.source(settings)) as read:
        received = read.next()
        first = received.positions[0]
        lost = read.source.metrics()["kafka_lost"]

    assert first > 3
    assert received.payloads[0].startswith(b"%02d" % first)
    assert lost == first - 3
    assert f"{first - 3} messages of partition 0 of the Kafka topic short are lost" in caplog.text
