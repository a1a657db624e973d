"""Rows of any table of the lake, said by the columns that matter to a test."""

from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from retail_assets import tables
from retail_assets.lake.connection import Lake

MONDAY = date(2026, 11, 30)
"""The day of these tests, a Monday in winter: the wall clock is UTC."""

NOW = datetime(2026, 11, 30, 10, 0, tzinfo=timezone.utc)


def week_before(weeks: int = 1) -> date:
    return MONDAY - timedelta(weeks=weeks)


def insert(lake: Lake, table: tables.Table, *rows: Mapping[str, Any]) -> None:
    """Insert rows; columns that a row does not name have any value of their type, or null."""
    with lake.connect() as connection, lake.transaction(connection, "a test's rows"):
        for row in rows:
            assert set(row) <= set(table.column_names), set(row) - set(table.column_names)
            values = [row.get(column.name, _any(column)) for column in table.columns]
            marks = ", ".join(f"?::{column.type}" for column in table.columns)
            connection.execute(f"INSERT INTO lake.{table.name} VALUES ({marks})", values)


def _any(column: tables.Column) -> Any:
    if column.nullable:
        return None
    return {
        "VARCHAR": "x",
        "BIGINT": 1,
        "DOUBLE": 0.5,
        "DATE": MONDAY,
        "BOOLEAN": False,
        "TIMESTAMP": datetime(2026, 11, 30, 9, 0),  # noqa: DTZ001  # the wall clock has no zone
        tables.INSTANT: NOW,
    }.get(column.type, Decimal(1))


def published(lake: Lake, *orders: tuple[date, str, str, str]) -> None:
    """Publish completed orders, each with its day, time, region and value, and their revenue.

    Their products are of the category Kitchen.
    """
    lines, totals = [], {}
    for number, (day, clock, region, value) in enumerate(orders):
        lines.append(
            {
                "order_date": day,
                "order_id": f"B{day:%m%d}-{number}",
                "line_number": 1,
                "order_timestamp": datetime.fromisoformat(f"{day}T{clock}"),
                "region": region,
                "order_value_gbp": Decimal(value),
                "product_name": "Kettle",
                "product_category": "Kitchen",
                "export_date": day,
            }
        )
        total = totals.setdefault((day, region), [Decimal(0), 0])
        total[0] += Decimal(value)
        total[1] += 1
    insert(lake, tables.COMPLETED_ORDERS, *lines)
    revenue = [
        {
            "order_date": day,
            "region": region,
            "total_revenue": total,
            "order_count": count,
            "avg_order_value": total / count,
        }
        for (day, region), (total, count) in totals.items()
    ]
    insert(lake, tables.DAILY_REVENUE, *revenue)
    insert(
        lake,
        tables.DAILY_REVENUE_BY_CATEGORY,
        *({**row, "product_category": "Kitchen"} for row in revenue),
    )
    insert(
        lake,
        tables.PUBLISHED_DAYS,
        *(
            {"table_name": table.name, "day": day, "published_at": NOW - timedelta(hours=4)}
            for day in sorted({day for day, *_ in orders})
            for table in (
                tables.RAW_ORDERS,
                tables.DAILY_REVENUE,
                tables.DAILY_REVENUE_BY_CATEGORY,
            )
        ),
    )


def streamed(lake: Lake, *orders: tuple[date, str, str, str]) -> None:
    """The same as the events have it."""
    rows = {}
    for day, clock, region, value in orders:
        minute = datetime.fromisoformat(f"{day}T{clock}")
        row = rows.setdefault((day, minute, region), [Decimal(0), 0])
        row[0] += Decimal(value)
        row[1] += 1
    insert(
        lake,
        tables.LIVE_REVENUE_MINUTES,
        *(
            {
                "order_date": day,
                "minute": minute,
                "region": region,
                "total_revenue": value,
                "order_count": count,
            }
            for (day, minute, region), (value, count) in rows.items()
        ),
    )
    totals = {}
    for (day, _, region), (value, count) in rows.items():
        total = totals.setdefault((day, region), [Decimal(0), 0])
        total[0] += value
        total[1] += count
    insert(
        lake,
        tables.LIVE_REVENUE,
        *(
            {"order_date": day, "region": region, "total_revenue": value, "order_count": count}
            for (day, region), (value, count) in totals.items()
        ),
    )


def beating(lake: Lake, now: datetime = NOW) -> None:
    """A worker that is alive at a time."""
    insert(
        lake,
        tables.STREAM_WORKERS,
        {
            "state": "running",
            "sources": "files",
            "figures": "{}",
            "heartbeat_at": now,
        },
    )
