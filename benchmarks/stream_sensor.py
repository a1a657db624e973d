"""From a file closed to rows, by sensors of Dagster: `docs/benchmarks-sensor.md`.

Ten events a file, while UI, daemon and code server run: one file after the other, and a file every
second. The stock project is what Dagster's documentation shows: a sensor that lists a folder every
second and asks for a run of one asset for each new file, the default executor, `dagster dev`, and
a `DuckDBResource` that the asset appends to.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from benchmarks.events import ROOT, write_events, write_reference
from benchmarks.stream_latency import additions
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings
from tools.ports import free_port

DAY = date(2026, 11, 20)
POLL_SECONDS = 0.05
WAIT_SECONDS = 300
"""How long files that came one after the other may take."""

GRACE_SECONDS = 60
"""How long files that came every second may take after the last of them."""

Seen = Callable[[], set[str]]
"""The names of the files whose rows can be queried."""

TITLES = {"platform": "this platform's sensor", "stock": "stock Dagster sensor, default executor"}

PROJECT = """
import json
import os
from pathlib import Path

import dagster as dg
import pandas as pd
from dagster_duckdb import DuckDBResource

FOLDER = Path(__file__).parent / "events"


class EventFile(dg.Config):
    path: str


@dg.asset
def events(config: EventFile, duckdb: DuckDBResource) -> dg.MaterializeResult:
    frame = pd.read_json(config.path, lines=True, dtype={"customer_id": str})
    frame["source"] = Path(config.path).name
    with duckdb.get_connection() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS events AS SELECT * FROM frame LIMIT 0")
        connection.execute("INSERT INTO events BY NAME SELECT * FROM frame")
    return dg.MaterializeResult(metadata={"dagster/row_count": len(frame)})


ingest = dg.define_asset_job("ingest", selection=[events])


@dg.sensor(
    job=ingest, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING
)
def new_files(context: dg.SensorEvaluationContext):
    seen = float(context.cursor or 0)
    last = seen
    for path in sorted(FOLDER.glob("*.jsonl")):
        changed = path.stat().st_mtime
        if changed > seen:
            last = max(last, changed)
            yield dg.RunRequest(
                run_key=path.name,
                run_config={"ops": {"events": {"config": {"path": str(path)}}}},
            )
    context.update_cursor(str(last))


