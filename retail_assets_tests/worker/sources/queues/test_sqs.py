"""Amazon SQS as its client sees it, and S3 behind it: servers (moto) of this machine."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread

import boto3
import pytest

from retail_assets.errors import UsageError
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.ledgers.workers import heartbeats
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.worker.build import Options, build_worker
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Metrics
from retail_assets.worker.sources.queues import source as source_module
from retail_assets.worker.sources.queues.base import Depth, Message, QueueError
from retail_assets.worker.sources.queues.bodies import open_notifications
from retail_assets.worker.sources.queues.named_files import NamedFiles
from retail_assets.worker.sources.queues.source import QueueSource
from retail_assets.worker.sources.queues.sqs import SqsQueue
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.faults.boundaries import run_watched
from retail_assets_tests.ingest.event_files.test_bucket import (  # fixtures
    DAY,
    bucket,  # noqa: F401
    endpoint,  # noqa: F401
    loader,  # noqa: F401
)
from retail_assets_tests.lake.test_s3 import KEYS
from retail_assets_tests.processes import finish, start
from retail_assets_tests.worker.sources.queues.test_bodies import notification
from retail_assets_tests.worker.sources.queues.test_source import (
    drain,
    no_waiting,  # noqa: F401
    seen,  # noqa: F401
    until,
)
from retail_assets_tests.worker.test_worker import worker

pytestmark = pytest.mark.processes

numbers = count(1)


class Server:
    """A queue of its own, and a client that sends to it."""

    def __init__(self, url: str, **attributes: str) -> None:
        self.client = boto3.client("sqs", endpoint_url=url)
        name = f"orders-{next(numbers)}" + (".fifo" if attributes else "")
        found = self.client.create_queue(QueueName=name, Attributes=attributes)
        self.url = found["QueueUrl"]

    def send(self, *bodies: str, **options: str) -> None:
        for body in bodies:
            self.client.send_message(QueueUrl=self.url, MessageBody=body, **options)


@pytest.fixture
def server(endpoint, monkeypatch) -> Server:  # noqa: F811
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return Server(endpoint)


def received(queue: SqsQueue, seconds: int = 60) -> Sequence[Message]:
    return queue.receive(wait_seconds=0, hold_seconds=seconds)


def test_messages_are_received_held_given_back_and_deleted(server):
    queue = SqsQueue(server.url)
    queue.check()
    assert queue.depth() == Depth(0, 0)
    before = time.time()
    server.send("one", "zwei ä")
    messages = received(queue)
    assert sorted(message.body for message in messages) == [b"one", "zwei ä".encode()]
    assert all(abs(message.sent_us / 1e6 - before) < 5 for message in messages)
    assert {message.deliveries for message in messages} == {1}
    assert queue.depth() == Depth(0, 2)
    assert received(queue) == []
    assert queue.extend(messages, 0) == set()
    again = received(queue)
    assert {m.message_id for m in again} == {m.message_id for m in messages}
    assert {message.deliveries for message in again} == {2}
    assert queue.delete(again) == {message.receipt for message in again}
    assert queue.depth() == Depth(0, 0)
    assert queue.extend(again, 60) == {message.receipt for message in again}


def test_standard_and_fifo_queues_are_read_into_the_lake_once(seen, server, endpoint):  # noqa: F811
    fifo = Server(endpoint, FifoQueue="true", ContentBasedDeduplication="true")
    server.send(event(1), "{", *(event(number) for number in range(100, 112)))
    for number in range(2, 12):
        fifo.send(event(number), MessageGroupId=f"G{number % 3}")
    for each in (server, fifo):
        drain_sqs(seen, each)
    assert len(seen.events()) == 23
    assert seen.rows("SELECT count(*) FROM raw_events") == [(24,)]
    names = seen.rows("SELECT DISTINCT source, source_name FROM raw_events ORDER BY ALL")
    assert [name for _, name in names] == [
        f"{SqsQueue(server.url).name}:w1",
        f"{SqsQueue(fifo.url).name}:w1",
    ]


class _Drained(SqsQueue):
    """A queue of which `drain` can see that nothing is in it."""

    @property
    def sent(self) -> bool:
        # The server counts what waits first and what is held then: a message whose hold ends in
        # between is in neither, and waits when it is asked again.
        return any(self.depth() != Depth(0, 0) for _ in range(2))


def drain_sqs(loader: EventLoader, server: Server) -> None:  # noqa: F811
    drain(loader.lake, loader.settings, _Drained(server.url))


def work(settings: Settings, url: str) -> None:
    """Read a queue into the lake; what is not deleted comes again after two seconds."""
    os.environ.update(KEYS)
    settings = settings.model_copy(update={"sqs_visibility_seconds": 2})
    drain(Lake.from_settings(settings), settings, _Drained(url))


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["before COMMIT", "after COMMIT"])
def test_a_worker_that_is_killed_around_its_commit_loses_and_repeats_no_message(
    seen,  # noqa: F811
    server,
    boundary,
):
    server.send(event(1), f"{event(2)}\nnull", "{")
    values = seen.settings.model_dump()
    killed = f"{boundary} of ingest events"
    died = start(run_watched, work, values, (server.url,), kill_at=killed)
    assert finish([died]) == [-signal.SIGKILL]
    assert sum(astuple(SqsQueue(server.url).depth())) == 3
    assert bool(seen.events()) == (boundary == "after COMMIT")
    drain_sqs(seen, server)
    assert seen.rows("SELECT count(*) FROM raw_events") == [(4,)]
    assert seen.events() == [("E1",), ("E2",)]
    assert len(seen.letters()) == 2


def test_a_queue_that_is_gone_or_never_was_is_one_sentence(server):
    queue = SqsQueue(server.url + "-gone")
    for call in (queue.check, lambda: received(queue)):
        with pytest.raises(QueueError, match=r"There is no queue .*-gone: .* correct the URL"):
            call()


def test_a_server_that_does_not_answer_is_one_sentence(server, monkeypatch):
    queue = SqsQueue("http://127.0.0.1:9/123/orders")
    with pytest.raises(QueueError, match=r"The queue orders does not answer at 127\.0\.0\.1:9"):
        queue.check()
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    without = SqsQueue("https://sqs.eu-west-2.amazonaws.com/123/orders")
    with pytest.raises(QueueError, match="for lack of credentials: set AWS_ACCESS_KEY_ID"):
        without.check()
    with pytest.raises(UsageError, match="set AWS_DEFAULT_REGION to its region"):
        SqsQueue("http://127.0.0.1:9/123/orders")


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """A server that refuses every call; gives the URL of a queue there."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "so"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/123/orders"
        httpd.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (403, "AccessDeniedException", r"may not be read .* they need sqs:ReceiveMessage, sqs:Del"),
        (403, "InvalidClientTokenId", "may not be read with these credentials"),
        (400, "KMS.AccessDeniedException", "kms:Decrypt if it is encrypted"),
        (400, "RequestThrottled", "is busy .*: it is read again in a moment"),
        (503, "ServiceUnavailable", "is busy"),
        (500, "Unheard", "is busy"),
        (400, "Unheard", r"cannot be read \(Unheard\): so"),
    ],
)
def test_a_refusal_is_one_sentence_that_says_what_to_do(server, status, code, sentence):
    with answering(status, code) as url:
        queue = SqsQueue(url)
        with pytest.raises(QueueError, match=f"The queue orders {sentence}|{sentence}"):
            queue.check()


