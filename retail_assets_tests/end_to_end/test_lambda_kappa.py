"""Lambda and Kappa: one day through both pipelines, and from its raw events once more.

The stream gives today's numbers at once; the batch takes its place once the export is there; both
agree in the end, whatever came late, twice or corrected; and a replay gives the same tables.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from retail_assets import tables
from retail_assets.consumers import framework as feed
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.automation import batch as automation
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.ingest.repair import replay
from retail_assets_tests.conftest import HEADER, order_row, write_export_to
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    PRODUCTS,
    Platform,
    open_platform,
    write_reference,
)

pytestmark = DAGSTER_CALLS_ITSELF

DAY = date(2026, 10, 12)
NEXT = DAY + timedelta(days=1)

DERIVED = (
    tables.ENRICHED_EVENTS,
    tables.DEAD_LETTER_EVENTS,
    tables.DEAD_LETTER_COUNTS,
    tables.LIVE_ORDERS,
    tables.LIVE_ORDER_LINES,
    tables.LIVE_REVENUE,
    tables.LIVE_REVENUE_BY_CATEGORY,
    tables.LIVE_REVENUE_MINUTES,
    tables.INVENTORY_LEVELS,
    tables.STOCK_ALERTS,
    tables.FRAUD_ALERTS,
)
WHEN = {"processed_at", "updated_at"}
"""Columns that say when a row was made, not what it is."""


def at(hour: int, day: date = DAY) -> str:
    return f"{day}T{hour:02}:30:00+01:00"


def order(number: int, hour: int, value: float = 10, **changed) -> str:
    """An event of an order: one of each hour."""
    return event(
        number,
        order_id=f"O{changed.pop('of', number)}",
        order_value_gbp=value,
        event_timestamp=at(hour, changed.pop("day", DAY)),
        quantity=1,
        status=changed.pop("status", "completed"),
        **changed,
    )


class Pipelines:
    """A lake with both pipelines at work on it."""

    def __init__(self, platform: Platform, loader: EventLoader) -> None:
        self.platform = platform
        self.loader = loader
        self.position = 0

    def stream(self, *payloads: str, day: date = DAY) -> None:
        """Ingest events as the worker does, and let the consumers follow."""
        positions = range(self.position, self.position + len(payloads))
        self.position += len(payloads)
        received = Received(
            "kafka", "orders:0", day, positions, [text.encode() for text in payloads], 0.0
        )
        ingest(self.loader.session, [received])
        self.follow()

    def follow(self) -> None:
        for consumer in all_consumers(self.platform.settings):
            feed.consume(self.loader.lake, self.loader.connection, consumer)

    def export(self, day: date, rows: Sequence[str], header: str = HEADER) -> None:
        """Run the night's batch over an export."""
        write_export_to(self.platform.settings.exports_dir, day, rows, header=header)
        assert self.platform.run(automation.BATCH, DAY, day, checks=True).success

    def revenue(self, table: str, columns: str = "") -> list[tuple[str, ...]]:
        return self.loader.rows(
            "SELECT order_date::VARCHAR, region, total_revenue::VARCHAR, order_count"
            f"{columns} FROM {table} ORDER BY ALL"
        )

    def by_category(self, table: str) -> list[tuple[str, ...]]:
        return self.loader.rows(
            "SELECT order_date::VARCHAR, region, product_category, total_revenue::VARCHAR,"
            f" order_count, avg_order_value::VARCHAR FROM {table} ORDER BY ALL"
        )

    def replay(self) -> None:
        """Kappa: compute all tables once more, from the raw events."""
        for day in (DAY, NEXT):
            assert replay.check_day(self.loader.session, day) == []
        for table in DERIVED:
            self.platform.change(f"DELETE FROM lake.{table.name}")
        for day in (DAY, NEXT):
            replay.replay_day(self.loader.session, day)
        for consumer in all_consumers(self.platform.settings):
            feed.rewind(self.loader.lake, self.loader.connection, consumer)
        self.follow()

    def tables(self) -> dict[str, list[tuple]]:
        return {
            table.name: self.loader.rows(
                f"SELECT {', '.join(name for name in table.column_names if name not in WHEN)}"
                f" FROM {table.name} ORDER BY ALL"
            )
            for table in DERIVED
        }


