"""The page Health: the verdict, and how far sources and consumers are behind."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.consumers.framework import lag
from retail_assets.consumers.registry import all_consumers
from retail_assets.errors import RetailAssetsError
from retail_assets.health.verdict import Issue, Level, Verdict, verdict
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.ledgers.workers import Heartbeat, heartbeats, state
from retail_assets.lake import history
from retail_assets.lake.checksums import Verification, last_verification
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from retail_assets.ingest.exports.pending import PendingFile
    from retail_assets.ingest.ledgers.event_files import FoundFile

HOUR = timedelta(hours=1)
RECENT_DAYS = 7
"""Days whose files and workers are shown; older ones are over."""

WAITING_SECONDS = 600
"""A file that has waited so long is a warning: a sensor or a worker would have ingested it."""


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
class Pending:
    """Files that wait: how many, their bytes, and seconds since the oldest was written."""

    kind: str
    files: int
    bytes: int
    oldest_seconds: float


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
    pending, unread = _pending(connection, settings, now)
    verified, damage = _verified(lake)
    snapshot = current_snapshot(connection)
    committed = history.committed_us(connection, snapshot)
    return Health(
        verdict=verdict(connection, settings, now, [*unread, *_late(pending), *damage]),
        snapshot=snapshot,
        committed_at=None
        if committed is None
        else datetime.fromtimestamp(committed / 1e6, ZoneInfo(settings.timezone)),
        workers=_workers(connection, now),
        sources=_sources(connection, now),
        consumers=_consumers(connection, settings),
        last_hour=read_last_hour(connection, settings, now),
        pending=pending,
        verified=verified,
    )


def _pending(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> tuple[list[Pending], list[Issue]]:
    found: list[Pending] = []
    issues: list[Issue] = []
    try:
        exports = pending_exports(settings, connection)
        found.append(_summary("exports", exports.values(), now))
        if settings.events_listed:
            events = pending_event_files(settings, connection)
            found.append(_summary("event files", events.files.values(), now))
            issues += [
                Issue(Level.warning, "left_alone", f"{path} {reason}.")
                for path, reason in events.left_alone.items()
            ]
            if text := events.about_not_read():
                issues.append(Issue(Level.warning, "not_read", text))
    except (RetailAssetsError, OSError) as error:
        issues.append(Issue(Level.warning, "folder", f"Files cannot be listed: {error}"))
    return found, issues


def _summary(
    kind: str, files: "Collection[PendingFile] | Collection[FoundFile]", now: datetime
) -> Pending:
    oldest = min((file.modified_ns for file in files), default=None)
    waited = 0.0 if oldest is None else max(now.timestamp() - oldest / 1e9, 0.0)
    return Pending(kind, len(files), sum(file.size_bytes for file in files), waited)


def _late(pending: Sequence[Pending]) -> list[Issue]:
    return [
        Issue(
            Level.warning,
            "waiting",
            f"{each.files:,} {each.kind} have not been ingested, the oldest for"
            f" {each.oldest_seconds / 60:,.0f} minutes: start `make ui`, whose sensors ingest them,"
            f" or run `retail-assets {_COMMANDS[each.kind]}`.",
        )
        for each in pending
        if each.files and each.oldest_seconds > WAITING_SECONDS
    ]


_COMMANDS = {"exports": "backfill", "event files": "ingest-events"}


def _verified(lake: Lake) -> tuple[Verification | None, list[Issue]]:
    try:
        last = last_verification(lake)
    except RetailAssetsError as error:
        return None, [Issue(Level.warning, "verification", str(error))]
    if last is None or not last.damaged:
        return last, []
    text = (
        f"{last.damaged:,} files of the lake are damaged: {last.found}. `retail-assets verify`"
        " names all of them and what brings their rows back."
    )
    return last, [Issue(Level.failure, "damage", text)]


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
