"""The inbox: in order, bounded, and nobody waits who need not."""

import threading
import time
from datetime import date

import pytest

from retail_assets.ingest.messages.load import Received
from retail_assets.worker.inbox import OVERHEAD_BYTES, Inbox


def received(name: str, events: int = 1, *, ago: float = 0) -> Received:
    return Received(
        "kafka",
        name,
        date(2026, 10, 12),
        range(events),
        [b"x" * 100] * events,
        offered_at=0.0,
        received_at=time.monotonic() - ago,
    )


def take(inbox: Inbox, *, most: int = 100, timeout: float = 0) -> list[str]:
    batch = inbox.take(max_events=most, linger_seconds=0, timeout_seconds=timeout)
    return [item.source_name for item in batch]


def test_what_was_put_in_comes_out_in_order_and_in_batches():
    inbox = Inbox()
    for name in "abcd":
        assert inbox.put(received(name, 2))
    assert (inbox.events, inbox.bytes) == (8, 8 * (100 + OVERHEAD_BYTES))
    assert take(inbox, most=5) == ["a", "b"]
    assert take(inbox, most=5) == ["c", "d"]
    assert take(inbox) == []
    assert (inbox.events, inbox.bytes) == (0, 0)


def test_what_is_larger_than_a_batch_is_a_batch_of_its_own():
    inbox = Inbox()
    inbox.put(received("a", 50))
    inbox.put(received("b"))
    assert take(inbox, most=10) == ["a"]
    assert take(inbox, most=10) == ["b"]


def test_a_full_inbox_takes_nothing_until_there_is_room():
    inbox = Inbox(max_bytes=200)
    assert inbox.offer(received("a"))
    assert inbox.is_full
    assert not inbox.offer(received("b"))
    assert not inbox.put(received("b"), timeout=0.01)
    done: list[bool] = []
    waiting = threading.Thread(target=lambda: done.append(inbox.put(received("b"))))
    waiting.start()
    assert take(inbox) == ["a"]
    waiting.join(60)
    assert done == [True]
    assert take(inbox) == ["b"]


def test_who_waits_is_told_when_the_inbox_closes_and_what_is_in_it_can_be_taken():
    inbox = Inbox(max_bytes=200)
    inbox.put(received("a"))
    done: list[bool] = []
    waiting = threading.Thread(target=lambda: done.append(inbox.put(received("b"))))
    waiting.start()
    inbox.close()
    waiting.join(60)
    assert done == [False]
    assert inbox.closed
    assert take(inbox) == ["a"]


def test_what_is_put_in_together_is_one_batch_or_none() -> None:
    inbox = Inbox(max_bytes=200)
    assert inbox.offer(received("a"), received("b", 2))
    assert inbox.events == 3
    assert not inbox.offer(received("c"), received("d"))
    assert take(inbox) == ["a", "b"]
    assert inbox.offer(received("c"), received("d"))
    assert (inbox.events, inbox.bytes) == (2, 2 * (100 + OVERHEAD_BYTES))


@pytest.mark.parametrize(("ago", "waits"), [(0, True), (5, True), (10, False)])
def test_the_first_waits_for_company_since_it_was_received(
    ago: float, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox()
    inbox.put(received("a", ago=ago))
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        if len(waited) == 1:
            inbox.put(received("b"))
        return len(waited) == 1

    monkeypatch.setattr(inbox._changed, "wait", wait)
    batch = inbox.take(max_events=100, linger_seconds=10, timeout_seconds=60)
    assert [item.source_name for item in batch] == (["a", "b"] if waits else ["a"])
    assert len(waited) == 2 * waits
    assert all(9 < seconds + ago <= 10 for seconds in waited)


def test_a_take_ends_its_wait_when_there_is_other_work():
    inbox = Inbox()
    ended = threading.Event()

    def wait() -> None:
        assert take(inbox, timeout=3600) == []
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    inbox.wake()
    assert ended.wait(60)
    waiting.join()
