"""The intake: whatever goes wrong, each event ends up in the lake once, and its sender is told."""

import gc
import resource
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timezone

import duckdb
import pytest

from retail_assets.ingest.events.batch import BatchResult, EventBatch
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.ingest.messages.load import Received
from retail_assets.ingest.repair.dead_letters import redrive
from retail_assets.lake.compaction import Limits
from retail_assets.lake.connection import Lake
from retail_assets.worker import committer as committer_module
from retail_assets.worker.committer import Committer
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Metrics
from retail_assets_tests.event_files import EventLoader, event

DAY = date(2026, 10, 12)


class Sender:
    """Offers events, and keeps what it is told of them."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.told: list[str] = []
        self.position = 0

    def offer(self, *payloads: str) -> None:
        positions = range(self.position, self.position + len(payloads))
        self.position += len(payloads)
        name = f"{positions[0]}-{positions[-1]}"
        self.inbox.put(
            Received(
                "kafka",
                "orders:0",
                DAY,
                positions,
                [payload.encode() for payload in payloads],
                offered_at=0.0,
                done=lambda: self.told.append(f"{name} done"),
                failed=lambda reason: self.told.append(f"{name} failed: {reason}"),
            )
        )


@pytest.fixture
def seen(settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as seen:
        yield seen


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """Have the garbage collector pass over what was there before, most of what it looks at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "BACKOFF_SECONDS", (0.001,))


def run(lake: Lake, inbox: Inbox, metrics: Metrics, stop: Callable[[], bool] | None = None) -> int:
    """Ingest all that waits; returns how many heartbeats there were."""
    beats: list[int] = []
    draining, give_up = threading.Event(), threading.Event()
    draining.set()

    def beat(_: duckdb.DuckDBPyConnection) -> None:
        beats.append(1)
        if stop and stop():
            give_up.set()

    Committer(lake, inbox, metrics, beat=beat, beat_is_due=lambda: True).run(draining, give_up)
    return len(beats)


def test_all_that_waits_is_ingested_and_counted_before_the_committer_ends(seen):
    inbox, metrics = Inbox(), Metrics()
    sender = Sender(inbox)
    sender.offer(event(1), event(1))
    sender.offer("{", event(2))
    assert run(seen.lake, inbox, metrics) >= 1
    assert seen.events() == [("E1",), ("E2",)]
    assert sender.told == ["0-1 done", "2-3 done"]
    assert vars(metrics.sources["kafka"]) == {
        "lines": 4,
        "accepted": 2,
        "dead_lettered": 1,
        "duplicate": 1,
    }
    assert metrics.problems == {}


def test_what_came_together_is_counted_by_source(seen):
    inbox, metrics = Inbox(), Metrics()
    for source, payloads in {"kafka": [event(1), "{"], "webhook": [event(2), event(1)]}.items():
        payload_bytes = [payload.encode() for payload in payloads]
        inbox.put(Received(source, "a", DAY, [0, 1], payload_bytes, offered_at=0.0))
    run(seen.lake, inbox, metrics)
    assert len(seen.rows("SELECT DISTINCT processed_at FROM enriched_events")) == 1
    counts = {source: list(vars(totals).values()) for source, totals in metrics.sources.items()}
    assert counts == {"kafka": [2, 1, 1, 0], "webhook": [2, 1, 0, 1]}


