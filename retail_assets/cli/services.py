"""Long-lived processes that are started together and stopped together, none left behind.

    python -m retail_assets.cli.services --port 3000

starts the Dagster UI with its daemon and code server, the stream worker, and the board where its
extra is installed. A code server that dies is started again. Ctrl-C, SIGTERM, or the end of one of
them stops all: first by a signal, then by force. A second Ctrl-C does not wait.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
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

READY_SECONDS = 1.0
"""How often it is looked whether the Dagster UI listens."""


def main() -> int:
    """Run the services until they are stopped; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="where the UI listens")
    parser.add_argument("--port", type=int, default=3000, help="the port that it listens on")
    parser.add_argument("--no-worker", action="store_true", help="leave events to the sensor")
    parser.add_argument("--no-board", action="store_true", help="without the board")
    options = parser.parse_args()
    try:
        return run(
            options.host,
            options.port,
            worker=not options.no_worker,
            board=not options.no_board,
        )
    except RetailAssetsError as error:
        print_message(Console(stderr=True), f"Error: {error}")
        return 2


def run(
    host: str,
    port: int,
    *,
    worker: bool = True,
    board: bool = True,
    more: Sequence[Sequence[str]] = (),
) -> int:
    """Run the Dagster UI, and what goes with it, until they are stopped.

    Args:
        host: where the Dagster UI listens.
        port: the port that it listens on.
        worker: with the stream worker.
        board: with the board, where its extra is installed.
        more: other commands to run beside them.

    Returns:
        The exit code.

    Raises:
        RetailAssetsError: if a setting, DAGSTER_HOME or a port cannot be used.
    """
    if home := os.environ.get("DAGSTER_HOME"):
        check_dagster_home(home)
    settings = load_settings()
    board = board and find_spec("nicegui") is not None
    check_free(host, port, "The Dagster UI", "RETAIL_UI_PORT")
    if board:
        check_free(settings.dashboard_host, settings.dashboard_port)
    url = f"http://{host}:{port}"
    commands = [_dagster(host, port), *more]
    if worker:
        commands.append(_worker())
    if board:
        # Unless it is set, the board links to this Dagster UI.
        os.environ.setdefault("RETAIL_DASHBOARD_DAGSTER_URL", url)
        commands.append(_board())
    say(
        f"Starting the Dagster UI{', the board' * board}{' and the worker' * worker}; Ctrl-C stops."
    )
    next_steps = (
        f"Drop a file orders_YYYY_MM_DD.csv into {settings.exports_dir}, or event files into"
        f" {settings.events_location}: they are ingested by themselves."
    )
    waiting = threading.Thread(target=_say_when_ready, args=(host, port, next_steps), daemon=True)
    waiting.start()
    watch = CodeServerWatch(host, port)
    watch.start()
    try:
        return run_together(commands)
    finally:
        watch.stop()


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say_when_ready(host: str, port: int, next_steps: str) -> None:
    """Wait until the Dagster UI listens, then say so; the board says it by itself."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=READY_SECONDS):
                break
        except OSError:
            time.sleep(READY_SECONDS)
    say(f"The Dagster UI is ready: http://{host}:{port}\n{next_steps}")


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
