"""Live revenue: by day, category and minute, recomputed for the days whose orders have changed."""

from collections.abc import Collection, Mapping
from datetime import date
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers import live_orders as orders_consumer
from retail_assets.consumers.framework import LAST_ATTEMPT, Consumed, Consumer, consume
from retail_assets.consumers.sql_cache import CompiledSql, compile_once
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import Publication, day_facts
from retail_assets.tables import Table
from retail_assets.transforms import live_orders as rules
from retail_assets.transforms import revenue

if TYPE_CHECKING:
    from retail_assets.consumers.keyed.round import KeyedRound


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
    return _revenue(
        *(
            nw.from_native(connection.sql(f"SELECT * FROM lake.{table.name}{of_keys}"))
            for table in (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)
        )
    )


def _revenue(orders: nw.LazyFrame, lines: nw.LazyFrame) -> dict[str, nw.LazyFrame]:
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


def _follow(round_: "KeyedRound") -> None:
    """What there was, less that of the changed orders as they were, plus that as they are."""
    sources = (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)
    if not any(map(round_.changed, sources)):
        return
    for table in _TABLES:
        column = "minute" if table is tables.LIVE_REVENUE_MINUTES else "order_date"
        own = round_.load(
            table, column, round_.keys(column, *sources[: 1 if column == "minute" else 2])
        )
        query = _COMPILED.of(table.name, lambda: _sum(round_.connection, table, own))  # noqa: B023
        round_.compare(table, query, own)


def _sum(connection: duckdb.DuckDBPyConnection, table: Table, own: str) -> nw.LazyFrame:
    """The revenue of a table: that of `own` and of what has changed."""
    keys = ", ".join(table.key)
    sums = f"SELECT {keys}, {{0}} total_revenue AS total_revenue, {{0}} order_count AS order_count"
    parts = [f"{sums.format('')} FROM {own}"]
    for sign, when in (("-", "before"), ("", "after")):
        orders, lines = (
            nw.from_native(connection.sql(f"SELECT * FROM temp.main.{when}_{source.name}"))
            for source in (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)
        )
        found = nw.to_native(_revenue(orders, lines)[table.name]).sql_query()
        parts.append(f"{sums.format(sign)} FROM ({found})")
    changed = connection.sql(
        f"SELECT *, (total_revenue::DECIMAL(38,2) * 100)::BIGINT AS pence"
        f" FROM ({' UNION ALL '.join(parts)})"
    )
    return revenue.add_up(nw.from_native(changed), *table.key)


def _publication(connection: duckdb.DuckDBPyConnection, consumed: Consumed) -> Publication:
    table = tables.LIVE_REVENUE
    rows, measures = day_facts(connection, table, f"lake.{table.name}", consumed.keys)
    failed = {date.fromisoformat(day): problem for day, problem in consumed.failed.items()}
    return Publication(table, rows, failed, consumed.snapshot, measures)


_TABLES = (tables.LIVE_REVENUE, tables.LIVE_REVENUE_BY_CATEGORY, tables.LIVE_REVENUE_MINUTES)
_COMPILED = CompiledSql()

CONSUMER = Consumer(
    "live_revenue",
    "order_date",
    _TABLES,
    compile_once(_compute),
    sources=(tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES),
    follow=_follow,
)
