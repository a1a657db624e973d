"""One verdict on the platform, in a sentence that says what to do.

What has failed comes from the findings that people are notified of; what is only behind is a
warning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from zoneinfo import ZoneInfo

import duckdb

from retail_assets import business_days
from retail_assets.ingest.exports.stale_days import RESTATED, described
from retail_assets.ingest.ledgers.workers import DEAD_SECONDS
from retail_assets.lake import day_ledger
from retail_assets.outbound.notifications.findings import FAILED_DAY, FAILURES, failures
from retail_assets.settings import Settings
from retail_assets.tables import DAILY_REVENUE

MINUTES_FROM, CLOCK_FROM = 120, 7200
"""Seconds from which an age is said in minutes, and as a time of the day."""

QUARANTINE, BEHIND = "quarantined_keys", "days_behind"


class Level(IntEnum):
    """How grave it is."""

    well = 0
    warning = 1
    failure = 2


@dataclass(frozen=True)
class Issue:
    """Something that is not well: its kind, and what happened, where, and what to do."""

    level: Level
    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """All that is not well, the gravest first, and one sentence on it."""

    sentence: str
    issues: Sequence[Issue] = ()

    @property
    def level(self) -> Level:
        """That of the gravest issue."""
        return max((issue.level for issue in self.issues), default=Level.well)


def verdict(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    now: datetime,
    more: Sequence[Issue] = (),
) -> Verdict:
    """Look for what is not well.

    Args:
        connection: a connection to the lake, which may be read-only.
        settings: the limits.
        now: the time, with a time zone.
        more: what the caller has found outside of the lake.
    """
    # Notifications wait in case that a worker comes back; who looks now sees that it is dead.
    settings_now = settings.model_copy(update={"notify_worker_seconds": DEAD_SECONDS})
    issues = [
        *_failed_days(connection),
        *(
            Issue(Level.failure, found.kind, found.text)
            for found in failures(connection, settings_now, now)
            if found.kind != FAILED_DAY
        ),
        *_quarantined(connection),
        *_behind(connection, settings),
        *more,
    ]
    ranks = [*FAILURES]
    issues.sort(
        key=lambda issue: (
            -issue.level,
            ranks.index(issue.kind) if issue.kind in ranks else len(ranks),
        )
    )
    if not issues:
        return Verdict(_all_is_well(connection, settings, now))
    others = len(issues) - 1
    rest = f" ({others} more below)" if others else ""
    return Verdict(issues[0].text + rest, tuple(issues))


def _failed_days(connection: duckdb.DuckDBPyConnection) -> list[Issue]:
    """The failed days, each problem once: a day fails in several tables at the same time."""
    rows = connection.execute(
        "SELECT problem, list(DISTINCT day ORDER BY day) FROM lake.failed_days GROUP BY problem"
        " ORDER BY min(day)"
    ).fetchall()
    shown: list[tuple[Sequence[date], str]] = []
    for problem, days in rows:
        if not any(set(days) <= set(known) for known, _ in shown):
            shown.append((days, problem))
    return [
        Issue(Level.failure, FAILED_DAY, f"{described(days)} failed: {problem}")
        for days, problem in shown
    ]


def _quarantined(connection: duckdb.DuckDBPyConnection) -> list[Issue]:
    rows = connection.execute(
        "SELECT consumer, count(*), any_value(problem) FROM lake.consumer_dead_letters GROUP BY 1"
        " ORDER BY 1"
    ).fetchall()
    return [
        Issue(
            Level.warning,
            QUARANTINE,
            f"The consumer {consumer} has quarantined {keys:,} keys, whose rows are as they were"
            f" before: {problem}. `retail-assets consumers rewind {consumer}` tries them again.",
        )
        for consumer, keys, problem in rows
    ]


def _behind(connection: duckdb.DuckDBPyConnection, settings: Settings) -> list[Issue]:
    newest = business_days.last_complete_day(settings)
    days = {
        day
        for table in RESTATED
        for day in day_ledger.stale_days(connection, table)
        if settings.start_date <= day <= newest
    }
    if not days:
        return []
    return [
        Issue(
            Level.warning,
            BEHIND,
            f"Orders of {described(days)} have changed since they were published: the sensor"
            " `restated_days`, or `retail-assets backfill` of any day, restates them.",
        )
    ]


def _all_is_well(connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> str:
    (last_day,) = connection.execute(
        "SELECT max(day) FROM lake.published_days WHERE table_name = ?", [DAILY_REVENUE.name]
    ).fetchone() or (None,)
    (newest,) = connection.execute(
        "SELECT greatest((SELECT max(updated_at) FROM lake.stream_offsets WHERE kind = 'source'),"
        " (SELECT max(ingested_at) FROM lake.event_files))"
    ).fetchone() or (None,)
    if last_day is None and newest is None:
        return "Nothing has failed; no orders and no events have come yet."
    parts = []
    if last_day is not None:
        parts.append(f"revenue is published up to {last_day}")
    if newest is not None:
        parts.append(f"the newest events came {_ago(newest, settings, now)}")
    behind = last_day is not None and last_day < business_days.last_complete_day(settings)
    return ("Nothing has failed: " if behind else "Everything is fresh: ") + ", ".join(parts) + "."


def _ago(time: datetime, settings: Settings, now: datetime) -> str:
    seconds = max((now - time).total_seconds(), 0)
    if seconds < MINUTES_FROM:
        return f"{seconds:.0f} s ago"
    if seconds < CLOCK_FROM:
        return f"{seconds / 60:.0f} minutes ago"
    return f"at {time.astimezone(ZoneInfo(settings.timezone)):%Y-%m-%d %H:%M}"
