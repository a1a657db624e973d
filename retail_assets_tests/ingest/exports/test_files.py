"""An export as a file: found or not, whole or not, in any dialect of CSV that can be told apart."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import Limits, inspect
from retail_assets.ingest.exports.files import ExportFolder
from retail_assets.ingest.exports.load import ingest
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, WriteExport, order_row, write_export_to
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)
NAME = "orders_2026_10_20.csv"
ONE, TWO, THREE = (order_row(name, DAY) for name in "ABC")


def problem(loader: ExportLoader) -> str:
    """What is wrong with the day's export; nothing may be in the lake."""
    ingested = loader.ingest(DAY)
    assert ingested.raw.rows == {}
    assert ingested.rejected.failed == ingested.raw.failed
    assert ingested.raw.failed.keys() == {DAY}
    assert loader.orders() == loader.rejected() == []
    assert loader.rows("FROM export_files") == []
    ((ledger_day, text), *rest) = loader.rows(
        "SELECT DISTINCT day, problem FROM failed_days WHERE table_name IN"
        " ('raw_orders', 'rejected_orders')"
    )
    assert (ledger_day, text, rest) == (DAY, ingested.raw.failed[DAY], [])
    return ingested.raw.failed[DAY]


# Files that are not there, or of which there are too many


def test_a_missing_file_fails_its_day_and_names_its_path(
    loader: ExportLoader,
) -> None:
    text = problem(loader)
    assert str(DAY) in text
    assert str(loader.exports_dir / NAME) in text
    assert f"{NAME}.gz" in text


def test_a_missing_folder_fails_like_a_missing_file(loader: ExportLoader) -> None:
    assert not loader.exports_dir.exists()
    assert str(loader.exports_dir / NAME) in problem(loader)


def test_a_plain_and_a_compressed_export_of_one_day_are_refused(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [ONE])
    write_export(DAY, [ONE], compressed=True)
    assert "two exports" in problem(loader)


def test_a_directory_in_place_of_an_export_fails_its_day(loader: ExportLoader) -> None:
    (loader.exports_dir / NAME).mkdir(parents=True)
    assert str(loader.exports_dir / NAME) in problem(loader)


def test_a_dangling_link_in_place_of_an_export_fails_its_day(loader: ExportLoader) -> None:
    loader.exports_dir.mkdir()
    (loader.exports_dir / NAME).symlink_to("nowhere")
    assert str(loader.exports_dir / NAME) in problem(loader)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_fails_its_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [ONE])
    path.chmod(0)
    assert f"{path} cannot be read" in problem(loader)


ALMOST_RIGHT = (
    *("orders_{d:%Y_%m_%d} (1).csv", "orders_{d:%Y_%m_%d}.CSV", "Orders_{d:%Y_%m_%d}.csv"),
    *("orders-{d:%Y-%m-%d}.csv", "orders_{d:%Y%m%d}.csv", "{d:%Y/%m}/orders_{d:%Y_%m_%d}.csv"),
    *("orders_{d:%Y_%m_%d}.csv.zip", "export {d:%d.%m.%Y}.csv", "{d:%Y/%m/%d}/orders.csv"),
)


def test_a_file_of_almost_the_right_name_is_named_in_the_error(
    loader: ExportLoader,
) -> None:
    days = [DAY + n * A_DAY for n in range(len(ALMOST_RIGHT))]
    names = {day: name.format(d=day) for day, name in zip(days, ALMOST_RIGHT, strict=True)}
    for name in names.values():
        path = loader.exports_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEADER}\n")
    failed = loader.ingest(*days, days[-1] + A_DAY).raw.failed
    for day, name in names.items():
        assert f"Its date is in the name of {name!r}: should that be it, rename it" in failed[day]
    assert "Its date" not in failed[days[-1] + A_DAY]


# Headers


@pytest.mark.parametrize("compressed", [False, True])
def test_an_empty_file_fails_its_day(
    loader: ExportLoader, write_export: WriteExport, compressed: bool
) -> None:
    path = write_export(DAY, b"", compressed=compressed)
    assert f"{path} is empty" in problem(loader)