def test_an_event_that_breaks_every_transaction_is_found_and_becomes_a_dead_letter(
    seen, monkeypatch, caplog
):
    take = committer_module.ingest

    def breaking(session, batch, **options):
        for received in batch:
            if received.defect is None and any(b"poison" in each for each in received.payloads):
                raise duckdb.InternalException("it met something odd")
        return take(session, batch, **options)

    monkeypatch.setattr(committer_module, "ingest", breaking)
    inbox, metrics = Inbox(), Metrics()
    sender = Sender(inbox)
    sender.offer(event(1), event(2))
    sender.offer(event(3), event(4, note="poison"), event(5))
    sender.offer(event(6))
    run(seen.lake, inbox, metrics)
    assert seen.events() == [("E1",), ("E2",), ("E3",), ("E5",), ("E6",)]
    assert seen.rows("SELECT position, reason FROM dead_letter_events") == [(3, "not_taken")]
    assert seen.rows(
        "SELECT max(position), sum(lines), sum(accepted), sum(dead_lettered) FROM stream_offsets"
    ) == [(6, 6, 5, 1)]
    assert sorted(sender.told) == ["0-1 done", "2-4 done", "5-5 done"]
    assert metrics.problems == {}
    (given_up,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert given_up == (
        "An event becomes the dead letter kafka:orders:0:3 (not_taken): it met something odd"
    )


def test_an_event_that_needs_more_memory_than_there_is_is_refused_alone_and_kept_whole(
    seen, caplog
):
    wide = event(2, **{f"field_{number:05d}": number for number in range(44_000)})
    inbox, metrics = Inbox(), Metrics()
    sender = Sender(inbox)
    sender.offer(event(1), wide, event(3))
    sender.offer(event(4))
    run(replace(seen.lake, memory_limit="48MB"), inbox, metrics)
    assert seen.events() == [("E1",), ("E3",), ("E4",)]
    assert seen.rows("SELECT position, reason, payload FROM dead_letter_events") == [
        (1, "out_of_memory", wide)
    ]
    assert sorted(sender.told) == ["0-2 done", "3-3 done"]
    assert metrics.problems == {}
    [refused] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "the dead letter kafka:orders:0:1 (out_of_memory): Out of Memory Error" in refused

    [redriven] = redrive(seen.session, seen.letters())
    assert redriven.outcome == "accepted"
    assert seen.events() == [("E1",), ("E2",), ("E3",), ("E4",)]


def breaking(monkeypatch: pytest.MonkeyPatch, errors: Iterator[Exception]) -> None:
    """Have transactions with the word in a payload fail, for as long as there are errors."""
    take = committer_module.ingest

    def failing(session, batch, **options):
        poisoned = any(b"poison" in each for received in batch for each in received.payloads)
        if poisoned and (error := next(errors, None)):
            raise error
        return take(session, batch, **options)

    monkeypatch.setattr(committer_module, "ingest", failing)


def test_memory_that_is_short_for_a_while_makes_no_event_a_dead_letter(seen, monkeypatch):
    shortages = (duckdb.OutOfMemoryException("no block"), MemoryError())
    breaking(monkeypatch, iter([*shortages, *shortages, duckdb.IOException("gone"), *shortages]))
    inbox = Inbox()
    sender = Sender(inbox)
    sender.offer(event(1, note="poison"))
    run(seen.lake, inbox, Metrics())
    assert seen.events() == [("E1",)]
    assert sender.told == ["0-0 done"]


def test_while_memory_is_short_for_every_event_none_is_refused(seen, monkeypatch):
    # The last to fail is the made-up event: where it succeeds, the real one is to blame.
    apply, failures = EventBatch.apply, iter(range(13))

    def failing(batch: EventBatch) -> BatchResult:
        if next(failures, None) is not None:
            raise duckdb.OutOfMemoryException("no block")
        return apply(batch)

    monkeypatch.setattr(EventBatch, "apply", failing)
    inbox = Inbox()
    sender = Sender(inbox)
    sender.offer(event(1), event(2))
    run(seen.lake, inbox, Metrics())
    assert next(failures, None) is None
    assert seen.events() == [("E1",), ("E2",)]
    assert sender.told == ["0-1 done"]


def test_while_the_lake_cannot_be_written_to_nothing_is_abandoned(seen, monkeypatch):
    transaction, failures = Lake.transaction, iter(range(12))

    def failing(lake, connection, message):
        if next(failures, None) is not None:
            raise duckdb.IOException("disk full")
        return transaction(lake, connection, message)

    inbox, metrics = Inbox(), Metrics()
    sender = Sender(inbox)
    sender.offer(event(1), event(2))
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "transaction", failing)
        run(seen.lake, inbox, metrics)
    assert next(failures, None) is None
    assert seen.events() == [("E1",), ("E2",)]
    assert seen.rows("SELECT count(*) FROM dead_letter_events") == [(0,)]
    assert sender.told == ["0-1 done"]


def test_a_full_disk_makes_no_event_a_dead_letter(seen, caplog):
    inbox, metrics, give_up = Inbox(), Metrics(), threading.Event()
    sender = Sender(inbox)
    sender.offer(event(1), event(2, note="x" * 500_000), event(3))
    draining = threading.Event()
    draining.set()

    def beat(connection: duckdb.DuckDBPyConnection) -> None:
        now = datetime.now(timezone.utc)
        heartbeat.beat(connection, "w1", ["kafka"], heartbeat.RUNNING, None, {}, now)

    loader = Committer(seen.lake, inbox, metrics, beat=beat, beat_is_due=lambda: False)
    thread = threading.Thread(target=loader.run, args=(draining, give_up))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        thread.start()
        while thread.is_alive() and len(failures(caplog)) < 6:
            thread.join(0.01)
        waits = (thread.is_alive(), list(sender.told), set(metrics.problems))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    thread.join(60)

    assert waits == (True, [], {"intake"})
    assert seen.events() == [("E1",), ("E2",), ("E3",)]
    assert seen.rows("SELECT count(*) FROM dead_letter_events") == [(0,)]
    assert sender.told == ["0-2 done"]


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "tried again" in record.message]


