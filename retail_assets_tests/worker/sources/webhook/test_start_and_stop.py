"""The start and the end of a webhook, and what monitors see of it."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from retail_assets.errors import UsageError
from retail_assets.settings import Settings
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.webhook.source import WebhookSource
from retail_assets_tests.worker.sources.webhook.webhooks import (
    TOKEN,
    Taker,
    Webhook,
    head,
    is_closed,
    post_of,
    read_answer,
    running_webhook,
)

pytestmark = [pytest.mark.usefixtures("settings"), pytest.mark.processes]


def test_after_stop_new_events_are_put_off_and_accepted_ones_are_answered():
    with running_webhook() as webhook, ThreadPoolExecutor() as pool:
        answer = pool.submit(webhook.post, b'{"a":1}')
        (item,) = webhook.take()
        webhook.source.stop()
        refused = webhook.post(b'{"a":2}')
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert webhook.client.get("/healthz").status_code == 200
        item.done()
        webhook.source.close()
        assert answer.result().status_code == 202
        assert webhook.inbox.events == 0


def test_after_stop_no_body_is_read():
    lines = ["Content-Type: application/json", "Content-Length: 10", "Expect: 100-continue"]
    with running_webhook() as webhook:
        webhook.source.stop()
        assert webhook.send(head(*lines)).startswith(b"HTTP/1.1 503 ")


def test_a_body_that_is_whole_only_after_stop_is_put_off():
    lines = ["Content-Type: application/json", "Content-Length: 2", "Expect: 100-continue"]
    with running_webhook() as webhook, webhook.connect() as connection:
        connection.sendall(head(*lines))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        webhook.source.stop()
        connection.sendall(b"{}")
        assert read_answer(connection).startswith(b"HTTP/1.1 503 ")
        assert webhook.inbox.events == 0


def test_close_lets_go_of_requests_under_way():
    lines = ["Content-Type: application/json", "Content-Length: 100"]
    with running_webhook(webhook_body_seconds=3600) as webhook:
        with webhook.connect() as slow, webhook.connect() as waiting, webhook.connect() as idle:
            slow.sendall(head(*lines, "Expect: 100-continue"))
            assert slow.recv(1000).startswith(b"HTTP/1.1 100 ")
            waiting.sendall(post_of(b'{"a":1}'))
            (item,) = webhook.take()
            idle.sendall(b"POST /eve")
            webhook.source.close()
            for connection in (slow, waiting):
                assert read_answer(connection).startswith(b"HTTP/1.1 503 ")
            assert is_closed(idle)
            item.done()
            item.failed("too late")
        with pytest.raises(ConnectionRefusedError):
            webhook.connect()
        assert webhook.source.problem() is None
        webhook.source.close()


def test_nothing_accepted_is_lost_when_the_webhook_stops_under_load():
    accepted: list[bytes] = []
    lock = threading.Lock()

    def send(webhook: Webhook, sender: int) -> set[int]:
        statuses = set()
        for number in range(100_000):
            events = [
                json.dumps({"event_id": f"{sender}-{number}-{part}"}).encode() for part in range(3)
            ]
            try:
                answer = webhook.post(b"[" + b",".join(events) + b"]")
            except httpx.TransportError:
                return statuses
            statuses.add(answer.status_code)
            if answer.status_code == 202:
                with lock:
                    accepted.extend(events)
        return statuses

    with running_webhook(webhook_events_per_second=1e9) as webhook, ThreadPoolExecutor() as pool:
        senders = [pool.submit(send, webhook, sender) for sender in range(6)]
        with Taker(webhook.inbox) as taker:
            with taker.changed:
                assert taker.changed.wait_for(lambda: len(taker.durable) >= 900, timeout=300)
            webhook.source.stop()
        webhook.source.close()
        seen = set().union(*(sender.result() for sender in senders))
    assert len(accepted) >= 600
    assert seen <= {202, 503}
    assert 202 in seen
    # Every event that was handed over was answered, too: nobody sends it twice without a reason.
    assert sorted(accepted) == sorted(taker.durable)


def test_a_webhook_without_a_token_does_not_start():
    for token in (None, "", "  ", "two words", "caf\u00e9", "line\n"):
        with (
            pytest.raises(UsageError, match="RETAIL_WEBHOOK_TOKEN"),
            running_webhook(webhook_token=token),
        ):
            pass


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", None),
        ("no-such-host.invalid", 0),
        ("192.0.2.1", 0),
        ("127.0.0.1", 99_999),
        ("127.0.0.1", -1),
        ("a" * 100 + ".b", 0),
        ("..", 0),
    ],
)
def test_an_address_that_cannot_be_had_is_said_at_the_start(host: str, port: int | None):
    with socket.create_server(("127.0.0.1", 0)) as results:
        source = WebhookSource(
            Settings(webhook_token=TOKEN),
            host=host,
            port=results.getsockname()[1] if port is None else port,
            worker="worker-1",
            health=lambda: (True, {}),
            metrics_text=lambda: b"",
        )
        with pytest.raises(UsageError, match=r"cannot listen on .* choose an address"):
            source.start(Inbox())
        assert source.problem() is None
        assert source.metrics() == {}
        source.stop()
        source.close()


# What monitors see


@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
def test_the_health_needs_no_token(healthy: bool, status: int):
    with running_webhook(health=lambda: (healthy, {"problems": ["x"]})) as webhook:
        answer = httpx.get(webhook.client.base_url.join("/healthz"))
        assert (answer.status_code, answer.json()) == (status, {"problems": ["x"]})


def test_the_metrics_are_text_for_prometheus(idle_webhook: Webhook):
    answer = httpx.get(idle_webhook.client.base_url.join("/metrics"))
    assert (answer.status_code, answer.content) == (200, b"retail_up 1\n")
    assert answer.headers["content-type"].startswith("text/plain; version=")


def test_a_slow_health_does_not_hold_up_events():
    asked, go_on = threading.Event(), threading.Event()

    def health() -> tuple[bool, dict[str, str]]:
        asked.set()
        go_on.wait()
        return True, {}

    with running_webhook(health=health) as webhook, ThreadPoolExecutor() as pool:
        answer = pool.submit(webhook.client.get, "/healthz")
        asked.wait()
        assert webhook.post(b"[]").status_code == 202
        go_on.set()
        assert answer.result().status_code == 200


def test_the_source_counts_its_answers():
    with running_webhook() as webhook, Taker(webhook.inbox):
        webhook.post(b"[{},{}]")
        webhook.post(b"")
        webhook.client.post("/events", headers={"Authorization": "Bearer wrong"})
        webhook.source.stop()
        webhook.post(b"{}")
        while webhook.source.metrics()["webhook_connections"]:
            # The last answer closes its connection, because its body was not read.
            pass
        metrics = webhook.source.metrics()
    assert metrics == {
        "webhook_connections": 0,
        "webhook_requests_waiting": 0,
        "webhook_events_accepted_total": 2,
        "webhook_requests_accepted_total": 1,
        "webhook_requests_refused_total": 2,
        "webhook_requests_unavailable_total": 1,
    }