def test_a_url_that_is_none_is_refused(monkeypatch, settings, lake):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for url in (
        "orders",
        "arn:aws:sqs:eu-west-2:123:orders",
        "https://sqs.eu-west-2.amazonaws.com",
    ):
        with pytest.raises(UsageError, match="is no URL of a queue, such as https://sqs"):
            SqsQueue(url)
    url = "https://sqs.eu-west-2.amazonaws.com/123/orders"
    assert SqsQueue(url)._client.meta.region_name == "eu-west-2"
    with pytest.raises(UsageError, match="set RETAIL_EVENTS=s3://"):
        build_worker(settings, Options(sqs_files=url))
    with pytest.raises(UsageError, match="need a queue each"):
        build_worker(settings, Options(sqs=url, sqs_files=url))
    worker = build_worker(settings, Options(files=False, sqs=url))
    assert [source.name for source in worker.sources] == ["sqs"]


class Notified:
    """A queue that is notified of the objects of a bucket, and a source that reads it."""

    def __init__(self, server: Server, bucket, loader: EventLoader) -> None:  # noqa: F811
        self.server, self.bucket, self.loader = server, bucket, loader
        self.metrics = Metrics()

    def notify(self, *paths: str, **changed: str) -> None:
        for path in paths:
            self.server.send(json.dumps(notification(f"{self.bucket.prefix}/{path}", **changed)))

    @contextmanager
    def reading(self, worker: str = "w1") -> Iterator[QueueSource]:
        loader = self.loader  # noqa: F811
        files = NamedFiles(loader.settings, loader.lake, self.metrics)
        source = QueueSource(
            _Drained(self.server.url),
            "sqs_files",
            settings=loader.settings,
            worker=worker,
            open_body=open_notifications("shop", self.bucket.prefix),
            files=files,
        )
        source.start(Inbox())
        try:
            yield source
        finally:
            source.stop()
            source.close()

    def drain(self) -> QueueSource:
        with self.reading() as source:
            until(lambda: not source._queue.sent)
        return source


