"""The worker as its user runs it: a process, its sources together, ended by signals."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import httpx
import pytest

from retail_assets.ingest.ledgers.workers import heartbeats
from retail_assets.lake.connection import Lake
from retail_assets.lake.lock import write_lock
from retail_assets.settings import Settings
from retail_assets_tests.event_files import event, write_events
from retail_assets_tests.processes import run_command, start
from retail_assets_tests.receiver import running_receiver
from retail_assets_tests.worker.sources.kafka.kafka_topics import Topic
from tools.broker import Broker, running_broker
from tools.ports import free_port

pytestmark = pytest.mark.processes

TOKEN = "a-long-random-text"  # noqa: S105  # of this test alone
HANG_SECONDS = 120


class Running:
    """A worker in a process of its own."""

    def __init__(self, process: Any, said: Path) -> None:
        self._process = process
        self._said = said

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self) -> tuple[int | None, str]:
        """Wait for its end; returns its exit code, and what it wrote to stderr."""
        self._process.join(HANG_SECONDS)
        return self._process.exitcode, self._said.read_text()


@contextmanager
def worker(
    settings: Settings, *options: str, said: str = "said", **changed: str
) -> Iterator[Running]:
    """`retail-assets stream`, forked from a process that has imported what it needs."""
    environment = os.environ | {"RETAIL_WEBHOOK_TOKEN": TOKEN, "RETAIL_THREADS": "1"} | changed
    log = settings.data_dir / said
    process = Running(start(run_command, ["stream", *options], environment, log), log)
    try:
        yield process
    finally:
        process.kill()


def until(what: Callable[[], object]) -> None:
    """Wait for something to be so; a red test instead of a stuck one."""
    deadline = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.fixture
def reader(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    """One connection: to open one for each look would take the time of the worker."""
    with lake.connect(read_only=True) as connection:
        yield connection


def query(reader: duckdb.DuckDBPyConnection, sql: str) -> list[tuple]:
    return reader.execute(sql).fetchall()


def identities(reader: duckdb.DuckDBPyConnection) -> list[str]:
    return [name for (name,) in query(reader, "SELECT event_id FROM enriched_events ORDER BY 1")]


def test_files_webhook_and_kafka_together_then_an_orderly_end(
    settings: Settings, lake: Lake, reader: duckdb.DuckDBPyConnection
):
    from confluent_kafka import Producer

    write_events(settings, "2026-10-12/before.jsonl", [event(1)])
    port = free_port()
    with running_broker() as broker:
        broker.create_topic("orders", partitions=2)
        options = ("--kafka", broker.bootstrap, "--topic", "orders")
        with worker(settings, *options, "--http", f"127.0.0.1:{port}") as process:
            until(lambda: identities(reader) == ["E1"])
            write_events(settings, "2026-10-12/after.jsonl", [event(2), "{"])
            producer = Producer({"bootstrap.servers": broker.bootstrap})
            producer.produce("orders", event(3).encode(), key=b"a")
            producer.flush()

            def posted() -> bool:
                try:
                    answer = httpx.post(
                        f"http://127.0.0.1:{port}/events",
                        content=event(4),
                        headers={
                            "Authorization": f"Bearer {TOKEN}",
                            "Content-Type": "application/json",
                        },
                    )
                except httpx.TransportError:
                    return False
                assert answer.status_code == 202
                return True

            until(posted)
            assert "E4" in identities(reader), "202 means that it is durable"
            until(lambda: identities(reader) == ["E1", "E2", "E3", "E4"])
            until(lambda: query(reader, "SELECT 1 FROM live_revenue HAVING sum(order_count) = 4"))
            health = httpx.get(f"http://127.0.0.1:{port}/healthz")
            assert (health.status_code, health.json()["problem"]) == (200, None)
            metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            assert (
                'retail_assets_events_total{outcome="dead_lettered",source="files"} 1.0' in metrics
            )
            assert re.search(
                r"^retail_assets_live_orders_lag_seconds [0-9.]+$", metrics, re.MULTILINE
            )
            process.send_signal(signal.SIGTERM)
            code, said = process.end()
        assert code == 0, said
    with lake.connect(read_only=True) as connection:
        (beat,) = heartbeats(connection)
        assert (beat.state, beat.sources) == ("stopped", ("files", "kafka", "webhook"))
        assert beat.metrics["live_orders_lag_seconds"] >= 0
        assert connection.execute(
            "SELECT sum(lines), sum(accepted) FROM stream_offsets WHERE kind = 'source'"
        ).fetchall() == [(2, 2)]


@contextmanager
def writing(settings: Settings, names: Iterator[int]) -> Iterator[list[int]]:
    """Somebody who writes event files all the time; yields the numbers of the events so far."""
    folder = Path(settings.events_location, "2026-10-12")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[int] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            numbers = [next(names) for _ in range(5)]
            lines = "".join(f"{event(number)}\n" for number in numbers)
            (folder / f"{numbers[0]:06}.jsonl").write_text(lines)
            written.extend(numbers)
            time.sleep(0.002)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join()


def test_a_worker_that_is_killed_at_work_loses_nothing_and_doubles_nothing(
    settings: Settings, lake: Lake, reader: duckdb.DuckDBPyConnection
):
    names = count()
    expected = 0
    for _ in range(2):
        before = len(identities(reader))
        with worker(settings) as process, writing(settings, names) as written:
            until(lambda: len(identities(reader)) > before)  # noqa: B023  # asked at once
            process.kill()
        expected += len(written)
        assert before < len(identities(reader)) < expected, "it was killed at work"
    with worker(settings):
        until(lambda: len(identities(reader)) >= expected)
    assert query(reader, "SELECT sum(lines), sum(accepted), sum(duplicate) FROM event_files") == [
        (expected, expected, 0)
    ]
    assert len(set(identities(reader))) == len(identities(reader)) == expected


def test_a_worker_that_is_told_to_stop_commits_what_it_has_received(
    settings: Settings, lake: Lake, reader: duckdb.DuckDBPyConnection
):
    url = f"http://127.0.0.1:{free_port()}"
    answers: list[int] = []

    def post(number: int) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        answer = httpx.post(
            f"{url}/events", content=event(number), headers=headers, timeout=HANG_SECONDS
        )
        answers.append(answer.status_code)

    def health() -> dict[str, Any] | None:
        try:
            answer = httpx.get(f"{url}/healthz")
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == httpx.codes.OK else None

    with worker(settings, "--no-files", "--http", url.removeprefix("http://")) as process:
        until(health)
        clients = [threading.Thread(target=post, args=(number,)) for number in range(6)]
        with write_lock(lake.catalog):
            for number, client in enumerate(clients, 1):
                client.start()
                # So that there is more than one batch of them.
                until(lambda: health()["webhook_requests_waiting"] >= number)  # noqa: B023  # at once
            process.send_signal(signal.SIGTERM)
            until(lambda: health() is None)
            assert answers == [], "nothing is durable yet"
        code, said = process.end()
        for client in clients:
            client.join()
    assert code == 0, said
    assert answers == [httpx.codes.ACCEPTED] * 6
    assert len(identities(reader)) == 6
    (beat,) = heartbeats(reader)
    assert (beat.state, beat.metrics["sources"]["webhook"]["accepted"]) == ("stopped", 6)


def test_a_worker_that_hangs_ends_in_time_and_what_it_had_is_read_again(
    settings: Settings, lake: Lake, reader: duckdb.DuckDBPyConnection
):
    with running_broker() as broker:
        broker.create_topic("orders")
        topic = Topic(broker.bootstrap, "orders")
        options = ("--no-files", "--kafka", broker.bootstrap, "--topic", "orders")
        # Its partition is another's once it has been silent for so long.
        soon = '{"session.timeout.ms": "1500", "heartbeat.interval.ms": "300"}'
        with worker(
            settings, *options, RETAIL_STOP_SECONDS="2", RETAIL_KAFKA_OPTIONS=soon
        ) as process:
            # A member that is killed while it joins would keep its group from the next.
            topic.send([event(1)])
            until(lambda: identities(reader) == ["E1"])
            with write_lock(lake.catalog):
                # From here on whoever writes to the lake hangs.
                topic.send([event(2)])
                process.send_signal(signal.SIGTERM)
                code, said = process.end()
        assert code == 1
        assert "The worker did not end within 2 s of being told to, it ends now" in said
        assert "(still at work: MainThread" in said
        with worker(settings, *options):
            until(lambda: identities(reader) == ["E1", "E2"])


def test_alerts_are_notified_and_published_on_with_the_events(
    settings: Settings,
    lake: Lake,
    reader: duckdb.DuckDBPyConnection,
    monkeypatch: pytest.MonkeyPatch,
):
    now = datetime.now(ZoneInfo(settings.timezone))
    # Of one customer, more than four within half an hour.
    orders = [event(number, event_timestamp=now.isoformat()) for number in range(5)]
    with running_broker() as broker, running_receiver() as receiver:
        broker.create_topic("events-out", partitions=1)
        broker.create_topic("alerts-out", partitions=1)
        monkeypatch.setenv("RETAIL_NOTIFY_URLS", receiver.url())
        monkeypatch.setenv("RETAIL_PUBLISH_BOOTSTRAP", broker.bootstrap)
        monkeypatch.setenv("RETAIL_PUBLISH_EVENTS_TOPIC", "events-out")
        monkeypatch.setenv("RETAIL_PUBLISH_ALERTS_TOPIC", "alerts-out")
        with worker(settings) as process:
            until(lambda: query(reader, "SELECT 1 FROM stream_workers"))
            write_events(settings, f"{now.date()}/a.jsonl", orders)
            until(lambda: query(reader, "SELECT 1 FROM fraud_alerts"))
            until(lambda: receiver.got)
            assert receiver.titles() == ["Fraud alert"]
            sent = read(broker, "events-out", len(orders))
            assert sorted(sent) == [f"E{number}" for number in range(5)]
            (alert,) = query(reader, "SELECT event_id FROM fraud_alerts")
            assert read(broker, "alerts-out", 1)
            assert alert[0] in sent
            process.send_signal(signal.SIGTERM)
            code, said = process.end()
        assert code == 0, said
    metrics = query(reader, "SELECT figures FROM stream_workers")[0][0]
    assert json.loads(metrics)["notifications_waiting"] == 0


def read(broker: Broker, topic: str, messages: int) -> list[str]:
    """The keys of so many messages of a topic."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "tests"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[str] = []
    try:
        until(
            lambda: (
                found.extend(
                    message.key().decode()
                    for message in consumer.consume(messages, timeout=1)
                    if message.error() is None
                )
                or len(found) >= messages
            )
        )
    finally:
        consumer.close()
    return found


