"""Ticks of the event sensor that watch the folder, ingest what lands, and report it to Dagster."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from retail_assets.defs.assets.events import EVENT_TABLES, INGEST
from retail_assets.defs.automation import events as event_automation
from retail_assets.defs.automation import reports
from retail_assets.defs.automation import worker as stream_automation
from retail_assets.defs.automation.events import EVENTS
from retail_assets.ingest.event_files import pending as pending_module
from retail_assets.ingest.event_files import watch as watch_module
from retail_assets.ingest.event_files.folder import EventFolder, Listing
from retail_assets.ingest.event_files.watch import FolderWatch
from retail_assets.ingest.ledgers.event_files import FoundFile
from retail_assets.lake.connection import Lake
from retail_assets.lake.lock import write_lock
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.defs.automation.test_worker import heart
from retail_assets_tests.event_files import EventLoader, event, write_events
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, Platform, open_platform

pytestmark = DAGSTER_CALLS_ITSELF

SENSOR = "new_event_files"
DAY = "2026-10-12"
TABLES = tuple(table.name for table in EVENT_TABLES)
BROKEN = b"\x1f\x8b\x08 no gzip"


class Watch(FolderWatch):
    """Has no thread: it looks when the test says so."""

    def _start(self) -> None:  # type: ignore[override]
        return


class CodeServer:
    """The sensor as a code server has it, with a clock of its own."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.seconds = 0.0
        self.requests: list[dg.RunRequest] = []
        self.watch = Watch(platform.settings)
        jobs = (event_automation.job(), stream_automation.job(platform.settings))
        self.sensor = event_automation.sensor(
            platform.settings, jobs, self.watch, lambda: self.seconds
        )

    def tick(self, *, stored: int | None = None) -> str:
        """Tick as the daemon would have it done; returns the text, and sets `requests`.

        Args:
            stored: the daemon dies when it has stored so many of the reports, and no cursor.
        """
        instance, cursors = self.platform.instance, self.platform.cursors
        context = dg.build_sensor_context(
            instance=instance, cursor=cursors.get(SENSOR), repository_def=self.platform.repository
        )
        found = self.sensor.evaluate_tick(context)
        for report in found.asset_events[:stored]:
            instance.report_runless_asset_event(report)
        if stored is None:
            cursors[SENSOR] = found.cursor
        self.requests = [*(found.run_requests or [])]
        return found.skip_message or ""

    def ingest(self) -> str:
        """Tick, let the thread look, and tick again; returns the text of the last tick."""
        self.tick()
        self.watch.look()
        return self.tick()

    def die(self) -> None:
        """Only the connection is closed, as by the operating system."""
        self.watch.close()


@pytest.fixture
def platform(settings: Settings, new_lake: NewLake) -> Iterator[Platform]:
    new_lake(settings.data_dir)
    with open_platform(settings) as platform:
        yield platform


@pytest.fixture
def server(platform: Platform) -> Iterator[CodeServer]:
    server = CodeServer(platform)
    yield server
    server.die()


def drop(platform: Platform, name: str, *lines: str | bytes, day: str = DAY) -> None:
    content = lines[0] if isinstance(lines[0], bytes) else [*map(str, lines)]
    write_events(platform.settings, f"{day}/{name}", content)


def reported(platform: Platform) -> Counter[tuple[str, str | None]]:
    """How often each day of each table was reported."""
    return Counter(
        (table, record.partition_key)
        for table in TABLES
        for record in platform.instance.fetch_materializations(dg.AssetKey(table), 100).records
    )


def metadata(platform: Platform, table: str, day: str = DAY) -> dict[str, Any]:
    (found,) = platform.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(table), asset_partitions=[day]), limit=1
    ).records
    assert found.asset_materialization is not None
    return {name: value.value for name, value in found.asset_materialization.metadata.items()}


def once(*days: str, times: int = 1) -> Counter[tuple[str, str | None]]:
    return Counter({(table, day): times for table in TABLES for day in days})


