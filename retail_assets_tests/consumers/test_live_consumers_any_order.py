"""Live tables do not depend on the order in which events arrive, nor on their batches."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets import tables
from retail_assets.settings import Settings
from retail_assets_tests.consumers.followers import DAY, LONDON, Followers
from retail_assets_tests.event_files import EventLoader

PRODUCTS = ("A", "B", None)
LINE = st.tuples(st.sampled_from(("A", "B")), st.integers(1, 3), st.integers(0, 20))
"""Product, units and value."""


@st.composite
def sequences(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Events of few orders and products at different times, cut into batches, in any order."""
    size = draw(st.integers(1, 14) | st.just(14))
    minutes = draw(st.permutations(range(size)))
    return [
        {
            "order": draw(st.integers(0, 4)),
            "status": draw(st.sampled_from(["completed", "completed", "returned", "cancelled"])),
            **draw(contents()),
            "at": datetime(2026, 10, 24, 22, 50, tzinfo=timezone.utc)
            + timedelta(minutes=5 * minute),
            "batch": draw(st.integers(0, 2)),
        }
        for minute in minutes
    ]


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """What an event says was ordered: one product or several lines, either, or neither."""
    if draw(st.booleans()):
        lines = draw(st.lists(LINE, min_size=1, max_size=3))
        value = max(1, sum(value for *_, value in lines))
        return {
            "product": None,
            "quantity": sum(units for _, units, _ in lines),
            "value": value,
            # An order is worth something, a line may not be.
            "lines": [*lines[:-1], (*lines[-1][:2], value - sum(v for *_, v in lines[:-1]))],
        }
    return {
        "product": draw(st.sampled_from(PRODUCTS)),
        "quantity": draw(st.sampled_from([None, 1, 3, 6])),
        "value": draw(st.integers(1, 99)),
        "lines": None,
    }


Move = tuple[datetime, int, int, str, int]
"""When, whether out of the stock, by which order, which product, and how many units come."""


def moves_of(order: int, history: Sequence[dict[str, Any]]) -> Iterator[Move]:
    """What an order does to the stock, from its events in the order of their times."""
    product = quantity = lines = sold_at = sold = None
    for one in history:
        lines = one["lines"] or (None if one["product"] else lines)
        product = one["product"] or product
        quantity = quantity if one["lines"] else one["quantity"] or quantity
        ordered: Counter[str] = Counter()
        for name, units, _ in lines or ([(product, quantity or 1, 0)] if product else []):
            ordered[name] += units
        if one["status"] == "completed":
            sold, sold_at = ordered, sold_at or one["at"]
    latest = history[-1]
    if latest["status"] == "cancelled":
        return
    for name, units in (sold or {}).items():
        yield sold_at, 1, order, name, -units
    if latest["status"] == "returned":
        for name, units in (ordered if sold is None else sold).items():
            yield latest["at"], 0, order, name, units


