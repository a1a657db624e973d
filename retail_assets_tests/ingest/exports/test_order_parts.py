"""Charges of orders as a whole, and refunds of their lines, by the mapping."""

from datetime import date
from decimal import Decimal
from typing import Any

import duckdb
import narwhals as nw
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retail_assets.lake.connection import Lake
from retail_assets.transforms import orders, revenue
from retail_assets_tests.conftest import examples
from retail_assets_tests.ingest.exports.conftest import ExportLoader
from retail_assets_tests.ingest.exports.test_mapping import DAY, ROW, mapping_of, run, write

SHIPPING = {"shipping": "Shipping"}
DISCOUNT = {"discount": {"from": "Discount", "scale": "-1", "spread": True}}


def lines(loader: ExportLoader) -> list[tuple[Any, ...]]:
    found = loader.orders("order_id, line_number, order_value_gbp")
    return [(order, number, str(value)) for order, number, value in found]


def test_a_spread_discount_is_taken_off_the_lines_by_value_to_the_penny(
    loader: ExportLoader,
) -> None:
    mapping = mapping_of(lines="rows", charges=DISCOUNT)
    rows = [
        {"Price": "10.00", "Discount": "10.00"},
        {"Price": "10.00", "Discount": ""},
        {"Price": "10.00", "Discount": ""},
        {"Order": "1002", "Price": "5.00", "Discount": ""},
    ]
    write(loader, [ROW | row for row in rows], mapping)
    assert run(loader, mapping).raw.failed == {}
    assert lines(loader) == [
        ("1001", 1, "6.67"),
        ("1001", 2, "6.66"),
        ("1001", 3, "6.67"),
        ("1002", 1, "5.00"),
    ]


def test_lines_are_made_to_add_up_to_the_total_of_their_order(loader: ExportLoader) -> None:
    mapping = mapping_of(lines="rows", charges={"subtotal": {"from": "Subtotal", "total": True}})
    rows = [
        {"Price": "10.00", "Subtotal": "27.50"},
        {"Price": "20.00", "Subtotal": ""},
        {"Order": "1002", "Price": "5.00", "Subtotal": ""},
    ]
    write(loader, [ROW | row for row in rows], mapping)
    run(loader, mapping)
    assert lines(loader) == [("1001", 1, "9.17"), ("1001", 2, "18.33"), ("1002", 1, "5.00")]


def test_a_charge_in_the_row_of_a_gift_is_the_orders(loader: ExportLoader) -> None:
    mapping = mapping_of(lines="rows", charges=DISCOUNT)
    rows = [
        {"Price": "0.00", "Discount": "5.00"},
        {"Price": "10.00", "Discount": ""},
        {"Order": "2", "Price": "0.00", "Discount": "5.00"},
        {"Order": "2", "Price": "10.00", "Discount": "4.00"},
        {"Order": "3", "Price": "0.00", "Discount": "10%"},
        {"Order": "3", "Price": "10.00", "Discount": ""},
    ]
    write(loader, [ROW | row for row in rows], mapping)
    run(loader, mapping)
    assert lines(loader) == [("1001", 1, "5.00")]
    assert [reason for (reason,) in loader.rejected("reason")] == [
        "not_positive", "not_positive", "charges_differ", "not_positive", "invalid_number",
    ]  # fmt: skip


def test_a_charge_that_stands_in_every_row_counts_once(loader: ExportLoader) -> None:
    mapping = mapping_of(lines="rows", charges=DISCOUNT)
    write(loader, [ROW | {"Discount": "4.00"}] * 2, mapping)
    run(loader, mapping)
    assert lines(loader) == [("1001", 1, "8.00"), ("1001", 2, "8.00")]


@settings(max_examples=examples(20), deadline=None)
@given(
    values=st.lists(st.integers(1, 10**9), min_size=1, max_size=6),
    charge=st.integers(-(10**9), 10**9),
)
def test_shares_add_up_to_the_charge_on_both_engines(values: list[int], charge: int) -> None:
    frame = pa.table(
        {
            "export_date": [DAY] * len(values),
            "order_id": ["1"] * len(values),
            "row_number": range(len(values)),
            "order_value_gbp": pa.array(
                [Decimal(value) / 100 for value in values], pa.decimal128(12, 2)
            ),
            "charge_gbp": pa.array(
                [Decimal(charge) / 100] + [None] * (len(values) - 1), pa.decimal128(12, 2)
            ),
        }
    )
    with duckdb.connect(config={"threads": 1}) as connection:
        relation = nw.from_native(connection.from_arrow(frame))
        found = orders.spread(relation).to_native().order("row_number").fetchall()
    pence = [round(share * 100) for _, _, share in found]
    assert sum(pence) == charge
    pandas = nw.from_native(frame.to_pandas(types_mapper=pd.ArrowDtype)).lazy()
    also = orders.spread(pandas).collect("pandas").sort("row_number")["share_gbp"].to_list()
    assert [round(share * 100) for share in also] == pence