def test_files_that_land_are_ingested_between_ticks_which_report_and_have_them_checked(
    platform: Platform, server: CodeServer
) -> None:
    drop(platform, "0.jsonl", event(0), "{")
    assert server.tick() == "1 event files have something new; 1 are being ingested."
    server.watch.look()
    for n in range(1, 4):
        drop(platform, f"{n}.jsonl", event(n), "{")
        server.watch.look()
    assert platform.query("SELECT count(*) FROM enriched_events") == [(4,)]
    assert server.tick() == (
        "Ingested 4 files: 8 lines, 4 accepted, 4 dead-lettered, 0 duplicate. No new event files."
    )
    assert reported(platform) == once(DAY)
    found = {name: metadata(platform, name) for name in TABLES}
    assert [found[name]["dagster/partition_row_count"] for name in TABLES] == [8, 4, 4]
    enriched = found["enriched_events"]
    counts = ("files", "lines", "accepted", "dead_lettered", "duplicate")
    assert [enriched[name] for name in counts] == [4, 8, 4, 4, 0]
    assert enriched["outcomes"] == {"new": 4}
    assert enriched["file_names"] == [f"{DAY}/{n}.jsonl" for n in range(4)]
    assert "•••" in str(enriched["sample"])
    # What has changed is checked by a run, at most once a minute.
    asked = []
    for seconds in (10, 30, 60, 89, 90):
        server.seconds = seconds
        drop(platform, "4.jsonl", *map(event, range(seconds)))
        server.watch.look()
        server.tick()
        asked += [(seconds, request) for request in server.requests]
    assert [seconds for seconds, _ in asked] == [30, 90]
    _, request = asked[0]
    assert (request.job_name, request.tags["dagster/priority"]) == ("event_checks", "-1")
    assert len(request.asset_check_keys or ()) == 13
    assert request.tags["dagster/asset_partition_range_start"] == DAY


def test_the_thread_ingests_what_lands_as_long_as_a_tick_renews_it(platform: Platform) -> None:
    watch = FolderWatch(platform.settings)
    watch.renew({}, (), "")
    thread = watch._thread
    assert thread is not None
    found, n = watch.take(), 0
    while not found and thread.is_alive():
        # What lies there at its first look is not new to it.
        drop(platform, f"{n}.jsonl", event(n))
        n += 1
        time.sleep(0.1)
        found = watch.take()
    assert platform.query("SELECT count(*) > 0 FROM enriched_events") == [(True,)]
    watch._until = 0
    thread.join()
    assert watch._thread is None


def test_a_mapping_that_has_changed_holds_for_what_lands_from_then_on(
    platform: Platform, tmp_path: Path
) -> None:
    path = tmp_path / "mapping.json"
    path.write_text("{}")
    watch = Watch(platform.settings.model_copy(update={"mapping": path}))
    for n, field in enumerate(("note", "region")):
        fields = ("order_id", "customer_id", "order_value_gbp")
        mapping = {"fields": {name: f"$.{name}" for name in fields} | {"region": f"$.{field}"}}
        path.write_text(json.dumps({"events": [mapping]}))
        watch.look()
        drop(platform, f"{n}.jsonl", event(n, region="West", note="East"))
        watch.look()
    watch.close()
    assert platform.query("SELECT region FROM enriched_events ORDER BY source_name") == [
        ("East",),
        ("West",),
    ]


@pytest.mark.parametrize("stored", [0, 4])
def test_a_code_server_or_daemon_that_dies_loses_no_report_and_makes_none_twice(
    platform: Platform, server: CodeServer, stored: int
) -> None:
    """After the commit and before its reports, or when some of these are stored."""
    other = "2026-10-14"
    drop(platform, "a.jsonl", event(1))
    drop(platform, "b.jsonl", event(2), day=other)
    server.tick()
    server.watch.look()
    if stored:
        server.tick(stored=stored)
    server.die()
    server = CodeServer(platform)
    assert server.tick() == "No new event files."
    assert reported(platform) == once(DAY, other)
    assert metadata(platform, "enriched_events")["dagster/partition_row_count"] == 1
    server.tick()
    assert reported(platform) == once(DAY, other)


