"""From a file closed to rows that can be queried, in a stock Dagster project.

The project is what Dagster's documentation shows: a sensor that lists a folder every second and
asks for a run of one asset for each new file, the default executor, `dagster dev`, and a
`DuckDBResource` that the asset appends to.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

WAIT_SECONDS = 300

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


def stock_sensor_latency(folder: Path, drops: int, events: int = 10) -> list[float]:
    """Seconds from a file's rename to its rows in the stock project, for each drop.

    The folder is made again. A first drop waits for everything to start, and is not counted.

    Raises:
        RuntimeError: The rows of a file do not appear, or `dagster dev` ended.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "events").mkdir(parents=True)
    (folder / "home").mkdir()
    (folder / "home/dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (folder / "project.py").write_text(PROJECT)
    with (folder / "log").open("wb") as log:
        services = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster", "dev", "-f", "project.py"),
                *("--port", str(_free_port())),
            ],
            cwd=folder,
            env=os.environ | {"DAGSTER_HOME": str(folder / "home")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = []
    try:
        for number in range(drops + 1):
            seconds = _drop(folder, services, number, events)
            if number:
                found.append(seconds)
                print(f"stock sensor: {seconds:.1f} s")
            # Files do not come in step with the sensor.
            time.sleep(number * 0.37 % 5)
    finally:
        os.killpg(services.pid, signal.SIGTERM)
        try:
            services.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(services.pid, signal.SIGKILL)
            services.wait()
    return found


def _drop(folder: Path, services: subprocess.Popen[bytes], number: int, events: int) -> float:
    name = f"drop-{number:03}.jsonl"
    aside = folder / "events" / f"{name}.part"
    aside.write_text(
        "".join(
            json.dumps(
                {
                    "event_id": f"E{number}-{n}",
                    "order_id": f"O{number}-{n}",
                    "customer_id": f"{n:06}",
                    "product_id": f"P000{n}",
                    "order_value_gbp": number % 900 + 1.5,
                    "region": "London",
                    "status": "completed",
                    "event_timestamp": "2026-11-20T09:30:00+00:00",
                }
            )
            + "\n"
            for n in range(events)
        )
    )
    aside.rename(folder / "events" / name)
    began = time.perf_counter()
    database = folder / "events.duckdb"
    looked = 0
    while True:
        # Looked at only when something has changed: a reader keeps the writer out.
        changed = database.stat().st_mtime_ns if database.exists() else 0
        if changed != looked:
            rows = _rows(database, name)
            if rows:
                return time.perf_counter() - began
            looked = looked if rows is None else changed
        if services.poll() is not None or time.perf_counter() - began > WAIT_SECONDS:
            raise RuntimeError(
                f"The stock sensor took {name} not in:\n{(folder / 'log').read_text()[-3000:]}"
            )
        time.sleep(0.02)


def _rows(database: Path, name: str) -> int | None:
    """Rows of a file; None while the writer holds the database."""
    import duckdb

    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM events WHERE source = ?", [name]
            ).fetchone() or (0,)
    except (duckdb.IOException, duckdb.CatalogException):
        return None
    return int(count)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
