"""Jobs, schedules and sensors: what starts without anybody asking.

A file lands or is replaced -> `new_exports` runs its day. A day's orders changed because of a late
or corrected order, or of new reference data -> `restated_days` runs the days concerned, and only
those. What is new is decided by the ledger in the lake, never by a cursor or a clock; a cursor here
only remembers how each piece of open work looked at the last tick (a file that still changes is
left alone) and how often it was tried.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from retail_assets import partitions, tables
from retail_assets.ingest.pending import pending_exports, reference_files
from retail_assets.lake import days as ledger
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"

MAX_ATTEMPTS = 3
"""How often the same work is tried before somebody has to look at it."""

TICK_SECONDS = 5

BATCH = "batch"
RESTATE = "restate"
REFERENCE = "reference"

RESTATED = (tables.COMPLETED_ORDERS, tables.DAILY_REVENUE, tables.DAILY_REVENUE_BY_CATEGORY)

IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dataclass(frozen=True)
class Seen:
    """Open work as a sensor saw it: what identifies its content, and how often it was started."""

    content: str
    attempts: int = 0


def jobs(partitions_def: dg.PartitionsDefinition[str]) -> Sequence[UnresolvedAssetJobDefinition]:
    """The jobs: the whole batch lane, what follows from changed orders, and the reference data."""
    restated = dg.AssetSelection.assets(*(table.name for table in RESTATED))
    exported = dg.AssetSelection.assets(tables.RAW_ORDERS.name, tables.REJECTED_ORDERS.name)
    return (
        dg.define_asset_job(
            BATCH,
            selection=exported | restated,
            partitions_def=partitions_def,
            description="Order exports to daily revenue, for a day or a range of days.",
        ),
        dg.define_asset_job(
            RESTATE,
            selection=restated,
            partitions_def=partitions_def,
            description="Recompute days whose orders have changed.",
        ),
        dg.define_asset_job(
            REFERENCE,
            selection=dg.AssetSelection.assets(tables.PRODUCTS.name, tables.CUSTOMERS.name),
            description="Take in products and customers.",
        ),
    )


def schedules(settings: Settings) -> Sequence[dg.ScheduleDefinition]:
    """Run yesterday each night, whether or not its export has come: a missing one fails by name."""

    @dg.schedule(
        name="nightly",
        job_name=BATCH,
        cron_schedule="0 6 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Runs yesterday at six, unless it is published by then.",
    )
    def nightly() -> dg.RunRequest | dg.SkipReason:
        day = partitions.last_partition(settings)
        if day < settings.start_date:
            return dg.SkipReason(f"{day} lies before the first partition {settings.start_date}.")
        lake = Lake.from_settings(settings)
        if lake.exists():
            with lake.connect(read_only=True) as connection:
                if ledger.published(connection, tables.DAILY_REVENUE, [day]):
                    return dg.SkipReason(f"{day} is published already.")
        return dg.RunRequest(partition_key=day.isoformat(), run_key=f"nightly:{day}")

    return (nightly,)


def sensors(settings: Settings) -> Sequence[dg.SensorDefinition]:
    """The sensors, all on by default."""

    @dg.sensor(
        name="new_exports",
        job_name=BATCH,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs a day when its export has landed or was replaced, and is still.",
    )
    def new_exports(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        work = {day: file.content for day, file in pending_exports(settings).items()}
        return _start_days(context, BATCH, work, must_be_still=True)

    @dg.sensor(
        name="restated_days",
        job_name=RESTATE,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Recomputes the days that late or corrected orders, or new reference data,"
        " have changed.",
    )
    def restated_days(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        work = {day: str(version) for day, version in stale_days(settings).items()}
        return _start_days(context, RESTATE, work, must_be_still=False)

    @dg.sensor(
        name="changed_reference",
        job_name=REFERENCE,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Takes in products.csv and customers.csv when they have changed.",
    )
    def changed_reference(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        before = _load(context.cursor)
        seen: dict[str, Seen] = {}
        requests = []
        for name, file in reference_files(settings).items():
            old = before.get(name, Seen(""))
            if old.content != file.content:
                seen[name] = Seen(file.content)
            else:
                # Still since the last tick. What the file says is compared when it is published.
                seen[name] = Seen(file.content, 1)
                if old.attempts == 0:
                    requests.append(
                        dg.RunRequest(
                            run_key=f"{REFERENCE}:{file.content}",
                            asset_selection=[dg.AssetKey(name)],
                        )
                    )
        reason = None if requests else f"{len(seen)} reference files, none changed."
        return dg.SensorResult(requests, skip_reason=reason, cursor=_dump(seen))

    return (new_exports, restated_days, changed_reference)


def stale_days(settings: Settings) -> dict[date, int]:
    """The days whose published numbers are behind what is in the lake, with the newest version."""
    lake = Lake.from_settings(settings)
    if not lake.exists():
        return {}
    newest = partitions.last_partition(settings)
    with lake.connect(read_only=True) as connection:
        stale: set[date] = set()
        for table in RESTATED:
            stale.update(ledger.stale_days(connection, table, tables.RAW_ORDERS))
        known = ledger.versions(connection, "orders", stale)
    return {day: known[day] for day in sorted(stale) if settings.start_date <= day <= newest}


def _start_days(
    context: dg.SensorEvaluationContext, job: str, work: Mapping[date, str], *, must_be_still: bool
) -> dg.SensorResult:
    """Start one run for each stretch of days that is ready; say what is pending and why."""
    before = _load(context.cursor)
    busy = _busy_days(context.instance)
    seen: dict[str, Seen] = {}
    ready: list[date] = []
    waiting, given_up = [], []
    for day, content in work.items():
        old = before.get(day.isoformat())
        same = old is not None and old.content == content
        attempts = old.attempts if old is not None and same else 0
        if day in busy or (must_be_still and not same):
            waiting.append(day)
        elif attempts >= MAX_ATTEMPTS:
            given_up.append(day)
        else:
            ready.append(day)
            attempts += 1
        seen[day.isoformat()] = Seen(content, attempts)
    requests = [
        _run_request(job, first, last, seen, work) for first, last in partitions.ranges(ready)
    ]
    message = (
        f"{len(work)} days to do: {len(waiting)} are running or their files still change,"
        f" {len(given_up)} failed {MAX_ATTEMPTS} times and wait for a new file"
        + (f" ({', '.join(map(str, given_up[:5]))})" if given_up else "")
        + "."
    )
    context.log.info(message)
    return dg.SensorResult(
        requests, skip_reason=None if requests else message, cursor=_dump(seen)
    )


def _run_request(
    job: str, first: date, last: date, seen: Mapping[str, Seen], work: Mapping[date, str]
) -> dg.RunRequest:
    days = partitions.days_between(first, last)
    tries = [f"{day}:{work[day]}:{seen[day.isoformat()].attempts}" for day in days]
    run_key = f"{job}:{first}:{last}:{hashlib.sha256(';'.join(tries).encode()).hexdigest()}"
    if first == last:
        return dg.RunRequest(run_key=run_key, partition_key=first.isoformat())
    tags = {RANGE_START: first.isoformat(), RANGE_END: last.isoformat()}
    return dg.RunRequest(run_key=run_key, tags=tags)


def _busy_days(instance: dg.DagsterInstance) -> Collection[date]:
    """The days that some queued or running run is about."""
    busy: set[date] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        first = run.tags.get(RANGE_START) or run.tags.get(PARTITION)
        last = run.tags.get(RANGE_END) or run.tags.get(PARTITION)
        if first and last:
            busy.update(
                partitions.days_between(date.fromisoformat(first), date.fromisoformat(last))
            )
    return busy


def _load(cursor: str | None) -> dict[str, Seen]:
    return {key: Seen(*values) for key, values in json.loads(cursor or "{}").items()}


def _dump(seen: Mapping[str, Seen]) -> str:
    return json.dumps({key: [item.content, item.attempts] for key, item in seen.items()})
