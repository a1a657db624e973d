"""From a number down to its orders, and from an order to the raw rows and events it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import duckdb

from retail_assets.dashboard.reading.courses import BATCH, sources
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_records import find_records
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.lake.sql import literal
from retail_assets.settings import Settings
from retail_assets.tables import MASKED
from retail_assets.transforms import orders as rules
from retail_assets.transforms.orders import COMPLETED

SHOWN_ORDERS = 100
"""Orders of one page."""

MALFORMED = ("malformed_row", "not_utf8")
"""Reasons of rows that have no number among the well-formed ones."""

EVENT_DAYS = 60
"""Days after an order's day on which its events are looked for."""


@dataclass(frozen=True)
class Order:
    """A line of an order that counts, from the batch or the stream."""

    order_id: str
    line_number: int | None
    ordered_at: datetime | None
    region: str
    category: str
    product: str
    value_gbp: Decimal


@dataclass(frozen=True)
class Excluded:
    """An order of the day that does not count, with its status, or why it is superseded."""

    order_id: str
    region: str
    value_gbp: Decimal
    why: str


@dataclass(frozen=True)
class Rejected:
    """A row of the day's export that could not be used: the rule that it breaks, and where it is.

    `text` is the row, masked unless the caller may see it.
    """

    reason: str
    rule: str
    field: str | None
    source_file: str
    row_number: int
    text: str


@dataclass(frozen=True)
class Orders:
    """Orders of a day, one page of them; `more` says whether there are others after these."""

    source: str | None
    lines: Sequence[Order]
    more: bool
    excluded: Sequence[Excluded]
    rejected: Sequence[Rejected]


@dataclass(frozen=True)
class RawRow:
    """A row of an export that brought an order; `line` is its line in the file, if it tells."""

    export_date: date
    source_file: str
    row_number: int
    line: int | None
    status: str
    value_gbp: Decimal
    counts: bool


@dataclass(frozen=True)
class RawEvent:
    """An event of an order, and where it came from: a file and its line, or a position."""

    event_id: str
    status: str
    value_gbp: Decimal
    event_timestamp: datetime | None
    received_date: date
    source: str
    source_name: str
    version: int
    position: int
    processed_at: datetime
    payload: str

    @property
    def origin(self) -> str:
        """Where it came from, in words."""
        if self.source == "file":
            version = f", version {self.version}" if self.version > 1 else ""
            return f"{self.source_name}, line {self.position}{version}"
        return f"{self.source} {self.source_name}, position {self.position}"


@dataclass(frozen=True)
class Lineage:
    """Where an order comes from: the rows of exports and the events that brought it."""

    order_id: str
    rows: Sequence[RawRow]
    events: Sequence[RawEvent]


def _batch_orders(where: str) -> str:
    return (
        "SELECT order_id, line_number, order_timestamp AS ordered_at, region, product_category,"
        " product_name, order_value_gbp FROM completed_orders"
        f" WHERE {where} ORDER BY ordered_at, order_id, line_number"
    )


def _stream_orders(where: str) -> str:
    """The orders of the stream that count, those with lines line by line."""
    return (
        "SELECT order_id, line_number, ordered_at, region, product_category,"
        " coalesce(p.product_name, product_id, 'unknown') AS product, order_value_gbp FROM ("
        "SELECT order_id, NULL AS line_number, minute AS ordered_at, region, product_category,"
        " product_id, order_value_gbp, order_date, status FROM live_orders"
        " WHERE product_category IS NOT NULL UNION ALL"
        " SELECT l.order_id, line_number, o.minute, l.region, l.product_category, l.product_id,"
        " l.order_value_gbp, l.order_date, l.status FROM live_order_lines AS l"
        " JOIN live_orders AS o USING (order_date, order_id) WHERE o.product_category IS NULL)"
        " LEFT JOIN (SELECT product_id, product_name FROM products) AS p USING (product_id)"
        f" WHERE status = '{COMPLETED}' AND {where} ORDER BY ordered_at, order_id, line_number"
    )


def orders_query(source: str | None, day: date, region: str | None, category: str | None) -> str:
    """The query for the orders that make up a number of a day, in the order of their time."""
    where = " AND ".join(
        [
            f"order_date = DATE '{day}'",
            *([f"region = {literal(region)}"] if region is not None else []),
            *([f"product_category = {literal(category)}"] if category is not None else []),
        ]
    )
    return _batch_orders(where) if source == BATCH else _stream_orders(where)


def read_orders(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    day: date,
    region: str | None = None,
    category: str | None = None,
    *,
    page: int = 0,
    unmasked: bool = False,
) -> Orders:
    """Read the orders of a day that count, and those that do not.

    Args:
        connection: a connection to the lake, on one snapshot.
        settings: how late the exports may be that have orders of the day.
        day: the business day.
        region: only orders of this region; None: of all.
        category: only lines of this product category; None: of all.
        page: which page of `SHOWN_ORDERS` lines, from 0.
        unmasked: show rejected rows as they are: they may identify customers.
    """
    source = sources(connection, [day]).get(day)
    lines = connection.execute(
        f"{orders_query(source, day, region, category)}"
        f" LIMIT {SHOWN_ORDERS + 1} OFFSET {page * SHOWN_ORDERS}"
    ).fetchall()
    return Orders(
        source=source,
        lines=[Order(*line) for line in lines[:SHOWN_ORDERS]],
        more=len(lines) > SHOWN_ORDERS,
        excluded=_excluded(connection, settings, day, region, source),
        rejected=_rejected(connection, day, unmasked=unmasked) if region is None else (),
    )


