"""Events in other currencies count in GBP, by the rate of their day, whenever it comes."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.ingest.repair import replay
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.rates import load_rates

pytestmark = pytest.mark.slow

DAY = date(2026, 10, 12)
A_DAY = timedelta(days=1)


@pytest.fixture
def loader(settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as loader:
        yield loader


@pytest.fixture
def load(loader):
    return partial(load_rates, loader.lake, loader.connection, loader.settings)


def values(loader: EventLoader) -> dict[str, Any]:
    """The value of each event in GBP, or why it is a dead letter."""
    return dict(
        loader.rows("SELECT event_id, order_value_gbp FROM enriched_events")
        + loader.rows("SELECT payload ->> 'event_id', reason FROM dead_letter_events")
    )


def unreplayed(loader: EventLoader) -> list[replay.Difference]:
    days = replay.event_days(loader.connection, date(2026, 1, 1), date(2026, 12, 31))
    return [found for day in days for found in replay.check_day(loader.session, day)]


LINES = [
    event(1, order_value_gbp=10, currency="EUR"),
    event(2, order_value_gbp="1001", currency=" jpy ", note="x"),
    event(3, order_value_gbp=1000, currency="EUR", event_timestamp=f"{DAY - A_DAY}T12:00:00Z"),
    event(4, currency="GBP"),
    event(5, currency="CHF", status="x"),
    event(6, order_value_gbp=0.1, currency="USD"),
    event(7, order_value_gbp=9_999_999_999, currency="KWD"),
    event(8, currency="SEK"),
]
RATES = [
    f"{DAY},EUR,0.8675",
    f"{DAY - A_DAY},EUR,0.5",
    f"{DAY},JPY,0.005",
    f"{DAY},USD,0.01",
    f"{DAY},KWD,2.5",
]
EXPECTED = {
    "E1": Decimal("8.68"),
    "E2": Decimal("5.01"),
    "E3": Decimal("500.00"),
    "E4": Decimal("10.00"),
    "E5": "unknown_status",
    "E6": "not_positive",
    "E7": "out_of_range",
    "E8": "unknown_currency",
}


@pytest.mark.parametrize("more", [0, 2_500])
def test_a_value_counts_by_the_rate_of_its_day_to_the_penny(loader, load, more):
    load(*RATES)
    others = [event(number) for number in range(100, 100 + more)]
    loader.write(f"{DAY}/a.jsonl", [*LINES, *others])
    loader.ingest()
    found = values(loader)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert len(found) == len(LINES) + more
    assert loader.rows(
        "SELECT event_id, value_tier, extra FROM enriched_events WHERE event_id < 'E4'"
        " AND length(event_id) = 2 ORDER BY 1"
    ) == [
        ("E1", "low", '{"currency":"EUR","order_value":10.0}'),
        ("E2", "low", '{"note":"x","currency":"JPY","order_value":1001.0}'),
        ("E3", "high", '{"currency":"EUR","order_value":1000.0}'),
    ]
    assert unreplayed(loader) == []


@pytest.mark.parametrize("more", [0, 2_500])
def test_a_worker_converts_by_the_rates_that_the_lake_has_by_then(settings, lake, load, more):
    with EventLoader.open(settings, cached=True) as worker:
        for n, rate in enumerate(("0.5", "0.6")):
            load(f"{DAY},EUR,{rate}", f"{DAY},USD,{n + 1}")
            lines = [event(n, currency="USD"), *map(event, range(10_000 + n, 10_000 + n + more))]
            texts = [line.encode() for line in lines]
            part = Received("kafka", f"orders:{n}", DAY, range(len(texts)), texts, offered_at=2e9)
            ingest(worker.session, [part])
        assert worker.rows(
            "SELECT order_value_gbp FROM enriched_events WHERE extra IS NOT NULL ORDER BY event_id"
        ) == [(Decimal("20.00"),), (Decimal("20.00"),)]


def test_rates_that_come_late_or_change_reach_the_events_that_they_concern(loader, load):
    loader.write(f"{DAY}/a.jsonl", [*LINES, event(8, currency="SEK"), event(9, event_id=None)])
    loader.write(f"{DAY}/b.jsonl", [event(20, currency="EUR", event_id=None)])
    loader.ingest()
    assert {name for name, found in values(loader).items() if found == "unknown_currency"} == {
        "E1", "E2", "E3", "E6", "E7", "E8", None,
    }  # fmt: skip
    load(*RATES)
    found = values(loader)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert Decimal("8.68") in [value for name, value in found.items() if name[:8] == "content:"]
    assert unreplayed(loader) == []
    when = dict(loader.rows("SELECT event_id, processed_at FROM enriched_events"))

    load(*RATES, f"{DAY},SEK,0.1")
    assert values(loader) == found | {"E8": Decimal("1.00")}
    assert unreplayed(loader) == []
    # The second of two lines with one identity is a duplicate.
    assert loader.rows(
        "SELECT path, lines, accepted, dead_lettered, duplicate FROM event_files ORDER BY path"
    ) == [(f"{DAY}/a.jsonl", 10, 6, 3, 1), (f"{DAY}/b.jsonl", 1, 1, 0, 0)]

    load(f"{DAY},EUR,0.8675", f"{DAY - A_DAY},EUR,0.7", *RATES[2:], f"{DAY},SEK,0.1")
    assert values(loader) == found | {"E8": Decimal("1.00"), "E3": Decimal("700.00")}
    after = dict(loader.rows("SELECT event_id, processed_at FROM enriched_events"))
    assert {name for name, at in when.items() if after[name] > at} == {"E3"}

    load(*RATES[2:], f"{DAY},SEK,0.1", max_shrink=1)
    assert {values(loader)[name] for name in ("E1", "E3")} == {"unknown_currency"}
    assert unreplayed(loader) == []


def test_lines_are_converted_one_by_one_and_add_up(loader, load):
    def line(product: str, value: float, **more: Any) -> dict[str, Any]:
        return {"product_id": product, "quantity": 1, "order_value_gbp": value, **more}

    lines = [line("P1", 3.33, colour="red"), line("P2", 3.33), line("P3", 3.34), line("P4", 0)]
    huge = [line("P1", 9_000_000_000), line("P2", 999_999_999)]
    loader.write(
        f"{DAY}/a.jsonl",
        [
            event(1, currency="EUR", product_id=None, lines=lines),
            event(2, currency="XAU", product_id=None, lines=huge, order_value_gbp=9_999_999_999),
            event(3, currency="EUR", product_id=None, lines=lines[:1]),
        ],
    )
    loader.ingest()
    load(f"{DAY},EUR,0.5", f"{DAY},XAU,2")
    assert values(loader) == {
        "E1": Decimal("5.01"),
        "E2": "out_of_range",
        "E3": "lines_do_not_add_up",
    }
    [(stored, quantity)] = loader.rows("SELECT lines, quantity FROM enriched_events")
    assert quantity == 4
    assert [found["order_value_gbp"] for found in json.loads(stored)] == [1.67, 1.67, 1.67, 0]
    assert [found.get("extra") for found in json.loads(stored)] == [{"colour": "red"}, *[None] * 3]
    assert unreplayed(loader) == []


def test_a_redelivered_event_is_a_duplicate_before_and_after_its_rate_comes(loader, load):
    line = event(1, currency="EUR")
    loader.write(f"{DAY}/a.jsonl", [line])
    loader.ingest()
    load(f"{DAY},EUR,0.5")
    loader.write(f"{DAY}/b.jsonl", [line])
    loader.ingest()
    assert values(loader) == {"E1": Decimal("5.00")}
    assert loader.rows("SELECT sum(duplicate), sum(dead_lettered) FROM event_files") == [(1, 0)]
    assert unreplayed(loader) == []


def test_the_order_of_arrival_of_events_and_rates_makes_no_difference(
    tmp_path: Path, new_lake: NewLake
) -> None:
    files = {
        "a": [event(1, currency="EUR"), event(2, currency="CHF"), event(3)],
        "b": [event(1, currency="EUR"), event(2, currency="CHF", note=1), event(4, currency="EUR")],
    }
    rates = [[f"{DAY},EUR,0.5"], [f"{DAY},EUR,0.6", f"{DAY},CHF,2"]]

    def outcome(n: int, steps: tuple[str, ...]) -> dict[str, list[tuple[Any, ...]]]:
        settings = Settings(data_dir=tmp_path / str(n), threads=1)
        new_lake(settings.data_dir)
        with EventLoader.open(settings) as loader:
            seen = 0
            for step in steps:
                if step == "rates":
                    load_rates(loader.lake, loader.connection, settings, *rates[seen])
                    seen += 1
                else:
                    seconds = 1_791_800_000 + ord(step)
                    path = f"{DAY}/{step}.jsonl"
                    loader.write(path, files[step], modified_ns=seconds * 10**9)
                    loader.ingest([path])
            assert unreplayed(loader) == []
            return loader.tables()

    first, *others = [
        outcome(n, steps)
        for n, steps in enumerate(
            [
                ("rates", "rates", "a", "b"),
                ("b", "a", "rates", "rates"),
                ("a", "rates", "b", "rates"),
            ]
        )
    ]
    assert [len(rows) for rows in first.values()] == [6, 4, 1, 2]
    assert others == [first] * len(others)
