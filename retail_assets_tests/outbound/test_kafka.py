"""Publishing on to Kafka: what a topic has after rounds, restarts and a broker that went away."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.errors import UsageError
from retail_assets.ingest.ledgers.offsets import consumer_offset, move_consumer
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.outbound import kafka as publishing
from retail_assets.outbound.kafka import Produced, ProduceError, TopicProducer, outbound_topics
from retail_assets.outbound.strict_json import strict
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader, event
from tools.broker import Broker, durable_broker, running_broker

pytestmark = pytest.mark.processes

TOPIC = "enriched"
ALERTS = "alerts"
DAY = "2026-10-12"
OFFSET = "publish_events"
END = b"end of the test"


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker with both topics, empty."""
    with running_broker() as broker:
        broker.create_topic(TOPIC)
        broker.create_topic(ALERTS)
        yield broker


@pytest.fixture
def loader(settings: Settings, lake: Lake, broker: Broker) -> Iterator[EventLoader]:
    with EventLoader.open(from_beginning(settings, broker)) as loader:
        yield loader


def from_beginning(settings: Settings, broker: Broker, **changed: Any) -> Settings:
    update = {
        "publish_bootstrap": broker.bootstrap,
        "publish_events_topic": TOPIC,
        "publish_alerts_topic": ALERTS,
        "publish_from": "beginning",
    }
    return settings.model_copy(update=update | changed)


def producer(loader: EventLoader, name: str = OFFSET, **changed: Any) -> TopicProducer:
    settings = loader.settings.model_copy(update=changed)
    (found,) = [each for each in outbound_topics(settings) if each.name == name]
    return TopicProducer(settings, found)


def produce(loader: EventLoader, name: str = OFFSET, **changed: Any) -> Produced | None:
    """One round of a producer that has just started."""
    started = producer(loader, name, **changed)
    try:
        return started.produce(loader.lake, loader.connection)
    finally:
        started.close()


def offset(loader: EventLoader) -> int | None:
    return consumer_offset(loader.connection, OFFSET)


def messages(broker: Broker, topic: str = TOPIC) -> list[tuple[str, str, dict[str, Any] | None]]:
    """The key, the change and the value of every message of a topic, in its order."""
    # The broker's own word on where a topic ends lags behind.
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic, key=END)
    assert producer.flush(10) == 0
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "tests"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = []
    try:
        while True:
            (message,) = consumer.consume(1, timeout=10)
            key, value, headers = message.key(), message.value(), dict(message.headers() or ())
            assert key is not None
            if key == END:
                return found
            change = headers["change"].decode()
            found.append((key.decode(), change, None if value is None else strict_json(value)))
    finally:
        consumer.close()


def strict_json(text: bytes | str) -> Any:
    """Read JSON as its strictest readers do."""

    def of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), f"a name stands twice: {pairs}"
        return dict(pairs)

    def number(digits: str) -> float:
        assert math.isfinite(float(digits)), f"no double holds {digits}"
        return float(digits)

    return json.loads(text, parse_constant=number, parse_float=number, object_pairs_hook=of_pairs)


def changes(broker: Broker) -> list[tuple[str, str]]:
    return [(key, change) for key, change, _ in messages(broker)]


def test_an_event_is_sent_with_all_that_is_known_of_it(loader: EventLoader, broker: Broker) -> None:
    loader.write(
        f"{DAY}/a.jsonl", [event(1, event_timestamp="2026-10-12T10:30:00+01:00", gift={"to": "x"})]
    )
    loader.ingest()
    produce(loader)
    ((key, change, value),) = messages(broker)
    assert (key, change) == ("E1", "snapshot")
    assert value is not None
    for time in ("processed_at", "received_at"):
        assert value.pop(time).endswith("Z")
    assert value == {
        "received_date": DAY,
        "event_id": "E1",
        "order_id": "O1",
        "customer_id": "C1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": 10.0,
        "quantity": None,
        "event_timestamp": "2026-10-12T09:30:00.000000Z",
        "order_date": DAY,
        "value_tier": "low",
        "product_name": "unknown",
        "product_category": "unknown",
        "customer_segment": "unknown",
        "home_region": "unknown",
        "lines": None,
        "extra": {"gift": {"to": "x"}},
        "source": "file",
        "source_name": f"{DAY}/a.jsonl",
        "version": 1,
        "position": 1,
    }


