"""A run worth recording, event logs to record it in, and what they answer."""

import logging
import os
import sqlite3
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import DagsterEventType, EventLogEntry
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    StepMaterializationData,
)
from dagster._core.storage.event_log import SqliteEventLogStorage

from retail_assets.defs.instance import event_log
from retail_assets.defs.instance.event_log import PooledSqliteEventLogStorage
from retail_assets_tests import processes

DAYS = [f"2024-01-{day:02}" for day in range(1, 13)]
CHECK = dg.AssetCheckKey(dg.AssetKey("daily"), "not_empty")


daily_partitions = dg.DailyPartitionsDefinition(DAYS[0], end_date="2024-01-13")


@dg.asset(partitions_def=daily_partitions, backfill_policy=dg.BackfillPolicy.single_run())
def daily() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 3}, tags={"team": "sales"})


@dg.asset(
    deps=[daily],
    partitions_def=daily_partitions,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="7",
)
def downstream(context: dg.AssetExecutionContext) -> None:
    context.log_event(dg.AssetObservation("daily", partition=DAYS[0], metadata={"rows": 3}))


@dg.asset
def unpartitioned() -> None: ...


@dg.asset(deps=[downstream])
def broken() -> None:
    message = "on purpose"
    raise RuntimeError(message)


@dg.asset_check(asset=daily)
def not_empty() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def backfill(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """Run all assets over all days in one run; one of them fails."""
    job = dg.Definitions(
        assets=[daily, downstream, unpartitioned, broken],
        asset_checks=[not_empty],
        jobs=[dg.define_asset_job("everything", executor_def=dg.in_process_executor)],
    ).resolve_job_def("everything")
    tags = {
        "dagster/asset_partition_range_start": DAYS[0],
        "dagster/asset_partition_range_end": DAYS[-1],
    }
    result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
    assert not result.success
    return result.dagster_run


# --- instances, tables and answers --------------------------------------------------------------


def write_config(home: Path, *, stock: bool) -> Path:
    home.mkdir(exist_ok=True)
    pooled = f"""
event_log_storage:
  module: retail_assets.defs.instance.event_log
  class: PooledSqliteEventLogStorage
  config: {{base_dir: {home}/history/runs}}
"""
    config = "telemetry: {enabled: false}\n" + ("" if stock else pooled)
    (home / "dagster.yaml").write_text(config)
    return home


def log_of(instance: dg.DagsterInstance) -> SqliteEventLogStorage:
    """Return the storage itself; an instance's own property may be a wrapper around it."""
    log = instance.event_log_storage
    assert isinstance(log, SqliteEventLogStorage)
    return log


def tables(base_dir: Path) -> dict[str, dict[str, list[Any]]]:
    """Every row of every table of every shard, without the clock of the insert itself."""
    clock = {"create_timestamp", "migration_completed"}
    shards: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(base_dir.glob("*.db")):
        connection = sqlite3.connect(path)
        connection.row_factory = sqlite3.Row
        names = [
            r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        shards[path.name] = {
            name: [
                {column: value for column, value in dict(row).items() if column not in clock}
                for row in connection.execute(f'SELECT * FROM "{name}"')
            ]
            for name in names
        }
        connection.close()
    return shards


def answers(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """What the UI and the sensors ask, in one comparable value."""
    log = log_of(instance)
    keys = sorted(instance.all_asset_keys())
    given: dict[str, Any] = {
        "run shards": sorted(log.get_all_run_ids()),
        "asset keys": keys,
        "run": log.get_records_for_run(run_id).records,
        "run, newest first": log.get_records_for_run(run_id, limit=5, ascending=False).records,
        "statistics": log.get_stats_for_run(run_id),
        "steps": log.get_step_stats_for_run(run_id),
        "run partitions": log.get_asset_partitions_for_run(run_id),
        "failures": log.fetch_run_status_changes(DagsterEventType.RUN_FAILURE, 10).records,
        "checks": [
            (check.id, check.run_id, check.status, check.event)
            for check in log.get_asset_check_execution_history(CHECK, limit=10)
        ],
        "assets": [
            (r.asset_entry.asset_key, r.asset_entry.last_materialization_record)
            for r in sorted(log.get_asset_records(keys), key=lambda r: r.asset_entry.asset_key)
        ],
    }
    for key in keys:
        for event_type in (
            DagsterEventType.ASSET_MATERIALIZATION,
            DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
            DagsterEventType.ASSET_OBSERVATION,
        ):
            wanted = dg.EventRecordsFilter(event_type, asset_key=key)
            given[f"{key} {event_type}"] = (
                instance.get_event_records(wanted),
                log.get_latest_storage_id_by_partition(key, event_type),
                log.get_latest_tags_by_partition(key, event_type, ["dagster/data_version"]),
            )
        given[f"{key} days"] = (
            log.get_materialized_partitions(key),
            log.get_latest_asset_partition_materialization_attempts_without_materializations(key),
            instance.get_latest_materialization_event(key),
            log.get_event_tags_for_asset(key),
        )
    return given


def materialization(run_id: str, asset: str, day: str) -> EventLogEntry:
    event = DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION.value,
        "job",
        step_key=asset,
        event_specific_data=StepMaterializationData(
            dg.AssetMaterialization(
                dg.AssetKey(asset), partition=day, tags={"dagster/data_version": day}
            )
        ),
    )
    return entry(run_id, event)


def planned(run_id: str, asset: str, day: str) -> EventLogEntry:
    data = AssetMaterializationPlannedData(dg.AssetKey(asset), partition=day)
    return entry(run_id, DagsterEvent.build_asset_materialization_planned_event("job", asset, data))


def entry(run_id: str, event: DagsterEvent) -> EventLogEntry:
    return EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level=logging.INFO,
        user_message="",
        run_id=run_id,
        timestamp=1704067200.0,
        step_key=event.step_key,
        job_name="job",
        dagster_event=event,
    )


def days_in(log: SqliteEventLogStorage, asset: str = "daily") -> set[str]:
    return log.get_materialized_partitions(dg.AssetKey(asset))


# --- work for other processes: module level, so that these find it -----------------------------


def write_days(base_dir: str, class_: str, run_id: str, asset: str, days: Sequence[str]) -> None:
    log = getattr(event_log, class_)(base_dir)
    for start in range(0, len(days), 4):
        first, *others = days[start : start + 4]
        log.store_event(materialization(run_id, asset, first))
        log.store_event_batch([materialization(run_id, asset, day) for day in others])
    log.dispose()


def wipe(base_dir: str) -> None:
    SqliteEventLogStorage(base_dir).wipe()


def answer_what_is_seen(base_dir: str, run_id: str, asked: Connection) -> None:
    log = PooledSqliteEventLogStorage(base_dir)
    while asked.recv() != "enough":
        asked.send((len(log.get_records_for_run(run_id).records), days_in(log)))
    log.dispose()


def fork_and_write(base_dir: str) -> None:
    log = PooledSqliteEventLogStorage(base_dir)
    log.store_event(materialization("run", "daily", DAYS[0]))
    assert open_files(base_dir)
    child = os.fork()
    if child == 0:
        inherited = open_files(base_dir)
        log.store_event(materialization("run", "daily", DAYS[1]))
        os._exit(1 if inherited else 0)
    log.store_event(materialization("run", "daily", DAYS[2]))
    assert os.waitpid(child, 0)[1] == 0, "the child inherited open shards or failed"
    assert days_in(log) == set(DAYS[:3])


def finish(*started: BaseProcess) -> None:
    assert processes.finish(started) == [0] * len(started)


def open_files(base_dir: str) -> set[str]:
    """Names of the shards this process holds open."""
    names = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
        except FileNotFoundError:  # the handle of this very listing
            continue
        if target.parent == Path(base_dir) and target.suffix == ".db":
            names.add(target.stem)
    return names
