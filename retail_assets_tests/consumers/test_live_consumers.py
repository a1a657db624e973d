"""Live orders, live revenue and inventory: the lake's tables agree with a plain model of them."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets import tables
from retail_assets.consumers import framework, inventory, live_orders, live_revenue
from retail_assets.ingest.exports import reference
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader, event

LONDON = ZoneInfo("Europe/London")
DAY = date(2026, 10, 12)
AT = "2026-10-12T09:30:00+01:00"


@dataclass
class Followers:
    """A lake whose three consumers are run one after the other."""

    loader: EventLoader
    numbers: Iterator[int]

    def follow(self) -> None:
        for consumer in self.consumers:
            framework.consume(self.loader.lake, self.loader.connection, consumer)

    def rebuild(self) -> None:
        for consumer in self.consumers:
            framework.rewind(self.loader.lake, self.loader.connection, consumer)
        self.follow()

    @cached_property
    def consumers(self) -> tuple[framework.Consumer, ...]:
        return (
            live_orders.CONSUMER,
            live_revenue.CONSUMER,
            inventory.consumer(self.loader.settings),
        )

    def ingest(self, name: str, *lines: str) -> None:
        self.loader.write(f"{DAY}/{name}.jsonl", lines)
        self.loader.ingest()
        self.follow()

    def stock(self, products: dict[str, int | None]) -> None:
        """Put products into the reference data."""
        self.change(
            "INSERT INTO lake.products SELECT product, 'A', 'B', NULL, stock FROM"
            " (SELECT unnest(?::VARCHAR[]) AS product, unnest(?::BIGINT[]) AS stock)",
            list(products),
            list(products.values()),
        )

    def change(self, sql: str, *parameters: Any) -> None:
        with self.loader.lake.transaction(self.loader.connection, "a test's change"):
            self.loader.connection.execute(sql, parameters)

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.loader.rows(sql, *parameters)

    def level(self, product: str) -> tuple[Any, ...]:
        """Opening stock, sold, returned, stock, and whether that is low."""
        (found,) = self.rows(
            "SELECT stock_on_hand, sold, returned, stock, below FROM inventory_levels"
            " WHERE product_id = ?",
            product,
        )
        return found

    def alerts(self) -> list[tuple[Any, ...]]:
        """The events that made a stock low, and what was left."""
        return self.rows("SELECT event_id, stock FROM stock_alerts ORDER BY crossed_at, event_id")

    def everything(self) -> list[list[tuple[Any, ...]]]:
        """All rows of all consumers, with the time at which each last changed."""
        return [
            self.rows(f"SELECT * FROM {table.name} ORDER BY ALL")
            for consumer in self.consumers
            for table in consumer.tables
        ]


@pytest.fixture
def followers(lake: Lake, settings: Settings) -> Iterator[Followers]:
    with EventLoader.open(settings) as loader:
        yield Followers(loader, count())


# Live revenue


def curve(followers: Followers, region: str = "North") -> list[tuple[str, int, int]]:
    """Minute, revenue of the minute, and of the day until then."""
    return [
        (f"{minute:%H:%M}", int(total), int(so_far))
        for minute, total, so_far in followers.rows(
            "SELECT minute, total_revenue, revenue_so_far FROM revenue_by_minute"
            " WHERE region = ? ORDER BY order_date, minute",
            region,
        )
    ]


def test_revenue_grows_minute_by_minute_of_business_time(followers: Followers) -> None:
    followers.ingest(
        "a",
        event(1, event_timestamp="2026-10-12T08:30:59Z"),
        event(2, event_timestamp=AT, order_value_gbp=5),
        event(3, event_timestamp="2026-10-12T10:00:01+01:00", region="South"),
        event(4, event_timestamp="2026-10-12T10:05:00", order_value_gbp=2),
        event(5, event_timestamp=AT, status="pending"),
        event(6, order_value_gbp=1),
    )
    assert curve(followers) == [("00:00", 1, 1), ("09:30", 15, 16), ("10:05", 2, 18)]
    assert curve(followers, "South") == [("10:00", 10, 10)]
    assert followers.rows(
        "SELECT region, total_revenue, order_count FROM live_revenue ORDER BY 1"
    ) == [
        ("North", 18, 4),
        ("South", 10, 1),
    ]


def test_late_corrected_and_retracted_events_put_their_minutes_right(followers: Followers) -> None:
    followers.ingest("a", event(1, event_timestamp=AT), event(2, event_timestamp=AT))
    followers.ingest(
        "b",
        # The order began earlier than was known; its value is still what the latest event says.
        event(10, order_id="O1", event_timestamp="2026-10-11T23:59:00", order_value_gbp=99),
        # The other was worth more, and in another region.
        event(
            11,
            order_id="O2",
            event_timestamp="2026-10-12T12:00:00",
            order_value_gbp=7,
            region="South",
        ),
    )
    assert curve(followers) == [("23:59", 10, 10)]
    assert curve(followers, "South") == [("09:30", 7, 7)]
    assert followers.rows(
        "SELECT order_date, region, total_revenue FROM live_revenue ORDER BY 1"
    ) == [
        (DAY - timedelta(days=1), "North", 10),
        (DAY, "South", 7),
    ]
    followers.ingest("b", event(12, order_id="O3", event_timestamp="2026-10-12T13:00:00"))
    assert curve(followers) == [("09:30", 20, 20), ("13:00", 10, 30)]
    assert curve(followers, "South") == []


def test_a_refresh_says_which_days_it_recomputed(followers: Followers) -> None:
    def refresh() -> dict[date, int] | None:
        lake, connection = followers.loader.lake, followers.loader.connection
        published = live_revenue.refresh(lake, connection)
        return None if published is None else dict(published.rows)

    followers.loader.write(
        f"{DAY}/a.jsonl",
        [event(1, event_timestamp=AT), event(2, event_timestamp="2026-10-13T10:00:00")],
    )
    followers.loader.ingest()
    assert refresh() == {DAY: 1, DAY + timedelta(days=1): 1}
    assert refresh() is None
    followers.loader.write(f"{DAY}/b.jsonl", [event(3, event_timestamp=AT, region="South")])
    followers.loader.ingest()
    assert refresh() == {DAY: 2}


# Inventory


def test_stock_is_what_there_was_less_what_was_sold_plus_what_came_back(
    followers: Followers,
) -> None:
    followers.stock({"P1": 100, "P2": 5, "P3": None})
    followers.ingest(
        "a",
        event(1, quantity=30),
        event(2),
        event(3, quantity=7, status="pending"),
        event(4, quantity=8, status="cancelled"),
        event(5, quantity=4, event_timestamp=AT),
        # Nobody saw it sold.
        event(7, quantity=6, status="returned"),
        event(8, product_id="P3", quantity=2),
        event(9, product_id="P4", quantity=3),
        event(10, product_id=None, quantity=3),
    )
    # Returned without saying what and how many: what was sold.
    back = {"order_id": "O5", "status": "returned", "event_timestamp": "2026-10-13T09:00:00"}
    followers.ingest("b", event(20, product_id=None, **back))
    assert followers.level("P1") == (100, 35, 10, 75, False)
    assert followers.level("P2") == (5, 0, 0, 5, True)
    assert followers.level("P3") == (None, 2, 0, None, False)
    assert followers.level("P4") == (None, 3, 0, None, False)
    assert len(followers.rows("FROM inventory_levels")) == 4


def test_only_orders_since_the_day_of_the_opening_stock_count(followers: Followers) -> None:
    followers.stock({"P1": 100})
    followers.ingest(
        "a",
        event(1, quantity=30, event_timestamp="2026-10-04T23:59:00"),
        event(2, quantity=2, event_timestamp="2026-10-05T00:00:00"),
    )
    assert followers.level("P1") == (100, 2, 0, 98, False)
    settings = followers.loader.settings.model_copy(update={"stock_date": date(2026, 10, 4)})
    other = EventLoader(followers.loader.session, settings)
    Followers(other, followers.numbers).rebuild()
    assert followers.level("P1") == (100, 32, 0, 68, False)


def test_stock_follows_the_reference_data(followers: Followers) -> None:
    followers.stock({"P1": 100, "P2": 5})
    followers.ingest("a", event(1, quantity=30))
    followers.change("UPDATE lake.products SET stock_on_hand = 35 WHERE product_id = 'P1'")
    followers.follow()
    assert followers.level("P1") == (35, 30, 0, 5, True)
    assert followers.alerts() == [("E1", 5)]
    followers.change("DELETE FROM lake.products")
    followers.follow()
    assert followers.level("P1") == (None, 30, 0, None, False)
    assert followers.rows("SELECT product_id FROM inventory_levels") == [("P1",)]


def sale(number: int, quantity: int, hour: int, **more: Any) -> str:
    return event(number, quantity=quantity, event_timestamp=f"2026-10-12T{hour:02}:00:00", **more)


def test_each_crossing_is_alerted_once(followers: Followers) -> None:
    followers.stock({"P1": 20, "P2": 9})
    followers.ingest("a", sale(1, 10, 8), sale(9, 3, 8, product_id="P2"))
    assert followers.alerts() == [], "the one has enough, the other never had"
    followers.ingest("b", sale(2, 4, 9), sale(3, 1, 10))
    assert followers.alerts() == [("E2", 6)]
    once = followers.rows("FROM stock_alerts")
    followers.ingest("c", sale(4, 1, 11))
    assert followers.rows("FROM stock_alerts") == once
    # It comes back, and goes again.
    followers.ingest(
        "d", event(5, order_id="O1", status="returned", event_timestamp="2026-10-12T12:00:00")
    )
    followers.ingest("e", sale(6, 5, 13))
    assert followers.alerts() == [("E2", 6), ("E6", 9)]
    before = followers.everything()
    followers.rebuild()
    assert followers.everything() == before


def test_a_late_sale_moves_the_crossing_and_a_cancelled_one_takes_it_back(
    followers: Followers,
) -> None:
    followers.stock({"P1": 20})
    followers.ingest("a", sale(1, 6, 8), sale(2, 6, 12))
    assert followers.alerts() == [("E2", 8)]
    followers.ingest("b", sale(3, 5, 10))
    assert followers.alerts() == [("E3", 9)]
    cancelled = {"order_id": "O3", "status": "cancelled", "event_timestamp": "2026-10-12T15:00:00"}
    followers.ingest("c", event(4, **cancelled))
    assert followers.alerts() == [("E2", 8)]
    # A correction of the order is no other sale.
    followers.ingest("d", sale(5, 7, 16, order_id="O2"))
    assert followers.alerts() == [("E2", 7)]


# Lines


def basket(number: int, *lines: tuple[str, int, int], **more: Any) -> str:
    """An event with lines: of each the product, its units and its value in pounds."""
    return event(
        number,
        order_value_gbp=sum(value for *_, value in lines),
        lines=[
            {"product_id": product, "quantity": quantity, "order_value_gbp": value}
            for product, quantity, value in lines
        ],
        **({"product_id": None, "event_timestamp": AT} | more),
    )


def by_category(followers: Followers) -> list[tuple[Any, ...]]:
    return followers.rows(
        "SELECT product_category, total_revenue, order_count FROM live_revenue_by_category"
        " ORDER BY ALL"
    )


def test_each_line_of_a_basket_counts_for_its_product_and_its_category(
    followers: Followers,
) -> None:
    followers.stock({"P1": 20, "P2": 30})
    followers.change("UPDATE lake.products SET product_category = product_id || 's'")
    followers.ingest(
        "a",
        basket(1, ("P1", 2, 5), ("P2", 3, 7), ("P1", 1, 4), ("P9", 1, 1)),
        basket(2, ("P1", 4, 20), ("P2", 1, 0)),
        event(3, quantity=2, event_timestamp=AT),
        event(4, product_id=None, order_value_gbp=3),
    )
    assert followers.level("P1") == (20, 9, 0, 11, False)
    assert followers.level("P2") == (30, 4, 0, 26, False)
    assert followers.level("P9") == (None, 1, 0, None, False)
    # An order counts once in each category, and a gift in none.
    assert by_category(followers) == [("P1s", 39, 3), ("P2s", 7, 1), ("unknown", 4, 2)]
    assert followers.rows("SELECT total_revenue, order_count FROM live_revenue") == [(50, 4)]
    assert followers.rows(
        "SELECT order_id, product_id, product_category, sold FROM live_orders ORDER BY 1"
    ) == [
        ("O1", None, None, 7),
        ("O2", None, None, 5),
        ("O3", "P1", "P1s", 2),
        ("O4", None, "unknown", 1),
    ]
    # Returned as a whole, corrected, and cancelled.
    later = {"event_timestamp": "2026-10-13T09:00:00"}
    followers.ingest(
        "b",
        event(11, order_id="O1", status="returned", product_id=None, **later),
        basket(12, ("P2", 1, 8), order_id="O2", **later),
        basket(5, ("P1", 100, 100), status="cancelled"),
    )
    assert followers.level("P1") == (20, 5, 3, 18, False)
    assert followers.level("P2") == (30, 4, 3, 29, False)
    assert followers.level("P9") == (None, 1, 1, None, False)
    assert by_category(followers) == [("P1s", 10, 1), ("P2s", 8, 1), ("unknown", 3, 1)]
    # A product instead of the lines.
    followers.ingest("c", event(22, order_id="O2", event_timestamp="2026-10-13T10:00:00"))
    assert followers.rows("FROM live_order_lines WHERE order_id = 'O2'") == []
    assert followers.level("P2") == (30, 3, 3, 30, False)
    before = followers.everything()
    followers.rebuild()
    assert followers.everything() == before


def test_a_basket_may_take_several_products_below_the_threshold(followers: Followers) -> None:
    followers.stock({"P1": 12, "P2": 13, "P3": 9})
    followers.ingest("a", basket(1, ("P2", 1, 5), ("P1", 1, 5), ("P1", 2, 5), ("P2", 3, 5)))
    alerts = "SELECT event_id, line_number, product_id, stock FROM stock_alerts ORDER BY 2"
    assert followers.rows(alerts) == [("E1", 1, "P2", 9), ("E1", 2, "P1", 9)]
    followers.ingest("b", sale(2, 4, 8))
    assert followers.rows(f"{alerts} NULLS FIRST") == [
        ("E2", None, "P1", 8),
        ("E1", 1, "P2", 9),
    ]


def test_the_categories_of_lines_follow_the_reference_data(followers: Followers) -> None:
    followers.ingest("a", basket(1, ("P1", 1, 5), ("P2", 1, 7)), basket(2, ("P3", 1, 1)))
    assert by_category(followers) == [("unknown", 13, 2)]
    loader = followers.loader
    unchanged = followers.rows("SELECT updated_at FROM live_order_lines WHERE order_id = 'O2'")
    with loader.lake.transaction(loader.connection, "a test's change"):
        loader.connection.execute(
            "CREATE TEMP TABLE new_products AS SELECT * FROM lake.products LIMIT 0"
        )
        loader.connection.execute(
            "INSERT INTO new_products VALUES ('P2', 'Lamp', 'Lighting', NULL, NULL)"
        )
        staged = "temp.main.new_products"
        reference.restate(tables.PRODUCTS, loader.lake, loader.connection, staged)
        loader.connection.execute("INSERT INTO lake.products FROM new_products")
    followers.follow()
    assert by_category(followers) == [("Lighting", 7, 1), ("unknown", 6, 2)]
    assert unchanged == followers.rows(
        "SELECT updated_at FROM live_order_lines WHERE order_id = 'O2'"
    )


# Any order of arrival

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