@pytest.fixture
def pipelines(settings, lake):
    # So that there are alerts of a few orders.
    few = {"low_stock_units": 3, "fraud_orders_in_window": 2, "fraud_window_minutes": 240}
    settings = settings.model_copy(update=few)
    write_reference(settings)
    with open_platform(settings) as platform, EventLoader.open(settings) as loader:
        assert platform.run(automation.REFERENCE).success
        yield Pipelines(platform, loader)


def test_both_pipelines_agree_in_the_end_and_a_replay_gives_the_same(pipelines: Pipelines):
    # During the day: a duplicate, a correction, a cancellation, a bad one, and one out of order.
    pipelines.stream(order(1, 9), order(2, 11, 20, region="South"), "{")
    pipelines.stream(order(1, 9), order(3, 10, 5), order(12, 12, 25, of=2, region="South"))
    pipelines.stream(order(4, 13, 40), order(14, 14, 40, of=4, status="cancelled"))
    assert pipelines.revenue("revenue_now", ", source") == [
        (str(DAY), "North", "15.00", 2, "stream"),
        (str(DAY), "South", "25.00", 1, "stream"),
    ]

    # At night the export has what the shop's database says, with one more that no event told of.
    def row(number: int, hour: int, value: str, **changed: str) -> str:
        return order_row(
            f"O{number}",
            DAY,
            order_value_gbp=value,
            order_timestamp=f"{DAY} {hour:02}:30:00",
            **changed,
        )

    rows = [
        row(1, 9, "10.00"),
        row(2, 11, "25.00", region="South"),
        row(3, 10, "5.00"),
        row(4, 13, "40.00", status="cancelled"),
        row(5, 15, "7.00"),
    ]
    pipelines.export(DAY, rows)
    assert pipelines.revenue("revenue_now", ", source") == [
        (str(DAY), "North", "22.00", 3, "batch"),
        (str(DAY), "South", "25.00", 1, "batch"),
    ]
    assert pipelines.revenue("live_revenue") != pipelines.revenue("daily_revenue")

    # The missing event comes late, and an order is returned on the next day, in both pipelines.
    pipelines.stream(order(5, 15, 7), order(13, 9, 5, of=3, status="returned", day=NEXT), day=NEXT)
    pipelines.export(NEXT, [row(3, 10, "5.00", status="returned")])
    assert pipelines.revenue("live_revenue") == pipelines.revenue("daily_revenue")
    assert pipelines.revenue("daily_revenue") == [
        (str(DAY), "North", "17.00", 2),
        (str(DAY), "South", "25.00", 1),
    ]
    assert {row[-1] for row in pipelines.revenue("revenue_now", ", source")} == {"batch"}

    # An order with lines is in a table of its own.
    live = pipelines.tables()
    assert {name for name, rows in live.items() if not rows} == {tables.LIVE_ORDER_LINES.name}
    pipelines.replay()
    assert pipelines.tables() == live


Line = tuple[str, int, str]
"""Product, quantity and value of a line."""

APPLES, BEANS, PEARS = ("P1", 2, "3.10"), ("P2", 1, "0.95"), ("P1", 1, "1.55")
UNLISTED = ("P9", 4, "12.34")


def basket(number: int, of: int, hour: int, *lines: Line, day: date = DAY, **changed: Any) -> str:
    """An event of an order with lines, whose value is their sum."""
    return event(
        number,
        order_id=f"O{of}",
        order_value_gbp=str(sum(Decimal(value) for *_, value in lines)),
        event_timestamp=at(hour, day),
        product_id=None,
        lines=[
            {"product_id": product, "quantity": quantity, "order_value_gbp": value}
            for product, quantity, value in lines
        ],
        **changed,
    )


def rows_of(of: int, hour: int, *lines: Line, **changed: str) -> list[str]:
    """The rows of an export for the same order."""
    return [
        order_row(
            f"O{of}",
            DAY,
            product_id=product,
            order_value_gbp=value,
            order_timestamp=f"{DAY} {hour:02}:30:00",
            **changed,
        )
        + f",{number}"
        for number, (product, _, value) in enumerate(lines, 1)
    ]


