"""What events bring to the page Today: the live feed, fraud alerts, dead letters."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import duckdb

from retail_assets.transforms.events import REASONS

SHOWN_EVENTS = 30
SHOWN_ALERTS = 20
RECENT = (timedelta(minutes=1), timedelta(minutes=15))
"""The newest events are looked for here first: files of older ones are not opened."""


@dataclass(frozen=True)
class FeedEvent:
    """A valid event; nothing in it identifies the customer. `tier` is `high`, `mid` or `low`."""

    processed_at: datetime
    event_id: str
    order_id: str
    region: str
    product: str
    status: str
    value_gbp: Decimal
    tier: str


@dataclass(frozen=True)
class FraudAlert:
    """A suspicious order; `reasons` are codes, `explanation` says them in words."""

    order_id: str
    order_date: date
    happened_at: datetime | None
    region: str
    value_gbp: Decimal
    score: float
    reasons: Sequence[str]
    explanation: str


@dataclass(frozen=True)
class DeadLetters:
    """Dead letters of a day for one reason: its code, the rule that is broken, and how many."""

    reason: str
    rule: str
    count: int


@dataclass(frozen=True)
class EventsOfDay:
    """The events that were received on a day: valid ones, dead ones, and the newest."""

    valid: int
    dead: int
    feed: Sequence[FeedEvent]
    dead_letters: Sequence[DeadLetters]
    alerts: Sequence[FraudAlert]
    alert_count: int

    @property
    def dead_share(self) -> float | None:
        """The share of events that are dead letters; None without events."""
        events = self.valid + self.dead
        return self.dead / events if events else None


def read_events(connection: duckdb.DuckDBPyConnection, day: date, now: datetime) -> EventsOfDay:
    """Read what was received on a day.

    Args:
        connection: a connection to the lake, on one snapshot.
        day: the day on which events were received; alerts are of its orders.
        now: the time, with a time zone.
    """
    (valid,) = connection.execute(
        "SELECT count(*) FROM enriched_events WHERE received_date = ?", [day]
    ).fetchone() or (0,)
    letters = _dead_letters(connection, day)
    (alert_count,) = connection.execute(
        "SELECT count(*) FROM fraud_alerts WHERE order_date = ?", [day]
    ).fetchone() or (0,)
    return EventsOfDay(
        valid=valid,
        dead=sum(each.count for each in letters),
        feed=_feed(connection, day, now),
        dead_letters=letters,
        alerts=_alerts(connection, day) if alert_count else (),
        alert_count=alert_count,
    )


def _feed(connection: duckdb.DuckDBPyConnection, day: date, now: datetime) -> list[FeedEvent]:
    found: list[FeedEvent] = []
    for since in (*(now - age for age in RECENT), None):
        rows = connection.execute(
            "SELECT processed_at, event_id, order_id, region, coalesce(product_name, 'unknown'),"
            " status, order_value_gbp, value_tier FROM enriched_events"
            " WHERE received_date = $day AND ($since IS NULL OR processed_at > $since)"
            f" ORDER BY processed_at DESC, received_at DESC, position DESC LIMIT {SHOWN_EVENTS}",
            {"day": day, "since": since},
        ).fetchall()
        found = [FeedEvent(*row) for row in rows]
        if len(found) == SHOWN_EVENTS:
            break
    return found


def _dead_letters(connection: duckdb.DuckDBPyConnection, day: date) -> list[DeadLetters]:
    rows = connection.execute(
        "SELECT reason, dead_letters FROM dead_letter_counts WHERE received_date = ?"
        " ORDER BY dead_letters DESC, reason",
        [day],
    ).fetchall()
    return [DeadLetters(reason, REASONS.get(reason, ""), count) for reason, count in rows]


def _alerts(connection: duckdb.DuckDBPyConnection, day: date) -> list[FraudAlert]:
    rows = connection.execute(
        "SELECT order_id, order_date, event_timestamp, region, order_value_gbp, score,"
        " string_split(reasons, ','), explanation FROM fraud_alerts WHERE order_date = ?"
        f" ORDER BY event_timestamp DESC NULLS LAST, score DESC, order_id LIMIT {SHOWN_ALERTS}",
        [day],
    ).fetchall()
    return [FraudAlert(*row) for row in rows]


def newest_dead_letters(connection: duckdb.DuckDBPyConnection, today: date) -> date:
    """The newest day on which dead letters were received; today, if there are none."""
    (day,) = connection.execute("SELECT max(received_date) FROM dead_letter_counts").fetchone() or (
        None,
    )
    return day or today
