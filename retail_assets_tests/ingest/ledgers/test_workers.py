"""The heartbeat: appended while a worker is alive, and the newest row counts."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.ingest.ledgers.workers import RUNNING, STOPPED
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader


class Heart:
    """Beats of workers in a lake, numbered."""

    def __init__(self, loader: EventLoader) -> None:
        self.loader = loader
        self.connection = loader.connection
        self.started_at = datetime.now(timezone.utc)
        self.beats = 0

    def beat(self, worker: str, state: str = RUNNING) -> None:
        """Beat once more."""
        self.beats += 1
        figures = {"beat": self.beats}
        with self.loader.lake.transaction(self.connection, "heartbeat"):
            heartbeat.beat(
                self.connection, worker, ["files"], state, None, figures, self.started_at
            )

    def fold(self) -> None:
        """Forget the old beats."""
        with self.loader.lake.transaction(self.connection, "fold"):
            heartbeat.compact(self.connection)

    def seen(self) -> dict[str, Any]:
        """The number of the beat by which each worker is known."""
        found = heartbeat.heartbeats(self.connection)
        return {worker.worker: worker.metrics["beat"] for worker in found}

    def rows(self) -> list[tuple[str, str]]:
        """All rows that there are."""
        return self.loader.rows("SELECT worker, state FROM stream_workers ORDER BY rowid")


@pytest.fixture
def heart(lake: Lake, settings: Settings) -> Iterator[Heart]:
    with EventLoader.open(settings) as loader:
        yield Heart(loader)


def test_the_newest_beat_of_each_worker_counts_before_and_after_they_are_compacted(
    heart: Heart,
) -> None:
    for worker in ("w1", "w2", "w1", "w2", "w2"):
        heart.beat(worker)
    assert heart.seen() == {"w1": 3, "w2": 5}
    assert len(heart.rows()) == 5

    heart.fold()
    assert heart.seen() == {"w1": 3, "w2": 5}
    assert heart.rows() == [("w1", RUNNING), ("w2", RUNNING)]


def test_a_clock_that_was_set_back_hides_no_beat(heart: Heart) -> None:
    heart.beat("w1")
    with heart.loader.lake.transaction(heart.connection, "the clock was wrong"):
        heart.connection.execute(
            "UPDATE lake.stream_workers SET heartbeat_at = heartbeat_at + INTERVAL 1 HOUR"
        )
    heart.beat("w1")
    assert heart.seen() == {"w1": 2}
    heart.fold()
    assert heart.seen() == {"w1": 2}


def test_a_worker_that_has_ended_in_order_leaves_one_row(heart: Heart) -> None:
    for state in (RUNNING, RUNNING, STOPPED):
        heart.beat("w1", state)
    assert heart.rows() == [("w1", STOPPED)]


@pytest.mark.parametrize("beats", [2, 3])
def test_beats_are_compacted_once_they_are_many(
    heart: Heart, beats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "COMPACT_ROWS", 2)
    heart.beat("w2")
    for _ in range(beats):
        heart.beat("w1")
    # One of each worker stays.
    assert heartbeat.is_long(heart.connection) == (beats > 2)


@pytest.mark.parametrize(("ahead", "lives"), [(0, True), (5, True), (11, False), (3600, False)])
def test_a_heartbeat_from_the_future_is_not_alive(heart: Heart, ahead: int, lives: bool) -> None:
    heart.beat("w1")
    [worker] = heartbeat.heartbeats(heart.connection)
    now = worker.heartbeat_at - timedelta(seconds=ahead)
    assert worker.is_alive(now) == lives
    assert heartbeat.state(worker, now) == (heartbeat.ALIVE if lives else heartbeat.DEAD)
    assert worker.last_seen(now) == (
        "0 s ago" if lives else f"by a clock that is {ahead} s ahead of this one"
    )


def test_a_worker_of_the_future_stands_before_none_that_came_later(heart: Heart) -> None:
    heart.beat("w1")
    with heart.loader.lake.transaction(heart.connection, "the clock was wrong"):
        heart.connection.execute(
            "UPDATE lake.stream_workers SET heartbeat_at = '2099-01-01', sources = 'files, kafka'"
        )
    heart.beat("w2")
    now = datetime.now(timezone.utc)
    found = heartbeat.heartbeats(heart.connection)
    assert [worker.worker for worker in found] == ["w2", "w1"]
    assert [worker.worker for worker in heartbeat.alive_workers(heart.connection, "files")] == [
        "w2"
    ]
    # What it alone read is given up, as if it had been silent for long.
    assert {
        source: worker.worker for source, worker in heartbeat.in_charge(found, now).items()
    } == {"files": "w2"}
    # While nobody lives, it counts, as dead.
    alone = found[1:]
    assert heartbeat.state(heartbeat.in_charge(alone, now)["kafka"], now) == heartbeat.DEAD
