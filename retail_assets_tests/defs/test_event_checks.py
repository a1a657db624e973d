"""The checks of the event pipeline: green on what was ingested, red on a planted fault, by name."""

from collections.abc import Iterator

import dagster as dg
import pytest

from retail_assets import tables
from retail_assets.consumers import live_revenue
from retail_assets.settings import Settings
from retail_assets_tests.conftest import copy_data
from retail_assets_tests.defs.automation.event_runs import carry_out, requests
from retail_assets_tests.defs.test_asset_checks import Result, red, results, results_with_fault
from retail_assets_tests.event_files import EventLoader, event, write_events
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    DAYS,
    FIRST,
    Platform,
    open_platform,
    published_platform,
)

pytestmark = [DAGSTER_CALLS_ITSELF, pytest.mark.usefixtures("only_runs")]

FILE = f"{FIRST}/a.jsonl"
ADD_UP = ("raw_events", "lines_add_up")
CHANGED = ("raw_events", "changed_files_are_known")
READABLE = ("raw_events", "files_are_readable")
AGREES = ("live_revenue", "stream_agrees_with_batch")
EVENT_PIPELINE = (
    tables.RAW_EVENTS,
    tables.ENRICHED_EVENTS,
    tables.DEAD_LETTER_EVENTS,
    tables.LIVE_REVENUE,
)
AT = f"{FIRST}T09:30:00+01:00"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Four published days with an order each, O0 to O3, and events of the first."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("events"), threads=1)
    with published_platform(settings, tmp_path_factory) as platform:
        write_events(
            settings,
            FILE,
            [event(0, event_timestamp=AT), "null", event(0, event_timestamp=AT), "{"],
        )
        write_events(settings, f"{FIRST}/copy.jsonl", [event(0, event_timestamp=AT), "null"])
        ingest_events(platform)
    return settings


@pytest.fixture
def platform(model: Settings, settings: Settings) -> Iterator[Platform]:
    """The same, the test's own."""
    copy_data(model.data_dir, settings)
    with open_platform(settings) as platform:
        yield platform


def ingest_events(platform: Platform) -> None:
    with EventLoader.open(platform.settings) as loader:
        loader.ingest()
        live_revenue.refresh(loader.lake, loader.connection)


def evaluate(platform: Platform) -> dict[tuple[str, str], dg.AssetCheckResult]:
    """What the checks of the event pipeline find."""
    return results(platform.settings, EVENT_PIPELINE)


def metadata(result: Result) -> dict[str, object]:
    return {name: value.value for name, value in result.metadata.items()}


def test_every_check_is_green_on_what_was_ingested(platform: Platform) -> None:
    evaluations = evaluate(platform)
    assert red(evaluations) == set()
    assert metadata(evaluations[ADD_UP]) == {
        "lines": 6,
        "accepted": 1,
        "dead_lettered": 3,
        "files_at_fault": "[]",
    }


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(
            f"DELETE FROM lake.raw_events WHERE source_name = '{FILE}' AND position = 3",
            {ADD_UP},
            id="a raw event lost",
        ),
        pytest.param("DELETE FROM lake.enriched_events", {ADD_UP}, id="a valid event lost"),
        pytest.param(
            f"DELETE FROM lake.dead_letter_events WHERE source_name = '{FILE}' AND position = 4",
            {ADD_UP},
            id="a dead letter lost",
        ),
        pytest.param(
            f"UPDATE lake.event_files SET duplicate = duplicate + 1 WHERE path = '{FILE}'",
            {ADD_UP},
            id="a ledger that counts too many",
        ),
        pytest.param(
            "INSERT INTO lake.enriched_events BY NAME FROM lake.enriched_events",
            {ADD_UP, ("enriched_events", "key_is_unique")},
            id="an event twice",
        ),
    ],
)
def test_a_planted_fault_turns_its_check_red_and_names_the_file(
    model: Settings, fault: str, expected: set[tuple[str, str]]
) -> None:
    evaluations = results_with_fault(model, fault, EVENT_PIPELINE)
    assert red(evaluations) == expected
    assert {evaluations[key].severity for key in expected} == {dg.AssetCheckSeverity.ERROR}
    assert FILE in str(evaluations[ADD_UP].metadata["files_at_fault"].value)


