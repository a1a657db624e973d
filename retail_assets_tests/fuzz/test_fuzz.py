"""Inputs that are found by what they make the code do: each is accounted for, or refused."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retail_assets_tests.processes import HANG_SECONDS

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
SHOWN_LINES = 60


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not there: `make setup` installs it on Linux (x86_64) with Python 3.11 or"
    " newer; elsewhere it has to be built from source",
)
@pytest.mark.parametrize(("harness", "runs"), [("exports", 200), ("events", 300)])
def test_whatever_comes_in_is_accounted_for(harness: str, runs: int, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", f"retail_assets_tests.fuzz.{harness}", str(tmp_path)),
            *(f"-runs={runs}", "-seed=1"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=HANG_SECONDS,
        check=False,
        text=True,
        errors="backslashreplace",
    )
    assert ended.returncode == 0, "\n".join(ended.stdout.splitlines()[-SHOWN_LINES:])
    assert f"Done {runs} runs" in ended.stdout
