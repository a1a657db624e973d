"""Materializations and checks of the event tables that no run makes, from the lake's history.

Whoever has ingested, a thread, a worker or a command: the sensor `new_event_files` reports each day
that a commit has changed since its cursor, and then the tables of a worker's consumers. Dagster
stores what a tick reports with its cursor, so that a tick that dies is made good by the next one.
What a run has reported itself is known by its materialization: that has a later snapshot.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import islice
from typing import Any

import dagster as dg
import duckdb

from retail_assets import business_days, tables
from retail_assets.consumers.framework import lag
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs import asset_checks, partitions
from retail_assets.defs.assets.events import EVENT_TABLES, event_publication, ingest_metadata
from retail_assets.defs.automation.batch import IN_PROGRESS
from retail_assets.defs.io_manager import day_metadata
from retail_assets.ingest.event_files.load import IngestResult
from retail_assets.ingest.ledgers.offsets import consumer_offsets
from retail_assets.ingest.ledgers.workers import alive_workers
from retail_assets.lake import history
from retail_assets.lake.connection import current_snapshot
from retail_assets.settings import Settings

CHECKS = "event_checks"
"""The job that runs the checks of the event tables and of the consumers' tables."""

WORKER_SECONDS = 60
"""How often days are reported at most while a worker fills them: each report is an event."""

CHECK_SECONDS = 60
"""How often changed days are checked at most: each time is a run."""

GATHER_SECONDS = 20
"""How long the first days that have changed wait for others to be checked with them."""

MOST_COMMITS = 100
"""How many commits are looked at by a tick, which has a minute: each may have 245,760 events."""

MOST_DAYS = 50
"""How many days are reported at once; more wait for the next tick."""


