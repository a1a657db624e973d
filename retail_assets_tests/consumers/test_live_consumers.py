"""Live orders, live revenue and inventory: the lake's tables agree with a plain model of them."""

from datetime import date, timedelta
from typing import Any

from retail_assets import tables
from retail_assets.consumers import live_revenue
from retail_assets.ingest.exports import reference
from retail_assets_tests.consumers.followers import AT, DAY, Followers
from retail_assets_tests.event_files import EventLoader, event

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