@pytest.mark.usefixtures("quick_collections")
@pytest.mark.parametrize("cold", [False, True])
def test_of_connections_that_failed_none_is_left(seen, monkeypatch, cold):
    """Whether the lake cannot be written to, or what a new connection needs cannot be read."""
    open_, transaction, warm = Lake.open, Lake.transaction, committer_module.warm_session
    opened: list[weakref.ref[duckdb.DuckDBPyConnection]] = []
    caches: list[weakref.ref[object]] = []
    at_once: list[int] = []
    failures = iter(range(6))

    def opening(lake):
        connection = open_(lake)
        opened.append(weakref.ref(connection))
        gc.collect()
        at_once.append(len([each for each in caches if each() is not None]))
        return connection

    def failing(lake, connection, message):
        if next(failures, None) is not None:
            raise duckdb.IOException("disk full")
        return transaction(lake, connection, message)

    def warming(lake, connection, mappings):
        session = warm(lake, connection, mappings)
        caches.append(weakref.ref(session.cache))
        if cold and len(opened) > 1:
            raise duckdb.IOException("no such file")
        return session

    # pytest keeps what is logged, and the frames of the exceptions with it.
    monkeypatch.setattr(committer_module.logger, "disabled", True)
    monkeypatch.setattr(Lake, "open", opening)
    monkeypatch.setattr(Lake, "transaction", failing)
    monkeypatch.setattr(committer_module, "warm_session", warming)
    inbox = Inbox()
    sender = Sender(inbox)
    sender.offer(event(1), event(2))
    run(seen.lake, inbox, Metrics())
    gc.collect()
    assert sender.told == ["0-1 done"]
    assert len(opened) > 3
    # Each has a filter of all that there is.
    assert max(at_once) == 1
    assert [each for each in opened if each() is not None] == []


def test_a_connection_that_cannot_be_made_ready_is_closed(seen, monkeypatch):
    failed: list[duckdb.DuckDBPyConnection] = []

    def failing(_, connection, mappings):
        failed.append(connection)
        raise duckdb.IOException("no such file")

    monkeypatch.setattr(committer_module, "warm_session", failing)
    loader = Committer(seen.lake, Inbox(), Metrics(), beat=print, beat_is_due=lambda: False)
    loader._session = seen.session
    loader._recover()
    assert loader._session is seen.session
    with pytest.raises(duckdb.IOException):
        loader.run(threading.Event(), threading.Event())
    assert len(failed) == 2
    for each in failed:
        with pytest.raises(duckdb.ConnectionException):
            each.execute("SELECT 1")


def test_who_sent_what_cannot_be_committed_any_more_is_told_so(seen, monkeypatch):
    def failing(*_):
        raise duckdb.IOException("disk full")

    inbox, metrics = Inbox(), Metrics()
    sender = Sender(inbox)
    sender.offer(event(1), event(2))
    sender.offer(event(3))
    give_up = threading.Event()
    draining = threading.Event()
    draining.set()
    monkeypatch.setattr(Lake, "transaction", failing)
    worker = threading.Thread(
        target=Committer(
            seen.lake, inbox, metrics, beat=lambda _: None, beat_is_due=lambda: True
        ).run,
        args=(draining, give_up),
    )
    worker.start()
    while not metrics.problems:
        time.sleep(0.01)
    assert "disk full" in metrics.problems["intake"]
    give_up.set()
    worker.join(60)
    assert [told.split(":")[0] for told in sender.told] == ["0-1 failed", "2-2 failed"]
    monkeypatch.undo()
    assert seen.events() == []


def test_between_batches_the_lake_is_kept_up(seen, monkeypatch):
    for module, name, value in (
        (committer_module, "MAX_EVENTS", 1),
        (committer_module, "FIRST_UPKEEP_SECONDS", 0),
        (committer_module, "UPKEEP_SECONDS", 0),
        (committer_module, "STEP_SECONDS", 0),
        (offsets, "COMPACT_ROWS", 2),
        (heartbeat, "COMPACT_ROWS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    inbox, metrics = Inbox(), Metrics()
    sender = Sender(inbox)
    for number in range(25):
        sender.offer(event(number))
    draining = threading.Event()
    draining.set()

    def beat(connection: duckdb.DuckDBPyConnection) -> None:
        now = datetime.now(timezone.utc)
        heartbeat.beat(connection, "w1", ["kafka"], heartbeat.RUNNING, None, {}, now)

    eager = Limits(inlined_rows=1, min_files=2)
    loader = Committer(
        seen.lake, inbox, metrics, beat=beat, beat_is_due=lambda: True, compaction=eager
    )
    loader.run(draining, threading.Event())

    assert metrics.problems == {}
    assert len(seen.events()) == 25
    [(position, lines)] = seen.rows("SELECT max(position), sum(lines) FROM stream_offsets")
    assert (position, lines) == (25, 25)
    for kept in ("stream_offsets", "stream_workers"):
        [(rows,)] = seen.rows(f"SELECT count(*) FROM {kept}")
        assert rows < 20, kept
    files = seen.rows("SELECT * FROM ducklake_list_files('lake', 'raw_events')")
    assert len(files) < 20
