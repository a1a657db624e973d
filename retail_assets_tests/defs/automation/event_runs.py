"""Requests of the event sensor, and runs of them, in tests."""

from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._core.test_utils import create_run_for_test

from retail_assets.defs.assets.events import INGEST
from retail_assets.defs.automation.events import EVENTS
from retail_assets_tests.platform import QUIET, Platform, without_checks

SENSOR = "new_event_files"
DAY = "2026-10-12"
BROKEN = b"\x1f\x8b\x08 no gzip"


def requests(platform: Platform) -> list[dg.RunRequest]:
    return list(platform.tick(SENSOR).run_requests or [])


def files_of(request: dg.RunRequest) -> list[str]:
    files = request.run_config["ops"][INGEST]["config"]["files"]
    assert isinstance(files, list)
    return files


def requested(platform: Platform) -> list[tuple[str | None, list[str]]]:
    """The partition and the files of each run that a tick asks for."""
    return [(request.partition_key, files_of(request)) for request in requests(platform)]


def message(platform: Platform) -> str:
    tick = platform.tick(SENSOR)
    assert not tick.run_requests
    assert isinstance(tick.skip_reason, dg.SkipReason)
    return tick.skip_reason.skip_message or ""


def tags_of(request: dg.RunRequest) -> dict[str, str]:
    return {
        **request.tags,
        PARTITION_NAME_TAG: str(request.partition_key),
    }


def record(platform: Platform, request: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
    """Enter a run of a request, as if it had come that far."""
    failed = status == dg.DagsterRunStatus.FAILURE
    run = create_run_for_test(
        platform.instance,
        job_name=EVENTS,
        run_config=dict(request.run_config),
        status=dg.DagsterRunStatus.STARTED if failed else status,
        tags=tags_of(request),
    )
    if failed:
        platform.instance.report_run_failed(run)
    return run.run_id


def carry_out(
    platform: Platform, request: dg.RunRequest, *, checks: bool = False, **run_config: Any
) -> dg.ExecuteInProcessResult:
    """Run what was requested, as the daemon would have it done; without checks unless asked."""
    job = platform.definitions.resolve_job_def(EVENTS)
    if not checks:
        job = without_checks(job)
    return job.execute_in_process(
        instance=platform.instance,
        partition_key=request.partition_key,
        tags=tags_of(request),
        run_config={**QUIET, **request.run_config, **run_config},
        raise_on_error=False,
    )


def ingest_events(platform: Platform) -> None:
    """Tick, and run what is requested, until nothing is."""
    for _ in range(20):
        found = requests(platform)
        if not found:
            return
        for request in found:
            assert carry_out(platform, request).success
    pytest.fail("the sensor goes on and on")


def ids(platform: Platform) -> list[str]:
    return [row[0] for row in platform.query("SELECT event_id FROM enriched_events ORDER BY 1")]


def logged(platform: Platform, result: dg.ExecuteInProcessResult) -> str:
    """All that Dagster keeps of a run: messages, errors and metadata."""
    return "\n".join(str(entry) for entry in platform.instance.all_logs(result.run_id))
