"""What becomes of the rows of exports: taken over or rejected with a reason, exactly once."""

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from retail_assets import tables
from retail_assets.ingest.exports.load import ExportResult, ingest
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, WriteExport, order_row, write_export_to
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)
NUMBER = ("invalid_number", "order_value_gbp")
TIME = ("invalid_timestamp", "order_timestamp")
NOT_POSITIVE = ("not_positive", "order_value_gbp")
SAMPLE = Path(__file__).parents[3] / "data" / "exports"


def outcomes(
    loader: ExportLoader,
    write_export: WriteExport,
    column: str,
    texts: Mapping[str, Any],
    day: date = DAY,
) -> dict[str, Any]:
    """What became of rows that differ in one column: the typed value, or (reason, field)."""
    quoted = ['"{}"'.format(text.replace('"', '""')) for text in texts]
    rows = [order_row(f"O{n}", day, **{column: text}) for n, text in enumerate(quoted)]
    write_export(day, rows)
    assert loader.ingest(day).raw.failed == {}
    found = dict(loader.rows(f"SELECT row_number - 1, {column} FROM raw_orders"))
    for row_number, reason, field in loader.rejected():
        found[row_number - 2] = (reason, field)
    return {
        text: str(found[n]) if isinstance(found[n], datetime) else found[n]
        for n, text in enumerate(texts)
    }


# Numbers and times