@pytest.fixture
def notified(server, bucket, loader, monkeypatch) -> Notified:  # noqa: F811
    monkeypatch.setenv("RETAIL_EVENTS_LISTED", "false")
    # What is put there is whole, however new it is.
    monkeypatch.setenv("RETAIL_EVENT_SETTLE_SECONDS", "3600")
    loader = EventLoader(loader.session, Settings())
    return Notified(server, bucket, loader)


def test_objects_that_are_named_are_ingested_and_the_bucket_is_not_listed(notified, monkeypatch):
    from retail_assets.ingest.event_files.folder import EventFolder

    def refuse(_: EventFolder) -> None:
        raise AssertionError("the bucket is listed")

    monkeypatch.setattr(EventFolder, "list", refuse)
    put, loader = notified.bucket.put, notified.loader  # noqa: F811
    put(f"{DAY}/a b+ä.jsonl", [event(1), "{"])
    put(f"{DAY}/b.jsonl.gz", [event(2)])
    put(f"{DAY}/c.jsonl", (event(3) + "\n" + event(4)).encode())
    put(f"{DAY}/unnamed.jsonl", [event(5)])
    paths = [f"{DAY}/{name}" for name in ("a b+ä.jsonl", "b.jsonl.gz", "c.jsonl")]
    notified.notify(*paths, *paths[:2])
    notified.drain()
    assert loader.events() == [("E1",), ("E2",), ("E3",), ("E4",)]
    ledger = "SELECT path, version, lines, accepted, dead_lettered FROM event_files ORDER BY 1"
    expected = [(paths[0], 1, 2, 1, 1), (paths[1], 1, 1, 1, 0), (paths[2], 1, 2, 2, 0)]
    assert loader.rows(ledger) == expected
    # In any order, and again: nothing changes.
    notified.notify(*reversed(paths))
    notified.drain()
    assert loader.rows(ledger) == expected
    put(paths[0], [event(1), "{", event(6)])
    notified.notify(paths[0])
    notified.drain()
    assert loader.rows(ledger)[0] == (paths[0], 1, 3, 2, 1)
    pending = pending_event_files(loader.settings, loader.connection)
    assert pending.files == {}
    assert "not listed (RETAIL_EVENTS_LISTED)" in pending.about_not_read()


