"""Runs of the event pipeline in Dagster, and what follows from them unasked."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import dagster as dg
import duckdb
import pytest

from retail_assets.consumers import live_orders, live_revenue
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.assets import consumers as consumer_assets
from retail_assets.defs.automation.events import EVENTS
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.defs.automation.event_runs import (
    BROKEN,
    DAY,
    carry_out,
    ingest_events,
    logged,
    requests,
)
from retail_assets_tests.event_files import event, write_events
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    DAYS,
    QUIET,
    Platform,
    open_platform,
    without_checks,
    write_reference,
)

pytestmark = [DAGSTER_CALLS_ITSELF, pytest.mark.usefixtures("only_runs")]

TABLES = ("raw_events", "enriched_events", "dead_letter_events")


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
