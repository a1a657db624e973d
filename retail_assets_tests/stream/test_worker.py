"""The worker as its user runs it: a process, its sources together, ended by signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from retail_assets.ingest.heartbeat import heartbeats
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings
from retail_assets_tests.broker import free_port, running_broker
from retail_assets_tests.event_files import event, write_events

TOKEN = "a-long-random-text"  # noqa: S105  # of this test alone
HANG_SECONDS = 120


@contextmanager
def worker(settings: Settings, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`retail-assets stream` in a process of its own."""
    environment = os.environ | {"RETAIL_WEBHOOK_TOKEN": TOKEN, "RETAIL_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "retail_assets", "stream", *options],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(what: Callable[[], object]) -> None:
    """Wait for something to be so; a red test instead of a stuck one."""
    deadline = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def query(settings: Settings, sql: str) -> list[tuple]:
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            return connection.execute(sql).fetchall()
    except NoLakeError:
        return []


def identities(settings: Settings) -> list[str]:
    return [name for (name,) in query(settings, "SELECT event_id FROM enriched_events ORDER BY 1")]


def runs(settings: Settings) -> bool:
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return any(found.state == "running" for found in heartbeats(connection))


def test_files_webhook_and_kafka_together_then_an_orderly_end(settings: Settings, lake: Lake):
    from confluent_kafka import Producer

    write_events(settings, "2026-10-12/before.jsonl", [event(1)])
    port = free_port()
    with running_broker() as broker:
        broker.create_topic("orders", partitions=2)
        options = ("--kafka", broker.bootstrap, "--topic", "orders")
        with worker(settings, *options, "--http", f"127.0.0.1:{port}") as process:
            until(lambda: identities(settings) == ["E1"])
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
            assert "E4" in identities(settings), "202 means that it is durable"
            until(lambda: identities(settings) == ["E1", "E2", "E3", "E4"])
            until(lambda: query(settings, "SELECT 1 FROM live_revenue HAVING sum(order_count) = 4"))
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
            _, said = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, said
    with lake.connect(read_only=True) as connection:
        (beat,) = heartbeats(connection)
        assert (beat.state, beat.sources) == ("stopped", ("files", "kafka", "webhook"))
        assert beat.figures["live_orders_lag_seconds"] >= 0
        assert connection.execute(
            "SELECT sum(lines), sum(accepted) FROM stream_offsets WHERE kind = 'source'"
        ).fetchall() == [(2, 2)]


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(settings: Settings, lake: Lake):
    folder = Path(settings.events_location, "2026-10-12")
    folder.mkdir(parents=True)
    written = 0
    for _ in range(3):
        with worker(settings) as process:
            for _ in range(10):
                lines = "".join(f"{event(number)}\n" for number in range(written, written + 5))
                (folder / f"{written:06}.jsonl").write_text(lines)
                written += 5
            until(lambda: identities(settings))
            process.kill()
    with worker(settings):
        until(lambda: len(identities(settings)) == written)
    assert query(settings, "SELECT sum(lines), sum(accepted), sum(duplicate) FROM event_files") == [
        (written, written, 0)
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--topic", "orders"], "--topic needs --kafka"),
        (["--kafka", "127.0.0.1:9"], "--kafka needs a --topic"),
        (["--no-files"], "A worker needs a source"),
        (["--http", "nowhere"], "is no HOST:PORT"),
        (["--kafka", "127.0.0.1:9", "--topic", "orders"], "127.0.0.1:9"),
    ],
)
def test_a_bad_configuration_ends_at_the_start_with_one_sentence(
    settings: Settings, lake: Lake, options: list[str], sentence: str
):
    with worker(settings, *options) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode in (1, 2)
    assert sentence in said
    assert "Traceback" not in said
    assert not runs(settings)


def test_the_heartbeat_carries_the_figures(settings: Settings, lake: Lake):
    write_events(settings, "2026-10-12/a.jsonl", [event(1), "{", event(1)])
    with worker(settings) as process:
        until(lambda: identities(settings))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=HANG_SECONDS)
    [(figures,)] = query(settings, "SELECT figures FROM stream_workers")
    assert json.loads(figures)["sources"]["files"] == {
        "lines": 3,
        "accepted": 1,
        "dead_lettered": 1,
        "duplicate": 1,
    }
