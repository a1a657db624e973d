"""Take the picture of the board that README.md and docs/dashboard.md show: `make picture`.

The sample data in a folder of their own, served to Chromium.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import expect, sync_playwright

from tools.ports import free_port

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/board.png"
SAMPLE = ("2026-10-05", "2026-11-01")
CONSUMERS = ("live_orders", "live_revenue", "dead_letter_counts", "inventory", "fraud")
COMMAND = [sys.executable, "-m", "retail_assets"]


def main() -> None:
    """Write the picture."""
    with TemporaryDirectory() as folder:
        for name in ("exports", "events", "reference"):
            shutil.copytree(ROOT / "data" / name, Path(folder, name))
        environment = os.environ | {"RETAIL_DATA_DIR": folder, "RETAIL_START_DATE": SAMPLE[0]}
        for arguments in (
            ["backfill", "--start", SAMPLE[0], "--end", SAMPLE[1]],
            ["ingest-events"],
            *(["consumers", "rewind", name] for name in CONSUMERS),
        ):
            subprocess.run([*COMMAND, *arguments], env=environment, check=True)
        with served(environment) as url:
            take(url)


@contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """The address of a board of the lake."""
    port = free_port()
    board = subprocess.Popen(
        [*COMMAND, "dashboard", "--port", str(port)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert board.stderr is not None
        assert "ready" in board.stderr.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        board.terminate()
        board.wait()


def take(url: str) -> None:
    """Take the picture of Today in light colours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": 1280, "height": 880}, color_scheme="light", locale="en-GB"
        )
        page.goto(url)
        expect(page.get_by_text("Newest events").first).to_be_visible(timeout=60_000)
        expect(page.locator("svg path").nth(20)).to_be_attached(timeout=60_000)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