BAD = [
    (["--topic", "orders"], {}, "--topic needs --kafka"),
    (["--kafka", "127.0.0.1:9"], {}, "--kafka needs a --topic"),
    (["--no-files"], {}, "A worker needs a source"),
    (["--http", "nowhere"], {}, "is no HOST:PORT"),
    (["--kafka", "127.0.0.1:9", "--topic", "orders"], {}, "127.0.0.1:9"),
    (["--http", "127.0.0.1:9"], {"RETAIL_WEBHOOK_TOKEN": ""}, "RETAIL_WEBHOOK_TOKEN"),
    ([], {"RETAIL_NOTIFY_URLS": "nowhere://"}, "RETAIL_NOTIFY_URLS"),
    ([], {"RETAIL_PUBLISH_EVENTS_TOPIC": "out"}, "RETAIL_PUBLISH_BOOTSTRAP"),
]


def test_a_bad_configuration_ends_at_the_start_with_one_sentence(
    settings: Settings, lake: Lake, reader: duckdb.DuckDBPyConnection
):
    with ExitStack() as stack:
        processes = [
            stack.enter_context(worker(settings, *options, said=f"said {number}", **changed))
            for number, (options, changed, _) in enumerate(BAD)
        ]
        ended = [process.end() for process in processes]
    for (options, changed, sentence), (code, said) in zip(BAD, ended, strict=True):
        assert code in (1, 2), (options, changed)
        assert sentence in said
        assert "Traceback" not in said
    assert [found for found in heartbeats(reader) if found.state == "running"] == []


def test_the_heartbeat_carries_the_metrics(
    settings: Settings, lake: Lake, reader: duckdb.DuckDBPyConnection
):
    write_events(settings, "2026-10-12/a.jsonl", [event(1), "{", event(1)])
    with worker(settings) as process:
        until(lambda: identities(reader))
        process.send_signal(signal.SIGINT)
        process.end()
    [(metrics,)] = query(reader, "SELECT figures FROM stream_workers")
    assert json.loads(metrics)["late_seconds"] == 0
    assert json.loads(metrics)["sources"]["files"] == {
        "lines": 3,
        "accepted": 1,
        "dead_lettered": 1,
        "duplicate": 1,
    }