def test_a_worker_of_both_kinds_of_queues_ends_in_order(notified, server, endpoint):  # noqa: F811
    loader = notified.loader  # noqa: F811
    events = Server(endpoint)
    notified.bucket.put(f"{DAY}/a.jsonl", [event(1), "{"])
    notified.notify(f"{DAY}/a.jsonl")
    events.send(event(2), "{")
    options = ("--no-consumers", "--sqs", events.url, "--sqs-files", notified.server.url)
    with worker(loader.settings, *options) as process:
        until(lambda: len(loader.events()) == 2)
        until(lambda: not any(_Drained(each.url).sent for each in (events, notified.server)))
        process.send_signal(signal.SIGTERM)
        assert process.end()[0] == 0
    assert loader.letters() == [f"file:{DAY}/a.jsonl:2", loader.letters()[1]]
    assert loader.rows("SELECT count(*) FILTER (deleted_at IS NULL) FROM queue_messages") == [(0,)]
    [newest] = heartbeats(loader.connection, latest=1)
    assert newest.sources == ("files", "sqs", "sqs_files")
    assert {"sqs_lag", "sqs_files_under_way"} <= newest.metrics.keys()


def test_an_object_that_is_gone_and_what_asks_for_nothing_are_counted(notified):
    notified.notify(f"{DAY}/gone.jsonl", f"{DAY}/notes.txt")
    notified.server.send(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}))
    source = notified.drain()
    measured = source.metrics()
    assert (measured["sqs_files_gone_total"], measured["sqs_files_ignored_total"]) == (1, 2)
    assert notified.loader.rows("SELECT * FROM failed_event_files") == []


def test_a_file_that_cannot_be_read_is_named_and_its_notification_ends(notified, monkeypatch):
    monkeypatch.setattr(source_module, "AGAIN_SECONDS", 0)
    notified.bucket.put(f"{DAY}/bad.jsonl.gz", b"\x1f\x8bnonsense")
    notified.bucket.put(f"{DAY}/good.jsonl", [event(1)])
    notified.notify(f"{DAY}/bad.jsonl.gz", f"{DAY}/good.jsonl")
    notified.drain()
    loader = notified.loader  # noqa: F811
    assert loader.events() == [("E1",)]
    [(path, attempts)] = loader.rows("SELECT path, attempts FROM failed_event_files")
    assert (path, attempts) == (f"{DAY}/bad.jsonl.gz", source_module.ATTEMPTS)
    # It is looked at again though nothing is listed, and read once it is whole.
    monkeypatch.setenv("RETAIL_EVENT_SETTLE_SECONDS", "0")
    settings = Settings()
    assert list(pending_event_files(settings, loader.connection).left_alone) == [path]
    notified.bucket.put(path, [event(2)])
    assert list(pending_event_files(settings, loader.connection).files) == [path]
    EventLoader(loader.session, settings).ingest()
    assert loader.events() == [("E1",), ("E2",)]
    assert loader.rows("SELECT path FROM failed_event_files") == []


def test_while_the_lake_cannot_be_written_to_notifications_stay(notified, monkeypatch):
    from retail_assets.lake import connection as lake_connection

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    notified.bucket.put(f"{DAY}/a.jsonl", [event(1)])
    notified.notify(f"{DAY}/a.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(lake_connection, "commit", fail)
        with notified.reading() as source:
            until(source.problem)
            assert "The disk is full" in (source.problem() or "")
    notified.drain()
    assert notified.loader.events() == [("E1",)]


def test_a_notification_is_delivered_again_if_the_worker_dies_before_it_is_deleted(notified):
    notified.bucket.put(f"{DAY}/a.jsonl", [event(1), "{"])
    notified.notify(f"{DAY}/a.jsonl")
    with notified.reading() as source:
        source._leases.done = lambda _: None  # type: ignore[method-assign]
        until(notified.loader.events)
    expected = notified.loader.tables()
    notified.drain()
    assert notified.loader.tables() == expected
