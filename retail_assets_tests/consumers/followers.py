"""A lake whose live tables follow its events."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from retail_assets.consumers import framework, inventory, live_orders, live_revenue
from retail_assets_tests.event_files import EventLoader

LONDON = ZoneInfo("Europe/London")
DAY = date(2026, 10, 12)
AT = "2026-10-12T09:30:00+01:00"


@dataclass
class Followers:
    """A lake whose three consumers are run one after the other."""

    loader: EventLoader
    numbers: Iterator[int]

    def follow(self) -> None:
        for consumer in self.consumers:
            framework.consume(self.loader.lake, self.loader.connection, consumer)

    def rebuild(self) -> None:
        for consumer in self.consumers:
            framework.rewind(self.loader.lake, self.loader.connection, consumer)
        self.follow()

    @cached_property
    def consumers(self) -> tuple[framework.Consumer, ...]:
        return (
            live_orders.CONSUMER,
            live_revenue.CONSUMER,
            inventory.consumer(self.loader.settings),
        )

    def ingest(self, name: str, *lines: str) -> None:
        self.loader.write(f"{DAY}/{name}.jsonl", lines)
        self.loader.ingest()
        self.follow()

    def stock(self, products: dict[str, int | None]) -> None:
        """Put products into the reference data."""
        self.change(
            "INSERT INTO lake.products SELECT product, 'A', 'B', NULL, stock FROM"
            " (SELECT unnest(?::VARCHAR[]) AS product, unnest(?::BIGINT[]) AS stock)",
            list(products),
            list(products.values()),
        )

    def change(self, sql: str, *parameters: Any) -> None:
        with self.loader.lake.transaction(self.loader.connection, "a test's change"):
            self.loader.connection.execute(sql, parameters)

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.loader.rows(sql, *parameters)

    def level(self, product: str) -> tuple[Any, ...]:
        """Opening stock, sold, returned, stock, and whether that is low."""
        (found,) = self.rows(
            "SELECT stock_on_hand, sold, returned, stock, below FROM inventory_levels"
            " WHERE product_id = ?",
            product,
        )
        return found

    def alerts(self) -> list[tuple[Any, ...]]:
        """The events that made a stock low, and what was left."""
        return self.rows("SELECT event_id, stock FROM stock_alerts ORDER BY crossed_at, event_id")

    def everything(self) -> list[list[tuple[Any, ...]]]:
        """All rows of all consumers, with the time at which each last changed."""
        return [
            self.rows(f"SELECT * FROM {table.name} ORDER BY ALL")
            for consumer in self.consumers
            for table in consumer.tables
        ]
