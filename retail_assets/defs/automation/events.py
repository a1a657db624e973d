"""The sensor of the event pipeline: small arrivals are ingested as they land, large ones by runs.

Its ticks renew a thread of the code server that watches the folder, and request a bounded number of
runs. The ledger in the lake decides what is new, so late files, equal times and copies are no
special cases, and a run, the thread and a worker may find the same files. The cursor only has how
far the lake was reported to Dagster: see `reports`.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from itertools import groupby, islice
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import PARTITION_NAME_TAG

from retail_assets.defs.assets.events import EVENT_TABLES, INGEST, describe_ingest
from retail_assets.defs.automation.batch import IN_PROGRESS
from retail_assets.defs.automation.reports import Reported, Reporter, check_run
from retail_assets.defs.partitions import run_days
from retail_assets.ingest.event_files.folder import landing_day
from retail_assets.ingest.event_files.load import IngestResult
from retail_assets.ingest.event_files.pending import Pending, pending_event_files
from retail_assets.ingest.event_files.watch import FolderWatch, is_small
from retail_assets.ingest.ledgers.event_files import FoundFile
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings

EVENTS = "events"

FILES_PER_RUN = 5_000
BYTES_PER_RUN = 512 << 20
MAX_RUNS = 4
"""How many runs of files there are at once; other files wait for the next tick."""

AGAIN_SECONDS = 600
"""How long after its end the files of a run that failed as a whole wait for the next one."""

WORKER_SECONDS = 60
"""How long the sensor leaves a file to a worker that is alive."""

SHOWN = 5


def job() -> UnresolvedAssetJobDefinition:
    """The job that ingests event files, or replays days."""
    return dg.define_asset_job(
        EVENTS,
        selection=dg.AssetSelection.assets(*(table.name for table in EVENT_TABLES)),
        description="Event files to enriched events and dead letters. Without files in its"
        " configuration: recompute days from raw_events.",
    )


def sensor(
    settings: Settings,
    jobs: Sequence[UnresolvedAssetJobDefinition],
    watch: FolderWatch,
    clock: Callable[[], float] = time.time,
) -> dg.SensorDefinition:
    """Ingest event files as they land.

    Args:
        settings: where the files and the lake lie.
        jobs: the jobs that it starts: for files, and for the checks of event tables.
        watch: ingests small arrivals; its thread goes on from tick to tick.
        clock: seconds since 1970.
    """
    # What ticks have not reported yet.
    results: dict[date, IngestResult] = {}

    @dg.sensor(
        name="new_event_files",
        jobs=jobs,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ingests event files as they land, grow or are replaced, large arrivals by"
        " runs; reports what was ingested, by whomever, and has it checked.",
    )
    def new_event_files(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with ExitStack() as stack:
            connection = None
            with suppress(NoLakeError):
                lake = Lake.from_settings(settings)
                connection = stack.enter_context(lake.connect(read_only=True))
            tick = _Tick(settings, watch, context, connection)
            tick.act()
            reported = Reported.load(context.cursor)
            events: list[dg.AssetMaterialization] = []
            if connection is not None:
                for day, found in tick.ingested.items():
                    results.setdefault(day, IngestResult()).add(found)
                reporter = Reporter(settings, context.instance, connection, reported, clock())
                busy = filter(None, (run_days(run.tags) for run in tick.running))
                events = reporter.report(list(busy), results)
                tick.requests += check_run(reported, context.instance, clock())
            message = tick.describe()
            if tick.requests:
                context.log.info(message)
            return dg.SensorResult(
                tick.requests,
                skip_reason=None if tick.requests else message,
                cursor=reported.dump(),
                asset_events=events,
            )

    return new_event_files


@dataclass
class _Tick:
    """What a tick finds and has done, with a connection to the lake if there is one."""

    settings: Settings
    watch: FolderWatch
    context: dg.SensorEvaluationContext
    connection: duckdb.DuckDBPyConnection | None
    running: Sequence[dg.DagsterRun] = ()
    requests: list[dg.RunRequest] = field(default_factory=list)
    ingested: dict[date, IngestResult] = field(default_factory=dict)
    found: str = ""

    def act(self) -> None:
        """Leave small arrivals to the thread, and request runs for large ones."""
        with_thread = self.watch.busy
        pending = pending_event_files(self.settings, self.connection)
        self.watch.settle(pending.files)
        self.running = _running(self.context.instance)
        running = [run for run in self.running if _files_of(run)]
        busy = {path for run in running for path in _files_of(run)}
        fresh = _fresh(pending)
        failed = _failed(self.context.instance, pending)
        with_thread |= self.watch.busy
        others = {*busy, *fresh, *failed, *with_thread}
        ready = {path: file for path, file in pending.files.items() if path not in others}
        safe = {path: ready[path] for path in ready.keys() - self.watch.unfinished}
        small = safe if is_small(safe) else {}
        rest = [file for path, file in ready.items() if path not in small]
        busy_days = {run.tags.get(PARTITION_NAME_TAG) for run in running}
        batches_now = batches(self.settings, rest, busy_days)
        chosen = list(islice(batches_now, max(0, MAX_RUNS - len(running))))
        self.requests = [_request(day, files) for day, files in chosen]
        requested = {file.path for _, files in chosen for file in files}
        if small or not pending.lake.workers:
            lake_id = history.lake_id(self.connection) if self.connection else ""
            self.watch.renew(small, {*busy, *failed, *requested}, lake_id)
        self.ingested = self.watch.take()
        self.found = _describe(
            pending,
            busy,
            fresh,
            failed,
            len(requested),
            len(rest) - len(requested),
            ingested=len(small) + len(with_thread & pending.files.keys()),
        )

    def describe(self) -> str:
        """What was ingested since the tick before, and what was found."""
        found = IngestResult()
        for of_day in self.ingested.values():
            found.add(of_day)
        if not found.files and not found.failed:
            return self.found
        failed = [f"{problem}." for problem in found.failed.values()]
        more = [f"{len(failed) - SHOWN} more files failed."] if len(failed) > SHOWN else []
        said = f"Ingested {describe_ingest(found)}."
        return " ".join([said, *failed[:SHOWN], *more, self.found])


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


def _request(day: date, files: Sequence[FoundFile]) -> dg.RunRequest:
    # No run key: Dagster never forgets one, and would silently drop a file that is new again.
    return dg.RunRequest(
        job_name=EVENTS,
        partition_key=day.isoformat(),
        run_config={
            "ops": {INGEST: {"config": {"files": [file.path for file in files]}}},
        },
        # Before the runs that follow from events.
        tags={"retail_assets/files": str(len(files)), "dagster/priority": "1"},
    )


def _running(instance: dg.DagsterInstance) -> Sequence[dg.DagsterRun]:
    return instance.get_runs(dg.RunsFilter(job_name=EVENTS, statuses=IN_PROGRESS))


def _failed(instance: dg.DagsterInstance, pending: Pending) -> dict[str, str]:
    """The pending files of runs that failed as a whole a moment ago, and which run it was."""
    if not pending.files:
        return {}
    since = time.time() - AGAIN_SECONDS
    records = instance.get_run_records(
        dg.RunsFilter(
            job_name=EVENTS,
            statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
            updated_after=datetime.fromtimestamp(since, timezone.utc),
        )
    )
    return {
        path: record.dagster_run.run_id
        for record in records
        if (record.end_time or record.create_timestamp.timestamp()) > since
        for path in _files_of(record.dagster_run)
        # A file that changed since is another one.
        if path in pending.files
        and pending.files[path].modified_ns < record.create_timestamp.timestamp() * 1e9
    }


def _files_of(run: dg.DagsterRun) -> list[str]:
    """The files of a run; one that replays days has none."""
    config: Mapping[str, Any] = run.run_config
    return list(config.get("ops", {}).get(INGEST, {}).get("config", {}).get("files", []))


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
    failed: Mapping[str, str],
    requested: int,
    waiting: int,
    *,
    ingested: int,
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
        (ingested, "are being ingested"),
        (len(fresh), f"left to the worker {', '.join(pending.lake.workers)}"),
        (requested, "go into runs now"),
        (waiting, "wait for the next tick"),
    ):
        if count:
            parts.append(f"{count} {text}")
    if failed:
        path, run_id = next(iter(failed.items()))
        parts.append(
            f"{len(failed)}, first of all {path}, wait ten minutes since their run {run_id} failed"
        )
    troubles = [f"{path} ({reason})" for path, reason in pending.left_alone.items()]
    if troubles:
        shown = "; ".join(troubles[:SHOWN])
        parts.append(f"{len(troubles)} are left alone until they change, first of all {shown}")
    return "; ".join(parts) + f".{not_read}"
