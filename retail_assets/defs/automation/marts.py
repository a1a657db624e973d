"""What publishes the marts by itself: a sensor for all changes, a schedule that compares all days.

The sensor publishes within its tick, as that of notifications sends: a run for each change of live
revenue would be thousands a day. It asks for a run where that may take longer than a tick.
"""

import json
from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime, timedelta, timezone
from enum import Enum

import dagster as dg
import duckdb
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from retail_assets.defs.assets.marts import mart_metadata
from retail_assets.defs.automation.batch import IN_PROGRESS
from retail_assets.errors import RetailAssetsError
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.outbound.marts.model import MART_TABLES, SOURCES, MartTarget
from retail_assets.outbound.marts.publish import (
    Position,
    changed_days,
    is_behind,
    position,
    publish,
)
from retail_assets.outbound.marts.targets import mart_targets
from retail_assets.settings import Settings

MARTS = "marts"
COMPARE = "compare_marts"

TICK_SECONDS = 30

MOST_DAYS = 100
"""Changed days above which a run publishes them, because Dagster ends a tick after a minute."""


AFTER_A_FAILURE = timedelta(hours=1)
"""When a run is started again that failed: what it says has to be corrected by somebody."""


def jobs(settings: Settings) -> Sequence[UnresolvedAssetJobDefinition]:
    """The job that publishes all marts; none where there is no mart."""
    names = [target.name for target in mart_targets(settings)]
    if not names:
        return ()
    return (
        dg.define_asset_job(
            MARTS,
            selection=dg.AssetSelection.assets(*names),
            description="Publish the days of revenue that have changed to the marts.",
        ),
    )


def schedules(settings: Settings) -> Sequence[dg.ScheduleDefinition]:
    """Compare all days once a day: somebody may have changed the mart."""
    names = [target.name for target in mart_targets(settings)]
    if not names:
        return ()

    @dg.schedule(
        name=COMPARE,
        job_name=MARTS,
        cron_schedule="30 7 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Compares all days of the marts with the lake at half past seven, and repairs"
        " what somebody changed.",
    )
    def compare_marts() -> dg.RunRequest | dg.SkipReason:
        if not Lake.from_settings(settings).exists():
            return dg.SkipReason("There is no lake yet.")
        config = {name: {"config": {"everything": True}} for name in names}
        return dg.RunRequest(run_config={"ops": config})

    return (compare_marts,)


def sensors(settings: Settings) -> Sequence[dg.SensorDefinition]:
    """Publish what has changed; none where there is no mart."""
    targets = mart_targets(settings)
    if not targets:
        return ()

    @dg.sensor(
        name=MARTS,
        job_name=MARTS,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Publishes the days of revenue that have changed, also during the day.",
    )
    def marts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, Lake.from_settings(settings), targets)

    return (marts,)


def _tick(
    context: dg.SensorEvaluationContext, lake: Lake, targets: Sequence[MartTarget]
) -> dg.SensorResult:
    cursor: dict[str, list[str | int]] = json.loads(context.cursor or "{}")
    said: list[str] = []
    events: list[dg.AssetMaterialization] = []
    large: list[str] = []
    for target in targets:
        try:
            with lake.connect(read_only=True) as connection:
                now = position(connection)
                work = _work(connection, target, cursor.get(target.name))
            if work is Work.RUN:
                large.append(target.name)
                continue
            published = publish(lake, target) if work is Work.TICK else None
        except NoLakeError:
            return dg.SensorResult(skip_reason="There is no lake yet.")
        except RetailAssetsError as error:
            said.append(f"{target.name} failed and is tried again: {error}")
            continue
        cursor[target.name] = list(astuple(now))
        days = published.days if published else 0
        said.append(f"{target.name}: {days} days were published")
        if published and days:
            events.append(dg.AssetMaterialization(target.name, metadata=mart_metadata(published)))
    requests = []
    if large:
        wait = _why_wait(context.instance)
        if wait is None:
            keys = [dg.AssetKey(name) for name in large]
            requests.append(dg.RunRequest(asset_selection=keys))
        else:
            said.append(f"{', '.join(large)}: many days may have changed, and {wait}")
    return dg.SensorResult(
        requests,
        skip_reason=None if requests else "; ".join(said) + ".",
        cursor=json.dumps(cursor),
        asset_events=events,
    )


class Work(Enum):
    """What a mart needs: nothing, a round within the tick, or a run."""

    NOTHING = 0
    TICK = 1
    RUN = 2


def _work(
    connection: duckdb.DuckDBPyConnection, target: MartTarget, cursor: list[str | int] | None
) -> Work:
    """Look at the snapshot that the mart was last seen to have; if in doubt at its watermark."""
    work = Work.RUN
    if cursor is not None:
        lake_id, snapshot, committed = cursor
        work = _since(connection, Position(str(lake_id), int(snapshot), int(committed)))
    if work is not Work.RUN:
        return work
    watermarks = target.watermarks()
    if any(table.name not in watermarks for table in MART_TABLES):
        return Work.RUN
    oldest = min(watermarks.values(), key=lambda watermark: watermark.snapshot_id)
    return _since(connection, Position(oldest.lake_id, oldest.snapshot_id, oldest.snapshot_us))


def _since(connection: duckdb.DuckDBPyConnection, seen: Position) -> Work:
    if not is_behind(connection, *astuple(seen)):
        return Work.NOTHING
    now = position(connection)
    if seen.lake_id != now.lake_id:
        return Work.RUN
    if history.committed_us(connection, seen.snapshot_id) != seen.snapshot_us:
        return Work.RUN
    kept, _ = history.changes_since(connection, seen.snapshot_id, *SOURCES)
    if not kept:
        return Work.RUN
    found = changed_days(connection, seen.snapshot_id, now.snapshot_id, SOURCES)
    return Work.TICK if len(set().union(*found.values())) <= MOST_DAYS else Work.RUN


def _why_wait(instance: dg.DagsterInstance) -> str | None:
    """Why no run is started now, if none is."""
    newest = next(iter(instance.get_run_records(dg.RunsFilter(job_name=MARTS), limit=1)), None)
    if newest is None:
        return None
    if newest.dagster_run.status in IN_PROGRESS:
        return "a run is under way"
    age = datetime.now(timezone.utc) - newest.create_timestamp
    if newest.dagster_run.status == dg.DagsterRunStatus.FAILURE and age < AFTER_A_FAILURE:
        return f"the run {newest.dagster_run.run_id} failed: the next one is started after an hour"
    return None