def test_the_lines_of_an_event_are_a_list_and_have_alerts_of_their_own(
    loader: EventLoader, broker: Broker
) -> None:
    lines = [
        {"product_id": product, "quantity": 1, "order_value_gbp": 5, "odd": [1]}
        for product in ("P1", "P2")
    ]
    loader.write(f"{DAY}/a.jsonl", [event(1, lines=lines)])
    loader.ingest()
    produce(loader)
    ((_, _, value),) = messages(broker)
    assert value is not None
    assert value["lines"] == [
        {
            "line_number": number,
            "product_id": product,
            "quantity": 1,
            "order_value_gbp": 5,
            "extra": {"odd": [1]},
        }
        for number, product in ((1, "P1"), (2, "P2"))
    ]
    with loader.lake.transaction(loader.connection, "alerts"):
        loader.connection.execute(
            "INSERT INTO lake.stock_alerts BY NAME SELECT 'E1' AS event_id, unnest([NULL, 2, 3])"
            " AS line_number, 'P1' AS product_id, 'O1' AS order_id, now() AS crossed_at,"
            " 1 AS stock, now() AS updated_at"
        )
    produce(loader, "publish_alerts")
    assert sorted(key for key, *_ in messages(broker, ALERTS)) == [
        "stock_alerts:E1",
        "stock_alerts:E1:2",
        "stock_alerts:E1:3",
    ]


def test_what_is_sent_is_strict_json(loader: EventLoader, broker: Broker) -> None:
    odd = (
        '{"a": NaN, "b": [-Infinity, 1e400, 1e5], "c": {"b": 1, "b": 2},'
        ' "d": 1234567890123456789012}'
    )
    loader.write(f"{DAY}/a.jsonl", [event(1).replace("}", f', "odd": {odd}}}')])
    loader.ingest()
    produce(loader)
    ((_, _, value),) = messages(broker)
    assert value is not None
    assert value["extra"] == {
        "odd": {
            "a": "NaN",
            "b": ["-Infinity", "1e400", 1e5],
            "c": {"b": 1, "b#2": 2},
            "d": 1234567890123456789012,
        }
    }


NAMES = st.sampled_from(["a", "b", "b#2", "b#3", ""]) | st.text(max_size=3)
JSON = st.recursive(
    st.sampled_from(
        [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1E999",
            "1.50",
            "1e5",
            "-0",
            "7" * 5_000,
            "null",
        ]
    )
    | st.text(max_size=5).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(NAMES.map(json.dumps), inner), max_size=5).map(
            lambda pairs: f"{{{', '.join(f'{name}: {value}' for name, value in pairs)}}}"
        )
    ),
    max_leaves=20,
)


def test_a_name_that_stands_again_leaves_the_others_theirs() -> None:
    assert strict('{"b":1,"b":2,"b#2":3}') == '{"b":1,"b#3":2,"b#2":3}'
    assert strict('{"b#2":1,"b":2,"b":3}') == '{"b#2":1,"b":2,"b#3":3}'


@given(JSON)
def test_strict_json_leaves_nothing_out_and_changes_nothing_that_is_strict(text: str) -> None:
    def leaves(value: Any) -> list[str]:
        if isinstance(value, Pairs):
            return [leaf for _, inner in value for leaf in leaves(inner)]
        if isinstance(value, list):
            return [leaf for inner in value for leaf in leaves(inner)]
        return [str(value)]

    as_text = {"parse_constant": str, "parse_float": str, "parse_int": str}
    read = partial(json.loads, object_pairs_hook=Pairs, **as_text)
    found = strict(text)
    assert leaves(read(found)) == leaves(read(text))
    with suppress(ValueError):  # a number of more digits than Python makes an int of
        strict_json(found)
    assert strict(found) == found
    try:
        strict_json(text)
    except (AssertionError, ValueError):
        return
    assert found == text


class Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object, as they stand there."""


def test_each_round_sends_what_came_since_the_last(loader: EventLoader, broker: Broker) -> None:
    for first in (1, 3):
        loader.write(f"{DAY}/{first}.jsonl", [event(first), event(first + 1)])
        loader.ingest()
        done = produce(loader)
        assert done is not None
        assert (done.rows, done.tombstones, done.complete) == (2, 0, True)
        assert produce(loader) is None
    assert changes(broker) == [
        *(("E1", "snapshot"), ("E2", "snapshot")),
        *(("E3", "insert"), ("E4", "insert")),
    ]


def test_from_now_on_means_nothing_of_what_was_before(loader: EventLoader, broker: Broker) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1)])
    loader.ingest()
    assert produce(loader, publish_from="now") is None
    loader.write(f"{DAY}/b.jsonl", [event(2)])
    loader.ingest()
    produce(loader, publish_from="now")
    assert changes(broker) == [("E2", "insert")]


def test_an_event_that_was_retracted_is_a_tombstone_and_one_that_changed_an_update(
    loader: EventLoader, broker: Broker
) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1), event(2)])
    loader.ingest()
    produce(loader)
    loader.write(f"{DAY}/a.jsonl", [event(2, order_value_gbp=20), event(3), ""])
    loader.ingest()
    done = produce(loader)
    assert done is not None
    assert (done.rows, done.tombstones) == (2, 1)
    last = {key: (change, value) for key, change, value in messages(broker)}
    assert last["E1"] == ("delete", None)
    assert last["E2"][0] == "update"
    assert last["E2"][1] is not None
    assert last["E2"][1]["order_value_gbp"] == 20
    assert last["E3"][0] == "insert"


def test_many_changes_of_an_event_are_one_message(loader: EventLoader, broker: Broker) -> None:
    produce(loader)
    for value in (10, 200, 3000):
        loader.write(f"{DAY}/a.jsonl", [event(1, order_value_gbp=value)])
        loader.ingest()
    produce(loader)
    ((key, _, value),) = messages(broker)
    assert key == "E1"
    assert value is not None
    assert value["order_value_gbp"] == 3000


def test_a_crash_before_the_offset_moves_sends_again(
    loader: EventLoader, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1), event(2)])
    loader.ingest()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "move_consumer", crash)
        with pytest.raises(KeyboardInterrupt):
            produce(loader)
    assert offset(loader) is None
    produce(loader)
    assert changes(broker) == [("E1", "snapshot"), ("E2", "snapshot")] * 2


def test_a_round_that_is_stopped_moves_no_offset(loader: EventLoader, broker: Broker) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1)])
    loader.ingest()
    stopped = producer(loader)
    assert stopped.produce(loader.lake, loader.connection, stop=lambda: True) is None
    assert offset(loader) is None
    assert stopped.produce(loader.lake, loader.connection) is not None
    stopped.close()
    assert ("E1", "snapshot") in changes(broker)


def test_a_chunk_is_some_commits_and_the_next_goes_on(
    loader: EventLoader, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MOST_SNAPSHOTS", 2)
    produce(loader, publish_from="now")
    for number in range(5):
        loader.write(f"{DAY}/{number}.jsonl", [event(number)])
        loader.ingest()
    rounds = producer(loader)
    complete = []
    while (done := rounds.produce(loader.lake, loader.connection)) is not None:
        complete.append(done.rows)
    rounds.close()
    assert len(complete) > 1
    assert changes(broker) == [(f"E{number}", "insert") for number in range(5)]


def test_more_rows_than_the_client_holds_are_all_sent(loader: EventLoader, broker: Broker) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(number) for number in range(7_000)])
    loader.ingest()
    done = produce(loader, kafka_options={"queue.buffering.max.messages": 100})
    assert done is not None
    assert done.rows == 7_000
    assert {key for key, _ in changes(broker)} == {f"E{number}" for number in range(7_000)}


@pytest.mark.parametrize("forgotten", [slice(0, 1), slice(1, 2), slice(0, None)])
def test_what_the_lake_has_forgotten_is_sent_whole(
    loader: EventLoader, broker: Broker, forgotten: slice
) -> None:
    produce(loader)
    seen = offset(loader)
    assert seen is not None
    for number in (1, 2):
        loader.write(f"{DAY}/{number}.jsonl", [event(number)])
        loader.ingest()
    since = range(seen, current_snapshot(loader.connection))
    loader.connection.execute(
        "CALL ducklake_expire_snapshots('lake', versions => ?::UBIGINT[])", [list(since[forgotten])]
    )
    done = produce(loader)
    assert done is not None
    assert done.whole
    assert changes(broker) == [("E1", "snapshot"), ("E2", "snapshot")]
    assert produce(loader) is None


def test_commits_that_change_nothing_move_the_offset_now_and_then(
    loader: EventLoader, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PERSIST_AFTER", 3)
    produce(loader, publish_from="now")
    rounds, seen = producer(loader), []
    for number in range(4):
        with loader.lake.transaction(loader.connection, "something else"):
            move_consumer(loader.connection, "somebody", number)
        assert rounds.produce(loader.lake, loader.connection) is None
        seen.append(offset(loader))
    assert 1 < len(set(seen)) < 4
    assert messages(broker) == []


def test_alerts_of_several_tables_share_a_topic(loader: EventLoader, broker: Broker) -> None:
    with loader.lake.transaction(loader.connection, "an alert"):
        loader.connection.execute(
            "INSERT INTO lake.fraud_alerts BY NAME SELECT 'E1' AS event_id, 'C1' AS customer_id,"
            " 'O1' AS order_id, DATE '2026-10-12' AS order_date, DATE '2026-10-12' AS"
            " received_date, 'North' AS region, 900 AS order_value_gbp, 'velocity' AS reasons,"
            " 0.9 AS rule_score, 0.9 AS score, 'Five orders in an hour' AS explanation"
        )
    produce(loader, "publish_alerts")
    ((key, change, value),) = messages(broker, ALERTS)
    assert (key, change) == ("fraud_alerts:E1", "snapshot")
    assert value is not None
    assert value["order_value_gbp"] == 900
    assert messages(broker) == []


def test_only_one_process_publishes_at_a_time(loader: EventLoader, broker: Broker) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1)])
    loader.ingest()
    with publishing.FileLock(loader.settings.lake_dir / f"{OFFSET}.lock", thread_local=False):
        assert produce(loader) is None
    assert produce(loader) is not None


def test_a_broker_that_is_away_costs_nothing_but_time(settings: Settings, lake: Lake) -> None:
    with durable_broker() as broker:
        broker.create_topic(TOPIC)
        with EventLoader.open(from_beginning(settings, broker)) as loader:
            rounds = producer(loader, kafka_options={"message.timeout.ms": 2_000})
            loader.write(f"{DAY}/a.jsonl", [event(1)])
            loader.ingest()
            assert rounds.produce(loader.lake, loader.connection) is not None
            before = offset(loader)
            loader.write(f"{DAY}/b.jsonl", [event(2)])
            loader.ingest()
            broker.kill()
            with pytest.raises(ProduceError, match="could not send to the topic enriched"):
                rounds.produce(loader.lake, loader.connection)
            assert offset(loader) == before
            broker.start()
            done = rounds.produce(loader.lake, loader.connection)
            rounds.close()
            assert done is not None
            assert done.rows == 1
            assert {key for key, _ in changes(broker)} == {"E1", "E2"}


def test_a_missing_topic_is_said(loader: EventLoader) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1)])
    loader.ingest()
    with pytest.raises(ProduceError, match=r"topic nowhere .* create it"):
        produce(loader, publish_events_topic="nowhere")
    assert offset(loader) is None


def test_options_that_do_not_work_are_said_without_their_secrets(loader: EventLoader) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1)])
    loader.ingest()
    options = {"security.protocol": "secret-one"}
    with pytest.raises(ProduceError) as raised:
        produce(loader, kafka_options=options)
    assert "secret-one" not in str(raised.value)
    assert "security.protocol" in str(raised.value)


def test_an_event_too_large_to_send_is_named_and_not_passed_over(
    loader: EventLoader, broker: Broker
) -> None:
    loader.write(f"{DAY}/a.jsonl", [event(1), event(2, note="x" * 10_000)])
    loader.ingest()
    with pytest.raises(ProduceError, match=r"too large .*key E2"):
        produce(loader, kafka_options={"message.max.bytes": 5_000})
    assert offset(loader) is None
    produce(loader)
    assert ("E2", "snapshot") in changes(broker)


def test_a_topic_without_a_broker_is_a_wrong_setting(settings: Settings) -> None:
    assert outbound_topics(settings) == []
    with pytest.raises(UsageError, match="RETAIL_PUBLISH_BOOTSTRAP"):
        outbound_topics(settings.model_copy(update={"publish_events_topic": TOPIC}))
