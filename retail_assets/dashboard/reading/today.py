"""The page Today: revenue so far beside the same weekday, and where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.dashboard.reading.amounts import Amount, change
from retail_assets.dashboard.reading.courses import (
    MINUTES,
    Course,
    Usual,
    courses_of,
    read_courses,
    regions_until,
)
from retail_assets.ingest.ledgers.workers import heartbeats
from retail_assets.settings import Settings
from retail_assets.tables import DAILY_REVENUE, LIVE_REVENUE, best_revenue

WEEKS = 6
"""Earlier weeks whose same weekday makes the usual course."""

LOOK_BACK = 62
"""Days in which the newest day with orders is looked for before the whole history is."""

LAST_MINUTES = 60

SHOWN_REGIONS = 12


@dataclass(frozen=True)
class Past:
    """The same weekday of earlier weeks, which changes rarely: kept between two reads."""

    day: date
    week_before: Course | None
    usual: Usual
    minute: int | None = None
    regions: Mapping[str, Amount] = field(default_factory=dict)
    """What the week before had in each region by the end of `minute`."""


@dataclass(frozen=True)
class Region:
    """A region's amount so far, and that of the same weekday a week before by the same minute."""

    name: str
    amount: Amount
    before: Amount | None
    together: int = 1
    """How many regions these are; the others are shown together."""

    @property
    def change(self) -> float | None:
        """The change of revenue as a share."""
        return change(self.amount.revenue, self.before.revenue if self.before else None)


@dataclass(frozen=True)
class Freshness:
    """When the newest number came into the lake, and by which way; None: never."""

    events_at: datetime | None
    published_at: datetime | None
    worker_alive: bool


@dataclass(frozen=True)
class Revenue:
    """A day's revenue as far as it has gone.

    `day` is the business day of `now`, or, where that has no orders and no worker is alive, the
    newest day that has some. `minute` is the last minute of the day that is compared, from 0 to
    1439. `source` is `batch` or `stream`; None: no orders yet.
    """

    day: date
    is_today: bool
    minute: int
    source: str | None
    amount: Amount
    regions: Sequence[Region]
    week_before: Amount | None
    usual: Decimal | None
    course: Course | None
    past: Past
    freshness: Freshness

    @property
    def change_to_week_before(self) -> float | None:
        """The change of revenue against the same weekday, by the same minute, as a share."""
        return change(self.amount.revenue, self.week_before.revenue if self.week_before else None)

    @property
    def change_to_usual(self) -> float | None:
        """The change against the median of earlier weeks by the same minute, as a share."""
        return change(self.amount.revenue, self.usual)

    @property
    def last_minutes(self) -> list[tuple[int, Amount]]:
        """The amounts of the last hour, minute by minute."""
        first = max(0, self.minute - LAST_MINUTES + 1)
        if self.course is None:
            return []
        return list(enumerate(self.course.between(first, self.minute), start=first))


def shown_day(
    connection: duckdb.DuckDBPyConnection, today: date, *, worker_alive: bool
) -> date | None:
    """The day to show: today, or without orders and worker the newest day that has orders.

    Returns:
        None if there are no orders of any day up to today.
    """
    if worker_alive:
        return today
    for since in (today - timedelta(days=LOOK_BACK), date.min):
        (newest,) = connection.execute(
            "SELECT max(day) FROM ("
            f"SELECT max(order_date) AS day FROM {LIVE_REVENUE.name}"
            " WHERE order_date BETWEEN $since AND $today UNION ALL"
            f" SELECT max(order_date) FROM {DAILY_REVENUE.name}"
            " WHERE order_date BETWEEN $since AND $today)",
            {"since": max(since, date(1970, 1, 1)), "today": today},
        ).fetchone() or (None,)
        if newest is not None:
            found: date = newest
            return found
    return None


def read_past(connection: duckdb.DuckDBPyConnection, day: date) -> Past:
    """Read the same weekday of earlier weeks; it costs as many days as `WEEKS`."""
    days = [day - timedelta(weeks=week) for week in range(1, WEEKS + 1)]
    found = read_courses(connection, days)
    return Past(
        day, found.get(days[0]), Usual(tuple(found[each] for each in days if each in found))
    )


def read_revenue(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    now: datetime,
    past: Past | None = None,
) -> Revenue:
    """Read the revenue of the day to show.

    Args:
        connection: a connection to the lake, on one snapshot.
        settings: the business time zone.
        now: the time, with a time zone.
        past: the earlier weeks as read before, if any; those of another day are read again.
    """
    local = now.astimezone(ZoneInfo(settings.timezone))
    worker_alive = any(worker.is_alive(now) for worker in heartbeats(connection))
    day = shown_day(connection, local.date(), worker_alive=worker_alive) or local.date()
    is_today = day == local.date()
    minute = local.hour * 60 + local.minute if is_today else MINUTES - 1
    if past is None or past.day != day:
        past = read_past(connection, day)
    source, by_region = _by_region(connection, day)
    week_before = past.week_before
    if week_before is not None and past.minute != minute:
        regions = regions_until(connection, week_before.day, week_before.source, minute)
        past = replace(past, minute=minute, regions=regions)
    return Revenue(
        day=day,
        is_today=is_today,
        minute=minute,
        source=source,
        amount=sum(by_region.values(), Amount()),
        regions=_regions(by_region, past.regions if week_before else None),
        week_before=week_before.until(minute) if week_before else None,
        usual=past.usual.until(minute),
        course=courses_of(connection, {day: source}).get(day) if source else None,
        past=past,
        freshness=_freshness(connection, day, worker_alive=worker_alive),
    )


def _by_region(
    connection: duckdb.DuckDBPyConnection, day: date
) -> tuple[str | None, dict[str, Amount]]:
    query = best_revenue(DAILY_REVENUE, LIVE_REVENUE, f"order_date = DATE '{day}'")
    rows = connection.execute(
        f"SELECT region, total_revenue, order_count, source FROM ({query})"
        " ORDER BY total_revenue DESC, region"
    ).fetchall()
    found = {region: Amount(revenue, orders) for region, revenue, orders, _ in rows}
    return (rows[0][3] if rows else None), found


def _regions(found: Mapping[str, Amount], before: Mapping[str, Amount] | None) -> list[Region]:
    """The regions with the most revenue, and the others together."""
    names = [*found, *(name for name in before or () if name not in found)]

    def region(name: str, of: Sequence[str]) -> Region:
        return Region(
            name,
            sum((found.get(each, Amount()) for each in of), Amount()),
            None if before is None else sum((before.get(n, Amount()) for n in of), Amount()),
            len(of),
        )

    if len(names) <= SHOWN_REGIONS:
        return [region(name, [name]) for name in names]
    others = names[SHOWN_REGIONS - 1 :]
    return [
        *(region(name, [name]) for name in names[: SHOWN_REGIONS - 1]),
        region(f"{len(others)} others", others),
    ]


def _freshness(
    connection: duckdb.DuckDBPyConnection, day: date, *, worker_alive: bool
) -> Freshness:
    events_at, published_at = connection.execute(
        "SELECT (SELECT max(processed_at) FROM enriched_events WHERE received_date >= $day),"
        " (SELECT max(published_at) FROM published_days WHERE table_name = $table AND day = $day)",
        {"day": day, "table": DAILY_REVENUE.name},
    ).fetchone() or (None, None)
    return Freshness(events_at, published_at, worker_alive)
