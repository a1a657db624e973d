"""Exports of many days: each row in the file of its day, whatever is split first or again."""

import os
from datetime import date, datetime, timezone
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from retail_assets.ingest.exports.load import ingest
from retail_assets.ingest.exports.other_files import other_exports
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.exports.split import STATE, split_exports
from retail_assets.ingest.exports.split_days import INDEX, DayFiles
from retail_assets.settings import Settings
from retail_assets_tests.ingest.exports.conftest import ExportLoader

FIRST, SECOND = date(2026, 10, 20), date(2026, 10, 21)
MAPPING = """
exports:
  file: orders_export*.csv
  delimiter: ";"
  timezone: America/New_York
  skip_rows: [Total, ;;Sum]
  fields:
    order_id: Name
    customer_id: Email
    product_id: Sku
    region: {constant: UK}
    status: {from: State, values: {paid: completed}}
    order_value_gbp: Price
    order_timestamp: {from: Placed, format: "%d/%m/%Y %H:%M", fill: true}
"""
HEADER = "Name;Email;Sku;State;Price;Placed"


@pytest.fixture
def shop(settings: Settings, tmp_path: Path) -> Settings:
    file = tmp_path / "mapping.yaml"
    file.write_text(MAPPING)
    settings.exports_dir.mkdir(parents=True, exist_ok=True)
    return settings.model_copy(update={"mapping": file})


def write(shop: Settings, name: str, *rows: str, header: str = HEADER, minute: int = 0) -> Path:
    """An export, written at a minute past noon of 22 October 2026 in UTC."""
    path = shop.exports_dir / name
    path.write_text("\n".join((header, *rows)) + "\n")
    when = datetime(2026, 10, 22, 12, minute, tzinfo=timezone.utc).timestamp()
    os.utime(path, (when, when))
    return path


def day_files(shop: Settings) -> dict[str, list[str]]:
    return {
        path.name: path.read_text().splitlines()[1:]
        for path in sorted(shop.exports_dir.glob("orders_2026*"))
    }


def row(order: str, placed: str, price: str = "1.00") -> str:
    return f"{order};c;A;paid;{price};{placed}"


def test_each_row_is_in_the_file_of_its_business_day_with_its_origin(shop: Settings) -> None:
    write(shop, "orders_export_1.csv", row("1", "20/10/2026 10:00"), row("2", "20/10/2026 20:00"))
    assert split_exports(shop).rows == {"orders_export_1.csv": 2}
    origin = "2026-10-22T12:00:00.000000+00:00"
    assert day_files(shop) == {
        "orders_2026_10_20.csv": [
            f"1,c,A,paid,1.00,20/10/2026 10:00,orders_export_1.csv,2,{origin}"
        ],
        # In London it is past midnight.
        "orders_2026_10_21.csv": [
            f"2,c,A,paid,1.00,20/10/2026 20:00,orders_export_1.csv,3,{origin}"
        ],
    }
    assert list(pending_exports(shop)) == [FIRST, SECOND]
    assert other_exports(shop) == {}


def test_the_days_are_ingested_as_the_mapping_says(shop: Settings, loader: ExportLoader) -> None:
    lines = [
        row("1", "20/10/2026 10:00", "5.50"),
        "1;c;B;paid;1.25;",
        "Total;;;;6.75;",
        ";;Sum;;6.75;",
    ]
    write(shop, "orders_export.csv", *lines)
    split_exports(shop)
    ingest(
        loader.lake, loader.connection, shop.exports_dir, [FIRST], late_days=7,
        mapping=shop.export_mapping,
    )  # fmt: skip
    assert loader.orders("order_id, line_number, product_id, order_value_gbp::VARCHAR") == [
        ("1", 1, "A", "5.50"),
        ("1", 2, "B", "1.25"),
    ]
    assert loader.orders("extra ->> 'source_line'") == [("2",), ("3",)]
    days = [FIRST, date(2026, 10, 22)]
    ingest(
        loader.lake, loader.connection, shop.exports_dir, days, late_days=7,
        mapping=shop.export_mapping,
    )  # fmt: skip
    assert loader.rejected("reason") == [("skipped_row",)] * 2


