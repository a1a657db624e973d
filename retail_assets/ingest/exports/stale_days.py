"""The days that are behind, and the accepted orders that are in no revenue because of it.

Published revenue is compared with all of `raw_orders`, not only with published days: an order whose
day is no partition, has failed or is behind is waiting.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import duckdb
import narwhals as nw

from retail_assets import business_days, tables
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings
from retail_assets.transforms import revenue

RESTATED = (tables.COMPLETED_ORDERS, tables.DAILY_REVENUE, tables.DAILY_REVENUE_BY_CATEGORY)
"""The tables that follow from raw orders and are recomputed when those change."""

REASONS: Mapping[str, str] = {
    "before_start": "their day lies before RETAIL_START_DATE: set that to {first} or earlier, and"
    " run `retail-assets backfill` again",
    "not_over": "their day is not over: it is published when it is",
    "failed": "their day failed: `retail-assets status` says why; correct that and run"
    " `retail-assets backfill --start {first} --end {last}`",
    "behind": "their day has changed since it was published: the sensor `restated_days`, or"
    " `retail-assets backfill` of any day, restates it",
    "unexplained": "the revenue of their day is not what was accepted: run"
    " `retail-assets backfill --start {first} --end {last} --all`, and report it",
}
"""Why accepted orders are in no published revenue, and what to do."""


@dataclass(frozen=True)
class Waiting:
    """Accepted orders of a day that no published revenue has.

    Where a day still has orders that do not count any more, numbers and values are negative.
    """

    day: date
    reason: str
    orders: int
    value_gbp: Decimal


def stale_days(settings: Settings) -> dict[date, int]:
    """The partitions that some restated table lacks or has from older orders.

    Days with orders, or with an export of their own, are to be published; which exports brought the
    orders makes no difference.

    Returns:
        The days in order, each with the version of its orders that is the newest.
    """
    newest = business_days.last_complete_day(settings)
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            stale = _behind(connection)
            known = ledger.versions(connection, "orders", stale)
    except NoLakeError:
        return {}
    return {day: known[day] for day in sorted(stale) if settings.start_date <= day <= newest}


def waiting_orders(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    *,
    days: Iterable[date] = (),
    all_days: bool = False,
) -> list[Waiting]:
    """Reconcile the published revenue with raw: what of it waits, by day and reason.

    Reads the orders of the days that the ledger knows to be behind, and of those alone: where none
    is, nothing.

    Args:
        connection: a connection to the lake.
        settings: the first partition, and the time zone that says which is the last.
        days: further days to compare.
        all_days: compare all days, whatever the ledger says of them; reads all of `raw_orders`.
    """
    behind = _behind(connection)
    compared = None if all_days else behind | set(days)
    newest = business_days.last_complete_day(settings)
    failures = ledger.entries(connection, behind).failed
    failed = {day for table in RESTATED for day in failures[table.name]}

    def reason(day: date) -> str:
        if day < settings.start_date:
            return "before_start"
        if day > newest:
            return "not_over"
        return "failed" if day in failed else "behind" if day in behind else "unexplained"

    return [
        Waiting(day, reason(day), orders, value)
        for day, orders, value in _differences(connection, compared)
    ]


def advice(waiting: Iterable[Waiting]) -> list[str]:
    """A sentence for each reason that orders wait for: how many, how much, of which days, why."""
    found = list(waiting)
    sentences = []
    for reason, text in REASONS.items():
        concerned = [each for each in found if each.reason == reason]
        if concerned:
            days = [each.day for each in concerned]
            orders, value = sum(w.orders for w in concerned), sum(w.value_gbp for w in concerned)
            what = text.format(first=min(days), last=max(days))
            sentences.append(
                f"Accepted orders in no revenue ({reason}): {orders:,}, worth {value:,.2f} GBP, of"
                f" {described(days)}; {what}."
            )
    return sentences


def days_without_export(connection: duckdb.DuckDBPyConnection) -> str | None:
    """A sentence on the days whose published orders all come from exports of other days."""
    found = connection.execute(
        "SELECT day, row_count FROM lake.published_days WHERE table_name = ? AND row_count > 0"
        " AND day NOT IN (SELECT day FROM lake.published_days WHERE table_name = ?)",
        [tables.COMPLETED_ORDERS.name, tables.RAW_ORDERS.name],
    ).fetchall()
    if not found:
        return None
    days, orders = [day for day, _ in found], sum(count for _, count in found)
    return (
        f"Days without an export of their own: {described(days)}; completed orders of them that"
        f" other exports have, and that are published: {orders:,}."
    )


def described(days: Iterable[date]) -> str:
    """Days in words: consecutive ones as a range."""
    ranges = list(business_days.ranges(days))
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:5]]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _behind(connection: duckdb.DuckDBPyConnection) -> set[date]:
    return set(ledger.stale_days(connection, *RESTATED))


def _differences(
    connection: duckdb.DuckDBPyConnection, days: Collection[date] | None
) -> list[tuple[date, int, Decimal]]:
    """Orders that revenue lacks on these days; None: on all."""
    if days is not None and not days:
        return []
    columns = "order_id, line_number, order_date, export_date, region, status, order_value_gbp"
    raw = connection.sql(f"SELECT {columns} FROM lake.raw_orders")
    if days is not None:
        # No export has orders of later days. All versions of the orders count, wherever they are.
        since = f"export_date >= DATE '{min(days)}'"
        listed = ", ".join(f"DATE '{day}'" for day in days)
        raw = raw.filter(
            f"{since} AND order_id IN (SELECT order_id FROM lake.raw_orders WHERE {since}"
            f" AND order_date IN ({listed}))"
        )
    published = connection.table("lake.daily_revenue")
    found = revenue.waiting(nw.from_native(raw), nw.from_native(published), days)
    return [(day, orders, value) for day, orders, value in sorted(found.to_native().fetchall())]
