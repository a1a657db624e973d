"""What `make test-fast` leaves out: tests that start a process or a server, and slow ones.

The first have the mark `processes`, in their module or on the test; a test without it that starts
one in such a run fails. `slow_tests.txt` names the others; a test may have the mark `slow` as well.
"""

import multiprocessing.process
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SLOW = Path(__file__).with_name("slow_tests.txt")
"""The tests of more than half a second, on two quiet cores; docs/testing.md says how."""

EVENTS = {
    "subprocess.Popen",
    "os.fork",
    "os.posix_spawn",
    "os.system",
    "multiprocessing.start",
    "socket.bind",
}
"""What Python announces to its audit hooks (PEP 578) before it starts a process or a server."""


def mark_slow(items: list[pytest.Item]) -> None:
    """Add the mark `slow` to the tests that the list names."""
    slow = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        path, _, name = item.nodeid.partition("::")
        if f"{path.removeprefix('retail_assets_tests/')}::{name.split('[')[0]}" in slow:
            item.add_marker("slow")


LONG = ("end_to_end", "faults", "fuzz")
"""The folders whose modules have few tests, of half a minute each."""


def longest_first(items: list[pytest.Item]) -> None:
    """Put the longest modules first: a core that is done takes the next one.

    They are those of `LONG`, then those with the most marked tests. A long module that came last
    would leave the other cores idle.
    """
    marked = Counter(item.path for item in items if {"slow", "processes"} & set(item.keywords))
    items.sort(key=lambda item: (item.path.parent.name not in LONG, -marked[item.path]))


class Watch:
    """Fails a test that starts a process or a server: for a run that leaves these out."""

    def __init__(self) -> None:
        self.item: pytest.Item | None = None
        self.found: list[str] = []
        sys.addaudithook(self.hear)
        start = multiprocessing.process.BaseProcess.start

        def announced(process: multiprocessing.process.BaseProcess) -> None:
            sys.audit("multiprocessing.start")
            start(process)

        # It calls the system itself, past what Python announces.
        multiprocessing.process.BaseProcess.start = announced  # type: ignore[method-assign]

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what a test does."""
        if event not in EVENTS or self.item is None:
            return
        if event == "socket.bind" and arguments[0].family == getattr(socket, "AF_UNIX", None):
            return
        self.found.append(f"{event}{arguments[1:]!r}"[:200])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Watch one test with its fixtures."""
        self.item, self.found = item, []
        try:
            return (yield)
        finally:
            self.item = None

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Fail the test."""
        if self.found:
            pytest.fail(
                f"It does {self.found[0]}, in a run without processes and servers: give it, or its"
                " module, pytest.mark.processes.",
                pytrace=False,
            )
