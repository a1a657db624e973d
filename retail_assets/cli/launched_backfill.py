"""A backfill that Dagster's daemon divides into runs, on all hosts that its run launcher has.

RETAIL_RUN_DAYS says how many days a run has. Late and corrected orders of one run change days of
another: the sensor `restated_days` computes these, or, where it is off, a second backfill.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from datetime import date

import dagster as dg
from dagster._core.definitions.selector import (
    PartitionRangeSelector,
    PartitionsByAssetSelector,
    PartitionsSelector,
)
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster._core.utils import make_new_backfill_id

from retail_assets import business_days, tables
from retail_assets.cli import backfill as work
from retail_assets.cli.backfill import Outcome
from retail_assets.definitions import build_definitions
from retail_assets.defs.automation import batch as automation
from retail_assets.errors import UsageError
from retail_assets.ingest.exports.stale_days import RESTATED, described, stale_days
from retail_assets.secrets import mask
from retail_assets.settings import Settings

POLL_SECONDS = 2

DAEMON_SECONDS = 60
"""A daemon that has not reported for so long is taken for stopped."""

RESTATE_ROUNDS = 5
"""How often days that are behind are computed again before they are a problem."""


def launch_backfill(
    settings: Settings,
    first: date,
    last: date,
    *,
    everything: bool = False,
    wait: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Hand the days of a range that are missing or behind to Dagster's daemon.

    Exports of many days are split and reference files loaded here, first.

    Args:
        settings: the data folder and its lake, the same on all hosts.
        first: first day.
        last: last day, included.
        everything: recompute the days that are up to date as well.
        wait: until all runs have ended and no day is behind; else the backfill has just begun.
        say: called with the progress.

    Raises:
        UsageError: if the range has days that are no partitions, or no instance is named.
    """
    if not os.environ.get("DAGSTER_HOME"):
        raise UsageError(
            "--launch and --wait hand the days to Dagster's daemon: set DAGSTER_HOME to the folder"
            " of its dagster.yaml, and have `dagster-daemon run` running there."
        )
    days = business_days.check_range(settings, first, last)
    definitions = build_definitions(settings)
    with work.open_instance() as instance:
        problems, notes = work.prepare(settings, definitions, instance, say)
        due = days if everything else work.due_days(settings, days)
        launched = _Launched(settings, definitions, instance, due, say)
        # What runs already, because a sensor or somebody else was first, is waited for.
        new = set(due) - set(automation.busy_days(instance))
        if new:
            notes = (*notes, *launched.start(automation.BATCH, new))
        if not wait:
            return Outcome(len(due), {}, tuple(problems), notes)
        return launched.end(problems, notes)


_TABLES = {
    **work.PUBLISHED,
    # One step writes both tables of exports: without the other it is not started.
    automation.BATCH: (tables.REJECTED_ORDERS, *work.PUBLISHED[automation.BATCH]),
}


class _Launched:
    """The backfills of some days, and what becomes of them."""

    def __init__(
        self,
        settings: Settings,
        definitions: dg.Definitions,
        instance: dg.DagsterInstance,
        due: Sequence[date],
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._definitions, self._instance = settings, definitions, instance
        self._due, self._say = due, say
        self._ids: list[str] = []

    def start(self, job: str, days: Collection[date]) -> list[str]:
        """Request a backfill of a job's tables; returns what to know about it."""
        ranges = [
            PartitionRangeSelector(start=str(first), end=str(last))
            for first, last in business_days.ranges(days)
        ]
        backfill = PartitionBackfill.from_partitions_by_assets(
            backfill_id=make_new_backfill_id(),
            asset_graph=self._definitions.get_repository_def().asset_graph,
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=self._instance,
            partitions_by_assets=[
                PartitionsByAssetSelector(
                    asset_key=dg.AssetKey(table.name), partitions=PartitionsSelector(ranges=ranges)
                )
                for table in _TABLES[job]
            ],
            title=f"{job}: {described(days)}",
            description="Requested by `retail-assets backfill`.",
            run_config=None,
        )
        self._instance.add_backfill(backfill)
        self._ids.append(backfill.backfill_id)
        return [
            f"Dagster has the backfill {backfill.backfill_id} of {described(days)}.",
            *([_NO_DAEMON] if not self._has_daemon() else []),
        ]

    def end(self, problems: Sequence[str], notes: Sequence[str]) -> Outcome:
        """Wait until all runs have ended and no day is behind, or why one stays so."""
        asked = set(self._due)
        for rounds_left in reversed(range(RESTATE_ROUNDS)):
            self._wait()
            # Not the days that failed: other exports may have orders of them.
            tried = work.failures(self._settings, RESTATED, asked)
            stale = set(stale_days(self._settings)) - set(tried)
            if not stale or not rounds_left:
                break
            self.start(automation.RESTATE, stale)
            asked |= stale
        failed = work.failures(self._settings, work.PUBLISHED[automation.BATCH], asked)
        behind = stale | set(work.due_days(self._settings, list(self._due))) - set(failed)
        for backfill in map(self._instance.get_backfill, self._ids):
            if backfill is not None and backfill.error is not None:
                why = mask(backfill.error.message.strip())
                problems = [*problems, f"the backfill {backfill.backfill_id} failed: {why}"]
        if behind:
            text = (
                f"These days are behind, though all runs have ended: {described(behind)}. Look at"
                " their runs in Dagster's UI, and run the command again."
            )
            problems = [*problems, text]
        return Outcome(len(self._due), failed, tuple(problems), tuple(notes))

    def _wait(self) -> None:
        """Wait until the backfills, and all other runs of days, have ended."""
        while True:
            runs = [
                run
                for backfill in self._ids
                for run in self._instance.get_runs(
                    filters=dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill})
                )
            ]
            ended = sum(run.is_finished for run in runs)
            busy = automation.busy_days(self._instance)
            text = f"{ended} of {len(runs)} runs have ended, {len(busy)} days are queued or running"
            self._say(text if self._has_daemon() else f"{text}. {_NO_DAEMON}")
            if not busy and all(map(self._has_ended, self._ids)):
                return
            time.sleep(POLL_SECONDS)

    def _has_ended(self, backfill_id: str) -> bool:
        backfill = self._instance.get_backfill(backfill_id)
        ended: list[BulkActionStatus] = BULK_ACTION_TERMINAL_STATUSES
        return backfill is None or backfill.status in ended

    def _has_daemon(self) -> bool:
        """Whether a daemon that divides backfills into runs has reported lately."""
        seen = self._instance.get_daemon_heartbeats().get("BACKFILL")
        return seen is not None and time.time() - seen.timestamp < DAEMON_SECONDS


_NO_DAEMON = (
    "No Dagster daemon reports to the instance of DAGSTER_HOME: start `dagster-daemon run` there,"
    " the backfill waits for it."
)
