"""The frame of consumers, with a consumer whose rule can be told to fail."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import duckdb
import pytest

from retail_assets.consumers import feed
from retail_assets.consumers.feed import Consumed, Consumer
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.tables import INSTANT, MONEY, Column, Table
from retail_assets_tests.event_files import EventIntake, event

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

    intake: EventIntake
    poison: set[str] = field(default_factory=set)
    computed: list[str] = field(default_factory=list)

    @property
    def consumer(self) -> Consumer:
        return Consumer("spending", "customer_id", (SPENT,), self.compute)

    def compute(self, connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        of_keys = f" WHERE customer_id IN (SELECT customer_id FROM {keys})" if keys else ""
        rows = f"SELECT customer_id, order_value_gbp FROM lake.enriched_events{of_keys}"
        self.computed = [
            customer
            for (customer,) in connection.execute(
                f"SELECT DISTINCT customer_id FROM ({rows}) ORDER BY 1"
            ).fetchall()
        ]
        bad = self.poison & set(self.computed)
        if bad:
            # As it would be: a cast that fails, not an error of Python.
            rows = (
                f"SELECT customer_id, CAST(customer_id AS {MONEY}) AS order_value_gbp FROM ({rows})"
            )
        return {
            "spent": "SELECT sum(order_value_gbp) AS total, customer_id"
            f" FROM ({rows}) GROUP BY customer_id"
        }

    def consume(self, **options: Any) -> Consumed | None:
        return feed.consume(self.intake.lake, self.intake.connection, self.consumer, **options)

    def take(self, name: str, *lines: str) -> None:
        self.intake.write(f"{DAY}/{name}.jsonl", lines)
        self.intake.take()

    def spent(self) -> dict[str, int]:
        return {
            customer: int(total)
            for customer, total in self.intake.rows("SELECT customer_id, total FROM spent")
        }

    def letters(self) -> dict[str, int]:
        return dict(
            self.intake.rows(
                "SELECT key, attempts FROM consumer_dead_letters WHERE consumer = 'spending'"
            )
        )


@pytest.fixture
def spender(lake: Lake, settings: Settings) -> Iterator[Spender]:
    with EventIntake.open(settings) as intake:
        columns = ", ".join(f"{column.name} {column.type}" for column in SPENT.columns)
        with intake.lake.transaction(intake.connection, "create a table"):
            intake.connection.execute(f"CREATE TABLE lake.spent ({columns})")
        yield Spender(intake)


def buys(number: int, customer: str, value: int, **more: Any) -> str:
    return event(number, customer_id=customer, order_value_gbp=value, **more)


def test_what_has_changed_is_recomputed_and_nothing_else(spender: Spender) -> None:
    spender.take("a", buys(1, "C1", 10), buys(2, "C2", 5))
    first = spender.consume()
    assert first is not None
    assert (first.rebuilt, first.keys, first.inserted) == (True, ("C1", "C2"), {"spent": 2})
    assert spender.spent() == {"C1": 10, "C2": 5}

    spender.take("b", buys(3, "C2", 7), buys(4, "C3", 1))
    second = spender.consume()
    assert second is not None
    assert spender.computed == ["C2", "C3"]
    assert (second.rebuilt, second.key_count, second.keys) == (False, 2, ("C2", "C3"))
    assert (second.deleted, second.inserted) == ({"spent": 1}, {"spent": 2})
    assert spender.spent() == {"C1": 10, "C2": 12, "C3": 1}


def test_rows_of_keys_that_are_gone_go(spender: Spender) -> None:
    spender.take("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    spender.take("a", buys(1, "C1", 10), buys(5, "C5", 50))
    consumed = spender.consume()
    assert consumed is not None
    assert spender.spent() == {"C1": 10, "C5": 50}
