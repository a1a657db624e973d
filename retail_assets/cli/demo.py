"""A shop to look at: what `make demo` runs.

    python -m retail_assets.cli.demo --port 3000

makes a shop whose history ends yesterday, publishes it, and starts what `make ui` starts, with a
simulator beside it whose events the worker ingests as they come. Each day has a shop of its own, in
a folder that is named by it; starting again on the same day goes on with its shop.
"""

import argparse
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from rich.console import Console

from retail_assets.cli import services
from retail_assets.cli.printing import print_message
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import load_settings

DAYS = 42
"""Six weeks: the usual course of a weekday is that of so many."""

ORDERS_A_DAY = 120
RATE = 5.0
COMMAND = [sys.executable, "-m", "retail_assets"]
INSTANCE = Path("deploy/dagster/dagster.yaml")


def main() -> int:
    """Make the shop and run it until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where shops are made")
    parser.add_argument("--rate", type=float, default=RATE, help="events a second")
    parser.add_argument("--port", type=int, default=3000, help="the port of the Dagster UI")
    options = parser.parse_args()
    try:
        today = datetime.now(ZoneInfo(load_settings().timezone)).date()
        folder = options.folder.absolute() / str(today)
        start = today - timedelta(days=DAYS)
        os.environ |= {
            "RETAIL_DATA_DIR": str(folder),
            "RETAIL_START_DATE": str(start),
            "DAGSTER_HOME": str(folder / "dagster"),
        }
        if not make_shop(folder, str(start), str(today - timedelta(days=1))):
            return 1
        simulator = [*COMMAND, "simulate", "--rate", str(options.rate)]
        return services.run("127.0.0.1", options.port, more=[simulator])
    except RetailAssetsError as error:
        print_message(Console(stderr=True), f"Error: {error}")
        return 2


def make_shop(folder: Path, first: str, last: str) -> bool:
    """Make what the shop does not have yet; returns whether its history is published.

    Args:
        folder: the data folder, which the settings name.
        first: the first day of its history.
        last: its last day.
    """
    home = folder / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(INSTANCE, home / "dagster.yaml")
    orders = ["--days", str(DAYS), "--orders-per-day", str(ORDERS_A_DAY), "--events", "0"]
    for said, command in (
        (f"A shop in {folder}, with orders from {first} to {last}:", ["generate", *orders]),
        ("Its revenue, by one Dagster run:", ["backfill", "--start", first, "--end", last]),
    ):
        services.say(said)
        if subprocess.run([*COMMAND, *command], check=False).returncode:  # noqa: S603  # ours
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