def test_a_run_checks_the_files_of_its_days(platform: Platform) -> None:
    platform.change("DELETE FROM lake.raw_events WHERE position = 1")
    write_events(platform.settings, f"{DAYS[2]}/b.jsonl", [event(2)])
    (request,) = requests(platform)
    result = carry_out(platform, request, checks=True)
    found = {
        evaluation.check_name: evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.asset_key == dg.AssetKey("raw_events")
    }
    assert found["lines_add_up"], "the fault lies on an earlier day"


def test_an_unreadable_file_is_a_warning_that_names_it_until_it_is_corrected(
    platform: Platform,
) -> None:
    write_events(platform.settings, f"{FIRST}/bad.jsonl.gz", b"\x1f\x8b\x08")
    ingest_events(platform)
    evaluations = evaluate(platform)
    assert red(evaluations) == {READABLE}
    assert evaluations[READABLE].severity == dg.AssetCheckSeverity.WARN
    (problem,) = metadata(evaluations[READABLE]).values()
    assert list(problem) == [f"{FIRST}/bad.jsonl.gz"]  # type: ignore[call-overload]
    write_events(platform.settings, f"{FIRST}/bad.jsonl.gz", [event(9, status="pending")])
    ingest_events(platform)
    assert red(evaluate(platform)) == set()


def test_a_file_that_changed_is_a_warning_that_says_what_became_of_its_events(
    platform: Platform,
) -> None:
    write_events(platform.settings, FILE, ["null"])
    ingest_events(platform)
    evaluations = evaluate(platform)
    assert red(evaluations) == {CHANGED}
    assert evaluations[CHANGED].severity == dg.AssetCheckSeverity.WARN
    assert metadata(evaluations[CHANGED]) == {
        "files_changed": 1,
        "events_of_earlier_versions_that_stay": 0,
        "events_taken_back": 1,
        "changed_within_a_day": str([FILE]),
    }


def test_where_stream_and_batch_differ_the_orders_behind_it_are_named(platform: Platform) -> None:
    for day, events in {
        str(DAYS[1]): [event(1, order_value_gbp=12.5), event(50, order_value_gbp=3)],
        str(DAYS[-1]): [event(60, order_value_gbp=4, region="South")],
        "2026-10-20": [event(70)],
    }.items():
        write_events(platform.settings, f"{day}/b.jsonl", events)
    ingest_events(platform)
    evaluations = evaluate(platform)
    assert red(evaluations) == {AGREES}
    evaluation = evaluations[AGREES]
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert metadata(evaluation) == {
        "days_that_differ": 2,
        "stream_minus_batch_gbp": {str(DAYS[1]): 5.5, str(DAYS[-1]): -6.0},
        "orders": [
            f"{DAYS[-1]} O3: stream None, batch 10.00",
            f"{DAYS[-1]} O60: stream 4.00, batch None",
            f"{DAYS[1]} O1: stream 12.50, batch 10.00",
            f"{DAYS[1]} O50: stream 3.00, batch None",
        ],
    }


def test_differences_that_cancel_out_are_differences(platform: Platform) -> None:
    at = f"{DAYS[1]}T10:00:00Z"
    write_events(
        platform.settings,
        f"{DAYS[1]}/b.jsonl",
        [
            event(1, order_value_gbp=4, event_timestamp=at),
            event(50, order_value_gbp=6, event_timestamp=at, region="South"),
        ],
    )
    ingest_events(platform)
    found = metadata(evaluate(platform)[AGREES])
    assert found["stream_minus_batch_gbp"] == {str(DAYS[1]): 0.0}
    assert len(found["orders"]) == 2  # type: ignore[arg-type]


def test_days_that_only_one_of_both_has_are_no_difference(platform: Platform) -> None:
    write_events(
        platform.settings, "2026-10-20/b.jsonl", [event(9, event_timestamp="2026-10-20T10:00:00Z")]
    )
    ingest_events(platform)
    assert red(evaluate(platform)) == set()