def test_an_export_that_was_written_later_has_its_orders_in_any_order_of_arrival(
    shop: Settings,
) -> None:
    exports = {
        "orders_export_a.csv": (5, [row("1", "20/10/2026 10:00"), row("2", "20/10/2026 11:00")]),
        "orders_export_b.csv": (9, [row("2", "20/10/2026 11:00", "7.00")]),
        "orders_export_c.csv": (
            7,
            [row("2", "20/10/2026 11:00", "3.00"), row("3", "20/10/2026 12:00")],
        ),
    }
    for names in permutations(exports):
        for path in (*shop.exports_dir.iterdir(), shop.lake_dir / STATE):
            path.unlink(missing_ok=True)
        for name in names:
            minute, rows = exports[name]
            write(shop, name, *rows, minute=minute)
            split_exports(shop)
        kept = sorted(line.split(",")[0:7:2] for line in day_files(shop)["orders_2026_10_20.csv"])
        assert [(order, price, source) for order, _, price, source in kept] == [
            ("1", "1.00", "orders_export_a.csv"),
            ("2", "7.00", "orders_export_b.csv"),
            ("3", "1.00", "orders_export_c.csv"),
        ]


def test_an_order_that_a_later_export_has_on_another_day_is_in_that_file_alone(
    shop: Settings,
) -> None:
    exports = {
        "orders_export_a.csv": (5, [row("1", "20/10/2026 10:00"), row("2", "20/10/2026 11:00")]),
        "orders_export_b.csv": (9, [row("1", "18/10/2026 10:00", "7.00")]),
        "orders_export_c.csv": (7, [row("1", "19/10/2026 10:00", "3.00")]),
    }
    for names in permutations(exports):
        for path in (*shop.exports_dir.iterdir(), shop.lake_dir / STATE, shop.lake_dir / INDEX):
            path.unlink(missing_ok=True)
        for name in names:
            minute, rows = exports[name]
            write(shop, name, *rows, minute=minute)
            split_exports(shop)
        kept = {
            name: [line.split(",")[0:5:4] for line in lines]
            for name, lines in day_files(shop).items()
            if lines
        }
        assert kept == {
            "orders_2026_10_18.csv": [["1", "7.00"]],
            "orders_2026_10_20.csv": [["2", "1.00"]],
        }


def test_lines_of_an_order_on_both_sides_of_midnight_are_in_one_file(
    shop: Settings, loader: ExportLoader
) -> None:
    lines = [
        row("1", "20/10/2026 18:59", "5.00"),
        row("2", "20/10/2026 10:00"),
        "1;c;B;paid;2.00;20/10/2026 19:01",
    ]
    write(shop, "orders_export.csv", *lines)
    split_exports(shop)
    mapping = shop.export_mapping.model_copy(update={"lines": "rows"})
    ingest(
        loader.lake, loader.connection, shop.exports_dir, [FIRST, SECOND], late_days=7,
        mapping=mapping,
    )  # fmt: skip
    found = loader.orders("export_date, order_date, order_id, line_number, product_id")
    assert found == [
        (FIRST, FIRST, "2", 1, "A"),
        (SECOND, FIRST, "1", 1, "A"),
        (SECOND, SECOND, "1", 2, "B"),
    ]


@pytest.mark.parametrize(
    ("refunds", "expected"),
    [
        ("order_day", [(date(2026, 10, 10), "5.00"), (date(2026, 10, 10), "-2.00")]),
        ("refund_day", [(date(2026, 10, 10), "5.00"), (FIRST, "-2.00")]),
    ],
)
def test_a_refund_of_another_day_is_with_its_order(
    shop: Settings, loader: ExportLoader, refunds: str, expected: list[tuple[date, str]]
) -> None:
    text = MAPPING.replace("  fields:", f"  lines: rows\n  refunds: {refunds}\n  fields:")
    assert shop.mapping
    shop.mapping.write_text(text)
    lines = [row("1", "10/10/2026 10:00", "5.00"), row("1", "20/10/2026 10:00", "-2.00")]
    write(shop, "orders_export.csv", *lines)
    split_exports(shop)
    late_days = 7 if refunds == "order_day" else 10
    ingest(
        loader.lake, loader.connection, shop.exports_dir, list(pending_exports(shop)),
        late_days=late_days, mapping=shop.export_mapping,
    )  # fmt: skip
    assert loader.rejected() == []
    assert loader.orders("order_date, order_value_gbp::VARCHAR") == expected


