"""The committed Dagster instance, and the run launcher that it names."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from retail_assets.defs.instance.event_log import PooledSqliteEventLogStorage
from retail_assets.defs.instance.run_launcher import WatchfulRunLauncher
from retail_assets.settings import Settings
from retail_assets_tests.platform import open_platform


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    with open_platform(settings) as platform:
        yield platform.instance


def test_it_is_quiet_small_and_keeps_its_history_in_its_folder(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    assert not instance.telemetry_enabled
    assert isinstance(instance.event_log_storage, PooledSqliteEventLogStorage)
    create_run_for_test(instance)
    assert (settings.data_dir / "dagster" / "history" / "runs" / "index.db").is_file()
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_concurrent_runs == 2
    assert instance.run_retries_enabled
    assert instance.run_retries_max_retries == 2
    assert not instance.run_retries_retry_on_asset_or_op_failure
    assert instance.run_monitoring_enabled


def test_the_event_log_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(dg.DagsterInvariantViolationError, match="set DAGSTER_HOME, or base_dir"):
        PooledSqliteEventLogStorage.from_config_value(None, {})


def health(instance: dg.DagsterInstance, server: dict[str, object] | None) -> WorkerStatus:
    """What the launcher says of a started run that such a code server executes."""
    assert isinstance(instance.run_launcher, WatchfulRunLauncher)
    run = create_run_for_test(
        instance,
        status=dg.DagsterRunStatus.STARTED,
        tags={GRPC_INFO_TAG: json.dumps(server)} if server else {},
    )
    return instance.run_launcher.check_run_worker_health(run).status


@pytest.mark.processes  # the code server of Dagster
def test_a_run_is_alive_while_its_code_server_is_there(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    path = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert health(instance, {"host": "localhost", "socket": path}) == WorkerStatus.RUNNING
    assert health(instance, {"host": "localhost", "socket": path}) == WorkerStatus.NOT_FOUND
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert health(instance, {"host": "127.0.0.1", "port": port}) == WorkerStatus.RUNNING
    assert health(instance, {"host": "127.0.0.1", "port": port}) == WorkerStatus.NOT_FOUND


def test_a_run_without_code_server_is_left_to_its_maximum_time(
    instance: dg.DagsterInstance,
) -> None:
    assert health(instance, None) == WorkerStatus.RUNNING
    assert instance.run_monitoring_max_runtime_seconds == 86400
