"""Processes that are started together are stopped together, none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

HANG_SECONDS = 60  # never reached unless something is broken: a red test instead of a stuck one

SUPERVISOR = """
import sys
from retail_assets.cli.services import run_together
commands = [[sys.executable, "-c", code] for code in sys.argv[1:]]
sys.exit(run_together(commands))
"""
WAIT = "import os, time; os.write(1, f'{os.getpid()}\\n'.encode()); time.sleep(600)"
DEAF = (
    "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "os.write(1, f'{os.getpid()}\\n'.encode()); time.sleep(600)"
)
PARENT_OF_A_DEAF_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"


@contextmanager
def start(*codes: str, ignoring_interrupts: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run pieces of Python together; what is left of them in the end is killed."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    code = (ignore if ignoring_interrupts else "") + SUPERVISOR
    with subprocess.Popen(
        [sys.executable, "-c", code, *codes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def pids(process: subprocess.Popen[str], count: int) -> list[int]:
    """The ids that the commands print once they run."""
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that a foreign parent has yet to collect has."""
    started = time.monotonic()
    while time.monotonic() - started < HANG_SECONDS:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignoring_interrupts", [False, True])
def test_a_signal_stops_all(number: signal.Signals, ignoring_interrupts: bool) -> None:
    with start(WAIT, WAIT, ignoring_interrupts=ignoring_interrupts) as process:
        children = pids(process, 2)
        process.send_signal(number)
        assert process.wait(HANG_SECONDS) == 0
        assert [gone(pid) for pid in children] == [True, True]


def test_the_end_of_one_stops_the_others_and_is_a_failure() -> None:
    with start(WAIT, "import sys; sys.stdin.read(1)") as process:
        (child,) = pids(process, 1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(HANG_SECONDS) == 1
        assert gone(child)


def test_what_a_command_has_started_and_does_not_end_is_killed_with_it() -> None:
    with start(PARENT_OF_A_DEAF_CHILD) as process:
        (grandchild,) = pids(process, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
        assert gone(grandchild)


def test_a_second_signal_does_not_wait_for_what_does_not_stop() -> None:
    with start(DEAF) as process:
        (child,) = pids(process, 1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
        assert gone(child)
