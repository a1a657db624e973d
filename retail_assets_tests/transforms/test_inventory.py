"""Live orders, stock and its alerts: their rules on every engine, and alike on all."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any, TypeAlias

import duckdb
import narwhals as nw
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.tables import LIVE_ORDERS, PRODUCTS
from retail_assets.transforms import inventory, live_orders
from retail_assets_tests.transforms.conftest import (
    HAPPENED,
    Engine,
    Rows,
    arrow,
    on_duckdb,
    on_pandas,
    result,
)

DAY = date(2026, 10, 12)
NOON = datetime(2026, 10, 12, 12, tzinfo=timezone.utc)
LOW = 10


def at(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


def said(minute: int | None, position: int, **more: Any) -> dict[str, Any]:
    """An event of order O1, two units of P1, this many minutes after noon."""
    when = None if minute is None else at(minute)
    return {
        "event_id": f"E{position}",
        "order_id": "O1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal(10),
        "quantity": 2,
        "event_timestamp": when,
        "happened_at": when or NOON - timedelta(hours=12),
        "order_date": DAY,
        "received_date": DAY,
        "received_at": NOON,
        "position": position,
    } | more


def orders_of(engine: Engine, rows: Rows) -> list[dict[str, Any]]:
    return result(live_orders.live_orders(engine(arrow(HAPPENED, rows))))


STOCK_CASES = {
    "sold": ([said(0, 1)], ("P1", 2, at(0), "E1", 0, None)),
    "one unit unless it says more": ([said(0, 1, quantity=None)], ("P1", 1, at(0), "E1", 0, None)),
    "pending takes nothing": ([said(0, 1, status="pending")], ("P1", 0, None, None, 0, None)),
    "cancelled after the sale": (
        [said(0, 1), said(5, 2, status="cancelled")],
        ("P1", 0, None, None, 0, None),
    ),
    "gives back what it took": (
        [said(0, 1, quantity=3), said(5, 2, status="returned", product_id=None, quantity=9)],
        ("P1", 3, at(0), "E1", 3, at(5)),
    ),
    "came back and was never seen sold": (
        [said(0, 1, status="pending", quantity=5), said(5, 2, status="returned", quantity=None)],
        ("P1", 0, None, None, 5, at(5)),
    ),
    "a correction of what and how many, sold since the first": (
        [said(0, 1), said(5, 2, product_id="P2", quantity=7)],
        ("P2", 7, at(0), "E1", 0, None),
    ),
    "a correction that leaves out what and how many": (
        [said(0, 1), said(5, 2, product_id=None, quantity=None)],
        ("P1", 2, at(0), "E1", 0, None),
    ),
    "what is later by time counts, not what came later": (
        [said(5, 1, status="returned"), said(0, 2)],
        ("P1", 2, at(0), "E2", 2, at(5)),
    ),
    "without a time by its receipt, which was before": (
        [said(0, 1), said(None, 2, status="returned", received_at=at(-1))],
        ("P1", 2, at(0), "E1", 0, None),
    ),
    "without a time by its receipt, which was after": (
        [said(0, 1), said(None, 2, status="returned", received_at=at(1))],
        ("P1", 2, at(0), "E1", 2, at(-720)),
    ),
    "sold again": (
        [said(0, 1), said(5, 2, status="returned"), said(9, 3)],
        ("P1", 2, at(0), "E1", 0, None),
    ),
    "nobody knows what": ([said(0, 1, product_id=None)], (None, 2, at(0), "E1", 0, None)),
}


@pytest.mark.parametrize(("rows", "expected"), STOCK_CASES.values(), ids=STOCK_CASES)
def test_what_an_order_does_to_the_stock(
    engine: Engine, rows: Rows, expected: tuple[Any, ...]
) -> None:
    (order,) = orders_of(engine, rows)
    names = ("product_id", "sold", "sold_at", "sold_event_id", "returned", "returned_at")
    assert tuple(order[name] for name in names) == expected


def test_an_order_is_on_the_day_and_at_the_time_of_its_first_event(engine: Engine) -> None:
    before = DAY - timedelta(days=1)
    midnight = at(0) - timedelta(days=1, hours=12)
    orders = orders_of(
        engine,
        [
            said(0, 1, order_value_gbp=Decimal(7), region="South"),
            said(-5, 2),
            said(3, 3, order_id="O2"),
            said(None, 4, order_id="O2", order_date=before, happened_at=midnight),
        ],
    )
    names = ("order_id", "order_date", "ordered_at", "region", "order_value_gbp")
    assert sorted(tuple(order[name] for name in names) for order in orders) == [
        ("O1", DAY, at(-5), "South", 7),
        ("O2", before, midnight, "North", 10),
    ]


def moved(number: int, sold: int = 0, returned: int = 0, **more: Any) -> dict[str, Any]:
    """A live order that was sold so many minutes after noon as its number says."""
    return {
        "order_id": f"O{number}",
        "product_id": "P1",
        "sold": sold,
        "sold_at": at(number) if sold else None,
        "sold_event_id": f"E{number}" if sold else None,
        "returned": returned,
        "returned_at": at(number) if returned else None,
    } | more


def product(name: str, stock: int | None) -> dict[str, Any]:
    return {"product_id": name, "stock_on_hand": stock}


def with_days(orders: nw.LazyFrame, day: str = "1d") -> nw.LazyFrame:
    """Live orders as `stock_alerts` takes them, with days of any length."""
    return orders.with_columns(
        nw.col(f"{name}_at").dt.truncate(day).alias(f"{name}_day") for name in ("sold", "returned")
    )


def alerts(
    engine: Engine, stock: int | dict[str, int], *orders: dict[str, Any], day: str = "1d"
) -> list[tuple[str, int]]:
    """The events that make a stock low, and what is left: of P1, or of the products named."""
    stocks = stock if isinstance(stock, dict) else {"P1": stock}
    found = inventory.stock_alerts(
        with_days(engine(arrow(LIVE_ORDERS, orders)), day),
        engine(arrow(PRODUCTS, [product(*each) for each in stocks.items()])),
        low_stock_units=LOW,
    )
    return sorted((row["event_id"], row["stock"]) for row in result(found))


def test_an_alert_is_a_sale_that_takes_the_stock_below_the_threshold(engine: Engine) -> None:
    assert alerts(engine, 12, moved(1, 2)) == []
    assert alerts(engine, 12, moved(1, 3)) == [("E1", 9)]
    assert alerts(engine, 9, moved(1, 3)) == [], "it was low before"
    assert alerts(engine, 12, moved(2, 2), moved(1, 2)) == [("E2", 8)]
    assert alerts(engine, 12, moved(2, 2), moved(1, 2), moved(3, 1)) == [("E2", 8)]
    assert alerts(engine, 5, moved(1, 0, 6), moved(2, 2)) == [("E2", 9)]
    assert alerts(engine, 12, moved(1, 3), moved(2, 0, 1), moved(3, 1)) == [("E1", 9), ("E3", 9)]


def test_at_one_time_what_comes_back_is_first_and_then_the_sales_by_order(engine: Engine) -> None:
    back = moved(9, 0, 2, returned_at=at(1))
    assert alerts(engine, 12, moved(1, 3), back) == []
    three = [moved(number, 1, sold_at=at(0)) for number in (3, 1, 2)]
    assert alerts(engine, 11, *three) == [("E2", 9)]


def test_levels_of_all_products_that_there_are_or_were_ordered(engine: Engine) -> None:
    orders = [
        moved(1, 3),
        moved(2, 2, 2),
        moved(3, 1, product_id="P9"),
        moved(4, 1, product_id=None),
        moved(5, 1, product_id="P3"),
    ]
    products = [product("P1", 12), product("P2", 10), product("P3", None)]
    found = result(
        inventory.inventory_levels(
            engine(arrow(LIVE_ORDERS, orders)),
            engine(arrow(PRODUCTS, products)),
            low_stock_units=LOW,
        )
    )
    names = ("product_id", "stock_on_hand", "sold", "returned", "stock", "below")
    assert sorted(tuple(row[name] for name in names) for row in found) == [
        ("P1", 12, 5, 2, 9, True),
        ("P2", 10, 0, 0, 10, False),
        ("P3", None, 1, 0, None, False),
        ("P9", None, 1, 0, None, False),
    ]


# On all engines alike


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Europe/London'")
        yield on_pandas, on_duckdb(connection)


any_event = st.builds(
    lambda minute, order, more: said(minute, 0, order_id=order, **more),
    st.none() | st.integers(0, 3),
    st.sampled_from(["O1", "O2"]),
    st.fixed_dictionaries(
        {
            "status": st.sampled_from(["completed", "returned", "pending"]),
            "product_id": st.sampled_from(["P1", "P2", None]),
            "quantity": st.sampled_from([None, 1, 4]),
            "order_date": st.sampled_from([DAY, DAY + timedelta(days=1)]),
        }
    ),
)
some_events = st.lists(any_event, max_size=8)
stocks = st.none() | st.integers(8, 16)


@settings(max_examples=7)
@given(shops=st.lists(st.tuples(some_events, stocks), min_size=1, max_size=5))
@example(shops=[])
@example(shops=[([said(None, 0, product_id=None, quantity=None)], 12)])
def test_the_rules_give_the_same_on_all_engines(
    engines: tuple[Engine, Engine], shops: list[tuple[Rows, int | None]]
) -> None:
    """Several shops at once: an example takes the time to plan its queries, not of its rows."""
    rows = [
        row
        | {
            "order_id": f"{shop} {row['order_id']}",
            "product_id": row["product_id"] and f"{shop} {row['product_id']}",
        }
        for shop, (of_shop, _) in enumerate(shops)
        for row in of_shop
    ]
    rows = [row | {"position": n, "event_id": f"E{n}"} for n, row in enumerate(rows)]
    happened = arrow(HAPPENED, rows)
    products = arrow(
        PRODUCTS, [product(f"{shop} P1", stock) for shop, (_, stock) in enumerate(shops)]
    )

    def compute(engine: Engine) -> list[list[dict[str, Any]]]:
        orders = live_orders.live_orders(engine(happened))
        return [
            result(orders),
            result(live_orders.completed(orders)),
            result(inventory.inventory_levels(orders, engine(products), low_stock_units=LOW)),
            result(
                inventory.stock_alerts(with_days(orders), engine(products), low_stock_units=LOW)
            ),
        ]

    on_one, on_other = (compute(engine) for engine in engines)
    assert on_one == on_other
    orders, counting, *_ = on_one
    assert [row["order_id"] for row in orders] == sorted({row["order_id"] for row in rows})
    assert counting == [row for row in orders if row["status"] == "completed"]


Change: TypeAlias = tuple[int, int, int, int]
"""When how many units are sold, and when how many come back."""


@settings(max_examples=8)
@given(
    shelves=st.lists(
        st.tuples(
            st.integers(LOW - 4, LOW + 4),
            st.lists(st.tuples(*[st.integers(0, 4)] * 4), max_size=8),
        ),
        min_size=4,
        max_size=8,
    ),
    day=st.sampled_from(["1m", "1d"]),
)
@example(shelves=[(LOW, [(0, 1, 0, 0), (1, 0, 1, 2), (2, 2, 0, 0)])], day="1m")
def test_alerts_are_those_of_a_clerk_who_follows_each_sale(
    engines: tuple[Engine, Engine], shelves: list[tuple[int, list[Change]]], day: str
) -> None:
    """Each shelf has a product of its own."""
    orders, expected, number = [], [], count()
    for shelf, (stock, changes) in enumerate(shelves):
        of_shelf = [
            moved(
                *(next(number), sold, back),
                product_id=f"P{shelf}",
                sold_at=at(sold_at),
                returned_at=at(returned_at),
            )
            for sold_at, sold, returned_at, back in changes
        ]
        ledger = sorted(
            [(order["returned_at"], 0, "", order["returned"]) for order in of_shelf]
            + [(order["sold_at"], 1, order["order_id"], -order["sold"]) for order in of_shelf]
        )
        left = stock
        for _, _, order_id, change in ledger:
            before, left = left, left + change
            if left < LOW <= before:
                expected.append((order_id.replace("O", "E"), left))
        orders += of_shelf
    stocks = {f"P{shelf}": stock for shelf, (stock, _) in enumerate(shelves)}
    for engine in engines:
        assert alerts(engine, stocks, *orders, day=day) == sorted(expected)
