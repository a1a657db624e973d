"""Publishing marts: ten years of days at once, and one changed day on top of them.

`python -m benchmarks.marts PLACE…` measures for each place, a database's URL or a folder, which has
to be empty. Each figure is that of a process of its own; memory is its peak, without the lake's.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from retail_assets.lake.connection import Lake
from retail_assets.outbound.marts.publish import position, publish
from retail_assets.outbound.marts.targets import mart_targets
from retail_assets.settings import Settings

YEARS, REGIONS, CATEGORIES = 10, 12, 10
TIMES = 5


def main(places: list[str]) -> None:
    """Print a table for each place."""
    for place in places:
        with tempfile.TemporaryDirectory() as folder:
            for name, days in (("ten years", 365 * YEARS), ("one day", 1)):
                values = _settings(place, Path(folder, name), name)
                found = {}
                for step in ("build", "publish", "nothing", "change", "compare"):
                    found[step] = _measure(step, values, days)
                print(place.rpartition("@")[2], name, json.dumps(found))


def _settings(place: str, data_dir: Path, name: str) -> dict[str, str]:
    values = {"RETAIL_DATA_DIR": str(data_dir)}
    if "://" not in place:
        return values | {"RETAIL_MART_FILES": str(Path(place, name.replace(" ", "_")))}
    if place.startswith("mysql"):
        # A schema is a database there: its tables are dropped for the second lake.
        return values | {"RETAIL_MART_URL": place + ("" if name == "ten years" else "_2")}
    return values | {"RETAIL_MART_URL": place, "RETAIL_MART_SCHEMA": name.replace(" ", "_")}


def _measure(step: str, values: dict[str, str], days: int) -> object:
    command = [sys.executable, "-m", "benchmarks.marts", "--step", step, str(days)]
    done = subprocess.run(command, env=os.environ | values, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _step(step: str, days: int) -> None:
    settings = Settings()
    lake = Lake.from_settings(settings)
    if step == "build":
        _build(lake, days)
        print(json.dumps({}))
        return
    [target] = mart_targets(settings)
    with lake.connect(read_only=True) as connection:
        position(connection)  # what is imported once
    seconds, rows = [], 0
    before = _peak()
    for n in range(1 if step in ("publish", "compare") else TIMES):
        if step == "change":
            _change(lake, days, n + 2)
        began = time.perf_counter()
        rows = publish(lake, target, everything=step == "compare").rows
        seconds.append(time.perf_counter() - began)
    found = {"seconds": round(min(seconds), 3), "rows": rows, "mb": round(_peak() - before)}
    print(json.dumps(found))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _build(lake: Lake, days: int) -> None:
    with lake.connect() as connection, lake.transaction(connection, "build"):
        for table in ("raw_orders", "daily_revenue", "daily_revenue_by_category"):
            connection.execute(
                f"INSERT INTO published_days SELECT '{table}', DATE '2016-01-01' + i::INTEGER, 1,"
                f" {REGIONS}, now() FROM range({days}) AS t(i)"
            )
        _insert(connection, f"range({days})", 1)


def _change(lake: Lake, days: int, value: int) -> None:
    """Restate the last day."""
    with lake.connect() as connection, lake.transaction(connection, "change"):
        last = f"DATE '2016-01-01' + {days - 1}"
        for table in ("daily_revenue", "daily_revenue_by_category"):
            connection.execute(f"DELETE FROM {table} WHERE order_date = {last}")
        _insert(connection, f"range({days - 1}, {days})", value)


def _insert(connection: duckdb.DuckDBPyConnection, days: str, value: int) -> None:
    region = f"FROM {days} AS d(i), range({REGIONS}) AS r(j)"
    measures = f"{value} + i * 0.01, 10, 1.5 {region}"
    day = "SELECT DATE '2016-01-01' + i::INTEGER, 'Region ' || j"
    category = f"{day}, 'Category ' || k, {measures}, range({CATEGORIES}) AS c(k) ORDER BY ALL"
    connection.execute(f"INSERT INTO daily_revenue {day}, {measures} ORDER BY ALL")
    connection.execute(f"INSERT INTO daily_revenue_by_category {category}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        _step(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1:])
