"""Jobs, schedules and sensors of the batch: everything that starts by itself.

A file lands or is replaced -> `new_exports` runs its day. A day's orders changed because of a late
or corrected order, or of new reference data -> `restated_days` runs the days concerned, and only
those. The ledger in the lake decides what is new, never a cursor or a clock. A cursor only has the
state of open work at the last tick (a file that still changes has to wait) and the number of
attempts. A day that failed because of what is in its files would fail again: it waits for another
file, mapping, setting, reference data or release. Whatever else ended its run is tried again.

Requests for days carry no run key: Dagster never forgets one, and would silently drop a day that is
new again, for instance after the lake was deleted or an older file was restored. The runs of the
instance show whether a day is running already.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import date
from hashlib import sha256
from importlib.metadata import version

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

from retail_assets import business_days, tables
from retail_assets.defs import partitions
from retail_assets.ingest.exports.other_files import other_exports
from retail_assets.ingest.exports.pending import pending_exports, reference_files
from retail_assets.ingest.exports.reference import REFERENCE as REFERENCE_TABLES
from retail_assets.ingest.exports.split import split_exports
from retail_assets.ingest.exports.stale_days import RESTATED, stale_days
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.mapping.model import fingerprint
from retail_assets.settings import Settings
from retail_assets.transforms.orders import RULES_VERSION

MAX_ATTEMPTS = 3
"""How often the same work is tried whose runs ended without saying what is wrong with its data."""

TICK_SECONDS = 5

SHOWN_DAYS = 5

BATCH = "batch"
RESTATE = "restate"
REFERENCE = "reference"

IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Seen:
    """Work as a sensor saw it.

    `content` identifies its state, `attempts` counts its runs, and `was_loaded` (for reference
    files) says whether the lake has had it since. `failed_us` (for days) is its failure in the
    lake's ledger before the last attempt, in µs since 1970; 0 if there was none.
    """

    content: str
    attempts: int = 0
    was_loaded: bool = False
    failed_us: int = 0


def jobs() -> Sequence[UnresolvedAssetJobDefinition]:
    """The jobs: the whole batch, the tables that follow changed orders, and reference data."""
    restated = dg.AssetSelection.assets(*(table.name for table in RESTATED))
    exported = dg.AssetSelection.assets(tables.RAW_ORDERS.name, tables.REJECTED_ORDERS.name)
    return (
        dg.define_asset_job(
            BATCH,
            selection=exported | restated,
            description="Order exports to daily revenue, for a day or a range of days.",
        ),
        dg.define_asset_job(
            RESTATE,
            selection=restated,
            description="Recompute days whose orders have changed.",
        ),
        dg.define_asset_job(
            REFERENCE,
            selection=dg.AssetSelection.assets(*(table.name for table in REFERENCE_TABLES)),
            description="Load products, customers and currency rates.",
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
    def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = business_days.last_complete_day(settings)
        if day < settings.start_date:
            return dg.SkipReason(f"{day} lies before the first partition {settings.start_date}.")
        if day in busy_days(context.instance):
            return dg.SkipReason(f"{day} is queued or running already.")
        if _published(settings, day):
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
        description="Runs a day when its export has landed or was replaced, and is complete.",
    )
    def new_exports(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        split_exports(settings, at_most=1, settle_seconds=settings.event_settle_seconds)
        work = {day: file.content for day, file in pending_exports(settings).items()}
        loaded = (tables.RAW_ORDERS, tables.REJECTED_ORDERS)
        also = _not_ingested(settings)
        return _start_days(context, settings, work, loaded, must_be_unchanged=True, also=also)

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
        return _start_days(context, settings, work, RESTATED, must_be_unchanged=False)

    @dg.sensor(
        name="changed_reference",
        job_name=REFERENCE,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Loads products.csv, customers.csv or currency_rates.csv when it has changed.",
    )
    def changed_reference(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _load_reference(context, settings)

    return (new_exports, restated_days, changed_reference)


def _load_reference(context: dg.SensorEvaluationContext, settings: Settings) -> dg.SensorResult:
    """Request the reference files that have changed, once nobody writes to them."""
    before = _load(context.cursor)
    loaded = _loaded_reference(settings)
    seen: dict[str, Seen] = {}
    ready: list[str] = []
    for name, file in reference_files(settings).items():
        old = before.get(name)
        if old is None or old.content != file.content or (old.was_loaded and name not in loaded):
            seen[name] = Seen(file.content)
            continue
        if not old.attempts:
            ready.append(name)
        # One attempt: a bad file stays bad until it is replaced.
        seen[name] = Seen(file.content, 1, old.attempts > 0 and name in loaded)
    request = dg.RunRequest(
        asset_selection=[dg.AssetKey(name) for name in ready],
        # Before the orders that it is joined to.
        tags={"dagster/priority": "1"},
    )
    return dg.SensorResult(
        [request] if ready else [],
        skip_reason=None if ready else f"{len(seen)} reference files, none to load.",
        cursor=_dump(seen),
    )


def _start_days(
    context: dg.SensorEvaluationContext,
    settings: Settings,
    work: Mapping[date, str],
    written: Sequence[tables.Table],
    *,
    must_be_unchanged: bool,
    also: str = "",
) -> dg.SensorResult:
    """Request one run for each contiguous range of ready days, and describe pending ones.

    A range has at most RETAIL_RUN_DAYS.

    `work` has the state of each day, and `written` are the tables in whose ledger a run enters what
    was wrong with its data.
    """
    before = _load(context.cursor)
    busy = busy_days(context.instance)
    # Only now: what has ended has entered its failures.
    failures = _failures(settings, written, work)
    rules = _rules(settings) if work else ""
    seen: dict[str, Seen] = {}
    ready: list[date] = []
    waiting, abandoned = [], []
    for day, state in work.items():
        content, failed_us = f"{state}:{rules}", failures.get(day, 0)
        old = before.get(day.isoformat(), Seen(""))
        now = old if old.content == content else Seen(content)
        if day in busy or (must_be_unchanged and now is not old):
            waiting.append(day)
        elif now.attempts >= MAX_ATTEMPTS or (now.attempts and failed_us not in (0, now.failed_us)):
            abandoned.append(day)
        else:
            ready.append(day)
            now = Seen(content, now.attempts + 1, failed_us=failed_us)
        seen[day.isoformat()] = now
    requests = [
        _run_request(first, last) for first, last in business_days.ranges(ready, settings.run_days)
    ]
    message = _describe(len(work), waiting, abandoned) + also
    if requests:
        context.log.info(message)
    return dg.SensorResult(requests, skip_reason=None if requests else message, cursor=_dump(seen))


def _describe(count: int, waiting: Collection[date], abandoned: Sequence[date]) -> str:
    if not count:
        return "Every day is up to date."
    parts = [f"{count} {'day' if count == 1 else 'days'} to do"]
    if waiting:
        parts.append(f"{len(waiting)} of them are running or their files may still change")
    if abandoned:
        shown = ", ".join(map(str, abandoned[:SHOWN_DAYS]))
        parts.append(
            f"{len(abandoned)} failed and wait for another file, mapping, setting, reference data"
            f" or release, or for a run by hand, first of all {shown}: `retail-assets status` says"
            " why"
        )
    return "; ".join(parts) + "."


def _rules(settings: Settings) -> str:
    """The mark of all that decides, beside its own file, whether a day fails."""
    decide = [
        fingerprint(settings.source_mapping),
        settings.late_days,
        settings.max_order_gbp,
        settings.timezone,
        [file.content for file in reference_files(settings).values()],
        version("retail-assets"),
        RULES_VERSION,
    ]
    return sha256(json.dumps(decide, sort_keys=True).encode()).hexdigest()[:16]


def _failures(
    settings: Settings, written: Sequence[tables.Table], days: Collection[date]
) -> dict[date, int]:
    if not days:
        return {}
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            return ledger.failed_us(connection, written, days)
    except NoLakeError:
        return {}


def _not_ingested(settings: Settings) -> str:
    others = other_exports(settings)
    if not others:
        return ""
    name, reason = next(iter(others.items()))
    return (
        f" {len(others)} files in exports/ are not ingested, such as {name!r}, which {reason}:"
        " `retail-assets status` lists them."
    )


def _run_request(first: date, last: date) -> dg.RunRequest:
    if first == last:
        return dg.RunRequest(partition_key=first.isoformat())
    return dg.RunRequest(
        tags={partitions.RANGE_START: first.isoformat(), partitions.RANGE_END: last.isoformat()}
    )


def busy_days(instance: dg.DagsterInstance) -> Collection[date]:
    """The days of the runs that are queued or running, and of backfills that have not ended."""
    busy: set[date] = set()
    days_of = {dg.AssetKey(table.name) for table in (tables.RAW_ORDERS, *RESTATED)}
    requested = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])
    for backfill in instance.get_backfills(filters=requested):
        if backfill.asset_backfill_data is not None:
            target = backfill.asset_backfill_data.target_subset
            for key, subset in target.partitions_subsets_by_asset_key.items():
                if key in days_of:
                    busy.update(map(date.fromisoformat, subset.get_partition_keys()))
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        days = partitions.run_days(run.tags)
        if days is not None:
            busy.update(business_days.days_between(*days))
    return busy


def _published(settings: Settings, day: date) -> bool:
    """Whether a day is published from its own export, not only from late orders of others."""
    whole = (tables.RAW_ORDERS, tables.DAILY_REVENUE)
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            return bool(ledger.published_in_all(connection, whole, [day]))
    except NoLakeError:
        return False


def _loaded_reference(settings: Settings) -> Collection[str]:
    """The reference tables that have rows."""
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            return [
                table.name
                for table in REFERENCE_TABLES
                if connection.execute(f"SELECT 1 FROM lake.{table.name} LIMIT 1").fetchone()
            ]
    except NoLakeError:
        return ()


def _load(cursor: str | None) -> dict[str, Seen]:
    return {key: Seen(*values) for key, values in json.loads(cursor or "{}").items()}


def _dump(seen: Mapping[str, Seen]) -> str:
    return json.dumps({key: list(astuple(item)) for key, item in seen.items()})
