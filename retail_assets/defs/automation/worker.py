"""Dagster's view of the stream worker: a sensor that reports the worker's heartbeat.

The worker needs no Dagster, and may run on another machine: it writes a row into the lake. The
sensor turns that into materializations of `stream_worker`, whose freshness policy then shows
whether the worker is alive, lagging or dead; `reports` reports what it has ingested. Without runs
there are no checks: a schedule runs those of the worker's tables each morning.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.assets.events import EVENT_TABLES
from retail_assets.defs.automation.reports import CHECKS
from retail_assets.ingest.ledgers.workers import (
    ALIVE,
    DEAD,
    FAILED_SECONDS,
    LAGGING,
    Heartbeat,
    heartbeats,
    in_charge,
    state,
)
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings

WORKER = "stream_worker"

REPORT_SECONDS = 60
"""How often it is reported as materialized at most: each report is a Dagster event."""

SPEC = dg.AssetSpec(
    WORKER,
    group_name="events",
    description="The resident worker `retail-assets stream`: reported as materialized while it"
    " is alive and keeps up.",
    freshness_policy=dg.FreshnessPolicy.time_window(
        warn_window=timedelta(minutes=2), fail_window=timedelta(seconds=FAILED_SECONDS)
    ),
    kinds={"python", "kafka"},
)


@dataclass
class Reported:
    """The last report, in the sensor's cursor: its time, and the state of the worker."""

    at: str = ""
    state: str = ""

    @classmethod
    def load(cls, cursor: str | None) -> "Reported":
        """Read a cursor; those of earlier releases have more."""
        found = json.loads(cursor) if cursor else {}
        return cls(found.get("at", ""), found.get("state", ""))

    def dump(self) -> str:
        """The text of the cursor."""
        return json.dumps(asdict(self))


def job(settings: Settings) -> UnresolvedAssetJobDefinition:
    """The job that runs the checks of the event tables and of the consumers' tables."""
    written = (*EVENT_TABLES, *(table for each in all_consumers(settings) for table in each.tables))
    return dg.define_asset_job(
        CHECKS,
        selection=dg.AssetSelection.checks_for_assets(*(table.name for table in written)),
        description="All checks of the event tables and of the consumers' tables, over all days.",
    )


def schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Run the checks after the night's batch."""

    @dg.schedule(
        name=CHECKS,
        job_name=CHECKS,
        cron_schedule="0 7 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Checks at seven that what the stream worker wrote, without a run of Dagster,"
        " is right and agrees with the batch.",
    )
    def event_checks() -> dg.RunRequest | dg.SkipReason:
        if not Lake.from_settings(settings).exists():
            return dg.SkipReason("There is no lake yet.")
        return dg.RunRequest()

    return event_checks


def sensor(settings: Settings) -> dg.SensorDefinition:
    """Report what the stream worker does."""

    @dg.sensor(
        name=WORKER,
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows whether the stream worker is alive and keeps up.",
    )
    def stream_worker(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        reported = Reported.load(context.cursor)
        now = datetime.now(timezone.utc)
        try:
            with Lake.from_settings(settings).connect(read_only=True) as connection:
                found = heartbeats(connection)
                events = list(_report(found, reported, now))
        except NoLakeError:
            return dg.SensorResult(skip_reason="There is no lake yet.")
        return dg.SensorResult(
            asset_events=events, skip_reason=_describe(found, now), cursor=reported.dump()
        )

    return stream_worker


def _report(
    found: Sequence[Heartbeat], reported: Reported, now: datetime
) -> Iterator[dg.AssetMaterialization | dg.AssetObservation]:
    workers = list(in_charge(found, now).values())
    states = {state(worker, now) for worker in workers}
    # Each source may have a worker of its own: the worst state counts.
    worst = next((name for name in (DEAD, LAGGING, ALIVE) if name in states), "")
    # The clock may have been set back since.
    due = not reported.at or abs(now - datetime.fromisoformat(reported.at)) >= timedelta(
        seconds=REPORT_SECONDS
    )
    changed = worst != reported.state
    if not found or not (due or changed):
        return
    metadata = _metadata(workers, now)
    if worst == ALIVE:
        yield dg.AssetMaterialization(WORKER, metadata=metadata)
    elif worst and (changed or worst != DEAD):
        yield dg.AssetObservation(WORKER, metadata=metadata)
    reported.state, reported.at = worst, now.isoformat()


def _metadata(workers: Sequence[Heartbeat], now: datetime) -> dict[str, Any]:
    order = (ALIVE, LAGGING, DEAD)
    worker = max(
        workers,
        key=lambda each: (
            *(state(each, now) == name for name in order[::-1]),
            min(each.heartbeat_at, now),
        ),
    )
    metrics = {
        name: value
        for name, value in worker.metrics.items()
        if name != "sources" and value is not None
    }
    return {
        "worker": worker.worker,
        "state": state(worker, now),
        "last_heartbeat": dg.MetadataValue.timestamp(worker.heartbeat_at),
        "sources": ", ".join(worker.sources),
        **({"problem": worker.problem} if worker.problem else {}),
        **metrics,
        **{
            f"{source}_{name}": count
            for source, totals in worker.metrics.get("sources", {}).items()
            for name, count in totals.items()
        },
    }


def _describe(found: Sequence[Heartbeat], now: datetime) -> str:
    shown = [
        f"Worker {worker.worker} on {worker.host} is {state(worker, now)}, last seen"
        f" {worker.last_seen(now)}" + (f": {worker.problem}" if worker.problem else "")
        for worker in found[:3]
    ]
    return "; ".join(shown) + "." if shown else "No stream worker was ever started."
