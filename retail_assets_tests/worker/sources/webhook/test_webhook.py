"""The webhook over real HTTP: what it takes and from whom, and that it loses nothing."""

import gzip
import json
import re
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets.ingest.events.lines import MAX_LINE_BYTES
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages import load as received
from retail_assets.ingest.messages.bodies import json_events
from retail_assets.ingest.messages.payloads import original_bytes
from retail_assets.lake.connection import Lake
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.webhook import app as webhook_app
from retail_assets_tests.event_files import event
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

if TYPE_CHECKING:
    import httpx

pytestmark = [pytest.mark.usefixtures("settings"), pytest.mark.processes]


# What is taken


def test_events_reach_the_tables_and_bad_lines_the_dead_letters(lake: Lake):
    lines = [event(1), "", "not json", event(2, order_value_gbp=-1), event(3)]
    body = "\n".join(lines).encode() + b'\n{"a":"\xff"}\n{"a":"\0"}\n' + b"[" * 10_000
    with (
        running_webhook() as webhook,
        ThreadPoolExecutor() as pool,
        lake.connect() as connection,
    ):
        answer = pool.submit(webhook.post, body, "application/x-ndjson")
        batch = webhook.take()
        results = received.ingest(EventSession(lake, connection), batch)["webhook"]
        for item in batch:
            item.done()
        assert answer.result().status_code == 202
        assert answer.result().json() == {"accepted": 7}
        assert (results.lines, results.accepted, results.dead_lettered) == (7, 2, 5)
        assert connection.execute(
            "SELECT event_id, source, source_name, position FROM lake.enriched_events ORDER BY ALL"
        ).fetchall() == [("E1", "webhook", "worker-1", 1), ("E3", "webhook", "worker-1", 4)]
        assert connection.execute(
            "SELECT position FROM lake.dead_letter_events ORDER BY ALL"
        ).fetchall() == [(2,), (3,), (5,), (6,), (7,)]


def test_202_is_answered_only_once_the_events_are_durable():
    with running_webhook() as webhook, webhook.connect() as connection:
        connection.sendall(post_of(b'{"a":1}'))
        (item,) = webhook.take()
        # An answer would have been sent before this one.
        assert webhook.client.get("/healthz").status_code == 200
        assert select.select([connection], [], [], 0)[0] == []
        item.done()
        assert read_answer(connection).startswith(b"HTTP/1.1 202 ")


def test_elements_of_an_array_are_handed_on_in_their_own_characters():
    body = b'[{"order_value_gbp":10.10, "n":12345678901234567890123}\n, {"n":1E400}]'
    with running_webhook() as webhook, ThreadPoolExecutor() as pool:
        answer = pool.submit(webhook.post, body)
        (item,) = webhook.take()
        item.done()
        assert answer.result().json() == {"accepted": 2}
    assert item.payloads == [
        b'{"order_value_gbp":10.10, "n":12345678901234567890123}',
        b'{"n":1E400}',
    ]


def test_positions_are_counted_within_the_start_of_a_worker():
    with running_webhook() as webhook, ThreadPoolExecutor() as pool:
        found = []
        for body in (b'[{"a":1},{"a":2}]', b"no json", b'{"a":3}'):
            answer = pool.submit(webhook.post, body)
            if body != b"no json":
                (item,) = webhook.take()
                item.done()
                found.append((item.source, item.source_name, list(item.positions)))
            answer.result()
    assert found == [("webhook", "worker-1", [1, 2]), ("webhook", "worker-1", [3])]


LONG = event(1, note="x" * MAX_LINE_BYTES)
LONGEST = event(2, note="x" * (MAX_LINE_BYTES - len(event(2, note=""))))


