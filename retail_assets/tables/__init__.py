"""Every table of the lake: columns, types, descriptions and keys.

The single source for DDL, Dagster column schemas and lineage, audits, asset checks and the data
dictionary in `docs/`. No SQL identifier comes from anywhere else.
"""

from collections.abc import Mapping

from retail_assets.tables.batch import (
    COMPLETED_ORDERS,
    CUSTOMERS,
    DAILY_REVENUE,
    DAILY_REVENUE_BY_CATEGORY,
    ORDER_CHARGES,
    PRODUCTS,
    RAW_ORDERS,
    REJECTED_ORDERS,
)
from retail_assets.tables.events import DEAD_LETTER_EVENTS, ENRICHED_EVENTS, RAW_EVENTS
from retail_assets.tables.ledgers import (
    CHANGED_DAYS,
    EVENT_FIELDS,
    EVENT_FILES,
    EXPORT_FILES,
    FAILED_DAYS,
    FAILED_EVENT_FILES,
    NOTIFICATIONS,
    NOTIFIED,
    PUBLISHED_DAYS,
    QUEUE_MESSAGES,
    STREAM_OFFSETS,
    STREAM_WORKERS,
)
from retail_assets.tables.live import (
    CONSUMER_DEAD_LETTERS,
    DEAD_LETTER_COUNTS,
    FRAUD_ALERTS,
    FRAUD_MODELS,
    INVENTORY_LEVELS,
    LIVE_ORDERS,
    LIVE_REVENUE,
    LIVE_REVENUE_MINUTES,
    REVENUE_BY_MINUTE,
    REVENUE_NOW,
    STOCK_ALERTS,
    WHOLE_DAYS,
)
from retail_assets.tables.model import INSTANT, MONEY, TOTAL, Column, Feed, Table, View

ALL = (
    PRODUCTS,
    CUSTOMERS,
    RAW_ORDERS,
    REJECTED_ORDERS,
    COMPLETED_ORDERS,
    DAILY_REVENUE,
    DAILY_REVENUE_BY_CATEGORY,
    RAW_EVENTS,
    ENRICHED_EVENTS,
    DEAD_LETTER_EVENTS,
    DEAD_LETTER_COUNTS,
    LIVE_REVENUE,
    STREAM_OFFSETS,
    QUEUE_MESSAGES,
    STREAM_WORKERS,
    NOTIFICATIONS,
    NOTIFIED,
    FRAUD_ALERTS,
    FRAUD_MODELS,
    LIVE_ORDERS,
    LIVE_REVENUE_MINUTES,
    INVENTORY_LEVELS,
    STOCK_ALERTS,
    CONSUMER_DEAD_LETTERS,
    EXPORT_FILES,
    EVENT_FILES,
    FAILED_EVENT_FILES,
    EVENT_FIELDS,
    CHANGED_DAYS,
    PUBLISHED_DAYS,
    FAILED_DAYS,
)

BY_NAME: Mapping[str, Table] = {table.name: table for table in ALL}

VIEWS = (REVENUE_NOW, REVENUE_BY_MINUTE, ORDER_CHARGES)

__all__ = [
    "ALL",
    "BY_NAME",
    "CHANGED_DAYS",
    "COMPLETED_ORDERS",
    "CONSUMER_DEAD_LETTERS",
    "CUSTOMERS",
    "DAILY_REVENUE",
    "DAILY_REVENUE_BY_CATEGORY",
    "DEAD_LETTER_COUNTS",
    "DEAD_LETTER_EVENTS",
    "ENRICHED_EVENTS",
    "EVENT_FIELDS",
    "EVENT_FILES",
    "EXPORT_FILES",
    "FAILED_DAYS",
    "FAILED_EVENT_FILES",
    "FRAUD_ALERTS",
    "FRAUD_MODELS",
    "INSTANT",
    "INVENTORY_LEVELS",
    "LIVE_ORDERS",
    "LIVE_REVENUE",
    "LIVE_REVENUE_MINUTES",
    "MONEY",
    "NOTIFICATIONS",
    "NOTIFIED",
    "ORDER_CHARGES",
    "PRODUCTS",
    "PUBLISHED_DAYS",
    "QUEUE_MESSAGES",
    "RAW_EVENTS",
    "RAW_ORDERS",
    "REJECTED_ORDERS",
    "REVENUE_BY_MINUTE",
    "REVENUE_NOW",
    "STOCK_ALERTS",
    "STREAM_OFFSETS",
    "STREAM_WORKERS",
    "TOTAL",
    "VIEWS",
    "WHOLE_DAYS",
    "Column",
    "Feed",
    "Table",
    "View",
]
