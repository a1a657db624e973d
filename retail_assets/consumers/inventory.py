"""Inventory: the stock of each product as the events have it, and when it fell too low."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.sql_cache import compile_once
from retail_assets.transforms import inventory

if TYPE_CHECKING:
    from retail_assets.settings import Settings


_DAY_MICROSECONDS = 86_400_000_000


def consumer(settings: "Settings") -> Consumer:
    """The consumer, with the settings for the day of the opening stock and the threshold.

    After a change of these, rewind it: products without new events would keep their rows.
    """
    since = f"order_date >= DATE '{settings.opening_date}'"

    def compute(
        connection: duckdb.DuckDBPyConnection, keys: str | None
    ) -> Mapping[str, nw.LazyFrame]:
        of_keys = "" if keys is None else f" AND product_id IN (SELECT product_id FROM {keys})"
        days = ", ".join(
            # In UTC: the calendar of a time zone takes longer than all the rest.
            f"epoch_us({name}_at) // {_DAY_MICROSECONDS} AS {name}_day"
            for name in ("sold", "returned")
        )
        orders, lines = (
            nw.from_native(
                connection.sql(f"SELECT *, {days} FROM lake.{table.name} WHERE {since}{of_keys}")
            )
            for table in (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)
        )
        changes = inventory.stock_changes(orders, lines)
        products = nw.from_native(
            connection.sql(f"SELECT * FROM lake.products WHERE true{of_keys}")
        )
        return {
            table.name: rule(changes, products, low_stock_units=settings.low_stock_units)
            for table, rule in (
                (tables.INVENTORY_LEVELS, inventory.inventory_levels),
                (tables.STOCK_ALERTS, inventory.stock_alerts),
            )
        }

    return Consumer(
        "inventory",
        "product_id",
        (tables.INVENTORY_LEVELS, tables.STOCK_ALERTS),
        compile_once(compute),
        sources=(tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES, tables.PRODUCTS),
        in_pieces=False,
    )
