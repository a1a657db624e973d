"""What Dagster shows of the worker, and that sensor and worker do not get in each other's way."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest

from retail_assets.consumers.framework import consume
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.automation import reports
from retail_assets.defs.automation import worker as stream_automation
from retail_assets.defs.automation.reports import CHECKS
from retail_assets.defs.automation.worker import WORKER
from retail_assets.ingest.event_files import watch
from retail_assets.ingest.ledgers.workers import beat, heartbeats
from retail_assets.ingest.ledgers.workers import state as heartbeat_state
from retail_assets.lake.connection import Lake
from retail_assets_tests.event_files import EventLoader, event, write_events
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, Platform, open_platform

pytestmark = DAGSTER_CALLS_ITSELF

TOTALS = {"lines": 3, "accepted": 2, "dead_lettered": 1, "duplicate": 0}
SENSOR = "new_event_files"


@pytest.fixture(autouse=True)
def only_runs(monkeypatch):
    """Every arrival is large: the requests of a tick show what it would ingest."""
    monkeypatch.setattr(watch, "FILES", 0)
    monkeypatch.setattr(watch.FolderWatch, "renew", lambda *_: None)


@pytest.fixture
def platform(settings, lake):
    with open_platform(settings) as platform:
        yield platform


def heart(
    lake: Lake,
    worker: str = "w1",
    *,
    state: str = "running",
    sources: Sequence[str] = ("files",),
    silent: float = 0,
    lines: int = 3,
    **figures: Any,
) -> None:
    """A heartbeat of so many seconds ago."""
    with lake.connect() as connection, lake.transaction(connection, "heartbeat"):
        beat(
            connection,
            worker,
            sources,
            state,
            figures.pop("problem", None),
            {"sources": {"files": TOTALS | {"lines": lines}}, **figures},
            datetime.now(timezone.utc),
        )
        connection.execute(
            "UPDATE lake.stream_workers SET heartbeat_at = heartbeat_at - to_seconds(?)"
            " WHERE worker = ?",
            [silent, worker],
        )


def drop(platform: Platform, name: str, number: int, *, seconds_old: float = 0) -> None:
    write_events(
        platform.settings,
        f"2026-10-12/{name}",
        [event(number)],
        modified_ns=time.time_ns() - int(seconds_old * 1e9),
    )


def files(result: dg.SensorResult) -> list[str]:
    return [
        path.rpartition("/")[2]
        for request in result.run_requests or []
        for path in request.run_config["ops"]["event_ingest"]["config"]["files"]
    ]


def test_fresh_files_are_left_to_a_worker_that_is_alive(platform, lake):
    drop(platform, "a.jsonl", 1)
    heart(lake)
    result = platform.tick(SENSOR)
    assert files(result) == []
    assert "1 left to the worker w1" in str(result.skip_reason)


@pytest.mark.parametrize("silent", [11, 3600])
def test_the_sensor_takes_over_when_the_worker_is_silent(platform, lake, silent):
    drop(platform, "a.jsonl", 1)
    heart(lake, silent=silent)
    assert files(platform.tick(SENSOR)) == ["a.jsonl"]


def test_the_sensor_takes_over_from_a_worker_that_has_stopped(platform, lake):
    drop(platform, "a.jsonl", 1)
    heart(lake, state="stopped")
    assert files(platform.tick(SENSOR)) == ["a.jsonl"]


def test_files_that_a_living_worker_leaves_lying_are_taken_anyway(platform, lake):
    drop(platform, "fresh.jsonl", 1)
    drop(platform, "old.jsonl", 2, seconds_old=100)
    heart(lake)
    assert files(platform.tick(SENSOR)) == ["old.jsonl"]


def test_a_worker_without_files_is_no_reason_to_stand_by(platform, lake):
    drop(platform, "a.jsonl", 1)
    heart(lake)
    platform.change("UPDATE lake.stream_workers SET sources = 'kafka, webhook'")
    assert files(platform.tick(SENSOR)) == ["a.jsonl"]


def report(platform: Platform) -> tuple[list[tuple[str, str, str | None]], str]:
    """What a tick reports: kind, asset and partition; and what it says."""
    result = platform.tick(WORKER)
    events = [
        (type(found).__name__, found.asset_key.to_user_string(), found.partition)
        for found in result.asset_events
    ]
    return events, result.skip_reason.skip_message


def reported(platform: Platform) -> set[tuple[str, str | None]]:
    """The materializations, table and partition, that a tick of the event sensor reports."""
    before = _materialized(platform)
    platform.tick(SENSOR)
    found = _materialized(platform)
    return {found[storage_id] for storage_id in found.keys() - before.keys()}


def _materialized(platform: Platform) -> dict[int, tuple[str, str | None]]:
    return {
        record.storage_id: (table, record.partition_key)
        for table in (*TABLES, *FOLLOWERS)
        for record in platform.instance.fetch_materializations(dg.AssetKey(table), 100).records
    }


TABLES = ("raw_events", "enriched_events", "dead_letter_events")
FOLLOWERS = {"live_orders", "live_revenue", "dead_letter_counts", "fraud_alerts"}


def test_a_living_worker_is_seen_with_its_metrics(platform, lake):
    assert report(platform)[0] == []
    heart(lake, latency_p99_ms=120.5)
    (found,) = platform.tick(WORKER).asset_events
    metadata = {name: value.value for name, value in found.metadata.items()}
    assert metadata.pop("last_heartbeat") > time.time() - 60
    assert metadata == {
        "worker": "w1",
        "state": "alive",
        "sources": "files",
        "latency_p99_ms": 120.5,
        **{f"files_{name}": count for name, count in TOTALS.items()},
    }
    platform.cursors.clear()
    events, said = report(platform)
    assert events == [("AssetMaterialization", WORKER, None)]
    assert "w1" in said
    assert "alive" in said
    # Too soon to say so again.
    assert report(platform)[0] == []


def test_days_that_a_worker_fills_are_reported_once_a_minute(platform, lake, monkeypatch):
    with EventLoader.open(platform.settings) as loader:
        loader.write("2026-10-12/a.jsonl", [event(1)])
        loader.write("2026-10-13/a.jsonl", ["{"])
        loader.ingest()
        heart(lake)
        days = ("2026-10-12", "2026-10-13")
        assert reported(platform) == {(table, day) for table in TABLES for day in days}
        loader.write("2026-10-13/b.jsonl", [event(2)])
        loader.ingest()
        assert reported(platform) == set()
    monkeypatch.setattr(reports, "WORKER_SECONDS", 0)
    assert reported(platform) == {(table, "2026-10-13") for table in TABLES}
    assert reported(platform) == set()


def test_what_a_worker_does_not_follow_is_left_to_dagster(platform, lake, monkeypatch):
    monkeypatch.setattr(reports, "WORKER_SECONDS", 0)

    def assets() -> set[str]:
        return {asset for asset, _ in reported(platform)}

    with EventLoader.open(platform.settings) as loader:
        loader.write("2026-10-12/a.jsonl", [event(1), "{"])
        loader.ingest()
        # It has no consumers, or none has got that far yet.
        heart(lake)
        assert assets() == {*TABLES}
        follow(loader, platform)
        heart(lake)
        assert assets() >= FOLLOWERS
        loader.write("2026-10-12/b.jsonl", [event(2)])
        loader.ingest()
        follow(loader, platform, "live_orders")
        heart(lake)
        # Of the counts nothing has changed that they follow.
        assert assets() & FOLLOWERS == {"live_orders", "dead_letter_counts"}
        heart(lake, silent=30)
        assert assets() & {*FOLLOWERS, "enriched_events"} == {
            *("live_orders", "enriched_events"),
            "dead_letter_counts",
        }
        assert assets() == set()


def follow(loader: EventLoader, platform: Platform, *names: str) -> None:
    """A round of some consumers, or of all."""
    for consumer in all_consumers(platform.settings):
        if not names or consumer.name in names:
            consume(loader.lake, loader.connection, consumer)


def test_a_source_whose_worker_is_dead_counts_though_another_worker_is_alive(platform, lake):
    heart(lake, "w1", sources=["kafka"], silent=30)
    heart(lake, "w2")
    assert report(platform)[0] == [("AssetObservation", WORKER, None)]
    heart(lake, "w3", sources=["kafka", "webhook"])
    assert report(platform)[0] == [("AssetMaterialization", WORKER, None)]


def test_a_dead_worker_is_said_to_be_dead_and_not_materialized(platform, lake):
    heart(lake)
    assert report(platform)[0][0] == ("AssetMaterialization", WORKER, None)
    heart(lake, silent=30)
    events, said = report(platform)
    assert events == [("AssetObservation", WORKER, None)]
    assert "dead" in said


def test_a_late_worker_is_observed_and_not_materialized_unless_another_keeps_up(
    platform, lake, monkeypatch
):
    monkeypatch.setattr(stream_automation, "REPORT_SECONDS", 0)
    heart(lake, "w1", problem="the broker is away", silent=5)
    events, said = report(platform)
    assert events == [("AssetObservation", WORKER, None)]
    assert "lagging" in said
    assert "the broker is away" in said
    heart(lake, "w2", state="stopped")
    # It is late, not gone, whoever was heard of later.
    assert report(platform)[0] == [("AssetObservation", WORKER, None)]
    heart(lake, "w3")
    assert report(platform)[0][0] == ("AssetMaterialization", WORKER, None)


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "alive"),
        ({"oldest_pending_event_file_seconds": 61}, "lagging"),
        ({"problem": "the broker is away"}, "lagging"),
        ({"latency_p50_ms": 61_000}, "lagging"),
        ({"latency_p50_ms": 59_000, "fraud_lag_seconds": 59}, "alive"),
        ({"fraud_lag_seconds": 61}, "lagging"),
        ({"silent": 11}, "dead"),
        ({"state": "stopped"}, "stopped"),
    ],
)
def test_states(lake, changed, state):
    heart(lake, **changed)
    with lake.connect(read_only=True) as connection:
        (found,) = heartbeats(connection)
    assert heartbeat_state(found, datetime.now(timezone.utc)) == state


def test_the_worker_has_a_freshness_policy(platform):
    spec = platform.repository.asset_graph.get(dg.AssetKey(WORKER))
    assert spec.freshness_policy.fail_window.to_timedelta() == timedelta(minutes=5)


def test_without_a_lake_the_sensor_waits(settings):
    with open_platform(settings) as platform:
        assert report(platform) == ([], "There is no lake yet.")


def test_what_the_worker_writes_is_checked_each_morning(platform, lake):
    drop(platform, "a.jsonl", 1, seconds_old=60)
    with EventLoader.open(platform.settings) as loader:
        loader.ingest()
        for consumer in all_consumers(platform.settings):
            consume(loader.lake, loader.connection, consumer)
    assert isinstance(morning(platform), dg.RunRequest)

    def failed() -> set[tuple[str, str]]:
        evaluations = platform.run(CHECKS, checks=True).get_asset_check_evaluations()
        assert {each.asset_key.to_user_string() for each in evaluations} == written
        return {
            (each.asset_key.to_user_string(), each.check_name)
            for each in evaluations
            if not each.passed
        }

    written = {"raw_events", "enriched_events", "dead_letter_events"} | {
        table.name for each in all_consumers(platform.settings) for table in each.tables
    }
    assert failed() == set()
    platform.change("DELETE FROM lake.enriched_events")
    assert ("raw_events", "lines_add_up") in failed()


def test_before_there_is_a_lake_nothing_is_checked(settings):
    with open_platform(settings) as platform:
        assert isinstance(morning(platform), dg.SkipReason)


def morning(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    result = platform.definitions.resolve_schedule_def(CHECKS)(
        dg.build_schedule_context(platform.instance)
    )
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result
