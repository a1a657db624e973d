"""Live revenue: recompute the days whose events have changed since they were published."""

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
    days = ledger.behind(connection, tables.LIVE_REVENUE)
    if not days:
        return None
    listed = ", ".join(f"DATE '{day}'" for day in days)
    # All events of every order that has one on these days: its first may lie on another.
    concerned = connection.sql(
        "SELECT * FROM lake.enriched_events WHERE order_id IN"
        f" (SELECT order_id FROM lake.enriched_events WHERE order_date IN ({listed}))"
    )
    live = revenue.daily_revenue(events.live_orders(nw.from_native(concerned)))
    return publish_days(lake, connection, tables.LIVE_REVENUE, live, days, only_days=True)
