"""A queue as a source: each message in the lake once, and deleted only then."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from retail_assets.ingest.events.batch import EventBatch
from retail_assets.ingest.ledgers import queue_messages
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.worker import committer as committer_module
from retail_assets.worker.committer import Committer
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.metrics import Metrics
from retail_assets.worker.sources.queues import leases as leases_module
from retail_assets.worker.sources.queues import source as source_module
from retail_assets.worker.sources.queues.base import QueueError
from retail_assets.worker.sources.queues.bodies import open_events
from retail_assets.worker.sources.queues.source import QueueSource
from retail_assets_tests.conftest import copy_data
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.faults.boundaries import Boundaries
from retail_assets_tests.worker.sources.queues.memory_queue import MemoryQueue

pytestmark = pytest.mark.slow

HANG_SECONDS = 120


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr(source_module, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(source_module, "DEPTH_SECONDS", 0.01)
    monkeypatch.setattr(leases_module, "KEEP_SECONDS", 0.01)
    monkeypatch.setattr(leases_module, "DELETE_SECONDS", 0.01)
    monkeypatch.setattr(leases_module, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(committer_module, "BACKOFF_SECONDS", (0.01,))


@pytest.fixture
def seen(settings: Settings, lake: Lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as seen:
        yield seen


def until(what: Callable[[], object]) -> None:
    """Wait for something to be so; a red test instead of a stuck one."""
    deadline = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


@dataclass
class Reading:
    """A source that reads a queue into an inbox."""

    source: QueueSource
    inbox: Inbox
    metrics: Metrics = field(default_factory=Metrics)

    def measured(self, name: str) -> float:
        return self.source.metrics()[f"sqs_{name}"]


@contextmanager
def reading(
    settings: Settings, queue: MemoryQueue, *, worker: str = "w1", **changed: object
) -> Iterator[Reading]:
    """A source in its threads, without anybody who commits."""
    settings = settings.model_copy(update=changed)
    source = QueueSource(queue, "sqs", settings=settings, worker=worker, open_body=open_events)
    found = Reading(source, Inbox())
    source.start(found.inbox)
    try:
        yield found
    finally:
        source.stop()
        found.inbox.close()
        source.close()


@contextmanager
def working(lake: Lake, settings: Settings, queue: MemoryQueue, **options) -> Iterator[Reading]:
    """A source, and a committer as the worker has one."""
    with reading(settings, queue, **options) as found:
        draining, give_up = threading.Event(), threading.Event()
        committer = Committer(
            lake, found.inbox, found.metrics, beat=lambda _: None, beat_is_due=lambda: False
        )
        thread = threading.Thread(target=committer.run, args=(draining, give_up))
        thread.start()
        try:
            yield found
        finally:
            found.source.stop()
            draining.set()
            found.inbox.wake()
            thread.join(HANG_SECONDS)


def drain(lake: Lake, settings: Settings, queue: MemoryQueue, **options) -> Reading:
    """Read a queue until it has nothing more."""
    with working(lake, settings, queue, **options) as found:
        until(lambda: not queue.sent)
    return found


def counts(loader: EventLoader) -> list[tuple]:
    return loader.rows(
        "SELECT sum(lines)::INT, sum(accepted)::INT, sum(dead_lettered)::INT, sum(duplicate)::INT"
        " FROM stream_offsets WHERE name = 'sqs'"
    )


def rows(loader: EventLoader) -> list[tuple]:
    """What came of the messages, whoever read them."""
    return loader.rows(
        "SELECT 'raw', payload, received_at, received_date, event_id FROM raw_events"
        " UNION ALL SELECT 'event', event_id, received_at, received_date, order_id"
        " FROM enriched_events UNION ALL SELECT 'dead', payload, received_at, received_date, reason"
        " FROM dead_letter_events ORDER BY ALL"
    )


def test_each_message_is_in_the_lake_once_and_deleted_then(seen):
    queue = MemoryQueue()
    queue.send(event(1), f"[{event(2)}, {event(1)}]", "{", f"{event(3)}\nnonsense")
    queue.send(*(event(number) for number in range(10, 20)))
    drain(seen.lake, seen.settings, queue)
    assert len(seen.events()) == 13
    assert counts(seen) == [(16, 13, 2, 1)]
    assert seen.rows(
        "SELECT DISTINCT source, source_name, received_date::VARCHAR, received_at::DATE::VARCHAR"
        " FROM raw_events"
    ) == [("sqs", "orders:w1", "2026-10-12", "2026-10-12")]
    assert seen.rows("SELECT min(position), max(position), count(DISTINCT position), count(*)"
                     " FROM raw_events") == [(1, 16, 16, 16)]  # fmt: skip


def test_nothing_is_deleted_before_the_commit(seen):
    queue = MemoryQueue()
    queue.send(event(1))
    with reading(seen.settings, queue) as found:
        until(lambda: found.inbox.events == 1)
        assert "delete" not in queue.calls
    assert list(queue.sent) == ["M1"]
    assert queue.sent["M1"].hidden_until <= time.monotonic(), "it was given back"
    assert "delete" not in queue.calls


def test_a_message_that_waits_is_held_for_as_long_as_it_takes(seen):
    queue = MemoryQueue()
    queue.send(event(1))
    with reading(seen.settings, queue) as found:
        until(lambda: found.inbox.events == 1)
        [lease] = found.source._leases._leases()
        for _ in range(3):
            queue.calls.clear()
            lease.until = soon = time.monotonic() + 30
            until(lambda: "extend to 60" in queue.calls)
            until(lambda: lease.until > soon + 20)  # noqa: B023
        [received] = found.inbox.take(max_events=9, linger_seconds=0, timeout_seconds=0)
        assert received.message.is_held()
        assert queue.sent["M1"].deliveries == 1


def test_a_message_that_comes_again_changes_nothing_and_is_deleted(seen):
    queue = MemoryQueue()
    queue.send(event(1), "{", f"{event(2)}\n1")
    again = queue.copy()
    drain(seen.lake, seen.settings, queue)
    before = seen.tables(), counts(seen)
    found = drain(seen.lake, seen.settings, again, worker="w2")
    assert (seen.tables(), counts(seen)) == before
    assert found.measured("repeated_total") == 3
    # A message of the same content is another message.
    again.send("{")
    drain(seen.lake, seen.settings, again, worker="w3")
    assert counts(seen) == [(5, 2, 3, 0)]


def test_two_workers_that_have_the_same_message_ingest_it_once(seen):
    queue = MemoryQueue()
    queue.send(event(1), "{")
    with (
        reading(seen.settings, queue.copy()) as first,
        working(seen.lake, seen.settings, queue, worker="w2") as second,
    ):
        until(lambda: first.inbox.events == 2)
        stale = first.inbox.take(max_events=9, linger_seconds=0, timeout_seconds=0)
        until(lambda: not queue.sent)
        second.inbox.put(*stale)
        queue.send(event(2))
        until(lambda: not queue.sent)
    assert counts(seen) == [(3, 2, 1, 0)]


def test_a_message_that_is_held_back_no_longer_is_left_to_whoever_gets_it_next(seen):
    queue = MemoryQueue()
    queue.send(event(1), "{")
    with working(seen.lake, seen.settings, queue) as worker:
        with reading(seen.settings, MemoryQueue(sent=queue.copy().sent)) as slow:
            until(lambda: slow.inbox.events == 2)
            stale = slow.inbox.take(max_events=9, linger_seconds=0, timeout_seconds=0)
        until(lambda: not queue.sent)
        # It gave them back; by now the ledger may know nothing of them any more.
        with seen.lake.transaction(seen.connection, "test"):
            seen.connection.execute("DELETE FROM lake.queue_messages")
        worker.inbox.put(*stale)
        queue.send(event(2))
        until(lambda: not queue.sent)
    assert counts(seen) == [(3, 2, 1, 0)]


def test_messages_whose_deletion_fails_are_deleted_later_and_count_once(seen):
    queue = MemoryQueue(deletes=False)
    queue.send(event(1), "{")
    with working(seen.lake, seen.settings, queue) as found:
        until(lambda: found.source.problem() == "orders deletes nothing")
        assert len(queue.sent) == 2
        queue.deletes = True
        until(lambda: not queue.sent)
        until(lambda: found.source.problem() is None)
    assert counts(seen) == [(2, 1, 1, 0)]


def test_a_queue_in_trouble_says_so_and_is_read_on_later(seen):
    queue = MemoryQueue(trouble="orders is away")
    source = QueueSource(queue, "sqs", settings=seen.settings, worker="w", open_body=open_events)
    with pytest.raises(QueueError, match="orders is away"):
        source.start(Inbox())
    queue.trouble = None
    with working(seen.lake, seen.settings, queue) as found:
        queue.trouble = "orders is away"
        until(lambda: found.source.problem() == "orders is away")
        queue.send(event(1))
        queue.trouble = None
        until(lambda: not queue.sent)
        until(lambda: found.source.problem() is None)
    assert seen.events() == [("E1",)]


def test_metrics_say_how_much_waits_and_how_old_it_is(seen, monkeypatch):
    monkeypatch.setattr(source_module, "MOST_MESSAGES", 2)
    queue = MemoryQueue(most_at_once=1)
    queue.send(*(event(n) for n in range(99)), sent_us=int((time.time() - 3600) * 1e6))
    with reading(seen.settings, queue) as found:
        until(lambda: found.measured("lag") == 99 - found.measured("under_way") > 0)
        assert 3600 <= found.measured("lag_seconds") < 3700
    queue.sent.clear()
    queue.calls.clear()
    with reading(seen.settings, queue) as found:
        until(lambda: queue.calls.count("depth") > 1 < queue.calls.count("receive"))
        assert found.measured("lag") == found.measured("lag_seconds") == 0


def test_while_the_lake_cannot_be_written_to_messages_stay_and_are_reported(seen, monkeypatch):
    queue = MemoryQueue()
    queue.send(event(1), "{")
    commit = lake_connection.commit

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    with working(seen.lake, seen.settings, queue) as found:
        monkeypatch.setattr(lake_connection, "commit", fail)
        queue.send(event(2))
        until(lambda: found.metrics.problems)
        assert "The disk is full" in found.metrics.problems["intake"]
        assert queue.sent
        monkeypatch.setattr(lake_connection, "commit", commit)
        until(lambda: not queue.sent)
    assert counts(seen) == [(3, 2, 1, 0)]


def test_the_ledger_keeps_what_may_come_again_and_nothing_else(seen):
    queue = MemoryQueue()
    queue.send(event(1), event(2), sent_us=int(time.time() * 1e6))
    lost = queue.copy()
    queue.deletes = False
    with working(seen.lake, seen.settings, queue) as found:
        until(lambda: found.metrics.sources and found.metrics.sources["sqs"].lines == 2)
        found.source.note_deleted(seen.lake, seen.connection)
        assert ledger(seen) == [("M1", 1, False), ("M2", 1, False)]
        del queue.sent["M2"]  # as if another had deleted it
        queue.deletes = True
        until(lambda: not queue.sent)
        until(lambda: found.measured("under_way") == 0)
        found.source.note_deleted(seen.lake, seen.connection)
        assert ledger(seen) == [("M1", 1, True), ("M2", 1, True)]
    drain(seen.lake, seen.settings, lost, worker="w2")
    assert counts(seen) == [(2, 2, 0, 0)]
    change(seen, "deleted_at = now() - INTERVAL 6 MINUTE WHERE message_id = 'M1'")
    change(seen, "sent_at = now() - INTERVAL 16 DAY, deleted_at = NULL WHERE message_id = 'M2'")
    found.source.note_deleted(seen.lake, seen.connection)
    assert ledger(seen) == []


def change(loader: EventLoader, how: str) -> None:
    with loader.lake.transaction(loader.connection, "test"):
        loader.connection.execute(f"UPDATE lake.queue_messages SET {how}")


def ledger(loader: EventLoader) -> list[tuple]:
    return loader.rows(
        "SELECT message_id, events, deleted_at IS NOT NULL FROM queue_messages ORDER BY ALL"
    )


def test_part_of_a_message_that_was_committed_is_not_committed_again(seen):
    queue = MemoryQueue()
    queue.send(f"{event(1)}\n1\n2\n{event(2)}")
    with reading(seen.settings, queue.copy()) as first:
        until(lambda: first.inbox.events == 4)
        [received] = first.inbox.take(max_events=9, linger_seconds=0, timeout_seconds=0)
        part = Received(
            **vars(received)
            | {
                "positions": received.positions[:2],
                "payloads": received.payloads[:2],
                "recorded_us": received.recorded_us[:2],
            }
        )
        ingest(seen.session, [part])
    assert ledger(seen) == [("M1", 2, False)]
    drain(seen.lake, seen.settings, queue, worker="w2")
    assert counts(seen) == [(4, 2, 2, 0)]
    assert ("M1", 4, False) in ledger(seen)


def test_a_message_whose_events_are_committed_one_by_one_counts_once(seen, monkeypatch):
    apply = EventBatch.apply

    def fail_with_poison(batch: EventBatch):
        if batch._execute(
            "SELECT 1 FROM temp.main.staged_lines WHERE payload LIKE '%poison%' AND defect IS NULL"
        ).fetchone():
            raise ValueError("poison")
        return apply(batch)

    monkeypatch.setattr(EventBatch, "apply", fail_with_poison)
    queue = MemoryQueue()
    queue.send(f"{event(1)}\n{event(2, note='poison')}\n1\n{event(3)}", event(4))
    again = queue.copy()
    drain(seen.lake, seen.settings, queue)
    assert counts(seen) == [(5, 3, 2, 0)]
    assert seen.rows("SELECT reason FROM dead_letter_events ORDER BY 1") == [
        ("not_an_object",),
        ("not_taken",),
    ]
    drain(seen.lake, seen.settings, again, worker="w2")
    assert counts(seen) == [(5, 3, 2, 0)]


@dataclass
class QueueBoundaries(Boundaries):
    """Keeps what the queue would deliver again at each boundary, too."""

    queue: MemoryQueue = field(default_factory=MemoryQueue)
    queues: list[MemoryQueue] = field(default_factory=list)

    def _pass(self, name: str) -> None:
        super()._pass(name)
        self.queues.append(self.queue.copy())


def test_killed_at_any_commit_boundary_the_next_worker_gives_the_same_tables(
    settings, lake, tmp_path_factory, monkeypatch
):
    queue = MemoryQueue(most_at_once=10)
    queue.send(event(1), f"{event(2)}\nnull", "{", event(1, region="South"))
    expected_queue = queue.copy()
    keep = tmp_path_factory.mktemp("kept")
    with monkeypatch.context() as patched:
        patched.setattr(Lake, "transaction", Lake.transaction)
        patched.setattr(lake_connection, "commit", lake_connection.commit)
        boundaries = QueueBoundaries(data_dir=settings.data_dir, keep=keep, queue=queue)
        boundaries.watch()
        drain(lake, settings, queue)
        with lake.connect() as connection:
            source = QueueSource(
                expected_queue, "sqs", settings=settings, worker="w", open_body=open_events
            )
            source._leases._deleted += ["M1", "M2"]
            source.note_deleted(lake, connection)
    with EventLoader.open(settings) as loader:
        expected = rows(loader), counts(loader)
    assert expected[1] == [(5, 2, 3, 0)]
    assert "after COMMIT of ingest events" in boundaries.passed
    for number, waiting in enumerate(boundaries.queues):
        copy = settings.model_copy(update={"data_dir": tmp_path_factory.mktemp("copy")})
        for name in ("catalog", "data_path", "lake_dir", "exports_dir", "events_location"):
            copy.__dict__.pop(name, None)
        copy_data(keep / str(number), copy)
        if waiting.sent:
            drain(Lake.from_settings(copy), copy, waiting, worker="w2")
        with EventLoader.open(copy) as loader:
            assert (rows(loader), counts(loader)) == expected, boundaries.passed[number]


def test_positions_only_grow_in_the_inbox_whoever_receives(seen):
    queue = MemoryQueue(most_at_once=1)
    queue.send(*(event(number) for number in range(200)))
    with reading(seen.settings, queue) as found:
        until(lambda: found.inbox.events == 200)
        batch = found.inbox.take(max_events=999, linger_seconds=0, timeout_seconds=0)
    positions = [position for received in batch for position in received.positions]
    assert positions == list(range(1, 201))


def test_no_more_is_received_than_can_be_held(seen, monkeypatch):
    monkeypatch.setattr(source_module, "MOST_MESSAGES", 5)
    queue = MemoryQueue(most_at_once=1)
    queue.send(*(event(number) for number in range(50)))
    with reading(seen.settings, queue) as found:
        until(lambda: found.measured("under_way") >= 5)
        time.sleep(0.1)
        assert found.measured("under_way") <= 5 + source_module.RECEIVERS
    with suppress(KeyError):
        drain(seen.lake, seen.settings, queue, worker="w2")
    assert len(seen.events()) == 50


def test_a_held_message_is_not_known_to_be_deleted_once_its_time_is_over():
    message = MemoryQueue()
    message.send("{}")
    [received] = message.receive(wait_seconds=0, hold_seconds=60)
    leases = leases_module.Leases(message, 60, lambda *_: None)
    [lease] = leases.take([received], time.monotonic() - 61)
    assert not lease.is_held()
    leases.done(lease)
    assert (leases.count, leases.deleted()) == (0, [])
    assert "delete" not in message.calls


def test_the_ledger_of_this_module_has_room_for_its_promise():
    """What is forgotten cannot be committed any more: a copy is held for less time."""
    longest = Settings.model_fields["sqs_visibility_seconds"].metadata[1].le
    assert queue_messages.KEEP.total_seconds() > 2 * longest
