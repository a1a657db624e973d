"""Live orders: each order as its events have it, which revenue and stock follow from."""

from collections.abc import Mapping

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.sql_cache import compile_once
from retail_assets.transforms import live_orders


def _compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
    of_keys = "" if keys is None else f" WHERE order_id IN (SELECT order_id FROM {keys})"
    events = connection.sql(
        "SELECT * REPLACE (coalesce(received_at, received_date::TIMESTAMPTZ) AS received_at),"
        " coalesce(event_timestamp, order_date::TIMESTAMPTZ) AS happened_at"
        f" FROM lake.enriched_events{of_keys}"
    )
    orders = nw.to_native(live_orders.live_orders(nw.from_native(events))).sql_query()
    # Computed once per order: for a million orders this takes longer than to sum up their day.
    minute = "date_trunc('minute', ordered_at::TIMESTAMP)"
    return {tables.LIVE_ORDERS.name: f"SELECT *, {minute} AS minute FROM ({orders})"}


CONSUMER = Consumer("live_orders", "order_id", (tables.LIVE_ORDERS,), compile_once(_compute))
