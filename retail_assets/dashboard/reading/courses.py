"""How the revenue of a day grows, minute by minute, from the batch or the stream."""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from itertools import accumulate
from statistics import median

import duckdb

from retail_assets.dashboard.reading.amounts import Amount
from retail_assets.tables import DAILY_REVENUE, LIVE_REVENUE, best_revenue

MINUTES = 24 * 60
SLOT = 10
"""Minutes between two points of a course."""

BATCH, STREAM = "batch", "stream"


@dataclass(frozen=True)
class Course:
    """A day's completed orders by minute of the wall clock, from 0 to 1439, in order."""

    day: date
    source: str
    minutes: Sequence[tuple[int, Amount]]

    @cached_property
    def _numbers(self) -> list[int]:
        return [minute for minute, _ in self.minutes]

    @cached_property
    def _sums(self) -> list[Amount]:
        return list(accumulate(amount for _, amount in self.minutes))

    def until(self, minute: int) -> Amount:
        """What the day had by the end of a minute."""
        found = bisect_right(self._numbers, minute)
        return self._sums[found - 1] if found else Amount()

    def slots(self, last: int = MINUTES - 1) -> list[Decimal]:
        """Revenue so far at the end of each `SLOT` minutes, up to the one that has `last`."""
        return [self.until(end).revenue for end in _ends(last)]

    def between(self, first: int, last: int) -> list[Amount]:
        """The amount of each minute from one to another, both included."""
        found = dict(self.minutes)
        return [found.get(minute, Amount()) for minute in range(first, last + 1)]


@dataclass(frozen=True)
class Usual:
    """The usual course of a weekday: that of earlier weeks, the newest first."""

    courses: tuple[Course, ...] = ()

    def until(self, minute: int) -> Decimal | None:
        """The median revenue by the end of a minute; None without earlier weeks."""
        if not self.courses:
            return None
        return median(course.until(minute).revenue for course in self.courses)

    def band(self) -> list[tuple[Decimal, Decimal, Decimal]]:
        """The least, the median and the most revenue so far, at the end of each slot."""
        if not self.courses:
            return []
        slots = [course.slots() for course in self.courses]
        return [(min(each), median(each), max(each)) for each in zip(*slots, strict=True)]


def _ends(last: int) -> range:
    return range(SLOT - 1, last - last % SLOT + SLOT, SLOT)


def listed(days: Collection[date]) -> str:
    """Days as a list of SQL."""
    return ", ".join(f"DATE '{day}'" for day in sorted(days)) or "NULL"


def sources(connection: duckdb.DuckDBPyConnection, days: Collection[date]) -> dict[date, str]:
    """Whether the best revenue of each day is the batch's or the stream's; days without have none.

    Args:
        connection: a connection to the lake.
        days: the days to look at.
    """
    query = best_revenue(DAILY_REVENUE, LIVE_REVENUE, f"order_date IN ({listed(days)})")
    rows = connection.execute(f"SELECT DISTINCT order_date, source FROM ({query})").fetchall()
    return dict(rows)


def read_courses(
    connection: duckdb.DuckDBPyConnection, days: Collection[date]
) -> dict[date, Course]:
    """The courses of some days, each from the source of its best revenue.

    Args:
        connection: a connection to the lake.
        days: the days to read; those without orders are left out.
    """
    return courses_of(connection, sources(connection, days))


def courses_of(
    connection: duckdb.DuckDBPyConnection, known: Mapping[date, str]
) -> dict[date, Course]:
    """The courses of days whose sources are known; see `read_courses`."""
    found: dict[date, list[tuple[int, Amount]]] = {}
    for source, query in _MINUTES.items():
        of_source = [day for day, each in known.items() if each == source]
        if not of_source:
            continue
        for day, minute, revenue, orders in connection.execute(
            f"SELECT order_date, minute, sum(revenue), sum(orders)::BIGINT FROM"
            f" ({query.format(days=listed(of_source))}) GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            found.setdefault(day, []).append((minute, Amount(revenue, orders)))
    return {day: Course(day, known[day], minutes) for day, minutes in found.items()}


def regions_until(
    connection: duckdb.DuckDBPyConnection, day: date, source: str, minute: int
) -> dict[str, Amount]:
    """What a day had in each region by the end of a minute."""
    rows = connection.execute(
        f"SELECT region, sum(revenue), sum(orders)::BIGINT FROM"
        f" ({_MINUTES[source].format(days=listed([day]))}) WHERE minute <= ? GROUP BY region",
        [minute],
    ).fetchall()
    return {region: Amount(revenue, orders) for region, revenue, orders in rows}


def _minute_of(column: str) -> str:
    return f"date_diff('minute', order_date::TIMESTAMP, {column})"


_MINUTES = {
    # Lines of an order share its timestamp, so that it is in one minute only.
    BATCH: f"SELECT order_date, region, {_minute_of('order_timestamp')} AS minute,"
    " sum(order_value_gbp) AS revenue, count(DISTINCT order_id) AS orders"
    " FROM completed_orders WHERE order_date IN ({days}) GROUP BY ALL",
    STREAM: f"SELECT order_date, region, {_minute_of('minute')} AS minute,"
    " total_revenue AS revenue, order_count AS orders"
    " FROM live_revenue_minutes WHERE order_date IN ({days})",
}
"""Revenue by day, region and minute of the day, by its source."""
