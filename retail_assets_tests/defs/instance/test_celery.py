"""What the launcher of Celery says of runs while nobody can be asked."""

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from retail_assets.defs.instance.celery import WatchfulCeleryRunLauncher
from tools.ports import free_port

pytestmark = pytest.mark.processes  # it connects to a port


@pytest.mark.parametrize("tags", [{DAGSTER_CELERY_TASK_ID_TAG: "1"}, {}], ids=["task", "no task"])
def test_no_run_is_failed_while_the_broker_is_away(tags: dict[str, str]) -> None:
    broker = f"redis://127.0.0.1:{free_port()}/0"
    launcher = WatchfulCeleryRunLauncher("dagster", broker=broker, backend=broker)
    run = dg.DagsterRun(job_name="batch", tags=tags)
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
