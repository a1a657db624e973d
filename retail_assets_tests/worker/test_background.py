"""The loops that follow the ingest, and the lock that they share."""

import threading
import time

import duckdb
import pytest

from retail_assets.lake.connection import Lake
from retail_assets.worker import background as loops
from retail_assets.worker.background import CooldownLock, Loop
from retail_assets.worker.metrics import Metrics


@pytest.mark.parametrize(
    ("long", "happens"), [(0, ["begins", "short", "ends"]), (60, ["begins", "ends", "short"])]
)
def test_one_iteration_at_a_time_and_a_long_one_yields_to_others(
    long: float, happens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "LONG_ITERATION_SECONDS", long)
    lock = CooldownLock()
    lock.end_cooldowns()
    happened: list[str] = []
    waits = threading.Event()

    def short() -> None:
        waits.set()
        with lock:
            happened.append("short")

    other = threading.Thread(target=short)
    with lock:
        other.start()
        waits.wait()
        other.join(0.05)
        happened.append("begins")
        for _ in range(20):
            lock.yield_to_others()
        happened.append("ends")
    other.join()
    assert happened == happens


@pytest.mark.parametrize(("events", "cooldown"), [(True, 0.1), (False, 0)])
def test_a_cooldown_follows_an_iteration_in_which_events_came_in(
    events: bool, cooldown: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = CooldownLock()
    cooldowns: list[float] = []
    monkeypatch.setattr(lock._cooled_down, "wait", cooldowns.append)
    lock.note_events()
    with lock:
        time.sleep(cooldown / loops.COOLDOWN_RATIO)
        if events:
            lock.note_events()
    assert [seconds >= cooldown for seconds in cooldowns] == [True] * events


def test_an_iteration_that_fails_releases_the_lock() -> None:
    lock = CooldownLock()
    lock.end_cooldowns()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock:
            _ = 1 / 0


def test_an_iteration_that_fails_is_tried_again_while_others_go_on(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "BACKOFF_SECONDS", (0.001,))
    metrics, lock = Metrics(), CooldownLock()
    failures: list[int] = []
    connections: list[duckdb.DuckDBPyConnection] = []
    problems: list[str | None] = []
    good, over = threading.Semaphore(0), threading.Event()

    def bad(connection: duckdb.DuckDBPyConnection, failed: int) -> None:
        failures.append(failed)
        connections.append(connection)
        problems.append(metrics.problems.get("bad"))
        # The other one iterates in between.
        if len(failures) > 1:
            assert good.acquire(timeout=60)
        if len(failures) < 4:
            raise ValueError(f"no {len(failures)}")
        over.set()

    work = {"bad": bad, "good": lambda *_: good.release()}
    started = [
        Loop(name, lake, metrics, iterate, seconds=0.01, on_wake=False, lock=own)
        # The one that waits for the other must not hold the lock.
        for (name, iterate), own in zip(work.items(), (None, lock), strict=True)
    ]
    for loop in started:
        loop.start()
    assert over.wait(60)
    for loop in started:
        good.release()
        loop.stop()
        good.release()
        loop.join()
    assert failures[:5] == [0, 1, 2, 3, 0][: len(failures)]
    assert problems[:4] == [None, "bad: no 1", "bad: no 2", "bad: no 3"]
    assert len(set(map(id, connections[:4]))) == 4, "after a failure nothing is known of one"
    assert metrics.problems == {}


def test_the_loop_does_not_wait_after_its_last_iteration(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations: list[int] = []
    waits: list[float] = []
    loop = Loop(
        "follows", lake, Metrics(), lambda *_: iterations.append(1), seconds=60, on_wake=False
    )
    monkeypatch.setattr(loop._wanted, "wait", waits.append)
    loop.start()
    loop.stop()
    loop.join()
    assert len(waits) == len(iterations) - 1