def by_category_of(history: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The value of an order by category: products that lines name have the category B."""
    lines = None
    for one in history:
        lines = one["lines"] or (None if one["product"] else lines)
    value = history[-1]["value"]
    adds_up = lines is not None and sum(value for *_, value in lines) == value
    return {"B" if adds_up else "unknown": value}


def model(events: Sequence[dict[str, Any]], opening: dict[str, int], low: int) -> dict[str, Any]:
    """What the tables must say, computed event by event in the order of their times."""
    histories: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in sorted(events, key=lambda one: one["at"]):
        histories[one["order"]].append(one)
    revenue: dict[datetime, list[int]] = defaultdict(list)
    categories: Counter[str] = Counter()
    for history in histories.values():
        if history[-1]["status"] == "completed":
            first = history[0]["at"].astimezone(LONDON).replace(tzinfo=None)
            revenue[first].append(history[-1]["value"])
            for category, value in by_category_of(history).items():
                categories[category] += value
    levels = {name: [0, 0, stock] for name, stock in opening.items()}
    alerts = []
    moves = [move for order, history in histories.items() for move in moves_of(order, history)]
    for at, _, order, product, change in sorted(moves):
        level = levels[product]
        level[0 if change < 0 else 1] += abs(change)
        level[2] += change
        if level[2] < low <= level[2] - change:
            alerts.append((product, order, at, level[2]))
    return {
        "minutes": [
            (minute.date(), minute, sum(values), len(values))
            for minute, values in sorted(revenue.items())
        ],
        "levels": sorted((name, *level, level[2] < low) for name, level in levels.items()),
        "alerts": sorted(alerts),
        "categories": sorted(categories.items()),
    }


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, new_lake: Any) -> Iterator[Followers]:
    """One lake for all shops of all examples: each has orders, products and a region of its own."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("crowd"))
    new_lake(settings.data_dir)
    with EventLoader.open(settings) as loader:
        yield Followers(loader, count())


def insert(followers: Followers, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Put events, each with the name of its shop, where the ingest puts them."""
    columns = {
        "event_id": "VARCHAR",
        "order_id": "VARCHAR",
        "product_id": "VARCHAR",
        "region": "VARCHAR",
        "status": "VARCHAR",
        "order_value_gbp": tables.MONEY,
        "quantity": "BIGINT",
        "lines": "VARCHAR",
        "event_timestamp": tables.INSTANT,
        "position": "BIGINT",
    }
    rows = [
        (
            f"{shop}{one['at']}",
            f"{shop}{one['order']}",
            one["product"] and shop + one["product"],
            shop,
            one["status"],
            Decimal(one["value"]),
            one["quantity"],
            one["lines"] and json.dumps(lines_of(shop, one)),
            one["at"],
            next(followers.numbers),
        )
        for shop, one in events
    ]
    unnested = ", ".join(f"unnest(?::{type_}[]) AS {name}" for name, type_ in columns.items())
    followers.change(
        "INSERT INTO lake.enriched_events BY NAME SELECT *, 'C' AS customer_id, 'low' AS"
        " value_tier, 'file' AS source, 'a' AS source_name, 1 AS version,"
        f" DATE '{DAY}' AS received_date,"
        " event_timestamp::DATE AS order_date, 'unknown' AS product_name, 'unknown' AS"
        " product_category, 'unknown' AS customer_segment, 'unknown' AS home_region,"
        f" now() AS processed_at FROM (SELECT {unnested})",
        *(list(values) for values in zip(*rows, strict=True)),
    )


def lines_of(shop: str, one: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "line_number": number,
            "product_id": shop + product,
            "quantity": units,
            "order_value_gbp": value,
        }
        for number, (product, units, value) in enumerate(one["lines"], 1)
    ]


def found(followers: Followers, shop: str) -> dict[str, Any]:
    length = len(shop) + 1
    return {
        "minutes": followers.rows(
            "SELECT order_date, minute, total_revenue, order_count FROM live_revenue_minutes"
            " WHERE region = ? ORDER BY ALL",
            shop,
        ),
        "levels": followers.rows(
            f"SELECT product_id[{length}:] AS product, sold, returned, stock, below"
            " FROM inventory_levels WHERE starts_with(product_id, ?) ORDER BY ALL",
            shop,
        ),
        "alerts": followers.rows(
            f"SELECT product_id[{length}:] AS product, order_id[{length}:]::INTEGER, crossed_at,"
            " stock FROM stock_alerts WHERE starts_with(product_id, ?) ORDER BY ALL",
            shop,
        ),
        "categories": followers.rows(
            "SELECT product_category, sum(total_revenue)::BIGINT FROM live_revenue_by_category"
            " WHERE region = ? GROUP BY ALL ORDER BY ALL",
            shop,
        ),
    }


@pytest.mark.slow
@hypothesis_settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(shops=st.lists(st.tuples(sequences(), st.integers(0, 25)), min_size=4, max_size=4))
def test_events_in_any_order_and_batches_of_any_size_end_in_the_same_tables(
    crowd: Followers, shops: list[tuple[list[dict[str, Any]], int]]
) -> None:
    """Several shops at once: an example takes the time of its queries, not of its rows."""
    named = {f"x{next(crowd.numbers)}:": shop for shop in shops}
    stock = {name: {"A": opening, "B": 12} for name, (_, opening) in named.items()}
    crowd.stock(
        {name + product: units for name, of in stock.items() for product, units in of.items()}
    )
    for batch in range(3):
        some = [
            (name, one)
            for name, (events, _) in named.items()
            for one in events
            if one["batch"] == batch
        ]
        if some:
            insert(crowd, some)
            crowd.follow()
    low = crowd.loader.settings.low_stock_units
    crowd.follow()
    for name, (events, _) in named.items():
        expected = model(events, stock[name], low)
        assert found(crowd, name) == expected
        daily = crowd.rows(
            "SELECT coalesce(sum(total_revenue), 0), coalesce(sum(order_count), 0)"
            " FROM live_revenue WHERE region = ?",
            name,
        )
        assert daily == [
            (sum(row[2] for row in expected["minutes"]), sum(row[3] for row in expected["minutes"]))
        ]


def test_after_all_that_a_rebuild_changes_nothing(crowd: Followers) -> None:
    before = crowd.everything()
    crowd.rebuild()
    assert crowd.everything() == before
