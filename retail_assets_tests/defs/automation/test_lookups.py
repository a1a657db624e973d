"""Lookups in Dagster: without a worker, a sensor and an asset ask about the events."""

from collections.abc import Iterator

import dagster as dg
import pytest

from retail_assets.defs.automation import lookups as automation
from retail_assets.outbound.lookups import follow as follow_module
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.outbound.lookups.api import Api, running_api, tier_of
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, Platform, open_platform

pytestmark = [DAGSTER_CALLS_ITSELF, pytest.mark.processes]

DAY = "2026-10-12"


@pytest.fixture
def api() -> Iterator[Api]:
    with running_api() as api:
        yield api


@pytest.fixture
def platform(settings, lake, api, tmp_path) -> Iterator[Platform]:
    """A platform whose mapping asks the API about customers, and two events."""
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        "lookups: {crm: {field: customer_id, keep: {tier: $.tier},"
        f" url: '{api.url}/{{value}}'}}}}"
    )
    settings = Settings(**settings.model_dump() | {"mapping": mapping})
    ingest(settings, "a", event(1), event(2, customer_id="C2"))
    with open_platform(settings) as platform:
        yield platform


def ingest(settings: Settings, name: str, *lines: str) -> None:
    with EventLoader.open(settings) as loader:
        loader.write(f"{DAY}/{name}.jsonl", lines)
        loader.ingest()


def states(platform: Platform) -> list[tuple]:
    return platform.query("SELECT event_id, state FROM event_lookups ORDER BY ALL")


def said(tick: dg.SensorResult) -> str:
    assert isinstance(tick.skip_reason, dg.SkipReason)
    return tick.skip_reason.skip_message or ""


def test_without_lookups_there_is_nothing_of_them(published: Platform) -> None:
    keys = {key.to_user_string() for key in published.repository.asset_graph.get_all_asset_keys()}
    assert "api_lookups" not in keys
    assert automation.LOOKUPS not in {each.name for each in published.repository.sensor_defs}


def test_the_sensor_asks_and_shows_what_was_answered(platform: Platform, api) -> None:
    tick = platform.tick(automation.LOOKUPS)
    assert states(platform) == [("E1", "answered"), ("E2", "answered")]
    [answers] = tick.asset_events
    found = {name: value.value for name, value in answers.metadata.items()}
    assert (answers.asset_key.to_user_string(), found) == (
        "api_lookups",
        {"answers": 2, "crm_answered": 2},
    )
    again = platform.tick(automation.LOOKUPS)
    assert (again.asset_events, said(again)) == ([], "crm: 0 values wait.")
    assert sorted(api.asked) == ["C1", "C2"]


def test_what_has_no_answer_is_put_right_by_a_later_tick(
    platform: Platform, api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "FIRST_RETRY_SECONDS", 0)
    api.answer = lambda _: (500, {}, b"")
    tick = platform.tick(automation.LOOKUPS)
    assert said(tick).startswith("crm: 2 values wait, 2 of them failed (The API of")
    assert states(platform) == [("E1", "unknown"), ("E2", "unknown")]
    api.answer = tier_of
    assert len(platform.tick(automation.LOOKUPS).asset_events) == 1
    assert states(platform) == [("E1", "answered"), ("E2", "answered")]


def test_a_tick_asks_no_longer_than_its_time(
    platform: Platform, api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automation, "TICK_SECONDS", -1)
    assert said(platform.tick(automation.LOOKUPS)) == "crm: 2 values wait."
    assert api.asked == []


def test_the_sensor_knows_from_tick_to_tick_that_an_api_is_away(platform: Platform, api) -> None:
    ingest(platform.settings, "b", *(event(n, customer_id=f"C{n}") for n in range(3, 20)))
    api.answer = lambda _: (500, {}, b"")
    platform.tick(automation.LOOKUPS)
    asked = len(api.asked)
    tick = platform.tick(automation.LOOKUPS)
    assert said(tick).endswith("and the API is left alone for a while.")
    assert len(api.asked) == asked


def test_a_worker_that_asks_is_left_to_it(platform: Platform, api) -> None:
    platform.change(
        "INSERT INTO stream_workers BY NAME SELECT 'w7' AS worker, 'shop' AS host, 1 AS process_id,"
        " 'files' AS sources, 'running' AS state, '{\"lookup_crm_waiting\": 2}' AS figures,"
        " now() AS started_at, now() AS heartbeat_at"
    )
    assert said(platform.tick(automation.LOOKUPS)) == "crm: the worker w7 asks."
    assert api.asked == []
    platform.change("UPDATE stream_workers SET heartbeat_at = now() - INTERVAL 1 MINUTE")
    platform.tick(automation.LOOKUPS)
    assert sorted(api.asked) == ["C1", "C2"]


def test_a_run_of_the_asset_asks_and_says_what_it_got(platform: Platform) -> None:
    job = platform.definitions.resolve_implicit_global_asset_job_def()
    result = job.get_subset(asset_selection={dg.AssetKey("api_lookups")}).execute_in_process(
        instance=platform.instance
    )
    [answers] = result.asset_materializations_for_node("api_lookups")
    assert answers.metadata["crm_answered"].value == 2
    assert states(platform) == [("E1", "answered"), ("E2", "answered")]


def test_a_lookup_without_its_secret_says_so_and_stops_no_other(
    platform: Platform, api, tmp_path
) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        "lookups:\n  a: {field: region, keep: {x: $.tier}, headers: {Authorization: '{key}'},"
        f" url: '{api.url}/r/{{value}}'}}\n"
        f"  crm: {{field: customer_id, keep: {{tier: $.tier}}, url: '{api.url}/{{value}}'}}\n"
    )
    tick = platform.tick(automation.LOOKUPS)
    assert said(tick).startswith("a: The lookup a needs the secret key: set RETAIL_LOOKUP")
    assert sorted(api.asked) == ["C1", "C2"]
