"""The page Health: the verdict, and how far sources and consumers are behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.consumers.framework import lag
from retail_assets.consumers.registry import all_consumers
from retail_assets.health.outside import Pending, look_outside
from retail_assets.health.verdict import Verdict, verdict
from retail_assets.ingest.ledgers.workers import Heartbeat, heartbeats, state
from retail_assets.lake import history
from retail_assets.lake.checksums import Verification
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.settings import Settings

HOUR = timedelta(hours=1)
RECENT_DAYS = 7
"""Days whose files and workers are shown; older ones are over."""


@dataclass(frozen=True)
class Source:
    """A source of events, in the last days: lines, those that are dead letters, the newest."""

    name: str
    lines: int
    dead_lettered: int
    newest_at: datetime


@dataclass(frozen=True)
class ConsumerLag:
    """How far a consumer is behind, in commits and seconds, and its quarantined keys."""

    name: str
    commits: int
    seconds: float
    quarantined: int


@dataclass(frozen=True)
class Worker:
    """A start of the worker: its state is `alive`, `lagging`, `dead` or `stopped`."""

    heartbeat: Heartbeat
    state: str


@dataclass(frozen=True)
class LastHour:
    """Events of the last hour: by minute, the oldest first, and their latency in seconds.

    Latency is from receipt to visible; None without events.
    """

    by_minute: Sequence[int]
    dead: int
    p50: float | None
    p95: float | None

    @property
    def events(self) -> int:
        """Valid events of the hour."""
        return sum(self.by_minute)

    @property
    def dead_share(self) -> float | None:
        """The share of dead letters; None without events."""
        lines = self.events + self.dead
        return self.dead / lines if lines else None


@dataclass(frozen=True)
class Health:
    """All that the page shows, as of a snapshot and its commit."""

    verdict: Verdict
    snapshot: int
    committed_at: datetime | None
    workers: Sequence[Worker]
    sources: Sequence[Source]
    consumers: Sequence[ConsumerLag]
    last_hour: LastHour
    pending: Sequence[Pending]
    verified: Verification | None


def read_health(
    connection: duckdb.DuckDBPyConnection, lake: Lake, settings: Settings, now: datetime
) -> Health:
    """Read the state of the platform.

    Args:
        connection: a connection to the lake.
        lake: the lake, for the notes of its verifications.
        settings: the folders and limits.
        now: the time, with a time zone.
    """
    outside = look_outside(connection, lake, settings, now)
    snapshot = current_snapshot(connection)
    committed = history.committed_us(connection, snapshot)
    return Health(
        verdict=verdict(connection, settings, now, outside.issues),
        snapshot=snapshot,
        committed_at=None
        if committed is None
        else datetime.fromtimestamp(committed / 1e6, ZoneInfo(settings.timezone)),
        workers=_workers(connection, now),
        sources=_sources(connection, now),
        consumers=_consumers(connection, settings),
        last_hour=read_last_hour(connection, settings, now),
        pending=outside.pending,
        verified=outside.verified,
    )


def _workers(connection: duckdb.DuckDBPyConnection, now: datetime) -> list[Worker]:
    since = now - timedelta(days=RECENT_DAYS)
    found = [each for each in heartbeats(connection, latest=5) if each.heartbeat_at > since]
    return [Worker(each, state(each, now)) for each in found]


def _sources(connection: duckdb.DuckDBPyConnection, now: datetime) -> list[Source]:
    rows = connection.execute(
        "SELECT name, sum(lines)::BIGINT, sum(dead)::BIGINT, max(newest) FROM ("
        "SELECT 'files' AS name, lines, dead_lettered AS dead, ingested_at AS newest"
        " FROM event_files WHERE ingested_at > $since UNION ALL"
        " SELECT name, lines, dead_lettered, updated_at FROM stream_offsets"
        " WHERE kind = 'source' AND updated_at > $since) GROUP BY name ORDER BY name",
        {"since": now - timedelta(days=RECENT_DAYS)},
    ).fetchall()
    return [Source(*row) for row in rows]


def _consumers(connection: duckdb.DuckDBPyConnection, settings: Settings) -> list[ConsumerLag]:
    quarantined: dict[str, int] = dict(
        connection.execute(
            "SELECT consumer, count(*) FROM consumer_dead_letters GROUP BY 1"
        ).fetchall()
    )
    found = []
    for consumer in all_consumers(settings):
        behind = lag(connection, consumer)
        keys = quarantined.get(consumer.name, 0)
        found.append(ConsumerLag(consumer.name, behind.snapshots, behind.seconds, keys))
    return found


def read_last_hour(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> LastHour:
    """Count the events of the last hour, minute by minute."""
    since = now - HOUR
    first = since.astimezone(ZoneInfo(settings.timezone)).date() - timedelta(days=1)
    within = "received_date >= $first AND processed_at > $since AND processed_at <= $now"
    values = {"first": first, "since": since, "now": now}
    rows = connection.execute(
        "SELECT least(59, date_diff('second', $since::TIMESTAMPTZ, processed_at) // 60) AS minute,"
        f" count(*) FROM enriched_events WHERE {within} GROUP BY 1",
        values,
    ).fetchall()
    counts = dict(rows)
    p50, p95 = connection.execute(
        "SELECT quantile_cont(seconds, 0.5), quantile_cont(seconds, 0.95) FROM (SELECT"
        " greatest(date_diff('millisecond', received_at, processed_at), 0) / 1000 AS seconds"
        f" FROM enriched_events WHERE {within} AND received_at > $since)",
        values,
    ).fetchone() or (None, None)
    (dead,) = connection.execute(
        f"SELECT count(*) FROM dead_letter_events WHERE {within}", values
    ).fetchone() or (0,)
    return LastHour([counts.get(minute, 0) for minute in range(60)], dead, p50, p95)