@pytest.mark.parametrize(
    ("media_type", "body", "which"),
    [
        ("application/json", LONG, "Event 1 of the body's 1"),
        ("application/json", f"[{LONGEST},{event(3)},{LONG}]", "Event 3 of the body's 3"),
        ("application/jsonl", f"{event(3)}\n\n{LONG}\n{event(4)}", "Event 2 of the body's 3"),
    ],
)
def test_an_event_that_would_be_too_long_behind_the_door_is_refused_with_its_request(
    media_type: str, body: str, which: str
):
    with running_webhook(webhook_max_bytes=5_000_000) as webhook:
        answer = webhook.post(body.encode(), media_type)
        assert webhook.inbox.events == 0
    assert answer.status_code == 413
    assert answer.json()["error"] == (
        f"{which} has {len(LONG)} bytes, an event may have {MAX_LINE_BYTES}: make it smaller, none"
        " of them was accepted."
    )


EVENTS = st.builds(
    lambda number, note, indent: json.dumps(
        json.loads(event(number, note=note)), ensure_ascii=False, indent=indent
    ).encode("utf-8", "surrogatepass"),
    st.integers(0, 9),
    st.text(max_size=5) | st.integers(-260, 20).map(lambda more: "x" * (MAX_LINE_BYTES + more)),
    st.sampled_from([None, None, 1]),
)
PARTS = (
    EVENTS | st.binary(max_size=9) | st.sampled_from([b"[]", b"null", b'{"a":NaN}', b"\\x41\xff"])
)
BODIES = st.builds(
    lambda parts, between, ends, encode: encode(ends[0] + between.join(parts) + ends[1]),
    st.lists(PARTS, max_size=4),
    st.sampled_from([b"\n", b"\r\n", b",", b"", b"\r"]),
    st.sampled_from([(b"", b""), (b"[", b"]"), (b"\xef\xbb\xbf", b"\n")]),
    st.sampled_from(
        [bytes, bytes, bytes, gzip.compress, lambda body: body.decode("latin-1").encode("utf-16")]
    ),
)


@given(st.lists(st.tuples(BODIES, st.sampled_from(["json", "x-ndjson"])), min_size=1, max_size=5))
# To shrink an example takes minutes, by requests and commits.
@hypothesis_settings(max_examples=12, phases=[Phase.generate])
def test_what_was_accepted_is_in_the_lake_whole_and_nothing_of_what_was_not(
    intake_of_webhook: tuple[Webhook, EventSession],
    bodies: list[tuple[bytes, str]],
):
    webhook, session = intake_of_webhook
    connection = session.connection
    for body, kind in bodies:
        before = webhook.source.metrics()["webhook_events_accepted_total"]
        [(last,)] = connection.execute("SELECT max(position) FROM raw_events").fetchall()
        answers: list[httpx.Response] = []
        sender = threading.Thread(
            target=lambda: answers.append(webhook.post(body, f"application/{kind}"))  # noqa: B023
        )
        sender.start()
        while sender.is_alive():
            batch = webhook.inbox.take(max_events=10**6, linger_seconds=0, timeout_seconds=0.01)
            if batch:
                received.ingest(session, batch)
            for item in batch:
                item.done()
        rows = connection.execute(
            "SELECT payload, defect FROM raw_events WHERE position > ? ORDER BY position",
            [last or 0],
        ).fetchall()
        [answer] = answers
        if answer.status_code != 202:
            assert answer.status_code in (413, 422)
            assert (rows, webhook.source.metrics()["webhook_events_accepted_total"]) == ([], before)
            continue
        assert answer.json() == {"accepted": len(rows)}
        whole = [original_bytes(text) if defect else text.encode() for text, defect in rows]
        kept = b"".join(whole)
        # All that is missing stood between events.
        assert _without(kept) == _without(body.removeprefix(b"\xef\xbb\xbf"), kind)


def _without(body: bytes, kind: str = "") -> bytes:
    """A body without what may stand between events."""
    if kind == "json" and body.strip().startswith(b"["):
        return b"".join(map(_without, json_events(body)))
    return re.sub(rb"[\r\n ]+", b"", body)


