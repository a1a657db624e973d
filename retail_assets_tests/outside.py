"""Which tests `make test-fast` leaves out: those that start processes or servers, and the slow.

A test has the mark `processes` if it, a fixture that it uses, or a function of the tests that these
call names one of `STARTERS`; the mark `servers` likewise. Where that cannot be seen, the module or
the test has the mark itself. In a run without processes a test that starts one after all fails. The
mark `slow` is measured: `slow_tests.txt` names these tests.
"""

import inspect
import multiprocessing.process
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

SLOW = Path(__file__).with_name("slow_tests.txt")
"""The tests of more than half a second, on two quiet cores; docs/testing.md says how."""

STARTERS = {
    "processes": ("subprocess", "multiprocessing", "retail_assets_tests.processes", "tools.broker"),
    "servers": ("tools.broker", "retail_assets_tests.receiver", "moto", "uvicorn"),
}
"""Modules of which any function starts one."""

EVENTS = {
    "subprocess.Popen": "processes",
    "os.fork": "processes",
    "os.posix_spawn": "processes",
    "os.system": "processes",
    "multiprocessing.start": "processes",
    "socket.bind": "servers",
}
"""What Python announces to its audit hooks (PEP 578) before it starts a process or a server."""


def mark(items: list[pytest.Item]) -> None:
    """Add the marks `processes`, `servers` and `slow` to the tests that need them."""
    slow = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        path = item.path.relative_to(SLOW.parent) if SLOW.parent in item.path.parents else None
        if path is not None and f"{path.as_posix()}::{item.name.split('[')[0]}" in slow:
            item.add_marker("slow")
        if isinstance(item, pytest.Function):
            definitions = item._fixtureinfo.name2fixturedefs.values()
            functions = [item.function, *(each.func for defs in definitions for each in defs)]
            for name in marks_of(functions):
                item.add_marker(name)


def marks_of(functions: list[Callable[..., Any]]) -> set[str]:
    """The marks that follow from what functions name, directly or through functions of tests."""
    seen: set[int] = set()
    reached = {place for function in functions for place in _places(function, seen)}
    return {
        mark
        for mark, starters in STARTERS.items()
        if any(f"{place}.".startswith(f"{name}.") for place in reached for name in starters)
    }


def _places(value: Any, seen: set[int]) -> Iterator[str]:
    """The modules, and functions by their full names, that a function reaches by name."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, ModuleType):
        yield value.__name__
        return
    value = inspect.unwrap(value) if callable(value) else value
    place = getattr(value, "__module__", None) or ""
    yield place
    if not place.startswith("retail_assets_tests"):
        return
    if isinstance(value, type):
        for method in vars(value).values():
            yield from _places(method, seen)
    if isinstance(value, FunctionType):
        for code in _codes(value.__code__):
            for name in code.co_names:
                if name in value.__globals__:
                    yield from _places(value.__globals__[name], seen)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


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
        name = EVENTS.get(event)
        if name is None or self.item is None:
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
                f"It does {self.found[0]}, in a run without these: give it, or its module,"
                " pytest.mark.processes or pytest.mark.servers.",
                pytrace=False,
            )
