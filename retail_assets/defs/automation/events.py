"""The sensor of the event pipeline: event files that land start runs, a bounded number at a time.

The ledger in the lake decides what is new, so late files, equal times and copies are no special
cases. The cursor only has the files of runs that failed as a whole, and how often; an unreadable
file fails alone within its run, and is entered in the lake.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timezone
from itertools import groupby, islice
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import PARTITION_NAME_TAG

from retail_assets.defs.assets.events import EVENT_TABLES, INGEST
from retail_assets.defs.automation.batch import IN_PROGRESS, MAX_ATTEMPTS
from retail_assets.ingest.event_files.folder import landing_day
from retail_assets.ingest.event_files.pending import Pending, pending_event_files
from retail_assets.ingest.ledgers.event_files import FoundFile, LakeState
from retail_assets.settings import Settings

EVENTS = "events"

FILES_PER_RUN = 5_000
BYTES_PER_RUN = 512 << 20
MAX_RUNS = 4
"""How many runs of files there are at once; other files wait for the next tick."""

COUNTED_RUNS = 200
OVERLAP_SECONDS = 60
"""How far the clocks of processes that write to runs may differ."""

WORKER_SECONDS = 60
"""How long the sensor leaves a file to a worker that is alive."""

SHOWN = 5


@dataclass
class Failures:
    """Files of runs that failed as a whole: their state then, and how often.

    `until` is the time of the last update of the newest counted run, in seconds since 1970.
    `counted` has the newest runs: Dagster also updates a run after it has failed.
    """

    until: float = 0.0
    attempts: dict[str, list[int]] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, cursor: str | None) -> "Failures":
        """Read a cursor."""
        return cls(**json.loads(cursor)) if cursor else cls()

    def dump(self) -> str:
        """The text of the cursor."""
        return json.dumps(asdict(self))

    def count(self, file: FoundFile) -> int:
        """How often a file, as it is, was in a run that failed."""
        size, modified, attempts = self.attempts.get(file.path, (None, None, 0))
        return int(attempts or 0) if (size, modified) == (file.size_bytes, file.modified_ns) else 0


def job() -> UnresolvedAssetJobDefinition:
    """The job that ingests event files, or replays days."""
    return dg.define_asset_job(
        EVENTS,
        selection=dg.AssetSelection.assets(*(table.name for table in EVENT_TABLES)),
        description="Event files to enriched events and dead letters. Without files in its"
        " configuration: recompute days from raw_events.",
    )


def sensor(settings: Settings) -> dg.SensorDefinition:
    """Ingest event files as they land."""

    @dg.sensor(
        name="new_event_files",
        job_name=EVENTS,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ingests event files as they land, grow or are replaced.",
    )
    def new_event_files(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        pending = pending_event_files(settings)
        running = _running(context.instance)
        failures = Failures.load(context.cursor)
        _count_failures(context.instance, failures, pending)
        busy = {path for _, files in running for path in files}
        abandoned = [
            path for path, file in pending.files.items() if failures.count(file) >= MAX_ATTEMPTS
        ]
        fresh = _fresh(pending)
        ready = [
            file
            for path, file in pending.files.items()
            if path not in busy and path not in fresh and failures.count(file) < MAX_ATTEMPTS
        ]
        busy_days = {day for day, _ in running}
        chosen = list(islice(batches(settings, ready, busy_days), max(0, MAX_RUNS - len(running))))
        requested = sum(len(files) for _, files in chosen)
        requests = [_request(day, files, failures, pending.lake) for day, files in chosen]
        message = _describe(pending, busy, fresh, abandoned, requested, len(ready) - requested)
        if requests:
            context.log.info(message)
        return dg.SensorResult(
            requests, skip_reason=None if requests else message, cursor=failures.dump()
        )

    return new_event_files


def batches(
    settings: Settings, files: Sequence[FoundFile], busy_days: Collection[str | None] = ()
) -> Iterator[tuple[date, list[FoundFile]]]:
    """Files that go into one run each: of one landing day, bounded in number and bytes.

    The newest day comes first, so that a backlog does not delay today. Days that are in a run
    already come last, so that today does not block a backlog.
    """
    today = datetime.now(ZoneInfo(settings.timezone)).date()

    def day_of(file: FoundFile) -> date:
        return landing_day(file, settings.timezone, settings.start_date, today)

    def order(file: FoundFile) -> tuple[bool, int, str]:
        day = day_of(file)
        return day.isoformat() in busy_days, -day.toordinal(), file.path

    for day, of_day in groupby(sorted(files, key=order), day_of):
        batch: list[FoundFile] = []
        weight = 0
        for file in of_day:
            if batch and (len(batch) >= FILES_PER_RUN or weight + file.size_bytes > BYTES_PER_RUN):
                yield day, batch
                batch, weight = [], 0
            batch.append(file)
            weight += file.size_bytes
        yield day, batch


def _request(
    day: date, files: Sequence[FoundFile], failures: Failures, lake: LakeState
) -> dg.RunRequest:
    state = [(file.path, file.size_bytes, file.modified_ns, lake.of(file.path)) for file in files]
    content = hashlib.sha256(json.dumps([lake.lake_id, state]).encode()).hexdigest()[:16]
    attempt = 1 + max(failures.count(file) for file in files)
    return dg.RunRequest(
        # Dagster silently drops a second run with the same key. So the key tells apart content, the
        # ledger's state, attempts and lakes: an older file may be restored, and a last line without
        # newline be ingested later.
        run_key=f"{day}:{content}:{attempt}",
        partition_key=day.isoformat(),
        run_config={
            "ops": {INGEST: {"config": {"files": [file.path for file in files]}}},
        },
        tags={"retail_assets/files": str(len(files)), "retail_assets/attempt": str(attempt)},
    )


def _running(instance: dg.DagsterInstance) -> list[tuple[str | None, list[str]]]:
    """The day and the files of each run that is queued or running."""
    runs = instance.get_runs(dg.RunsFilter(job_name=EVENTS, statuses=IN_PROGRESS))
    return [
        (run.tags.get(PARTITION_NAME_TAG), files)
        for run in runs
        if (files := _files_of(run.run_config))
    ]


def _count_failures(instance: dg.DagsterInstance, failures: Failures, pending: Pending) -> None:
    """Count the pending files of runs that failed since the last tick; drop all others."""
    records = instance.get_run_records(
        dg.RunsFilter(
            job_name=EVENTS,
            statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
            updated_after=datetime.fromtimestamp(
                max(0.0, failures.until - OVERLAP_SECONDS), timezone.utc
            ),
        )
    )
    for record in records:
        if record.dagster_run.run_id in failures.counted:
            continue
        failures.counted.append(record.dagster_run.run_id)
        started_ns = record.create_timestamp.timestamp() * 1e9
        for path in _files_of(record.dagster_run.run_config):
            file = pending.files.get(path)
            # A file that changed since is another one.
            if file is not None and file.modified_ns < started_ns:
                count = failures.count(file) + 1
                failures.attempts[path] = [file.size_bytes, file.modified_ns, count]
    failures.until = max(
        [failures.until, *(record.update_timestamp.timestamp() for record in records)]
    )
    failures.counted = failures.counted[-COUNTED_RUNS:]
    failures.attempts = {
        path: state for path, state in failures.attempts.items() if path in pending.files
    }


def _files_of(run_config: Mapping[str, Any]) -> list[str]:
    config = run_config.get("ops", {}).get(INGEST, {}).get("config", {})
    return list(config.get("files", []))


def _fresh(pending: Pending) -> set[str]:
    """The files that are left to an alive worker, which is faster than a run."""
    if not pending.lake.workers:
        return set()
    since = time.time_ns() - WORKER_SECONDS * 10**9
    return {path for path, file in pending.files.items() if file.modified_ns > since}


def _describe(
    pending: Pending,
    busy: set[str],
    fresh: set[str],
    abandoned: Sequence[str],
    requested: int,
    waiting: int,
) -> str:
    about = pending.about_not_read()
    not_read = f" {about}." if about else ""
    if not pending.files and not pending.unsettled and not pending.left_alone:
        by = (
            f" The worker {', '.join(pending.lake.workers)} is alive."
            if pending.lake.workers
            else ""
        )
        return f"No new event files.{by}{not_read}"
    parts = [f"{len(pending.files)} event files have something new"]
    for count, text in (
        (len(pending.unsettled), "may still be written to"),
        (len(busy & pending.files.keys()), "in runs already"),
        (len(fresh), f"left to the worker {', '.join(pending.lake.workers)}"),
        (requested, "go into runs now"),
        (waiting, "wait for the next tick"),
    ):
        if count:
            parts.append(f"{count} {text}")
    troubles = [
        *(f"{path} (its run failed {MAX_ATTEMPTS} times)" for path in abandoned),
        *(f"{path} ({reason})" for path, reason in pending.left_alone.items()),
    ]
    if troubles:
        shown = "; ".join(troubles[:SHOWN])
        parts.append(f"{len(troubles)} are left alone until they change, first of all {shown}")
    return "; ".join(parts) + f".{not_read}"
