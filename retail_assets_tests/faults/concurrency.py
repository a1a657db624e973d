"""What the processes do that write and read at the same time."""

import time
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from retail_assets import tables
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_days
from retail_assets.settings import Settings
from retail_assets_tests.faults.batch import run_batch

REGIONS = ("East", "North", "South", "West")


def rows_of(day: date, value: int) -> pa.Table:
    """A day whose regions all have the same revenue."""
    money = pa.array([Decimal(value)] * len(REGIONS), pa.decimal128(12, 2))
    return pa.table(
        {
            "order_date": [day] * len(REGIONS),
            "region": REGIONS,
            "total_revenue": money,
            "order_count": [1] * len(REGIONS),
            "avg_order_value": money,
        }
    )


def publish_again_and_again(values: dict[str, Any], day: date, times: int) -> None:
    """Publish a day with 1, 2, 3 ... as its revenue, in a connection of its own each time."""
    lake = Lake.from_settings(Settings(**values))
    for value in range(1, times + 1):
        with lake.connect() as connection:
            done = publish_days(lake, connection, tables.DAILY_REVENUE, rows_of(day, value), [day])
            assert done.rows == {day: len(REGIONS)}


def read_until(values: dict[str, Any], days: list[date], last: int, *, keep_open: bool) -> None:
    """Read until all days have their last revenue; each is seen whole, and never goes back.

    With `keep_open` all reads are of one connection, else each opens one of its own.
    """
    lake = Lake.from_settings(Settings(**values))
    seen = dict.fromkeys(days, Decimal(0))
    connection = lake.open(read_only=True)
    while set(seen.values()) != {Decimal(last)}:
        if not keep_open:
            connection.close()
            connection = lake.open(read_only=True)
        for day, regions, lowest, highest, entered in connection.execute(
            "SELECT order_date, count(*), min(total_revenue), max(total_revenue), any_value("
            "row_count) FROM daily_revenue JOIN published_days ON day = order_date"
            " AND table_name = 'daily_revenue' GROUP BY order_date"
        ).fetchall():
            assert (regions, lowest, entered) == (len(REGIONS), highest, len(REGIONS))
            assert lowest >= seen[day]
            seen[day] = lowest
    connection.close()


def run_day(values: dict[str, Any], day: date, started: str) -> None:
    """Run the batch pipeline for one day, once all processes are there."""
    barrier = Path(started)
    (barrier / str(day)).touch()
    while len(list(barrier.iterdir())) < 4:
        time.sleep(0.001)
    run_batch(Settings(**values), [day])
