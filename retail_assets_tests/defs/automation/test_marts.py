"""The marts in Dagster: the assets, what starts them, and what a mart that fails stops: nothing."""

from datetime import timedelta

import dagster as dg
import pytest

from retail_assets.defs.automation import batch
from retail_assets.defs.automation import marts as automation
from retail_assets.settings import Settings
from retail_assets_tests.outbound.marts.places import FolderPlace
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, DAYS, Platform

pytestmark = DAGSTER_CALLS_ITSELF


@pytest.fixture
def place(tmp_path):
    return FolderPlace(tmp_path / "mart", "parquet")


@pytest.fixture
def platform(published: Platform, place) -> Platform:
    """Four published days, and a mart that has none of them."""
    values = published.settings.model_dump() | place.settings
    return Platform(Settings(**values), published.instance)


def rows(platform: Platform) -> list[tuple]:
    return sorted(platform.query("SELECT * FROM revenue_now"), key=repr)


def test_without_a_setting_there_is_nothing_of_marts(published: Platform) -> None:
    names = {job.name for job in published.repository.get_all_jobs()}
    assert automation.MARTS not in names
    keys = published.repository.asset_graph.get_all_asset_keys()
    assert not {key.to_user_string() for key in keys} & {"mart_tables", "mart_files"}


def test_a_run_publishes_what_has_changed_and_says_so(platform: Platform, place) -> None:
    result = platform.run(automation.MARTS)
    assert result.success
    [event] = result.asset_materializations_for_node("mart_files")
    found = {name: value.value for name, value in event.metadata.items()}
    assert found["days"] == found["rows"] == 12
    assert found["daily_revenue_newest_days"] == ", ".join(map(str, DAYS))
    assert found["revenue_now_all_days_compared_because"] == "it is new"
    assert place.rows("revenue_now") == rows(platform)


def test_the_sensor_asks_for_a_run_first_and_then_publishes_within_its_ticks(
    platform: Platform, place
) -> None:
    [request] = platform.tick(automation.MARTS).run_requests or []
    assert request.asset_selection == [dg.AssetKey("mart_files")]
    assert platform.run(automation.MARTS).success
    idle = platform.tick(automation.MARTS)
    assert (idle.run_requests, idle.asset_events) == ([], [])
    platform.change(f"INSERT INTO live_revenue VALUES ('{DAYS[-1] + timedelta(1)}', 'N', 1, 1, 1)")
    tick = platform.tick(automation.MARTS)
    [event] = tick.asset_events
    assert event.metadata["revenue_now_days"].value == 1
    assert tick.run_requests == []
    assert place.rows("revenue_now") == rows(platform)
    assert platform.tick(automation.MARTS).asset_events == []


def test_many_changed_days_are_left_to_a_run_that_is_not_started_twice(
    platform: Platform, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.run(automation.MARTS).success
    platform.tick(automation.MARTS)
    monkeypatch.setattr(automation, "MOST_DAYS", 1)
    platform.change(
        "UPDATE live_revenue SET order_count = 2", "UPDATE daily_revenue SET region='X'"
    )
    assert len(platform.tick(automation.MARTS).run_requests or []) == 1
    run = platform.instance.create_run_for_job(
        platform.definitions.resolve_job_def(automation.MARTS), status=dg.DagsterRunStatus.STARTED
    )
    tick = platform.tick(automation.MARTS)
    assert not tick.run_requests
    assert "a run is under way" in str(tick.skip_reason)
    platform.instance.report_run_failed(run)
    assert "failed: the next one is started after an hour" in str(
        platform.tick(automation.MARTS).skip_reason
    )


def test_a_mart_that_fails_is_told_and_stops_neither_the_other_nor_the_batch(
    published: Platform, place
) -> None:
    values = published.settings.model_dump() | place.settings
    values["mart_url"] = "postgresql://shop:very%20secret@127.0.0.1:1/shop"
    platform = Platform(Settings(**values), published.instance)
    assert not platform.run(automation.MARTS).success
    assert place.rows("revenue_now") == rows(platform)
    tick = platform.tick(automation.MARTS)
    assert "mart_tables failed and is tried again: The mart at postgresql" in str(tick.skip_reason)
    [(mart, problem)] = platform.query("SELECT mart, problem FROM failed_marts")
    assert mart == "mart_tables"
    assert "could not be published: connection" in problem
    assert "secret" not in problem + str(tick.skip_reason)
    assert platform.run(batch.RESTATE, DAYS[0], DAYS[0]).success
    assert "daily_revenue: 0 days" not in str(platform.tick(automation.MARTS).skip_reason)


def test_all_days_are_compared_each_morning(platform: Platform, place) -> None:
    assert platform.run(automation.MARTS).success
    next(place.root.rglob("2026*.parquet")).unlink()
    schedule = platform.definitions.resolve_schedule_def(automation.COMPARE)
    request = schedule(dg.build_schedule_context(platform.instance))
    assert isinstance(request, dg.RunRequest)
    definition = platform.definitions.resolve_job_def(automation.MARTS)
    assert definition.execute_in_process(
        instance=platform.instance, run_config=request.run_config
    ).success
    assert place.rows("revenue_now") == rows(platform)
    assert place.rows("daily_revenue") == sorted(
        platform.query("SELECT * FROM daily_revenue"), key=repr
    )


def test_the_batch_is_followed_at_once_and_live_revenue_is_left_to_the_sensor(
    platform: Platform,
) -> None:
    assert platform.run(automation.MARTS).success
    state = dg.evaluate_automation_conditions(platform.definitions, platform.instance)
    platform.instance.report_runless_asset_event(dg.AssetMaterialization("live_revenue"))
    state = dg.evaluate_automation_conditions(
        platform.definitions, platform.instance, cursor=state.cursor
    )
    assert state.get_num_requested(dg.AssetKey("mart_files")) == 0
    assert platform.run(batch.RESTATE, DAYS[0], DAYS[0]).success
    state = dg.evaluate_automation_conditions(
        platform.definitions, platform.instance, cursor=state.cursor
    )
    assert state.get_num_requested(dg.AssetKey("mart_files")) == 1
