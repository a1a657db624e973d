"""Lambda and Kappa: one day through both lanes, and from its raw events once more.

The stream gives today's numbers at once; the batch takes its place once the export is there; both
agree in the end, whatever came late, twice or corrected; and a replay gives the same tables.
"""

from collections.abc import Sequence
from datetime import date, timedelta

import pytest

from retail_assets import tables
from retail_assets.consumers import framework as feed
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.automation import batch as automation
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.ingest.repair import replay
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
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
    tables.LIVE_REVENUE,
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


class Lanes:
    """A lake with both lanes at work on it."""

    def __init__(self, platform: Platform, loader: EventLoader) -> None:
        self.platform = platform
        self.loader = loader
        self.position = 0

    def stream(self, *payloads: str, day: date = DAY) -> None:
        """Take events in as the worker does, and let the consumers follow."""
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

    def export(self, day: date, rows: Sequence[str]) -> None:
        """Run the night's batch over an export."""
        write_export_to(self.platform.settings.exports_dir, day, rows)
        assert self.platform.run(automation.BATCH, DAY, day, checks=True).success

    def revenue(self, table: str, columns: str = "") -> list[tuple[str, ...]]:
        return self.loader.rows(
            "SELECT order_date::VARCHAR, region, total_revenue::VARCHAR, order_count"
            f"{columns} FROM {table} ORDER BY ALL"
        )

    def tables(self) -> dict[str, list[tuple]]:
        return {
            table.name: self.loader.rows(
                f"SELECT {', '.join(name for name in table.column_names if name not in WHEN)}"
                f" FROM {table.name} ORDER BY ALL"
            )
            for table in DERIVED
        }


@pytest.fixture
def lanes(settings, lake):
    # So that there are alerts of a few orders.
    few = {"low_stock_units": 3, "fraud_orders_in_window": 2, "fraud_window_minutes": 240}
    settings = settings.model_copy(update=few)
    write_reference(settings)
    with open_platform(settings) as platform, EventLoader.open(settings) as loader:
        assert platform.run(automation.REFERENCE).success
        yield Lanes(platform, loader)


def test_both_pipelines_agree_in_the_end_and_a_replay_gives_the_same(lanes: Lanes):
    # During the day: a duplicate, a correction, a cancellation, a bad one, and one out of order.
    lanes.stream(order(1, 9), order(2, 11, 20, region="South"), "{")
    lanes.stream(order(1, 9), order(3, 10, 5), order(12, 12, 25, of=2, region="South"))
    lanes.stream(order(4, 13, 40), order(14, 14, 40, of=4, status="cancelled"))
    assert lanes.revenue("revenue_now", ", source") == [
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
    lanes.export(DAY, rows)
    assert lanes.revenue("revenue_now", ", source") == [
        (str(DAY), "North", "22.00", 3, "batch"),
        (str(DAY), "South", "25.00", 1, "batch"),
    ]
    assert lanes.revenue("live_revenue") != lanes.revenue("daily_revenue")

    # The missing event comes late, and an order is returned on the next day, in both lanes.
    lanes.stream(order(5, 15, 7), order(13, 9, 5, of=3, status="returned", day=NEXT), day=NEXT)
    lanes.export(NEXT, [row(3, 10, "5.00", status="returned")])
    assert lanes.revenue("live_revenue") == lanes.revenue("daily_revenue")
    assert lanes.revenue("daily_revenue") == [
        (str(DAY), "North", "17.00", 2),
        (str(DAY), "South", "25.00", 1),
    ]
    assert {row[-1] for row in lanes.revenue("revenue_now", ", source")} == {"batch"}

    # Kappa: the same logic over the raw events from the start.
    live = lanes.tables()
    assert all(live.values()), "each table has something to lose"
    for day in (DAY, NEXT):
        assert replay.check_day(lanes.loader.session, day) == []
    for table in DERIVED:
        lanes.platform.change(f"DELETE FROM lake.{table.name}")
    for day in (DAY, NEXT):
        replay.replay_day(lanes.loader.session, day)
    for consumer in all_consumers(lanes.platform.settings):
        feed.rewind(lanes.loader.lake, lanes.loader.connection, consumer)
    lanes.follow()
    assert lanes.tables() == live