def test_baskets_give_the_same_revenue_orders_and_categories_in_both_pipelines(
    pipelines: Pipelines,
):
    """However they come: late, in part, corrected, cancelled, or one as a single product."""
    south = {"region": "South"}
    pipelines.stream(
        basket(1, 1, 9, APPLES, BEANS, PEARS),
        # In part: the rest of the order follows.
        basket(2, 2, 10, APPLES, **south),
        basket(3, 3, 11, BEANS, UNLISTED),
        # Corrected later: a line was sent back, and another was dearer.
        basket(4, 4, 12, APPLES, BEANS, UNLISTED),
        order(5, 13, 7.77),
        basket(6, 6, 14, APPLES, BEANS, status="pending"),
    )
    pipelines.stream(
        basket(12, 2, 11, APPLES, BEANS, UNLISTED, **south),
        # Its lines stay: it says nothing of them.
        order(13, 12, 13.29, of=3, status="cancelled", product_id=None),
        basket(14, 4, 15, APPLES, ("P9", 4, "13.00")),
        "[",
    )

    header = HEADER + ",line_number"
    pipelines.export(
        DAY,
        [
            *rows_of(1, 9, APPLES, BEANS, PEARS),
            *rows_of(2, 10, APPLES, **south),
            *rows_of(3, 11, BEANS, UNLISTED, status="cancelled"),
            *rows_of(4, 12, APPLES, BEANS, UNLISTED),
            *rows_of(5, 13, ("P1", 1, "7.77")),
            *rows_of(6, 14, APPLES, BEANS, status="pending"),
        ],
        header,
    )
    assert pipelines.revenue("live_revenue") != pipelines.revenue("daily_revenue")

    # On the next day: a late basket, one that was pending, and one that is returned.
    pipelines.stream(
        basket(7, 7, 16, BEANS, PEARS, **south),
        basket(16, 6, 9, APPLES, BEANS, day=NEXT),
        order(11, 10, 5.6, of=1, status="returned", day=NEXT, product_id=None),
        day=NEXT,
    )
    pipelines.export(
        NEXT,
        [
            *rows_of(2, 10, APPLES, BEANS, UNLISTED, **south),
            *rows_of(4, 12, APPLES, ("P9", 4, "13.00")),
            *rows_of(7, 16, BEANS, PEARS, **south),
            *rows_of(6, 14, APPLES, BEANS),
            *rows_of(1, 9, APPLES, BEANS, PEARS, status="returned"),
        ],
        header,
    )
    assert pipelines.revenue("live_revenue") == pipelines.revenue("daily_revenue")
    assert pipelines.revenue("daily_revenue") == [
        (str(DAY), "North", "27.92", 3),
        (str(DAY), "South", "18.89", 2),
    ]
    categories = pipelines.by_category("daily_revenue_by_category")
    assert pipelines.by_category("live_revenue_by_category") == categories
    assert [row[1:] for row in categories] == [
        ("North", "Kitchen", "13.97", 3, "4.66"),
        ("North", "Lighting", "0.95", 1, "0.95"),
        ("North", "unknown", "13.00", 1, "13.00"),
        ("South", "Kitchen", "4.65", 2, "2.33"),
        ("South", "Lighting", "1.90", 2, "0.95"),
        ("South", "unknown", "12.34", 1, "12.34"),
    ]
    assert pipelines.loader.rows("SELECT DISTINCT source FROM revenue_by_category_now") == [
        ("batch",)
    ]
    levels = "SELECT product_id, sold, returned FROM inventory_levels ORDER BY 1"
    assert pipelines.loader.rows(levels) == [("P1", 11, 3), ("P2", 4, 1), ("P9", 8, 0)]

    # Products get other categories: the days of both follow.
    listed = PRODUCTS + "P9,Cheese,Dairy,3.00,100\n"
    write_reference(pipelines.platform.settings, listed.replace("Kitchen", "Home"))
    assert pipelines.platform.run(automation.REFERENCE).success
    pipelines.follow()
    assert pipelines.platform.run(automation.BATCH, DAY, DAY).success
    categories = pipelines.by_category("daily_revenue_by_category")
    assert pipelines.by_category("live_revenue_by_category") == categories
    assert {row[2] for row in categories} == {"Dairy", "Home", "Lighting"}

    live = pipelines.tables()
    assert all(live.values()), "each table has something to lose"
    pipelines.replay()
    assert pipelines.tables() == live
