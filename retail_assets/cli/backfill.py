"""A backfill from the command line: the batch job over a range of days, in this process."""

import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import dagster as dg

from retail_assets import business_days, tables
from retail_assets.cli.dagster_home import check_dagster_home
from retail_assets.definitions import build_definitions
from retail_assets.defs import partitions
from retail_assets.defs.automation import batch as automation
from retail_assets.explain import debugging, explain_dagster
from retail_assets.ingest.exports.pending import pending_exports, reference_files
from retail_assets.ingest.exports.split import split_exports
from retail_assets.ingest.exports.stale_days import RESTATED, stale_days
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake
from retail_assets.secrets import mask
from retail_assets.settings import Settings

PUBLISHED = {automation.BATCH: (tables.RAW_ORDERS, *RESTATED), automation.RESTATE: RESTATED}
"""The tables of days that each job publishes."""

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

EVENT_BATCH_SIZE = "500"
"""How many of Dagster's events are written together, unless the environment has a number."""

NO_OUTPUT = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
"""The output of steps goes to the terminal: to store it takes two processes for each step."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a backfill.

    `days` is the number of days that were due, `failed` has the problem of each failed day, and
    `problems` all others; `notes` has what is no problem of these days.
    """

    days: int
    failed: Mapping[date, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def run_backfill(
    settings: Settings,
    first: date,
    last: date,
    *,
    everything: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Bring the days of a range up to date, and with them the earlier days that they change.

    If DAGSTER_HOME is set, the runs are stored in that Dagster instance.

    Args:
        settings: the data folder and its lake.
        first: first day.
        last: last day, included.
        everything: recompute the days that are up to date as well.
        say: called with the progress.

    Raises:
        UsageError: if the range has days that are no partitions.
    """
    days = business_days.check_range(settings, first, last)
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", EVENT_BATCH_SIZE)
    definitions = build_definitions(settings)
    with open_instance() as instance:
        problems, notes = prepare(settings, definitions, instance, say)
        due = days if everything else due_days(settings, days)
        failed: dict[date, str] = {}
        if due:
            for start, end in business_days.ranges(due, settings.run_days):
                failed |= _run_days(
                    settings, definitions, instance, automation.BATCH, start, end, problems, say
                )
        # Not the days that failed: other exports may have orders of them.
        tried = failures(settings, RESTATED, due)
        stale = [day for day in stale_days(settings) if day not in tried]
        if stale:
            for start, end in business_days.ranges(stale, settings.run_days):
                failed |= _run_days(
                    settings, definitions, instance, automation.RESTATE, start, end, problems, say
                )
        return Outcome(len(due), failed, tuple(problems), notes)


def prepare(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    say: Callable[[str], None],
) -> tuple[list[str], tuple[str, ...]]:
    """Split exports of many days, and load the reference files; returns problems and notes."""
    split = split_exports(settings, lambda name, rows: say(f"Splitting {name}: {rows:,} rows"))
    problems = list(split.failed.values())
    files = sorted(reference_files(settings))
    if files:
        reference = _run(definitions, instance, automation.REFERENCE, {}, say, files)
        if not reference.success:
            # Orders go on: unknown products and customers are counted, and restated later.
            problems.append(_problem(reference))
    return problems, split.notes


@contextmanager
def open_instance() -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, or a temporary one."""
    home = os.environ.get("DAGSTER_HOME")
    if home:
        check_dagster_home(home)
        with dg.DagsterInstance.get() as instance:
            yield instance
        return
    storage = {
        "module": "retail_assets.defs.instance.event_log",
        "class": "PooledSqliteEventLogStorage",
    }
    with TemporaryDirectory() as folder:
        storage_there = storage | {"config": {"base_dir": str(Path(folder, "history", "runs"))}}
        with dg.DagsterInstance.local_temp(
            folder, {"event_log_storage": storage_there, "compute_logs": NO_OUTPUT}
        ) as instance:
            yield instance


def due_days(settings: Settings, days: list[date]) -> list[date]:
    """The days whose export is new, or whose tables are missing or behind."""
    due = set(pending_exports(settings)) | set(stale_days(settings))
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        done = ledger.published_in_all(connection, (tables.RAW_ORDERS, *RESTATED), days)
        failed = ledger.failures(connection, tables.RAW_ORDERS, days)
    return [day for day in days if day in due or day not in done or day in failed]


def _run_days(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    first: date,
    last: date,
    problems: list[str],
    say: Callable[[str], None],
) -> dict[date, str]:
    """Run a job over a range of days; returns the problem of each day that failed."""
    tags = {partitions.RANGE_START: first.isoformat(), partitions.RANGE_END: last.isoformat()}
    days = business_days.days_between(first, last)
    result = _run(definitions, instance, job, tags, lambda text: say(f"{first} to {last}: {text}"))
    failed = failures(settings, PUBLISHED[job], days)
    if not result.success and not failed:
        problems.append(f"the run {result.run_id} failed: {_problem(result)}")
    return failed


def failures(
    settings: Settings, of_tables: Iterable[tables.Table], days: Collection[date]
) -> dict[date, str]:
    """The first problem of each of these days that failed in one of the tables."""
    with Lake.from_settings(settings).connect() as connection:
        found = ledger.entries(connection, days).failed
    failed: dict[date, str] = {}
    for table in of_tables:
        failed = {**found[table.name], **failed}
    return failed


def _run(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    tags: Mapping[str, str],
    say: Callable[[str], None],
    assets: Sequence[str] | None = None,
) -> dg.ExecuteInProcessResult:
    run_id = str(uuid.uuid4())
    instance.add_event_listener(run_id, lambda event: _tell(event, say))
    return definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        run_id=run_id,
        tags=dict(tags),
        asset_selection=None if assets is None else [dg.AssetKey(name) for name in assets],
        raise_on_error=False,
        # Failures are printed at the end, by day; the log of the run is in the instance.
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def _tell(event: dg.EventLogEntry, say: Callable[[str], None]) -> None:
    """Report the step that a run has begun, and its progress."""
    if event.is_dagster_event and event.get_dagster_event().is_step_start:
        say(str(event.step_key).replace("_", " "))
    elif not event.is_dagster_event and event.level == logging.INFO:
        say(f"{str(event.step_key).replace('_', ' ')}, {event.user_message}")


def _problem(result: dg.ExecuteInProcessResult) -> str:
    """The failures, in a sentence for each step, or one for the run."""
    texts = []
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            given = failure.user_failure_data
            text = given.description if given else _sentence(failure.error)
            texts.append(f"{event.step_key}: {text}")
        elif event.is_job_failure and event.job_failure_data.error and not texts:
            texts.append(_sentence(event.job_failure_data.error))
    return "; ".join(texts)


def _sentence(error: "SerializableErrorInfo | None") -> str:
    if error is None:
        return "no reason was stored"
    return mask(error.to_string()) if debugging() else explain_dagster(error)
