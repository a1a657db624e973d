"""The products whose stock runs low, with the days that it lasts."""

from dataclasses import dataclass
from datetime import date, timedelta

import duckdb

SALES_DAYS = 14
"""Days whose sales say how fast a product sells."""

COVER_DAYS = 3
"""A stock that lasts less long runs low, even above RETAIL_LOW_STOCK_UNITS."""

SHOWN_PRODUCTS = 20


@dataclass(frozen=True)
class LowStock:
    """A product that runs low: units in stock, units sold a day, and the days that these last.

    `cover_days` is None where nothing was sold lately; `below` says whether the stock is below the
    alert's threshold.
    """

    product_id: str
    name: str
    category: str
    stock: int
    sold_a_day: float
    below: bool

    @property
    def cover_days(self) -> float | None:
        """How many days the stock lasts, 0 if there is none left."""
        if self.stock <= 0:
            return 0.0
        return self.stock / self.sold_a_day if self.sold_a_day else None


def read_low_stock(connection: duckdb.DuckDBPyConnection, day: date) -> list[LowStock]:
    """Read the products that run low, those that run out first at the top.

    Args:
        connection: a connection to the lake.
        day: the last day whose sales count; it costs `SALES_DAYS` days of orders.
    """
    sales = " UNION ALL ".join(
        f"SELECT product_id, sold - returned AS units FROM {table}"
        " WHERE order_date > $since AND order_date <= $day AND product_id IS NOT NULL"
        for table in ("live_orders", "live_order_lines")
    )
    rows = connection.execute(
        "SELECT l.product_id, coalesce(p.product_name, l.product_id),"
        " coalesce(p.product_category, 'unknown'), l.stock,"
        f" greatest(coalesce(s.units, 0), 0) / {SALES_DAYS}.0 AS a_day, l.below"
        " FROM inventory_levels AS l LEFT JOIN products AS p USING (product_id)"
        f" LEFT JOIN (SELECT product_id, sum(units) AS units FROM ({sales}) GROUP BY 1) AS s"
        " USING (product_id)"
        f" WHERE l.stock IS NOT NULL AND (l.below OR l.stock < a_day * {COVER_DAYS})"
        " ORDER BY CASE WHEN l.stock <= 0 THEN 0 WHEN a_day > 0 THEN l.stock / a_day END"
        f" NULLS LAST, l.stock, l.product_id LIMIT {SHOWN_PRODUCTS}",
        {"since": day - timedelta(days=SALES_DAYS), "day": day},
    ).fetchall()
    return [
        LowStock(product, name, category, int(stock), float(a_day), below)
        for product, name, category, stock, a_day, below in rows
    ]
