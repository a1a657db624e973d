"""The web server, the daemon and the code server as `make ui` runs them, on a folder of their own.

No browser: none comes from PyPI. What the pages show they ask for by GraphQL, as is done here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from retail_assets import tables
from retail_assets.ingest.exports import reference
from retail_assets.ingest.exports.stale_days import RESTATED
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_table
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake, order_row, write_export_to
from retail_assets_tests.event_files import event
from retail_assets_tests.platform import INSTANCE, NO_OUTPUT, write_reference
from tools.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/environ").exists(),
        reason="finds the processes that are left through /proc, which is Linux",
    ),
    pytest.mark.processes,
]

HANG_SECONDS = 240  # never reached unless something is broken: a red test instead of a stuck one

ROOT = Path(__file__).parent.parent.parent
BATCH = [table.name for table in (tables.RAW_ORDERS, tables.REJECTED_ORDERS, *RESTATED)]

EARLY = {date(2026, 10, 12): "10.00", date(2026, 10, 13): "7.25"}
"""The days whose exports lie there before the start, with their revenue."""

BACKFILLED = [date(2026, 10, 14) + timedelta(days=n) for n in range(4)]
"""Right after these, so that the sensor starts one run for all."""

LANDING = max(BACKFILLED) + timedelta(days=1)
LATE = min(EARLY)
EVENTS_DAY, EVENT_FILES = date(2026, 11, 2), 5

IMPATIENT = """
import sys

if "grpc" in sys.orig_argv:
    from retail_assets.defs.automation import batch, reports, worker

    batch.TICK_SECONDS, worker.REPORT_SECONDS, reports.WORKER_SECONDS = 1, 5, 5
if "dagster._daemon" in sys.orig_argv:
    from dagster._daemon import controller

    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2
"""
"""Has the code server, which evaluates the sensors, and the daemon wait less: a report that has
just been missed is made a minute later, and backfills are looked at every half minute."""

T = TypeVar("T")


class Services:
    """What runs: its settings, and how to ask it."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.settings = settings
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        # One for all questions: each that is opened takes a tenth of a second of a core.
        self.lake = Lake.from_settings(settings).open(read_only=True)

    def ask(self, query: str, **variables: Any) -> Any:
        """Ask by GraphQL."""
        request = urllib.request.Request(  # noqa: S310  # the address is ours
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def drop(self, day: date, *rows: str) -> None:
        """Let an export land: written aside, then moved to its place."""
        folder = self.settings.data_dir / "aside"
        path = write_export_to(folder, day, rows)
        self.settings.exports_dir.mkdir(exist_ok=True)
        shutil.move(path, self.settings.exports_dir / path.name)

    def drop_events(self, day: date, name: str, *lines: str) -> None:
        """Let an event file land: written aside, then moved to its place."""
        aside = self.settings.data_dir / "aside" / name
        aside.parent.mkdir(exist_ok=True)
        aside.write_text("".join(f"{line}\n" for line in lines))
        folder = Path(self.settings.events_location, str(day))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(aside, folder / name)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the lake."""
        return self.lake.execute(sql).fetchall()

    def revenue(self) -> dict[date, str]:
        """The published revenue of each day."""
        found = self.query("SELECT order_date, sum(total_revenue) FROM daily_revenue GROUP BY 1")
        return {day: str(total) for day, total in found}

    def materialized(self, asset: str) -> set[str]:
        """The partitions that the UI shows as materialized."""
        found = self.ask(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
            " assetMaterializations(limit: 1000) { partition } } } }",
            key={"path": [asset]},
        )
        return {event["partition"] for event in found["assetNodeOrError"]["assetMaterializations"]}


def eventually(
    ask: Callable[[], T], accept: Callable[[T], bool], seconds: float = HANG_SECONDS
) -> T:
    """Ask until the answer is accepted; returns the last answer, which the test asserts on."""
    started = time.monotonic()
    answer = ask()
    while not accept(answer) and time.monotonic() - started < seconds:
        time.sleep(0.5)
        answer = ask()
    return answer


def processes_of(home: Path) -> dict[int, str]:
    """The commands of the processes that run with this DAGSTER_HOME, by their ids."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if f"DAGSTER_HOME={home}\0" in (folder / "environ").read_text(errors="replace"):
                command = (folder / "cmdline").read_text().replace("\0", " ")
                found[int(folder.name)] = command
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


def publish_reference(lake: Lake, elsewhere: Settings) -> None:
    """Have products and customers in a lake, and no files that a run is started for."""
    write_reference(elsewhere)
    with lake.connect() as connection:
        for table in (tables.PRODUCTS, tables.CUSTOMERS):
            publish_table(
                lake, connection, table, reference.read_reference(elsewhere.reference_dir, table)
            )


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, new_lake: NewLake) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    home = folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(INSTANCE.read_text() + NO_OUTPUT)
    settings = Settings(data_dir=folder, threads=1)
    publish_reference(new_lake(folder), Settings(data_dir=tmp_path_factory.mktemp("reference")))
    running = Services(settings, free_port())
    for day in BACKFILLED:
        running.drop(day, order_row(f"B{day.day}", day))
    for day, value in EARLY.items():
        running.drop(day, order_row(f"E{day.day}", day, order_value_gbp=value))
    impatient = folder / "impatient" / "sitecustomize.py"
    impatient.parent.mkdir()
    impatient.write_text(IMPATIENT)
    settings_given = {"RETAIL_DATA_DIR": str(folder), "RETAIL_THREADS": "1"}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "retail_assets.cli.services",
            "--no-worker",
            # Its tests start it themselves; within pytest NiceGUI runs otherwise.
            "--no-board",
            "--port",
            str(running.port),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RETAIL_")}
        | settings_given
        | {"DAGSTER_HOME": str(home), "DAGSTER_EVENT_BATCH_SIZE": "500"}
        | {"PYTHONPATH": str(impatient.parent)},
        start_new_session=True,
    )
    try:
        assert eventually(lambda: process.poll() is not None or answers(running), bool)
        yield running
    finally:
        running.lake.close()
        process.send_signal(signal.SIGTERM)
        code = process.wait(HANG_SECONDS)
    # What was killed in the middle of its work takes a moment to be gone.
    left = eventually(lambda: processes_of(home), lambda found: not found, seconds=5)
    assert (code, left) == (0, {}), "SIGTERM ends all that was started"


