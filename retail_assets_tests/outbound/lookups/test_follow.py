"""Lookups follow the events: each value is asked about, and no event waits for it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retail_assets.ingest.repair import replay
from retail_assets.lake import connection as lake_connection
from retail_assets.mapping.lookups import Lookup
from retail_assets.outbound.lookups import follow as follow_module
from retail_assets.outbound.lookups.client import LookupClient
from retail_assets.outbound.lookups.follow import LookupFollower, waiting_of
from retail_assets.settings import Settings
from retail_assets.worker.build import Options, build_worker
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.outbound.lookups.api import Api, json_answer, running_api, tier_of

pytestmark = pytest.mark.processes

DAY = "2026-10-12"
HANG_SECONDS = 120


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    with running_api() as api:
        yield api


@pytest.fixture
def api(server: Api) -> Api:
    server.answer, server.slow_seconds = tier_of, 0.0
    server.asked.clear()
    server.most_at_once = 0
    return server


@pytest.fixture
def loader(settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as loader:
        yield loader


NewFollower = Callable[..., LookupFollower]


@pytest.fixture
def follow(loader, api) -> Iterator[NewFollower]:
    followers: list[LookupFollower] = []

    def make(name: str = "crm", **changed: object) -> LookupFollower:
        fields = {
            "field": "customer_id",
            "url": api.url + "/c/{value}",
            "keep": {"tier": "$.tier"},
            "per_second": 1000,
        }
        client = LookupClient(name, Lookup(**fields | changed), loader.settings)
        followers.append(LookupFollower(loader.lake, client))
        return followers[-1]

    yield make
    for follower in followers:
        follower.close()


def until(what: Callable[[], object]) -> None:
    """Wait for something to be so; a red test instead of a stuck one."""
    deadline = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def write(loader: EventLoader, name: str, *lines: str) -> None:
    loader.write(f"{DAY}/{name}.jsonl", lines)
    loader.ingest()


def seen(loader: EventLoader, columns: str = "event_id, lookup, value, state, answer") -> list:
    return loader.rows(f"SELECT {columns} FROM event_lookups ORDER BY ALL")


def test_each_value_is_asked_once_and_its_events_have_the_answer(loader, api, follow):
    write(
        loader,
        "a",
        event(1, customer_id="C1", store="S 1"),
        event(2, customer_id="C2"),
        event(3, customer_id="C1", store=7),
    )
    crm, shops = follow(), follow("shops", field="store")
    for follower in (crm, shops, crm, shops):
        follower.iterate(loader.connection)
    assert sorted(api.asked) == ["7", "C1", "C2", "S 1"]
    assert seen(loader) == [
        ("E1", "crm", "C1", "answered", '{"tier": "tier of C1"}'),
        ("E1", "shops", "S 1", "answered", '{"tier": "tier of S 1"}'),
        ("E2", "crm", "C2", "answered", '{"tier": "tier of C2"}'),
        ("E3", "crm", "C1", "answered", '{"tier": "tier of C1"}'),
        ("E3", "shops", "7", "answered", '{"tier": "tier of 7"}'),
    ]
    write(loader, "b", event(4, customer_id="C1"), event(5, customer_id="C3"))
    crm.iterate(loader.connection)
    assert sorted(api.asked) == ["7", "C1", "C2", "C3", "S 1"]
    assert waiting_of(loader.connection) == {}


def test_a_batch_does_not_read_the_answers_of_history_again(loader, api, follow):
    with loader.lake.transaction(loader.connection, "test"):
        loader.connection.execute(
            "INSERT INTO lake.api_lookups BY NAME SELECT 'crm' AS lookup, 'customer_id' AS field,"
            " 'C' || i AS value, 'nobody' AS state, now() AS answered_at,"
            " now() + INTERVAL 1 DAY AS valid_until FROM range(1000) AS t(i)"
        )
    follower = follow()
    write(loader, "a", event(1))
    follower.collect(loader.connection)
    files = list(Path(loader.lake.data_path).rglob("*api_lookups/*.parquet"))
    assert files
    for file in files:
        file.unlink()
    write(loader, "b", *(event(n, customer_id=f"C{990 + n}") for n in range(2, 12)))
    follower.collect(loader.connection)
    assert loader.rows("SELECT value FROM waiting_lookups ORDER BY 1") == [("C1000",), ("C1001",)]


def test_many_values_are_looked_up_in_parts(loader, api, follow, monkeypatch):
    monkeypatch.setattr(follow_module, "CHECKED_VALUES", 3)
    write(loader, "a", *(event(n, customer_id=f"C{n}") for n in range(7)))
    follow().iterate(loader.connection)
    assert sorted(api.asked) == [f"C{n}" for n in range(7)]


def test_what_another_worker_was_answered_is_not_asked_again(loader, api, follow):
    write(loader, "a", event(1))
    first, second = follow(), follow()
    second.collect(loader.connection)
    first.iterate(loader.connection)
    write(loader, "b", event(2))
    second.iterate(loader.connection)
    assert api.asked == ["C1"]


def test_what_is_not_answered_is_unknown_and_put_right_by_itself(loader, api, follow, monkeypatch):
    monkeypatch.setattr(follow_module, "FIRST_RETRY_SECONDS", 0)
    write(loader, "a", event(1), event(2, customer_id="C2"))
    api.answer = lambda value: tier_of(value) if value == "C2" else (500, {}, b"")
    follower = follow()
    measured = follower.iterate(loader.connection)
    assert measured == {"lookup_crm_waiting": 1, "lookup_crm_failing": 1, "lookup_crm_open": 0}
    [(waiting, failing, problem)] = waiting_of(loader.connection).values()
    assert (waiting, failing) == (1, 1)
    assert "answered 500" in problem
    assert seen(loader, "event_id, state, answer") == [
        ("E1", "unknown", None),
        ("E2", "answered", '{"tier": "tier of C2"}'),
    ]
    api.answer = lambda _: json_answer({}, 404)
    follower.iterate(loader.connection)
    assert seen(loader, "event_id, state")[0] == ("E1", "nobody")
    assert waiting_of(loader.connection) == {}


def test_a_value_without_an_answer_waits_longer_each_time(loader, api, follow):
    write(loader, "a", event(1))
    api.answer = lambda _: (503, {}, b"")
    follower = follow()
    pauses = []
    for _ in range(12):
        follower.iterate(loader.connection)
        pauses += loader.rows(
            "SELECT round(epoch(next_attempt_at - now()))::INT FROM waiting_lookups"
        )[0]
        with loader.lake.transaction(loader.connection, "test"):
            loader.connection.execute("UPDATE lake.waiting_lookups SET next_attempt_at = now()")
        follower.breaker.succeeded()
    assert [round(pause, -1) for pause in pauses[:4]] == [10, 20, 40, 80]
    assert max(pauses) <= follow_module.LONGEST_RETRY_SECONDS


def test_while_an_api_is_away_it_is_left_alone_and_events_come_in(loader, api, follow):
    write(loader, "a", *(event(n, customer_id=f"C{n}") for n in range(50)))
    api.answer = lambda _: (500, {}, b"")
    follower = follow(concurrency=1)
    measured = follower.iterate(loader.connection)
    assert len(api.asked) == 5
    assert (measured["lookup_crm_waiting"], measured["lookup_crm_open"]) == (50, 1)
    write(loader, "b", event(99, customer_id="new"))
    follower.iterate(loader.connection)
    assert len(api.asked) == 5, "the breaker is open"
    assert waiting_of(loader.connection)["crm"][0] == 51
    follower.breaker._closed_at = 0.0
    follower.iterate(loader.connection)
    assert len(api.asked) == 6, "one question shows whether it is back"
    api.answer = tier_of
    follower.breaker._closed_at = 0.0
    follower.iterate(loader.connection)
    assert {state for (state,) in seen(loader, "state")} == {"answered", "unknown"}
    with loader.lake.transaction(loader.connection, "test"):
        loader.connection.execute("UPDATE lake.waiting_lookups SET next_attempt_at = now()")
    follower.iterate(loader.connection)
    assert {state for (state,) in seen(loader, "state")} == {"answered"}


def test_no_more_is_asked_at_once_than_is_declared(loader, api, follow):
    write(loader, "a", *(event(n, customer_id=f"C{n}") for n in range(20)))
    api.slow_seconds = 0.02
    follow(concurrency=3).iterate(loader.connection)
    assert len(api.asked) == 20
    assert api.most_at_once <= 3


def test_an_event_keeps_the_answer_that_was_good_when_it_came(loader, api, follow):
    follower = follow(valid_hours=1)
    write(loader, "a", event(1))
    follower.iterate(loader.connection)
    # The answer is an hour old, and another event comes after that.
    with loader.lake.transaction(loader.connection, "test"):
        loader.connection.execute(
            "UPDATE lake.api_lookups SET answered_at = answered_at - INTERVAL 2 DAY,"
            " valid_until = TIMESTAMPTZ '2026-10-12 00:00:00+00'"
        )
        loader.connection.execute(
            "UPDATE lake.enriched_events SET received_at = TIMESTAMPTZ '2026-10-11 23:00:00+00'"
        )
    api.answer = lambda _: json_answer({"tier": "new"})
    write(loader, "b", event(2))
    follower.iterate(loader.connection)
    assert seen(loader, "event_id, answer") == [
        ("E1", '{"tier": "tier of C1"}'),
        ("E2", '{"tier": "new"}'),
    ]


def test_a_replay_changes_no_answer_and_asks_nothing(loader, api, follow):
    write(loader, "a", event(1), event(2, customer_id="C2"), "{")
    follower = follow()
    follower.iterate(loader.connection)
    before, asked = seen(loader, "*"), list(api.asked)
    for (day,) in loader.rows("SELECT DISTINCT received_date FROM raw_events"):
        replay.replay_day(loader.session, day)
    follower.iterate(loader.connection)
    assert (seen(loader, "*"), api.asked) == (before, asked)


def test_two_workers_keep_one_answer(loader, api, follow):
    write(loader, "a", event(1))
    first, second = follow(), follow()
    first.collect(loader.connection)
    due = second._due(loader.connection)
    first.iterate(loader.connection)
    second._ask(loader.connection, due, lambda: False)
    assert api.asked == ["C1", "C1"]
    assert loader.rows("SELECT count(*) FROM api_lookups") == [(1,)]


@pytest.mark.parametrize("when", ["before COMMIT", "after COMMIT"])
@pytest.mark.parametrize("number", [0, 1])
def test_killed_at_a_commit_it_goes_on_to_the_same_answers(
    loader, api, follow, monkeypatch, when, number
):
    class KilledError(Exception):
        pass

    commit, commits = lake_connection.commit, 0

    def die(connection: object) -> None:
        nonlocal commits
        commits += 1
        if when == "after COMMIT":
            commit(connection)
        if commits > number:
            raise KilledError
        if when == "before COMMIT":
            commit(connection)

    write(loader, "a", event(1), event(2, customer_id="C2"))
    with monkeypatch.context() as patched:
        patched.setattr(lake_connection, "commit", die)
        with loader.lake.connect() as connection, pytest.raises(KilledError):
            follow().iterate(connection)
    with loader.lake.connect() as connection:
        follow().iterate(connection)
    assert [row[3] for row in seen(loader)] == ["answered", "answered"]
    assert loader.rows("SELECT count(*), count(DISTINCT value) FROM api_lookups") == [(2, 2)]
    assert waiting_of(loader.connection) == {}


def test_a_stopped_worker_asks_nothing_more(loader, api, follow):
    write(loader, "a", event(1))
    follow().iterate(loader.connection, stop=lambda: True)
    assert api.asked == []
    assert waiting_of(loader.connection)["crm"][0] == 1


def test_a_worker_ingests_while_an_api_hangs_and_asks_in_its_own_time(
    loader, api, settings, tmp_path, monkeypatch
):
    answers = threading.Event()

    def hang(value: str) -> tuple:
        assert answers.wait(HANG_SECONDS)
        return tier_of(value)

    api.answer = hang
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        "lookups: {crm: {field: customer_id, keep: {tier: $.tier}, timeout_seconds: 60,"
        f" url: '{api.url}/{{value}}'}}}}"
    )
    monkeypatch.setenv("RETAIL_MAPPING", str(mapping))
    worker, stop = build_worker(Settings(), Options()), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        loader.write(f"{DAY}/a.jsonl", [event(1)])
        until(lambda: api.asked)
        loader.write(f"{DAY}/b.jsonl", [event(2)])
        until(lambda: len(loader.events()) == 2)
        until(lambda: loader.rows("SELECT count(*) FROM live_orders") == [(2,)])
        assert seen(loader, "state") == [("unknown",)] * 2
        answers.set()
        until(lambda: seen(loader, "state") == [("answered",)] * 2)
        until(lambda: worker.metrics.snapshot().get("lookup_crm_waiting") == 0)
    finally:
        answers.set()
        stop.set()
        thread.join(HANG_SECONDS)
    assert not thread.is_alive()
