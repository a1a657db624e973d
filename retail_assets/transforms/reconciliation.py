"""Rules of what must add up: exports and orders, event lines and events, the stream and the batch.

`orders` and `revenue` have the rules for completed orders and their revenue.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import narwhals as nw

UNUSUAL_RATIO = 0.5
"""How far a day's orders may be from the mean of the same weekday before, as a share of it."""

WEEKS_COMPARED = 4

_HELD = ("raw_held", "accepted_held", "dead_held")
_STAYING = ("accepted", "dead_lettered")


def export_rows(
    export_files: nw.LazyFrame, raw_orders: nw.LazyFrame, rejected_orders: nw.LazyFrame
) -> nw.LazyFrame:
    """Count the rows of each export: rows in the file = raw + rejected.

    Args:
        export_files: rows of `export_files`.
        raw_orders: all raw orders of these exports.
        rejected_orders: all rejected orders of these exports.

    Returns:
        `export_date`, `rows_in`, `raw`, `rejected` and `adds_up` (Boolean) of each export.
    """
    both = export_files.select("export_date", "rows_in")
    for name, rows in (("raw", raw_orders), ("rejected", rejected_orders)):
        counts = rows.group_by("export_date").agg(nw.len().alias(name))
        both = both.join(counts, on="export_date", how="left")
    adds_up = nw.col("rows_in") == nw.col("raw") + nw.col("rejected")
    return both.with_columns(_or_zero("raw", "rejected")).with_columns(adds_up=adds_up)


def unusual_days(orders: Mapping[date, int]) -> dict[date, float]:
    """Find the days whose number of orders is far from that of their weekday in the weeks before.

    Args:
        orders: the number of orders in the export of each day.

    Returns:
        The mean of the up to four same weekdays before, for each such day.
    """
    unusual = {}
    for day, count in sorted(orders.items()):
        weeks = [day - timedelta(weeks=week) for week in range(1, WEEKS_COMPARED + 1)]
        before = [orders[week] for week in weeks if week in orders]
        usual = sum(before) / len(before) if before else count
        if abs(count - usual) > UNUSUAL_RATIO * usual:
            unusual[day] = usual
    return unusual


def file_lines(
    event_files: nw.LazyFrame,
    raw_events: nw.LazyFrame,
    enriched_events: nw.LazyFrame,
    dead_letter_events: nw.LazyFrame,
) -> nw.LazyFrame:
    """Count the lines of each version of a file: lines = accepted + dead-lettered + duplicate.

    The tables must have as many rows: none for a copy of another file, and only the raw lines for
    a version that was retracted.

    Args:
        event_files: rows of `event_files`.
        raw_events: rows of `raw_events`, all of these versions.
        enriched_events: rows of `enriched_events`, all of these versions.
        dead_letter_events: rows of `dead_letter_events`, all of these versions.

    Returns:
        `path`, `version`, `lines`, `accepted`, `dead_lettered` and `adds_up` (Boolean) of each.
    """
    col = nw.col
    keys = ("source", "source_name", "version")
    held = _held(keys, raw_events, enriched_events, dead_letter_events)
    held = held.filter(col("source") == "file").select(*_HELD, "version", path="source_name")
    stays = nw.when(col("retracted_at").is_null())
    is_held = _is_held(*(stays.then(col(name)).otherwise(nw.lit(0)) for name in _STAYING))
    return (
        event_files.filter(col("version") > 0)
        .join(held, on=["path", "version"], how="left")
        .with_columns(_or_zero(*_HELD))
        .with_columns(adds_up=_all_lines() & (~col("copy_of").is_null() | is_held))
        .select("path", "version", "lines", "accepted", "dead_lettered", "adds_up")
    )