@pytest.fixture(scope="module")
def intake_of_webhook(
    tmp_path_factory: pytest.TempPathFactory, new_lake: Callable[[Path], Lake]
) -> Iterator[tuple[Webhook, EventSession]]:
    """A webhook that takes bodies of any size, and a lake of its own."""
    folder = tmp_path_factory.mktemp("webhook")
    lake = new_lake(folder)
    with (
        running_webhook(webhook_max_bytes=5_000_000) as webhook,
        lake.connect() as connection,
    ):
        yield webhook, EventSession(lake, connection)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_events_are_received_on_the_day_of_the_business_time_zone(zone: str):
    before = datetime.now(ZoneInfo(zone)).date()
    with running_webhook(timezone=zone) as webhook, webhook.connect() as connection:
        connection.sendall(post_of(b"{}"))
        (item,) = webhook.take()
    assert item.received_date in {before, datetime.now(ZoneInfo(zone)).date()}


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/json", b"[]"),
        ("application/json; charset=utf-8", b" [ ] "),
        ('Application/JSON ;charset="UTF-8"', b"[]"),
        ("application/x-ndjson", b""),
        ("application/ndjson", b"\n\r\n"),
        ("application/jsonl", b"\n"),
    ],
)
def test_no_events_are_accepted_at_once(media_type: str, body: bytes, idle_webhook: Webhook):
    answer = idle_webhook.post(body, media_type)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 0})
    assert idle_webhook.inbox.events == 0


# Who may come in


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Authorization:"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        ["Authorization: Bearer wrong"],
        [f"Authorization: Bearer {TOKEN}x"],
        [f"Authorization: Bearer {TOKEN[:-1]}"],
        [f"Authorization: Bearer {TOKEN.upper()}"],
        [f"Authorization: Bearer {TOKEN} {TOKEN}"],
        [f"Authorization: Bearer {TOKEN}, Bearer {TOKEN}"],
        [f"Authorization: Basic {TOKEN}"],
        [f"Authorization: {TOKEN}"],
        [f"Authorization: Bearer\u00a0{TOKEN}"],
        [f"Authorization: Bearer {TOKEN}\u00e9"],
        [b"Authorization: Bearer \xff\xfe"],
        [f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"],
        ["Authorization: Bearer wrong", f"Authorization: Bearer {TOKEN}"],
        [f"X-Authorization: Bearer {TOKEN}"],
        [f"Cookie: token={TOKEN}"],
    ],
    ids=str,
)
def test_nobody_without_the_token_gets_in(lines: list[str | bytes], idle_webhook: Webhook):
    body = b'{"a":1}'
    request = head(
        *lines, "Content-Type: application/json", f"Content-Length: {len(body)}", token=None
    )
    answer = idle_webhook.send(request + body)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Bearer\r\n" in answer
    assert idle_webhook.inbox.events == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_in_any_case(scheme: str, idle_webhook: Webhook):
    lines = [f"Authorization: {scheme} {TOKEN}", "Content-Type: application/json"]
    answer = idle_webhook.send(head(*lines, "Content-Length: 2", token=None) + b"[]")
    assert answer.startswith(b"HTTP/1.1 202 ")


def test_nothing_of_a_body_is_asked_for_before_the_token_is_known(idle_webhook: Webhook):
    lines = ["Content-Type: application/json", "Content-Length: 10", "Expect: 100-continue"]
    with idle_webhook.connect() as connection:
        connection.sendall(head(*lines, "Authorization: Bearer wrong", token=None))
        assert read_answer(connection).startswith(b"HTTP/1.1 401 ")
        assert is_closed(connection)


def test_who_has_the_token_is_asked_for_the_body(idle_webhook: Webhook):
    lines = ["Content-Type: application/json", "Content-Length: 2", "Expect: 100-continue"]
    with idle_webhook.connect() as connection:
        connection.sendall(head(*lines))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"[]")
        assert read_answer(connection).startswith(b"HTTP/1.1 202 ")


# When there is too much, or the worker cannot take it


def test_more_events_than_the_rate_allows_are_put_off():
    with running_webhook(webhook_events_per_second=0.01, webhook_burst=4) as webhook:
        with Taker(webhook.inbox) as taker:
            assert webhook.post(b"[{},{},{}]").status_code == 202
            refused = webhook.post(b"[{},{},{}]")
            assert refused.status_code == 429
            # Two are missing, one comes in a hundred seconds.
            assert 190 < int(refused.headers["retry-after"]) <= 200
            assert webhook.post(b"{}").status_code == 202
            assert webhook.post(b"{}").status_code == 429
        assert taker.durable == [b"{}"] * 4


