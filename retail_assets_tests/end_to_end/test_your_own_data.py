"""The README's ways to begin with data of one's own, word for word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = ROOT / "retail_assets_tests" / "ingest" / "exports" / "foreign"


def commands(title: str) -> str:
    """The commands that the README has under a title."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"\*\*{title}\*\*.*?```sh\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.processes
def test_three_commands_take_a_shopify_export_to_revenue(tmp_path: Path) -> None:
    (tmp_path / "Downloads").mkdir()
    sample = (FOREIGN / "shopify.csv").read_bytes()
    (tmp_path / "Downloads" / "orders_export_1.csv").write_bytes(sample)
    script = commands("From a Shopify export").replace("/srv/", f"{tmp_path}/srv/")
    assert len(script.strip().splitlines()) == 3
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env=os.environ
        | {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"total .*\b7\b.*\b3\b.*89\.00", done.stdout)
    assert "There is no products.csv and no customers.csv" in done.stderr