@pytest.fixture(scope="module", autouse=True)
def launched(services: Services) -> str:
    """The id of a backfill, launched before all tests because it takes the daemon some time."""
    answer = services.ask(
        "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams:"
        " $params) { ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }"
        " } }",
        params={
            "assetSelection": [{"path": [name]} for name in BATCH],
            "partitionNames": [str(day) for day in BACKFILLED],
        },
    )["launchPartitionBackfill"]
    assert "backfillId" in answer, answer
    for n in range(EVENT_FILES):
        lines = [event(10 * n + k, order_value_gbp=2) for k in range(4)]
        lines += [event(0, order_value_gbp=2), "no json"]
        services.drop_events(EVENTS_DAY, f"{n}.jsonl", *lines)
    return str(answer["backfillId"])


@pytest.fixture(scope="module")
def landed(services: Services) -> None:
    """An export with a late order lands once that order's day is published.

    The runs that follow take their time beside the tests of events.
    """
    eventually(services.revenue, lambda found: LATE in found)
    services.drop(LANDING, order_row("N", LANDING), order_row("LATE", LATE))


def answers(services: Services) -> bool:
    try:
        return bool(services.ask("{ version }"))
    except OSError:
        return False


def test_the_ui_is_served(services: Services) -> None:
    with urllib.request.urlopen(services.url) as response:  # noqa: S310
        assert response.status == 200
        assert b">Dagster</title>" in response.read()


def test_exports_that_are_there_at_the_start_are_published_without_anybody_asking(
    services: Services,
) -> None:
    found = eventually(services.revenue, lambda found: found.keys() >= EARLY.keys())
    assert {day: found.get(day) for day in EARLY} == EARLY
    keys = {str(day) for day in EARLY}
    for asset in BATCH:
        # The last events of a run are written a moment after its last rows.
        shown = eventually(lambda name=asset: services.materialized(name), keys.issubset)
        assert keys <= shown, asset