@dataclass
class Reported:
    """How far the lake was reported, in the cursor of the sensor.

    `snapshot` was committed at `snapshot_us`, in µs since 1970. `waiting` has the last snapshot of
    each day that is not reported yet, `unchecked` the days to check at `check_at`; times are in
    seconds since 1970. `worker_at` is the last report while a worker was alive, `newest` the last
    days that it filled, and `offsets` how far each consumer was.
    """

    snapshot: int = -1
    snapshot_us: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    check_at: float = 0.0
    worker_at: float = 0.0
    newest: list[str] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, cursor: str | None) -> "Reported":
        """Read a cursor; one of an earlier release says nothing about reports."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except TypeError:
            return cls()

    def dump(self) -> str:
        """The text of the cursor."""
        return json.dumps(asdict(self))


@dataclass
class Reporter:
    """Finds what is to be reported of a lake at `now`, in seconds since 1970."""

    settings: Settings
    instance: dg.DagsterInstance
    connection: duckdb.DuckDBPyConnection
    reported: Reported
    now: float
    events: list[dg.AssetMaterialization] = field(default_factory=list)

    def report(
        self, busy: Sequence[tuple[date, date]], results: dict[date, IngestResult]
    ) -> list[dg.AssetMaterialization]:
        """Return materializations of changed days, and of tables of consumers that a worker runs.

        Args:
            busy: the days of runs that have not ended: these report them.
            results: of files that this process has ingested, by day; those of reported days go.
        """
        reported = self.reported
        self._find()
        if not (reported.waiting or reported.newest or results):
            return []
        workers = ", ".join(found.worker for found in alive_workers(self.connection))
        # The clock may have been set back since.
        if workers and abs(self.now - reported.worker_at) < WORKER_SECONDS:
            return []
        # A file that failed changes no day, but a check names it.
        failed = [day.isoformat() for day, found in results.items() if found.failed]
        for day in [day for day, found in results.items() if not found.files]:
            del results[day]
        waiting = sorted({*map(date.fromisoformat, reported.waiting), *results}, reverse=True)
        ready = (day for day in waiting if not any(a <= day <= b for a, b in busy))
        days = set(islice(ready, MOST_DAYS))
        ended = bool(reported.newest and not workers)
        behind = self._behind() if workers or ended else set()
        again = set(map(date.fromisoformat, reported.newest)) if ended and behind else set()
        names = self._report_days(days | again, again, results, workers)
        if workers or ended:
            self._report_consumers(behind, moved=bool(names), workers=workers)
        if workers:
            reported.newest, reported.worker_at = sorted(names) or reported.newest, self.now
        else:
            if not reported.unchecked:
                reported.check_at = max(reported.check_at, self.now + GATHER_SECONDS)
            reported.newest, reported.unchecked = [], [*names.union(reported.unchecked, failed)]
        reported.offsets = dict(consumer_offsets(self.connection))
        return self.events

    def _find(self) -> None:
        """Add the days that commits have changed since the last report."""
        connection, reported = self.connection, self.reported
        now = current_snapshot(connection)
        upto = min(now, reported.snapshot + MOST_COMMITS)
        found = None
        # Else it is another lake, or another one's backup.
        if reported.snapshot_us == history.committed_us(connection, reported.snapshot):
            found = history.changed_days(connection, reported.snapshot, upto, *EVENT_TABLES)
        if found is None:
            found, upto = self._unknown(now), now
        for day, snapshot in found.items():
            if day >= self.settings.start_date:
                reported.waiting[day.isoformat()] = snapshot
        reported.snapshot = upto
        reported.snapshot_us = history.committed_us(connection, upto) or 0

    def _unknown(self, snapshot: int) -> dict[date, int]:
        """Without a known position: the days with rows since the newest materializations.

        Also all days that were never materialized.
        """
        keys = [dg.AssetKey(table.name) for table in EVENT_TABLES]
        newest = map(self.instance.get_latest_materialization_event, keys)
        until = min(event.timestamp if event else 0.0 for event in newest)
        shown = set.intersection(*map(self.instance.get_materialized_partitions, keys))
        rows = self.connection.execute(
            "SELECT received_date, max(epoch(processed_at)) FROM (SELECT received_date,"
            " processed_at FROM lake.enriched_events UNION ALL SELECT received_date, processed_at"
            " FROM lake.dead_letter_events) GROUP BY 1"
        ).fetchall()
        return {
            day: snapshot
            for day, processed in rows
            if processed >= until or day.isoformat() not in shown
        }

    def _report_days(
        self,
        days: Collection[date],
        again: Collection[date],
        results: dict[date, IngestResult],
        workers: str,
    ) -> set[str]:
        """Report days unless Dagster shows them as they are; returns those that it did not."""
        new = set()
        for first, last in business_days.ranges(sorted(days)):
            some = business_days.days_between(first, last)
            for table in EVENT_TABLES:
                publication = event_publication(self.connection, table, some)
                for day, metadata in day_metadata(self.connection, publication):
                    name = day.isoformat()
                    if day in again or day in results or not self._is_reported(table, name):
                        new.add(name)
                        about = ingest_metadata(results[day]) if day in results else {}
                        about |= {"worker": workers} if workers else {}
                        self._materialized(table, {**about, **metadata}, name)
        for day in days:
            self.reported.waiting.pop(day.isoformat(), None)
            results.pop(day, None)
        return new

    def _is_reported(self, table: tables.Table, day: str) -> bool:
        """Whether Dagster shows a day with its last change, by a materialization of this lake."""
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(table.name), asset_partitions=[day]), limit=1
        ).records
        if not found or (shown := found[0].asset_materialization) is None:
            return False
        snapshot = getattr(shown.metadata.get("snapshot"), "value", None)
        if not isinstance(snapshot, int) or snapshot < self.reported.waiting[day]:
            return False
        # A lake that was there before had the same ids at other times.
        committed = history.committed_us(self.connection, snapshot)
        return committed is not None and committed <= found[0].timestamp * 1e6

    def _behind(self) -> set[str]:
        """The consumers that have yet to follow some changes."""
        consumers = all_consumers(self.settings)
        return {each.name for each in consumers if lag(self.connection, each).snapshots}

    def _report_consumers(self, behind: Collection[str], *, moved: bool, workers: str) -> None:
        """Report the tables of consumers that a worker runs, after what they follow.

        In this order Dagster starts no run for what a worker has done. Consumers that no worker
        runs, because it was killed or started without them, are left to Dagster: their tables are
        not reported, and after the end of the worker the events are reported again, so that they
        follow.
        """
        offsets = consumer_offsets(self.connection)
        for consumer in all_consumers(self.settings):
            offset = offsets.get(consumer.name)
            has_moved = offset != self.reported.offsets.get(consumer.name)
            followed = consumer.name not in behind
            due = (moved or has_moved) and (followed or (workers and has_moved))
            if offset is not None and due:
                for table in consumer.tables:
                    self._materialized(table, {"worker": workers, "to_snapshot": offset})

    def _materialized(
        self, table: tables.Table, metadata: Mapping[str, Any], day: str | None = None
    ) -> None:
        self.events.append(dg.AssetMaterialization(table.name, partition=day, metadata=metadata))


def check_run(reported: Reported, instance: dg.DagsterInstance, now: float) -> list[dg.RunRequest]:
    """At most one run that checks the days that were reported, once a minute."""
    running = dg.RunsFilter(job_name=CHECKS, statuses=IN_PROGRESS)
    if (
        not reported.unchecked
        # The clock may have been set back since.
        or now < reported.check_at < now + 2 * CHECK_SECONDS
        or instance.get_runs(running, limit=1)
    ):
        return []
    days, reported.unchecked = sorted(reported.unchecked), []
    reported.check_at = now + CHECK_SECONDS
    return [
        dg.RunRequest(
            job_name=CHECKS,
            asset_check_keys=[
                dg.AssetCheckKey(dg.AssetKey(table.name), name)
                for table in EVENT_TABLES
                for name in asset_checks.checks_of(table)
            ],
            tags={
                partitions.RANGE_START: days[0],
                partitions.RANGE_END: days[-1],
                # After what delays events.
                "dagster/priority": "-1",
            },
        )
    ]
