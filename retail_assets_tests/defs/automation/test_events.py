"""The event pipeline in Dagster: its sensor, its runs, and what follows from them unasked."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._core.test_utils import create_run_for_test

from retail_assets.consumers import live_orders, live_revenue
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.assets import consumers as consumer_assets
from retail_assets.defs.assets.events import INGEST
from retail_assets.defs.automation import events as event_automation
from retail_assets.defs.automation.events import EVENTS
from retail_assets.ingest.event_files import pending as event_files
from retail_assets.ingest.event_files import watch
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import STILL_NS, EventLoader, event, write_events
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    DAYS,
    QUIET,
    Platform,
    open_platform,
    without_checks,
    write_reference,
)

pytestmark = DAGSTER_CALLS_ITSELF

SENSOR = "new_event_files"
DAY = "2026-10-12"
BROKEN = b"\x1f\x8b\x08 no gzip"

TABLES = ("raw_events", "enriched_events", "dead_letter_events")


@pytest.fixture(autouse=True)
def only_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arrival is large: `test_watching` has what a tick ingests itself."""
    monkeypatch.setattr(watch, "FILES", 0)
    monkeypatch.setattr(watch.FolderWatch, "renew", lambda *_: None)


@pytest.fixture
def platform(settings: Settings, new_lake: NewLake) -> Iterator[Platform]:
    new_lake(settings.data_dir)
    write_reference(settings)
    with open_platform(settings) as platform:
        yield platform


def requests(platform: Platform) -> list[dg.RunRequest]:
    return list(platform.tick(SENSOR).run_requests or [])


def files_of(request: dg.RunRequest) -> list[str]:
    files = request.run_config["ops"][INGEST]["config"]["files"]
    assert isinstance(files, list)
    return files


def requested(platform: Platform) -> list[tuple[str | None, list[str]]]:
    """The partition and the files of each run that a tick asks for."""
    return [(request.partition_key, files_of(request)) for request in requests(platform)]


def message(platform: Platform) -> str:
    tick = platform.tick(SENSOR)
    assert not tick.run_requests
    assert isinstance(tick.skip_reason, dg.SkipReason)
    return tick.skip_reason.skip_message or ""


def tags_of(request: dg.RunRequest) -> dict[str, str]:
    return {
        **request.tags,
        PARTITION_NAME_TAG: str(request.partition_key),
    }


