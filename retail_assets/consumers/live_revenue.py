"""Live revenue: by day, category and minute, recomputed for the days whose orders have changed."""

from collections.abc import Collection, Mapping
from datetime import date

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers import live_orders as orders_consumer
from retail_assets.consumers.framework import LAST_ATTEMPT, Consumed, Consumer, consume
from retail_assets.consumers.sql_cache import compile_once
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import Publication, day_facts
from retail_assets.transforms import live_orders as rules
from retail_assets.transforms import revenue


def refresh(lake: Lake, connection: duckdb.DuckDBPyConnection) -> Publication | None:
    """Bring the live orders and the live revenue up to date.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.

    Returns:
        The days that were recomputed; None if all were up to date.

    Raises:
        ConsumerError: if they could not be.
    """
    consume(lake, connection, orders_consumer.CONSUMER, failures=LAST_ATTEMPT)
    consumed = consume(lake, connection, CONSUMER, failures=LAST_ATTEMPT)
    return None if consumed is None else _publication(connection, consumed)


def live_orders(connection: duckdb.DuckDBPyConnection, days: Collection[date]) -> nw.LazyFrame:
    """The orders of some days that count, as the consumer has them."""
    listed = ", ".join(f"DATE '{day}'" for day in days) or "NULL"
    orders = connection.sql(f"SELECT * FROM lake.live_orders WHERE order_date IN ({listed})")
    return rules.completed(nw.from_native(orders))


def _compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, nw.LazyFrame]:
    of_keys = "" if keys is None else f" WHERE order_date IN (SELECT order_date FROM {keys})"
    orders, lines = (
        nw.from_native(connection.sql(f"SELECT * FROM lake.{table.name}{of_keys}"))
        for table in (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)
    )
    counting = rules.completed(orders)
    return {
        tables.LIVE_REVENUE.name: revenue.revenue_by(counting, "order_date", "region"),
        tables.LIVE_REVENUE_BY_CATEGORY.name: revenue.daily_revenue_by_category(
            rules.sold_lines(orders, lines)
        ),
        tables.LIVE_REVENUE_MINUTES.name: revenue.revenue_by(
            counting, "order_date", "minute", "region"
        ),
    }


def _publication(connection: duckdb.DuckDBPyConnection, consumed: Consumed) -> Publication:
    table = tables.LIVE_REVENUE
    rows, measures = day_facts(connection, table, f"lake.{table.name}", consumed.keys)
    failed = {date.fromisoformat(day): problem for day, problem in consumed.failed.items()}
    return Publication(table, rows, failed, consumed.snapshot, measures)


CONSUMER = Consumer(
    "live_revenue",
    "order_date",
    (tables.LIVE_REVENUE, tables.LIVE_REVENUE_BY_CATEGORY, tables.LIVE_REVENUE_MINUTES),
    compile_once(_compute),
    sources=(tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES),
)