def test_an_order_is_known_by_the_column_that_has_its_number(shop: Settings) -> None:
    assert shop.mapping
    shop.mapping.write_text(MAPPING.replace("order_id: Name", "order_id: {from: Name, or: State}"))
    write(
        shop, "orders_export_1.csv", ";c;A;a;1.00;20/10/2026 10:00", ";c;A;b;1.00;20/10/2026 10:00"
    )
    write(shop, "orders_export_2.csv", ";c;A;b;2.00;20/10/2026 10:00", minute=1)
    split_exports(shop)
    lines = day_files(shop)["orders_2026_10_20.csv"]
    assert [line.split(",")[3:5] for line in lines] == [["a", "1.00"], ["b", "2.00"]]


def test_another_mapping_splits_again(shop: Settings) -> None:
    assert shop.mapping
    shop.mapping.write_text(MAPPING.replace('";"', '","'))
    write(shop, "orders_export.csv", row("1", "20/10/2026 20:00"))
    assert "name the `delimiter`" in split_exports(shop, at_most=1).failed["orders_export.csv"]
    assert split_exports(shop, at_most=1).failed == {}
    shop.mapping.write_text(MAPPING)
    assert split_exports(shop, at_most=1).rows == {"orders_export.csv": 1}
    assert list(day_files(shop)) == ["orders_2026_10_21.csv"]
    shop.mapping.write_text(MAPPING.replace("America/New_York", "Europe/London"))
    assert split_exports(shop, at_most=1).rows == {"orders_export.csv": 1}
    assert [(name, len(lines)) for name, lines in day_files(shop).items()] == [
        ("orders_2026_10_20.csv", 1),
        ("orders_2026_10_21.csv", 0),
    ]


def test_to_split_again_changes_nothing(shop: Settings) -> None:
    write(
        shop,
        "orders_export.csv",
        row("1", "20/10/2026 10:00"),
        "2;short",
        row("3", "20/10/2026 9:00"),
    )
    split_exports(shop)
    before = day_files(shop)
    assert split_exports(shop).rows == {}
    (shop.lake_dir / STATE).unlink()
    assert split_exports(shop).rows == {"orders_export.csv": 3}
    assert day_files(shop) == before


