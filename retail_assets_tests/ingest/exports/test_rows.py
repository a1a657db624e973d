"""What becomes of the rows of an export: orders, or rejected with a reason."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from retail_assets.ingest.exports.load import ingest
from retail_assets_tests.conftest import HEADER, NewLake, WriteExport, order_row, write_export_to
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)

NUMBER = ("invalid_number", "order_value_gbp")
TIME = ("invalid_timestamp", "order_timestamp")
NOT_POSITIVE = ("not_positive", "order_value_gbp")
UNKNOWN = ("unknown_status", "status")


@dataclass(frozen=True)
class Texts:
    """Texts of a column in the export of a day: each becomes a typed value, or (reason, field)."""

    day: date
    column: str
    become: Mapping[str, Any]


TEXTS = {
    "values are plain numbers with at most two decimals": Texts(
        DAY - 3 * A_DAY, "order_value_gbp", {
            "1": Decimal("1.00"), "1.5": Decimal("1.50"), "1.50": Decimal("1.50"),
            "1.500": Decimal("1.50"), "+2.25": Decimal("2.25"), "007": Decimal("7.00"),
            " 3.10 ": Decimal("3.10"), "0.01": Decimal("0.01"),
            "9999999999.99": Decimal("9999999999.99"),
            "1.505": NUMBER, "1.001": NUMBER, "0.001": NUMBER, "-1.999": NUMBER,
            "NaN": NUMBER, "nan": NUMBER, "Infinity": NUMBER, "-inf": NUMBER, "1e400": NUMBER,
            "1e3": NUMBER, "£5": NUMBER, "$5": NUMBER, "1,000": NUMBER, "1_000": NUMBER,
            "1 000": NUMBER, "0x10": NUMBER, "ten": NUMBER, "1.": NUMBER, ".5": NUMBER,
            "--1": NUMBER,
            "\uff11\uff12": NUMBER, "\u0663": NUMBER, "10000000000": NUMBER,
            "99999999999999999999.00": NUMBER,
            "1\n2": NUMBER, "5;": NUMBER, "NULL": NUMBER, "true": NUMBER,
        },
    ),
    "zero and negative values are rejected": Texts(
        DAY - 2 * A_DAY, "order_value_gbp", dict.fromkeys(
            ("0", "0.00", "-0", "+0.0", "000", "-0.01", "-5", "-9999999999.99"), NOT_POSITIVE
        ),
    ),
    "timestamps are ISO 8601, in the business time zone where they have an offset": Texts(
        DAY, "order_timestamp", {
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
            }),
    "the day that has 25 hours is an ordinary day": Texts(
        date(2026, 10, 25), "order_timestamp", {
            "2026-10-24T23:00:00Z": "2026-10-25 00:00:00",
            "2026-10-25T00:30:00Z": "2026-10-25 01:30:00",
            "2026-10-25T01:30:00Z": "2026-10-25 01:30:00",
            "2026-10-25 01:30:00": "2026-10-25 01:30:00",
            "2026-10-25T23:59:59Z": "2026-10-25 23:59:59",
            "2026-10-26T00:00:00Z": ("future_order", "order_timestamp"),
            "2026-10-26T00:59:59+01:00": "2026-10-25 23:59:59",
        },
    ),
    "the day that has 23 hours is an ordinary day": Texts(
        date(2026, 3, 29), "order_timestamp", {
            "2026-03-28T23:59:59Z": "2026-03-28 23:59:59",
            "2026-03-29T00:59:59Z": "2026-03-29 00:59:59",
            "2026-03-29T01:00:00Z": "2026-03-29 02:00:00",
            # No clock showed it; the wall-clock time of an export is taken as it is.
            "2026-03-29 01:30:00": "2026-03-29 01:30:00",
            "2026-03-29T22:59:59Z": "2026-03-29 23:59:59",
            "2026-03-29T23:00:00Z": ("future_order", "order_timestamp"),
        },
    ),
    "blanks around text do not matter": Texts(
        DAY - A_DAY, "region", {
            "North": "North", " North ": "North", "\tNorth": "North", "North\t": "North",
            "\u00a0North\u00a0": "North", "North\r": "North", "\nNorth\n": "North",
            "\u00a0 \t North \t\u00a0": "North",
            "North  West": "North  West", "a\tb": "a\tb",
            "Ñandú 日本": "Ñandú 日本", "'": "'", '"': '"', "\\": "\\", "NULL": "NULL",
            "a\x1fb": "a\x1fb",
        },
    ),
    "a status may be in any letter case and any other is rejected": Texts(
        DAY + A_DAY, "status", {
            "completed": "completed", "COMPLETED": "completed", " Completed\t": "completed",
            "pending": "pending", "Cancelled": "cancelled", "RETURNED": "returned",
            "\u00a0refunded\u00a0": "refunded",
            "complete": UNKNOWN, "shipped": UNKNOWN, "canceled": UNKNOWN, "null": UNKNOWN,
            "completed.": UNKNOWN, "com pleted": UNKNOWN, "unknown": UNKNOWN,
        },
    ),
}  # fmt: skip
"""What must hold of the texts of a column. All are ingested at once."""


@pytest.fixture(scope="module")
def became(new_lake: NewLake, tmp_path_factory: pytest.TempPathFactory) -> Mapping[date, list[Any]]:
    """What became of each row of the exports with `TEXTS`: its typed value, or (reason, field)."""
    folder = tmp_path_factory.mktemp("texts")
    for texts in TEXTS.values():
        quoted = ('"{}"'.format(text.replace('"', '""')) for text in texts.become)
        rows = [order_row(f"O{n}", texts.day, **{texts.column: t}) for n, t in enumerate(quoted)]
        write_export_to(folder / "exports", texts.day, rows)
    lake = new_lake(folder)
    with lake.connect() as connection:
        days = [texts.day for texts in TEXTS.values()]
        came = ingest(lake, connection, folder / "exports", days, late_days=7)
        assert came.raw.failed == {}
        found: dict[date, list[Any]] = {
            texts.day: [None] * len(texts.become) for texts in TEXTS.values()
        }
        for texts in TEXTS.values():
            for n, value in connection.execute(
                f"SELECT row_number - 1, {texts.column} FROM raw_orders WHERE export_date = ?",
                [texts.day],
            ).fetchall():
                found[texts.day][n] = str(value) if isinstance(value, datetime) else value
        for day, n, *said in connection.execute(
            "SELECT export_date, row_number - 2, reason, field FROM rejected_orders"
        ).fetchall():
            found[day][n] = tuple(said)
        assert connection.execute(
            "SELECT DISTINCT order_timestamp::DATE = order_date FROM raw_orders"
        ).fetchall() == [(True,)]
    return found


@pytest.mark.parametrize("rule", TEXTS)
def test_texts_of_a_column_become_what_its_rule_says(
    became: Mapping[date, list[Any]], rule: str
) -> None:
    texts = TEXTS[rule]
    assert dict(zip(texts.become, became[texts.day], strict=True)) == texts.become


# Blanks, faults, days


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
