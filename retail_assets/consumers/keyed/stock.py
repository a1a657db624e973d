"""What orders do to the stock, day by day: the part of the state that no table of the lake has."""

import duckdb
import narwhals as nw

from retail_assets.consumers.sql_cache import CompiledSql
from retail_assets.transforms import inventory

DAY_MICROSECONDS = 86_400_000_000


class StockDays:
    """The sums of `stock_days` of relations with orders and lines, as compiled SQL."""

    def __init__(self, since: str) -> None:
        """Sum up orders since the day `since` of the opening stock."""
        self._since = since
        self._compiled = CompiledSql()

    def query(self, connection: duckdb.DuckDBPyConnection, orders: str, lines: str) -> str:
        """The SELECT of `transforms.inventory.stock_days` for two relations.

        Args:
            connection: a connection that has them.
            orders: rows of `live_orders`.
            lines: rows of `live_order_lines` of the same orders.
        """
        return self._compiled.of(
            (orders, lines),
            lambda: inventory.stock_days(changes(connection, orders, lines, self._since)),
        )


def changes(
    connection: duckdb.DuckDBPyConnection, orders: str, lines: str, since: str, also: str = ""
) -> nw.LazyFrame:
    """The result of `transforms.inventory.stock_changes` for the orders since a day.

    Args:
        connection: a connection that has both relations.
        orders: rows of `live_orders`.
        lines: rows of `live_order_lines` of the same orders.
        since: the day of the opening stock.
        also: a further condition on both, such as ` AND true`.
    """
    days = ", ".join(
        # In UTC: the calendar of a time zone takes longer than all the rest.
        f"epoch_us({name}_at) // {DAY_MICROSECONDS} AS {name}_day"
        for name in ("sold", "returned")
    )
    return inventory.stock_changes(
        *(
            nw.from_native(
                connection.sql(
                    f"SELECT *, {days} FROM {relation} WHERE order_date >= DATE '{since}'{also}"
                )
            )
            for relation in (orders, lines)
        )
    )
