"""Live orders, stock and its alerts: their rules on every engine, and alike on all."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any, TypeAlias

import duckdb
import narwhals as nw
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.engines import event_lines
from retail_assets.tables import LIVE_ORDER_LINES, LIVE_ORDERS, PRODUCTS, Column, Table
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
        "product_category": "Toys",
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


def of_lines(minute: int | None, position: int, **more: Any) -> dict[str, Any]:
    """An event of order O1 with lines of five units."""
    return said(minute, position, **{"product_id": None, "quantity": 5, "lines": "[lines]"} | more)


def orders_of(engine: Engine, rows: Rows) -> list[dict[str, Any]]:
    return result(live_orders.live_orders(engine(arrow(HAPPENED, rows))))


def orders_of_cases(
    engine: Engine, cases: Mapping[str, tuple[Rows, tuple[Any, ...]]], names: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    """These columns of the live order that the events of each case give, in one frame of all."""
    rows = [{**row, "order_id": case} for case, (rows, _) in cases.items() for row in rows]
    return {
        order["order_id"]: tuple(order[name] for name in names) for order in orders_of(engine, rows)
    }


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


def test_what_an_order_does_to_the_stock(engine: Engine) -> None:
    names = ("product_id", "sold", "sold_at", "sold_event_id", "returned", "returned_at")
    found = orders_of_cases(engine, STOCK_CASES, names)
    assert found == {case: expected for case, (_, expected) in STOCK_CASES.items()}


LINES, OTHER_LINES = "[lines]", "[other lines]"
"""Lines of five units, and of seven; no rule looks into them."""

LINE_CASES = {
    "sold": ([of_lines(0, 1)], (None, LINES, 5, at(0), 0)),
    "a product beside them is not counted": (
        [of_lines(0, 1, product_id="P1")],
        (None, LINES, 5, at(0), 0),
    ),
    "pending takes nothing": ([of_lines(0, 1, status="pending")], (None, LINES, 0, None, 0)),
    "cancelled, without a word of lines": (
        [of_lines(0, 1), said(5, 2, status="cancelled", product_id=None, quantity=None)],
        (None, LINES, 0, None, 0),
    ),
    "gives back all that it took": (
        [of_lines(0, 1), of_lines(5, 2, status="returned", lines=OTHER_LINES, quantity=7)],
        (None, LINES, 5, at(0), 5),
    ),
    "came back and was never seen sold": (
        [of_lines(0, 1, status="pending"), said(5, 2, status="returned", product_id=None)],
        (None, LINES, 0, None, 5),
    ),
    "corrected lines, sold since the first": (
        [of_lines(5, 2, lines=OTHER_LINES, quantity=7), of_lines(0, 1)],
        (None, OTHER_LINES, 7, at(0), 0),
    ),
    "a quantity says nothing of lines": (
        [of_lines(0, 1), said(5, 2, product_id=None, quantity=9)],
        (None, LINES, 5, at(0), 0),
    ),
    "lines instead of a product": ([said(0, 1), of_lines(5, 2)], (None, LINES, 5, at(0), 0)),
    "a product instead of lines": (
        [of_lines(0, 1), said(5, 2, quantity=None)],
        ("P1", None, 1, at(0), 0),
    ),
    "a product instead of lines, after the sale": (
        [of_lines(0, 1), said(5, 2, status="returned")],
        (None, LINES, 5, at(0), 5),
    ),
}


def test_what_an_order_with_lines_does_to_the_stock(engine: Engine) -> None:
    names = ("product_id", "lines", "sold", "sold_at", "returned", "product_category")
    found = orders_of_cases(engine, LINE_CASES, names)
    assert found == {
        case: (*expected, "Toys" if expected[0] else None)
        for case, (_, expected) in LINE_CASES.items()
    }


def test_the_lines_of_an_order_have_its_state_and_the_category_of_their_product(
    engine: Engine,
) -> None:
    rows = [
        of_lines(0, 1),
        of_lines(0, 2, order_id="O2", status="pending"),
        *(of_lines(n, n, order_id="O3", status=s) for n, s in ((3, "completed"), (4, "returned"))),
        said(0, 5, order_id="O4"),
        of_lines(0, 6, order_id="O5"),
        said(1, 7, order_id="O5", product_id=None, order_value_gbp=Decimal(12)),
    ]
    lines = [
        {
            "order_id": order,
            "line_number": number,
            "product_id": product,
            "quantity": number,
            "order_value_gbp": Decimal(number),
        }
        for order in ("O1", "O2", "O3", "O5")
        for number, product in ((2, "P1"), (3, "P9"))
    ]
    known = [{"product_id": "P1", "product_category": "Games"}]
    orders = live_orders.live_orders(engine(arrow(HAPPENED, rows)))
    found = live_orders.live_order_lines(
        orders, engine(arrow(TYPED_LINES, lines)), engine(arrow(PRODUCTS, known))
    )
    names = ("order_id", "line_number", "product_category", "status", "sold", "returned")
    assert sorted(tuple(row[name] for name in names) for row in result(found)) == [
        ("O1", 2, "Games", "completed", 2, 0),
        ("O1", 3, "unknown", "completed", 3, 0),
        ("O2", 2, "Games", "pending", 0, 0),
        ("O2", 3, "unknown", "pending", 0, 0),
        ("O3", 2, "Games", "returned", 2, 2),
        ("O3", 3, "unknown", "returned", 3, 3),
        ("O5", 2, "Games", "completed", 2, 0),
        ("O5", 3, "unknown", "completed", 3, 0),
    ]
    # A line that cost nothing is no revenue, and lines of another value than the order's are none.
    kept = arrow(LIVE_ORDER_LINES, [{**row, "order_date": DAY} for row in result(found)])
    free = arrow(LIVE_ORDER_LINES, [{**line_of(kept), "order_value_gbp": Decimal(0)}])
    sold = live_orders.sold_lines(orders, engine(pa.concat_tables([kept, free])))
    names = ("order_id", "line_number", "product_category", "order_value_gbp")
    assert sorted(tuple(row[name] for name in names) for row in result(sold)) == [
        ("O1", 2, "Games", 2),
        ("O1", 3, "unknown", 3),
        ("O4", 1, "Toys", 10),
        ("O5", 1, "unknown", 12),
    ]


def line_of(lines: pa.Table) -> dict[str, Any]:
    """The first of some lines."""
    row: dict[str, Any] = lines.slice(0, 1).to_pylist()[0]
    return row


TYPED_LINES = Table(
    "typed_lines",
    "",
    (
        *(column for column in LIVE_ORDER_LINES.columns if column.name in event_lines.STORED),
        Column("order_id", "VARCHAR", "The order."),
        Column("quantity", "BIGINT", "Units."),
    ),
)
"""Lines as a reader types them."""


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


def changes(orders: nw.LazyFrame, lines: nw.LazyFrame, day: str = "1d") -> nw.LazyFrame:
    """What orders and their lines did to the stock, with days of any length."""
    of_day = [
        nw.col(f"{name}_at").dt.truncate(day).alias(f"{name}_day") for name in ("sold", "returned")
    ]
    return inventory.stock_changes(orders.with_columns(of_day), lines.with_columns(of_day))


def followed(moves: nw.LazyFrame, products: nw.LazyFrame) -> nw.LazyFrame:
    """The alerts of the days around the threshold."""
    days = inventory.days_around(inventory.stock_days(moves), products, low_stock_units=LOW)
    return inventory.stock_alerts(moves, days, low_stock_units=LOW)


def alerts(
    engine: Engine, stock: int | dict[str, int], *orders: dict[str, Any], day: str = "1d"
) -> list[tuple[str, int]]:
    """The events that make a stock low, and what is left: of P1, or of the products named."""
    stocks = stock if isinstance(stock, dict) else {"P1": stock}
    lines = [order for order in orders if "line_number" in order]
    whole = [order for order in orders if "line_number" not in order]
    found = followed(
        changes(engine(arrow(LIVE_ORDERS, whole)), engine(arrow(LIVE_ORDER_LINES, lines)), day),
        engine(arrow(PRODUCTS, [product(*each) for each in stocks.items()])),
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


def test_a_basket_takes_several_products_below_and_each_product_once(engine: Engine) -> None:
    lines = [
        moved(1, sold, line_number=number, product_id=product)
        for number, (product, sold) in enumerate([("P2", 1), ("P1", 1), ("P1", 2), ("P2", 3)], 1)
    ]
    stock = {"P1": 12, "P2": 13, "P3": 9}
    assert alerts(engine, stock, *lines) == [("E1", 9), ("E1", 9)]
    assert alerts(engine, stock, *lines[:3]) == [("E1", 9)]
    assert alerts(engine, stock, *lines, moved(0, 3)) == [("E0", 9), ("E1", 9)]


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
    # An order with lines has no product of its own.
    orders += [moved(6, 7, product_id=None)]
    lines = [
        moved(6, sold, product_id=product, line_number=number)
        for number, (product, sold) in enumerate([("P2", 1), ("P4", 2), ("P4", 4)], 1)
    ]
    products = [product("P1", 12), product("P2", 10), product("P3", None)]
    found = result(
        inventory.inventory_levels(
            changes(engine(arrow(LIVE_ORDERS, orders)), engine(arrow(LIVE_ORDER_LINES, lines))),
            engine(arrow(PRODUCTS, products)),
            low_stock_units=LOW,
        )
    )
    names = ("product_id", "stock_on_hand", "sold", "returned", "stock", "below")
    assert sorted(tuple(row[name] for name in names) for row in found) == [
        ("P1", 12, 5, 2, 9, True),
        ("P2", 10, 1, 0, 9, True),
        ("P3", None, 1, 0, None, False),
        ("P4", None, 6, 0, None, False),
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
            "lines": st.sampled_from([None, None, "a", "b"]),
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
    # Lines without units do not come from the ingest.
    rows = [row | {"quantity": row["quantity"] or (row.get("lines") and 3)} for row in rows]
    rows = [row | {"position": n, "event_id": f"E{n}"} for n, row in enumerate(rows)]
    happened = arrow(HAPPENED, rows)
    typed = arrow(
        TYPED_LINES,
        [
            {
                "order_id": order,
                "line_number": number,
                "product_id": f"{order.split()[0]} P{number // 2}",
                "quantity": number,
                "order_value_gbp": Decimal(number),
            }
            for order in {row["order_id"] for row in rows if row.get("lines")}
            for number in (1, 2, 3)
        ],
    )
    products = arrow(
        PRODUCTS, [product(f"{shop} P1", stock) for shop, (_, stock) in enumerate(shops)]
    )

    def compute(engine: Engine) -> list[list[dict[str, Any]]]:
        orders = live_orders.live_orders(engine(happened))
        lines = live_orders.live_order_lines(orders, engine(typed), engine(products))
        moves = changes(orders, lines)
        return [
            result(lines),
            result(orders),
            result(live_orders.completed(orders)),
            result(inventory.inventory_levels(moves, engine(products), low_stock_units=LOW)),
            result(followed(moves, engine(products))),
        ]

    on_one, on_other = (compute(engine) for engine in engines)
    assert on_one == on_other
    _, orders, counting, *_ = on_one
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
