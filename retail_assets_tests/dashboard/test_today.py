"""The page Today: amounts, what they are compared with, and where they come from."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from retail_assets import tables
from retail_assets.dashboard.reading.amounts import Amount
from retail_assets.dashboard.reading.events import read_events
from retail_assets.dashboard.reading.stock import read_low_stock
from retail_assets.dashboard.reading.today import SHOWN_REGIONS, read_revenue
from retail_assets_tests.dashboard.rows import (
    MONDAY,
    NOW,
    beating,
    insert,
    published,
    streamed,
    week_before,
)


def revenue(lake, settings, now=NOW):
    with lake.connect(read_only=True) as connection:
        return read_revenue(connection, settings, now)


def test_today_is_compared_with_the_same_weekday_by_the_same_minute(lake, settings):
    published(
        lake,
        (week_before(1), "09:00", "North", "10.00"),
        (week_before(1), "18:00", "North", "90.00"),
        (week_before(2), "09:59", "South", "30.00"),
        (week_before(3), "10:00", "South", "20.00"),
        (week_before(3), "10:01", "South", "7.00"),
    )
    streamed(
        lake,
        (MONDAY, "09:30", "North", "12.50"),
        (MONDAY, "09:30", "North", "2.50"),
        (MONDAY, "09:45", "South", "5.00"),
    )
    beating(lake)
    found = revenue(lake, settings)
    assert (found.day, found.is_today, found.source) == (MONDAY, True, "stream")
    assert found.amount == Amount(Decimal("20.00"), 3)
    assert found.amount.average == Decimal("6.67")
    assert found.week_before == Amount(Decimal("10.00"), 1)
    assert found.change_to_week_before == 1.0
    assert found.usual == Decimal("20.00")  # of 10, 30 and 20
    assert [(each.name, each.amount.revenue, each.change) for each in found.regions] == [
        ("North", Decimal("15.00"), 0.5),
        ("South", Decimal("5.00"), None),
    ]
    assert found.course.slots(found.minute)[-5:] == [
        *[Decimal(0)] * 1,
        *[Decimal("15.00")],
        *[Decimal("20.00")] * 3,
    ]
    assert dict(found.last_minutes)[9 * 60 + 30] == Amount(Decimal("15.00"), 2)
    assert len(found.last_minutes) == 60


def test_a_published_day_counts_from_its_export_and_not_from_its_events(lake, settings):
    published(lake, (MONDAY, "08:00", "North", "11.00"))
    streamed(lake, (MONDAY, "08:00", "North", "999.00"))
    found = revenue(lake, settings)
    assert found.source == "batch"
    assert found.amount == Amount(Decimal("11.00"), 1)
    assert found.course.until(8 * 60) == found.amount
    assert found.freshness.published_at == NOW - timedelta(hours=4)


def test_without_orders_and_worker_the_newest_day_is_shown_whole(lake, settings):
    day = MONDAY - timedelta(days=90)
    published(lake, (day, "22:00", "North", "10.00"), (day - timedelta(7), "23:00", "North", "4"))
    found = revenue(lake, settings)
    assert (found.day, found.is_today) == (day, False)
    assert found.change_to_week_before == 1.5


def test_a_worker_that_is_alive_makes_it_today_even_before_the_first_order(lake, settings):
    published(lake, (week_before(), "09:00", "North", "10.00"))
    beating(lake)
    found = revenue(lake, settings)
    assert (found.is_today, found.source, found.amount) == (True, None, Amount())
    assert [(each.name, each.change) for each in found.regions] == [("North", -1.0)]


def test_many_regions_are_shown_with_the_others_together(lake, settings):
    published(lake, *((MONDAY, "09:00", f"R{n:02}", str(100 - n)) for n in range(30)))
    found = revenue(lake, settings)
    assert len(found.regions) == SHOWN_REGIONS
    assert found.regions[0].name == "R00"
    assert found.regions[-1].name == "19 others"
    assert sum((each.amount for each in found.regions), Amount()) == found.amount


def test_today_reads_no_file_of_months_that_it_does_not_show(lake, settings):
    published(
        lake,
        (MONDAY, "09:00", "North", "10.00"),
        (week_before(), "09:00", "North", "10.00"),
        (MONDAY.replace(month=6), "09:00", "North", "10.00"),
    )
    insert(lake, tables.ENRICHED_EVENTS, {"received_date": MONDAY.replace(month=6)})
    insert(lake, tables.ENRICHED_EVENTS, {"received_date": MONDAY})
    with lake.connect() as connection:
        connection.execute("CALL ducklake_flush_inlined_data('lake')")
    months = [
        file
        for table in ("completed_orders", "daily_revenue", "enriched_events")
        for file in Path(settings.data_path).rglob(f"{table}/**/month=6/*.parquet")
    ]
    assert len(months) == 3
    for file in months:
        file.unlink()
    assert revenue(lake, settings).amount == Amount(Decimal("10.00"), 1)
    with lake.connect(read_only=True) as connection:
        found = read_events(connection, MONDAY, NOW)
        assert (found.valid, len(found.feed)) == (1, 1)
        for table in ("completed_orders", "daily_revenue", "enriched_events"):
            with pytest.raises(duckdb.IOException):  # that is what reading all months does
                connection.execute(f"SELECT region FROM {table}").fetchall()


def test_the_feed_has_the_newest_events_and_nothing_of_the_customer(lake):
    insert(
        lake,
        tables.ENRICHED_EVENTS,
        *(
            {
                "event_id": f"E{n}",
                "order_id": f"O{n}",
                "customer_id": "C-secret",
                "received_date": MONDAY,
                "processed_at": NOW - timedelta(minutes=n * 10),
                "order_value_gbp": "500.00",
                "value_tier": "high",
            }
            for n in range(40)
        ),
    )
    with lake.connect(read_only=True) as connection:
        found = read_events(connection, MONDAY, NOW)
    assert [each.event_id for each in found.feed] == [f"E{n}" for n in range(30)]
    assert found.feed[0].tier == "high"
    assert "C-secret" not in repr(found)


def test_dead_letters_and_alerts_of_the_day_say_why(lake):
    insert(
        lake,
        tables.DEAD_LETTER_COUNTS,
        {"received_date": MONDAY, "reason": "not_json", "dead_letters": 3},
        {"received_date": MONDAY, "reason": "from_a_newer_release", "dead_letters": 5},
        {"received_date": week_before(), "reason": "not_json", "dead_letters": 70},
    )
    insert(lake, tables.ENRICHED_EVENTS, *({"event_id": f"E{n}"} for n in range(2)))
    insert(
        lake,
        tables.FRAUD_ALERTS,
        {
            "order_id": "O1",
            "reasons": "many_cards,away_from_home",
            "explanation": "3 cards within 30 minutes; in Wales, home is North",
        },
    )
    with lake.connect(read_only=True) as connection:
        found = read_events(connection, MONDAY, NOW)
    assert [(each.reason, each.rule, each.count) for each in found.dead_letters] == [
        ("from_a_newer_release", "", 5),
        ("not_json", "The line is not JSON.", 3),
    ]
    assert found.dead_share == 0.8
    (alert,) = found.alerts
    assert (alert.order_id, list(alert.reasons)) == ("O1", ["many_cards", "away_from_home"])


def test_stock_runs_low_below_the_limit_or_with_little_cover(lake):
    levels = {"gone": (0, True), "few": (6, True), "fast": (40, False), "plenty": (41, False)}
    insert(lake, tables.PRODUCTS, {"product_id": "fast", "product_name": "Kettle"})
    insert(
        lake,
        tables.INVENTORY_LEVELS,
        *({"product_id": p, "stock": stock, "below": low} for p, (stock, low) in levels.items()),
    )
    sold = {"fast": 280, "plenty": 140, "few": 0}
    insert(
        lake,
        tables.LIVE_ORDERS,
        *(
            {"order_id": f"O{p}", "product_id": p, "sold": units, "returned": 0}
            for p, units in sold.items()
        ),
        {"product_id": "plenty", "sold": 10_000, "order_date": MONDAY - timedelta(days=14)},
    )
    with lake.connect(read_only=True) as connection:
        found = read_low_stock(connection, MONDAY)
    assert [(each.product_id, each.cover_days) for each in found] == [
        ("gone", 0.0),
        ("fast", 2.0),
        ("few", None),
    ]
    assert found[1].name == "Kettle"