def test_a_header_alone_is_an_export_of_no_orders(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    ends = {"": DAY, "\n": DAY + A_DAY, "\r\n": DAY + 2 * A_DAY, "\n\n\n": DAY + 3 * A_DAY}
    for end, day in ends.items():
        write_export(day, HEADER + end)
    ingested = loader.ingest(*ends.values())
    nothing = dict.fromkeys(ends.values(), 0)
    assert (ingested.raw.rows, ingested.rejected.rows) == (nothing, nothing)
    assert ingested.raw.failed == {}
    assert set(loader.rows("SELECT rows_in, raw_rows, rejected_rows FROM export_files")) == {
        (0, 0, 0)
    }


def test_a_missing_column_fails_the_day_and_is_named(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, ["A,C1,P1,North,10.00"], header="order_id,customer_id,product_id,region,x")
    text = problem(loader)
    assert "lacks the columns status, order_value_gbp, order_timestamp" in text
    assert NAME in text


def test_columns_that_cannot_be_told_apart_fail_the_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    names = {DAY: "Region", DAY + A_DAY: "", DAY + 2 * A_DAY: "note,Note"}
    for day, extra in names.items():
        write_export(day, [], header=f"{HEADER},{extra}")
    failed = loader.ingest(*names).raw.failed
    assert failed.keys() == names.keys()
    for text in failed.values():
        assert "without a name, or of the same name" in text


def test_columns_may_come_in_any_order_and_letter_case(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(
        DAY,
        ["2026-10-20 09:30:00,10.00,completed,North,P1,C1,A"],
        header=",".join(reversed(HEADER.upper().split(","))),
    )
    loader.ingest(DAY)
    columns = "order_id, customer_id, product_id, region, status, order_value_gbp"
    assert loader.orders(columns) == [("A", "C1", "P1", "North", "completed", Decimal("10.00"))]


def test_extra_columns_are_kept_as_json(loader: ExportLoader, write_export: WriteExport) -> None:
    write_export(
        DAY,
        [f'card,{ONE},"say ""hi"", Zoë"', f",{TWO},"],
        header=f"payment,{HEADER},note",
    )
    loader.ingest(DAY)
    first, second = (json.loads(extra) for (extra,) in loader.orders("extra"))
    assert first == {"payment": "card", "note": 'say "hi", Zoë'}
    assert second.keys() == first.keys()
    assert not any(second.values())


def test_an_export_without_extra_columns_has_no_extra(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [ONE])
    loader.ingest(DAY)
    assert loader.orders("extra") == [(None,)]


HOSTILE_NAMES = {
    '"a,b"': "a,b",
    '"say ""hi"""': 'say "hi"',
    "it's": "it's",
    "Größe €": "Größe €",
    "日本": "日本",
    '"two\nlines"': "two\nlines",
    "SELECT 1; --": "SELECT 1; --",
    "{x}": "{x}",
    # What the columns in between may be called.
    **{
        name: name
        for name in (
            "filename", "file_id", "export_date", "row_number", "rowid", "rowid_", "raw", "extra",
            "untidy", "field_0", "value_text", "time_text", "reason", "order_date", "days_late",
        )
    },
}  # fmt: skip


def test_extra_columns_may_have_any_name(loader: ExportLoader, write_export: WriteExport) -> None:
    cells = ",".join(f"v{n}" for n in range(len(HOSTILE_NAMES)))
    bad = order_row("B", DAY, status="lost")
    write_export(
        DAY, [f"{ONE},{cells}", f"{bad},{cells}"], header=",".join((HEADER, *HOSTILE_NAMES))
    )
    ingested = loader.ingest(DAY)
    assert ingested.raw.failed == {}
    expected = {name: f"v{n}" for n, name in enumerate(HOSTILE_NAMES.values())}
    ((extra,),) = loader.orders("extra")
    assert json.loads(extra) == expected
    ((raw_text,),) = loader.rejected("raw_text")
    assert json.loads(raw_text).items() >= expected.items()


# Dialects


def test_a_byte_order_mark_is_no_part_of_the_first_name(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, f"\ufeff{HEADER}\n{ONE}\n")
    loader.ingest(DAY)
    assert loader.orders() == [("A",)]


LINE_ENDS = (
    ("\r\n", "\r\n", "\r\n", "\r\n"),
    ("\r", "\r", "\r", "\r"),
    ("\n", "\n", "\n", ""),
    ("\r\n", "\r\n", "\r\n", ""),
    ("\n", "\r\n", "\n", "\r\n"),
    ("\r\n", "\n", "\r\n", "\n"),
    ("\r\n", "\n", "\n", "\n"),
    ("\n", "\n", "\n", "\r\n"),
    ("\n", "\r", "\n", "\n"),
)


def test_lines_may_end_in_any_way_even_within_a_file(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    lines = (HEADER, ONE, order_row("B", DAY, status="lost"), THREE)
    days = [DAY + n * A_DAY for n in range(len(LINE_ENDS))]
    for day, ends in zip(days, LINE_ENDS, strict=True):
        write_export(day, "".join(line + end for line, end in zip(lines, ends, strict=True)))
    ingested = loader.ingest(*days, late_days=30)
    assert ingested.raw.failed == {}
    for day, ends in zip(days, LINE_ENDS, strict=True):
        where = f"WHERE export_date = DATE '{day}'"
        good = loader.rows(f"SELECT order_id, order_date FROM raw_orders {where} ORDER BY 1")
        bad = loader.rows(f"SELECT row_number, reason FROM rejected_orders {where}")
        assert (good, bad) == ([("A", DAY), ("C", DAY)], [(3, "unknown_status")]), ends


def test_utf16_fails_its_day(loader: ExportLoader, write_export: WriteExport) -> None:
    encodings = {DAY: "utf-16", DAY + A_DAY: "utf-16-le", DAY + 2 * A_DAY: "utf-16-be"}
    paths = {
        day: write_export(day, f"{HEADER}\n{ONE}\n".encode(encoding))
        for day, encoding in encodings.items()
    }
    assert loader.ingest(*encodings).raw.failed == {
        day: f"{path} is UTF-16: export it as UTF-8, or name the `encoding` utf-16 in a mapping"
        " (RETAIL_MAPPING)."
        for day, path in paths.items()
    }


def test_a_header_that_is_not_utf8_fails_its_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, f"{HEADER},Größe\n{ONE},x\n".encode("latin-1"))
    assert "is not UTF-8" in problem(loader)


def test_a_header_with_a_nul_byte_fails_its_day_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, f'{HEADER},"no\0te"\n{ONE},x\n')
    write_export(DAY + A_DAY, [TWO])
    assert loader.ingest(DAY, DAY + A_DAY).raw.failed == {
        DAY: f"The header of {path} has a NUL byte: export it without."
    }
    assert loader.orders() == [("B",)]


# Compressed files


def test_a_compressed_export_gives_the_same_rows(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [ONE, order_row("B", DAY, status="lost"), THREE], compressed=True)
    loader.ingest(DAY)
    assert loader.orders("order_id, source_file") == [("A", f"{NAME}.gz"), ("C", f"{NAME}.gz")]
    assert loader.rejected() == [(3, "unknown_status", "status")]


def test_a_compressed_export_may_have_several_members(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, b"", compressed=True)
    halves = (f"{HEADER}\n{ONE}\n{TWO[:9]}", f"{TWO[9:]}\n{THREE}\n")
    path.write_bytes(b"".join(gzip.compress(half.encode()) for half in halves))
    loader.ingest(DAY)
    assert loader.orders() == [("A",), ("B",), ("C",)]


def test_a_gzip_that_breaks_off_fails_its_day_wherever_it_does(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    lost = {DAY + n * A_DAY: end for n, end in enumerate((1, 4, 8, 12, 200))}
    # More than is looked at in one go, so that there is a good header before the break.
    rows = [order_row(f"A{n * n}", DAY) for n in range(25_000)]
    for day, end in lost.items():
        path = write_export(day, rows, compressed=True)
        path.write_bytes(path.read_bytes()[:-end])
    failed = loader.ingest(*lost).raw.failed
    assert failed.keys() == lost.keys()
    for text in failed.values():
        assert "not a whole gzip file" in text
    assert loader.orders() == []


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "trailing garbage": lambda good: good + b"garbage",
    "wrong checksum": lambda good: good[:-8] + bytes(4) + good[-4:],
    "broken inside": lambda good: good[:20] + b"\xff\xff\xff" + good[23:],
    "not compressed": lambda _: f"{HEADER}\n{ONE}\n".encode(),
}


def test_a_spoiled_gzip_fails_its_day(loader: ExportLoader, write_export: WriteExport) -> None:
    paths = {}
    for number, spoil in enumerate(SPOILED.values()):
        path = write_export(DAY + number * A_DAY, [ONE, TWO], compressed=True)
        path.write_bytes(spoil(path.read_bytes()))
        paths[DAY + number * A_DAY] = path
    failed = loader.ingest(*paths).raw.failed
    assert failed.keys() == paths.keys()
    for day, path in paths.items():
        assert str(path) in failed[day]
    assert loader.orders() == []


# What looking at a file costs


def test_looking_at_a_large_file_takes_little_memory(settings: Settings, tmp_path: Path) -> None:
    row = order_row("A", DAY, region="x" * 900).encode() + b"\n"
    write_export_to(settings.exports_dir, DAY, HEADER.encode() + b"\n" + row * 40_000)
    tracemalloc.start()
    try:
        found = inspect(ExportFolder(settings.exports_dir).locate(DAY))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.size_bytes > 35_000_000
    assert peak < 8_000_000


# Limits


def wide(columns: int) -> bytes:
    names = ",".join(f"c{n}" for n in range(columns - 7))
    return f"{HEADER},{names}\n{ONE},{',' * (columns - 8)}\n".encode()


def test_a_file_that_would_take_too_much_memory_fails_its_day_alone(
    lake: Lake, settings: Settings
) -> None:
    days = [DAY + n * A_DAY for n in range(6)]
    for day in days:
        write_export_to(settings.exports_dir, day, [order_row(f"O{day:%d}", DAY)])
    write_export_to(settings.exports_dir, days[1], wide(10_000))
    write_export_to(settings.exports_dir, days[3], wide(900))
    small = replace(lake, memory_limit="40MB", threads=1)
    with small.connect() as connection:
        failed = ingest(small, connection, settings.exports_dir, days, late_days=30).raw.failed
        assert failed.keys() == {days[1], days[3]}
        assert "10,000 columns, and more than 1,000 are not read" in failed[days[1]]
        assert "cannot be read" in failed[days[3]]
        assert "900 columns): raise RETAIL_MEMORY_LIMIT" in failed[days[3]]
        assert connection.execute("SELECT count(*) FROM raw_orders").fetchone() == (4,)


@pytest.mark.parametrize(
    ("content", "limits", "text"),
    [
        (f"{HEADER}\n{ONE}\n", Limits(columns=6), "has 7 columns"),
        (f"{HEADER}\n{ONE}\n", Limits(header_bytes=60), "header of .* is longer than 60 bytes"),
        (HEADER.replace(",", '","', 1), Limits(header_bytes=60), "is longer than 60 bytes"),
        (f"{HEADER}\n{ONE}\n{'x' * 3_000_000}\n", Limits(line_bytes=1_000_000), "line 3: the line"),
        (
            f'{HEADER}\n{ONE}\nB,"' + "x\n" * 2_000_000,
            Limits(line_bytes=1_000_000),
            "line 3: a field is longer",
        ),
    ],
)
def test_a_file_beyond_a_limit_is_refused_before_it_is_read(
    settings: Settings, content: str, limits: Limits, text: str
) -> None:
    write_export_to(settings.exports_dir, DAY, content)
    with pytest.raises(RetailAssetsError, match=text):
        inspect(ExportFolder(settings.exports_dir).locate(DAY), limits)


# What a file is, if it is no CSV


def test_the_delimiter_that_was_found_is_named(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = {";": DAY, "\t": DAY + A_DAY, "|": DAY + 2 * A_DAY}
    for mark, day in days.items():
        write_export(day, f"{HEADER}\n{ONE}\n".replace(",", mark))
    failed = loader.ingest(*days.values()).raw.failed
    assert "separated by semicolons (';'): export it with commas" in failed[days[";"]]
    assert "separated by tabs ('\\t')" in failed[days["\t"]]
    assert "separated by vertical bars ('|')" in failed[days["|"]]


def test_the_encoding_that_was_found_is_named(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, f"{HEADER},Größe\n{ONE},x\n".encode("cp1252"))
    assert "line 1 has the byte 0xF6, as Windows-1252 or Latin-1 would" in problem(loader)


def test_files_of_other_formats_are_named(loader: ExportLoader, write_export: WriteExport) -> None:
    formats = {
        b"PK\x03\x04rest": "a ZIP archive or an Excel workbook",
        gzip.compress(f"{HEADER}\n{ONE}\n".encode()): "let its name end with .csv.gz",
        b"PAR1\0\0": "a Parquet file",
        f"{HEADER}\n".encode("utf-32"): "is UTF-16",
    }
    days = [DAY + n * A_DAY for n in range(len(formats))]
    for day, content in zip(days, formats, strict=True):
        write_export(day, content)
    failed = loader.ingest(*days).raw.failed
    for day, words in zip(days, formats.values(), strict=True):
        assert words in failed[day]