def test_the_rate_is_looked_at_before_the_body_is_read():
    lines = ["Content-Type: application/json", "Content-Length: 100"]
    with (
        running_webhook(webhook_events_per_second=0.001, webhook_burst=1) as webhook,
        Taker(webhook.inbox),
    ):
        assert webhook.post(b"{}").status_code == 202
        assert webhook.send(head(*lines)).startswith(b"HTTP/1.1 429 ")


def test_events_come_back_into_the_bucket_with_time():
    with running_webhook(webhook_events_per_second=1e9, webhook_burst=10) as webhook:
        with Taker(webhook.inbox) as taker:
            for _ in range(20):
                assert webhook.post(b"[{},{},{},{},{},{},{},{},{},{}]").status_code == 202
        assert len(taker.durable) == 200


def test_more_events_at_once_than_ever_allowed_are_too_large():
    with running_webhook(webhook_burst=2) as webhook:
        assert webhook.post(b"[{},{},{}]").status_code == 413
        assert webhook.inbox.events == 0


def test_a_full_inbox_puts_senders_off():
    with running_webhook(inbox=Inbox(max_bytes=1)) as webhook, ThreadPoolExecutor() as pool:
        first = pool.submit(webhook.post, b'{"a":1}')
        while not webhook.inbox.is_full:
            pass
        refused = webhook.post(b'{"a":2}')
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        (item,) = webhook.take()
        item.done()
        assert first.result().status_code == 202
        again = pool.submit(webhook.post, b'{"a":2}')
        (item,) = webhook.take()
        item.done()
        assert again.result().status_code == 202
        assert (item.payloads, list(item.positions)) == ([b'{"a":2}'], [2])


def test_events_that_could_not_be_ingested_are_to_be_sent_again():
    with running_webhook() as webhook, ThreadPoolExecutor() as pool:
        answer = pool.submit(webhook.post, b'{"a":1}')
        (item,) = webhook.take()
        item.failed("the disk /secret/path is full")
        assert answer.result().status_code == 503
        assert answer.result().headers["retry-after"] == "1"
        assert "secret" not in answer.result().text


def test_a_commit_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webhook_app, "COMMIT_SECONDS", 0.1)
    with running_webhook() as webhook:
        assert webhook.post(b'{"a":1}').status_code == 503
        (item,) = webhook.take()
        item.done()
        item.failed("too late")
        assert webhook.post(b"[]").status_code == 202
        assert webhook.source.metrics()["webhook_requests_waiting"] == 0


def test_a_sender_who_does_not_wait_for_the_answer_loses_nothing():
    with running_webhook() as webhook:
        with webhook.connect() as connection:
            connection.sendall(post_of(b'{"a":1}'))
            (item,) = webhook.take()
        item.done()
        assert item.payloads == [b'{"a":1}']
        assert webhook.post(b"[]").status_code == 202


# Any body


def test_any_body_is_answered_and_what_is_accepted_is_handed_over():
    with running_webhook(webhook_events_per_second=1e9) as webhook, Taker(webhook.inbox) as taker:

        @hypothesis_settings(max_examples=100)
        @given(
            media_type=st.sampled_from(["application/json", "application/x-ndjson"]),
            body=st.binary(max_size=60)
            | st.text(alphabet='[]{}:,"\\ \r\n01.e-a\0é', max_size=30).map(str.encode),
        )
        def send(media_type: str, body: bytes) -> None:
            before = len(taker.durable)
            answer = webhook.post(body, media_type)
            assert answer.status_code in {202, 422}
            results = taker.durable[before:]
            if answer.status_code == 422:
                assert media_type == "application/json" or "UTF-16" in answer.text
                assert results == []
            else:
                assert answer.json() == {"accepted": len(results)}
                assert all(
                    part in body.replace(b"\r", b" ").replace(b"\n", b" ") or part in body
                    for part in results
                )

        send()