def record(platform: Platform, request: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
    """Enter a run of a request, as if it had come that far."""
    failed = status == dg.DagsterRunStatus.FAILURE
    run = create_run_for_test(
        platform.instance,
        job_name=EVENTS,
        run_config=dict(request.run_config),
        status=dg.DagsterRunStatus.STARTED if failed else status,
        tags=tags_of(request),
    )
    if failed:
        platform.instance.report_run_failed(run)
    return run.run_id


def carry_out(
    platform: Platform, request: dg.RunRequest, *, checks: bool = False, **run_config: Any
) -> dg.ExecuteInProcessResult:
    """Run what was requested, as the daemon would have it done; without checks unless asked."""
    job = platform.definitions.resolve_job_def(EVENTS)
    if not checks:
        job = without_checks(job)
    return job.execute_in_process(
        instance=platform.instance,
        partition_key=request.partition_key,
        tags=tags_of(request),
        run_config={**QUIET, **request.run_config, **run_config},
        raise_on_error=False,
    )


def ingest_events(platform: Platform) -> None:
    """Tick, and run what is requested, until nothing is."""
    for _ in range(20):
        found = requests(platform)
        if not found:
            return
        for request in found:
            assert carry_out(platform, request).success
    pytest.fail("the sensor goes on and on")


def ids(platform: Platform) -> list[str]:
    return [row[0] for row in platform.query("SELECT event_id FROM enriched_events ORDER BY 1")]


# --- what the sensor asks for --------------------------------------------------------------------


def test_each_landing_day_is_a_run_with_its_files(platform: Platform) -> None:
    write_events(platform.settings, "2026-10-14/b c.jsonl", [event(1)])
    write_events(platform.settings, "events_2026-10-13.ndjson.gz", [event(2)])
    write_events(platform.settings, "2026-10-14/ä.jsonl", [event(3)])
    write_events(platform.settings, "no date.jsonl", [event(4)], modified_ns=STILL_NS)
    write_events(platform.settings, "2026-10-14/notes.txt", [event(5)])
    assert requested(platform) == [
        ("2026-10-14", ["2026-10-14/b c.jsonl", "2026-10-14/ä.jsonl"]),
        ("2026-10-13", ["events_2026-10-13.ndjson.gz"]),
        ("2026-10-12", ["no date.jsonl"]),
    ]


def test_no_files_or_no_lake_is_nothing_to_do(settings: Settings) -> None:
    with open_platform(settings) as platform:
        assert message(platform) == "No new event files."
        write_events(settings, f"{DAY}/a.jsonl", [event(1)])
        assert requested(platform) == [(DAY, [f"{DAY}/a.jsonl"])]


def test_runs_are_bounded_in_files_in_bytes_and_in_number(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        write_events(platform.settings, f"2026-10-12/{n}.jsonl", [event(n)])
    for n, lines in enumerate((5, 1, 1, 2)):
        write_events(platform.settings, f"2026-10-13/{n}.jsonl", [event(n)] * lines)
    monkeypatch.setattr(event_automation, "FILES_PER_RUN", 2)
    monkeypatch.setattr(event_automation, "BYTES_PER_RUN", 3 * len(event(1)))
    monkeypatch.setattr(event_automation, "MAX_RUNS", 5)
    tick = platform.tick(SENSOR)
    assert [files_of(request) for request in tick.run_requests or []] == [
        ["2026-10-13/0.jsonl"],
        ["2026-10-13/1.jsonl", "2026-10-13/2.jsonl"],
        ["2026-10-13/3.jsonl"],
        ["2026-10-12/0.jsonl", "2026-10-12/1.jsonl"],
        ["2026-10-12/2.jsonl", "2026-10-12/3.jsonl"],
    ]
    for request in tick.run_requests or []:
        record(platform, request, dg.DagsterRunStatus.STARTING)
    assert message(platform) == (
        "9 event files have something new; 8 in runs already; 1 wait for the next tick."
    )


def test_today_goes_before_a_backlog_and_does_not_starve_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_automation, "MAX_RUNS", 2)
    for day in ("2026-10-08", "2026-10-09", "2026-10-14"):
        write_events(platform.settings, f"{day}/a.jsonl", [event(int(day[-2:]))])
    first, second = requests(platform)
    assert [first.partition_key, second.partition_key] == ["2026-10-14", "2026-10-09"]
    record(platform, first, dg.DagsterRunStatus.STARTED)
    write_events(platform.settings, "2026-10-14/b.jsonl", [event(1)])
    # The one run that there is room for is of a day that has none yet.
    assert requested(platform) == [("2026-10-09", ["2026-10-09/a.jsonl"])]
    record(platform, second, dg.DagsterRunStatus.STARTED)


def test_files_with_other_endings_are_named_by_the_tick(platform: Platform) -> None:
    for number in range(7):
        write_events(platform.settings, f"orders.jsonl.{number}", [event(number)])
    write_events(platform.settings, ".hidden.tmp", [event(1)])
    assert message(platform) == (
        "No new event files. 7 files are not read, since their names do not end in .jsonl, .ndjson"
        " or .json (or these with .gz or .zst): orders.jsonl.0, orders.jsonl.1, orders.jsonl.2,"
        " orders.jsonl.3, orders.jsonl.4, …."
    )


def test_files_of_a_run_in_progress_are_in_no_other_run(platform: Platform) -> None:
    in_progress = (
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    )
    for number, status in enumerate(in_progress):
        write_events(platform.settings, f"{DAY}/{number}.jsonl", [event(number)])
        (request,) = requests(platform)
        assert files_of(request) == [f"{DAY}/{number}.jsonl"]
        record(platform, request, status)
        # It grows meanwhile: what is new waits for the next run.
        write_events(platform.settings, f"{DAY}/{number}.jsonl", [event(number), event(9)])
    write_events(platform.settings, f"{DAY}/last.jsonl", [event(10)])
    assert requested(platform) == [(DAY, [f"{DAY}/last.jsonl"])]


def test_many_small_files_go_through_a_page_at_a_time(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_automation, "FILES_PER_RUN", 20)
    monkeypatch.setattr(event_automation, "MAX_RUNS", 2)
    for n in range(100):
        write_events(platform.settings, f"{DAY}/{n % 7}/{n:05}.jsonl", [event(n)])
    ticks = []
    while found := requests(platform):
        ticks.append([len(files_of(request)) for request in found])
        with EventLoader.open(platform.settings) as loader:
            for request in found:
                loader.ingest(files_of(request))
    assert ticks == [[20, 20], [20, 20], [20]]
    assert len(ids(platform)) == 100


# --- what fails ----------------------------------------------------------------------------------


def test_the_files_of_a_run_that_failed_wait_ten_minutes_unless_they_change(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(platform.settings, f"{DAY}/a.jsonl", [event(1)])
    (request,) = requests(platform)
    run_id = record(platform, request, dg.DagsterRunStatus.FAILURE)
    assert message(platform) == (
        f"1 event files have something new; 1, first of all {DAY}/a.jsonl, wait ten minutes since"
        f" their run {run_id} failed."
    )
    write_events(platform.settings, f"{DAY}/b.jsonl", [event(2)])
    assert requested(platform) == [(DAY, [f"{DAY}/b.jsonl"])], "it does not stop the others"
    with monkeypatch.context() as patch:
        patch.setattr(event_automation, "AGAIN_SECONDS", 0)
        assert requested(platform) == [(DAY, [f"{DAY}/a.jsonl", f"{DAY}/b.jsonl"])]
    write_events(platform.settings, f"{DAY}/a.jsonl", [event(1), event(3)], modified_ns=recently())
    (request,) = requests(platform)
    assert files_of(request) == [f"{DAY}/a.jsonl", f"{DAY}/b.jsonl"]
    assert carry_out(platform, request).success
    assert ids(platform) == ["E1", "E2", "E3"]
    assert message(platform) == "No new event files."


def recently() -> int:
    return time.time_ns()


def test_a_file_that_cannot_be_read_is_tried_three_times_then_named_and_stops_no_other(
    platform: Platform,
) -> None:
    write_events(platform.settings, f"{DAY}/bad.jsonl.gz", BROKEN)
    write_events(platform.settings, f"{DAY}/good.jsonl", [event(1)])
    write_events(platform.settings, f"{DAY}/target", b"")
    Path(platform.settings.events_location, "link.jsonl").symlink_to(f"{DAY}/good.jsonl")
    for attempt in range(event_files.MAX_ATTEMPTS):
        (request,) = requests(platform)
        assert (f"{DAY}/good.jsonl" in files_of(request)) == (attempt == 0)
        result = carry_out(platform, request)
        assert result.success
        assert "bad.jsonl.gz cannot be read" in logged(platform, result)
    assert ids(platform) == ["E1"]
    text = message(platform)
    assert text.startswith(
        "0 event files have something new; 2 are left alone until they change, first of all"
        f" link.jsonl (is a link, which is not followed); {DAY}/bad.jsonl.gz (failed 3 times: "
    )

    write_events(platform.settings, f"{DAY}/bad.jsonl.gz", [event(2)])
    ingest_events(platform)
    assert ids(platform) == ["E1", "E2"]
    assert "bad.jsonl.gz" not in message(platform)


def logged(platform: Platform, result: dg.ExecuteInProcessResult) -> str:
    """All that Dagster keeps of a run: messages, errors and metadata."""
    return "\n".join(str(entry) for entry in platform.instance.all_logs(result.run_id))


# --- again ---------------------------------------------------------------------------------------


def test_a_last_line_without_newline_is_ingested_by_a_run_of_its_own(
    settings: Settings, new_lake: NewLake
) -> None:
    new_lake(settings.data_dir)
    content = f"{event(1)}\n{event(2)}".encode()
    write_events(settings, f"{DAY}/a.jsonl", content, modified_ns=recently())
    with open_platform(settings.model_copy(update={"event_settle_seconds": 3600})) as platform:
        (request,) = requests(platform)
        assert carry_out(platform, request).success
        assert ids(platform) == ["E1"]
        assert "1 may still be written to" in message(platform)
    # The same instance, later.
    with open_platform(settings.model_copy(update={"event_settle_seconds": 0})) as platform:
        (request,) = requests(platform)
        assert carry_out(platform, request).success
        assert ids(platform) == ["E1", "E2"]
        assert message(platform) == "No new event files."


def test_an_older_file_that_is_put_back_is_ingested_again(platform: Platform) -> None:
    for version, number in enumerate((1, 2, 1), start=1):
        write_events(platform.settings, f"{DAY}/a.jsonl", [event(number)], modified_ns=STILL_NS)
        # Only its time tells it from the other, which has the same size.
        os.utime(
            Path(platform.settings.events_location, f"{DAY}/a.jsonl"),
            ns=(STILL_NS, STILL_NS + number),
        )
        ingest_events(platform)
        assert platform.query("SELECT version, lines FROM event_files ORDER BY 1") == [
            (each, 1) for each in range(1, version + 1)
        ]
    assert ids(platform) == ["E1", "E2"]


def test_another_lake_at_the_same_place_gets_its_files_again(platform: Platform) -> None:
    write_events(platform.settings, f"{DAY}/a.jsonl", [event(1)])
    ingest_events(platform)
    assert ids(platform) == ["E1"]
    shutil.rmtree(platform.settings.lake_dir)
    with Lake.from_settings(platform.settings).connect():
        pass
    ingest_events(platform)
    assert ids(platform) == ["E1"]


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_says_of_its_partition_what_was_ingested_without_naming_customers(
    platform: Platform, capfd: pytest.CaptureFixture[str]
) -> None:
    customer = "CUSTOMER-4711"
    write_events(platform.settings, "2026-10-11/before.jsonl", [event(9, customer_id=customer)])
    ingest_events(platform)
    write_events(
        platform.settings,
        f"{DAY}/a.jsonl",
        [
            event(1, customer_id=customer, order_value_gbp="7.25", note=customer),
            event(2, customer_id=customer),
            event(2, customer_id=customer),
            event(3, customer_id=customer, order_value_gbp=-1),
            event(4, customer_id=[customer]),
            customer,
        ],
    )
    write_events(platform.settings, f"{DAY}/bad.jsonl.gz", BROKEN)
    (request,) = requests(platform)
    result = carry_out(platform, request, loggers={"console": {"config": {"log_level": "DEBUG"}}})
    assert result.success

    found = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    assert found.keys() == set(TABLES)
    assert {materialization.partition for materialization in found.values()} == {DAY}
    figures = {
        name: {key: value.value for key, value in materialization.metadata.items()}
        for name, materialization in found.items()
    }
    assert {name: row["dagster/partition_row_count"] for name, row in figures.items()} == {
        "raw_events": 6,
        "enriched_events": 2,
        "dead_letter_events": 3,
    }
    enriched = figures["enriched_events"]
    assert enriched["order_value_gbp"] == 17.25
    counts = ("files", "lines", "accepted", "dead_lettered", "duplicate")
    assert [enriched[name] for name in counts] == [1, 6, 2, 3, 1]
    assert enriched["outcomes"] == {"new": 1}
    assert enriched["new_fields"] == {"note": "VARCHAR"}
    assert list(enriched["failed_files"]) == [f"{DAY}/bad.jsonl.gz"]
    assert platform.query("SELECT count(*) FROM raw_events", at=enriched["snapshot"]) == [(7,)]
    assert "•••" in str(enriched["sample"])

    output = capfd.readouterr()
    assert "6 lines, 2 accepted, 3 dead-lettered, 1 duplicate" in output.err
    for text in (output.err, output.out, logged(platform, result)):
        assert customer not in text


def test_a_partition_without_files_in_its_configuration_is_replayed(platform: Platform) -> None:
    write_events(platform.settings, f"{DAY}/a.jsonl", [event(1), event(2), "null"])
    write_events(platform.settings, "2026-10-14/b.jsonl", [event(3), event(1)])
    ingest_events(platform)
    columns = "SELECT * EXCLUDE (processed_at) FROM"
    tables = [f"{columns} enriched_events ORDER BY event_id", f"{columns} dead_letter_events"]
    before = [platform.query(table) for table in tables]
    when = dict(platform.query("SELECT event_id, processed_at FROM enriched_events"))

    result = platform.run(EVENTS, date(2026, 10, 12), date(2026, 10, 13))
    assert result.success
    assert platform.materialized("enriched_events") == {DAY, "2026-10-13", "2026-10-14"}
    (rows,) = (
        event.step_materialization_data.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("enriched_events") and event.partition == DAY
    )
    assert rows["replayed"].value is True
    assert rows["dagster/partition_row_count"].value == 2
    assert [platform.query(table) for table in tables] == before
    after = dict(platform.query("SELECT event_id, processed_at FROM enriched_events"))
    assert {name for name in after if after[name] > when[name]} == {"E1", "E2"}


# --- what follows --------------------------------------------------------------------------------


def materialize(platform: Platform, *assets: str) -> dict[str, dict[str, Any]]:
    """Materialize assets as their automation does; returns the metadata of each."""
    job = platform.definitions.resolve_implicit_global_asset_job_def()
    result = without_checks(job, [dg.AssetKey(name) for name in assets]).execute_in_process(
        instance=platform.instance, run_config=QUIET
    )
    return {
        event.asset_key.to_user_string(): {
            name: value.value
            for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def test_live_revenue_and_dead_letter_counts_follow_from_the_events(platform: Platform) -> None:
    at = "2026-10-13T09:00:00Z"
    write_events(
        platform.settings,
        f"{DAY}/a.jsonl",
        [
            event(1),
            event(2, order_value_gbp=2.5, region="South"),
            event(3, status="pending"),
            event(4, order_id="O1", order_value_gbp=12, event_timestamp=at),
            "null",
            "null",
            "{",
        ],
    )
    write_events(platform.settings, "2026-10-14/b.jsonl", [event(5, event_timestamp=at), "null"])
    ingest_events(platform)
    found = materialize(platform, "live_orders", "live_revenue", "dead_letter_counts")
    live = "SELECT order_date::VARCHAR, region, total_revenue::VARCHAR, order_count"
    assert platform.query(f"{live} FROM live_revenue ORDER BY ALL") == [
        (DAY, "North", "12.00", 1),
        (DAY, "South", "2.50", 1),
        ("2026-10-13", "North", "10.00", 1),
    ]
    assert found["live_revenue"]["keys_recomputed"] == 2
    assert found["live_revenue"]["total_revenue"] == 24.5
    assert platform.query("SELECT * FROM dead_letter_counts ORDER BY ALL") == [
        (date(2026, 10, 12), "not_an_object", 2),
        (date(2026, 10, 12), "not_json", 1),
        (date(2026, 10, 14), "not_an_object", 1),
    ]
    assert found["dead_letter_counts"]["dagster/row_count"] == 3
    assert any("data:image/svg+xml" in str(value) for value in found["dead_letter_counts"].values())

    write_events(platform.settings, "2026-10-14/b.jsonl", [event(6, event_timestamp=at), event(7)])
    ingest_events(platform)
    found = materialize(platform, "live_orders", "live_revenue", "dead_letter_counts")
    assert found["live_revenue"]["keys_recomputed"] == 2
    assert platform.query(
        f"{live} FROM live_revenue WHERE order_date > DATE '{DAY}' ORDER BY 1"
    ) == [
        ("2026-10-13", "North", "20.00", 2),
        ("2026-10-14", "North", "10.00", 1),
    ]
    # What the file had before stays.
    assert len(platform.query("SELECT * FROM dead_letter_counts")) == 3


def test_a_failing_key_holds_the_others_up_for_two_tries_of_a_run_and_no_longer(
    settings: Settings, new_lake: NewLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_lake(settings.data_dir)
    write_reference(settings)
    tries = 0

    def compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        nonlocal tries
        tries += keys is None
        bad = f"SELECT 1 FROM {keys or 'lake.live_orders'} WHERE order_date = DATE '{DAY}'"
        if connection.execute(bad).fetchone():
            raise ValueError("It does not add up.")
        return live_revenue.CONSUMER.compute(connection, keys)

    consumers = [live_orders.CONSUMER, replace(live_revenue.CONSUMER, compute=compute)]
    monkeypatch.setattr(consumer_assets, "all_consumers", lambda _: consumers)
    monkeypatch.setattr(consumer_assets, "RETRIES", dg.RetryPolicy(max_retries=2))
    with open_platform(settings) as platform:
        lines = [event(n, event_timestamp=f"2026-10-1{n}T09:00:00Z") for n in (2, 3)]
        write_events(settings, "2026-10-13/a.jsonl", lines)
        ingest_events(platform)
        materialize(platform, "live_orders", "live_revenue")
        assert platform.query("SELECT order_date::VARCHAR FROM live_revenue") == [("2026-10-13",)]
        assert platform.query("SELECT consumer, key FROM consumer_dead_letters") == [
            ("live_revenue", DAY)
        ]
    assert tries == 3


@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")  # of Dagster's own call
def test_what_follows_from_events_is_requested_after_their_runs_and_only_then(
    platform: Platform,
) -> None:
    followers = {
        dg.AssetKey(table.name)
        for consumer in all_consumers(platform.settings)
        for table in consumer.tables
    }
    state = None

    def evaluate() -> set[dg.AssetKey]:
        nonlocal state
        state = dg.evaluate_automation_conditions(
            platform.definitions,
            platform.instance,
            cursor=state.cursor if state is not None else None,
        )
        return {key for key in followers if state.get_num_requested(key)}

    assert evaluate() == set()
    for day in (DAY, "2026-11-20", DAY):
        number = len(platform.materialized("raw_events")) + int(day == DAY)
        write_events(platform.settings, f"{day}/{number}.jsonl", [event(number)])
        ingest_events(platform)
        assert evaluate() == followers, day
        assert evaluate() == set(), "asked for once"
        materialize(platform, *(key.to_user_string() for key in followers))
        assert evaluate() == set()


def test_revenue_now_is_the_batchs_where_it_is_published_and_the_streams_elsewhere(
    published: Platform,
) -> None:
    later = "2026-10-20"
    write_events(published.settings, f"{DAYS[0]}/a.jsonl", [event(0, order_value_gbp=99)])
    write_events(published.settings, f"{later}/b.jsonl", [event(1, order_value_gbp=7.5)])
    ingest_events(published)
    materialize(published, "live_orders", "live_revenue")
    assert published.query(
        "SELECT order_date::VARCHAR, total_revenue::VARCHAR, source FROM revenue_now ORDER BY ALL"
    ) == [
        *((str(day), "10.00", "batch") for day in DAYS),
        (later, "7.50", "stream"),
    ]
