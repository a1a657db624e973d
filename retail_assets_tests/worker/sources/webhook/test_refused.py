"""What the webhook refuses, and how."""

import gzip
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from retail_assets_tests.worker.sources.webhook.webhooks import (
    Webhook,
    head,
    is_closed,
    post_of,
    read_answer,
    running_webhook,
    send_for_ever,
)

pytestmark = [pytest.mark.usefixtures("settings"), pytest.mark.processes]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json, application/json"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
    ids=str,
)
def test_other_types_are_refused(headers: dict[str, str], idle_webhook: Webhook):
    answer = idle_webhook.client.post("/events", content=b'{"a":1}', headers=headers)
    assert answer.status_code == 415
    assert set(answer.json()) == {"error"}
    assert idle_webhook.inbox.events == 0


WHOLE = gzip.compress(b'{"a":1}')


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        ("gzip", gzip.compress(b"[" + b" " * 50_000_000 + b"]"), 413),
        ("gzip", gzip.compress(b"[" + b" " * 999_990 + b"]") * 2, 413),
        ("gzip", WHOLE[:-9], 400),
        ("gzip", WHOLE + b"more", 400),
        ("gzip", b'{"a":1}', 400),
        ("x-gzip", gzip.compress(b"no json"), 422),
        ("br", b'{"a":1}', 415),
        ("gzip, gzip", gzip.compress(WHOLE), 415),
    ],
    # Not of the bytes: they have the time of their making, which differs between processes.
    ids=("one bomb", "two bombs", "breaks off", "more follows", "plain", "no json", "br", "twice"),
)
def test_a_compressed_body_is_decompressed_within_the_limits_or_refused(
    idle_webhook: Webhook, encoding: str, body: bytes, code: int
):
    answer = idle_webhook.post(body, **{"Content-Encoding": encoding})
    assert (answer.status_code, idle_webhook.inbox.events) == (code, 0)
    assert code != 415 or answer.headers["accept-encoding"] == "gzip, identity"


def test_a_compressed_body_takes_no_more_memory_than_the_limit(idle_webhook: Webhook):
    bomb = gzip.compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        answer = idle_webhook.post(bomb, **{"Content-Encoding": "gzip"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert peak < 10_000_000


def test_the_events_of_a_compressed_body_are_accepted():
    with running_webhook() as webhook, ThreadPoolExecutor() as pool:
        body = WHOLE + gzip.compress(b'{"b":2}')
        answer = pool.submit(webhook.post, body, **{"Content-Encoding": "gzip"})
        (item,) = webhook.take()
        item.done()
        assert answer.result().json() == {"accepted": 2}
    assert item.payloads == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b'{"a":1',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":"\xff"}',
        b"\0",
        b"[1]",
    ],
    ids=lambda body: str(body)[:20],
)
def test_a_body_that_is_no_json_of_events_is_refused_as_a_whole(body: bytes, idle_webhook: Webhook):
    answer = idle_webhook.post(body)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(("The body ", "Element 1 of the body"))
    assert idle_webhook.inbox.events == 0
    assert idle_webhook.post(b"[]").status_code == 202


def test_a_body_may_be_as_large_as_the_limit_and_no_larger():
    with running_webhook(webhook_max_bytes=1_000) as webhook:
        assert webhook.post(b"[" + b" " * 998 + b"]").status_code == 202
        assert webhook.post(b"[" + b" " * 999 + b"]").status_code == 413


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(idle_webhook: Webhook):
    lines = ["Content-Type: application/json", "Content-Length: 99999999999999999"]
    with idle_webhook.connect() as connection:
        connection.sendall(head(*lines))
        assert read_answer(connection).startswith(b"HTTP/1.1 413 ")
        assert is_closed(connection)


def test_a_body_in_chunks_is_refused_once_it_is_too_large():
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    with running_webhook(webhook_max_bytes=10_000) as webhook, webhook.connect() as connection:
        connection.sendall(head(*lines))
        for _ in range(100):
            connection.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 413 ")
        assert is_closed(connection)
        assert webhook.inbox.events == 0


def test_an_endless_body_without_the_token_ends_with_its_connection(idle_webhook: Webhook):
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    with idle_webhook.connect() as connection:
        connection.sendall(head(*lines, token=None))
        assert read_answer(connection).startswith(b"HTTP/1.1 401 ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_for_ever(connection, b"1000\r\n" + b" " * 0x1000 + b"\r\n")


def test_a_body_that_goes_wrong_after_it_was_refused_ends_with_its_connection(
    caplog: pytest.LogCaptureFixture,
):
    lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    with running_webhook() as webhook, webhook.connect() as connection:
        connection.sendall(head(*lines, token=None))
        assert read_answer(connection).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"zz\r\n")
        assert is_closed(connection)
    # Anyone could fill the log.
    assert caplog.messages == []


