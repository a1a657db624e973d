"""Exports as other programs write them: what a mapping makes of their rows."""

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import ValidationError

from retail_assets import tables
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.exports.load import ExportResult, ingest
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.exports.reference import read_reference
from retail_assets.mapping import NATIVE_EXPORTS, ExportMapping, load
from retail_assets.mapping.exports import ReferenceMapping
from retail_assets.settings import Settings
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)

FIELDS = {
    "order_id": "Order",
    "customer_id": "Customer",
    "product_id": "Sku",
    "region": "Country",
    "status": {"from": "State", "values": {"paid": "completed", "void": "cancelled"}},
    "order_value_gbp": "Price",
    "order_timestamp": "Placed",
}
HEADER = ("Order", "Customer", "Sku", "Country", "State", "Price", "Placed")
ROW = dict(zip(HEADER, ("1001", "C1", "A", "UK", "paid", "10.00", "2026-10-20 09:30"), strict=True))


def mapping_of(fields: dict[str, Any] | None = None, **layout: Any) -> ExportMapping:
    return ExportMapping.model_validate(layout | {"fields": FIELDS | (fields or {})})


def write(
    loader: ExportLoader,
    rows: list[dict[str, str]],
    mapping: ExportMapping,
    *,
    before: str = "",
    day: date = DAY,
) -> Path:
    header = list(dict.fromkeys(name for row in (ROW, *rows) for name in row))
    lines = [header, *([row.get(name, "") for name in header] for row in rows)]
    text = before + "".join(mapping.delimiter.join(line) + "\n" for line in lines)
    path = loader.exports_dir / mapping.file_name.of_day(day).replace("*", "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(mapping.encoding))
    return path


def run(loader: ExportLoader, mapping: ExportMapping, day: date = DAY) -> ExportResult:
    return ingest(
        loader.lake, loader.connection, loader.exports_dir, [day], late_days=7, mapping=mapping
    )


def result_of(
    loader: ExportLoader, column: str, rows: list[dict[str, str]], mapping: ExportMapping
) -> list[Any]:
    """A field of the rows in order: its value, or why the row was rejected."""
    write(loader, [ROW | {"Order": f"O{n}"} | row for n, row in enumerate(rows)], mapping)
    assert run(loader, mapping).raw.failed == {}
    found = dict(loader.rows(f"SELECT order_id, {column} FROM raw_orders"))
    rejected = {number: (reason, field) for number, reason, field in loader.rejected()}
    return [found.get(f"O{n}", rejected.get(n + 2)) for n in range(len(rows))]


def test_columns_of_other_names_are_the_fields_that_the_mapping_names(loader: ExportLoader) -> None:
    mapping = mapping_of(file="sales-%d.%m.%Y.csv")
    write(loader, [ROW | {"Colour": "red"}], mapping)
    assert run(loader, mapping).raw.rows == {DAY: 1}
    assert loader.orders("order_id, customer_id, product_id, region, status, extra") == [
        ("1001", "C1", "A", "UK", "completed", '{"State":"paid","Colour":"red"}')
    ]
    assert loader.orders("order_value_gbp, order_timestamp, source_file") == [
        (Decimal("10.00"), datetime(2026, 10, 20, 9, 30), "sales-20.10.2026.csv")  # noqa: DTZ001
    ]


def test_letter_case_of_columns_does_not_matter(loader: ExportLoader) -> None:
    mapping = mapping_of({"order_id": "ORDER"})
    assert result_of(loader, "order_id", [{}], mapping) == ["O0"]


def test_numbers_are_read_in_their_own_spelling_or_not_at_all(loader: ExportLoader) -> None:
    texts = ("1.234,50", "7,5", "5.00", "12.34", "1234", "1.23,00", "x")
    wrong = ("invalid_number", "order_value_gbp")
    found = result_of(
        loader,
        "order_value_gbp",
        [{"Price": text} for text in texts],
        mapping_of(decimal=",", thousands=".", delimiter=";"),
    )
    assert found == [
        Decimal("1234.50"), Decimal("7.50"), wrong, wrong, Decimal("1234.00"), wrong, wrong,
    ]  # fmt: skip


POUNDS = {"signs": ["£", "GBP"], "thousands": ","}


@pytest.mark.parametrize(
    ("layout", "texts"),
    [
        (POUNDS, {"£1,234.50": "1234.50", "5 GBP": "5.00", "£\u00a07": "7.00", "€5": None}),
        (POUNDS, {"(5.00)": None, "5.00-": None, "£": None, "££5": None, "5 £ 6": None}),
        (POUNDS | {"negative": "parentheses"}, {"(£5.00)": "-5.00", "-£1": "-1.00", "1-": None}),
        (POUNDS | {"negative": "parentheses"}, {"£(5)": "-5.00", "(-5)": None, "((5))": None}),
        (POUNDS | {"negative": "after"}, {"5.00-": "-5.00", "5.00- GBP": "-5.00", "-5-": None}),
        ({"thousands": "'"}, {"1'234.50": "1234.50", "1\u2019234": "1234.00", "1\u201923": None}),
    ],
)
def test_signs_around_numbers_are_those_that_the_mapping_names(
    loader: ExportLoader, layout: dict[str, Any], texts: dict[str, str | None]
) -> None:
    mapping = mapping_of(**layout, delimiter=";", lines="rows", refunds="order_day")
    rows = [{"Order": str(n), "Price": text} for n, text in enumerate(texts)]
    bought = [row | {"Price": "10000"} for row in rows]
    write(loader, [ROW | row for row in (*rows, *bought)], mapping)
    assert run(loader, mapping).raw.failed == {}
    found = dict(
        loader.rows("SELECT order_id, order_value_gbp FROM raw_orders WHERE order_value_gbp < 9999")
    )
    assert [found.get(str(n)) for n in range(len(texts))] == [
        value and Decimal(value) for value in texts.values()
    ]


def test_signs_of_another_currency_need_the_currency() -> None:
    with pytest.raises(ValidationError, match="`signs` has '€', but `currency` is not there"):
        mapping_of(signs="€")
    assert mapping_of({"currency": {"constant": "EUR"}}, signs="€").signs == ("€",)


def test_a_column_of_currencies_counts_though_no_field_names_it(loader: ExportLoader) -> None:
    mapping = mapping_of()
    rows = [{"Currency": "GBP"}, {"Currency": "EUR"}, {"Currency": ""}]
    assert result_of(loader, "order_value_gbp", rows, mapping) == [
        Decimal("10.00"),
        ("unknown_currency", "currency"),
        Decimal("10.00"),
    ]


def test_a_value_is_computed_from_several_columns_exactly(loader: ExportLoader) -> None:
    value = {"from": "Price", "times": "Quantity", "plus": "Tax", "minus": ["Off", "Coupon"]}
    rows = [
        {"Price": "0.335", "Quantity": "3"},
        {"Price": "10", "Quantity": "2", "Tax": "4", "Off": "1.50", "Coupon": "0.25"},
        {"Price": "10", "Quantity": ""},
        {"Price": "10", "Quantity": "1", "Off": "much"},
        {"Price": "", "Quantity": "1"},
        {"Price": "9999999999", "Quantity": "9999999999"},
    ]
    wrong = ("invalid_number", "order_value_gbp")
    assert result_of(loader, "order_value_gbp", rows, mapping_of({"order_value_gbp": value})) == [
        Decimal("1.01"),
        Decimal("22.25"),
        wrong,
        wrong,
        ("missing_value", "order_value_gbp"),
        wrong,
    ]
    kept = loader.rows("SELECT extra ->> 'Quantity' FROM raw_orders ORDER BY row_number")
    assert kept == [("3",), ("2",)]


def test_pence_become_pounds_and_a_part_of_a_penny_is_no_amount(loader: ExportLoader) -> None:
    mapping = mapping_of({"order_value_gbp": {"from": "Price", "scale": "0.01"}})
    rows = [{"Price": "1999"}, {"Price": "1999.5"}]
    assert result_of(loader, "order_value_gbp", rows, mapping) == [
        Decimal("19.99"),
        ("invalid_number", "order_value_gbp"),
    ]


def test_times_are_read_by_format_and_zone(loader: ExportLoader) -> None:
    at = {"from": "Placed", "format": ["%d/%m/%Y %H:%M", "epoch"], "timezone": "America/New_York"}
    texts = ("19/10/2026 20:30", "1792486800", "2026-10-20 09:30", "31/09/2026 10:00")
    wrong = ("invalid_timestamp", "order_timestamp")
    found = result_of(
        loader,
        "order_timestamp::VARCHAR",
        [{"Placed": text} for text in texts],
        mapping_of({"order_timestamp": at}),
    )
    assert found == ["2026-10-20 01:30:00", "2026-10-20 10:00:00", wrong, wrong]


def test_a_name_of_a_zone_stands_for_one_zone_or_the_time_is_not_read(loader: ExportLoader) -> None:
    zones = {"BST": "Europe/London", "PDT": "America/Los_Angeles"}
    at = {"from": "Placed", "format": "%d %b %Y %I:%M %p %Z", "zones": zones}
    expected = {
        "20 Oct 2026 9:30 AM UTC": "2026-10-20 10:30:00",
        "20 Oct 2026 9:30 AM BST": "2026-10-20 09:30:00",
        "20 Oct 2026 1:30 AM PDT": "2026-10-20 09:30:00",
        "20 Oct 2026 9:30 AM Europe/Paris": "2026-10-20 08:30:00",
        # In India, Ireland and Israel.
        "20 Oct 2026 9:30 AM IST": ("invalid_timestamp", "order_timestamp"),
    }
    rows = [{"Placed": text} for text in expected]
    mapping = mapping_of({"order_timestamp": at})
    assert result_of(loader, "order_timestamp::VARCHAR", rows, mapping) == list(expected.values())


def test_day_and_time_may_stand_in_two_columns(loader: ExportLoader) -> None:
    at = {"from": "Placed", "time": "Clock", "format": "%d/%m/%y %H%M%S"}
    rows = [{"Placed": "20/10/26", "Clock": "142311"}, {"Placed": "20/10/26"}]
    mapping = mapping_of({"order_timestamp": at})
    assert result_of(loader, "order_timestamp::VARCHAR", rows, mapping) == [
        "2026-10-20 14:23:11",
        ("invalid_timestamp", "order_timestamp"),
    ]


def test_iso_times_without_an_offset_are_in_the_zone_of_the_mapping(loader: ExportLoader) -> None:
    found = result_of(
        loader,
        "order_timestamp::VARCHAR",
        [{"Placed": "2026-10-20 09:30"}, {"Placed": "2026-10-20T09:30:00+01:00"}],
        mapping_of(timezone="UTC"),
    )
    assert found == ["2026-10-20 10:30:00", "2026-10-20 09:30:00"]


def test_values_constants_and_defaults_stand_for_what_the_mapping_says(
    loader: ExportLoader,
) -> None:
    fields = {
        "region": {"constant": "it's online"},
        "customer_id": {"from": "Customer", "default": "guest"},
        "status": {"from": "State", "values": {"Paid": "completed"}, "other": "pending"},
    }
    rows = [{"Customer": "", "State": "PAID"}, {"State": "on its way"}, {"State": ""}]
    seen = result_of(loader, "[region, customer_id, status]", rows, mapping_of(fields))
    assert seen == [
        ["it's online", "guest", "completed"],
        ["it's online", "C1", "pending"],
        ("missing_value", "status"),
    ]


def test_rows_without_a_value_have_that_of_their_order(loader: ExportLoader) -> None:
    fields: dict[str, Any] = {
        name: {"from": FIELDS[name], "fill": True} for name in ("region", "order_timestamp")
    }
    rows = [
        {"Order": "1", "Sku": "A"},
        {"Order": "1", "Sku": "B", "Country": "", "Placed": ""},
        {"Order": "2", "Sku": "A", "Country": "", "Placed": "2026-10-20 10:00"},
        {"Order": "1", "Sku": "C", "Country": "", "Placed": ""},
    ]
    write(loader, [ROW | row for row in rows], mapping_of(fields))
    run(loader, mapping_of(fields))
    assert loader.orders("order_id, line_number, product_id, region, row_number") == [
        ("1", 1, "A", "UK", 1),
        ("1", 2, "B", "UK", 2),
        ("1", 3, "C", "UK", 4),
    ]
    assert loader.rejected() == [(4, "missing_value", "region")]


@pytest.mark.parametrize(("lines", "expected"), [("rows", [1, 2]), ("products", [1])])
def test_rows_of_one_product_are_lines_where_the_mapping_says_so(
    loader: ExportLoader, lines: str, expected: list[int]
) -> None:
    mapping = mapping_of(lines=lines)
    write(loader, [ROW, ROW], mapping)
    run(loader, mapping)
    assert [number for (number,) in loader.orders("line_number")] == expected


def test_comments_totals_and_lines_before_the_header_are_no_orders(loader: ExportLoader) -> None:
    mapping = mapping_of(header_line=3, skip_rows=["#", "Total"], delimiter="|")
    rows = [ROW, {"Order": "# a comment"}, ROW | {"Order": "1002"}, {"Order": "Total"}]
    path = write(loader, rows, mapping, before="The shop, 2026\n\n")
    with path.open("a") as file:
        file.write("#short\nbroken|row\n")
    assert run(loader, mapping).raw.failed == {}
    assert loader.orders("order_id") == [("1001",), ("1002",)]
    assert loader.rejected("row_number, reason, raw_text[:10]") == [
        (3, "skipped_row", '{"Order":"'),
        (5, "skipped_row", '{"Order":"'),
        (6, "skipped_row", "#short"),
        (7, "malformed_row", "broken|row"),
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8"])
def test_text_in_other_encodings_is_read_and_rejected_as_it_stands(
    loader: ExportLoader, encoding: str
) -> None:
    mapping = mapping_of(encoding=encoding, delimiter="tab")
    rows = [ROW | {"Country": "Zürich"}, ROW | {"Order": "2", "Country": "Åland", "Price": "x"}]
    path = write(loader, rows, mapping)
    with path.open("ab") as file:
        file.write("münchen\n".encode(encoding.replace("16", "16-le")))
    assert run(loader, mapping).raw.failed == {}
    assert loader.orders("region") == [("Zürich",)]
    (reason, row), malformed = loader.rejected("reason, raw_text")
    assert (reason, json.loads(row)["Country"]) == ("invalid_number", "Åland")
    assert malformed == ("malformed_row", "münchen")


def test_a_byte_that_the_encoding_lacks_rejects_its_row_alone(loader: ExportLoader) -> None:
    mapping = mapping_of(encoding="cp1252")
    path = write(loader, [ROW], mapping)
    path.write_bytes(path.read_bytes() + b"1002,C1,A,\x81,paid,1,2026-10-20 10:00\n")
    run(loader, mapping)
    assert loader.orders("order_id") == [("1001",)]
    assert loader.rejected("row_number, reason") == [(3, "not_utf8")]


def test_a_missing_column_is_named_as_the_mapping_has_it(loader: ExportLoader) -> None:
    mapping = mapping_of({"region": "Ship To"})
    write(loader, [ROW], mapping)
    assert (
        "lacks the column Ship To; its header is: 'Order," in run(loader, mapping).raw.failed[DAY]
    )


def test_two_files_of_a_day_are_refused_by_name(loader: ExportLoader) -> None:
    mapping = mapping_of(file="shop-*-%Y%m%d.csv")
    path = write(loader, [ROW], mapping)
    path.with_name("shop-y-20261020.csv").write_bytes(path.read_bytes())
    failed = run(loader, mapping).raw.failed[DAY]
    assert "two exports for 2026-10-20" in failed
    assert "shop-x-20261020.csv and shop-y-20261020.csv" in failed


def test_another_mapping_reads_its_exports_again_and_no_others(
    loader: ExportLoader, settings: Settings, tmp_path: Path
) -> None:
    mapping = mapping_of()
    write(loader, [ROW | {"State": "new"}], mapping)
    assert run(loader, mapping).rejected.rows == {DAY: 1}
    assert run(loader, mapping).unchanged == (DAY,)
    status: dict[str, Any] = {"from": "State", "values": {"new": "pending"}}
    again = run(loader, mapping_of({"status": status}))
    assert (again.unchanged, again.raw.rows) == ((), {DAY: 1})
    status["values"] = {"new": "completed"}
    assert run(loader, mapping_of({"status": status})).unchanged == ()
    assert loader.orders("status") == [("completed",)]
    # Without the mapping the file is none of ours: it fails, and its rows stay.
    assert list(run(loader, NATIVE_EXPORTS).raw.failed) == [DAY]
    assert loader.orders("status") == [("completed",)]
    # What does not change the exports' part changes nothing.
    file = tmp_path / "mapping.yaml"
    file.write_text("# a comment\nreference: {}\n")
    unmapped = settings.model_copy(update={"mapping": file})
    assert list(pending_exports(unmapped)) == [DAY]


# The mapping file itself


def errors_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "mapping.yaml"
    path.write_text(dedent(text))
    with pytest.raises(UsageError) as caught:
        load(path)
    return caught.value.lines


def test_a_wrong_mapping_is_one_sentence_for_each_fault(tmp_path: Path) -> None:
    lines = errors_of(
        tmp_path,
        """
        exports:
          file: orders-%d.csv
          delimiter: ";;"
          decimals: ","
          fields:
            order_id: {constant: 1}
            customer_id: {from: c, constant: d}
            product_id: p
            region: r
            status: {from: s, values: {Paid: a, paid: b}}
            order_timestamp: {from: t, format: "%d/%m", timezone: Mars}
        """,
    )
    at, zones = "exports.fields.order_timestamp", "such as Europe/London"
    formats = "such as %d.%m.%Y %H:%M, epoch, or epoch_ms"
    assert lines[0].startswith(f"The mapping {tmp_path}/mapping.yaml cannot be used")
    assert lines[1:] == [
        "exports.delimiter: it is one character, such as ; or | or tab.",
        "exports.fields.customer_id: it needs either `from` or `constant`.",
        "exports.fields.status: `values` has a value twice, in other letters.",
        "exports.fields.order_value_gbp is missing.",
        f"{at}.format.0: '%d/%m' lacks the year, month or day: write it {formats}.",
        f"{at}.timezone: 'Mars' is not a time zone of the IANA database, {zones}.",
        "exports.decimals: there is no such key.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exports: [", "is no YAML"),
        ("exports: {}\nexports: {}\n", "the key 'exports' stands twice"),
        ("- a\n", "Input should be"),
    ],
)
def test_what_is_no_mapping_is_said(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(errors_of(tmp_path, text))


def test_scalars_are_the_texts_that_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mapping.yaml"
    fields = FIELDS | {"region": {"from": "Country", "values": {"X": "NO"}}}
    lines = [f"    {name}: {value}" for name, value in fields.items()]
    path.write_text("exports:\n  fields:\n" + "\n".join(lines).replace("'NO'", "NO"))
    assert load(path).exports.fields.region.values == {"X": "NO"}


def test_a_mapping_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")


# Reference files


def test_a_reference_file_is_read_by_its_mapping(tmp_path: Path) -> None:
    mapping = ReferenceMapping.model_validate(
        {
            "products": {
                "delimiter": ";",
                "encoding": "cp1252",
                "decimal": ",",
                "header_line": 2,
                "skip_rows": ["Total"],
                "fields": {
                    "product_id": "Art. No",
                    "product_name": "Name",
                    "product_category": {"from": "Group", "default": "other"},
                    "unit_price_gbp": {"from": "Price", "scale": "0.01"},
                },
            },
            "customers": {
                "fields": {
                    "customer_id": "Id",
                    "customer_segment": {"constant": "all"},
                    "home_region": "Home",
                    "joined_on": {"from": "Since", "format": "%d.%m.%Y"},
                }
            },
        }
    )
    text = "Our products\nArt. No;Name;Group;Price\n007;Käse;;1999\nTotal;;;1999\n"
    (tmp_path / "products.csv").write_bytes(text.encode("cp1252"))
    (tmp_path / "customers.csv").write_text("Id,Home,Since\nC1,UK,05.10.2026\nC2,UK,\n")
    products = read_reference(tmp_path, tables.PRODUCTS, mapping.of("products"))
    assert products.to_pylist() == [
        {
            "product_id": "007",
            "product_name": "Käse",
            "product_category": "other",
            "unit_price_gbp": Decimal("19.99"),
            "stock_on_hand": None,
        }
    ]
    customers = read_reference(tmp_path, tables.CUSTOMERS, mapping.of("customers"))
    assert customers.column("joined_on").to_pylist() == [date(2026, 10, 5), None]
    (tmp_path / "customers.csv").write_text("Id,Home,Since\nC1,UK,2026-10-05\n")
    with pytest.raises(RetailAssetsError, match=r"joined_on must be DATE.*record 2.*'2026-10-05'"):
        read_reference(tmp_path, tables.CUSTOMERS, mapping.of("customers"))
