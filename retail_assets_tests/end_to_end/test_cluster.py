"""A backfill over two hosts: Celery workers in folders of their own, PostgreSQL and a bucket.

They are processes of this machine that share no folder. One is killed while it executes a run.
"""

# ruff: noqa: F811  # fixtures are imported

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import boto3
import dagster as dg
import psycopg
import pytest
import s3fs
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from retail_assets import tables
from retail_assets.business_days import days_between
from retail_assets.cli.launched_backfill import launch_backfill
from retail_assets.defs import partitions
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.end_to_end.test_daemon import IMPATIENT, ROOT, eventually
from retail_assets_tests.faults.batch import contents, run_batch
from retail_assets_tests.lake.test_s3 import KEYS, endpoint  # noqa: F401  # a fixture
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, write_reference
from retail_assets_tests.servers import PASSWORD
from tools.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    DAGSTER_CALLS_ITSELF,
    pytest.mark.skipif(
        shutil.which("redis-server") is None,
        reason="there is no Redis: `apt-get install redis-server` brings it",
    ),
]

CLUSTER = ROOT / "deploy" / "cluster" / "dagster.yaml"

FIRST = date(2026, 9, 28)
DAYS = days_between(FIRST, FIRST + timedelta(days=59))
RUN_DAYS = 15

EXPORTS = dg.AssetKey(tables.RAW_ORDERS.name)

COMPARED = {
    "published_days": "table_name, day, row_count",
    "changed_days": "DISTINCT feed, day",
    "export_files": "export_date, source_file, content_hash, rows_in, raw_rows, rejected_rows",
}
"""What ledgers have beside times of files, and how often a day was changed."""

LEDGERS = set(COMPARED)

HASTY = {"poll_interval_seconds: 15": "poll_interval_seconds: 2"}
"""The daemon of the test asks the workers more often than that of `deploy/cluster`."""


NO_SENSORS = """
if "dagster._daemon" in sys.orig_argv:
    from dagster import DagsterInstance

    DagsterInstance.get_required_daemon_types = lambda _: [
        "BACKFILL", "QUEUED_RUN_COORDINATOR", "MONITORING", "EVENT_LOG_CONSUMER"
    ]
"""
"""Sensors would take more of the two cores than the runs do."""


