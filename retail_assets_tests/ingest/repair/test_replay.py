"""Replay: raw events give the live tables again, and today's rules count."""

from collections.abc import Iterator
from datetime import date

import pytest

from retail_assets.consumers import live_revenue
from retail_assets.ingest.repair import replay
from retail_assets.transforms import events
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.platform import CUSTOMERS, PRODUCTS

DAY, NEXT = date(2026, 10, 12), date(2026, 10, 13)


@pytest.fixture
def loader(settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as loader:
        yield loader


@pytest.fixture
def taken(loader) -> EventLoader:
    """Two days of events: valid ones, bad ones, conflicts with the first day, a defective line."""
    loader.write(
        f"{DAY}/a.jsonl",
        [
            event(1, order_value_gbp=600),
            event(2, surprise=[1]),
            event(3, event_id=None),
            event(4, order_value_gbp=-1),
            "null",
            "\x00",
            event(1, order_value_gbp=601),
        ],
    )
    loader.write(f"{NEXT}/b.jsonl", [event(1), event(5, order_value_gbp=700), "{"])
    loader.ingest()
    return loader


def check(loader: EventLoader) -> list[tuple[date, str, int, int]]:
    return [
        (found.day, found.table, found.gone, found.new)
        for day in (DAY, NEXT)
        for found in replay.check_day(loader.session, day)
    ]


def run_replay(loader: EventLoader, *days: date) -> None:
    for day in days:
        replay.replay_day(loader.session, day)


def processed(loader: EventLoader) -> dict[str, object]:
    return dict(loader.rows("SELECT event_id, processed_at FROM enriched_events"))


def test_the_days_with_events_are_found(taken):
    assert replay.event_days(taken.connection, date(2026, 1, 1), date(2026, 12, 31)) == [DAY, NEXT]
    assert replay.event_days(taken.connection, NEXT, NEXT) == [NEXT]
    assert replay.event_days(taken.connection, date(2026, 10, 14), date(2026, 12, 31)) == []


@pytest.mark.parametrize("days", [[DAY, NEXT], [NEXT, DAY], [DAY], [NEXT, NEXT]])
def test_a_replay_gives_the_live_tables(taken, days):
    live, when = taken.tables(), processed(taken)
    run_replay(taken, *days)
    assert taken.tables() == live
    after = processed(taken)
    anew = {name for name in after if after[name] > when[name]}
    assert (len(anew & {"E1", "E2"}), len(anew & {"E5"})) == (2 * (DAY in days), int(NEXT in days))


def test_a_check_of_what_is_up_to_date_finds_nothing_and_changes_nothing(taken):
    live, when = taken.tables(), processed(taken)
    versions = taken.rows("SELECT * FROM changed_days ORDER BY ALL")
    snapshot = taken.rows("FROM lake.current_snapshot()")
    assert check(taken) == []
    assert (taken.tables(), processed(taken)) == (live, when)
    assert taken.rows("SELECT * FROM changed_days ORDER BY ALL") == versions
    assert taken.rows("FROM lake.current_snapshot()") == snapshot


@pytest.mark.usefixtures("rules_may_change")
def test_after_a_rule_has_changed_a_check_says_so_and_a_replay_moves_the_rows(taken, monkeypatch):
    live = taken.tables()
    monkeypatch.setattr(events, "OUT_OF_RANGE_GBP", 650)
    assert check(taken) == [
        (NEXT, "enriched_events", 1, 0),
        (NEXT, "dead_letter_events", 0, 1),
    ]
    (moved,) = replay.check_day(taken.session, NEXT)[:1]
    assert moved.examples == (f"file:{NEXT}/b.jsonl:2",)
    assert taken.tables() == live

    run_replay(taken, DAY, NEXT)
    assert check(taken) == []
    assert taken.rows(
        "SELECT reason, field, source_name, position FROM dead_letter_events"
        " WHERE reason = 'out_of_range'"
    ) == [("out_of_range", "order_value_gbp", f"{NEXT}/b.jsonl", 2)]
    counts = "SELECT accepted, dead_lettered, duplicate FROM event_files WHERE path = ?"
    assert taken.rows(counts, f"{NEXT}/b.jsonl") == [(0, 3, 0)]

    monkeypatch.undo()
    run_replay(taken, DAY, NEXT)
    assert taken.tables() == live


@pytest.mark.usefixtures("rules_may_change")
def test_what_was_in_conflict_counts_when_the_first_is_no_longer_valid(taken, monkeypatch):
    monkeypatch.setattr(events, "OUT_OF_RANGE_GBP", 100)
    assert check(taken) == [
        # What was in conflict with it on the next day counts in its place.
        (DAY, "enriched_events", 1, 0),
        (DAY, "dead_letter_events", 1, 2),
        (NEXT, "enriched_events", 1, 0),
        (NEXT, "dead_letter_events", 0, 1),
    ]
    run_replay(taken, DAY)
    assert taken.events("source_name, position")[0] == (f"{NEXT}/b.jsonl", 1)
    assert taken.rows(
        "SELECT path, accepted, dead_lettered, duplicate FROM event_files ORDER BY ALL"
    ) == [
        (f"{DAY}/a.jsonl", 2, 5, 0),
        (f"{NEXT}/b.jsonl", 2, 1, 0),
    ]
    run_replay(taken, NEXT)
    assert check(taken) == []
    monkeypatch.undo()
    run_replay(taken, DAY, NEXT)
    assert taken.events("source_name, position")[0] == (f"{DAY}/a.jsonl", 1)


def test_new_reference_data_are_a_difference_until_they_are_replayed(taken):
    for name, text in (("products", PRODUCTS), ("customers", CUSTOMERS)):
        file = taken.settings.data_dir / f"{name}.csv"
        file.write_text(text)
        taken.connection.execute(
            f"INSERT INTO {name} BY NAME SELECT * FROM read_csv('{file}', all_varchar = true)"
        )
    assert check(taken) == [(DAY, "enriched_events", 3, 3), (NEXT, "enriched_events", 1, 1)]
    run_replay(taken, DAY, NEXT)
    assert check(taken) == []
    assert set(taken.events("product_name, customer_segment")) == {("Kettle", "loyal")}


@pytest.mark.usefixtures("rules_may_change")
def test_live_revenue_follows_a_replay(taken, monkeypatch):
    def revenue() -> list[tuple[str, str]]:
        live_revenue.refresh(taken.lake, taken.connection)
        return [
            (str(day), str(total))
            for day, total in taken.rows("SELECT order_date, total_revenue FROM live_revenue")
        ]

    assert sorted(revenue()) == [("2026-10-12", "620.00"), ("2026-10-13", "700.00")]
    monkeypatch.setattr(events, "OUT_OF_RANGE_GBP", 650)
    run_replay(taken, NEXT)
    assert revenue() == [("2026-10-12", "620.00")]


def test_lines_that_an_earlier_release_did_not_read_are_read_by_a_replay(loader):
    def lines(number: int, **changed: object) -> str:
        line = {"product_id": "P1", "quantity": 2, "order_value_gbp": 5} | changed
        return event(number, product_id=None, lines=[line, line])

    loader.write(f"{DAY}/a.jsonl", [lines(1), lines(2), event(3)])
    loader.ingest()
    live_revenue.refresh(loader.lake, loader.connection)
    now = loader.tables()
    with loader.lake.transaction(loader.connection, "as an earlier release had it"):
        loader.connection.execute(
            "UPDATE lake.enriched_events SET lines = NULL, quantity = NULL,"
            " extra = json_object('lines', lines::JSON) WHERE lines IS NOT NULL"
        )
        # What was valid then may be a dead letter now.
        loader.connection.execute(
            "UPDATE lake.raw_events SET payload = ? WHERE event_id = 'E2'", [lines(2, quantity="2")]
        )
    live_revenue.refresh(loader.lake, loader.connection)
    rows = "SELECT order_id, line_number, sold FROM live_order_lines ORDER BY ALL"
    assert loader.rows(rows) == []
    assert check(loader) == [
        (DAY, "enriched_events", 2, 1),
        (DAY, "dead_letter_events", 0, 1),
    ]
    run_replay(loader, DAY)
    live_revenue.refresh(loader.lake, loader.connection)
    assert loader.rows(rows) == [("O1", 1, 2), ("O1", 2, 2)]
    assert loader.rows("SELECT reason, field FROM dead_letter_events") == [
        ("wrong_type", "lines[0].quantity")
    ]
    found = loader.tables()
    assert found["enriched_events"] == [row for row in now["enriched_events"] if "E2" not in row]


def test_lost_rows_come_back(taken):
    live = taken.tables()
    with taken.lake.transaction(taken.connection, "a test's fault"):
        taken.connection.execute("DELETE FROM lake.enriched_events WHERE event_id = 'E2'")
        taken.connection.execute("DELETE FROM lake.dead_letter_events WHERE position = 4")
    assert check(taken) == [(DAY, "enriched_events", 0, 1), (DAY, "dead_letter_events", 0, 1)]
    run_replay(taken, DAY)
    found = taken.tables()
    assert {name: found[name] for name in found if name != "event_files"} == {
        name: live[name] for name in live if name != "event_files"
    }
