"""What a day's completed orders add up to."""

from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import count
from typing import Any

import narwhals as nw
import pytest

from retail_assets.tables import (
    COMPLETED_ORDERS,
    DAILY_REVENUE,
    DAILY_REVENUE_BY_CATEGORY,
)
from retail_assets.transforms import revenue
from retail_assets_tests.transforms.conftest import Engine, Rows, arrow, result

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)


_numbers = count()


def sold(value: str, **changed: Any) -> dict[str, Any]:
    """A line of an order of its own, unless `changed` names one."""
    return {
        "order_date": DAY,
        "order_id": f"O{next(_numbers)}",
        "line_number": 1,
        "region": "North",
        "product_category": "Food",
        "order_value_gbp": Decimal(value),
        **changed,
    }


def daily_revenue(engine: Engine, rows: Rows) -> list[dict[str, Any]]:
    return result(revenue.daily_revenue(engine(arrow(COMPLETED_ORDERS, rows))))


def test_revenue_is_summed_by_day_and_region(engine: Engine) -> None:
    rows = [
        sold("1.10"),
        sold("2.20"),
        sold("4.40", region="Süd 日"),
        sold("8.80", order_date=DAY + A_DAY),
    ]
    assert [tuple(row.values()) for row in daily_revenue(engine, rows)] == [
        (DAY, "North", Decimal("3.30"), 2, Decimal("1.65")),
        (DAY, "Süd 日", Decimal("4.40"), 1, Decimal("4.40")),
        (DAY + A_DAY, "North", Decimal("8.80"), 1, Decimal("8.80")),
    ]


def test_revenues_of_different_orders_add_up_to_that_of_all(engine: Engine) -> None:
    def part(region: str, total: str, orders: int) -> dict[str, Any]:
        pence = int(Decimal(total) * 100)
        return {
            "order_date": DAY,
            "region": region,
            "product_category": None,
            "line_number": pence,
            "order_value_gbp": Decimal(total),
            "order_id": str(orders),
        }

    rows = [
        part("North", "3.30", 2),
        part("North", "0.05", 1),
        part("North", "-1.10", -1),
        part("South", "4.40", 1),
        part("South", "-4.40", -1),
    ]
    parts = engine(arrow(COMPLETED_ORDERS, rows)).select(
        *("order_date", "region"),
        total_revenue="order_value_gbp",
        pence="line_number",
        order_count=nw.col("order_id").cast(nw.Int64),
    )
    found = result(revenue.add_up(parts, "order_date", "region"))
    assert [tuple(row.values()) for row in found] == [
        (DAY, "North", Decimal("2.25"), 2, Decimal("1.13"))
    ], "a group without orders is none"


def test_revenue_is_summed_by_day_region_and_category(engine: Engine) -> None:
    rows = [sold("1.10"), sold("2.20", product_category="unknown"), sold("4.40")]
    found = result(revenue.daily_revenue_by_category(engine(arrow(COMPLETED_ORDERS, rows))))
    assert [tuple(row.values()) for row in found] == [
        (DAY, "North", "Food", Decimal("5.50"), 2, Decimal("2.75")),
        (DAY, "North", "unknown", Decimal("2.20"), 1, Decimal("2.20")),
    ]


def test_an_order_counts_once_whatever_its_lines(engine: Engine) -> None:
    rows = [
        sold("1.00", order_id="A"),
        sold("2.00", order_id="A", line_number=2),
        sold("4.00", order_id="A", line_number=3, product_category="Toys"),
        sold("8.00", order_id="B"),
    ]
    assert [tuple(row.values()) for row in daily_revenue(engine, rows)] == [
        (DAY, "North", Decimal("15.00"), 2, Decimal("7.50"))
    ]
    by_category = result(revenue.daily_revenue_by_category(engine(arrow(COMPLETED_ORDERS, rows))))
    assert [tuple(row.values())[2:] for row in by_category] == [
        ("Food", Decimal("11.00"), 2, Decimal("5.50")),
        ("Toys", Decimal("4.00"), 1, Decimal("4.00")),
    ]
    frame = engine(arrow(COMPLETED_ORDERS, rows))
    assert unreconciled(engine, daily_revenue(engine, rows), rows) == []
    published = engine(arrow(DAILY_REVENUE_BY_CATEGORY, by_category))
    assert result(revenue.unreconciled_days(published, frame)) == []


