"""Which export rows can be used, and which orders count."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from retail_assets.tables import COMPLETED_ORDERS, CUSTOMERS, PRODUCTS, RAW_ORDERS
from retail_assets.transforms import orders
from retail_assets_tests.transforms.conftest import Engine, Rows, arrow, result

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)
LATE_DAYS = 7


def typed_row(**changed: Any) -> dict[str, Any]:
    return {
        "order_id": "A",
        "customer_id": "C1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal("10.00"),
        "order_timestamp": datetime(2026, 10, 20, 9, 30),  # noqa: DTZ001 wall-clock time
        "has_order_value": True,
        "has_order_timestamp": True,
        "line_number": None,
        "has_line_number": False,
        "currency": None,
        "days_late": 0,
        **changed,
    }


TYPED = pa.schema(
    {
        **dict.fromkeys(("order_id", "customer_id", "product_id", "region", "status"), pa.string()),
        "order_value_gbp": pa.decimal128(12, 2),
        "order_timestamp": pa.timestamp("us"),
        "has_order_value": pa.bool_(),
        "has_order_timestamp": pa.bool_(),
        "line_number": pa.int64(),
        "has_line_number": pa.bool_(),
        "currency": pa.string(),
        "days_late": pa.int64(),
        "n": pa.int64(),
    }
)

OUTCOMES: tuple[tuple[dict[str, Any], tuple[str | None, str | None]], ...] = (
    ({}, (None, None)),
    *(({"status": status}, (None, None)) for status in orders.STATUSES),
    ({"status": "shipped"}, ("unknown_status", "status")),
    ({"status": "Completed"}, ("unknown_status", "status")),
    *(
        ({name: None}, ("missing_value", name))
        for name in ("order_id", "customer_id", "product_id", "region", "status")
    ),
    (
        {"order_value_gbp": None, "has_order_value": False},
        ("missing_value", "order_value_gbp"),
    ),
    ({"order_value_gbp": None}, ("invalid_number", "order_value_gbp")),
    ({"order_value_gbp": Decimal("0.00")}, ("not_positive", "order_value_gbp")),
    ({"order_value_gbp": Decimal("-0.01")}, ("not_positive", "order_value_gbp")),
    ({"order_value_gbp": Decimal("0.01")}, (None, None)),
    (
        {"order_timestamp": None, "has_order_timestamp": False, "days_late": None},
        ("missing_value", "order_timestamp"),
    ),
    ({"order_timestamp": None, "days_late": None}, ("invalid_timestamp", "order_timestamp")),
    *(
        ({"line_number": number, "has_line_number": True}, (None, None))
        for number in (1, 999_999_999)
    ),
    *(
        ({"line_number": number, "has_line_number": True}, ("invalid_number", "line_number"))
        for number in (None, 0)
    ),
    ({"days_late": -1}, ("future_order", "order_timestamp")),
    ({"days_late": LATE_DAYS}, (None, None)),
    ({"days_late": LATE_DAYS + 1}, ("too_late", "order_timestamp")),
    *(
        ({"order_id": text}, ("missing_value", "order_id"))
        for text in (
            "NULL",
            "null",
            "None",
            "NaN",
            "nan",
            "N/A",
            "#N/A",
            "undefined",
            "\\N",
            "#REF!",
        )
    ),
    ({"customer_id": "NULL"}, ("missing_value", "customer_id")),
    ({"product_id": "n/a"}, ("missing_value", "product_id")),
    *(({name: "NULL-1"}, (None, None)) for name in ("order_id", "customer_id", "product_id")),
    ({"region": "N/A"}, (None, None)),
    *(
        ({"order_id": text}, ("mangled_order_id", "order_id"))
        for text in ("1.23457E+15", "1,23457E+15", "1E+15", "9.9e+101")
    ),
    *(({"order_id": text}, (None, None)) for text in ("1E15", "1.2E-15", "12.5E+15", "A+1", "+1")),
    ({"customer_id": "4.5E+11"}, ("mangled_id", "customer_id")),
    ({"product_id": "4.5E+11", "order_value_gbp": None}, ("mangled_id", "product_id")),
    # The first reason counts.
    ({"customer_id": None, "order_id": "1E+15"}, ("missing_value", "customer_id")),
    ({"status": "x", "days_late": -1}, ("unknown_status", "status")),
    ({"currency": "GBP"}, (None, None)),
    ({"currency": "USD", "status": "x"}, ("unknown_currency", "currency")),
    ({"order_value_gbp": Decimal(0), "status": "x"}, ("not_positive", "order_value_gbp")),
    ({"region": None, "order_value_gbp": None}, ("missing_value", "region")),
)


def test_a_row_is_rejected_for_the_first_rule_that_it_breaks(engine: Engine) -> None:
    rows = [typed_row(**{"order_id": f"O{n}", **row}, n=n) for n, (row, _) in enumerate(OUTCOMES)]
    validated = orders.validate(engine(pa.Table.from_pylist(rows, TYPED)), late_days=LATE_DAYS)
    found = {row["n"]: (row["reason"], row["field"]) for row in result(validated)}
    assert [found[n] for n in range(len(rows))] == [outcome for _, outcome in OUTCOMES]


def test_every_reason_that_a_rule_gives_is_explained() -> None:
    assert {reason for _, (reason, _) in OUTCOMES if reason} <= orders.REASONS.keys()


LINES: dict[str, list[tuple[int | None, str, str]]] = {
    # order: the line number, product and value of each of its rows
    "one row": [(None, "P1", "1.00")],
    "corrected": [(None, "P1", "1.00"), (None, "P1", "2.00"), (None, "P1", "2.00")],
    "basket": [(None, "P1", "1.00"), (None, "P1", "2.00"), (None, "P2", "1.00")],
    "basket twice": [*[(None, "P1", "1.00"), (None, "P2", "1.00")] * 2],
    "numbered": [(2, "P1", "1.00"), (1, "P1", "1.00"), (2, "P1", "3.00")],
    "a number is missing": [(None, "P1", "1.00"), (5, "P2", "1.00"), (None, "P3", "1.00")],
}
KEPT = {
    # order: the row (from 1) and line number of each line that is used
    "one row": {1: 1},
    "corrected": {3: 1},
    "basket": {1: 1, 2: 2, 3: 3},
    "basket twice": {3: 1, 4: 2},
    "numbered": {2: 1, 3: 2},
    "a number is missing": {1: 6, 2: 5, 3: 7},
}


def test_rows_of_an_order_are_its_lines_and_repeated_lines_are_used_once(engine: Engine) -> None:
    rows = [
        {
            "export_date": day,
            "order_id": order_id,
            "line_number": number,
            "product_id": product,
            "order_value_gbp": Decimal(value),
            "row_number": 100 * place + row,
        }
        for day in (DAY, DAY + A_DAY)
        for place, (order_id, lines) in enumerate(LINES.items())
        for row, (number, product, value) in enumerate(lines, start=1)
    ]
    repeats = result(orders.repeated(engine(arrow(RAW_ORDERS, rows))))
    repeated = {(row["export_date"], row["row_number"]) for row in repeats}
    kept = [row for row in rows if (row["export_date"], row["row_number"]) not in repeated]
    assert len(rows) - len(kept) == len(repeats) == 2 * 5
    numbers = result(orders.numbered(engine(arrow(RAW_ORDERS, kept))))
    assert {(row["export_date"], row["row_number"]): row["line_number"] for row in numbers} == {
        (day, 100 * place + row): number
        for day in (DAY, DAY + A_DAY)
        for place, order_id in enumerate(LINES)
        for row, number in KEPT[order_id].items()
    }


def raw(order_id: str, *, export: date = DAY, **changed: Any) -> dict[str, Any]:
    return {
        "export_date": export,
        "order_date": DAY,
        "order_id": order_id,
        "line_number": 1,
        "customer_id": "C1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal("10.00"),
        "order_timestamp": datetime(2026, 10, 20, 9, 30),  # noqa: DTZ001 wall-clock time
        "source_file": "x.csv",
        "row_number": 1,
        **changed,
    }


def completed(engine: Engine, rows: Rows) -> list[dict[str, Any]]:
    products = [{"product_id": "P1", "product_name": "Tea", "product_category": "Food"}]
    customers = [{"customer_id": "C1", "customer_segment": "gold", "home_region": "West"}]
    return result(
        orders.completed_orders(
            engine(arrow(RAW_ORDERS, rows)),
            engine(arrow(PRODUCTS, products)),
            engine(arrow(CUSTOMERS, customers)),
        )
    )


def test_only_completed_orders_count(engine: Engine) -> None:
    rows = completed(engine, [raw(status, status=status) for status in orders.STATUSES])
    assert [row["order_id"] for row in rows] == ["completed"]


def test_a_completed_order_has_its_product_and_customer(engine: Engine) -> None:
    (row,) = completed(engine, [raw("A")])
    assert tuple(row) == COMPLETED_ORDERS.column_names
    assert (row["product_name"], row["product_category"]) == ("Tea", "Food")
    assert (row["customer_segment"], row["home_region"]) == ("gold", "West")


def test_unknown_products_and_customers_are_kept_and_called_unknown(engine: Engine) -> None:
    rows = completed(engine, [raw("A", product_id="P9"), raw("B", customer_id="C9")])
    attributes = ("product_name", "product_category", "customer_segment", "home_region")
    assert [tuple(row[name] for name in attributes) for row in rows] == [
        ("unknown", "unknown", "gold", "West"),
        ("Tea", "Food", "unknown", "unknown"),
    ]


@pytest.mark.parametrize("later_status", orders.STATUSES)
def test_a_later_export_supersedes_whatever_an_earlier_one_said(
    engine: Engine, later_status: str
) -> None:
    rows = [
        raw("A", order_value_gbp=Decimal("1.00")),
        raw("A", export=DAY + A_DAY, order_value_gbp=Decimal("2.00"), status=later_status),
        raw("A", export=DAY - A_DAY, order_date=DAY - A_DAY, order_value_gbp=Decimal("3.00")),
        raw("B"),
    ]
    found = {row["order_id"]: row["order_value_gbp"] for row in completed(engine, rows)}
    kept = {"A": Decimal("2.00")} if later_status == orders.COMPLETED else {}
    assert found == {**kept, "B": Decimal("10.00")}


def test_a_later_export_supersedes_all_lines_of_an_earlier_one(engine: Engine) -> None:
    rows = [
        *(raw("A", line_number=number) for number in (1, 2, 3)),
        *(raw("A", line_number=number, export=DAY + A_DAY) for number in (2, 4)),
        *(raw("B", line_number=number) for number in (1, 2)),
    ]
    found = [(row["order_id"], row["line_number"]) for row in completed(engine, rows)]
    assert sorted(found) == [("A", 2), ("A", 4), ("B", 1), ("B", 2)]


def test_a_line_that_does_not_count_leaves_the_others(engine: Engine) -> None:
    rows = [raw("A"), raw("A", line_number=2, status="refunded")]
    assert [row["line_number"] for row in completed(engine, rows)] == [1]


def test_an_order_that_moves_to_another_day_leaves_its_first(engine: Engine) -> None:
    rows = [raw("A"), raw("A", export=DAY + A_DAY, order_date=DAY + A_DAY)]
    assert [row["order_date"] for row in completed(engine, rows)] == [DAY + A_DAY]


def test_raw_orders_are_those_that_count_and_those_excluded_by_reason(engine: Engine) -> None:
    rows = [
        raw("A", order_value_gbp=Decimal("1.01")),
        raw("A", export=DAY + A_DAY, order_value_gbp=Decimal("2.02")),
        raw("B", status="returned", order_value_gbp=Decimal("4.04")),
        raw("C", status="returned", order_value_gbp=Decimal("8.08")),
        raw("D", status="pending", order_date=DAY - A_DAY),
        # Superseded comes before its status.
        raw("E", status="cancelled", order_value_gbp=Decimal("16.16")),
        raw("E", export=DAY + A_DAY, order_value_gbp=Decimal("32.32")),
    ]
    found = {
        (row["order_date"], row["exclusion"]): (row["lines"], row["value_gbp"])
        for row in result(orders.exclusions(engine(arrow(RAW_ORDERS, rows))))
    }
    assert found == {
        (DAY, None): (2, Decimal("34.34")),
        (DAY, "superseded"): (2, Decimal("17.17")),
        (DAY, "returned"): (2, Decimal("12.12")),
        (DAY - A_DAY, "pending"): (1, Decimal("10.00")),
    }
    assert sum(count for count, _ in found.values()) == len(rows)
    assert sum(value for _, value in found.values()) == sum(row["order_value_gbp"] for row in rows)


RAW_DAYS = [
    raw("A", order_value_gbp=Decimal("1.01")),
    raw("B", status="returned"),
    raw("C", order_date=DAY + A_DAY, export=DAY + A_DAY),
    raw("D", order_date=DAY + 2 * A_DAY, export=DAY + 2 * A_DAY, status="pending"),
]


def unreconciled(engine: Engine, completed_rows: Rows) -> dict[date, tuple[int, Decimal]]:
    found = result(
        orders.unreconciled_days(
            engine(arrow(COMPLETED_ORDERS, completed_rows)), engine(arrow(RAW_ORDERS, RAW_DAYS))
        )
    )
    return {
        row["order_date"]: (row["completed_count"], Decimal(row["completed_value_gbp"]))
        for row in found
    }


def test_days_that_add_up_are_not_reported(engine: Engine) -> None:
    assert unreconciled(engine, completed(engine, RAW_DAYS)) == {}


def test_a_planted_error_is_found_on_its_day(engine: Engine) -> None:
    good = completed(engine, RAW_DAYS)
    first, second = good
    a_penny_more = {**first, "order_value_gbp": Decimal("1.02")}
    on_no_day = {**first, "order_date": DAY - A_DAY}
    of_a_pending_day = {**first, "order_date": DAY + 2 * A_DAY}
    assert unreconciled(engine, [a_penny_more, second]) == {DAY: (1, Decimal("1.02"))}
    assert unreconciled(engine, [second]) == {DAY: (0, Decimal(0))}
    assert unreconciled(engine, [*good, first]) == {DAY: (2, Decimal("2.02"))}
    assert unreconciled(engine, [*good, on_no_day]) == {DAY - A_DAY: (1, Decimal("1.01"))}
    assert unreconciled(engine, [*good, of_a_pending_day]) == {
        DAY + 2 * A_DAY: (1, Decimal("1.01"))
    }