def test_a_split_that_breaks_off_before_orders_are_removed_elsewhere_is_done_again(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(shop, "orders_export_1.csv", row("1", "20/10/2026 10:00"))
    split_exports(shop)
    write(shop, "orders_export_2.csv", row("1", "18/10/2026 10:00"), minute=1)
    with monkeypatch.context() as patch:
        patch.delattr(DayFiles, "remove")
        with pytest.raises(AttributeError):
            split_exports(shop)
    split_exports(shop)
    assert [len(lines) for lines in day_files(shop).values()] == [1, 0]


@pytest.mark.parametrize("index", [None, b"not a database"])
def test_an_index_that_is_gone_or_damaged_is_made_again(
    shop: Settings, index: bytes | None
) -> None:
    write(shop, "orders_export_1.csv", row("1", "20/10/2026 10:00"))
    split_exports(shop)
    (shop.lake_dir / INDEX).unlink()
    if index is not None:
        (shop.lake_dir / INDEX).write_bytes(index)
    write(shop, "orders_export_2.csv", row("1", "18/10/2026 10:00"), minute=1)
    split_exports(shop)
    assert [len(lines) for lines in day_files(shop).values()] == [1, 0]


def test_a_split_that_breaks_off_is_done_again_as_if_nothing_had_been(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("1", "20/10/2026 10:00"), row("2", "21/10/2026 10:00"), row("3", "20/10/2026 9:00")]
    write(shop, "orders_export.csv", *rows)
    split_exports(shop)
    expected = day_files(shop)
    for path in (*shop.exports_dir.glob("orders_2026*"), shop.lake_dir / STATE):
        path.unlink()
    real, merged = DayFiles.merge, []

    def full_disk(*arguments: Any) -> None:
        if merged:
            raise OSError(28, "No space left on device")
        merged.append(real(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(DayFiles, "merge", full_disk)
        with pytest.raises(OSError, match="No space left"):
            split_exports(shop)
    # All are written aside first, so none is in its place, and nothing fills the disk.
    assert day_files(shop) == {}
    assert not list(shop.exports_dir.glob(".*"))
    assert split_exports(shop).rows == {"orders_export.csv": 3}
    assert day_files(shop) == expected
    assert not list(shop.exports_dir.glob(".*"))


def test_rows_without_a_day_go_to_the_day_on_which_their_export_was_written(
    shop: Settings, loader: ExportLoader
) -> None:
    write(shop, "orders_export.csv", row("1", "yesterday"), "2;c", "3;c;A;paid;1;;more;and;more")
    done = split_exports(shop)
    assert done.rows == {"orders_export.csv": 3}
    [note] = done.notes
    assert note.startswith("orders_export.csv has 3 rows without a readable day")
    assert "they are in orders_2026_10_22.csv" in note
    day = date(2026, 10, 22)
    ingest(
        loader.lake, loader.connection, shop.exports_dir, [day], late_days=7,
        mapping=shop.export_mapping,
    )  # fmt: skip
    assert loader.rejected() == [
        (2, "invalid_timestamp", "order_timestamp"),
        (3, "malformed_row", None),
        (4, "malformed_row", None),
    ]


def test_a_further_column_of_a_later_export_is_kept(shop: Settings) -> None:
    write(shop, "orders_export_1.csv", row("1", "20/10/2026 10:00"))
    split_exports(shop)
    write(
        shop, "orders_export_2.csv", row("2", "20/10/2026 11:00") + ";red",
        header=f"{HEADER};Colour", minute=1,
    )  # fmt: skip
    split_exports(shop)
    lines = day_files(shop)["orders_2026_10_20.csv"]
    assert [line.split(",")[6:8] for line in lines] == [
        ["", "orders_export_1.csv"],
        ["red", "orders_export_2.csv"],
    ]


def test_a_day_of_somebody_else_is_left_as_it_is(shop: Settings) -> None:
    other = shop.exports_dir / "orders_2026_10_20.csv"
    other.write_text("a,b\n")
    write(
        shop, "orders_export.csv", row("1", "20/10/2026 10:00"), row("2", "21/10/2026 10:00")
    )  # fmt: skip
    problem = split_exports(shop).failed["orders_export.csv"]
    assert f"{other} was not made of an export of many days" in problem
    assert other.read_text() == "a,b\n"
    assert list(day_files(shop)) == [other.name, "orders_2026_10_21.csv"]
    assert "could not be split into days" in other_exports(shop)["orders_export.csv"]
    other.unlink()
    assert split_exports(shop).rows == {"orders_export.csv": 2}
    assert [len(lines) for lines in day_files(shop).values()] == [1, 1]


def test_an_export_that_breaks_off_takes_the_place_of_nothing(shop: Settings) -> None:
    lines = [row("1", "20/10/2026 10:00"), "1;c;B;paid;2.00;20/10/2026 10:00"]
    write(shop, "orders_export_1.csv", *lines)
    split_exports(shop)
    before = day_files(shop)
    later = write(shop, "orders_export_2.csv", lines[0], "1;c;B;pa", minute=1)
    later.write_bytes(later.read_bytes()[:-1])
    assert "breaks off in line 3" in split_exports(shop).failed["orders_export_2.csv"]
    assert day_files(shop) == before
    later.write_text("\n".join([HEADER, lines[0], "Total;2"]))
    assert split_exports(shop).failed == {}


def test_an_export_that_still_changes_waits(shop: Settings) -> None:
    path = write(shop, "orders_export.csv", row("1", "20/10/2026 10:00"))
    os.utime(path)
    assert split_exports(shop, settle_seconds=60).rows == {}
    assert split_exports(shop).rows == {"orders_export.csv": 1}


def test_an_export_that_lacks_a_column_fails_by_name(shop: Settings) -> None:
    write(shop, "orders_export.csv", "x", header="Name;Email")
    assert (
        "lacks the columns Sku, State, Price, Placed"
        in (split_exports(shop).failed["orders_export.csv"])
    )
    assert day_files(shop) == {}