def test_revenue_has_the_columns_of_its_tables(engine: Engine) -> None:
    frame = engine(arrow(COMPLETED_ORDERS, [sold("1.00")]))
    assert tuple(revenue.daily_revenue(frame).collect_schema()) == DAILY_REVENUE.column_names
    assert (
        tuple(revenue.daily_revenue_by_category(frame).collect_schema())
        == DAILY_REVENUE_BY_CATEGORY.column_names
    )


def test_no_orders_are_no_revenue(engine: Engine) -> None:
    assert daily_revenue(engine, []) == []


@pytest.mark.parametrize(
    "values",
    [
        ["0.01", "0.02"],
        ["0.01", "0.01", "0.02"],
        ["0.01", "0.01", "0.01", "0.03"],
        ["0.02", "0.03"],
        ["10.00", "10.00", "10.01"],
        ["10.00", "10.01", "10.01"],
        ["1.00", "1.01"],
        ["4999999999.99", "4999999999.98"],
        ["9999999999.99", "9999999999.98"],
        # More pence than a double tells apart.
        ["9999999999.99"] * 9008 + ["9999999999.98"] * 9007,
        ["0.01"] * 200 + ["0.02"] * 200,
    ],
    ids=lambda values: f"{'+'.join(values[:4])} of {len(values)}",
)
def test_half_a_penny_of_the_average_is_rounded_up(engine: Engine, values: list[str]) -> None:
    (row,) = daily_revenue(engine, list(map(sold, values)))
    total = sum(map(Decimal, values))
    assert row["total_revenue"] == total
    assert row["avg_order_value"] == rounded(total, len(values))


def rounded(total: Decimal | int, count: int) -> Decimal:
    return (Decimal(total) / count).quantize(Decimal("0.01"), ROUND_HALF_UP)


def test_many_pennies_add_up_exactly(engine: Engine) -> None:
    values = [f"{n % 97}.{n % 100:02}" for n in range(1, 5000)]
    (row,) = daily_revenue(engine, [sold(value) for value in values])
    assert row["total_revenue"] == sum(map(Decimal, values))
    assert row["order_count"] == 4999


def unreconciled(engine: Engine, rows: Rows, completed: Rows) -> list[tuple[Any, ...]]:
    found = result(
        revenue.unreconciled_days(
            engine(arrow(DAILY_REVENUE, rows)), engine(arrow(COMPLETED_ORDERS, completed))
        )
    )
    return [tuple(row.values()) for row in found]


def test_a_planted_error_is_found_on_its_day(engine: Engine) -> None:
    completed = [sold("1.01"), sold("2.02"), sold("4.04", order_date=DAY + A_DAY)]
    good = daily_revenue(engine, completed)
    first, second = good
    assert unreconciled(engine, good, completed) == []
    a_penny = {**first, "total_revenue": Decimal("3.02")}
    assert unreconciled(engine, [a_penny, second], completed) == [
        (DAY, Decimal("3.03"), Decimal("3.02"), 2, 2)
    ]
    one_order = {**first, "order_count": 1}
    assert unreconciled(engine, [one_order, second], completed) == [
        (DAY, Decimal("3.03"), Decimal("3.03"), 2, 1)
    ]
    assert unreconciled(engine, [first], completed) == [
        (DAY + A_DAY, Decimal("4.04"), None, 1, None)
    ]
    assert unreconciled(engine, good, completed[:2]) == [
        (DAY + A_DAY, None, Decimal("4.04"), None, 1)
    ]
