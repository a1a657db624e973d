"""A backfill from the command line: what is due, what failed, and how it is entered in Dagster."""

import os
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from retail_assets import business_days
from retail_assets.cli.backfill import Outcome, run_backfill
from retail_assets.cli.launched_backfill import launch_backfill
from retail_assets.defs import partitions
from retail_assets.defs.automation.batch import busy_days
from retail_assets.errors import UsageError
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import WriteExport, order_row
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    Platform,
    leave_out_checks,
    new_home,
    write_reference,
)

pytestmark = DAGSTER_CALLS_ITSELF

DAY = date(2026, 10, 12)
LAST = DAY + timedelta(days=3)
DAYS = business_days.days_between(DAY, LAST)
NEXT = LAST + timedelta(days=1)
"""The day after those that the fixture `published` has published, which are the same."""


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Reference data, and a Dagster instance of the test's own."""
    write_reference(settings)
    home = settings.data_dir / "dagster"
    new_home(home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return settings.model_copy(update={"threads": 1})


@pytest.fixture
def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_checks(monkeypatch)


@pytest.fixture
def exports(settings: Settings, write_export: WriteExport) -> list[Path]:
    return [write_export(day, [order_row(f"O{n}", day)]) for n, day in enumerate(DAYS)]


def revenue(settings: Settings) -> dict[str, str]:
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return {
            str(day): str(total)
            for day, total in connection.execute(
                "SELECT order_date, sum(total_revenue) FROM daily_revenue GROUP BY 1 ORDER BY 1"
            ).fetchall()
        }


def runs(job: str) -> list[tuple[str, date, date]]:
    """Status and days of the runs of a job, earliest first."""
    with dg.DagsterInstance.get() as instance:
        found = instance.get_runs(dg.RunsFilter(job_name=job))
    return [
        (run.status.value, *(partitions.run_days(run.tags) or (date.min, date.min)))
        for run in reversed(found)
    ]


def test_a_range_is_one_run_and_doing_it_again_does_nothing(
    settings: Settings, exports: list[Path]
) -> None:
    said: list[str] = []
    assert run_backfill(settings, DAY, LAST, say=said.append) == Outcome(4, {}, ())
    assert revenue(settings) == {str(day): "10.00" for day in DAYS}
    assert runs("batch") == [("SUCCESS", DAY, LAST)]
    assert f"{DAY} to {LAST}: order exports, 4 exports done" in said
    assert os.environ["DAGSTER_EVENT_BATCH_SIZE"] == "500"

    assert run_backfill(settings, DAY, LAST) == Outcome(0, {}, ())
    assert runs("batch") == [("SUCCESS", DAY, LAST)]
    assert runs("restate") == []


@pytest.mark.usefixtures("lake")
def test_a_bad_day_is_named_and_running_again_does_only_what_is_missing(
    settings: Settings, exports: list[Path], write_export: WriteExport
) -> None:
    good = exports[1].read_bytes()
    exports[1].write_text("not,an,export\n")
    outcome = run_backfill(settings, DAY, LAST)
    assert outcome.days == 4
    assert outcome.problems == ()
    assert outcome.failed.keys() == {DAYS[1]}
    assert f"{exports[1]} lacks the columns" in outcome.failed[DAYS[1]]
    assert revenue(settings).keys() == {str(day) for day in DAYS} - {str(DAYS[1])}

    exports[1].write_bytes(good)
    assert run_backfill(settings, DAY, LAST) == Outcome(1, {}, ())
    assert runs("batch") == [("FAILURE", DAY, LAST), ("SUCCESS", DAYS[1], DAYS[1])]
    assert revenue(settings) == {str(day): "10.00" for day in DAYS}


@pytest.mark.usefixtures("without_checks")
def test_a_late_order_restates_its_day_though_that_lies_before_the_range(
    published: Platform, write_export: WriteExport
) -> None:
    settings = published.settings
    write_export(NEXT, [order_row("O4", NEXT), order_row("LATE", DAY)])
    assert run_backfill(settings, NEXT, NEXT) == Outcome(1, {}, ())
    assert runs("restate") == [("SUCCESS", DAY, DAY)]
    others = {str(day): "10.00" for day in (*DAYS, NEXT)}
    assert revenue(settings) == others | {str(DAY): "20.00"}


@pytest.mark.usefixtures("lake", "without_checks")
def test_one_file_of_many_days_publishes_each_of_them_with_one_command(
    settings: Settings, write_export: WriteExport
) -> None:
    write_export(LAST, [order_row(f"O{n}", day) for n, day in enumerate(DAYS)])
    assert run_backfill(settings, LAST, LAST) == Outcome(1, {}, ())
    assert runs("restate") == [("SUCCESS", DAY, DAYS[2])]
    assert revenue(settings) == {str(day): "10.00" for day in DAYS}
    # Whoever asks for days whose own export is missing hears of that; their revenue stays.
    outcome = run_backfill(settings, DAYS[1], LAST)
    assert outcome.failed.keys() == {DAYS[1], DAYS[2]}
    assert f"There is no export for {DAYS[1]}" in outcome.failed[DAYS[1]]
    assert revenue(settings) == {str(day): "10.00" for day in DAYS}


@pytest.mark.usefixtures("lake", "without_checks")
def test_late_orders_of_a_day_whose_export_is_missing_are_published_and_the_day_is_named(
    settings: Settings, exports: list[Path], write_export: WriteExport
) -> None:
    exports[1].unlink()
    write_export(DAYS[2], [order_row("O2", DAYS[2]), order_row("LATE", DAYS[1])])
    outcome = run_backfill(settings, DAY, LAST)
    assert outcome.failed.keys() == {DAYS[1]}
    assert revenue(settings) == {str(day): "10.00" for day in DAYS}
    # Its own export comes: then it is as if it had come first.
    write_export(DAYS[1], [order_row("O1", DAYS[1])])
    assert run_backfill(settings, DAY, LAST) == Outcome(1, {}, ())
    assert revenue(settings) == {str(day): "10.00" for day in DAYS} | {str(DAYS[1]): "20.00"}


@pytest.mark.usefixtures("without_checks")
def test_bad_reference_data_are_a_problem_but_do_not_stop_the_orders(
    published: Platform, write_export: WriteExport
) -> None:
    settings = published.settings
    write_reference(settings, products="product_id\nP1\n")
    write_export(NEXT, [order_row("O4", NEXT)])
    outcome = run_backfill(settings, NEXT, NEXT)
    assert (outcome.days, outcome.failed) == (1, {})
    (problem,) = outcome.problems
    assert "products.csv lacks the columns product_name" in problem
    assert revenue(settings) == {str(day): "10.00" for day in (*DAYS, NEXT)}


@pytest.mark.usefixtures("without_checks")
def test_it_needs_no_dagster_home(
    published: Platform, write_export: WriteExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    write_export(NEXT, [order_row("O4", NEXT)])
    assert run_backfill(published.settings, NEXT, NEXT) == Outcome(1, {}, ())


def test_a_dagster_home_that_is_no_folder_is_wrong_usage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/no/such/folder")
    with pytest.raises(UsageError, match="'/no/such/folder' must be the absolute path of a folder"):
        run_backfill(settings, DAY, DAY)


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (LAST, DAY, "lies after the end"),
        (date(2026, 10, 4), DAY, "set RETAIL_START_DATE"),
        (DAY, date(2999, 1, 1), "choose an earlier end"),
    ],
)
def test_days_that_are_no_partitions_are_wrong_usage(
    settings: Settings, first: date, last: date, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_backfill(settings, first, last)


def test_runs_of_so_many_days_restate_each_other_s_days(
    settings: Settings, write_export: WriteExport, without_checks: None
) -> None:
    settings = settings.model_copy(update={"run_days": 2})
    for n, day in enumerate(DAYS):
        write_export(day, [order_row(f"O{n}", day)])
    # The second run has the late and the corrected order of the first one's days.
    write_export(
        DAYS[2],
        [order_row("late", DAYS[0]), order_row("O1", DAYS[1], order_value_gbp="4.00")],
    )
    assert run_backfill(settings, DAY, LAST) == Outcome(4, {}, ())
    assert runs("batch") == [("SUCCESS", DAYS[0], DAYS[1]), ("SUCCESS", DAYS[2], DAYS[3])]
    assert runs("restate") == [("SUCCESS", DAYS[0], DAYS[1])]
    assert revenue(settings) == {str(DAYS[0]): "20.00", str(DAYS[1]): "4.00", str(LAST): "10.00"}


def test_a_backfill_that_is_handed_to_the_daemon_is_not_started_twice(
    settings: Settings, exports: list[Path]
) -> None:
    found = launch_backfill(settings, DAY, LAST)
    assert found.days == 4
    assert "2026-10-12 to 2026-10-15" in found.notes[0]
    assert "No Dagster daemon reports" in found.notes[1]
    with dg.DagsterInstance.get() as instance:
        (requested,) = instance.get_backfills()
        assert requested.tags == {}
        assert busy_days(instance) == set(DAYS), "for the sensors, too"
    assert launch_backfill(settings, DAY, LAST).notes == ()
    with dg.DagsterInstance.get() as instance:
        assert len(instance.get_backfills()) == 1


def test_without_an_instance_there_is_no_daemon_to_hand_it_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    with pytest.raises(UsageError, match="set DAGSTER_HOME to the folder"):
        launch_backfill(settings, DAY, LAST, wait=True)
