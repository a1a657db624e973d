"""A shop of tests: random orders, corrections, returns and retractions, followed on keyed state."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from retail_assets.consumers import framework
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.keyed.follower import Follower, state_path
from retail_assets.consumers.registry import all_consumers
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader

NOON = datetime(2026, 10, 24, 12, tzinfo=timezone.utc)

COLUMNS = {
    "event_id": "VARCHAR",
    "order_id": "VARCHAR",
    "customer_id": "VARCHAR",
    "product_id": "VARCHAR",
    "region": "VARCHAR",
    "status": "VARCHAR",
    "order_value_gbp": "DECIMAL(12,2)",
    "quantity": "BIGINT",
    "lines": "VARCHAR",
    "extra": "VARCHAR",
    "event_timestamp": "TIMESTAMPTZ",
    "position": "BIGINT",
}

Event = dict[str, Any]

SOLD: Event = {
    "order": 1,
    "customer": 1,
    "region": "South",
    "status": "completed",
    "value": 20,
    "product": "A",
    "lines": None,
    "quantity": 4,
    "card": None,
    "minute": 700,
}
"""An event of an order that is sold."""


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    """Some events of few orders, customers, products and days, of any time."""
    return [
        {
            "order": draw(st.integers(0, 7)),
            "customer": draw(st.integers(0, 2)),
            "region": draw(st.sampled_from(["North", "South"])),
            "status": draw(
                st.sampled_from(["completed", "completed", "completed", "returned", "cancelled"])
            ),
            "value": draw(st.sampled_from([5, 10, 20, 900])),
            "product": draw(st.sampled_from(["A", "B", "C", None])),
            "lines": draw(
                st.none()
                | st.lists(
                    st.tuples(st.sampled_from("AB"), st.integers(1, 3), st.integers(1, 9)),
                    min_size=1,
                    max_size=3,
                )
            ),
            "quantity": draw(st.sampled_from([None, 1, 4])),
            "card": draw(st.sampled_from([None, "1", "2", "3"])),
            "minute": draw(st.integers(0, 4 * 24 * 60)),
        }
        for _ in range(draw(st.integers(1, 8)))
    ]


@cache
def consumers() -> list[Consumer]:
    """The consumers of all shops: they compile their SQL once."""
    return all_consumers(
        Settings(fraud_orders_in_window=2, fraud_earlier_orders=2, low_stock_units=5)
    )


@dataclass
class Shop:
    """A lake with a follower on keyed state; `slow` are the same consumers, reading the lake."""

    loader: EventLoader
    path: Path
    follower: Follower = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        self.slow = consumers()
        self.start()

    def start(self) -> None:
        """Start a worker's follower."""
        since = str(self.loader.settings.opening_date)
        self.follower = Follower(self.loader.lake, self.slow, self.path, since)

    def stop(self) -> None:
        self.follower.close()

    def follow(self) -> None:
        """Follow until there is nothing more to do, on the state."""
        for _ in range(20):
            self.ready()
            if not self.follower.iterate(self.loader.connection):
                return
        raise AssertionError("it goes on for ever")

    def ready(self) -> None:
        """Wait until the state is in use."""
        deadline = time.monotonic() + 60
        while not self.follower.is_ready(self.loader.connection):
            assert time.monotonic() < deadline, "the state was not built"
            time.sleep(0.01)

    def consume(self) -> None:
        """Follow without the state, as another worker does."""
        for consumer in self.slow:
            framework.consume(self.loader.lake, self.loader.connection, consumer)

    def change(self, sql: str, *parameters: Any) -> None:
        with self.loader.lake.transaction(self.loader.connection, "a test's change"):
            self.loader.connection.execute(sql, parameters)

    def insert(self, shop: str, some: Sequence[Event]) -> None:
        """Put events of a shop where the ingest puts them."""
        highest = "SELECT coalesce(max(position), 0) FROM enriched_events"
        self.number = max(self.number, *self.loader.rows(highest)[0])
        rows = [self._row(shop, one) for one in some]
        unnested = ", ".join(f"unnest(?::{type_}[]) AS {name}" for name, type_ in COLUMNS.items())
        self.change(
            "INSERT INTO lake.enriched_events BY NAME SELECT *, 'low' AS value_tier, 'file' AS"
            " source, 'a' AS source_name, 1 AS version, DATE '2026-10-24' AS received_date,"
            " event_timestamp::DATE AS order_date, 'unknown' AS product_name, 'unknown' AS"
            " product_category, 'unknown' AS customer_segment, 'North' AS home_region,"
            f" now() AS processed_at FROM (SELECT {unnested})",
            *(list(values) for values in zip(*rows, strict=True)),
        )

    def retract(self, shop: str, order: int) -> None:
        """Take all events of an order back."""
        self.change("DELETE FROM lake.enriched_events WHERE order_id = ?", f"{shop}{order}")

    def letters(self, shop: str, count: int) -> None:
        """Have some dead letters, and then some of them no more."""
        self.change(
            "INSERT INTO lake.dead_letter_events BY NAME SELECT 'file' AS source, ? AS source_name,"
            " 1 AS version, i AS position, DATE '2026-10-24' AS received_date, 'bad' || i % 2 AS"
            " reason, 'x' AS payload, now() AS received_at, now() AS processed_at"
            " FROM range(?) AS t(i)",
            shop,
            count,
        )
        self.change(
            "DELETE FROM lake.dead_letter_events WHERE source_name = ? AND position = 0", shop
        )

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all consumers."""
        return {
            table.name: self.loader.rows(
                f"SELECT * EXCLUDE ({'updated_at'}) FROM {table.name} ORDER BY ALL"
                if "updated_at" in table.types
                else f"SELECT * FROM {table.name} ORDER BY ALL"
            )
            for consumer in self.slow
            for table in consumer.tables
        }

    def rebuilt(self) -> dict[str, list[tuple[Any, ...]]]:
        """The same after everything was computed from the events again, without the state."""
        for consumer in self.slow:
            framework.rewind(self.loader.lake, self.loader.connection, consumer)
        self.consume()
        return self.tables()

    def _row(self, shop: str, one: Event) -> tuple[Any, ...]:
        self.number += 1
        lines, value, quantity = one["lines"], one["value"], one["quantity"]
        if lines:
            value, quantity = sum(v for *_, v in lines), sum(units for _, units, _ in lines)
        return (
            f"{shop}e{self.number}",
            f"{shop}{one['order']}",
            f"{shop}c{one['customer']}",
            None if lines or one["product"] is None else shop + one["product"],
            one["region"],
            one["status"],
            value,
            quantity,
            lines
            and json.dumps(
                [
                    {
                        "line_number": number,
                        "product_id": shop + product,
                        "quantity": units,
                        "order_value_gbp": worth,
                    }
                    for number, (product, units, worth) in enumerate(lines, 1)
                ]
            ),
            one["card"] and json.dumps({"/payment_card": one["card"]}),
            NOON + timedelta(minutes=one["minute"], seconds=self.number),
            self.number,
        )


@contextmanager
def opened(settings: Settings) -> Iterator[Shop]:
    """A shop whose state lies in the lake's folder."""
    with EventLoader.open(settings) as loader:
        shop = Shop(loader, state_path(settings))
        try:
            yield shop
        finally:
            shop.stop()