def test_charges_that_are_kept_apart_are_rows_of_order_charges(
    loader: ExportLoader, lake: Lake
) -> None:
    tax = {"tax": {"from": "Tax", "default": "0.50"}}
    mapping = mapping_of(lines="rows", charges=SHIPPING | DISCOUNT | tax)
    rows = [
        {"Shipping": "3.95", "Discount": "1.00", "Tax": ""},
        {"Shipping": "3.95", "Discount": "1.00", "Tax": ""},
        {"Order": "1002", "State": "void", "Shipping": "2.00"},
    ]
    write(loader, [ROW | row for row in rows], mapping)
    run(loader, mapping)
    loader.connection.execute(
        "INSERT INTO lake.completed_orders BY NAME SELECT order_date, order_id, line_number,"
        " order_timestamp, region, order_value_gbp, product_id, 'n' AS product_name,"
        " 'c' AS product_category, customer_id, 's' AS customer_segment, 'h' AS home_region,"
        " export_date FROM lake.raw_orders WHERE status = 'completed'"
    )
    assert loader.rows("FROM lake.order_charges ORDER BY charge") == [
        (DAY, "1001", "discount", Decimal("-1.00")),
        (DAY, "1001", "shipping", Decimal("3.95")),
        (DAY, "1001", "tax", Decimal("0.50")),
    ]
    assert lines(loader)[:2] == [("1001", 1, "9.50"), ("1001", 2, "9.50")]


def test_charges_that_cannot_be_used_reject_their_rows(loader: ExportLoader) -> None:
    mapping = mapping_of(lines="rows", charges=SHIPPING | DISCOUNT)
    rows = [
        {"Order": "1", "Shipping": "free"},
        {"Order": "2", "Shipping": "1.00"},
        {"Order": "2", "Shipping": "2.00"},
        {"Order": "3", "Discount": "10.00"},
        {"Order": "4", "Shipping": "1.00"},
    ]
    write(loader, [ROW | row for row in rows], mapping)
    assert run(loader, mapping).raw.failed == {}
    assert lines(loader) == [("4", 1, "10.00")]
    assert loader.rejected() == [
        (2, "invalid_number", "shipping"),
        (3, "charges_differ", None),
        (4, "charges_differ", None),
        (5, "not_positive", "order_value_gbp"),
    ]


REFUNDED = [
    {"Order": "1", "Price": "10.00", "Placed": "2026-10-18 09:00"},
    {"Order": "1", "Price": "6.00", "Placed": "2026-10-18 09:00"},
    {"Order": "1", "Price": "-2.50", "Placed": "2026-10-20 10:00"},
    {"Order": "2", "Price": "-1.00", "Placed": "2026-10-20 10:00"},
]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("refund_day", {date(2026, 10, 18): (1, "16.00"), DAY: (0, "-2.50")}),
        ("order_day", {date(2026, 10, 18): (1, "13.50")}),
    ],
)
def test_refunds_are_negative_lines_of_the_day_that_the_mapping_says(
    loader: ExportLoader, setting: str, expected: dict[date, tuple[int, str]]
) -> None:
    mapping = mapping_of(lines="rows", refunds=setting)
    write(loader, [ROW | row for row in REFUNDED], mapping)
    run(loader, mapping)
    assert loader.rejected() == [(5, "refund_without_order", "order_id")]
    completed = orders.counted(nw.from_native(loader.connection.table("lake.raw_orders")))
    found = revenue.daily_revenue(completed).to_native().fetchall()
    assert {day: (count, str(value)) for day, _, value, count, _ in found} == expected


def test_without_the_setting_negative_values_are_rejected(loader: ExportLoader) -> None:
    mapping = mapping_of(lines="rows")
    write(loader, [ROW | row for row in REFUNDED], mapping)
    run(loader, mapping)
    assert loader.rejected("reason") == [("not_positive",)] * 2


def test_refunds_need_lines() -> None:
    with pytest.raises(ValidationError, match="needs `lines: rows` or a `line_number`"):
        mapping_of(refunds="order_day")
