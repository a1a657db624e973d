"""Dagster's default run launcher, which also notices that a run's code server is gone.

After a power cut, or when all of Dagster was killed, the stock launcher leaves the runs of that
time in progress for ever, and sensors wait for their days for as long. With this one, run
monitoring fails them and `run_retries` starts them again. To go back, delete `run_launcher` from
`dagster.yaml`. It depends on Dagster's internals, so nothing else belongs in this module.
"""

import socket
from collections.abc import Mapping
from typing import Any

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClassData

TIMEOUT_SECONDS = 5


class WatchfulRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` that can say whether the code server that executes a run is there."""

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData,
        config_value: Mapping[str, Any],  # noqa: ARG003  # there is nothing to configure
    ) -> "WatchfulRunLauncher":
        """Make the launcher."""
        return cls(inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True, so that run monitoring looks at runs that have started."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Look for the run's code server: while it is there, it reports a crash of the run itself.

        A run that no code server executes, such as one of `retail-assets backfill`, counts as
        running until its maximum time is over.
        """
        server = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if server is None or _answers(server.host, server.port, server.socket):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "The code server of the run is gone.")


def _answers(host: str, port: int | None, path: str | None) -> bool:
    family = socket.AF_UNIX if path else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        return connection.connect_ex(path or (host, port)) == 0