def test_values_are_plain_numbers_with_at_most_two_decimals(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    texts = {
        "1": Decimal("1.00"), "1.5": Decimal("1.50"), "1.50": Decimal("1.50"),
        "1.500": Decimal("1.50"), "+2.25": Decimal("2.25"), "007": Decimal("7.00"),
        " 3.10 ": Decimal("3.10"), "0.01": Decimal("0.01"),
        "9999999999.99": Decimal("9999999999.99"),
        "1.505": NUMBER, "1.001": NUMBER, "0.001": NUMBER, "-1.999": NUMBER,
        "NaN": NUMBER, "nan": NUMBER, "Infinity": NUMBER, "-inf": NUMBER, "1e400": NUMBER,
        "1e3": NUMBER, "£5": NUMBER, "$5": NUMBER, "1,000": NUMBER, "1_000": NUMBER,
        "1 000": NUMBER, "0x10": NUMBER, "ten": NUMBER, "1.": NUMBER, ".5": NUMBER, "--1": NUMBER,
        "\uff11\uff12": NUMBER, "\u0663": NUMBER, "10000000000": NUMBER,
        "99999999999999999999.00": NUMBER,
        "1\n2": NUMBER, "5;": NUMBER, "NULL": NUMBER, "true": NUMBER,
    }  # fmt: skip
    assert outcomes(loader, write_export, "order_value_gbp", texts) == texts


def test_zero_and_negative_values_are_rejected(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    texts = dict.fromkeys(
        ("0", "0.00", "-0", "+0.0", "000", "-0.01", "-5", "-9999999999.99"), NOT_POSITIVE
    )
    assert outcomes(loader, write_export, "order_value_gbp", texts) == texts


def test_timestamps_are_iso_8601(loader: ExportLoader, write_export: WriteExport) -> None:
    texts = {
        "2026-10-20": "2026-10-20 00:00:00",
        "2026-10-20 09:30": "2026-10-20 09:30:00",
        "2026-10-20T09:30": "2026-10-20 09:30:00",
        "2026-10-20T09:30:15": "2026-10-20 09:30:15",
        "2026-10-20 09:30:15.5": "2026-10-20 09:30:15.500000",
        "2026-10-20 23:59:59.999999999": "2026-10-20 23:59:59.999999",
        " 2026-10-20 09:30 ": "2026-10-20 09:30:00",
        "2026-10-20t09:30:15": "2026-10-20 09:30:15",
        "2026-10-20 09:30:15,25": "2026-10-20 09:30:15.250000",
        "2026-10-20 02:00:00 PM": "2026-10-20 14:00:00",
        "2026-10-20 2:05pm": "2026-10-20 14:05:00",
        "2026-10-20 12:00:00.5 a.m.": "2026-10-20 00:00:00.500000",
        "2026-10-20 12:00 PM": "2026-10-20 12:00:00",
        **dict.fromkeys(
            (
                "2026-02-30 10:00:00", "2026-13-01", "2025-02-29", "2026-10-20T24:00:00",
                "2026-10-20 09:60:00", "2026-10-20 09:30:60", "2026-10-20 9:30", "2026-10-2",
                "20/10/2026", "10/20/2026 09:30", "20-10-2026", "2026/10/20", "20261020",
                "1760952600",
                "yesterday", "now", "today", "epoch", "infinity", "-infinity", "NULL",
                "2026-10-20T09:30:00+25:00", "2026-10-20T09:30:00 Europe/Paris",
                "2026-10-20 13:00 PM", "2026-10-20 0:30 AM", "2026-10-20 00:30 AM",
                "2026-10-20 2:00", "2026-10-20 PM", "2026-10-20 09:30.5", "2026-10-20 09",
                "05/10/2026 14:00", "10/20/2026 02:00 PM", "5.10.2026 14:00", "46300.5",
                "Oct 20, 2026 2:00:00 PM", "0000-00-00 00:00:00", "1760952600000",
                "2026-10-20 24:00:00 UTC", "2026-02-30 10:00 +0200", "2026-10-20 09:30:00 CET",
                "2026-10-20 09:30:00  +0200", "2026-10-20 09:30:00 +25:00", "2026-10-20 UTC",
                "2026-10-20T09:30:00+1", "2026-10-20 (BC)", "26-10-20", "Tue Oct 20 2026",
                "\uff12\uff10\uff12\uff16-10-20",
            ),
            TIME,
        ),
    }  # fmt: skip
    assert outcomes(loader, write_export, "order_timestamp", texts) == texts


def test_a_timestamp_with_an_offset_counts_for_the_day_that_it_is_in_the_business_time_zone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    texts = {
        "2026-10-20T09:30:00Z": "2026-10-20 10:30:00",
        "2026-10-20T09:30:00z": "2026-10-20 10:30:00",
        "2026-10-20T09:30:00+01:00": "2026-10-20 09:30:00",
        "2026-10-20 09:30:00.25+0530": "2026-10-20 05:00:00.250000",
        "2026-10-20T09:30:00-07": "2026-10-20 17:30:00",
        "2026-10-19T23:30:00Z": "2026-10-20 00:30:00",
        "2026-10-20T00:30:00+02:00": "2026-10-19 23:30:00",
        "2026-10-20T23:30:00Z": ("future_order", "order_timestamp"),
        "2026-10-13T00:30:00+02:00": ("too_late", "order_timestamp"),
        "2026-10-12T23:00:00Z": "2026-10-13 00:00:00",
        "2026-10-20T09:30Z": "2026-10-20 10:30:00",
        "2026-10-20 09:30+01:00": "2026-10-20 09:30:00",
        "2026-10-20 09:50:26 +0200": "2026-10-20 08:50:26",
        "2026-10-20 09:50:26 -03:30": "2026-10-20 14:20:26",
        "2026-10-20 21:25:58.745232+02": "2026-10-20 20:25:58.745232",
        "2026-10-20 09:30:00 UTC": "2026-10-20 10:30:00",
        "2026-10-20 09:30:00 gmt": "2026-10-20 10:30:00",
        "2026-10-20T09:30UTC": "2026-10-20 10:30:00",
        "2026-10-20T09:30:00.123456789Z": "2026-10-20 10:30:00.123456",
        "2026-10-20 09:30 Z": "2026-10-20 10:30:00",
        "2026-10-20 02:30:00 PM +02:00": "2026-10-20 13:30:00",
    }
    assert outcomes(loader, write_export, "order_timestamp", texts) == texts
    assert loader.rows("SELECT DISTINCT order_timestamp::DATE = order_date FROM raw_orders") == [
        (True,)
    ]


def test_the_day_that_has_25_hours_is_an_ordinary_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    texts = {
        "2026-10-24T23:00:00Z": "2026-10-25 00:00:00",
        "2026-10-25T00:30:00Z": "2026-10-25 01:30:00",
        "2026-10-25T01:30:00Z": "2026-10-25 01:30:00",
        "2026-10-25 01:30:00": "2026-10-25 01:30:00",
        "2026-10-25T23:59:59Z": "2026-10-25 23:59:59",
        "2026-10-26T00:00:00Z": ("future_order", "order_timestamp"),
        "2026-10-26T00:59:59+01:00": "2026-10-25 23:59:59",
    }
    assert outcomes(loader, write_export, "order_timestamp", texts, date(2026, 10, 25)) == texts


def test_the_day_that_has_23_hours_is_an_ordinary_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    texts = {
        "2026-03-28T23:59:59Z": "2026-03-28 23:59:59",
        "2026-03-29T00:59:59Z": "2026-03-29 00:59:59",
        "2026-03-29T01:00:00Z": "2026-03-29 02:00:00",
        # No clock showed it; the wall-clock time of an export is taken as it is.
        "2026-03-29 01:30:00": "2026-03-29 01:30:00",
        "2026-03-29T22:59:59Z": "2026-03-29 23:59:59",
        "2026-03-29T23:00:00Z": ("future_order", "order_timestamp"),
    }
    assert outcomes(loader, write_export, "order_timestamp", texts, date(2026, 3, 29)) == texts


# Text, status, days


def test_blanks_around_text_do_not_matter(loader: ExportLoader, write_export: WriteExport) -> None:
    texts = {
        "North": "North", " North ": "North", "\tNorth": "North", "North\t": "North",
        "\u00a0North\u00a0": "North", "North\r": "North", "\nNorth\n": "North",
        "\u00a0 \t North \t\u00a0": "North",
        "North  West": "North  West", "a\tb": "a\tb",
        "Ñandú 日本": "Ñandú 日本", "'": "'", '"': '"', "\\": "\\", "NULL": "NULL",
        "a\x1fb": "a\x1fb",
    }  # fmt: skip
    assert outcomes(loader, write_export, "region", texts) == texts


def test_status_may_be_in_any_letter_case_and_any_other_is_rejected(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    unknown = ("unknown_status", "status")
    texts = {
        "completed": "completed", "COMPLETED": "completed", " Completed\t": "completed",
        "pending": "pending", "Cancelled": "cancelled", "RETURNED": "returned",
        "\u00a0refunded\u00a0": "refunded",
        "complete": unknown, "shipped": unknown, "canceled": unknown, "null": unknown,
        "completed.": unknown, "com pleted": unknown, "unknown": unknown,
    }  # fmt: skip
    assert outcomes(loader, write_export, "status", texts) == texts


def test_a_blank_required_field_is_named(loader: ExportLoader, write_export: WriteExport) -> None:
    names = HEADER.split(",")
    blanks = ("", " ", '""', "\t", "\u00a0", '" \u00a0\t"')
    cells = order_row("A", DAY).split(",")
    write_export(
        DAY,
        [
            ",".join([*cells[:n], blank, *cells[n + 1 :]])
            for n in range(len(names))
            for blank in blanks
        ],
    )
    loader.ingest(DAY)
    assert loader.orders() == []
    assert loader.rejected("reason, field") == [
        ("missing_value", name) for name in names for _ in blanks
    ]


def test_of_several_faults_the_first_in_the_order_of_the_reasons_counts(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(
        DAY,
        [
            ",,,,,,",
            ",C,P,R,lost,x,y",
            "A,C,P,R,lost,x,y",
            "A,C,P,R,lost,-1,y",
            "A,C,P,R,lost,-1,2030-01-01",
            "A,C,P,R,lost,1,2030-01-01",
        ],
    )
    loader.ingest(DAY)
    assert loader.rejected("reason, field") == [
        ("missing_value", "order_id"),
        ("missing_value", "order_id"),
        NUMBER,
        TIME,
        NOT_POSITIVE,
        ("unknown_status", "status"),
    ]


def test_orders_of_other_days_count_for_their_own_day_within_the_limit(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    lag = {"A": 0, "B": 1, "C": 3, "D": 4, "E": 400, "F": -1, "G": -4000}
    write_export(DAY, [order_row(name, DAY - days * A_DAY) for name, days in lag.items()])
    loader.ingest(DAY, late_days=3)
    assert loader.orders("order_id, order_date") == [
        (name, DAY - lag[name] * A_DAY) for name in "ABC"
    ]
    assert loader.rejected() == [
        (5, "too_late", "order_timestamp"),
        (6, "too_late", "order_timestamp"),
        (7, "future_order", "order_timestamp"),
        (8, "future_order", "order_timestamp"),
    ]


def test_with_no_late_days_only_the_day_itself_counts(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY), order_row("B", DAY - A_DAY)])
    loader.ingest(DAY, late_days=0)
    assert loader.orders() == [("A",)]
    assert loader.rejected() == [(3, "too_late", "order_timestamp")]


# Records


def test_quoted_fields_may_have_commas_quotes_and_line_feeds(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    regions = ("a,b", 'say "hi"', "two\nlines", "two\r\nlines", ",", "\n\n", '"', 'a","b')
    rows = [
        order_row(f"O{n}", DAY, region=quoted)
        for n, quoted in enumerate('"{}"'.format(text.replace('"', '""')) for text in regions)
    ]
    write_export(DAY, [*rows, order_row("last", DAY)])
    loader.ingest(DAY)
    expected = [text.strip() for text in regions if text.strip()]
    assert loader.orders("region") == [(text,) for text in (*expected, "North")]
    assert loader.rejected() == [(7, "missing_value", "region")]


def test_too_few_and_too_many_fields_are_malformed(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    good = order_row("A", DAY)
    lines = ["x", "x,y", good[:-20], good, good + ",more", "a;b;c", "   "]
    write_export(DAY, lines)
    loader.ingest(DAY)
    assert loader.orders() == [("A",)]
    malformed = [(n, line) for n, line in enumerate(lines, start=2) if line != good]
    assert loader.rejected("row_number, raw_text") == malformed
    assert set(loader.rejected("reason, field")) == {("malformed_row", None)}


def test_a_comma_at_the_end_of_a_row_is_forgiven(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY) + ",", order_row("B", DAY)])
    loader.ingest(DAY)
    assert loader.orders() == [("A",), ("B",)]


def test_a_quote_that_does_not_close_is_malformed_and_the_rows_before_it_stay(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY), order_row("B", DAY), order_row("C", DAY, region='"x')])
    ingested = loader.ingest(DAY)
    assert ingested.raw.failed == {}
    assert loader.orders() == [("A",), ("B",)]
    ((row_number, reason, raw_text),) = loader.rejected("row_number, reason, raw_text")
    assert (row_number, reason) == (4, "malformed_row")
    assert raw_text.startswith('C,C1,P1,"x,')


def test_a_quote_that_swallows_more_than_can_be_kept_fails_the_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    rows = [order_row(f"O{n}", DAY) for n in range(1000)]
    rows[3] = order_row("O3", DAY, region='"x')
    write_export(DAY, rows)
    failed = loader.ingest(DAY).raw.failed
    assert failed.keys() == {DAY}
    assert "line 5: a quote opens there" in failed[DAY]
    assert loader.orders() == []


def test_text_after_a_closing_quote_is_malformed(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY, region='"x"y'), order_row("B", DAY)])
    loader.ingest(DAY)
    assert loader.orders() == [("B",)]
    assert loader.rejected() == [(2, "malformed_row", None)]