defs = dg.Definitions(
    assets=[events],
    jobs=[ingest],
    sensors=[new_files],
    resources={"duckdb": DuckDBResource(database=str(Path(__file__).parent / "events.duckdb"))},
)
"""


@dataclass
class Running:
    """Services with a sensor: the folder that it watches, and what it has ingested."""

    process: subprocess.Popen[bytes]
    folder: Path
    seen: Seen

    def cpu_seconds(self) -> float:
        """Processor seconds of all its processes, ended ones included."""
        root = psutil.Process(self.process.pid)
        total = 0.0
        for process in [root, *root.children(recursive=True)]:
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
        return total

    def drop(self, number: int) -> str:
        """Let a file of ten events appear, whole; returns its name."""
        name = f"drop-{number:03}.jsonl"
        write_events(self.folder / name, number)
        return name

    def wait(self, names: Sequence[str], seconds: float) -> dict[str, float]:
        """Wait until files are ingested, or for so long; returns when which was seen."""
        until = time.perf_counter() + seconds
        found: dict[str, float] = {}
        while len(found) < len(names) and time.perf_counter() < until:
            if self.process.poll() is not None:
                raise RuntimeError("The services have ended.")
            seen, now = self.seen(), time.perf_counter()
            found = {name: found.get(name, now) for name in names if name in seen}
            time.sleep(POLL_SECONDS)
        return found


def measure(running: Running, drops: int, *, every_second: bool) -> dict[str, Any]:
    """Seconds from each file's rename to its rows, sorted, and processor seconds a file.

    The first file waits for everything to start, and is not counted. A file that came every second
    and is not there a minute after the last counts as `unseen`, and as if it were there then.

    Raises:
        RuntimeError: if the rows of the first file do not appear.
    """
    if not running.wait([running.drop(0)], WAIT_SECONDS):
        raise RuntimeError("The sensor did not ingest the first file.")
    time.sleep(10)
    cpu = running.cpu_seconds()
    dropped: dict[str, float] = {}
    found: dict[str, float] = {}
    start = time.perf_counter()
    for number in range(1, drops + 1):
        name = running.drop(number)
        dropped[name] = time.perf_counter()
        if every_second:
            wait = start + number - time.perf_counter()
            missing = [name for name in dropped if name not in found]
            found |= running.wait(missing, wait)
            time.sleep(max(0.0, start + number - time.perf_counter()))
        else:
            found |= running.wait([name], WAIT_SECONDS)
            # Files do not come in step with the sensor.
            time.sleep(number * 0.37 % 5)
    found |= running.wait([name for name in dropped if name not in found], GRACE_SECONDS)
    end = time.perf_counter()
    return {
        "seconds": sorted(found.get(name, end) - began for name, began in dropped.items()),
        "unseen": len(dropped) - len(found),
        "cpu": (running.cpu_seconds() - cpu) / drops,
    }


@contextmanager
def platform(folder: Path) -> Iterator[Running]:
    """The services of `make ui` without a worker and the board, in a new folder."""
    write_reference(folder)
    target = folder / "events" / str(DAY)
    target.mkdir(parents=True)
    home = folder / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "deploy/dagster/dagster.yaml", home)
    command = [sys.executable, "-m", "retail_assets.cli.services"]
    command += ["--no-worker", "--no-board"]
    environment = {"RETAIL_DATA_DIR": str(folder), "DAGSTER_HOME": str(home)}
    lake = Lake.from_settings(Settings(data_dir=folder))
    reader: list[Any] = []

    def seen() -> set[str]:
        if not reader:
            try:
                reader.append(lake.open(read_only=True))
            except NoLakeError:
                return set()
        rows = reader[0].execute("SELECT DISTINCT source_name FROM enriched_events").fetchall()
        return {Path(name).name for (name,) in rows}

    with _services([*command, "--port", str(free_port())], ROOT, folder, environment) as process:
        yield Running(process, target, seen)
    for connection in reader:
        connection.close()


@contextmanager
def stock(folder: Path) -> Iterator[Running]:
    """The stock project, in a new folder."""
    (folder / "events").mkdir(parents=True)
    (folder / "home").mkdir()
    (folder / "home/dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (folder / "project.py").write_text(PROJECT)
    database = folder / "events.duckdb"
    looked, names = 0, set[str]()

    def seen() -> set[str]:
        nonlocal looked, names
        # Looked at only when something has changed: a reader keeps the writer out.
        changed = database.stat().st_mtime_ns if database.exists() else 0
        if changed != looked and (found := _sources(database)) is not None:
            looked, names = changed, found
        return names

    command = [sys.executable, "-m", "dagster", "dev", "-f", "project.py"]
    environment = {"DAGSTER_HOME": str(folder / "home")}
    command += ["--port", str(free_port())]
    with _services(command, folder, folder, environment) as process:
        yield Running(process, folder / "events", seen)


@contextmanager
def _services(
    command: Sequence[str], cwd: Path, folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _sources(database: Path) -> set[str] | None:
    """The files in the stock project's table; None while the writer holds the database."""
    import duckdb

    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            rows = connection.execute("SELECT DISTINCT source FROM events").fetchall()
    except (duckdb.IOException, duckdb.CatalogException):
        return None
    return {name for (name,) in rows}


def measure_part(folder: Path, who: str, drops: int, *, every_second: bool) -> dict[str, Any]:
    """Measure the sensor of the `platform` or the `stock` one, in a folder that is made again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with {"platform": platform, "stock": stock}[who](folder) as running:
        found = measure(running, drops, every_second=every_second)
    print(who, "every second" if every_second else "one by one", json.dumps(found), flush=True)
    return found


def report(work: Path, drops: int, seconds: int, machine: str) -> str:
    """Measure both sensors, and return the report as Markdown."""
    parts = {
        (who, every): measure_part(work / who, who, number, every_second=every)
        for every, number in ((False, drops), (True, seconds))
        for who in TITLES
    }
    return text(parts, machine, additions())


def text(parts: dict[tuple[str, bool], dict[str, Any]], machine: str, speed: float) -> str:
    """The report of measured parts, by sensor and whether files came every second."""
    sections = [
        "# Benchmarks of the event sensor",
        (
            f"Written by {machine}. Trust the ratios, not the seconds, which are of one machine on"
            " one day."
        ),
        (
            "From a file closed to rows that can be queried, in seconds: files of 10 events, while"
            " the UI, the daemon and the code server run, automation is on and no worker runs. The"
            " stock sensor is one of a Dagster project as its documentation shows it: a run for"
            " each file, which appends to a table and does nothing else. Processor seconds are"
            " those of all processes, divided by the files. Ten million additions in Python, which"
            f" show how fast the machine was, took {speed:.1f} s."
        ),
    ]
    for every in (False, True):
        number = len(parts["platform", every]["seconds"])
        how = "one every second" if every else "one after the other"
        lines = [
            "| | p50 s | p95 s | slowest s | not there a minute after the last | CPU s a file |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for who, title in TITLES.items():
            part = parts[who, every]
            p50, p95 = (part["seconds"][int(number * share)] for share in (0.5, 0.95))
            lines.append(
                f"| {title} | {p50:.2f} | {p95:.2f} | {part['seconds'][-1]:.2f} |"
                f" {part['unseen']} | {part['cpu']:.1f} |"
            )
        sections += [f"## {number} files, {how}", "\n".join(lines)]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    at, kind, how, count = sys.argv[1:]
    measure_part(Path(at), kind, int(count), every_second=how == "second")
