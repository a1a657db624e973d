"""Inventory: the stock of each product as the events have it, and when it fell too low."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.keyed import stock
from retail_assets.consumers.sql_cache import CompiledSql, compile_once
from retail_assets.transforms import inventory

if TYPE_CHECKING:
    from retail_assets.consumers.keyed.round import KeyedRound
    from retail_assets.settings import Settings

_ORDERS = (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)


def consumer(settings: "Settings") -> Consumer:
    """The consumer, with the settings for the day of the opening stock and the threshold.

    After a change of these, rewind it: products without new events would keep their rows.
    """
    since, low = str(settings.opening_date), settings.low_stock_units

    def compute(
        connection: duckdb.DuckDBPyConnection, keys: str | None
    ) -> Mapping[str, nw.LazyFrame]:
        of_keys = "" if keys is None else f" AND product_id IN (SELECT product_id FROM {keys})"
        changes = stock.changes(
            connection, "lake.live_orders", "lake.live_order_lines", since, of_keys
        )
        products = _frame(connection, f"SELECT * FROM lake.products WHERE true{of_keys}")
        days = inventory.days_around(inventory.stock_days(changes), products, low_stock_units=low)
        return {
            tables.INVENTORY_LEVELS.name: inventory.inventory_levels(
                changes, products, low_stock_units=low
            ),
            tables.STOCK_ALERTS.name: inventory.stock_alerts(changes, days, low_stock_units=low),
        }

    return Consumer(
        "inventory",
        "product_id",
        (tables.INVENTORY_LEVELS, tables.STOCK_ALERTS),
        compile_once(compute),
        sources=(*_ORDERS, tables.PRODUCTS),
        in_pieces=False,
        follow=_Follow(since, low),
    )


def _frame(connection: duckdb.DuckDBPyConnection, query: str) -> nw.LazyFrame:
    return nw.from_native(connection.sql(query))


@dataclass
class _Follow:
    """Follows the orders that came and went: their products, from the first day that changed."""

    since: str
    low: int
    compiled: CompiledSql = field(default_factory=CompiledSql)

    def __call__(self, round_: "KeyedRound") -> None:
        products = round_.keys("product_id", *_ORDERS)
        if not products:
            return
        round_.stage("stock_keys", {"product_id VARCHAR": products})
        totals, first = self._totals(round_, products)
        self._levels(round_)
        if first:
            self._alerts(round_, totals, first)

    def _totals(
        self, round_: "KeyedRound", products: Sequence[str]
    ) -> tuple[dict[str, list[int]], dict[str, int]]:
        """What was taken of each product and came back, and the first day that changed."""
        own = round_.load(tables.INVENTORY_LEVELS, "product_id", products)
        totals = {product: [0, 0] for product in products}
        for product, *units in round_.fetch(f"SELECT product_id, -sold, returned FROM {own}"):
            totals[product] = units
        first: dict[str, int] = {}
        for product, day, taken, back in round_.apply_stock():
            totals[product][0] += taken
            totals[product][1] += back
            first[product] = min(day, first.get(product, day))
        # A product that no order has any more, and no list, has no row.
        still = {product for product, units in totals.items() if any(units)}
        still |= round_.store.ordered(totals.keys() - still, date.fromisoformat(self.since))
        found = [(product, -totals[product][0], totals[product][1]) for product in still]
        names = ("product_id VARCHAR", "sold BIGINT", "returned BIGINT")
        round_.stage("stock_totals", _columns(names, found))
        return totals, first

    def _levels(self, round_: "KeyedRound") -> None:
        def levels() -> nw.LazyFrame:
            totals = _frame(round_.connection, "FROM temp.main.stock_totals")
            return inventory.inventory_levels(
                totals, _products(round_.connection), low_stock_units=self.low
            )

        table = tables.INVENTORY_LEVELS
        found = self.compiled.of(table.name, levels)
        round_.compare(table, found, f"temp.main.kept_{table.name}")

    def _alerts(
        self, round_: "KeyedRound", totals: Mapping[str, list[int]], first: Mapping[str, int]
    ) -> None:
        """Alerts of the days from the first that changed: only from there the stock is another."""

        def around() -> nw.LazyFrame:
            days = _frame(round_.connection, "FROM temp.main.stock_moved")
            return inventory.days_around(
                days, _products(round_.connection), low_stock_units=self.low
            )

        def alerts() -> nw.LazyFrame:
            changes = stock.changes(round_.connection, orders, lines, self.since)
            days = _frame(round_.connection, "FROM temp.main.stock_around")
            return inventory.stock_alerts(changes, days, low_stock_units=self.low)

        days = round_.store.stock_days(first)
        before = {product: [*totals[product]] for product in first}
        for product, _, taken, back in days:
            before[product][0] -= taken
            before[product][1] -= back
        # All days before the first that changed are one day.
        moved = [
            *days,
            *((product, first[product] - 1, *units) for product, units in before.items()),
        ]
        names = ("product_id VARCHAR", "day BIGINT", "taken BIGINT", "back BIGINT")
        round_.stage("stock_moved", _columns(names, moved))
        round_.stage(
            "stock_first", _columns(("product_id VARCHAR", "first BIGINT"), [*first.items()])
        )
        round_.make(
            "stock_around",
            f"SELECT a.* FROM ({self.compiled.of('around', around)}) AS a"
            " JOIN temp.main.stock_first AS f ON f.product_id = a.product_id AND a.day >= f.first",
        )
        days_around = round_.fetch("SELECT product_id, day FROM temp.main.stock_around")
        orders, lines = (round_.load_stock(table, days_around) for table in _ORDERS)
        table = tables.STOCK_ALERTS
        own = round_.load(table, "product_id", list(first))
        day = f"epoch_us(crossed_at) // {stock.DAY_MICROSECONDS}"
        own = (
            f"(SELECT o.* FROM {own} AS o JOIN temp.main.stock_first USING (product_id)"
            f" WHERE {day} >= first)"
        )
        round_.compare(table, self.compiled.of(table.name, alerts), own)


def _products(connection: duckdb.DuckDBPyConnection) -> nw.LazyFrame:
    return _frame(
        connection,
        "SELECT * FROM lake.products WHERE product_id IN"
        " (SELECT product_id FROM temp.main.stock_keys)",
    )


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: list(values) for name, values in zip(names, columns, strict=True)}