def test_a_line_over_the_limit_is_malformed_and_the_next_ones_are_read(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    long, longest = "x" * 1_900_000, "x" * 2_100_000
    rows = [order_row("A", DAY, region=long), order_row("B", DAY, region=longest)]
    write_export(DAY, [*rows, order_row("C", DAY), order_row("D", DAY, status="lost")])
    assert loader.ingest(DAY).raw.failed == {}
    assert loader.orders("order_id, length(region)") == [("A", 1_900_000), ("C", 5)]
    assert loader.rejected() == [(3, "malformed_row", None), (5, "unknown_status", "status")]


def test_nul_bytes_are_characters_like_any_other(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(
        DAY,
        [
            order_row("A", DAY, region="x\0y"),
            order_row("B", DAY, order_value_gbp="1\x000"),
            order_row("C", DAY),
        ],
    )
    assert loader.ingest(DAY).raw.failed == {}
    assert loader.orders("order_id, region") == [("A", "x\0y"), ("C", "North")]
    assert loader.rejected() == [(3, *NUMBER)]
    ((raw_text,),) = loader.rejected("raw_text")
    assert json.loads(raw_text)["order_value_gbp"] == "1\x000"


def test_bytes_that_are_not_utf8_reject_their_row_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    rows = [order_row("A", DAY), order_row("B", DAY, region="Orléans"), order_row("C", DAY)]
    rows += [order_row("D", DAY, region='"Orl\néans"'), order_row("E", DAY, status="lost")]
    write_export(DAY, "".join(f"{row}\n" for row in (HEADER, *rows)).encode("latin-1"))
    assert loader.ingest(DAY).raw.failed == {}
    assert loader.orders() == [("A",), ("C",)]
    assert loader.rejected() == [
        (3, "not_utf8", None),
        (5, "not_utf8", None),
        (6, "unknown_status", "status"),
    ]
    assert loader.rejected("raw_text")[0][0].startswith("B,C1,P1,Orl")


def test_a_rejected_row_keeps_its_fields_as_they_were(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(
        DAY,
        [
            order_row(" A ", DAY, region='"a ""b"", c"', status="Lost ", order_value_gbp="1e3")
            + ",n"
        ],
        header=f"{HEADER},note",
    )
    loader.ingest(DAY)
    ((raw_text,),) = loader.rejected("raw_text")
    assert json.loads(raw_text) == {
        "order_id": " A ",
        "customer_id": "C1",
        "product_id": "P1",
        "region": 'a "b", c',
        "status": "Lost ",
        "order_value_gbp": "1e3",
        "order_timestamp": "2026-10-20 09:30:00",
        "note": "n",
    }


def test_row_numbers_point_at_the_record(loader: ExportLoader, write_export: WriteExport) -> None:
    records = [
        "malformed",
        order_row("A", DAY),
        order_row("B", DAY, status="bad"),
        order_row("C", DAY, region='"two\n\nlines"'),
        "",
        order_row("D", DAY, status="bad"),
        "",
        "",
        "malformed",
        "malformed",
        order_row("E", DAY, region='"two\nlines"', status="bad"),
        order_row("F", DAY, status="bad"),
        "",
        "malformed",
        order_row("G", DAY),
        order_row("G", DAY),
        order_row("H", DAY, status="bad"),
    ]
    write_export(DAY, records)
    loader.ingest(DAY)
    assert loader.rejected(
        "row_number, reason, CASE WHEN raw_text[1] = '{' THEN raw_text ->> 'order_id' END"
    ) == [
        (2, "malformed_row", None),
        (4, "unknown_status", "B"),
        (6, "unknown_status", "D"),
        (7, "malformed_row", None),
        (8, "malformed_row", None),
        (9, "unknown_status", "E"),
        (10, "unknown_status", "F"),
        (11, "malformed_row", None),
        (12, "duplicate_order", "G"),
        (14, "unknown_status", "H"),
    ]
    # Of raw orders, the position among well-formed rows.
    assert loader.orders("order_id, row_number") == [("A", 1), ("C", 3), ("G", 8)]


def test_the_last_row_of_an_order_counts(loader: ExportLoader, write_export: WriteExport) -> None:
    write_export(
        DAY,
        [
            order_row("same", DAY),
            order_row("changed", DAY, order_value_gbp="1.00"),
            order_row("same", DAY),
            order_row("then bad", DAY),
            order_row("changed", DAY, order_value_gbp="2.00", status="returned"),
            order_row("then bad", DAY, order_value_gbp="x"),
            order_row(" changed ", DAY, order_value_gbp="3.00"),
        ],
    )
    loader.ingest(DAY)
    # A row that cannot be used does not take the place of one that can.
    assert loader.orders("order_id, order_value_gbp, row_number") == [
        ("same", Decimal("10.00"), 3),
        ("then bad", Decimal("10.00"), 4),
        ("changed", Decimal("3.00"), 7),
    ]
    assert loader.rejected() == [
        (2, "duplicate_order", "order_id"),
        (3, "duplicate_order", "order_id"),
        (6, "duplicate_order", "order_id"),
        (7, *NUMBER),
    ]


# The same file again, another in its place


def state(loader: ExportLoader) -> list[Any]:
    """All rows that outside data leave, without the times of commits."""
    return [
        loader.rows(f"SELECT * EXCLUDE ({without}) FROM {table} ORDER BY ALL")
        for table, without in (
            ("raw_orders", "source_file"),
            ("rejected_orders", "source_file"),
            ("export_files", "source_file, modified_ns, size_bytes, content_hash, ingested_at"),
            ("changed_days", "changed_at"),
            ("published_days", "published_at"),
            ("failed_days", "failed_at"),
        )
    ]


def snapshots(loader: ExportLoader) -> int:
    ((count,),) = loader.rows("SELECT count(*) FROM lake.snapshots()")
    return int(count)


def test_the_same_bytes_again_are_a_counted_no_op(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY), "malformed"])
    first = loader.ingest(DAY)
    before, commits = state(loader), snapshots(loader)
    again = loader.ingest(DAY)
    assert (first.unchanged, again.unchanged) == ((), (DAY,))
    assert (again.raw.rows, again.rejected.rows) == ({DAY: 1}, {DAY: 1})
    assert state(loader) == before
    assert snapshots(loader) == commits


def test_a_new_time_or_name_of_the_same_bytes_is_noted_and_changes_no_rows(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY)])
    loader.ingest(DAY)
    before = state(loader)
    os.utime(path, ns=(1, 1_700_000_000_000_000_000))
    assert loader.ingest(DAY).unchanged == (DAY,)
    assert state(loader) == before
    assert loader.rows("SELECT modified_ns FROM export_files") == [(1_700_000_000_000_000_000,)]


