"""Long-lived processes that are started together and stopped together, none left behind.

    python -m retail_assets.cli.services --port 3000

starts the Dagster UI with its daemon and code server, the stream worker, and the board where its
extra is installed. A code server that dies is started again. Ctrl-C, SIGTERM, or the end of one of
them stops all: first by a signal, then by force. A second Ctrl-C does not wait.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec

from rich.console import Console

from retail_assets.cli.code_server import CodeServerWatch
from retail_assets.cli.dagster_home import check_dagster_home
from retail_assets.cli.printing import print_message
from retail_assets.dashboard.address import check_free
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import load_settings

GRACE_SECONDS = 30
"""How long stopping may take; runs in progress are cancelled in that time."""

POLL_SECONDS = 0.2


def main() -> int:
    """Run the services until they are stopped; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="where the UI listens")
    parser.add_argument("--port", type=int, default=3000, help="the port that it listens on")
    parser.add_argument("--no-worker", action="store_true", help="leave events to the sensor")
    parser.add_argument("--no-board", action="store_true", help="without the board")
    options = parser.parse_args()
    try:
        if home := os.environ.get("DAGSTER_HOME"):
            check_dagster_home(home)
        settings = load_settings()
        with_board = not options.no_board and find_spec("nicegui") is not None
        if with_board:
            check_free(settings.dashboard_host, settings.dashboard_port)
    except RetailAssetsError as error:
        print_message(Console(stderr=True), f"Error: {error}")
        return 2
    sys.stdout.write(f"Dagster UI: http://{options.host}:{options.port} (Ctrl-C stops it)\n")
    sys.stdout.flush()
    commands = [_dagster(options.host, options.port)]
    if not options.no_worker:
        commands.append(_worker())
    if with_board:
        # Unless it is set, the board links to this Dagster UI.
        os.environ.setdefault(
            "RETAIL_DASHBOARD_DAGSTER_URL", f"http://{options.host}:{options.port}"
        )
        sys.stdout.write(f"Board: http://{settings.dashboard_host}:{settings.dashboard_port}\n")
        sys.stdout.flush()
        commands.append(_board())
    watch = CodeServerWatch(options.host, options.port)
    watch.start()
    try:
        return run_together(commands)
    finally:
        watch.stop()


def _dagster(host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-W", "ignore:Function `dev_command` is superseded", "-m", "dagster"),
        *("dev", "--workspace", "workspace.yaml", "--log-level", "warning"),
        *("--host", host, "--port", str(port)),
    ]


def _worker() -> list[str]:
    return [sys.executable, "-m", "retail_assets", "stream"]


def _board() -> list[str]:
    return [sys.executable, "-m", "retail_assets", "dashboard"]


def run_together(commands: Sequence[Sequence[str]]) -> int:
    """Run commands until SIGINT, SIGTERM or the end of one of them, then stop them all.

    Each gets a process group of its own: a terminal's Ctrl-C reaches only this process, and the
    processes that a command has started can be ended with it.

    Returns:
        0 after a signal, 1 if a command ended by itself.
    """
    signals = threading.Semaphore(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Even if they were ignored, as in a background job of a script.
        signal.signal(number, lambda *_: signals.release())
    processes = [
        subprocess.Popen(command, start_new_session=True)  # noqa: S603  # commands of this module
        for command in commands
    ]
    try:
        stopped = False
        while not stopped and all(process.poll() is None for process in processes):
            stopped = signals.acquire(timeout=POLL_SECONDS)
        _stop(processes, signals)
    finally:
        for process in processes:
            _kill_group(process)
    return 0 if stopped else 1


def _stop(processes: Sequence[subprocess.Popen[bytes]], signals: threading.Semaphore) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    for _ in range(round(GRACE_SECONDS / POLL_SECONDS)):
        running = [process for process in processes if process.poll() is None]
        if not running or signals.acquire(timeout=POLL_SECONDS):
            return


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
