"""Orders of several products: a row of an export for each line."""

from datetime import date

from retail_assets_tests.conftest import HEADER, WriteExport, order_row
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)

NUMBERED = f"{HEADER},Line_Number"


def test_an_order_of_several_products_has_lines(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(
        DAY,
        [
            order_row("lines", DAY, product_id="P1"),
            order_row("lines", DAY, product_id="P2"),
            order_row("same", DAY),
            order_row("same", DAY),
            order_row("lines", DAY, product_id="P1"),
            order_row("bad line", DAY, product_id="P2", status="lost"),
            order_row("bad line", DAY, product_id="P1"),
        ],
    )
    loader.ingest(DAY)
    assert loader.orders("order_id, line_number, product_id, row_number") == [
        ("lines", 1, "P2", 2),
        ("same", 1, "P1", 4),
        ("lines", 2, "P1", 5),
        ("bad line", 1, "P1", 7),
    ]
    assert loader.rejected() == [
        (2, "duplicate_order", "order_id"),
        (4, "duplicate_order", "order_id"),
        (7, "unknown_status", "status"),
    ]


def test_an_export_may_number_the_lines_of_its_orders(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    numbers = {"first": "2", "second": " 1 ", "again": "2.0", "bad": "x", "zero": "0", "none": ""}
    rows = [f"{order_row('A', DAY, region=name)},{text}" for name, text in numbers.items()]
    write_export(DAY, rows, header=NUMBERED)
    loader.ingest(DAY)
    assert loader.orders("region, line_number, extra") == [
        ("second", 1, None),
        ("again", 2, None),
        ("none", 3, None),
    ]
    assert loader.rejected() == [
        (2, "duplicate_order", "order_id"),
        (5, "invalid_number", "line_number"),
        (6, "invalid_number", "line_number"),
    ]