def test_a_body_that_does_not_come_in_time_is_refused():
    lines = ["Content-Type: application/json", "Content-Length: 100"]
    with running_webhook(webhook_body_seconds=1) as webhook, webhook.connect() as connection:
        connection.sendall(head(*lines) + b'{"a":')
        assert read_answer(connection).startswith(b"HTTP/1.1 408 ")
        assert is_closed(connection)
        assert webhook.inbox.events == 0


@pytest.mark.parametrize("beginning", [b"", b"POST /events HTTP/1.1\r\nX: "])
def test_a_head_that_comes_byte_by_byte_does_not_hold_its_connection(beginning: bytes):
    with running_webhook(webhook_body_seconds=0.2) as webhook, webhook.connect() as connection:
        connection.sendall(beginning)
        connection.settimeout(0.02)
        for _ in range(1_000):
            try:
                if beginning:
                    connection.sendall(b"a")
                assert connection.recv(1) == b""
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                pass
            return
        pytest.fail("The connection is still open.")


def test_a_request_may_take_longer_than_its_head():
    with (
        running_webhook(webhook_body_seconds=1) as webhook,
        webhook.connect() as connection,
        webhook.connect() as silent,
    ):
        connection.sendall(post_of(b"{}"))
        (item,) = webhook.take()
        assert is_closed(silent)
        item.done()
        assert read_answer(connection).startswith(b"HTTP/1.1 202 ")
        connection.sendall(post_of(b"[]"))
        assert read_answer(connection).startswith(b"HTTP/1.1 202 ")


def test_of_a_body_that_breaks_off_nothing_is_taken():
    lines = ["Content-Type: application/x-ndjson", "Content-Length: 100"]
    with running_webhook() as webhook:
        with webhook.connect() as connection:
            connection.sendall(head(*lines) + b'{"a":1}\n{"a":2}\n')
        while not webhook.source.metrics()["webhook_requests_refused_total"]:
            assert webhook.client.get("/healthz").status_code == 200
        assert webhook.inbox.events == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello of TLS \r\n\r\n",
        b"GET\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        head("X: " + "x" * 200_000),
        head(*[f"X-{number}: x" for number in range(20_000)]),
        head(b"X: \0"),
        head(b"X\xff: 1"),
        head("No colon"),
        head("Content-Length: -1"),
        head("Content-Length: 1", "Content-Length: 2"),
        head("Content-Length: " + "9" * 5_000),
        head("Content-Length: 2\u00b2"),
        head("Content-Type: application/json", "Content-Length: 2", "Transfer-Encoding: chunked")
        + b"2\r\n[]\r\n0\r\n\r\n",
        head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"zz\r\n[]",
        head(target="POST /" + "e" * 100_000),
        head(target="POST /\xff"),
    ],
    ids=lambda request: str(request[:30]),
)
def test_what_is_no_proper_http_is_refused_and_harms_nobody(
    request_bytes: bytes, idle_webhook: Webhook
):
    with idle_webhook.connect() as connection:
        try:
            connection.sendall(request_bytes)
            answer = read_answer(connection)
        except (BrokenPipeError, ConnectionResetError):
            # It was closed before all of it was sent.
            answer = b""
    assert answer[:13] in {b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b""}
    assert idle_webhook.inbox.events == 0
    assert idle_webhook.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/", 404),
        ("POST", "/events/", 404),
        ("POST", "/events/1", 404),
        ("POST", "/%2e%2e/events", 404),
        ("GET", "/docs", 404),
        ("GET", "/events", 405),
        ("PUT", "/events", 405),
        ("DELETE", "/events", 405),
        ("BREW", "/events", 405),
        ("POST", "/healthz", 405),
        ("POST", "/metrics", 405),
    ],
)
def test_there_is_nothing_else(method: str, path: str, status: int, idle_webhook: Webhook):
    answer = idle_webhook.client.request(method, path, content=b"{}")
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert ("allow" in answer.headers) == (status == 405)


def test_an_answer_does_not_say_what_gives_it(idle_webhook: Webhook):
    for answer in (idle_webhook.post(b"[]"), idle_webhook.client.get("/"), idle_webhook.post(b"")):
        assert set(answer.headers) <= {"content-length", "content-type", "connection"}


def test_an_answer_is_sent_without_delay(idle_webhook: Webhook):
    idle_webhook.post(b"[]")
    server = idle_webhook.source._server
    assert server is not None
    options = [
        connection.transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY
        )
        for connection in server._server.server_state.connections
    ]
    assert options
    assert all(options)


def test_of_too_many_connections_the_last_are_refused():
    with running_webhook(webhook_connections=2) as webhook:
        with webhook.connect() as first, webhook.connect() as second, webhook.connect() as third:
            third.sendall(post_of(b'{"a":1}'))
            answer = read_answer(third)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in answer
            assert is_closed(third)
            for connection in (first, second):
                connection.sendall(post_of(b"[]"))
                assert read_answer(connection).startswith(b"HTTP/1.1 202 ")
        while webhook.source.metrics()["webhook_connections"]:
            pass
        assert webhook.post(b"[]").status_code == 202
        assert webhook.inbox.events == 0
