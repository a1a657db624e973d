"""Exports of other programs, as these write them: the right revenue by a mapping alone."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import yaml

from retail_assets.ingest.exports.load import ingest
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.exports.sample import check_sample
from retail_assets.ingest.exports.split import split_exports
from retail_assets.settings import Settings
from retail_assets_tests.ingest.exports.conftest import ExportLoader

FOREIGN = Path(__file__).parent / "foreign"
MAPPINGS = Path(__file__).parents[3] / "data" / "mappings"

ERP = """
exports:
  file: erp-%d.%m.%Y.csv
  delimiter: ";"
  encoding: cp1252
  decimal: ","
  thousands: "."
  header_line: 3
  skip_rows: ["#", Summe]
  lines: rows
  timezone: Europe/London
  fields:
    order_id: Beleg
    customer_id: Kunde
    product_id: Artikel
    region: Land
    status: {from: Zustand, values: {bezahlt: completed, storniert: cancelled}}
    order_value_gbp: {from: Einzelpreis, times: Menge, minus: Rabatt}
    order_timestamp: {from: Datum, format: "%d.%m.%Y %H:%M"}
"""

TILL = """
exports:
  file: till.csv
  delimiter: "|"
  fields:
    order_id: receipt
    line_number: line
    customer_id: {constant: walk-in}
    product_id: plu
    region: store
    status: {from: kind, values: {S: completed, V: cancelled}}
    order_value_gbp: {from: amount, scale: 0.01}
    order_timestamp: {from: at, format: epoch}
"""

WHOLESALE = """
exports:
  file: us-wholesale-%m-%d-%Y.csv
  thousands: ","
  fields:
    order_id: "Order #"
    customer_id: Buyer
    product_id: Item
    region: State
    status: {from: "Paid?", values: {Y: completed, N: pending}}
    order_value_gbp: Total
    order_timestamp: {from: Placed, format: "%m/%d/%Y %I:%M %p"}
"""

READY = {
    name: (MAPPINGS / f"{name}-orders.yaml").read_text(encoding="utf-8")
    for name in ("shopify", "amazon")
}

DAY, NEXT = date(2026, 10, 20), date(2026, 10, 21)
EXPECTED: Mapping[str, tuple[str, str, Mapping[date, tuple[int, str]], int]] = {
    # The mapping, orders and revenue that count by day, and how many rows are rejected.
    "shopify.csv": (
        READY["shopify"], "orders_export_1.csv", {DAY: (2, "64.50"), NEXT: (1, "24.50")}, 0,
    ),
    "amazon.txt": (
        READY["amazon"], "12345678901234.txt", {DAY: (1, "52.00"), NEXT: (1, "12.25")}, 1,
    ),
    "erp-20.10.2026.csv": (ERP, "erp-20.10.2026.csv", {DAY: (2, "2474.00")}, 2),
    "till.csv": (TILL, "till.csv", {DAY: (2, "54.50")}, 0),
    "us-wholesale-10-20-2026.csv": (
        WHOLESALE, "us-wholesale-10-20-2026.csv", {DAY: (2, "1276.75")}, 0,
    ),
}  # fmt: skip


def shop_of(settings: Settings, mapping: str) -> Settings:
    settings.exports_dir.mkdir(parents=True, exist_ok=True)
    file = settings.data_dir / "mapping.yaml"
    file.write_text(mapping)
    return settings.model_copy(update={"mapping": file})


@pytest.mark.parametrize("sample", EXPECTED)
def test_the_exports_of_other_programs_give_the_right_revenue(
    sample: str, settings: Settings, loader: ExportLoader
) -> None:
    mapping, name, expected, rejected = EXPECTED[sample]
    shop = shop_of(settings, mapping)
    copyfile(FOREIGN / sample, shop.exports_dir / name)
    assert split_exports(shop).failed == {}
    days = list(pending_exports(shop))
    result = ingest(
        loader.lake, loader.connection, shop.exports_dir, days, late_days=7,
        mapping=shop.export_mapping,
    )  # fmt: skip
    assert result.raw.failed == {}
    found = loader.rows(
        "SELECT order_date, count(DISTINCT order_id), sum(order_value_gbp) FROM raw_orders"
        " WHERE status = 'completed' GROUP BY ALL"
    )
    assert {day: (orders, str(value)) for day, orders, value in found} == expected
    assert len(loader.rejected()) == rejected


WRONG: Mapping[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    # What is wrong in the mapping, and what a shop's owner reads.
    "a column that is not there": (
        "shopify.csv",
        {"product_id": "SKU"},
        ("lacks the column SKU", "or name its own in a mapping"),
    ),
    "a status that is not named": (
        "shopify.csv",
        {"status": {"from": "Financial Status", "fill": True, "values": {"paid": "completed"}}},
        ("unknown_status in Financial Status (status): 1 rows, first line 7: 'voided'.", "none of"),
    ),
    "a time that is not as its format": (
        "us-wholesale-10-20-2026.csv",
        {"order_timestamp": {"from": "Placed", "format": "%d.%m.%Y %H:%M"}},
        ("invalid_timestamp in Placed (order_timestamp): 4 rows, first line 2", "'10/20/2026"),
    ),
    "a decimal comma that is none": (
        "till.csv",
        {"order_value_gbp": {"from": "plu"}},
        ("invalid_number in plu (order_value_gbp): 4 rows", "'MUG-R', 'MUG-B'"),
    ),
    "a currency without a rate": (
        "amazon.txt",
        {"currency": {"constant": "EUR"}},
        ("unknown_currency", "EUR"),
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_said_in_the_words_of_the_shop(fault: str, settings: Settings) -> None:
    sample, change, (expected, further) = WRONG[fault]
    mapping = yaml.safe_load(EXPECTED[sample][0])
    mapping["exports"]["fields"] |= change
    shop = shop_of(settings, yaml.safe_dump(mapping))
    try:
        said = "\n".join(each.sentence for each in check_sample(shop, FOREIGN / sample).faults)
    except Exception as error:  # noqa: BLE001
        said = str(error)
    assert expected in said
    assert further in said


def test_a_sample_shows_what_becomes_of_each_column(settings: Settings) -> None:
    found = check_sample(shop_of(settings, ERP), FOREIGN / "erp-20.10.2026.csv")
    assert found.usable == 4
    assert [str(cell) for cell in found.cells("order_value_gbp")] == [
        "1.234,50", "2459.00", "3,333", "10.00",
    ]  # fmt: skip
    assert found.columns["status"] == "Zustand"
    assert [fault.line for fault in found.faults] == [6]


def test_a_sample_in_another_currency_is_converted_by_the_rates_that_are_there(
    settings: Settings,
) -> None:
    mapping = yaml.safe_load(EXPECTED["amazon.txt"][0])
    mapping["exports"]["fields"]["currency"] = {"constant": "EUR"}
    shop = shop_of(settings, yaml.safe_dump(mapping))
    shop.reference_dir.mkdir(exist_ok=True)
    rates = "day,currency,rate\n2026-10-20,EUR,0.5\n"
    (shop.reference_dir / "currency_rates.csv").write_text(rates)
    found = check_sample(shop, FOREIGN / "amazon.txt")
    assert found.usable == 4
    assert [str(cell) for cell in found.cells("order_value_gbp")][1::2] == ["11.00", "15.00"]
