"""Rows of `daily_revenue`, which has a day, a key, measures and a feed: a table to publish."""

from collections.abc import Collection, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from retail_assets import tables
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import Publication, publish_days

FIRST, SECOND, THIRD = date(2026, 10, 5), date(2026, 10, 6), date(2026, 10, 7)

Row = tuple[date | None, str | None, str]

SCHEMA = pa.schema(
    {
        "order_date": pa.date32(),
        "region": pa.string(),
        "total_revenue": pa.decimal128(18, 2),
        "order_count": pa.int64(),
        "avg_order_value": pa.decimal128(12, 2),
    }
)


def revenue(rows: Sequence[Row]) -> pa.Table:
    """A table of one order for each (day, region, revenue)."""
    return pa.table(
        {
            "order_date": [day for day, _, _ in rows],
            "region": [region for _, region, _ in rows],
            "total_revenue": [Decimal(value) for _, _, value in rows],
            "order_count": [1] * len(rows),
            "avg_order_value": [Decimal(value) for _, _, value in rows],
        },
        schema=SCHEMA,
    )


def publish(lake: Lake, frame: Any, days: Collection[date], **options: Any) -> Publication:
    """Publish days of `daily_revenue` from a frame or from (day, region, revenue)."""
    rows = revenue(frame) if isinstance(frame, list) else frame
    with lake.connect() as connection:
        return publish_days(lake, connection, tables.DAILY_REVENUE, rows, days, **options)


def read(lake: Lake, at: int | datetime | None = None) -> list[tuple[date, str, Decimal]]:
    """What `daily_revenue` has: (day, region, revenue), in order."""
    with lake.connect(read_only=True, at=at) as connection:
        return rows_of(connection)


def rows_of(connection: duckdb.DuckDBPyConnection) -> list[tuple[date, str, Decimal]]:
    """What a connection sees of `daily_revenue`: (day, region, revenue), in order."""
    return connection.execute(
        "SELECT order_date, region, total_revenue FROM daily_revenue ORDER BY ALL"
    ).fetchall()


Ledger = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


def ledger_of(lake: Lake) -> Ledger:
    """See `entries_of`."""
    with lake.connect(read_only=True) as connection:
        return entries_of(connection)


def entries_of(connection: duckdb.DuckDBPyConnection) -> Ledger:
    """The published days as (day, rows, version), and the failed ones as (day, problem)."""
    return (
        connection.execute(
            "SELECT day, row_count, version FROM published_days ORDER BY ALL"
        ).fetchall(),
        connection.execute("SELECT day, problem FROM failed_days ORDER BY ALL").fetchall(),
    )
