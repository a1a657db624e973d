"""The heartbeats of workers: rows in the lake with their state and their metrics."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import duckdb

from retail_assets.lake.rows import insert_columns

BEAT_SECONDS = 3.0
"""How often a worker writes a heartbeat."""

DEAD_SECONDS = 10.0
"""Seconds without a heartbeat after which others take over."""

LAGGING_SECONDS = 60
"""A worker is lagging if something has waited for it so long, or it has a problem."""

FAILED_SECONDS = 300
"""After so long a lagging worker has failed: its asset is no longer fresh, people are notified."""

COMPACT_ROWS = 20

ABANDONED_AFTER = timedelta(days=1)
"""After so long, a source that only dead workers had does not count, if another worker is alive."""

LAG = "_lag_seconds"
"""The end of the metric's name for the lag of a consumer."""

FILE_GAUGES = (
    "pending_event_files",
    "pending_event_bytes",
    "oldest_pending_event_file_seconds",
    "event_files_left_alone",
    "event_files_not_read",
)
"""Metrics of the events folder, from the worker's last scan."""

RUNNING, STOPPED = "running", "stopped"
ALIVE, LAGGING, DEAD = "alive", "lagging", "dead"

FILES = "files"


@dataclass(frozen=True)
class Heartbeat:
    """A worker as it last was."""

    worker: str
    host: str
    process_id: int
    sources: tuple[str, ...]
    state: str
    problem: str | None
    metrics: dict[str, Any]
    started_at: datetime
    heartbeat_at: datetime

    def silent_seconds(self, now: datetime) -> float:
        """Seconds since its last heartbeat; negative by a clock that is ahead of this one."""
        return (now - self.heartbeat_at).total_seconds()

    def is_ahead(self, now: datetime) -> bool:
        """Whether its last heartbeat lies in the future, by more than clocks usually differ.

        A clock was set back since, or its host's is ahead: its age is unknown.
        """
        return self.silent_seconds(now) <= -DEAD_SECONDS

    def last_seen(self, now: datetime) -> str:
        """When it was last seen, in words."""
        seconds = self.silent_seconds(now)
        if self.is_ahead(now):
            return f"by a clock that is {-seconds:.0f} s ahead of this one"
        return f"{max(seconds, 0):.0f} s ago"

    def is_alive(self, now: datetime) -> bool:
        """Whether it runs, by its last heartbeat."""
        return self.state == RUNNING and abs(self.silent_seconds(now)) < DEAD_SECONDS

    @property
    def lagging_seconds(self) -> float:
        """How long it has been lagging, as of its last heartbeat."""
        return float(self.metrics.get("late_seconds") or 0)


def new_worker() -> str:
    """A name for this start of a worker: the time in UTC and a random suffix."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"


def beat(
    connection: duckdb.DuckDBPyConnection,
    worker: str,
    sources: Sequence[str],
    state: str,
    problem: str | None,
    metrics: dict[str, Any],
    started_at: datetime,
) -> None:
    """Write the heartbeat of a worker, in the caller's transaction.

    Until it has stopped, rows are only appended, for `compact`: to replace one would delay the
    events of the same transaction.
    """
    if state == STOPPED:
        connection.execute("DELETE FROM lake.stream_workers WHERE worker = ?", [worker])
    columns: dict[str, list[object]] = {
        "worker VARCHAR": [worker],
        "host VARCHAR": [socket.gethostname()],
        "process_id BIGINT": [os.getpid()],
        "sources VARCHAR": [", ".join(sources)],
        "state VARCHAR": [state],
        "problem VARCHAR": [problem],
        "figures VARCHAR": [json.dumps(metrics)],
        "started_at TIMESTAMPTZ": [started_at],
    }
    insert_columns(connection, "stream_workers", columns, "now() AS heartbeat_at")


def is_long(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether it is time to `compact`."""
    row = connection.execute(
        "SELECT count(*) - count(DISTINCT worker) FROM lake.stream_workers"
    ).fetchone()
    return row is not None and row[0] >= COMPACT_ROWS


def compact(connection: duckdb.DuckDBPyConnection) -> None:
    """Delete all heartbeats but the newest of each worker, in the caller's transaction."""
    connection.execute(
        "DELETE FROM lake.stream_workers WHERE rowid NOT IN"
        " (SELECT max(rowid) FROM lake.stream_workers GROUP BY worker)"
    )


def heartbeats(connection: duckdb.DuckDBPyConnection, *, latest: int = 20) -> list[Heartbeat]:
    """The workers that committed a heartbeat last, the newest first."""
    rows = connection.execute(
        "SELECT worker, host, process_id, sources, state, problem, figures, started_at,"
        " heartbeat_at FROM lake.stream_workers"
        # Not by their times: clocks are set back, and those of other hosts are ahead.
        " QUALIFY row_number() OVER (PARTITION BY worker ORDER BY rowid DESC) = 1"
        " ORDER BY rowid DESC LIMIT ?",
        [latest],
    ).fetchall()
    return [
        Heartbeat(
            worker,
            host,
            process_id,
            tuple(sources.split(", ")),
            state,
            problem,
            json.loads(metrics),
            started,
            seen,
        )
        for worker, host, process_id, sources, state, problem, metrics, started, seen in rows
    ]


def alive_workers(
    connection: duckdb.DuckDBPyConnection, source: str | None = None
) -> list[Heartbeat]:
    """The workers that are alive, and have a source, if one is named."""
    now = datetime.now(timezone.utc)
    return [
        found
        for found in heartbeats(connection)
        if found.is_alive(now) and (source is None or source in found.sources)
    ]


def in_charge(found: Sequence[Heartbeat], now: datetime) -> dict[str, Heartbeat]:
    """The worker that counts for each source, of all that were seen, the newest first.

    It is one that is alive and keeps up, otherwise one that is alive, otherwise the newest.
    """
    sources = sorted({source for worker in found for source in worker.sources})
    workers = {
        source: max(
            (worker for worker in found if source in worker.sources),
            key=lambda worker: (
                worker.is_alive(now),
                state(worker, now) == ALIVE,
                -found.index(worker),
            ),
        )
        for source in sources
    }
    if any(worker.is_alive(now) for worker in workers.values()):
        since = now - ABANDONED_AFTER
        return {
            name: worker
            for name, worker in workers.items()
            if worker.heartbeat_at > since and not worker.is_ahead(now)
        }
    return workers


def state(worker: Heartbeat, now: datetime) -> str:
    """Whether a worker is alive, lagging, dead or stopped."""
    if worker.state == STOPPED:
        return STOPPED
    if not worker.is_alive(now):
        return DEAD
    return LAGGING if is_lagging(worker.problem, worker.metrics) else ALIVE


def is_lagging(problem: str | None, metrics: Mapping[str, Any]) -> bool:
    """Whether a worker with this problem and these metrics does not keep up."""
    waits = [
        metrics.get("oldest_pending_event_file_seconds"),
        (metrics.get("latency_p50_ms") or 0) / 1000,
        *(value for name, value in metrics.items() if name.endswith(LAG)),
    ]
    return bool(problem) or any((seconds or 0) > LAGGING_SECONDS for seconds in waits)
