"""All consumers of the platform, in an order in which each comes after those that it follows."""

from typing import TYPE_CHECKING

from retail_assets.consumers import dead_letter_counts, inventory, live_orders, live_revenue
from retail_assets.consumers.fraud import consumer as fraud

if TYPE_CHECKING:
    from retail_assets.consumers.framework import Consumer
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
