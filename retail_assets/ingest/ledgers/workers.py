"""The heartbeat of workers: rows in the lake that say which live, what they do and how fast."""

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
"""How often a worker says that it lives."""

DEAD_SECONDS = 10.0
"""After how long a silence others take its work over."""

LATE_SECONDS = 60
"""A worker is late when something has waited for it so long, or is wrong."""

FAILED_SECONDS = 300
"""A worker that is late for so long has failed: its asset is no longer fresh, people are told."""

FOLD_ROWS = 20

GIVEN_UP = timedelta(days=1)
"""A source that only dead workers took counts no more after so long, if another worker lives."""

LAG = "_lag_seconds"
"""After the name of a consumer, the figure of how far it is behind."""

RUNNING, STOPPED = "running", "stopped"
ALIVE, LATE, DEAD = "alive", "lagging", "dead"

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
    figures: dict[str, Any]
    started_at: datetime
    heartbeat_at: datetime

    def silent_seconds(self, now: datetime) -> float:
        """Seconds since its last heartbeat; negative by a clock that is ahead of this one."""
        return (now - self.heartbeat_at).total_seconds()

    def is_ahead(self, now: datetime) -> bool:
        """Whether its last heartbeat lies in the future, by more than clocks usually differ.

        A clock was set back since, or its host's is ahead: it cannot be told how old it is.
        """
        return self.silent_seconds(now) <= -DEAD_SECONDS

    def last_seen(self, now: datetime) -> str:
        """When it was last seen, in words."""
        seconds = self.silent_seconds(now)
        if self.is_ahead(now):
            return f"by a clock that is {-seconds:.0f} s ahead of this one"
        return f"{max(seconds, 0):.0f} s ago"

    def lives(self, now: datetime) -> bool:
        """Whether it runs, as far as one can know."""
        return self.state == RUNNING and abs(self.silent_seconds(now)) < DEAD_SECONDS

    @property
    def late_seconds(self) -> float:
        """How long it has been late, when it last said something."""
        return float(self.figures.get("late_seconds") or 0)


def new_worker() -> str:
    """A name for this start of a worker: the time in UTC, and something that no other has."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"


def beat(
    connection: duckdb.DuckDBPyConnection,
    worker: str,
    sources: Sequence[str],
    state: str,
    problem: str | None,
    figures: dict[str, Any],
    started_at: datetime,
) -> None:
    """In the caller's transaction, say that a worker lives (or has stopped).

    While it lives rows are only appended, for `fold`: to replace one would hold the events of the
    same transaction up.
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
        "figures VARCHAR": [json.dumps(figures)],
        "started_at TIMESTAMPTZ": [started_at],
    }
    insert_columns(connection, "stream_workers", columns, "now() AS heartbeat_at")


def is_long(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether it is time to `fold`."""
    row = connection.execute(
        "SELECT count(*) - count(DISTINCT worker) FROM lake.stream_workers"
    ).fetchone()
    return row is not None and row[0] >= FOLD_ROWS


def fold(connection: duckdb.DuckDBPyConnection) -> None:
    """In the caller's transaction, forget all heartbeats of each worker but the newest."""
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
            json.loads(figures),
            started,
            heard,
        )
        for worker, host, process_id, sources, state, problem, figures, started, heard in rows
    ]


def living(connection: duckdb.DuckDBPyConnection, source: str | None = None) -> list[Heartbeat]:
    """The workers that live, and take events from a source, if one is named."""
    now = datetime.now(timezone.utc)
    return [
        found
        for found in heartbeats(connection)
        if found.lives(now) and (source is None or source in found.sources)
    ]


def in_charge(found: Sequence[Heartbeat], now: datetime) -> dict[str, Heartbeat]:
    """The worker that counts for each source, of all that were seen, the newest first.

    It is one that lives and keeps up, otherwise one that lives, otherwise the newest.
    """
    sources = sorted({source for worker in found for source in worker.sources})
    workers = {
        source: max(
            (worker for worker in found if source in worker.sources),
            key=lambda worker: (
                worker.lives(now),
                state(worker, now) == ALIVE,
                -found.index(worker),
            ),
        )
        for source in sources
    }
    if any(worker.lives(now) for worker in workers.values()):
        since = now - GIVEN_UP
        return {
            name: worker
            for name, worker in workers.items()
            if worker.heartbeat_at > since and not worker.is_ahead(now)
        }
    return workers


def state(worker: Heartbeat, now: datetime) -> str:
    """Whether a worker is alive, late or dead, or stopped in order."""
    if worker.state == STOPPED:
        return STOPPED
    if not worker.lives(now):
        return DEAD
    return LATE if is_late(worker.problem, worker.figures) else ALIVE


def is_late(problem: str | None, figures: Mapping[str, Any]) -> bool:
    """Whether a worker that has this problem and these figures does not keep up."""
    waits = [
        figures.get("oldest_pending_event_file_seconds"),
        (figures.get("latency_p50_ms") or 0) / 1000,
        *(value for name, value in figures.items() if name.endswith(LAG)),
    ]
    return bool(problem) or any((seconds or 0) > LATE_SECONDS for seconds in waits)