def test_a_file_that_is_compressed_later_gives_the_same_rows(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY), "malformed"])
    loader.ingest(DAY)
    rows, rejected, versions = loader.orders(), loader.rejected(), loader.versions()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    loader.ingest(DAY)
    assert (loader.orders(), loader.rejected()) == (rows, rejected)
    assert loader.versions() == versions
    assert loader.rows("SELECT source_file FROM export_files") == [(path.name + ".gz",)]


def test_a_corrected_file_replaces_what_it_gave_and_concerns_only_the_days_that_differ(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = [DAY - n * A_DAY for n in range(7)]
    rows = [order_row(f"O{n}", day) for n, day in enumerate(days)]
    write_export(DAY, [*rows, "malformed"])
    loader.ingest(DAY)
    assert loader.versions() == dict.fromkeys(days, 1)
    corrected = [
        rows[0],
        order_row("O1", days[1], order_value_gbp="11.00"),
        rows[3],
        order_row("O4", days[5]),
        rows[5] + "",
        order_row("new", days[6]),
        rows[6],
    ]
    write_export(DAY, corrected)
    loader.ingest(DAY)
    assert {order_id for (order_id,) in loader.orders()} == {
        "O0", "O1", "O3", "O4", "O5", "O6", "new",
    }  # fmt: skip
    assert loader.rejected() == []
    changed = {
        days[1],  # another value
        days[2],  # gone
        days[4],  # moved from here
        days[5],  # moved to here
        days[6],  # one more
    }
    assert loader.versions() == {day: 2 if day in changed else 1 for day in days}


def test_a_file_whose_rows_are_only_in_another_order_changes_no_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    rows = [order_row("A", DAY), order_row("B", DAY - A_DAY), "malformed"]
    write_export(DAY, rows)
    loader.ingest(DAY)
    write_export(DAY, rows[::-1])
    assert loader.ingest(DAY).unchanged == ()
    assert loader.versions() == {DAY: 1, DAY - A_DAY: 1}
    assert loader.orders("order_id, row_number") == [("B", 1), ("A", 2)]


def test_a_change_in_a_later_export_concerns_the_days_of_all_versions_of_the_order(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    later = DAY + A_DAY
    write_export(DAY, [order_row("A", DAY - A_DAY), order_row("B", DAY)])
    loader.ingest(DAY)
    assert loader.versions() == {DAY - A_DAY: 1, DAY: 1}
    write_export(later, [order_row("A", later)])
    loader.ingest(later)
    assert loader.versions() == {DAY - A_DAY: 2, DAY: 1, later: 1}
    write_export(later, [])
    loader.ingest(later)
    assert loader.versions() == {DAY - A_DAY: 3, DAY: 1, later: 2}


def test_an_export_without_orders_still_counts_as_a_change_of_its_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [])
    loader.ingest(DAY)
    assert loader.versions() == {DAY: 1}
    assert ledger.published(loader.connection, tables.RAW_ORDERS, [DAY]) == {DAY: 0}


def test_a_spoiled_replacement_leaves_the_rows_of_the_good_one(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY)])
    loader.ingest(DAY)
    good, before = path.read_bytes(), state(loader)
    write_export(DAY, "nonsense\n")
    assert loader.ingest(DAY).raw.failed.keys() == {DAY}
    assert state(loader)[:-1] == before[:-1]
    assert ledger.failures(loader.connection, tables.RAW_ORDERS, [DAY]).keys() == {DAY}
    path.write_bytes(good)
    assert loader.ingest(DAY).unchanged == (DAY,)
    assert ledger.failures(loader.connection, tables.RAW_ORDERS, [DAY]) == {}
    assert state(loader) == before


