"""Findings to notify people of, from the lake: failures that last, and new alerts.

A failure holds for a while and is over some time later; an alert is there once and for all.
Messages leave the machine: nothing personal is in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb

from retail_assets import tables
from retail_assets.ingest.ledgers.workers import (
    FAILED_SECONDS,
    LAGGING_SECONDS,
    RUNNING,
    Heartbeat,
    heartbeats,
    in_charge,
)
from retail_assets.lake.sql import literal
from retail_assets.settings import Settings

DEAD_WORKER = "dead_worker"
LATE_WORKER = "late_worker"
NO_EVENTS = "no_events"
MISSING_DAY = "missing_day"
FAILED_DAY = "failed_day"
FAILED_EVENT_FILE = "failed_event_file"
FAILED_MART = "failed_mart"

FAILURES = {
    DEAD_WORKER: ("The stream worker is dead", "stream workers"),
    LATE_WORKER: ("The stream worker is lagging", "lagging stream workers"),
    NO_EVENTS: ("No events come in", "silences"),
    MISSING_DAY: ("A day is not published", "missing days"),
    FAILED_DAY: ("A day failed", "failed days"),
    FAILED_EVENT_FILE: ("An event file cannot be read", "failed event files"),
    FAILED_MART: ("A mart cannot be published", "failed marts"),
}
"""The title of one failure of each kind, and the plural; the gravest kind first."""

FAILED_MART_AFTER = timedelta(minutes=5)
"""A mart is tried every half minute: a server that starts again is no failure."""

PROBLEM_LENGTH = 500


@dataclass(frozen=True)
class AlertKind:
    """Alerts of one table: the titles of one and of several, and the columns in the message.

    `subject` is the SQL for what identifies an alert in the ledger of messages.
    """

    kind: str
    table: str
    subject: str
    title: str
    plural: str
    shown: Sequence[str]


ALERTS = (
    AlertKind(
        "fraud_alert",
        "fraud_alerts",
        # Not event_id: an earlier event of the order may arrive later, and change it.
        "order_id",
        "Fraud alert",
        "fraud alerts",
        ("order_id", "order_value_gbp", "region", "score", "reasons"),
    ),
    AlertKind(
        "stock_alert",
        "stock_alerts",
        # A line has an alert of its own; concat_ws leaves the number of others, null, out.
        "concat_ws(':', event_id, line_number)",
        "Low stock",
        "stock alerts",
        ("product_id", "stock", "order_id"),
    ),
)


@dataclass(frozen=True)
class Finding:
    """A failure or an alert: `kind` and `subject` identify it, `text` is one line."""

    kind: str
    subject: str
    text: str


def failures(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    now: datetime,
    open_days: Sequence[str] = (),
) -> list[Finding]:
    """The failures that hold now.

    Args:
        connection: a connection to the lake.
        settings: the limits.
        now: the time, with a time zone.
        open_days: days that were missing when last looked at; they are until they are published.
    """
    return [
        *_dead_workers(connection, settings, now),
        *_lagging_workers(connection, now),
        *_no_events(connection, settings, now),
        *_missing_days(connection, settings, now, open_days),
        *_failed_days(connection),
        *_failed_event_files(connection),
        *_failed_marts(connection, now),
    ]


def new_alerts(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> list[Finding]:
    """The alerts without a message that are not too old, the oldest first."""
    found: list[Finding] = []
    for alert in ALERTS:
        query = recent_alerts(alert, settings)
        if query is None:
            continue
        shown = [name for name in alert.shown if name in tables.BY_NAME[alert.table].types]
        rows = connection.execute(
            f"SELECT subject, {', '.join(shown)} FROM ({query}) WHERE subject NOT IN"
            " (SELECT subject FROM lake.notified WHERE kind = ?) ORDER BY happened_at, subject",
            [oldest(settings, now), alert.kind],
        ).fetchall()
        found += [Finding(alert.kind, subject, _listed(shown, values)) for subject, *values in rows]
    return found


def recent_alerts(alert: AlertKind, settings: Settings) -> str | None:
    """The query for the alerts since a time, its parameter, with `subject` and `happened_at`.

    Returns:
        None where the lake has no such table.
    """
    table = tables.BY_NAME.get(alert.table)
    if table is None:
        return None
    zone = literal(settings.timezone)
    times = [
        expression
        for name, expression in (
            ("event_timestamp", "event_timestamp"),
            ("crossed_at", "crossed_at"),
            # An event without a time may be from any time of its day.
            ("order_date", f"timezone({zone}, (order_date + 1)::TIMESTAMP)"),
        )
        if name in table.types
    ]
    happened = f"coalesce({', '.join(times)})" if times else "now()"
    return (
        f"SELECT *, {alert.subject} AS subject, {happened} AS happened_at"
        f" FROM lake.{table.name} WHERE {happened} >= ?"
    )


def oldest(settings: Settings, now: datetime) -> datetime:
    """The time before which events are too old for an alert about them."""
    return now - timedelta(hours=settings.notify_max_age_hours)


def _dead_workers(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> list[Finding]:
    return [
        Finding(
            DEAD_WORKER,
            found.worker,
            f"The stream worker {found.worker} on {found.host} was last seen at"
            f" {_clock(found.heartbeat_at, settings)}"
            f"{f' ({found.last_seen(now)})' if found.is_ahead(now) else ''}"
            f"{f', and then: {_short(found.problem)}' if found.problem else ''}. Start it again;"
            " until then the sensor ingests event files.",
        )
        for found in _in_charge(connection, now)
        if found.state == RUNNING
        and abs(found.silent_seconds(now)) > settings.notify_worker_seconds
    ]


def _lagging_workers(connection: duckdb.DuckDBPyConnection, now: datetime) -> list[Finding]:
    """The lagging workers, where no other worker has the same source."""
    return [
        Finding(
            LATE_WORKER,
            found.worker,
            f"The stream worker {found.worker} on {found.host} has not kept up for"
            f" {found.lagging_seconds / 60:.0f} minutes: "
            + (
                _short(found.problem)
                if found.problem
                else f"events, or consumers that follow them, wait longer than {LAGGING_SECONDS} s."
                " `retail-assets status` says where."
            ),
        )
        for found in _in_charge(connection, now)
        if found.is_alive(now) and found.lagging_seconds > FAILED_SECONDS
    ]


def _in_charge(connection: duckdb.DuckDBPyConnection, now: datetime) -> list[Heartbeat]:
    """Each worker that counts for a source, once, the newest first."""
    found = heartbeats(connection)
    names = {worker.worker for worker in in_charge(found, now).values()}
    return [worker for worker in found if worker.worker in names]


def _no_events(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> list[Finding]:
    if settings.notify_event_age_minutes is None:
        return []
    (newest,) = connection.execute(
        "SELECT greatest((SELECT max(updated_at) FROM lake.stream_offsets WHERE kind = 'source'),"
        " (SELECT max(ingested_at) FROM lake.event_files))"
    ).fetchone() or (None,)
    if newest is None or now - newest <= timedelta(minutes=settings.notify_event_age_minutes):
        return []
    text = (
        f"The newest event came in at {_clock(newest, settings)}. See whether the shop sends any,"
        " and `retail-assets status`."
    )
    return [Finding(NO_EVENTS, "events", text)]


def _missing_days(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    now: datetime,
    open_days: Sequence[str],
) -> list[Finding]:
    local = now.astimezone(ZoneInfo(settings.timezone))
    due = {date.fromisoformat(day) for day in open_days}
    yesterday = local.date() - timedelta(days=1)
    if local.hour >= settings.notify_missing_day_hour and yesterday >= settings.start_date:
        due.add(yesterday)
    published = [
        day
        for (day,) in connection.execute(
            # The newest, or those asked for.
            f"WITH whole AS ({tables.whole_days(tables.DAILY_REVENUE)})"
            " SELECT day FROM whole WHERE day IN (SELECT unnest(?::DATE[]))"
            " OR day = (SELECT max(day) FROM whole)",
            [list(due)],
        ).fetchall()
    ]
    if not published:
        # Nobody runs the batch pipeline here.
        return []
    return [
        Finding(
            MISSING_DAY,
            str(day),
            f"{tables.DAILY_REVENUE.name} of {day} is not published. See whether its order export"
            " has come, and the runs of that day.",
        )
        for day in sorted(due.difference(published))
    ]


def _failed_days(connection: duckdb.DuckDBPyConnection) -> list[Finding]:
    """One for each day and problem: a day that fails does so in several tables at once."""
    rows = connection.execute(
        "SELECT list(table_name ORDER BY table_name), day, problem FROM lake.failed_days"
        " GROUP BY day, problem ORDER BY day, problem"
    ).fetchall()
    return [
        Finding(
            FAILED_DAY, f"{failed[0]} {day}", f"{' and '.join(failed)} of {day}: {_short(problem)}"
        )
        for failed, day, problem in rows
    ]


def _failed_event_files(connection: duckdb.DuckDBPyConnection) -> list[Finding]:
    rows = connection.execute(
        "SELECT path, problem FROM lake.failed_event_files ORDER BY path"
    ).fetchall()
    return [
        Finding(FAILED_EVENT_FILE, path, f"{path}: {_short(problem)}") for path, problem in rows
    ]


def _failed_marts(connection: duckdb.DuckDBPyConnection, now: datetime) -> list[Finding]:
    rows = connection.execute(
        "SELECT mart, problem FROM lake.failed_marts WHERE failed_since <= ? ORDER BY mart",
        [now - FAILED_MART_AFTER],
    )
    return [
        Finding(FAILED_MART, mart, f"{mart}: {_short(problem)}")
        for mart, problem in rows.fetchall()
    ]


def _listed(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(
        f"{name.removesuffix('_id').removesuffix('_gbp').replace('_', ' ')} {_told(value)}"
        for name, value in zip(names, values, strict=True)
        if value is not None
    )


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list):
        return " and ".join(str(each) for each in value)
    return str(value)


def _short(text: str) -> str:
    return text if len(text) <= PROBLEM_LENGTH else text[:PROBLEM_LENGTH] + "…"


def _clock(time: datetime, settings: Settings) -> str:
    return f"{time.astimezone(ZoneInfo(settings.timezone)):%Y-%m-%d %H:%M:%S %Z}"
