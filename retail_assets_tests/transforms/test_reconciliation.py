"""What must add up: exports, event files, streams, and the stream with the batch."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from retail_assets import tables
from retail_assets.transforms import reconciliation
from retail_assets_tests.transforms.conftest import Engine, Rows, arrow, result

DAY = date(2026, 10, 20)
AT = datetime(2026, 10, 20, 12, tzinfo=timezone.utc)


def frames(engine: Engine, *tables_and_rows: tuple[tables.Table, Rows]) -> list[Any]:
    return [engine(arrow(table, rows)) for table, rows in tables_and_rows]


@pytest.mark.parametrize(
    ("raw", "rejected", "adds_up"), [(2, 1, True), (2, 0, False), (3, 1, False), (0, 0, False)]
)
def test_rows_of_an_export_are_raw_or_rejected(
    engine: Engine, raw: int, rejected: int, adds_up: bool
) -> None:
    found = reconciliation.export_rows(
        *frames(
            engine,
            (tables.EXPORT_FILES, [{"export_date": DAY, "rows_in": 3}]),
            (tables.RAW_ORDERS, [{"export_date": DAY}] * raw),
            (tables.REJECTED_ORDERS, [{"export_date": DAY}] * rejected),
        )
    )
    assert result(found) == [
        {
            "export_date": DAY,
            "rows_in": 3,
            "raw": raw,
            "rejected": rejected,
            "adds_up": adds_up,
        }
    ]


@pytest.mark.parametrize(
    ("before", "count", "unusual"),
    [
        ([], 900, {}),
        ([10, 10], 15, {}),
        ([10, 10], 16, {DAY: 10.0}),
        ([10, 10], 4, {DAY: 10.0}),
        ([100, 100, 100, 100, 1], 100, {}),
        ([4, 4, 4, 4, 90], 4, {}),
    ],
    ids=["the first", "half as many", "more", "fewer", "usual", "five weeks ago"],
)
def test_a_day_is_unusual_by_its_weekday_of_four_weeks(
    before: list[int], count: int, unusual: dict[date, float]
) -> None:
    orders = {DAY - timedelta(weeks=n): orders for n, orders in enumerate(before, start=1)}
    found = reconciliation.unusual_days({**orders, DAY: count})
    assert {day: usual for day, usual in found.items() if day == DAY} == unusual


def lines(source: str, name: str, *, raw: int, accepted: int, dead: int) -> list[Any]:
    row = {"source": source, "source_name": name, "version": 1}
    return [
        (tables.RAW_EVENTS, [row] * raw),
        (tables.ENRICHED_EVENTS, [row] * accepted),
        (tables.DEAD_LETTER_EVENTS, [row] * dead),
    ]


@pytest.mark.parametrize(
    ("ledger", "raw", "accepted", "dead", "adds_up"),
    [
        ({}, 6, 3, 2, True),
        ({}, 5, 3, 2, False),
        ({}, 6, 2, 2, False),
        ({}, 6, 3, 3, False),
        ({"duplicate": 2}, 6, 3, 2, False),
        ({"retracted_at": AT}, 6, 0, 0, True),
        ({"retracted_at": AT}, 6, 3, 0, False),
        ({"copy_of": "b"}, 0, 0, 0, True),
        ({}, 0, 0, 0, False),
    ],
)
def test_lines_of_a_file_are_events_dead_letters_or_duplicates(
    engine: Engine, ledger: dict[str, Any], raw: int, accepted: int, dead: int, adds_up: bool
) -> None:
    entry = {"path": "a", "version": 1, "lines": 6, "accepted": 3, "dead_lettered": 2}
    found = reconciliation.file_lines(
        *frames(
            engine,
            (tables.EVENT_FILES, [{**entry, "duplicate": 1, **ledger}]),
            *lines("file", "a", raw=raw, accepted=accepted, dead=dead),
        )
    )
    assert result(found) == [{**entry, "adds_up": adds_up}]


def test_an_entry_without_lines_is_no_version_of_a_file(engine: Engine) -> None:
    entry = {"path": "a", "version": 0, "lines": 6, "accepted": 0, "dead_lettered": 0}
    found = reconciliation.file_lines(
        *frames(
            engine,
            (tables.EVENT_FILES, [{**entry, "duplicate": 0}]),
            *lines("kafka", "a", raw=1, accepted=1, dead=0),
        )
    )
    assert result(found) == []


@pytest.mark.parametrize(
    ("source", "entries", "expected"),
    [
        ("kafka", [(4, 1, 1, 2), (2, 1, 1, 0)], [("kafka", "t:0", 6, True)]),
        ("kafka", [(4, 1, 1, 2)], [("kafka", "t:0", 4, False)]),
        ("kafka", [(6, 3, 1, 2)], [("kafka", "t:0", 6, False)]),
        ("kafka", [(6, 2, 2, 2), (0, 0, 1, -1)], [("kafka", "t:0", 6, False)]),
        ("kafka", [(6, 2, 2, 1)], [("kafka", "t:0", 6, False)]),
        ("webhook", [], [("webhook", "t:0", 0, False)]),
        ("file", [], []),
        ("redrive", [], []),
    ],
)
def test_lines_of_a_stream_are_events_dead_letters_or_duplicates(
    engine: Engine,
    source: str,
    entries: list[tuple[int, int, int, int]],
    expected: list[tuple[str, str, int, bool]],
) -> None:
    ledger = [
        {
            "kind": "source",
            "name": source,
            "part": "t:0",
            "lines": lines,
            "accepted": accepted,
            "dead_lettered": dead,
            "duplicate": duplicate,
        }
        for lines, accepted, dead, duplicate in entries
    ]
    consumer = {"kind": "consumer", "name": "fraud", "part": "", "lines": 0}
    found = reconciliation.stream_lines(
        *frames(
            engine,
            (tables.STREAM_OFFSETS, [*ledger, consumer]),
            *lines(source, "t:0", raw=6, accepted=2, dead=2),
        )
    )
    assert [tuple(row.values()) for row in result(found)] == expected


def sums(table: tables.Table, *regions: tuple[str, str]) -> tuple[tables.Table, Rows]:
    return table, [
        {"order_date": DAY, "region": region, "total_revenue": Decimal(value)}
        for region, value in regions
    ]


@pytest.mark.parametrize(
    ("live", "batch", "expected"),
    [
        ([("North", "1.10")], [("North", "1.10")], []),
        ([("North", "1.10")], [("North", "1.00")], ["0.10"]),
        ([("North", "1.00")], [("North", "1.00"), ("South", "2.00")], ["-2.00"]),
        ([("North", "2.00"), ("South", "1.00")], [("North", "1.00"), ("South", "2.00")], ["0.00"]),
        ([("North", "1.00")], [], ["1.00"]),
    ],
)
def test_stream_and_batch_differ_where_a_region_does(
    engine: Engine,
    live: list[tuple[str, str]],
    batch: list[tuple[str, str]],
    expected: list[str],
) -> None:
    found = reconciliation.revenue_differences(
        *frames(engine, sums(tables.LIVE_REVENUE, *live), sums(tables.DAILY_REVENUE, *batch))
    )
    assert [tuple(row.values()) for row in result(found)] == [
        (DAY, Decimal(value)) for value in expected
    ]


def test_orders_differ_by_value_or_region_or_where_one_is_missing(engine: Engine) -> None:
    def orders(table: tables.Table, *rows: tuple[str, str, str]) -> tuple[tables.Table, Rows]:
        names = ("order_id", "region", "order_value_gbp")
        return table, [
            {"order_date": DAY, **dict(zip(names, (*row[:2], Decimal(row[2])), strict=True))}
            for row in rows
        ]

    found = reconciliation.order_differences(
        *frames(
            engine,
            orders(tables.LIVE_ORDERS, ("A", "N", "1.00"), ("B", "N", "2.00"), ("C", "N", "3.00")),
            orders(
                tables.COMPLETED_ORDERS,
                # Two lines of an order.
                *(("A", "N", "0.40"), ("A", "N", "0.60")),
                ("B", "N", "2.50"),
                ("C", "S", "3.00"),
            ),
        )
    )
    three = Decimal("3.00")
    assert [tuple(row.values()) for row in result(found)] == [
        (DAY, "B", "N", Decimal("2.00"), Decimal("2.50")),
        (DAY, "C", "N", three, None),
        (DAY, "C", "S", None, three),
    ]
