"""A consumer of tests: what each customer has spent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import duckdb

from retail_assets.consumers import framework
from retail_assets.consumers.framework import Consumed, Consumer
from retail_assets.lake.connection import current_snapshot
from retail_assets.tables import INSTANT, MONEY, Column, Table
from retail_assets_tests.event_files import EventLoader, event

DAY = date(2026, 10, 12)

SPENT = Table(
    name="spent",
    description="What each customer's events are worth.",
    key=("customer_id",),
    columns=(
        Column("customer_id", "VARCHAR", "The customer."),
        Column("total", MONEY, "Sum of all values."),
        Column("updated_at", INSTANT, "When the row last changed."),
    ),
)


@dataclass
class Spender:
    """Sums up what customers spend, over a lake of its own; fails for the customers `poison`."""

    loader: EventLoader
    poison: set[str] = field(default_factory=set)
    computed: list[list[str]] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    in_pieces: bool = True

    @property
    def consumer(self) -> Consumer:
        return Consumer("spending", "customer_id", (SPENT,), self.compute, in_pieces=self.in_pieces)

    def compute(self, connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        of_keys = f" WHERE customer_id IN (SELECT customer_id FROM {keys})" if keys else ""
        rows = f"SELECT customer_id, order_value_gbp FROM lake.enriched_events{of_keys}"
        found = connection.execute(f"SELECT DISTINCT customer_id FROM ({rows}) ORDER BY 1")
        self.computed.append([customer for (customer,) in found.fetchall()])
        self.meanwhile()
        value = "order_value_gbp"
        if self.poison & set(self.computed[-1]):
            # A statement that fails ends the transaction; an error of Python would not.
            value = f"CAST(customer_id AS {MONEY})"
        # In another order than the table has, and with a row that nobody asked for.
        return {
            "spent": f"SELECT sum({value}) AS total, customer_id FROM ({rows}) GROUP BY customer_id"
            " UNION ALL SELECT 1, 'nobody' WHERE " + ("true" if keys else "false")
        }

    def consume(self, **options: Any) -> Consumed | None:
        return framework.consume(self.loader.lake, self.loader.connection, self.consumer, **options)

    def rewind(self) -> None:
        framework.rewind(self.loader.lake, self.loader.connection, self.consumer)

    def ingest(self, name: str, *lines: str) -> None:
        self.loader.write(f"{DAY}/{name}.jsonl", lines)
        self.loader.ingest()

    def change(self, sql: str) -> None:
        with self.loader.lake.transaction(self.loader.connection, "a test's change"):
            self.loader.connection.execute(sql)

    def spent(self) -> dict[str, int]:
        return {
            customer: int(total)
            for customer, total in self.loader.rows("SELECT customer_id, total FROM spent")
        }

    def rows(self) -> list[tuple[Any, ...]]:
        return self.loader.rows("SELECT * FROM spent ORDER BY ALL")

    def snapshot(self) -> int:
        return current_snapshot(self.loader.connection)

    def letters(self) -> dict[str, int]:
        return dict(
            self.loader.rows(
                "SELECT key, attempts FROM consumer_dead_letters WHERE consumer = 'spending'"
            )
        )


def buys(number: int, customer: str, value: int, **more: Any) -> str:
    return event(number, customer_id=customer, order_value_gbp=value, **more)
