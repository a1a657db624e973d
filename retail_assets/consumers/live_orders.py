"""Live orders: each order as its events have it, which revenue and stock follow from.

The lines of an order that has several follow in the same round, from the same state of the order.
Their categories follow `products`: a change there enriches the events concerned again.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.sql_cache import CompiledSql
from retail_assets.engines import event_lines
from retail_assets.transforms import live_orders as rules

if TYPE_CHECKING:
    from retail_assets.consumers.keyed.round import KeyedRound

_COMPUTED = "temp.main.computed_orders"


def consumer() -> Consumer:
    """The consumer that writes `live_orders` and `live_order_lines`."""
    compiled = CompiledSql()

    def rows(connection: duckdb.DuckDBPyConnection, events: str, none: str) -> Mapping[str, str]:
        """The rows of both tables that follow from events; `none` is a SELECT of no lines."""

        def orders() -> nw.LazyFrame:
            return rules.live_orders(nw.from_native(connection.sql(_events(events))))

        def lines() -> nw.LazyFrame:
            return rules.live_order_lines(
                *(
                    nw.from_native(connection.sql(query))
                    for query in (
                        f"FROM {_COMPUTED}",
                        event_lines.unnested(_COMPUTED),
                        "FROM lake.products",
                    )
                )
            )

        # Staged: both tables would compute it. Computed once per order: for a million orders the
        # minute takes longer than to sum up their day.
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE computed_orders AS SELECT *, date_trunc('minute',"
            f" ordered_at::TIMESTAMP) AS minute FROM ({compiled.of(('orders', events), orders)})"
        )
        # Most rounds have no lines, and need no products.
        some = connection.execute(f"SELECT 1 FROM {_COMPUTED} WHERE lines IS NOT NULL LIMIT 1")
        return {
            tables.LIVE_ORDERS.name: f"FROM {_COMPUTED}",
            tables.LIVE_ORDER_LINES.name: compiled.of("lines", lines) if some.fetchone() else none,
        }

    def compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        of_keys = "" if keys is None else f" WHERE order_id IN (SELECT order_id FROM {keys})"
        none = f"FROM lake.{tables.LIVE_ORDER_LINES.name} LIMIT 0"
        return rows(connection, f"lake.enriched_events{of_keys}", none)

    def follow(round_: "KeyedRound") -> None:
        orders = round_.keys("order_id", tables.ENRICHED_EVENTS)
        if not orders:
            return
        events = round_.load(tables.ENRICHED_EVENTS, "order_id", orders)
        both = (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)
        own = {table: round_.load(table, "order_id", orders) for table in both}
        none = f"FROM {own[tables.LIVE_ORDER_LINES]} LIMIT 0"
        found = rows(round_.connection, events, none)
        for table in both:
            round_.compare(table, found[table.name], own[table])
        # Of an order of which one line has changed, all count.
        round_.stage("changed_orders", {"order_id VARCHAR": round_.keys("order_id", *both)})
        these = "WHERE order_id IN (FROM temp.main.changed_orders)"
        for table in both:
            staged = f"temp.main.staged_{table.name}"
            round_.make(f"before_{table.name}", f"SELECT * FROM {own[table]} {these}")
            round_.make(f"after_{table.name}", f"SELECT * FROM {staged} {these}")

    return Consumer(
        "live_orders",
        "order_id",
        (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES),
        compute,
        staging=("computed_orders",),
        follow=follow,
    )


def _events(events: str) -> str:
    return (
        "SELECT * REPLACE (coalesce(received_at, received_date::TIMESTAMPTZ) AS received_at),"
        f" coalesce(event_timestamp, order_date::TIMESTAMPTZ) AS happened_at FROM {events}"
    )


CONSUMER = consumer()
