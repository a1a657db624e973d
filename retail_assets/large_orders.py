"""Orders of so large a value that it may be a mistake: a shifted point, an id in its column."""

from datetime import date

import duckdb

SHOWN = 10


def large_orders(
    connection: duckdb.DuckDBPyConnection,
    value_gbp: float,
    first: date | None = None,
    last: date | None = None,
) -> list[str]:
    """A sentence for each of the largest orders that count and are worth so much or more.

    Args:
        connection: a connection to the lake.
        value_gbp: the setting RETAIL_LARGE_ORDER_GBP.
        first: the first day to look at; None: all.
        last: the last one, included.
    """
    found = connection.execute(
        "SELECT order_date, order_id, order_value_gbp, export_date FROM lake.completed_orders"
        " WHERE order_value_gbp >= ? AND (?::DATE IS NULL OR order_date BETWEEN ? AND ?)"
        " ORDER BY order_value_gbp DESC, order_id LIMIT ?",
        [value_gbp, first, first, last, SHOWN],
    ).fetchall()
    return [
        f"{day}: order {order} of the export of {export} is worth {value:,} GBP, which is"
        f" RETAIL_LARGE_ORDER_GBP ({value_gbp:,.0f}) or more. It counts: if it is a mistake,"
        " correct the export."
        for day, order, value, export in found
    ]
