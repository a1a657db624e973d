"""All consumers of the platform, in an order in which each comes after those that it follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retail_assets.consumers import (
    dead_letter_counts,
    framework,
    inventory,
    live_orders,
    live_revenue,
)
from retail_assets.consumers.fraud import consumer as fraud
from retail_assets.errors import UsageError

if TYPE_CHECKING:
    import duckdb

    from retail_assets.consumers.framework import Consumer
    from retail_assets.lake.connection import Lake
    from retail_assets.settings import Settings


def all_consumers(settings: "Settings") -> "list[Consumer]":
    """The consumers, configured by the settings."""
    return [
        live_orders.CONSUMER,
        live_revenue.CONSUMER,
        dead_letter_counts.CONSUMER,
        inventory.consumer(settings),
        fraud.consumer(settings),
    ]


@dataclass(frozen=True)
class Recomputed:
    """How many rows were inserted or deleted, and the quarantined keys with their problems."""

    rows: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)


def recompute(
    lake: "Lake", connection: "duckdb.DuckDBPyConnection", settings: "Settings", name: str
) -> Recomputed:
    """Recompute all tables of a consumer from the events.

    Raises:
        UsageError: if there is no such consumer.
    """
    consumers = {consumer.name: consumer for consumer in all_consumers(settings)}
    if name not in consumers:
        raise UsageError(f"There is no consumer {name}: choose from {', '.join(consumers)}.")
    framework.rewind(lake, connection, consumers[name])
    done = framework.consume(lake, connection, consumers[name], failures=framework.LAST_ATTEMPT)
    if done is None:
        return Recomputed()
    return Recomputed(sum(done.inserted.values()) + sum(done.deleted.values()), done.failed)
