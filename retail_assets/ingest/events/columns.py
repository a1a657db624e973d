"""Columns of received lines in SQL: what tells lines apart, and which of several was first."""

from retail_assets.transforms.orders import COMPLETED

KEY = ("received_date", "source", "source_name", "version", "position")
"""The key of a received line."""

RECEIPT = f"{', '.join(KEY)}, received_at"
"""Where and when a line was received."""

RECEIPT_COLUMNS = (
    "received_date DATE, source VARCHAR, source_name VARCHAR, version BIGINT, position BIGINT,"
    " received_at TIMESTAMPTZ"
)

LINE_COLUMNS = (
    f"{RECEIPT_COLUMNS}, payload VARCHAR, defect VARCHAR, stored BOOLEAN, stored_id VARCHAR"
)
"""Lines to be validated: whether raw_events has them already, and by which identity."""

STORED_LINE = f"{RECEIPT}, payload, defect, true AS stored, event_id AS stored_id"
"""These columns of a line of raw_events."""


def origin_of(source: str, name: str, version: str) -> str:
    """The text for a version of a source that ids of its dead letters begin with."""
    return f"concat({source}, ':', {name}, if({version} = 1, '', concat('@', {version})))"


ORIGIN = (
    "CASE WHEN source = 'redrive' THEN regexp_replace(source_name, ':[0-9]+$', '')"
    f" ELSE {origin_of('source', 'source_name', 'version')} END"
)
"""Where a line came from in the first place; for a redrive, where its dead letter came from."""

RANK_FIELDS = (
    "order_id, customer_id, region, order_value_gbp, event_timestamp, quantity, lines, extra,"
    f" coalesce(nullif(status, ''), '{COMPLETED}') AS status, nullif(product_id, '') AS product_id"
)
"""The content that orders events received at the same time, of staged and of enriched ones."""

RANK_COLUMNS = (
    "order_id VARCHAR, customer_id VARCHAR, region VARCHAR, order_value_gbp DECIMAL(18,6),"
    " event_timestamp TIMESTAMPTZ, quantity BIGINT, lines VARCHAR, extra VARCHAR,"
    " status VARCHAR, product_id VARCHAR"
)

FIRST_RECEIVED = (
    "coalesce(received_at, received_date::TIMESTAMPTZ), position, order_id, customer_id, region,"
    " order_value_gbp, event_timestamp, quantity, lines, extra, status, product_id,"
    " source, source_name, version"
)
"""Which of several events with one identity was first: by the time of receipt and the position.

Names come last, and only where nothing else differs."""


def same_line(one: str, other: str) -> str:
    """Whether rows of two tables are of the same line."""
    return " AND ".join(f"{other}.{name} = {one}.{name}" for name in KEY)