def test_another_lake_at_the_same_place_gets_its_files_and_is_reported(
    platform: Platform, server: CodeServer, new_lake: NewLake
) -> None:
    for n in range(3):
        drop(platform, f"{n}.jsonl", event(n))
        server.ingest()
    assert reported(platform) == once(DAY, times=3)
    shutil.rmtree(platform.settings.lake_dir)
    # It has fewer snapshots than the old one had, and an event that was not in that.
    new_lake(platform.settings.data_dir)
    with EventLoader.open(platform.settings) as loader:
        loader.write(f"{DAY}/restored.jsonl", [event(7)])
        loader.ingest([f"{DAY}/restored.jsonl"])
    drop(platform, "3.jsonl", event(7))
    assert server.ingest().startswith("Ingested 4 files: 4 lines, 3 accepted")
    assert platform.query("SELECT count(*) FROM enriched_events") == [(4,)]
    assert reported(platform) == once(DAY, times=5)
    assert metadata(platform, "enriched_events")["files"] == 4


def test_what_others_have_ingested_is_reported_also_without_a_cursor(
    platform: Platform, server: CodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLoader.open(platform.settings) as loader:
        loader.write(f"{DAY}/a.jsonl", [event(1)])
        loader.write("2026-10-13/a.jsonl", ["{"])
        loader.ingest()
        for _ in range(2):
            platform.cursors.clear()
            server.tick()
            assert reported(platform) == once(DAY, "2026-10-13")
        for n, day in enumerate((DAY, "2026-10-13")):
            loader.write(f"{day}/b.jsonl", [event(2 + n)])
            loader.ingest()
    # More commits than a tick looks at.
    monkeypatch.setattr(reports, "MOST_COMMITS", 1)
    for times in (1, 2, 2):
        server.tick()
        assert reported(platform) == once(DAY, times=2) + once("2026-10-13", times=times)


def test_a_tick_does_not_wait_for_who_writes_to_the_lake(
    platform: Platform, server: CodeServer
) -> None:
    drop(platform, "a.jsonl", event(1))
    with write_lock(Lake.from_settings(platform.settings).catalog, "keep others out"):
        for _ in range(2):
            # Nor is the file that waits offered again.
            assert server.tick() == "1 event files have something new; 1 are being ingested."
    server.watch.look()
    assert server.tick().startswith("Ingested 1 files")
    assert reported(platform) == once(DAY)


def test_what_lands_while_a_worker_is_alive_is_left_to_it(
    platform: Platform, server: CodeServer
) -> None:
    server.tick()
    server.watch.look()
    heart(Lake.from_settings(platform.settings))
    drop(platform, "a.jsonl", event(1))
    # The tick that sees the worker comes later.
    server.watch.look()
    assert platform.query("SELECT count(*) FROM raw_events") == [(0,)]


def test_a_file_that_fails_is_named_by_tick_ledger_and_check_and_stops_no_other(
    platform: Platform, server: CodeServer
) -> None:
    bad = f"{DAY}/bad.jsonl.gz"
    drop(platform, "bad.jsonl.gz", BROKEN)
    assert f"{bad} cannot be read" in server.ingest()
    assert platform.query("SELECT path FROM failed_event_files") == [(bad,)]
    assert reported(platform) == Counter()
    server.seconds = 30
    drop(platform, "good.jsonl", event(1))
    server.watch.look()
    server.tick()
    assert [request.job_name for request in server.requests] == ["event_checks"]
    drop(platform, "better.jsonl", event(2))
    said = server.ingest()
    assert f"{bad} cannot be read" in said
    assert list(metadata(platform, "raw_events")["failed_files"]) == [bad]


def test_a_large_arrival_goes_into_runs_and_what_lands_meanwhile_does_not_wait_for_it(
    platform: Platform, server: CodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "FILES", 3)
    server.ingest()
    for n in range(5):
        drop(platform, f"{n}.jsonl", event(n))
    server.watch.look()
    server.tick()
    (request,) = server.requests
    assert request.tags["dagster/priority"] == "1"
    files = request.run_config["ops"][INGEST]["config"]["files"]
    assert len(files) == 5
    run = create_run_for_test(
        platform.instance,
        job_name=EVENTS,
        run_config=dict(request.run_config),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": DAY},
    )
    drop(platform, "0.jsonl", event(0), event(5))
    drop(platform, "now.jsonl", event(9))
    drop(platform, "now.jsonl", event(10), day="2026-10-14")
    server.watch.look()
    assert server.tick().startswith("Ingested 2 files: 2 lines")
    assert reported(platform) == once("2026-10-14"), "the run reports its day itself"
    with EventLoader.open(platform.settings) as loader:
        loader.ingest(files)
    # It is killed before it does.
    platform.instance.report_run_failed(run)
    server.tick()
    assert reported(platform) == once(DAY, "2026-10-14")
    found = metadata(platform, "enriched_events")
    assert (found["dagster/partition_row_count"], found["files"]) == (7, 1)


def test_files_that_another_process_ingests_meanwhile_count_once_and_are_reported_once(
    platform: Platform, server: CodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(platform, "a.jsonl", event(1))
    ingest = watch_module.ingest

    def after_another(session: Any, settings: Settings, files: Any) -> Any:
        with EventLoader.open(settings) as loader:
            loader.ingest(list(files))
        return ingest(session, settings, files)

    monkeypatch.setattr(watch_module, "ingest", after_another)
    server.ingest()
    assert platform.query("SELECT count(*) FROM raw_events") == [(1,)]
    server.tick()
    assert reported(platform) == once(DAY)


def test_files_at_which_the_thread_or_its_process_has_ended_go_into_a_run(
    platform: Platform, server: CodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = f"{DAY}/deadly.jsonl"

    def requested() -> list[list[str]]:
        return [each.run_config["ops"][INGEST]["config"]["files"] for each in server.requests]

    drop(platform, "deadly.jsonl", event(1))
    server.tick()
    with monkeypatch.context() as patch:
        patch.setattr(watch_module, "ingest", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            server.watch.look()
    server.tick()
    assert requested() == [[deadly]]
    server.die()
    server = CodeServer(platform)
    drop(platform, "harmless.jsonl", event(2))
    server.tick()
    assert requested() == [[deadly]]
    server.watch.look()
    assert platform.query("SELECT event_id FROM enriched_events") == [("E2",)]
    with EventLoader.open(platform.settings) as loader:
        loader.ingest()
    server.tick()
    assert CodeServer(platform).watch.unfinished == set()


def test_a_backlog_of_a_hundred_thousand_files_goes_through_runs_and_delays_nothing_new(
    platform: Platform, server: CodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backlog(EventFolder):
        """A folder of so many more files."""

        def list(self, below: str = "") -> Listing:
            return Listing({**more, **super().list(below).files})

    names = (f"2026-10-11/{n}.jsonl" for n in range(100_000))
    more = {name: FoundFile(name, 100, 1) for name in names}
    for module in (watch_module, pending_module):
        monkeypatch.setattr(module, "event_folder", lambda found: Backlog(found.events_location))
    server = CodeServer(platform)
    server.tick()
    sizes = [len(each.run_config["ops"][INGEST]["config"]["files"]) for each in server.requests]
    assert sizes == [event_automation.FILES_PER_RUN] * event_automation.MAX_RUNS
    server.watch.look()
    drop(platform, "a.jsonl", event(1))
    with monkeypatch.context() as patch:
        compared = []
        compare = watch_module.pending_event_files
        patch.setattr(
            watch_module,
            "pending_event_files",
            lambda *args: compared.append(args[-1].files) or compare(*args),
        )
        server.watch.look()
    assert [*map(list, compared)] == [[f"{DAY}/a.jsonl"]], "not so many files each time"
    assert platform.query("SELECT count(*) FROM enriched_events") == [(1,)]