def stream_lines(
    stream_offsets: nw.LazyFrame,
    raw_events: nw.LazyFrame,
    enriched_events: nw.LazyFrame,
    dead_letter_events: nw.LazyFrame,
) -> nw.LazyFrame:
    """Count the lines of each Kafka partition and webhook, as `file_lines` does for files.

    Args:
        stream_offsets: all rows of `stream_offsets`.
        raw_events: all rows of `raw_events`.
        enriched_events: all rows of `enriched_events`.
        dead_letter_events: all rows of `dead_letter_events`.

    Returns:
        `name`, `part`, `lines` and `adds_up` (Boolean) of each part that the ledger or the tables
        have; one that the ledger lacks does not add up.
    """
    col = nw.col
    held = _held(("source", "source_name"), raw_events, enriched_events, dead_letter_events)
    held = held.filter(~col("source").is_in(("file", "redrive"))).select(
        *_HELD, name="source", part="source_name"
    )
    counts = ("lines", "accepted", "dead_lettered", "duplicate")
    ledger = (
        stream_offsets.filter(col("kind") == "source")
        .group_by("name", "part")
        .agg(col(counts).sum())
    )
    both = ledger.join(held, on=["name", "part"], how="full").with_columns(
        _or_zero(*counts, *_HELD),
        *(nw.coalesce(col(name), col(f"{name}_right")).alias(name) for name in ("name", "part")),
    )
    adds_up = _all_lines() & _is_held(*map(col, _STAYING))
    return both.with_columns(adds_up=adds_up).select("name", "part", "lines", "adds_up")


def revenue_differences(live_revenue: nw.LazyFrame, daily_revenue: nw.LazyFrame) -> nw.LazyFrame:
    """Find the days on which the stream's revenue of a region is not the batch's.

    Args:
        live_revenue: rows of `live_revenue`, of the days that both have.
        daily_revenue: rows of `daily_revenue` of the same days.

    Returns:
        `order_date` and `difference_gbp` (stream - batch, of all regions) of each such day.
    """
    keys = ("order_date", "region")
    both = _paired(live_revenue, daily_revenue, keys, "total_revenue")
    # Wide enough for any Int64: pandas has nothing but the zeros where no region has a partner.
    amounts = [
        nw.when(nw.col(name).is_null())
        .then(nw.lit(0))
        .otherwise(nw.col(name))
        .cast(nw.Decimal(21, 2))
        for name in ("stream", "batch")
    ]
    return (
        both.with_columns(
            difference_gbp=amounts[0] - amounts[1],
            differs=nw.when(_differs()).then(nw.lit(1)).otherwise(nw.lit(0)),
        )
        .group_by("order_date")
        .agg(nw.col("difference_gbp", "differs").sum())
        .filter(nw.col("differs") > 0)
        .drop("differs")
    )


def order_differences(live_orders: nw.LazyFrame, completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Find the orders that only one of stream and batch has, or with another value or region.

    Args:
        live_orders: the live orders that count, of some days.
        completed_orders: rows of `completed_orders` of the same days.

    Returns:
        `order_date`, `order_id`, `region`, and `stream` and `batch`: the value in GBP, or null.
    """
    keys = ("order_date", "order_id", "region")
    orders = completed_orders.group_by(*keys).agg(nw.col("order_value_gbp").sum())
    return _paired(live_orders, orders, keys, "order_value_gbp").filter(_differs())


def _paired(
    stream: nw.LazyFrame, batch: nw.LazyFrame, keys: Sequence[str], value: str
) -> nw.LazyFrame:
    """Put a value of the stream and of the batch side by side."""
    both = stream.select(*keys, stream=value).join(
        batch.select(*keys, batch=value), on=list(keys), how="full"
    )
    of_either = (nw.coalesce(nw.col(key), nw.col(f"{key}_right")).alias(key) for key in keys)
    return both.select(*of_either, "stream", "batch")


def _differs() -> nw.Expr:
    stream, batch = nw.col("stream"), nw.col("batch")
    return stream.is_null() | batch.is_null() | (stream != batch)


def _held(keys: Sequence[str], *tables: nw.LazyFrame) -> nw.LazyFrame:
    """Count the rows of the raw, enriched and dead-letter tables by their source."""
    rows = [
        table.select(*keys, **{name: nw.lit(int(name == counted)) for name in _HELD})
        for counted, table in zip(_HELD, tables, strict=True)
    ]
    return nw.concat(rows).group_by(*keys).agg(nw.col(_HELD).sum())


def _all_lines() -> nw.Expr:
    parts = nw.col("accepted") + nw.col("dead_lettered") + nw.col("duplicate")
    return nw.col("lines") == parts


def _is_held(accepted: nw.Expr, dead: nw.Expr) -> nw.Expr:
    return (
        (nw.col("lines") == nw.col("raw_held"))
        & (accepted == nw.col("accepted_held"))
        & (dead == nw.col("dead_held"))
    )


def _or_zero(*names: str) -> nw.Expr:
    return nw.col(names).fill_null(0)
