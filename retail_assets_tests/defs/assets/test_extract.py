"""`order_export_files`: what a run materializes, what it fails for, and the nightly schedule."""

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta

import dagster as dg
import pytest

from retail_assets import business_days
from retail_assets.definitions import build_definitions
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.extract.shops import ORDERS, Shop, declare, postgres_shop
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    Platform,
    open_platform,
    request_days,
    revenue_by_day,
    write_reference,
)

pytestmark = [pytest.mark.processes, DAGSTER_CALLS_ITSELF]

DAY = date(2026, 10, 12)
NEXT = DAY + timedelta(days=1)
FILES = dg.AssetKey("order_export_files")


@pytest.fixture
def shop(postgres: str) -> Shop:
    shop = postgres_shop(postgres)
    shop.create()
    shop.execute(
        "CREATE TABLE products (product_id text, product_name text, product_category text,"
        " unit_price_gbp numeric, stock_on_hand integer)",
        "INSERT INTO products VALUES ('P1', 'Kettle', 'Kitchen', 20, 5)",
    )
    shop.order("1", f"{DAY} 10:00:00")
    shop.order("2", f"{DAY} 11:00:00", f"{NEXT} 08:00:00", total="5.00")
    return shop


@pytest.fixture
def platform(settings: Settings, lake: Lake, shop: Shop) -> Iterator[Platform]:
    declared = declare(settings, shop, {"orders": ORDERS, "products": {"table": "products"}})
    write_reference(declared)
    with open_platform(declared) as platform:
        yield platform


def metadata(platform: Platform, day: date) -> dict[str, object]:
    events = platform.instance.fetch_materializations(
        dg.AssetRecordsFilter(FILES, asset_partitions=[str(day)]), limit=1
    ).records
    materialization = events[0].asset_materialization
    assert materialization is not None
    return {name: entry.value for name, entry in materialization.metadata.items()}


def test_a_range_is_one_snapshot_and_its_files_become_revenue(platform: Platform) -> None:
    (platform.settings.reference_dir / "products.csv").unlink()
    assert platform.run("extract", DAY, NEXT).success
    assert platform.materialized("order_export_files") == {str(DAY), str(NEXT)}
    first, second = metadata(platform, DAY), metadata(platform, NEXT)
    assert (first["dagster/partition_row_count"], second["rows_of_earlier_days"]) == (2, 1)
    assert first["source_snapshot"] == second["source_snapshot"]
    assert first["source_wal_lsn"]
    assert first["result"] == "written"
    event = platform.instance.get_latest_materialization_event(dg.AssetKey("reference_files"))
    assert event is not None
    assert platform.run("reference").success
    assert platform.run("batch", DAY, NEXT).success
    assert revenue_by_day(platform) == {str(DAY): "15.00"}


def test_a_day_with_a_file_of_somebody_else_fails_alone(platform: Platform) -> None:
    path = business_days.export_paths(platform.settings.exports_dir, DAY)[0]
    path.parent.mkdir()
    path.write_text("by hand")
    run = platform.run("extract", DAY, NEXT)
    assert not run.success
    assert platform.materialized("order_export_files") == {str(NEXT)}
    (failure,) = (event for event in run.all_events if event.is_step_failure)
    assert failure.step_failure_data.user_failure_data is not None
    assert str(path) in str(failure.step_failure_data.user_failure_data.description)
    assert path.read_text() == "by hand"


def test_a_database_that_is_gone_fails_the_run_in_a_sentence(
    settings: Settings, lake: Lake, shop: Shop
) -> None:
    gone = Shop("postgres", re.sub(r":\d+/", ":1/", shop.url))
    with open_platform(declare(settings, gone, {"orders": ORDERS})) as platform:
        job = platform.definitions.resolve_job_def("extract")
        assert job.get_subset is not None
        run = platform.run("extract", DAY)
    (failure, *_) = (
        event for event in run.all_events if event.is_step_failure or event.is_step_up_for_retry
    )
    assert "No file was changed" in str(failure)
    assert "secret" not in str(failure)


def test_the_files_stand_left_of_what_is_ingested_from_them(platform: Platform) -> None:
    graph = platform.definitions.resolve_asset_graph()
    assert FILES in graph.get(dg.AssetKey("raw_orders")).parent_keys
    assert FILES in graph.get(dg.AssetKey("rejected_orders")).parent_keys
    assert graph.get(dg.AssetKey("products")).parent_keys == {dg.AssetKey("reference_files")}
    assert graph.get(dg.AssetKey("customers")).parent_keys == {dg.AssetKey("reference_folder")}
    assert graph.get(FILES).group_name == "extract"


def test_each_night_the_last_days_are_extracted(platform: Platform) -> None:
    schedule = platform.definitions.resolve_schedule_def("nightly_extract")
    assert schedule.cron_schedule == "0 2 * * *"
    assert schedule.execution_timezone == "Europe/London"
    context = dg.build_schedule_context(
        platform.instance, scheduled_execution_time=datetime.now().astimezone()
    )
    request = schedule(context)
    assert isinstance(request, dg.RunRequest)
    last = business_days.last_complete_day(platform.settings)
    assert request_days(request) == (last - timedelta(days=1), last)


def test_without_a_declaration_there_is_nothing_of_it(settings: Settings) -> None:
    definitions = build_definitions(settings)
    assert FILES not in definitions.resolve_asset_graph().get_all_asset_keys()
    assert not [job for job in definitions.jobs or () if job.name == "extract"]
