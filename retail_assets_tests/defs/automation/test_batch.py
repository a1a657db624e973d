"""Sensors, the schedule and the automation condition, evaluated on a real instance."""

import os
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from retail_assets import business_days
from retail_assets.defs import partitions
from retail_assets.defs.automation import batch as automation
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import WriteExport, order_row
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    FIRST,
    PRODUCTS,
    Platform,
    open_platform,
    request_days,
    revenue_by_day,
    write_reference,
)

pytestmark = DAGSTER_CALLS_ITSELF

DAY = FIRST


def later(days: int) -> date:
    return DAY + timedelta(days=days)


@pytest.fixture
def platform(settings: Settings) -> Iterator[Platform]:
    write_reference(settings)
    with open_platform(settings) as platform:
        yield platform


def touch(path: Path) -> None:
    """Give a file another modification time."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


# --- new exports ---------------------------------------------------------------------------------


def test_an_export_starts_its_day_at_the_second_tick_that_finds_it_unchanged(
    platform: Platform, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("O1", DAY)])
    assert platform.requested("new_exports") == []
    assert platform.requested("new_exports") == [(str(DAY), str(DAY))]


def test_an_export_that_still_changes_waits(platform: Platform, write_export: WriteExport) -> None:
    path = write_export(DAY, [order_row("O1", DAY)])
    for _ in range(3):
        assert platform.requested("new_exports") == []
        touch(path)
    assert platform.requested("new_exports") == []
    assert platform.requested("new_exports") == [(str(DAY), str(DAY))]


def test_days_that_land_together_are_one_run_for_each_stretch(
    platform: Platform, write_export: WriteExport
) -> None:
    for n in (0, 1, 2, 5):
        write_export(later(n), [order_row(f"O{n}", later(n))])
    platform.tick("new_exports")
    assert platform.requested("new_exports") == [
        (str(DAY), str(later(2))),
        (str(later(5)), str(later(5))),
    ]


def test_a_published_day_is_left_alone_until_its_export_is_replaced(
    published: Platform, write_export: WriteExport
) -> None:
    assert published.requested("new_exports") == []
    assert published.requested("new_exports") == []
    write_export(later(1), [order_row("O1", later(1), order_value_gbp="11.50")])
    published.tick("new_exports")
    (run,) = published.start(automation.BATCH, "new_exports")
    assert run.success
    assert revenue_by_day(published)[str(later(1))] == "11.50"
    assert published.requested("new_exports") == []


def test_days_of_queued_and_running_runs_are_not_started_again(
    platform: Platform, write_export: WriteExport
) -> None:
    for n in range(4):
        write_export(later(n), [order_row(f"O{n}", later(n))])
    create_run_for_test(
        platform.instance,
        job_name=automation.BATCH,
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags={partitions.RANGE_START: str(DAY), partitions.RANGE_END: str(later(1))},
    )
    create_run_for_test(
        platform.instance,
        job_name=automation.RESTATE,
        status=dg.DagsterRunStatus.STARTED,
        tags={partitions.PARTITION: str(later(2))},
    )
    platform.tick("new_exports")
    assert platform.requested("new_exports") == [(str(later(3)), str(later(3)))]


@pytest.mark.usefixtures("lake")
def test_a_day_whose_export_is_wrong_is_tried_once_until_something_changes(
    platform: Platform, write_export: WriteExport
) -> None:
    write_export(DAY, "no,such,header\n1,2,3\n")
    platform.tick("new_exports")
    (run,) = platform.start(automation.BATCH, "new_exports")
    assert not run.success
    for _ in range(2):
        tick = platform.tick("new_exports")
        assert not tick.run_requests
        assert "1 failed and wait for another file" in str(tick.skip_reason)
        assert str(DAY) in str(tick.skip_reason)

    # A product might be what it lacked: it is tried once more, and once only.
    write_reference(platform.settings, products="product_id\nP9\n")
    assert platform.requested("new_exports") == []
    (run,) = platform.start(automation.BATCH, "new_exports")
    assert not run.success
    assert platform.requested("new_exports") == []

    write_export(DAY, [order_row("O1", DAY)])
    assert platform.requested("new_exports") == []
    (run,) = platform.start(automation.BATCH, "new_exports")
    assert run.success


@pytest.mark.usefixtures("lake")
def test_a_run_that_ends_without_a_word_about_its_data_is_started_again_three_times_at_most(
    platform: Platform, write_export: WriteExport
) -> None:
    write_export(DAY, "no,such,header\n1,2,3\n")
    platform.tick("new_exports")
    (run,) = platform.start(automation.BATCH, "new_exports")
    assert not run.success
    # That failure, of another file, is no reason to give this one up.
    write_export(DAY, [order_row("O1", DAY)])
    platform.tick("new_exports")
    for _ in range(automation.MAX_ATTEMPTS):
        # Killed: nothing comes of what is requested.
        assert platform.requested("new_exports") == [(str(DAY), str(DAY))]
    assert platform.requested("new_exports") == []


def test_an_export_that_a_changed_setting_concerns_starts_its_day(published: Platform) -> None:
    with Lake.from_settings(published.settings).connect() as connection:
        connection.execute(
            "UPDATE export_files SET late_days = 3, max_days_late = 5"
            f" WHERE export_date = '{later(2)}'"
        )
    assert published.requested("new_exports") == []
    assert published.requested("new_exports") == [(str(later(2)), str(later(2)))]
    assert published.run(automation.BATCH, later(2)).success
    assert published.requested("new_exports") == []


def test_files_that_are_no_exports_of_partitions_are_ignored_and_named(
    platform: Platform, write_export: WriteExport
) -> None:
    newest = business_days.last_complete_day(platform.settings)
    write_export(platform.settings.start_date - timedelta(days=1), [])
    write_export(newest + timedelta(days=1), [])
    for name in ("orders_2026_10_12.csv.part", "orders_2026_02_30.csv", "notes.txt"):
        (platform.settings.exports_dir / name).write_text("x")
    (platform.settings.exports_dir / "orders_2026_10_13.csv").mkdir()
    platform.tick("new_exports")
    tick = platform.tick("new_exports")
    assert not tick.run_requests
    assert (tick.skip_reason or dg.SkipReason()).skip_message == (
        "Every day is up to date. 4 files in exports/ are not ingested, such as 'notes.txt', which"
        " is not called orders_YYYY_MM_DD.csv or .csv.gz, in exports/ itself: `retail-assets"
        " status` lists them."
    )


def test_all_days_are_started_again_after_the_lake_was_thrown_away(published: Platform) -> None:
    # A run key would have Dagster drop the requests: it has seen the same ones before.
    shutil.rmtree(published.settings.lake_dir)
    published.tick("new_exports")
    (request,) = published.tick("new_exports").run_requests or []
    assert request.run_key is None
    assert request_days(request) == (DAY, later(3))


# --- restated days -------------------------------------------------------------------------------


def test_a_late_order_restates_the_day_that_it_belongs_to_and_no_other(
    published: Platform, write_export: WriteExport
) -> None:
    assert published.requested("restated_days") == []
    write_export(later(4), [order_row("O4", later(4)), order_row("LATE", later(1))])
    assert published.run(automation.BATCH, later(4)).success
    (run,) = published.start(automation.RESTATE, "restated_days")
    assert run.success
    assert partitions.run_days(run.dagster_run.tags) == (later(1), later(1))
    assert revenue_by_day(published) == {
        str(DAY): "10.00",
        str(later(1)): "20.00",
        str(later(2)): "10.00",
        str(later(3)): "10.00",
        str(later(4)): "10.00",
    }
    assert published.requested("restated_days") == []


def test_a_return_takes_the_order_out_of_its_own_day(
    published: Platform, write_export: WriteExport
) -> None:
    write_export(later(4), [order_row("O0", DAY, status="returned")])
    assert published.run(automation.BATCH, later(4)).success
    assert published.requested("restated_days") == [(str(DAY), str(DAY))]
    assert published.run(automation.RESTATE, DAY).success
    assert str(DAY) not in revenue_by_day(published)


def test_a_changed_category_restates_the_days_that_sold_it(
    published: Platform, write_export: WriteExport
) -> None:
    write_export(later(4), [order_row("O4", later(4), product_id="P2")])
    assert published.run(automation.BATCH, later(4)).success
    write_reference(published.settings, PRODUCTS.replace("Lighting", "Living room"))
    assert published.run(automation.REFERENCE).success
    assert published.requested("restated_days") == [(str(later(4)), str(later(4)))]


# --- reference data ------------------------------------------------------------------------------


@pytest.mark.usefixtures("lake")
def test_reference_files_are_ingested_by_one_run_once_they_are_settled(platform: Platform) -> None:
    assert not platform.tick("changed_reference").run_requests
    (request,) = platform.tick("changed_reference").run_requests or []
    assert {key.to_user_string() for key in request.asset_selection or []} == {
        "products",
        "customers",
    }
    assert platform.run(automation.REFERENCE).success
    assert not platform.tick("changed_reference").run_requests


@pytest.mark.usefixtures("lake")
def test_a_changed_reference_file_is_ingested_and_the_other_left_alone(platform: Platform) -> None:
    platform.tick("changed_reference")
    platform.start(automation.REFERENCE, "changed_reference")
    write_reference(platform.settings, PRODUCTS + "P3,Rug,Living room,80.00,1\n")
    touch(platform.settings.reference_dir / "products.csv")
    os.utime(platform.settings.reference_dir / "customers.csv", ns=(0, 0))
    platform.cursors["changed_reference"] = None
    platform.tick("changed_reference")
    platform.start(automation.REFERENCE, "changed_reference")
    write_reference(platform.settings, PRODUCTS)
    os.utime(platform.settings.reference_dir / "customers.csv", ns=(0, 0))
    assert not platform.tick("changed_reference").run_requests
    (request,) = platform.tick("changed_reference").run_requests or []
    assert request.asset_selection == [dg.AssetKey("products")]


@pytest.mark.usefixtures("lake")
def test_a_reference_file_that_is_wrong_is_tried_once_until_it_is_replaced(
    platform: Platform,
) -> None:
    write_reference(platform.settings, products="product_id\nP1\n")
    platform.tick("changed_reference")
    (run,) = platform.start(automation.REFERENCE, "changed_reference")
    assert not run.success
    for _ in range(3):
        assert not platform.tick("changed_reference").run_requests


@pytest.mark.usefixtures("lake")
def test_reference_files_are_ingested_again_after_the_lake_was_thrown_away(
    platform: Platform,
) -> None:
    platform.tick("changed_reference")
    platform.start(automation.REFERENCE, "changed_reference")
    platform.tick("changed_reference")
    shutil.rmtree(platform.settings.lake_dir)
    assert not platform.tick("changed_reference").run_requests
    (request,) = platform.tick("changed_reference").run_requests or []
    assert len(request.asset_selection or []) == 2


# --- the schedule --------------------------------------------------------------------------------


def nightly(platform: Platform) -> dg.RunRequest | dg.SkipReason:
    schedule = platform.definitions.resolve_schedule_def("nightly")
    result = schedule(dg.build_schedule_context(platform.instance))
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def test_the_schedule_runs_yesterday_even_without_its_export(platform: Platform) -> None:
    request = nightly(platform)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == str(business_days.last_complete_day(platform.settings))


@pytest.mark.usefixtures("lake")
def test_the_schedule_skips_a_day_that_is_published(
    platform: Platform, write_export: WriteExport
) -> None:
    yesterday = business_days.last_complete_day(platform.settings)
    write_export(yesterday, [order_row("O1", yesterday)])
    assert platform.run(automation.BATCH, yesterday).success
    skipped = nightly(platform)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == f"{yesterday} is published already."


def test_the_schedule_skips_a_day_that_is_running(platform: Platform) -> None:
    yesterday = business_days.last_complete_day(platform.settings)
    create_run_for_test(
        platform.instance,
        job_name=automation.BATCH,
        status=dg.DagsterRunStatus.STARTED,
        tags={partitions.PARTITION: str(yesterday)},
    )
    skipped = nightly(platform)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == f"{yesterday} is queued or running already."


# --- the automation condition --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")  # of Dagster's own call
def test_revenue_follows_completed_orders_of_an_old_day_and_only_then(published: Platform) -> None:
    state = dg.evaluate_automation_conditions(published.definitions, published.instance)
    state = dg.evaluate_automation_conditions(
        published.definitions, published.instance, cursor=state.cursor
    )
    assert state.total_requested == 0

    assert published.run(automation.BATCH, DAY, later(3)).success
    state = dg.evaluate_automation_conditions(
        published.definitions, published.instance, cursor=state.cursor
    )
    assert state.total_requested == 0, "the batch job has made the revenue itself"

    assert published.run(
        automation.BATCH, later(1), asset_selection=[dg.AssetKey("completed_orders")]
    ).success
    state = dg.evaluate_automation_conditions(
        published.definitions, published.instance, cursor=state.cursor
    )
    assert state.get_requested_partitions(dg.AssetKey("daily_revenue")) == {str(later(1))}
    assert state.get_requested_partitions(dg.AssetKey("daily_revenue_by_category")) == {
        str(later(1))
    }


def test_sensors_and_schedule_bear_with_a_lake_that_is_just_being_created(
    platform: Platform, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("O1", DAY)])
    platform.settings.lake_dir.mkdir()
    Path(platform.settings.catalog).touch()
    platform.tick("new_exports")
    assert platform.requested("new_exports") == [(str(DAY), str(DAY))]
    assert platform.requested("restated_days") == []
    assert not platform.tick("changed_reference").run_requests
    assert isinstance(nightly(platform), dg.RunRequest)
