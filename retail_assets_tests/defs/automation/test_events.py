"""The sensor of the event pipeline in Dagster: which runs it asks for."""

import os
import shutil
import time
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.defs.automation import events as event_automation
from retail_assets.ingest.event_files import pending as event_files
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.defs.automation.event_runs import (
    BROKEN,
    DAY,
    SENSOR,
    carry_out,
    files_of,
    ids,
    ingest_events,
    logged,
    message,
    record,
    requested,
    requests,
)
from retail_assets_tests.event_files import STILL_NS, EventLoader, event, write_events
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    Platform,
    open_platform,
)

pytestmark = [DAGSTER_CALLS_ITSELF, pytest.mark.usefixtures("only_runs")]


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
