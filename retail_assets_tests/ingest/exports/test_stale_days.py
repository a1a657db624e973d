"""Every accepted order is in a day's revenue or waits for a known reason, whatever arrives when."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import narwhals as nw
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets import tables
from retail_assets.ingest.exports import rejects
from retail_assets.ingest.exports import stale_days as stale
from retail_assets.ingest.exports.load import ingest
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_days
from retail_assets.settings import Settings
from retail_assets.transforms import orders, revenue
from retail_assets_tests.conftest import NewLake, WriteExport, examples, order_row, write_export_to
from retail_assets_tests.ingest.exports.test_properties import (
    A_DAY,
    DAY,
    DAYS,
    LATE_DAYS,
    NO_SHRINKING,
    lines,
    product,
    small_exports,
)

START = DAY - A_DAY
"""The first partition: orders of two days back, as late as can be, may lie before it."""


class Shop:
    """A lake with its exports; ingests and restates as the jobs do, without Dagster."""

    def __init__(self, lake: Lake, connection: duckdb.DuckDBPyConnection, settings: Settings):
        self.lake, self.connection, self.settings = lake, connection, settings

    def export(self, day: date, rows: Sequence[Any]) -> None:
        write_export_to(self.settings.exports_dir, day, lines(day, rows))

    def ingest(self, days: Collection[date]) -> None:
        folder = self.settings.exports_dir
        ingest(self.lake, self.connection, folder, days, late_days=LATE_DAYS)

    def restate(self) -> None:
        """Publish every day that is behind, table by table."""
        days = list(stale.stale_days(self.settings))
        raw, completed, *reference = (
            nw.from_native(self.connection.table(f"lake.{name}"))
            for name in ("raw_orders", "completed_orders", "products", "customers")
        )
        for table, frame, sources in (
            (tables.COMPLETED_ORDERS, orders.completed_orders(raw, *reference), ()),
            (tables.DAILY_REVENUE, revenue.daily_revenue(completed), (tables.COMPLETED_ORDERS,)),
            (
                tables.DAILY_REVENUE_BY_CATEGORY,
                revenue.daily_revenue_by_category(completed),
                (tables.COMPLETED_ORDERS,),
            ),
        ):
            publish_days(
                self.lake, self.connection, table, frame, days, only_days=True, sources=sources
            )

    def published(self) -> tuple[int, Decimal]:
        return self.one(
            "SELECT coalesce(sum(order_count), 0)::BIGINT, coalesce(sum(total_revenue),"
            " 0) FROM daily_revenue"
        )

    def waiting(self, **options: Any) -> list[stale.Waiting]:
        return stale.waiting_orders(self.connection, self.settings, **options)

    def tables(self) -> list[list[tuple[Any, ...]]]:
        return [
            self.connection.execute(
                f"SELECT * EXCLUDE ({left_out}) FROM {name} ORDER BY ALL"
            ).fetchall()
            for name, left_out in (
                ("completed_orders", "export_date"),
                ("daily_revenue", "avg_order_value"),
                ("daily_revenue_by_category", "avg_order_value"),
            )
        ]

    def one(self, sql: str) -> Any:
        return self.connection.execute(sql).fetchone()


@contextmanager
def open_shop(new_lake: NewLake) -> Iterator[Shop]:
    with tempfile.TemporaryDirectory() as folder:
        # Tables this small take longer with more threads.
        lake = replace(new_lake(Path(folder)), threads=1)
        settings = Settings(data_dir=Path(folder), start_date=START, late_days=LATE_DAYS, threads=1)
        with lake.connect() as connection:
            yield Shop(lake, connection, settings)


def accepted(exports: dict[int, Sequence[Any]]) -> list[tuple[str, date, Decimal]]:
    """The lines that count, in plain Python: order, day and value of the latest version."""
    latest: dict[str, dict[Any, tuple[date, Decimal, str]]] = {}
    for number in sorted(exports):
        usable = [
            (order, DAYS[number] - back * A_DAY, Decimal(value), status)
            for order, back, value, status in exports[number]
            if back <= LATE_DAYS and Decimal(value) > 0 and status != "lost"
        ]
        products = {(order, product(str(value))) for order, _, value, _ in usable}
        several = [
            order for order, _ in products if len({p for o, p in products if o == order}) > 1
        ]
        for order in {order for order, *_ in usable}:
            latest[order] = {}
        for order, day, value, status in usable:
            latest[order][value if order in several else None] = (day, value, status)
    return [
        (order, day, value)
        for order, kept in latest.items()
        for day, value, status in kept.values()
        if status == "completed"
    ]


arrivals = st.lists(st.tuples(st.integers(0, len(DAYS) - 1), small_exports), min_size=1, max_size=4)


@hypothesis_settings(max_examples=examples(2), phases=NO_SHRINKING)
@given(versions=arrivals, restated=st.lists(st.booleans(), min_size=4, max_size=4))
@example(
    versions=[(2, [("A", 2, "1.00", "completed"), ("B", 1, "2.50", "completed")])], restated=[True]
)
@example(
    versions=[
        (1, [("A", 2, "1.00", "completed")]),
        (2, [("A", 1, "3.00", "completed")]),
        (0, [("B", 2, "5.00", "completed"), ("C", 3, "5.00", "completed")]),
        (1, []),
    ],
    restated=[True, False, True, False],
)
def test_what_is_published_and_what_waits_is_what_was_accepted_at_every_step(
    new_lake: NewLake, versions: list[tuple[int, Any]], restated: list[bool]
) -> None:
    """Files come in any order, corrected and with gaps; not every arrival is restated at once."""
    with open_shop(new_lake) as shop:
        exports: dict[int, Sequence[Any]] = {}
        for (number, rows), restates in zip(versions, restated, strict=False):
            exports[number] = rows
            shop.export(DAYS[number], rows)
            shop.ingest([DAYS[number]])
            if restates:
                shop.restate()
            counting = accepted(exports)
            orders_of_days = {(order, day) for order, day, _ in counting}
            count, value = shop.published()
            waiting = shop.waiting()
            assert waiting == shop.waiting(all_days=True), "the ledger knows all days that differ"
            assert count + sum(each.orders for each in waiting) == len(orders_of_days)
            assert value + sum(each.value_gbp for each in waiting) == sum(v for *_, v in counting)
        shop.restate()
        left = {each.day: (each.reason, each.orders, each.value_gbp) for each in shop.waiting()}
        early = [(order, day, v) for order, day, v in counting if day < START]
        assert left == {
            day: (
                "before_start",
                len({order for order, d, _ in early if d == day}),
                sum((v for _, d, v in early if d == day), Decimal(0)),
            )
            for _, day, _ in early
        }
        final = shop.tables()
    # The same files as they are in the end, all at once.
    with open_shop(new_lake) as shop:
        for number, rows in exports.items():
            shop.export(DAYS[number], rows)
        shop.ingest([DAYS[number] for number in exports])
        shop.restate()
        assert shop.tables() == final


def test_a_day_that_failed_waits_by_name_and_one_with_a_fault_is_unexplained(
    new_lake: NewLake,
) -> None:
    with open_shop(new_lake) as shop:
        shop.export(DAY, [("A", 0, "1.00", "completed"), ("B", 1, "2.00", "completed")])
        shop.ingest([DAY])
        assert [(each.day, each.reason) for each in shop.waiting()] == [
            (START, "behind"),
            (DAY, "behind"),
        ]
        ledger.mark_failed(shop.connection, tables.DAILY_REVENUE, {DAY: "broken"})
        assert stale.Waiting(DAY, "failed", 1, Decimal("1.00")) in shop.waiting()
        texts = stale.advice(shop.waiting())
        assert len(texts) == 2
        assert f"in no revenue (failed): 1, worth 1.00 GBP, of {DAY}; their day" in texts[0]
        assert f"`retail-assets backfill --start {DAY} --end {DAY}`" in texts[0]
        shop.restate()
        assert shop.waiting(all_days=True) == []
        shop.connection.execute(
            f"UPDATE lake.daily_revenue SET total_revenue = 0.99 WHERE order_date = DATE '{DAY}'"
        )
        assert shop.waiting() == [], "only what changed is read"
        found = [stale.Waiting(DAY, "unexplained", 0, Decimal("0.01"))]
        assert shop.waiting(days=[DAY]) == shop.waiting(all_days=True) == found


def test_days_that_have_orders_only_from_other_exports_are_published_and_named(
    new_lake: NewLake,
) -> None:
    with open_shop(new_lake) as shop:
        shop.export(DAY, [("A", 0, "1.00", "completed"), ("B", 1, "2.00", "completed")])
        shop.ingest([DAY])
        shop.restate()
        assert shop.published() == (2, Decimal("3.00"))
        text = stale.days_without_export(shop.connection) or ""
        assert text.startswith(f"Days without an export of their own: {START}; ")
        assert text.endswith("published: 1.")
        # The stream has the whole day, late orders are a part of it.
        now = "SELECT order_date, total_revenue, source FROM revenue_now ORDER BY ALL"
        assert shop.connection.execute(now).fetchall() == [
            (START, Decimal("2.00"), "batch"),
            (DAY, Decimal("1.00"), "batch"),
        ]
        shop.connection.execute(
            f"INSERT INTO lake.live_revenue VALUES (DATE '{START}', 'North', 9, 1, 9),"
            f" (DATE '{DAY}', 'North', 9, 1, 9)"
        )
        assert shop.connection.execute(now).fetchall() == [
            (START, Decimal("9.00"), "stream"),
            (DAY, Decimal("1.00"), "batch"),
        ]


def test_rejects_are_told_with_field_example_line_and_what_to_do(
    settings: Settings, lake: Lake, write_export: WriteExport
) -> None:
    bad = [order_row(f"B{n}", DAY, status="lost", region='"two\nlines"') for n in range(3)]
    late_day = DAY - timedelta(days=30)
    late = [order_row("L", late_day)]
    write_export(DAY, [*bad, *late, "too,few", order_row("G", DAY)])
    write_export(DAY + A_DAY, [order_row(f"G{n}", DAY + A_DAY) for n in range(4)] + ["too,few"])
    with lake.connect() as connection:
        folder = settings.exports_dir
        ingest(lake, connection, folder, [DAY, DAY + A_DAY], late_days=7)
        assert rejects.counts(connection) == {
            "unknown_status": 3,
            "malformed_row": 2,
            "too_late": 1,
        }
        assert rejects.counts(connection, DAY + A_DAY, DAY + A_DAY) == {"malformed_row": 1}
        (found,) = rejects.days_above(connection, 0.2)
        assert found.summary() == (
            f"{DAY}: 5 of 6 rows (83%) were rejected, most of all 3 unknown_status,"
            " 1 malformed_row, 1 too_late"
        )
        name = f"orders_{DAY:%Y_%m_%d}.csv"
        details = [text.split(": ")[0] for text in found.details(folder)]
        assert details == [
            f"3 unknown_status in status, for example 'lost', line 2 of {name}",
            f"1 malformed_row, for example 'too,few', line 9 of {name}",
            f"1 too_late in order_timestamp, for example '{late_day} 09:30:00', line 8 of {name}",
        ]
        (folder / name).unlink()
        assert f"record 2 of {name}" in found.details(folder)[0]
        assert len(rejects.days_above(connection, 0.19)) == 2
        assert rejects.days_above(connection, 0.19, DAY + A_DAY, DAY + A_DAY)[0].rejected == 1
        text = rejects.too_late(connection, 7) or ""
        assert "in no revenue because they were too_late: 1; their day lay" in text
        assert "set RETAIL_LATE_DAYS=30 and run" in text
        assert f"backfill --start {DAY} --end {DAY} --all`" in text
        assert "To count them run" in (rejects.too_late(connection, 30) or "")
        assert rejects.too_late(connection, 7, DAY + A_DAY, DAY + A_DAY) is None
