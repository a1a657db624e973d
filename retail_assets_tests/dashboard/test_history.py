"""Then and now: which days changed since a snapshot, by how much, and why."""

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from retail_assets import tables
from retail_assets.dashboard.reading.amounts import Amount
from retail_assets.dashboard.reading.history import (
    moment_at,
    read_difference,
    read_moments,
)
from retail_assets_tests.dashboard.rows import (
    MONDAY,
    beating,
    insert,
    published,
    streamed,
    week_before,
)


@pytest.fixture
def change(lake):
    """Execute statements in one commit."""

    def execute(*statements, message="a change"):
        with lake.connect() as connection, lake.transaction(connection, message):
            for statement in statements:
                connection.execute(statement)

    return execute


def read(lake, function):
    with lake.connect(read_only=True) as connection:
        return function(connection)


def test_moments_are_the_commits_that_changed_revenue_without_heartbeats(lake, change):
    published(lake, (MONDAY, "09:00", "North", "10.00"))
    beating(lake)
    change("UPDATE lake.daily_revenue SET total_revenue = 11", message="restate")
    beating(lake)
    moments = read(lake, lambda c: read_moments(c, "Europe/London"))
    assert [each.message for each in moments] == ["a test's rows", "restate"]
    assert moment_at(moments, datetime.now(timezone.utc)) == moments[-1]
    assert moment_at(moments, moments[0].at) == moments[0]
    assert moment_at(moments, moments[0].at - timedelta(seconds=1)) is None


def test_each_day_that_changed_says_why(lake, change):
    days = [MONDAY - timedelta(days=n) for n in range(5)]
    published(
        lake,
        *((day, "09:00", "North", "10.00") for day in days),
        *((day, "10:00", "North", "20.00") for day in days),
    )
    then = read(lake, lambda c: read_moments(c, "Europe/London"))[-1]
    late, corrected, removed, described, same = days
    insert(
        lake,
        tables.COMPLETED_ORDERS,
        {
            "order_date": late,
            "order_id": "late",
            "export_date": late + timedelta(days=1),
            "order_value_gbp": "5.00",
        },
    )
    order = "SELECT min(order_id) FROM lake.completed_orders WHERE order_date ="
    changed = ", ".join(f"DATE '{day}'" for day in days)
    change(
        "UPDATE lake.completed_orders SET order_value_gbp = 12"
        f" WHERE order_id = ({order} DATE '{corrected}')",
        f"DELETE FROM lake.completed_orders WHERE order_id = ({order} DATE '{removed}')",
        "UPDATE lake.completed_orders SET product_category = 'Garden'"
        f" WHERE order_date = DATE '{described}'",
        "UPDATE lake.published_days SET published_at = now()"
        f" WHERE table_name = 'daily_revenue' AND day IN ({changed})",
        f"UPDATE lake.daily_revenue SET total_revenue = 35 WHERE order_date = DATE '{late}'",
        f"UPDATE lake.daily_revenue SET total_revenue = 32 WHERE order_date = DATE '{corrected}'",
        "UPDATE lake.daily_revenue SET total_revenue = 20, order_count = 1"
        f" WHERE order_date = DATE '{removed}'",
    )
    found = read(lake, lambda c: read_difference(c, then, "Europe/London"))
    why = {
        each.day: [(r.kind, r.orders, r.change.revenue) for r in each.reasons]
        for each in found.days
    }
    assert why == {
        late: [("late", 1, Decimal(5))],
        corrected: [("corrected", 1, Decimal(2))],
        removed: [("removed", 1, Decimal(-10))],
        described: [("reference data", 2, Decimal(0))],
    }
    assert same not in why
    assert found.total == Amount(Decimal(-3), -1)


def test_the_batch_taking_the_place_of_the_stream_and_new_events_are_reasons_too(lake):
    day = week_before()
    streamed(lake, (day, "09:00", "North", "10.00"))
    then = read(lake, lambda c: read_moments(c, "Europe/London"))[-1]
    streamed(lake, (MONDAY, "09:00", "North", "4.00"))
    insert(
        lake,
        tables.LIVE_ORDERS,
        {"order_date": MONDAY, "updated_at": datetime.now(timezone.utc)},
    )
    published(lake, (day, "09:00", "North", "13.00"))
    with lake.connect() as connection, lake.transaction(connection, "now"):
        connection.execute("UPDATE lake.published_days SET published_at = now()")
    found = read(lake, lambda c: read_difference(c, then, "Europe/London"))
    assert [
        (each.day, each.source_then, each.source_now, each.reasons[0].kind, each.now.revenue)
        for each in found.days
    ] == [
        (MONDAY, None, "stream", "events", Decimal(4)),
        (day, "stream", "batch", "first published", Decimal(13)),
    ]