def test_a_file_that_changes_while_it_is_read_is_not_ingested(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY)])
    write_export(DAY + A_DAY, [order_row("B", DAY)])

    def append(_: int) -> None:
        # Called when the files have been looked at, before they are read.
        if not loader.orders():
            write_export(DAY, [order_row("A", DAY), order_row("half", DAY)])

    ingested = ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        [DAY, DAY + A_DAY],
        late_days=7,
        progress=append,
    )
    assert "changed while it was read" in ingested.raw.failed[DAY]
    assert ingested.raw.rows == {DAY + A_DAY: 1}
    assert loader.orders() == [("B",)]
    loader.ingest(DAY)
    assert loader.orders() == [("A",), ("half",), ("B",)]


def test_an_order_of_implausible_value_fails_its_day_alone_and_by_name(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]
    for day, value in zip(days, ("1000.00", "9999999999.99", "1.00"), strict=True):
        write_export(day, [order_row("A", day), order_row("B", day, order_value_gbp=value)])

    def take(limit: float | None) -> ExportResult:
        return ingest(
            *(loader.lake, loader.connection, loader.exports_dir, days),
            late_days=7,
            max_order_gbp=limit,
        )

    ingested = take(1_000)
    assert ingested.raw.rows == {days[0]: 2, days[2]: 2}
    assert list(ingested.raw.failed) == [days[1]]
    assert (
        "order B is worth 9,999,999,999.99 GBP, more than RETAIL_MAX_ORDER_GBP (1,000.00)"
        in ingested.raw.failed[days[1]]
    )
    assert len(loader.orders()) == 4
    assert take(None).raw.rows[days[1]] == 2


