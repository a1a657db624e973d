"""Messages of a Kafka topic on their way to the lake: a real broker, members that come and go."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from retail_assets.ingest.messages.payloads import original_bytes
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.kafka import source as kafka
from retail_assets_tests.event_files import event
from retail_assets_tests.processes import finish, start
from retail_assets_tests.worker.sources.kafka.kafka_topics import (
    member,
    reading,
    rows,
    run_member,
    topic_of,
    wait_until,
    wait_until_taken,
)
from tools.broker import Broker, durable_broker, running_broker

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


def numbered(first: int, last: int) -> list[str]:
    return [event(number) for number in range(first, last)]


def test_messages_come_with_their_offsets_in_the_order_of_their_partition(
    broker: Broker, settings: Settings
) -> None:
    topic = topic_of(broker, "ordered", partitions=3)
    for number in range(3):
        topic.send([f"{number} {offset}" for offset in range(500)], partition=number)

    with reading(topic.source(settings)) as read:
        messages = read.messages(1500)

    for number in range(3):
        assert [message for message in messages if message[0] == f"ordered:{number}"] == [
            (f"ordered:{number}", offset, f"{number} {offset}".encode()) for offset in range(500)
        ]


@pytest.mark.usefixtures("alone")
def test_what_is_received_is_of_kafka_and_was_offered_when_it_was_sent(
    broker: Broker, settings: Settings
) -> None:
    topic = topic_of(broker, "offered")
    topic.send(["late", "later"], timestamp=1_700_000_000_000)

    with reading(topic.source(settings)) as read:
        received = read.next()

    assert (received.source, received.offered_at) == ("kafka", 1_700_000_000)


@pytest.mark.usefixtures("alone")
def test_every_message_is_in_the_lake_whole_and_what_is_no_event_is_one_dead_letter(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    one = event(1).encode()
    odd = {
        "several_events": b"[" + one + b"," + event(2).encode() + b"]",
        "utf16": event(3).encode("utf-16"),
        "binary_frame": b"\0\0\0\0\x07\x02\x06abc",
        "not_utf8": rb"\x41" + b"\xff",
        "line_too_long": event(4, note="x" * 1_200_000).encode(),
    }
    topic = topic_of(broker, "odd")
    topic.send([one, *odd.values(), b"\0\0\0\0\x07" + event(5).encode()])
    topic.send([None], key=b"O1")

    with member(topic.source(settings), settings):
        wait_until_taken(settings, 8)

    assert rows(settings, "SELECT event_id FROM enriched_events ORDER BY ALL") == [("E1",), ("E5",)]
    letters = rows(settings, "SELECT reason, payload FROM dead_letter_events ORDER BY position")
    assert [reason for reason, _ in letters] == [*odd, "tombstone"]
    assert [original_bytes(text) for _, text in letters] == [
        *odd.values(),
        b'{"key": "O1", "value": null}',
    ]


def test_a_source_goes_on_where_the_ledger_is_whatever_its_group(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "resumed")
    topic.send(numbered(0, 100))
    with member(topic.source(settings, group="first"), settings):
        wait_until_taken(settings, 100)
    topic.send(numbered(100, 103))

    with reading(topic.source(settings, group="second")) as read:
        messages = read.messages(3)

    assert [position for _, position, _ in messages] == [100, 101, 102]


@pytest.mark.usefixtures("alone")
def test_the_days_of_messages_do_not_depend_on_where_a_worker_was_restarted(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    dated = settings.model_copy(update={"start_date": date(2024, 1, 1)})
    moments = [
        "2024-02-01T23:59:58",
        "2024-02-02T00:00:01",
        # Of a producer whose clock is slow.
        "2024-02-01T23:59:59",
        "2024-02-03T09:00:00",
        "2024-02-02T12:00:00",
    ]
    restarts = {"at_once": [5], "restarted": [2, 4, 5]}
    for before, (name, ends) in enumerate(restarts.items()):
        topic = topic_of(broker, name, partitions=2)
        for first, end in pairwise([0, *ends]):
            for number in range(first, end):
                at = datetime.fromisoformat(f"{moments[number]}+00:00")
                milliseconds = int(at.timestamp() * 1000)
                topic.send([event(number)], partition=1, timestamp=milliseconds)
            lines = before * len(moments) + end
            with member(topic.source(dated, group=name), dated):
                wait_until_taken(settings, lines)

    days = [
        rows(
            settings,
            "SELECT position, day(received_date) FROM raw_events"
            f" WHERE source_name = '{name}:1' ORDER BY ALL",
        )
        for name in restarts
    ]
    assert days[0] == [(0, 1), (1, 2), (2, 2), (3, 3), (4, 3)]
    assert days[1] == days[0]


@pytest.mark.usefixtures("alone")
def test_what_was_not_durable_is_read_again(broker: Broker, settings: Settings, lake: Lake) -> None:
    topic = topic_of(broker, "again")
    topic.send(["one", "two"])
    with reading(topic.source(settings)) as read:
        before = read.next()

    with reading(topic.source(settings)) as read:
        assert read.next() == before


@pytest.mark.usefixtures("alone")
def test_one_chunk_of_a_partition_is_under_way_at_a_time_until_it_is_durable(
    broker: Broker, settings: Settings
) -> None:
    # Were the next one ingested while this one is refused, the ledger would pass over this one.
    topic = topic_of(broker, "one_by_one")
    topic.send(["one", "two"])

    with reading(topic.source(settings)) as read:
        refused = read.next()
        topic.send(["three"])
        assert read.nothing_comes()

        refused.failed("the disk is full")
        wait_until(read.source.problem)
        assert read.source.problem() == "the disk is full"
        again = read.next()
        assert again.payloads[:2] == [b"one", b"two"]
        again.done()

        assert again.payloads[2:] or read.next().payloads == [b"three"]
        wait_until(lambda: read.source.problem() is None)


@pytest.mark.usefixtures("alone")
def test_the_partitions_are_put_in_together_lest_each_be_a_batch(
    broker: Broker, settings: Settings
) -> None:
    topic = topic_of(broker, "together", partitions=2)
    topic.send(["one"], partition=0)

    with reading(topic.source(settings)) as read:
        first = read.next()
        for number in range(2):
            topic.send(["two"], partition=number)
        assert read.nothing_comes()

        first.done()
        wait_until(lambda: read.inbox.events)
        batch = read.inbox.take(max_events=10, linger_seconds=0, timeout_seconds=0)

    assert {received.source_name for received in batch} == {"together:0", "together:1"}


def test_a_full_inbox_stops_reading_and_nothing_is_lost(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "WAITING_BYTES", 100_000)
    monkeypatch.setattr(kafka, "READ_AT_ONCE", 100)
    topic = topic_of(broker, "full", partitions=2)
    for number in range(2):
        topic.send([b"x" * 1000] * 300, partition=number)
    may_be_silent = settings.model_copy(update={"kafka_options": {"max.poll.interval.ms": 1000}})

    with reading(topic.source(may_be_silent), Inbox(max_bytes=1)) as read:
        wait_until(lambda: read.source._paused)
        # A member that did not poll meanwhile would lose its partitions, and read them twice.
        threading.Event().wait(2)
        waiting = sum(queue.weight for queue in read.source._queues.values())
        messages = read.messages(600)

    assert waiting < 100_000 + 100 * 1200
    for number in range(2):
        assert [offset for name, offset, _ in messages if name == f"full:{number}"] == list(
            range(300)
        )


@pytest.mark.usefixtures("alone")
def test_poison_is_dead_letters_and_the_events_around_it_count(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "poison")
    topic.send(
        [
            event(1),
            b"\xff\xfe\x00",
            None,
            b"",
            b"[" * 100_000,
            b"x" * (10 << 20),
            "line\nbreak",
            event(2),
        ]
    )

    with member(topic.source(settings), settings):
        wait_until_taken(settings, 8)

    found = rows(
        settings, "SELECT position, reason, length(payload) FROM dead_letter_events ORDER BY 1"
    )
    assert [position for position, _, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [reason for _, reason, _ in found[1:3]] == ["tombstone", "empty_line"]
    assert found[4] == (5, "line_too_long", 10 << 20)
    assert rows(settings, "SELECT event_id FROM enriched_events ORDER BY 1") == [("E1",), ("E2",)]


def test_the_brokers_own_tools_are_told_how_far_the_lake_has_come(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "told")
    topic.send(numbered(0, 7))
    with member(topic.source(settings, group="told"), settings):
        wait_until_taken(settings, 7)

    reader = topic.source(settings, group="told")._topic.consumer()
    committed = reader.committed([TopicPartition("told", 0)], timeout=10)
    reader.close()

    assert [place.offset for place in committed] == [7]


@pytest.mark.usefixtures("alone")
def test_the_lag_is_what_is_not_in_the_lake_yet(broker: Broker, settings: Settings) -> None:
    topic = topic_of(broker, "lag", partitions=2)
    topic.send(["a"] * 5, partition=0)
    topic.send(["b"] * 6, partition=1)

    with reading(topic.source(settings)) as read:
        wait_until(lambda: read.source.metrics()["kafka_lag"] == 11)
        assert read.source.metrics()["kafka_partitions"] == 2
        read.messages(11)
        wait_until(lambda: read.source.metrics()["kafka_lag"] == 0)


@pytest.mark.slow
def test_members_share_the_partitions_and_one_that_leaves_is_taken_over(
    broker: Broker, settings: Settings, lake: Lake
) -> None:
    topic = topic_of(broker, "shared", partitions=4)
    with ExitStack() as stay:
        staying, leaving = topic.source(settings), topic.source(settings)
        stay.enter_context(member(staying, settings))
        with member(leaving, settings):
            for number in range(4):
                topic.send(numbered(1000 * number, 1000 * number + 100), partition=number)
            wait_until(
                lambda: (
                    [each.metrics()["kafka_partitions"] for each in (staying, leaving)] == [2, 2]
                )
            )
            for number in range(4):
                topic.send(numbered(1000 * number + 100, 1000 * number + 160), partition=number)
        wait_until(lambda: staying.metrics()["kafka_partitions"] == 4)
        for number in range(4):
            topic.send(numbered(1000 * number + 160, 1000 * number + 180), partition=number)
        wait_until_taken(settings, 720)

    assert_each_once(settings, "shared", 180)


@pytest.mark.slow
def test_a_member_that_is_killed_in_a_transaction_leaves_nothing_lost_or_double(
    broker: Broker, settings: Settings, lake: Lake, tmp_path: Path
) -> None:
    topic = topic_of(broker, "killed", partitions=4)
    before_second_commit = 4
    marks = [tmp_path / "first", tmp_path / "second"]
    members = [
        start(run_member, settings.model_dump(), topic, str(mark), 2, 800, kill_at)
        for mark, kill_at in zip(marks, [None, before_second_commit], strict=True)
    ]
    wait_until(lambda: all(mark.exists() for mark in marks))

    for first in range(0, 200, 50):
        for number in range(4):
            begin = 1000 * number + first
            topic.send(numbered(begin, begin + 50), partition=number)

    assert finish(members) == [0, -signal.SIGKILL]
    assert_each_once(settings, "killed", 200)


@pytest.mark.slow
def test_a_broker_that_was_away_is_picked_up_again(
    settings: Settings, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with durable_broker() as own:
        topic = topic_of(own, "restarted", partitions=2)
        topic.send(numbered(0, 100))
        source = topic.source(settings)
        with member(source, settings):
            wait_until_taken(settings, 100)
            own.kill()
            wait_until(source.problem)
            assert source.problem() == (
                f"No Kafka broker answers at {own.bootstrap}: start it, or correct the address."
            )
            own.start()
            topic.send(numbered(1000, 1100), partition=1)
            topic.send(numbered(100, 200))
            wait_until_taken(settings, 300)
            wait_until(lambda: source.problem() is None)

    assert rows(settings, "SELECT source_name, position FROM raw_events ORDER BY ALL") == [
        *(("restarted:0", offset) for offset in range(200)),
        *(("restarted:1", offset) for offset in range(100)),
    ]


def assert_each_once(settings: Settings, name: str, messages: int) -> None:
    """Each of so many messages of the four partitions is there once, and so is its event."""
    assert rows(settings, "SELECT source_name, position FROM raw_events ORDER BY ALL") == [
        (f"{name}:{number}", offset) for number in range(4) for offset in range(messages)
    ]
    assert rows(settings, "SELECT count(*), count(DISTINCT event_id) FROM enriched_events") == [
        (4 * messages, 4 * messages)
    ]
    assert rows(
        settings,
        "SELECT part, max(position), sum(lines) FROM stream_offsets WHERE kind = 'source'"
        " GROUP BY part ORDER BY part",
    ) == [(f"{name}:{number}", messages, messages) for number in range(4)]
