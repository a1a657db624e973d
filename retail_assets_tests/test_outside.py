"""A fast run starts no process and no server, and leaves out the slow tests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import socket
import subprocess
import pytest

def test_unmarked_process():
    subprocess.run(["true"], check=True)

def test_unmarked_server():
    with socket.create_server(("127.0.0.1", 0)):
        pass

@pytest.mark.processes
def test_marked():
    subprocess.run(["true"], check=True)

def test_neither():
    pass
"""


@pytest.mark.processes
def test_a_test_that_starts_a_process_or_a_server_in_a_fast_run_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from retail_assets_tests.conftest import pytest_collection_modifyitems, pytest_configure\n"
    )
    (tmp_path / "test_some.py").write_text(TESTS)
    settings = Path(__file__).parents[1] / "pyproject.toml"
    fast = ("-m", "not processes and not slow")
    options = (*fast, "-q", "-p", "no:cacheprovider", "-c", settings, "--rootdir", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.rpartition("short test summary")[2]
    assert "3 passed, 1 deselected, 2 errors" in summary, done.stdout
    assert {"test_unmarked_process", "test_unmarked_server"} <= set(
        re.findall(r"test_\w+", summary)
    )
    assert done.stdout.count("in a run without processes and servers") >= 2
