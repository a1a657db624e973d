"""Live revenue: recompute the days whose events have changed since they were published."""

from collections.abc import Collection
from datetime import date

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.lake import days as ledger
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import Publication, publish_days
from retail_assets.transforms import events, revenue


def refresh(lake: Lake, connection: duckdb.DuckDBPyConnection) -> Publication | None:
    """Bring `live_revenue` up to date.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.

    Returns:
        The days that were recomputed; None if all were up to date.
    """
    days = ledger.stale_days(connection, tables.LIVE_REVENUE)
    if not days:
        return None
    live = revenue.daily_revenue(live_orders(connection, days))
    return publish_days(lake, connection, tables.LIVE_REVENUE, live, days, only_days=True)


def live_orders(connection: duckdb.DuckDBPyConnection, days: Collection[date]) -> nw.LazyFrame:
    """The orders that count, of all orders that have an event on one of these days.

    All of their events are looked at: the first of an order may lie on another day, and so the
    order.
    """
    listed = ", ".join(f"DATE '{day}'" for day in days) or "NULL"
    concerned = connection.sql(
        "SELECT * FROM lake.enriched_events WHERE order_id IN"
        f" (SELECT order_id FROM lake.enriched_events WHERE order_date IN ({listed}))"
    )
    return events.live_orders(nw.from_native(concerned))
