"""A fast run starts no process and no server: marks follow from the code, and are held to."""

import subprocess
import sys
from pathlib import Path

import pytest

from retail_assets_tests import outside
from retail_assets_tests.receiver import running_receiver


class Starter:
    def start(self) -> None:
        subprocess.run([sys.executable, "-c", ""], check=True)


def through_a_method() -> None:
    Starter().start()


def within_a_function() -> None:
    def inner() -> None:
        through_a_method()

    inner()


def a_server() -> None:
    with running_receiver():
        pass


def neither() -> Path:
    return Path(sys.executable)


@pytest.mark.parametrize(
    ("function", "marks"),
    [
        (Starter.start, {"processes"}),
        (through_a_method, {"processes"}),
        (within_a_function, {"processes"}),
        (a_server, {"servers"}),
        (neither, set()),
    ],
)
def test_what_a_function_names_or_calls_gives_its_marks(function, marks):
    assert outside.marks_of([function]) == marks


UNMARKED = """
import importlib
import pytest

hidden = [importlib.import_module("sub" + "process").run]

def test_hidden():
    hidden[0](["true"], check=True)

@pytest.mark.processes
def test_marked():
    hidden[0](["true"], check=True)
"""


def test_a_test_that_starts_a_process_in_a_fast_run_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from retail_assets_tests.conftest import pytest_collection_modifyitems, pytest_configure\n"
    )
    (tmp_path / "test_unmarked.py").write_text(UNMARKED)
    fast = ("-m", "not processes and not servers and not slow")
    options = (
        *fast,
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        Path(__file__).parents[1] / "pyproject.toml",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 error" in done.stdout, done.stdout
    assert "1 passed, 1 deselected" in done.stdout
    assert "test_hidden" in done.stdout.rpartition("short test summary")[2]
    assert "in a run without these" in done.stdout
