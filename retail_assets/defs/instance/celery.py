"""Runs as Celery tasks on the workers of several hosts, and a worker for one.

Dagster's own launcher asks the result backend how a task is, which says of one whose worker is dead
that it has started, for ever. This one asks the workers themselves which tasks they execute, so
that run monitoring fails the runs of a dead one, and `run_retries` starts them elsewhere. A broker
that cannot be asked tells nothing, and no run is failed for it.

It depends on internals of Dagster and dagster-celery, so nothing else belongs in this module.

    python -m retail_assets.defs.instance.celery [options of `celery worker`]

is a worker for the `dagster.yaml` in DAGSTER_HOME: one run at a time.
"""

import logging
import os
import sys
import time
from typing import Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

REPLY_SECONDS = 2
"""Workers that are alive answer within this time: their main process has nothing else to do."""

FRESH_SECONDS = 5
"""The answers of one round serve all runs that are looked at."""

GONE_SECONDS = 15
"""A task that no worker knows of for so long is lost; once may be an answer that came late."""

logger = logging.getLogger(__name__)


class WatchfulCeleryRunLauncher(CeleryRunLauncher):
    """`CeleryRunLauncher` that notices a worker which died; configured as its parent is."""

    _asked: float = 0
    _executing: frozenset[str] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._missed: dict[str, float] = {}

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Ask the workers for the run's task.

        A run that is no task, such as one of `retail-assets backfill`, counts as running until its
        maximum time is over.
        """
        task = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        executing = self._tasks()
        if task is None or executing is None or task in executing:
            self._missed.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            state = self.celery.AsyncResult(task).state
        except Exception as error:  # noqa: BLE001  # of the broker's client, of whatever type
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"The broker fails: {error}")
        if state == "SUCCESS":
            return CheckRunHealthResult(WorkerStatus.SUCCESS)
        if state in ("FAILURE", "REVOKED"):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"The Celery task is {state}.")
        first = self._missed.setdefault(run.run_id, time.monotonic())
        if time.monotonic() - first < GONE_SECONDS:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        del self._missed[run.run_id]
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND, "No Celery worker executes the run: its worker has died."
        )

    def _tasks(self) -> frozenset[str] | None:
        """The tasks that the workers execute or have received; None if they cannot be asked."""
        if time.monotonic() - self._asked > FRESH_SECONDS:
            inspect = self.celery.control.inspect(timeout=REPLY_SECONDS)
            try:
                answers = [inspect.active() or {}, inspect.reserved() or {}]
            except Exception:
                logger.exception("Celery's workers cannot be asked which runs they execute.")
                self._executing = None
            else:
                self._executing = frozenset(
                    str(task["id"])
                    for answer in answers
                    for tasks in answer.values()
                    for task in tasks
                )
            self._asked = time.monotonic()
        return self._executing


def main() -> None:
    """Be a Celery worker for the instance of DAGSTER_HOME."""
    # Dagster writes its events together, and imports the assets once for all runs of a process.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "500")
    with DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        if not isinstance(launcher, CeleryRunLauncher):
            sys.exit(
                f"The run launcher of {os.environ.get('DAGSTER_HOME')}/dagster.yaml is no Celery"
                " launcher: set DAGSTER_HOME to a folder with deploy/cluster/dagster.yaml."
            )
        app, queue = launcher.celery, launcher.default_queue
    create_execute_job_task(app)
    create_resume_job_task(app)
    # A run takes a process for itself. What is not begun stays with the broker for other workers.
    given = ["--pool=prefork", "--concurrency=1", "--disable-prefetch", f"--queues={queue}"]
    app.worker_main(["worker", *given, "--loglevel=INFO", *sys.argv[1:]])


if __name__ == "__main__":
    main()
