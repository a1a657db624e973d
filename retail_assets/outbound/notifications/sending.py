"""Sending what is in the outbox: at least once, outside of any transaction.

An attempt is entered before it is made, so that two processes do not send the same message at the
same moment. A message whose process was killed is tried again a minute later, with the same key.
Each service has its own rows: one that is unavailable does not delay the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import duckdb

from retail_assets.lake.connection import Lake
from retail_assets.outbound.notifications.outbox import MINUTE
from retail_assets.outbound.notifications.services import Message, Service, deliver, services
from retail_assets.settings import Settings

LONGEST_WAIT = timedelta(hours=1)

UNKNOWN_KEPT = timedelta(days=1)
"""How long messages to an unknown service are kept: a process with other settings may know it."""

_OPEN = "sent_at IS NULL AND given_up_at IS NULL"


@dataclass(frozen=True)
class Sent:
    """The outcome: messages sent, failed, abandoned, and waiting.

    `problem` is the newest, or None.
    """

    sent: int = 0
    failed: int = 0
    abandoned: int = 0
    waiting: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class OutboxMessage:
    """A message in the outbox, and how often it was tried."""

    message: Message
    service: str
    attempts: int


def send(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    now: datetime | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Sent:
    """Send what is due, to each service no more than the settings allow in a minute.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        settings: where to, and how often to try.
        now: the time, with a time zone; by default that of the clock.
        stop: called before each message; True leaves the others for the next time.
    """
    clock = Clock(now)
    outcomes: list[tuple[OutboxMessage, str | None]] = []
    known = services(settings)
    abandoned = _abandon_unknown(lake, connection, known, clock)
    for service in known:
        for entry in _due(connection, settings, service, clock.now()):
            if stop():
                break
            if not _claim(lake, connection, entry, clock.now()):
                continue
            problem = deliver(service, entry.message)
            abandoned += _mark(lake, connection, settings, entry, problem, clock.now())
            outcomes.append((entry, problem))
            if problem is not None:
                # It is most likely unavailable: do not wait for each of its messages.
                break
    problems = [f"{entry.service}: {problem}" for entry, problem in outcomes if problem]
    return Sent(
        sent=len(outcomes) - len(problems),
        failed=len(problems),
        abandoned=abandoned,
        waiting=_waiting(connection),
        problem=problems[-1] if problems else None,
    )


@dataclass(frozen=True)
class Clock:
    """The time: a given one, or the clock's."""

    fixed: datetime | None

    def now(self) -> datetime:
        """The time in UTC."""
        return self.fixed or datetime.now(timezone.utc)


def wait_after(attempts: int) -> timedelta:
    """How long to wait after so many attempts: a minute, then twice as long each time."""
    return min(MINUTE * (1 << min(attempts - 1, 10)), LONGEST_WAIT)


def _due(
    connection: duckdb.DuckDBPyConnection, settings: Settings, service: Service, now: datetime
) -> list[OutboxMessage]:
    row = connection.execute(
        "SELECT count(*) FROM lake.notifications WHERE service = ? AND sent_at > ?",
        [service.name, now - MINUTE],
    ).fetchone()
    room = settings.notify_per_minute - (int(row[0]) if row else 0)
    rows = connection.execute(
        "SELECT key, severity, title, body, service, attempts FROM lake.notifications"
        f" WHERE service = ? AND {_OPEN} AND next_attempt_at <= ?"
        " ORDER BY created_at, key LIMIT ?",
        [service.name, now, max(0, room)],
    ).fetchall()
    return [OutboxMessage(Message(*row[:4]), *row[4:]) for row in rows]


def _claim(
    lake: Lake, connection: duckdb.DuckDBPyConnection, entry: OutboxMessage, now: datetime
) -> bool:
    """Enter an attempt; False if somebody else has just done so."""
    where = f"WHERE key = ? AND service = ? AND attempts = ? AND {_OPEN}"
    identity = [entry.message.key, entry.service, entry.attempts]
    with lake.transaction(connection, "try a notification"):
        found = connection.execute(f"SELECT 1 FROM lake.notifications {where}", identity).fetchone()
        if found is None:
            return False
        connection.execute(
            f"UPDATE lake.notifications SET attempts = attempts + 1, next_attempt_at = ? {where}",
            [now + wait_after(entry.attempts + 1), *identity],
        )
    return True


def _mark(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    entry: OutboxMessage,
    problem: str | None,
    now: datetime,
) -> int:
    """Enter the outcome of an attempt; returns 1 if it was the last and failed, otherwise 0."""
    last = problem is not None and entry.attempts + 1 >= settings.notify_attempts
    with lake.transaction(connection, "note what came of a notification"):
        connection.execute(
            "UPDATE lake.notifications SET sent_at = ?, given_up_at = ?, problem = ?"
            " WHERE key = ? AND service = ? AND sent_at IS NULL",
            [
                now if problem is None else None,
                now if last else None,
                problem,
                entry.message.key,
                entry.service,
            ],
        )
    return int(last)


def _abandon_unknown(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    known: list[Service],
    clock: Clock,
) -> int:
    """Abandon old messages to services that the settings do not name; returns how many."""
    where = f"WHERE {_OPEN} AND created_at < ? AND service NOT IN (SELECT unnest(?::VARCHAR[]))"
    which = [clock.now() - UNKNOWN_KEPT, [service.name for service in known]]
    row = connection.execute(f"SELECT count(*) FROM lake.notifications {where}", which).fetchone()
    if not row or not row[0]:
        return 0
    with lake.transaction(connection, "abandon notifications to services that are gone"):
        connection.execute(
            f"UPDATE lake.notifications SET given_up_at = ?, problem = ? {where}",
            [clock.now(), "RETAIL_NOTIFY_URLS does not have this service.", *which],
        )
    return int(row[0])


def _waiting(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute(f"SELECT count(*) FROM lake.notifications WHERE {_OPEN}").fetchone()
    return int(row[0]) if row else 0