def _excluded(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    day: date,
    region: str | None,
    source: str | None,
) -> list[Excluded]:
    of_region = "($region IS NULL OR region = $region)"
    if source == BATCH:
        query = (
            # The latest export decides; an earlier one has a version that is superseded.
            "SELECT order_id, any_value(region), sum(order_value_gbp), any_value(status) FROM"
            " (SELECT * FROM raw_orders WHERE order_date = $day AND export_date BETWEEN $day AND"
            f" DATE '{day + timedelta(days=settings.late_days + 1)}'"
            " QUALIFY rank() OVER (PARTITION BY order_id ORDER BY export_date DESC) = 1)"
            f" WHERE status <> '{COMPLETED}' AND {of_region}"
        )
    else:
        query = (
            "SELECT order_id, any_value(region), sum(order_value_gbp), any_value(status)"
            f" FROM live_orders WHERE order_date = $day AND status <> '{COMPLETED}' AND {of_region}"
        )
    rows = connection.execute(
        f"{query} GROUP BY order_id ORDER BY order_id LIMIT {SHOWN_ORDERS}",
        {"day": day, "region": region},
    ).fetchall()
    return [Excluded(order, where, value, status) for order, where, value, status in rows]


def _rejected(
    connection: duckdb.DuckDBPyConnection, day: date, *, unmasked: bool
) -> list[Rejected]:
    rows = connection.execute(
        "SELECT reason, field, source_file, row_number, raw_text FROM rejected_orders"
        f" WHERE export_date = ? ORDER BY row_number LIMIT {SHOWN_ORDERS}",
        [day],
    ).fetchall()
    return [
        Rejected(
            reason, rules.REASONS.get(reason, ""), field, file, row, text if unmasked else MASKED
        )
        for reason, field, file, row, text in rows
    ]


def read_lineage(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    order_id: str,
    day: date,
    *,
    unmasked: bool = False,
) -> Lineage:
    """Read the rows and events that brought an order, of the days on which they can lie.

    Args:
        connection: a connection to the lake, on one snapshot.
        settings: the exports folder, how its files are written, and how late an order may be.
        order_id: the order.
        day: its business day.
        unmasked: show payloads as they are: they may identify customers.
    """
    latest = day + timedelta(days=settings.late_days + 1)
    rows = connection.execute(
        "SELECT export_date, source_file, row_number, status, order_value_gbp,"
        " export_date = max(export_date) OVER () AS counts FROM raw_orders"
        " WHERE order_id = ? AND export_date BETWEEN ? AND ? ORDER BY export_date, row_number",
        [order_id, day, latest],
    ).fetchall()
    events = connection.execute(
        "SELECT e.event_id, e.status, e.order_value_gbp, e.event_timestamp, e.received_date,"
        " e.source, e.source_name, e.version, e.position, e.processed_at,"
        f" CASE WHEN $unmasked THEN coalesce(r.payload, '') ELSE {literal(MASKED)} END"
        " FROM enriched_events AS e LEFT JOIN raw_events AS r"
        " ON r.received_date = e.received_date AND r.source = e.source"
        " AND r.source_name = e.source_name AND r.version = e.version AND r.position = e.position"
        " AND r.received_date BETWEEN $first AND $last"
        " WHERE e.order_id = $order AND e.received_date BETWEEN $first AND $last"
        f" ORDER BY e.received_at, e.position, e.event_id LIMIT {SHOWN_ORDERS}",
        {
            "unmasked": unmasked,
            "order": order_id,
            "first": day - timedelta(days=1),
            "last": day + timedelta(days=EVENT_DAYS),
        },
    ).fetchall()
    return Lineage(
        order_id,
        [
            RawRow(
                exported,
                file,
                row,
                _line(connection, settings, order_id, exported, file, row),
                status,
                value,
                counts,
            )
            for exported, file, row, status, value, counts in rows
        ],
        [RawEvent(*event) for event in events],
    )


def _line(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    order_id: str,
    export_date: date,
    source_file: str,
    row_number: int,
) -> int | None:
    """The line of the file on which a row begins; None if the file does not tell any more."""
    malformed = connection.execute(
        "SELECT row_number FROM rejected_orders WHERE export_date = ?"
        f" AND reason IN ({', '.join(map(literal, MALFORMED))}) ORDER BY row_number",
        [export_date],
    ).fetchall()
    # The header is record 1; rows of raw_orders are numbered without those that are malformed.
    record = row_number + 1
    for (number,) in malformed:
        record += number <= record
    try:
        location = ExportsLocation(settings.exports_location)
        with location.copies([source_file], str(settings.lake_dir / "spill")) as (folder, _):
            path = folder / source_file
            found = next(find_records(path, [record], settings.export_mapping), None)
    except (RetailAssetsError, OSError):
        return None
    # The file may have been replaced since.
    return found.line if found and order_id in "".join(found.lines) else None