@contextmanager
def running(home: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a folder and a session of its own, killed with its children in the end."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis server on a port of this machine."""
    port = free_port()
    options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "")
    with running(tmp_path / "redis", "redis-server", *options):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: str, redis: str, endpoint: str
) -> Settings:
    """The settings of the hosts; what they name is in the environment, and empty."""
    name, bucket = f"cluster_{uuid4().hex}", f"cluster-{uuid4().hex}"
    with psycopg.connect(f"{postgres} dbname=postgres", autocommit=True) as connection:
        for database in (f"{name}_lake", f"{name}_dagster"):
            connection.execute(f"CREATE DATABASE {database}")
    (port,) = re.findall(r"port=(\d+)", postgres)
    home = tmp_path / "home"
    home.mkdir()
    text = CLUSTER.read_text()
    for deployed, hasty in HASTY.items():
        assert deployed in text
        text = text.replace(deployed, hasty)
    (home / "dagster.yaml").write_text(text)
    for variable in [name for name in os.environ if name.startswith("RETAIL_")]:
        monkeypatch.delenv(variable)
    environment = KEYS | {
        "AWS_ENDPOINT_URL": endpoint,
        "DAGSTER_HOME": str(home),
        "DAGSTER_POSTGRES_URL": (
            f"postgresql://postgres:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{name}_dagster"
        ),
        "DAGSTER_CELERY_BROKER": redis,
        "PYTHONWARNINGS": "ignore",
        "RETAIL_DATA_DIR": str(tmp_path / "one"),
        "RETAIL_LAKE_CATALOG": f"postgres:{postgres} dbname={name}_lake",
        "RETAIL_LAKE_DATA": f"s3://{bucket}/lake",
        "RETAIL_EXPORTS": f"s3://{bucket}/exports",
        "RETAIL_START_DATE": str(FIRST),
        "RETAIL_RUN_DAYS": str(RUN_DAYS),
        "RETAIL_THREADS": "1",
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return Settings()


def write(folder: Path) -> None:
    """The exports: an order a day; the third run has a late and a corrected one of the second."""
    for n, day in enumerate(DAYS):
        rows = [order_row(f"O{n}", day)]
        if n == 2 * RUN_DAYS:
            before = day - timedelta(days=2)
            rows += [
                order_row(f"late {n}", before, order_value_gbp="20.00"),
                order_row(f"O{n - 2}", before, order_value_gbp="7.00"),
            ]
        os.utime(write_export_to(folder, day, rows), (0, 0))


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def test_a_backfill_over_two_workers_of_which_one_dies_equals_a_single_run(
    cluster: Settings, tmp_path: Path
) -> None:
    single = Settings(
        data_dir=tmp_path / "single", lake_catalog=None, lake_data=None, exports=None, threads=1
    )
    write(single.exports_dir)
    write_reference(single)
    write_reference(cluster)
    s3fs.S3FileSystem().put(
        [str(path) for path in sorted(single.exports_dir.iterdir())],
        [f"{cluster.exports_location}/{p.name}" for p in sorted(single.exports_dir.iterdir())],
    )
    hasty = tmp_path / "hasty"
    hasty.mkdir()
    (hasty / "sitecustomize.py").write_text(IMPATIENT + NO_SENSORS)

    # Requested before anything runs: each host finds what there is to do.
    assert len(launch_backfill(cluster, DAYS[0], DAYS[-1]).notes) == 2, "there is no daemon yet"
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                running(
                    tmp_path / name,
                    *(sys.executable, "-m", "retail_assets.defs.instance.celery"),
                    f"--hostname={name}@here",
                    RETAIL_DATA_DIR=str(tmp_path / name / "data"),
                )
            )
            for name in ("two", "three")
        ]
        stack.enter_context(
            running(
                tmp_path / "daemon",
                *(sys.executable, "-m", "dagster._daemon", "run"),
                *("-m", "retail_assets.definitions"),
                PYTHONPATH=os.pathsep.join((str(hasty), str(ROOT))),
                RETAIL_DATA_DIR=str(tmp_path / "daemon" / "data"),
            )
        )
        instance = stack.enter_context(dg.DagsterInstance.get())

        def at_work() -> list[subprocess.Popen[bytes]]:
            """The workers that execute runs."""
            started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
            said = [
                int(pid)
                for run in instance.get_runs(started)
                for entry in instance.all_logs(run.run_id)
                for pid in re.findall(r"\(pid: (\d+)\)", entry.user_message or entry.message)
            ]
            return [each for each in workers if set(children(each.pid)) & set(said)]

        dying, *_ = eventually(at_work, bool)
        kill(dying)
        outcome = launch_backfill(cluster, DAYS[0], DAYS[-1], wait=True)
        runs = instance.get_runs(dg.RunsFilter())

    assert (outcome.failed, outcome.problems) == ({}, ())
    run_batch(single, DAYS)
    found, expected = contents(cluster), contents(single)
    assert {name for name in expected if expected[name] != found[name]} <= LEDGERS
    for ledger, columns in COMPARED.items():
        assert rows_of(cluster, ledger, columns) == rows_of(single, ledger, columns)
    of_days = [run for run in runs if partitions.run_days(run.tags)]
    failed = [run for run in of_days if not run.is_success]
    assert len(failed) == 1, "the run of the worker that was killed"
    again = [run for run in of_days if run.tags.get(PARENT_RUN_ID_TAG) == failed[0].run_id]
    assert [run.status for run in again] == [dg.DagsterRunStatus.SUCCESS]
    exported = [run for run in of_days if EXPORTS in (run.asset_selection or ())]
    assert len(exported) == len(DAYS) / RUN_DAYS + 1, "four, and one of them twice"


def rows_of(settings: Settings, table: str, columns: str) -> list[tuple[object, ...]]:
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()
