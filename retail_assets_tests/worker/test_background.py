"""Turns of what follows the ingest."""

import threading
import time

import duckdb
import pytest

from retail_assets.lake.connection import Lake
from retail_assets.worker import background as loops
from retail_assets.worker.background import Loop, Turns
from retail_assets.worker.metrics import Figures


@pytest.mark.parametrize(
    ("long", "happens"), [(0, ["begins", "short", "ends"]), (60, ["begins", "ends", "short"])]
)
def test_one_turn_at_a_time_and_a_long_one_lets_others_in_between(
    long: float, happens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "LONG_SECONDS", long)
    turns = Turns()
    turns.stop_resting()
    happened: list[str] = []
    waits = threading.Event()

    def short() -> None:
        waits.set()
        with turns:
            happened.append("short")

    other = threading.Thread(target=short)
    with turns:
        other.start()
        waits.wait()
        other.join(0.05)
        happened.append("begins")
        for _ in range(20):
            turns.give_way()
        happened.append("ends")
    other.join()
    assert happened == happens


@pytest.mark.parametrize(("events", "rest"), [(True, 0.1), (False, 0)])
def test_there_is_a_rest_after_a_turn_in_which_events_came_in(
    events: bool, rest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns()
    rested: list[float] = []
    monkeypatch.setattr(turns._no_rest, "wait", rested.append)
    turns.taken_in()
    with turns:
        time.sleep(rest / loops.REST)
        if events:
            turns.taken_in()
    assert [seconds >= rest for seconds in rested] == [True] * events


def test_a_turn_is_over_also_where_it_fails() -> None:
    turns = Turns()
    turns.stop_resting()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turns:
            _ = 1 / 0


def test_a_turn_that_fails_is_tried_again_while_others_go_on(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "BACKOFF_SECONDS", (0.001,))
    figures, turns = Figures(), Turns()
    failures: list[int] = []
    connections: list[duckdb.DuckDBPyConnection] = []
    problems: list[str | None] = []
    good, over = threading.Semaphore(0), threading.Event()

    def bad(connection: duckdb.DuckDBPyConnection, failed: int) -> None:
        failures.append(failed)
        connections.append(connection)
        problems.append(figures.problems.get("bad"))
        # The other one has its turns in between.
        if len(failures) > 1:
            assert good.acquire(timeout=60)
        if len(failures) < 4:
            raise ValueError(f"no {len(failures)}")
        over.set()

    work = {"bad": bad, "good": lambda *_: good.release()}
    started = [
        Loop(name, lake, figures, turn, seconds=0.01, on_wake=False, turns=own)
        # Whoever waits for the other must not have its turn meanwhile.
        for (name, turn), own in zip(work.items(), (None, turns), strict=True)
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
    assert figures.problems == {}


def test_after_the_last_turn_there_is_nothing_to_wait_for(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    waits: list[float] = []
    loop = Loop("follows", lake, Figures(), lambda *_: turns.append(1), seconds=60, on_wake=False)
    monkeypatch.setattr(loop._wanted, "wait", waits.append)
    loop.start()
    loop.stop()
    loop.join()
    assert len(waits) == len(turns) - 1