@pytest.mark.usefixtures("landed")
def test_event_files_that_land_are_rows_and_materializations_and_live_revenue_follows(
    services: Services,
) -> None:
    day, files = EVENTS_DAY, EVENT_FILES
    expected = [(str(day), 4 * files)]
    rows = "SELECT received_date::VARCHAR, count(*) FROM enriched_events GROUP BY 1"
    assert eventually(lambda: services.query(rows), lambda found: found == expected) == expected
    for asset in ("raw_events", "enriched_events", "dead_letter_events"):
        shown = eventually(lambda name=asset: services.materialized(name), {str(day)}.issubset)
        assert shown == {str(day)}, asset
    runs = '{ runsOrError(filter: {pipelineName: "events"}) { ... on Runs { count } } }'
    assert services.ask(runs) == {"runsOrError": {"count": 0}}, "so few files need no run"

    # Nobody asked for what follows.
    live = "SELECT order_date::VARCHAR, total_revenue::VARCHAR FROM revenue_now"
    live += f" WHERE source = 'stream' AND order_date = DATE '{day}'"
    assert eventually(lambda: services.query(live), bool) == [(str(day), f"{8 * files}.00")]
    letters = "SELECT reason, dead_letters FROM dead_letter_counts"
    assert eventually(lambda: services.query(letters), bool) == [("not_json", files)]


def test_a_worker_is_seen_and_when_it_is_killed_the_sensor_takes_over(services: Services) -> None:
    day = date(2026, 11, 3)
    there = f"SELECT event_id FROM enriched_events WHERE received_date = DATE '{day}' ORDER BY 1"
    environment = os.environ | {
        "RETAIL_DATA_DIR": str(services.settings.data_dir),
        "RETAIL_THREADS": "1",
    }
    worker = subprocess.Popen([sys.executable, "-m", "retail_assets", "stream"], env=environment)
    try:
        state = "SELECT state FROM stream_workers"
        assert eventually(lambda: services.query(state), bool) == [("running",)]
        services.drop_events(day, "of-the-worker.jsonl", event(101))
        assert eventually(lambda: services.query(there), bool) == [("E101",)]
        taken = "SELECT max(figures->'sources'->'files'->>'accepted') FROM stream_workers"
        assert eventually(lambda: services.query(taken), lambda found: found == [("1",)])
        shown = eventually(lambda: services.materialized("stream_worker"), bool)
        assert shown == {None}, "the UI shows that it lives"
        reported = eventually(
            lambda: services.materialized("enriched_events"), lambda found: str(day) in found
        )
        assert str(day) in reported
    finally:
        worker.kill()
        worker.wait()
    services.drop_events(day, "of-the-sensor.jsonl", event(102))
    rows = eventually(lambda: services.query(there), lambda found: len(found) > 1)
    assert rows == [("E101",), ("E102",)]


def test_a_code_server_that_is_killed_is_started_again(services: Services) -> None:
    day = date(2026, 11, 4)
    home = services.settings.data_dir / "dagster"
    for pid, command in processes_of(home).items():
        if "-m retail_assets.definitions" in command and " grpc " in command:
            os.kill(pid, signal.SIGKILL)
    services.drop_events(day, "after-it.jsonl", event(103))
    there = f"SELECT event_id FROM enriched_events WHERE received_date = DATE '{day}'"
    assert eventually(lambda: services.query(there), bool) == [("E103",)]


def test_a_backfill_launched_in_the_ui_is_one_run(services: Services, launched: str) -> None:
    def backfill() -> Any:
        return services.ask(
            "query($id: String!) { partitionBackfillOrError(backfillId: $id) {"
            " ... on PartitionBackfill { status runs { status } } } }",
            id=launched,
        )["partitionBackfillOrError"]

    assert eventually(backfill, lambda found: found["status"] != "REQUESTED") == {
        "status": "COMPLETED_SUCCESS",
        "runs": [{"status": "SUCCESS"}],
    }
    revenue = services.revenue()
    assert {day: revenue.get(day) for day in BACKFILLED} == dict.fromkeys(BACKFILLED, "10.00")


def test_an_export_that_lands_is_published_and_a_late_order_in_it_restates_its_day(
    services: Services,
) -> None:
    expected = EARLY | {LANDING: "10.00", LATE: "20.00"}
    found = eventually(services.revenue, lambda found: found.items() >= expected.items())
    assert {day: found.get(day) for day in expected} == expected