def test_a_file_that_vanishes_before_it_is_read_fails_its_day_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY)])
    write_export(DAY + A_DAY, [order_row("B", DAY)])
    ingested = ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        [DAY, DAY + A_DAY],
        late_days=7,
        progress=lambda _: path.unlink(missing_ok=True),
    )
    assert ingested.raw.failed.keys() == {DAY}
    assert loader.orders() == [("B",)]


def test_two_who_ingest_the_same_new_file_at_once_leave_its_rows_once(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY), "malformed"])

    def be_faster(_: int) -> None:
        with loader.lake.connect() as other:
            ingest(loader.lake, other, loader.exports_dir, [DAY], late_days=7)

    ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        [DAY],
        late_days=7,
        progress=be_faster,
    )
    assert loader.orders() == [("A",)]
    assert loader.rejected() == [(3, "malformed_row", None)]
    assert loader.rows("SELECT rows_in FROM export_files") == [(2,)]
    assert loader.versions() == {DAY: 1}


# Many files


def test_one_bad_file_among_many_of_several_headers_fails_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = [DAY + n * A_DAY for n in range(9)]
    turned = ",".join(reversed(HEADER.split(",")))
    for n, day in enumerate(days):
        row = order_row(f"O{n}", day)
        reverse = ",".join(reversed(row.split(",")))
        match n % 3:
            case 0:
                write_export(day, [row, "malformed"], compressed=n % 2 == 0)
            case 1:
                write_export(day, [reverse], header=turned)
            case 2:
                write_export(day, [row + ",x"], header=HEADER + ",note")
    broken = write_export(days[0], [order_row("broken", days[0])], compressed=True)
    broken.write_bytes(broken.read_bytes()[:-9])
    mixed = f"{HEADER},note\r\n{order_row('mixed', days[2])},x\n"
    write_export(days[2], mixed)
    write_export(days[4], [order_row("other", days[4])], header="a,b,c")
    ingested = loader.ingest(*days, days[-1] + A_DAY)
    assert ingested.raw.failed.keys() == {days[0], days[4], days[-1] + A_DAY}
    assert ingested.raw.rows == dict.fromkeys(sorted(set(days) - {days[0], days[4]}), 1)
    assert [order_id for (order_id,) in loader.orders()] == [
        "O1", "mixed", "O3", "O5", "O6", "O7", "O8",
    ]  # fmt: skip
    assert loader.rejected("export_date, row_number") == [(days[3], 3), (days[6], 3)]
    again = loader.ingest(*days)
    assert again.unchanged == tuple(sorted(ingested.raw.rows))


