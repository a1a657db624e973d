"""Live orders: each order as its events have it, which revenue and stock follow from.

The lines of an order that has several follow in the same round, from the same state of the order.
Their categories follow `products`: a change there enriches the events concerned again.
"""

from collections.abc import Mapping

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.sql_cache import CompiledSql
from retail_assets.engines import event_lines
from retail_assets.transforms import live_orders as rules

_COMPUTED = "temp.main.computed_orders"


def consumer() -> Consumer:
    """The consumer that writes `live_orders` and `live_order_lines`."""
    compiled = CompiledSql()

    def compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        def orders() -> nw.LazyFrame:
            return rules.live_orders(nw.from_native(connection.sql(_events(keys))))

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
            f" ordered_at::TIMESTAMP) AS minute FROM ({compiled.of(('orders', keys), orders)})"
        )
        # Most rounds have no lines, and need no products.
        some = connection.execute(f"SELECT 1 FROM {_COMPUTED} WHERE lines IS NOT NULL LIMIT 1")
        none = f"FROM lake.{tables.LIVE_ORDER_LINES.name} LIMIT 0"
        return {
            tables.LIVE_ORDERS.name: f"FROM {_COMPUTED}",
            tables.LIVE_ORDER_LINES.name: compiled.of("lines", lines) if some.fetchone() else none,
        }

    return Consumer(
        "live_orders",
        "order_id",
        (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES),
        compute,
        staging=("computed_orders",),
    )


def _events(keys: str | None) -> str:
    of_keys = "" if keys is None else f" WHERE order_id IN (SELECT order_id FROM {keys})"
    return (
        "SELECT * REPLACE (coalesce(received_at, received_date::TIMESTAMPTZ) AS received_at),"
        " coalesce(event_timestamp, order_date::TIMESTAMPTZ) AS happened_at"
        f" FROM lake.enriched_events{of_keys}"
    )


CONSUMER = consumer()
