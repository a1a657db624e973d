"""Then and now: what the lake said at an earlier snapshot, and what has changed since, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.dashboard.reading.amounts import Amount
from retail_assets.dashboard.reading.courses import BATCH, listed
from retail_assets.lake import history
from retail_assets.lake.connection import current_snapshot
from retail_assets.tables import DAILY_REVENUE, LIVE_ORDERS, LIVE_REVENUE, best_revenue

SHOWN_MOMENTS = 300
"""Steps of the slider: the newest commits of the batch, and the last of each hour of the stream."""

SHOWN_DAYS = 60
"""Days whose change is explained, the newest first; others are counted."""

LATE, CORRECTED, REMOVED, REFERENCE, EXPORTED, EVENTS = (
    "late",
    "corrected",
    "removed",
    "reference data",
    "first published",
    "events",
)

REASONS = {
    LATE: "orders that came in a later export than their day's",
    CORRECTED: "orders that a later export corrected, or counts now",
    REMOVED: "orders that do not count any more",
    REFERENCE: "orders whose product or customer is described differently",
    EXPORTED: "the day was published from its export",
    EVENTS: "events of the day came in, or were taken back",
}


@dataclass(frozen=True)
class Moment:
    """A snapshot that changed revenue: when it was committed, and what its commit said."""

    snapshot: int
    at: datetime
    message: str


@dataclass(frozen=True)
class Reason:
    """Why a day changed: one of `REASONS`, the orders concerned, and what they changed in GBP."""

    kind: str
    orders: int
    change: Amount


@dataclass(frozen=True)
class ChangedDay:
    """A day whose revenue differs between then and now, the sources of both, and why."""

    day: date
    then: Amount
    now: Amount
    source_then: str | None
    source_now: str | None
    reasons: Sequence[Reason]


@dataclass(frozen=True)
class Difference:
    """All that differs between a snapshot and now; `more` days are not explained."""

    moment: Moment
    now: Moment
    days: Sequence[ChangedDay]
    more: int

    @property
    def total(self) -> Amount:
        """The change of the days that are shown."""
        then = sum((each.then for each in self.days), Amount())
        now = sum((each.now for each in self.days), Amount())
        return Amount(now.revenue - then.revenue, now.orders - then.orders)


def read_moments(connection: duckdb.DuckDBPyConnection, timezone: str) -> list[Moment]:
    """Read the snapshots that changed revenue, the oldest first; heartbeats and upkeep are not.

    Args:
        connection: a connection to the lake.
        timezone: the zone of their times.
    """
    found = history.changing(
        connection, SHOWN_MOMENTS, every=[DAILY_REVENUE], hourly=[LIVE_REVENUE]
    )
    zone = ZoneInfo(timezone)
    return [Moment(snapshot, at.astimezone(zone), message) for snapshot, at, message in found][::-1]


def moment_at(moments: Sequence[Moment], time: datetime) -> Moment | None:
    """The moment whose numbers held at a time: the last one that is not later."""
    return next((each for each in reversed(moments) if each.at <= time), None)


def read_difference(
    connection: duckdb.DuckDBPyConnection, moment: Moment, timezone: str
) -> Difference:
    """Compare the revenue of a moment with that of now.

    It costs the days that have changed since, not those that there are.

    Args:
        connection: a connection to the lake, on one snapshot.
        moment: then; its snapshot has to be kept.
        timezone: the zone of times.
    """
    changed = _changed_days(connection, moment)
    shown = changed[-SHOWN_DAYS:]
    then = _by_day(connection, shown, moment.snapshot)
    now = _by_day(connection, shown, None)
    days = []
    reasons = _reasons(connection, shown, moment.snapshot)
    for day in reversed(shown):
        (amount_then, source_then), (amount_now, source_now) = (
            found.get(day, (Amount(), None)) for found in (then, now)
        )
        if source_then != BATCH or source_now != BATCH:
            kind = EXPORTED if source_now == BATCH else EVENTS
            delta = _less(amount_now, amount_then)
            why: Sequence[Reason] = [Reason(kind, abs(delta.orders), delta)]
        else:
            why = reasons.get(day, ())
        if amount_then != amount_now or why:
            days.append(ChangedDay(day, amount_then, amount_now, source_then, source_now, why))
    snapshot = current_snapshot(connection)
    committed = history.committed_us(connection, snapshot) or 0
    at = datetime.fromtimestamp(committed / 1e6, ZoneInfo(timezone))
    return Difference(moment, Moment(snapshot, at, ""), days, len(changed) - len(shown))


def _less(now: Amount, then: Amount) -> Amount:
    return Amount(now.revenue - then.revenue, now.orders - then.orders)


def _changed_days(connection: duckdb.DuckDBPyConnection, moment: Moment) -> list[date]:
    """The days that were published, or whose events came, after a moment; some may be equal."""
    rows = connection.execute(
        "SELECT day FROM published_days WHERE table_name = $table AND published_at >= $since"
        f" UNION SELECT order_date FROM {LIVE_ORDERS.name} WHERE updated_at >= $since ORDER BY 1",
        {"table": DAILY_REVENUE.name, "since": moment.at},
    ).fetchall()
    return [day for (day,) in rows]


def _by_day(
    connection: duckdb.DuckDBPyConnection, days: Sequence[date], snapshot: int | None
) -> dict[date, tuple[Amount, str]]:
    """The best revenue of days, at a snapshot or now, with its source."""
    if not days:
        return {}
    query = best_revenue(DAILY_REVENUE, LIVE_REVENUE, f"order_date IN ({listed(days)})")
    if snapshot is not None:
        for table in (DAILY_REVENUE.name, LIVE_REVENUE.name, "published_days"):
            query = query.replace(f"FROM {table} ", f"FROM {table} {_at(snapshot)} ")
    rows = connection.execute(
        "SELECT order_date, sum(total_revenue), sum(order_count)::BIGINT, any_value(source)"
        f" FROM ({query}) GROUP BY order_date"
    ).fetchall()
    return {day: (Amount(revenue, orders), source) for day, revenue, orders, source in rows}


def _at(snapshot: int) -> str:
    return f"AT (VERSION => {int(snapshot)})"


def _reasons(
    connection: duckdb.DuckDBPyConnection, days: Sequence[date], snapshot: int
) -> dict[date, list[Reason]]:
    """Why the batch's revenue of days changed: their orders then and now, one by one."""
    if not days:
        return {}
    orders = (
        "SELECT order_date, order_id, any_value(export_date) AS exported, sum(order_value_gbp) AS"
        " value, hash(list((product_id, region, order_value_gbp) ORDER BY line_number)) AS content,"
        " hash(list((product_name, product_category, customer_segment, home_region)"
        " ORDER BY line_number)) AS described"
        " FROM completed_orders {at} WHERE order_date IN ({days}) GROUP BY order_date, order_id"
    )
    old = orders.format(at=_at(snapshot), days=listed(days))
    new = orders.format(at="", days=listed(days))
    kind = (
        f"CASE WHEN new.order_id IS NULL THEN '{REMOVED}'"
        f" WHEN old.order_id IS NULL AND new.exported > order_date THEN '{LATE}'"
        f" WHEN old.order_id IS NULL OR old.content <> new.content THEN '{CORRECTED}'"
        f" WHEN old.described <> new.described THEN '{REFERENCE}' END"
    )
    rows = connection.execute(
        "SELECT order_date, kind, count(*), sum(value), sum(more)::BIGINT FROM ("
        f"SELECT order_date, {kind} AS kind,"
        " coalesce(new.value, 0) - coalesce(old.value, 0) AS value,"
        " (new.order_id IS NOT NULL)::INTEGER - (old.order_id IS NOT NULL)::INTEGER AS more"
        f" FROM ({old}) AS old FULL JOIN ({new}) AS new USING (order_date, order_id))"
        " WHERE kind IS NOT NULL GROUP BY order_date, kind ORDER BY order_date, kind"
    ).fetchall()
    found: dict[date, list[Reason]] = {}
    for day, why, count, value, more in rows:
        found.setdefault(day, []).append(Reason(why, count, Amount(value, more)))
    return found