def test_no_days_are_no_work(loader: ExportLoader) -> None:
    ingested = loader.ingest()
    assert (ingested.raw.rows, ingested.raw.failed, ingested.unchanged) == ({}, {}, ())


def test_progress_counts_the_days(loader: ExportLoader, write_export: WriteExport) -> None:
    days = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]
    for day in days[:2]:
        write_export(day, [])
    loader.ingest(days[0])
    seen: list[int] = []
    ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        days,
        late_days=7,
        progress=seen.append,
    )
    assert seen == sorted(seen)
    assert seen[-1] == len(days)


# Reconciliation


def independent_count(path: Path) -> tuple[int, Decimal]:
    """Records of an export, and the sum of what the well-formed ones say they are worth."""
    compressed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig", errors="replace"), newline=""))
    header = next(reader)
    rows = [fields for fields in reader if fields]
    well_formed = (
        dict(zip(header, fields, strict=True))
        for fields in rows
        if len(fields) == len(header) and "\ufffd" not in "".join(fields)
    )
    return len(rows), sum((money(row["order_value_gbp"]) for row in well_formed), Decimal(0))


def money(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except ArithmeticError:
        return Decimal(0)
    return value if value.is_finite() else Decimal(0)


def test_rows_in_are_raw_and_rejected_and_so_is_the_money(
    loader: ExportLoader, settings: Settings
) -> None:
    """On the committed sample, which has every kind of bad row."""
    shutil.copytree(SAMPLE, settings.exports_dir)
    paths = sorted(settings.exports_dir.iterdir())
    days = [date(*map(int, path.name.split(".")[0].split("_")[1:])) for path in paths]
    ingested = loader.ingest(*days)
    assert ingested.raw.failed == {}
    raw = {
        day: (count, total)
        for day, count, total in loader.rows(
            "SELECT export_date, count(*), sum(order_value_gbp) FROM raw_orders GROUP BY ALL"
        )
    }
    rejected = dict.fromkeys(days, (0, Decimal(0)))
    for day, reason, raw_text in loader.rejected("export_date, reason, raw_text"):
        well_formed = reason not in ("malformed_row", "not_utf8")
        value = money(json.loads(raw_text)["order_value_gbp"]) if well_formed else Decimal(0)
        rejected[day] = (rejected[day][0] + 1, rejected[day][1] + value)
    for day, path in zip(days, paths, strict=True):
        assert independent_count(path) == (
            raw[day][0] + rejected[day][0],
            raw[day][1] + rejected[day][1],
        ), path


def test_a_file_larger_than_memory_is_ingested_whole(lake: Lake, settings: Settings) -> None:
    count, bad_every, padding = 800_000, 1_000, "x" * 70
    row = order_row("O%d", DAY, order_value_gbp="%s")
    path = write_export_to(settings.exports_dir, DAY, b"")
    with path.open("w") as file:
        file.write(f"{HEADER},note\n")
        for n in range(count):
            value = "bad" if n % bad_every == 7 else f"{n + 1}.01"
            file.write(f"{row % (n, value)},{n}{padding}\n")
    # Each thread that writes Parquet holds a row group, about 123,000 rows, whatever the file.
    small = replace(lake, memory_limit="100MB", threads=1)
    assert path.stat().st_size > 105_000_000
    with small.connect() as connection:
        ingested = ingest(small, connection, settings.exports_dir, [DAY], late_days=7)
        assert ingested.raw.failed == {}
        bad = count // bad_every
        found = connection.execute(
            "SELECT count(*), count(DISTINCT order_id), sum(order_value_gbp),"
            " bool_and('O' || (row_number - 1) = order_id AND (extra ->> 'note') ="
            " (row_number - 1) || ?) FROM raw_orders",
            [padding],
        ).fetchone()
        good = [n for n in range(count) if n % bad_every != 7]
        total = sum(n + 1 for n in good) + Decimal("0.01") * len(good)
        assert found == (count - bad, count - bad, total, True)
        assert connection.execute(
            "SELECT count(*), bool_and('O' || (row_number - 2) = (raw_text ->> 'order_id'))"
            " FROM rejected_orders"
        ).fetchone() == (bad, True)


# Rows that mean more than one row says

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


def test_exports_with_lines_or_a_currency_are_ingested_again_after_the_upgrade(
    loader: ExportLoader, write_export: WriteExport, settings: Settings
) -> None:
    lines = [order_row("A", DAY, product_id=product) for product in ("P1", "P2")]
    extra = {DAY + A_DAY: "Line_Number", DAY + 2 * A_DAY: "currency", DAY + 3 * A_DAY: "note"}
    write_export(DAY, lines)
    for day, name in extra.items():
        write_export(day, [f"{order_row(name, day)},1"], header=f"{HEADER},{name}")
    loader.ingest(DAY, *extra)
    now = loader.orders("order_id, product_id, extra")
    # As the release before left it.
    execute = loader.connection.execute
    first = f"WHERE export_date = '{DAY}' AND line_number = 1"
    rejected = "export_date, 'unsupported_line_item', 'order_id', '', source_file, 2"
    execute(f"INSERT INTO rejected_orders SELECT {rejected} FROM raw_orders {first}")
    execute(f"DELETE FROM raw_orders {first}")
    for day, name in extra.items():
        execute(
            "INSERT INTO raw_orders BY NAME SELECT * REPLACE (?::DATE AS export_date, ? AS extra)"
            f" FROM raw_orders WHERE export_date = '{DAY}'",
            [day, f'{{"{name}": "1"}}'],
        )
    execute("ALTER TABLE lake.raw_orders DROP COLUMN line_number")
    with loader.lake.connect():
        pass
    assert pending_exports(settings).keys() == {DAY, DAY + A_DAY, DAY + 2 * A_DAY}
    loader.ingest(DAY, *list(extra)[:2])
    assert [row for row in loader.orders("order_id, product_id, extra") if row in now] == now
    assert pending_exports(settings) == {}


def test_an_amount_in_another_currency_is_not_counted_as_pounds(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    texts = ("GBP", " gbp ", "", "USD", "€", "1")
    rows = [f"{order_row(f'O{n}', DAY)},{text}" for n, text in enumerate(texts)]
    write_export(DAY, rows, header=f"{HEADER},Currency")
    loader.ingest(DAY)
    assert loader.orders("order_id, extra ->> 'currency'") == [
        ("O0", "GBP"),
        ("O1", " gbp "),
        ("O2", None),
    ]
    assert loader.rejected() == [(n, "unknown_currency", "currency") for n in (5, 6, 7)]


def test_ids_that_a_spreadsheet_has_shortened_are_not_one_order(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("1.23457E+15", DAY), order_row("1.23457E+15", DAY)])
    loader.ingest(DAY)
    assert loader.rejected() == [(n, "mangled_order_id", "order_id") for n in (2, 3)]


# Settings and rules that change


def test_an_export_is_ingested_again_when_a_setting_that_concerns_it_has_changed(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    lag = {"within": 1, "late": 5, "too late": 9}
    for n, days_late in enumerate(lag.values()):
        day = DAY + n * A_DAY
        write_export(day, [order_row(f"O{n}", day - days_late * A_DAY), order_row(f"P{n}", day)])
    days = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]

    def ingested_again(late_days: int) -> set[date]:
        ingested = loader.ingest(*days, late_days=late_days)
        assert ingested.raw.failed == {}
        return set(days) - set(ingested.unchanged)

    assert ingested_again(7) == set(days)
    assert loader.rows("SELECT late_days, max_days_late FROM export_files ORDER BY ALL") == [
        (7, 1), (7, 5), (7, 9),
    ]  # fmt: skip
    assert ingested_again(7) == set()
    assert ingested_again(9) == {days[2]}
    assert loader.rejected() == []
    assert ingested_again(5) == {days[2]}
    assert loader.rejected("export_date, reason") == [(days[2], "too_late")]
    assert ingested_again(4) == {days[1], days[2]}
    assert ingested_again(20) == {days[1], days[2]}
    loader.connection.execute(
        "UPDATE export_files SET timezone = 'UTC' WHERE export_date = ?", [DAY]
    )
    assert ingested_again(20) == {DAY}
    loader.connection.execute("UPDATE export_files SET rules_version = 1")
    assert ingested_again(20) == set(days)


def test_entries_of_before_the_settings_were_recorded_are_concerned_if_they_may_be(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY)])
    write_export(DAY + A_DAY, [order_row("B", DAY), "malformed"])
    forgotten = (
        "UPDATE export_files SET late_days = NULL, max_days_late = NULL, rules_version = NULL,"
        " timezone = NULL"
    )
    days = (DAY, DAY + A_DAY)
    loader.ingest(*days)
    loader.connection.execute(forgotten)
    assert loader.ingest(*days).unchanged == (DAY,)
    loader.connection.execute(forgotten)
    assert loader.ingest(*days, late_days=8).unchanged == ()
    assert loader.ingest(*days, late_days=8).unchanged == days


def test_a_lake_that_nobody_has_written_to_since_can_be_asked_what_is_pending(
    loader: ExportLoader, write_export: WriteExport, settings: Settings
) -> None:
    write_export(DAY, [order_row("A", DAY)])
    loader.ingest(DAY)
    for column in ("rules_version", "timezone", "late_days", "max_days_late"):
        loader.connection.execute(f"ALTER TABLE lake.export_files DROP COLUMN {column}")
    assert pending_exports(settings) == {}
    assert pending_exports(settings.model_copy(update={"late_days": 8})).keys() == {DAY}
