"""Asset checks: green on what was published, red on a planted fault; a bad day fails by name."""

from base64 import b64decode
from collections.abc import Collection, Mapping
from datetime import date, timedelta
from urllib.parse import unquote

import dagster as dg
import duckdb
import pytest

from retail_assets import tables
from retail_assets.defs import asset_checks as checks
from retail_assets.defs.assets.charts import SHORT_MARKDOWN
from retail_assets.defs.automation import batch as automation
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.transforms.orders import UNKNOWN
from retail_assets_tests.conftest import WriteExport, order_row
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    DAYS,
    FIRST,
    QUIET,
    Platform,
    open_platform,
    published_platform,
    revenue_by_day,
    write_reference,
)

pytestmark = DAGSTER_CALLS_ITSELF

ALL = {
    (table.name, check.__name__)
    for table in checks.CHECKED
    for check in (*checks.GENERAL, *checks.SPECIAL.get(table, ()))
} | {("fraud_model", "newest_model_is_usable")}


Result = dg.AssetCheckEvaluation | dg.AssetCheckResult
Results = dict[tuple[str, str], dg.AssetCheckResult]


def results(settings: Settings, of: Collection[tables.Table] = checks.CHECKED) -> Results:
    """What the checks of tables find in whole tables, without the seconds that a run takes."""
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return found_in(connection, settings, of)


def found_in(
    connection: duckdb.DuckDBPyConnection, settings: Settings, of: Collection[tables.Table]
) -> Results:
    return {
        (table.name, name): check(checks.Scope(connection, table, None, None, settings))
        for table in of
        for name, check in checks.checks_of(table).items()
    }


def results_with_fault(
    settings: Settings, fault: str, of: Collection[tables.Table] = checks.CHECKED
) -> Results:
    """What the checks find in a lake after these statements, which are rolled back."""
    with Lake.from_settings(settings).connect() as connection:
        connection.execute("BEGIN")
        for statement in fault.split(";"):
            connection.execute(statement)
        return found_in(connection, settings, of)


def result_of_a_day(
    platform: Platform, day: date, table: tables.Table, check: checks.Check
) -> dg.AssetCheckResult:
    """What a check finds in a day; a run of the batch job would call all of them."""
    with Lake.from_settings(platform.settings).connect(read_only=True) as connection:
        return check(checks.Scope(connection, table, day, day, platform.settings))


@pytest.fixture(scope="module")
def four_days(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Four published days, which no test changes."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("published"), threads=1)
    with published_platform(settings, tmp_path_factory):
        return settings


def evaluate(platform: Platform) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    """Run all checks by themselves: they look at whole tables."""
    definitions = dg.Definitions.merge(
        platform.definitions,
        dg.Definitions(
            jobs=[dg.define_asset_job("checks", dg.AssetSelection.all_asset_checks())],
        ),
    )
    # No check asks the instance: one in memory is quicker.
    with dg.DagsterInstance.ephemeral() as instance:
        result = definitions.resolve_job_def("checks").execute_in_process(
            instance=instance, run_config=QUIET
        )
        return {
            (evaluation.asset_key.to_user_string(), evaluation.check_name): evaluation
            for evaluation in result.get_asset_check_evaluations()
        }


def red(found: Mapping[tuple[str, str], Result]) -> set[tuple[str, str]]:
    return {key for key, each in found.items() if not each.passed}


def test_every_check_is_green_on_what_was_published(published: Platform) -> None:
    assert red(results(published.settings)) == set()


def test_a_run_of_checks_shows_what_they_find(published: Platform) -> None:
    published.change(
        "DELETE FROM lake.raw_orders WHERE order_id = 'O1'",
        f"UPDATE lake.completed_orders SET product_category = '{UNKNOWN}'",
    )
    found = results(published.settings)
    shown = evaluate(published)
    assert shown.keys() == ALL
    assert (
        red(found)
        == red(shown)
        == {
            ("raw_orders", "rows_add_up"),
            ("completed_orders", "completed_reconcile_with_raw"),
            ("completed_orders", "references_are_known"),
            ("daily_revenue", "every_accepted_order_is_published"),
        }
    )
    assert {each.severity for key, each in found.items() if key in red(found)} == {
        dg.AssetCheckSeverity.ERROR,
        dg.AssetCheckSeverity.WARN,
    }
    assert {key: (each.passed, each.severity, each.metadata) for key, each in found.items()} == {
        key: (each.passed, each.severity, each.metadata)
        for key, each in shown.items()
        if key in found
    }


def test_checks_of_a_run_mind_its_days_alone(published: Platform) -> None:
    result = published.run(automation.BATCH, DAYS[1], DAYS[2], checks=True)
    assert result.success
    assert {
        found.check_name for found in result.get_asset_check_evaluations() if not found.passed
    } == set()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(
            "ALTER TABLE lake.daily_revenue ADD COLUMN surprise INTEGER",
            {("daily_revenue", "schema_matches")},
            id="a column that tables/ does not know",
        ),
        pytest.param(
            "INSERT INTO lake.products BY NAME FROM lake.products LIMIT 1",
            {("products", "key_is_unique")},
            id="a product twice",
        ),
        pytest.param(
            "ALTER TABLE lake.customers ALTER COLUMN customer_segment DROP NOT NULL;"
            " UPDATE lake.customers SET customer_segment = NULL WHERE customer_id = 'C1'",
            {("customers", "required_values_are_there")},
            id="a customer without segment",
        ),
        pytest.param(
            "DELETE FROM lake.raw_orders WHERE order_id = 'O1'",
            {
                ("raw_orders", "rows_add_up"),
                ("completed_orders", "completed_reconcile_with_raw"),
                ("daily_revenue", "every_accepted_order_is_published"),
            },
            id="a raw order lost",
        ),
        pytest.param(
            "DELETE FROM lake.completed_orders WHERE order_id = 'O1'",
            {
                ("completed_orders", "completed_reconcile_with_raw"),
                ("daily_revenue", "revenue_reconciles_with_orders"),
                ("daily_revenue_by_category", "revenue_reconciles_with_orders"),
            },
            id="a completed order lost",
        ),
        pytest.param(
            "UPDATE lake.daily_revenue SET total_revenue = total_revenue + 0.01"
            " WHERE order_date = DATE '2026-10-13'",
            {
                ("daily_revenue", "revenue_reconciles_with_orders"),
                ("daily_revenue", "every_accepted_order_is_published"),
            },
            id="a penny too much",
        ),
    ],
)
def test_a_planted_fault_turns_its_check_red_and_no_other(
    four_days: Settings, fault: str, expected: set[tuple[str, str]]
) -> None:
    found = results_with_fault(four_days, fault)
    assert red(found) == expected
    assert {found[key].severity for key in expected} == {dg.AssetCheckSeverity.ERROR}


def test_an_unusual_number_of_orders_is_a_warning_that_names_the_day(
    published: Platform, write_export: WriteExport
) -> None:
    day = FIRST + timedelta(weeks=1)
    write_export(day, [order_row(f"N{n}", day) for n in range(3)])
    assert published.run(automation.BATCH, day).success
    evaluation = result_of_a_day(published, day, tables.RAW_ORDERS, checks.volume_is_usual)
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert evaluation.metadata["unusual_days"].value == {str(day): "3 orders, usually about 1"}


def test_an_unknown_product_is_a_warning_that_counts(
    published: Platform, write_export: WriteExport
) -> None:
    write_export(FIRST, [order_row("O0", FIRST, product_id="P999", customer_id="C999")])
    assert published.run(automation.BATCH, FIRST).success
    evaluation = result_of_a_day(
        published, FIRST, tables.COMPLETED_ORDERS, checks.references_are_known
    )
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    found = {name: value.value for name, value in evaluation.metadata.items()}
    assert found == {"lines": 1, "unknown_product": 1, "unknown_customer": 1}


def test_mass_rejection_and_orders_that_wait_are_warnings_that_say_what_to_do(
    published: Platform, write_export: WriteExport
) -> None:
    before = published.settings.start_date - timedelta(days=1)
    day = before + timedelta(days=2)
    rows = [order_row(f"N{n}", day, status="lost") for n in range(2)]
    huge = order_row("HUGE", day, order_value_gbp="100000000.00")
    more = [order_row(f"M{n}", day, order_value_gbp="999999.99") for n in range(2)]
    write_export(day, [*rows, order_row("E", before, order_value_gbp="7.25"), huge, *more])
    assert published.run(automation.BATCH, day).success

    rejected = result_of_a_day(published, day, tables.RAW_ORDERS, checks.few_rows_are_rejected)
    assert (rejected.passed, rejected.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert rejected.metadata["rejected"].value == [
        f"{day}: 2 of 6 rows (33%) were rejected, most of all 2 unknown_status"
    ]
    waiting = result_of_a_day(
        published, day, tables.DAILY_REVENUE, checks.every_accepted_order_is_published
    )
    assert (waiting.passed, waiting.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert waiting.metadata["orders_waiting"].value == 1
    assert waiting.metadata["value_waiting_gbp"].value == 7.25
    (text,) = waiting.metadata["what_to_do"].value
    assert f"set that to {before} or earlier" in str(text)
    assert revenue_by_day(published)[str(day)] == "101999999.98"


@pytest.mark.usefixtures("lake")
def test_a_bad_day_fails_alone_and_by_name_and_the_others_are_published(
    settings: Settings, write_export: WriteExport
) -> None:
    write_reference(settings)
    bad = DAYS[1]
    for n, day in enumerate(DAYS):
        write_export(day, [order_row(f"O{n}", day)])
    path = write_export(bad, "not,an,export\n1,2,3\n")
    others = {str(day) for day in DAYS} - {str(bad)}
    with open_platform(settings) as platform:
        result = platform.run(automation.BATCH, DAYS[0], DAYS[-1], checks=True)

        assert not result.success
        problems = [
            event.step_failure_data.user_failure_data.description or ""
            for event in result.all_events
            if event.is_step_failure and event.step_failure_data.user_failure_data
        ]
        of_days = [table for table in checks.CHECKED if table.group == "batch"]
        assert len(problems) == len(of_days), "one for each table of days"
        assert all(f"1 day failed.\n{bad}: {path} lacks the columns" in text for text in problems)
        assert revenue_by_day(platform).keys() == others
        for table in (tables.RAW_ORDERS, tables.REJECTED_ORDERS, *automation.RESTATED):
            assert platform.materialized(table.name) == others, table.name

        write_export(bad, [order_row("O1", bad)])
        before = ingested_at(platform)
        result = platform.run(automation.BATCH, DAYS[0], DAYS[-1], checks=True)
        assert result.success
        after = ingested_at(platform)
        assert after.keys() - before.keys() == {str(bad)}
        assert {day: after[day] for day in before} == before, "what was there is left alone"
        assert revenue_by_day(platform) == {str(day): "10.00" for day in DAYS}
        assert platform.materialized("daily_revenue") == {str(day) for day in DAYS}


def ingested_at(platform: Platform) -> dict[str, str]:
    """When each export was ingested."""
    return {
        str(day): str(when)
        for day, when in platform.query("SELECT export_date, ingested_at FROM export_files")
    }


@pytest.mark.usefixtures("lake")
def test_metadata_of_each_day_are_its_own(settings: Settings, write_export: WriteExport) -> None:
    write_reference(settings)
    write_export(DAYS[0], [order_row("A", DAYS[0]), order_row("B", DAYS[0], region="South")])
    write_export(DAYS[1], [order_row("C", DAYS[1], order_value_gbp="7.25")])
    with open_platform(settings) as platform:
        assert platform.run(automation.REFERENCE).success
        assert platform.run(automation.BATCH, DAYS[0], DAYS[1]).success
        found = {
            record.partition_key: record.asset_materialization
            for record in platform.instance.fetch_materializations(
                dg.AssetKey("daily_revenue"), limit=10
            ).records
        }
        figures = {
            day: (
                event.metadata["dagster/partition_row_count"].value,
                event.metadata["total_revenue"].value,
                event.metadata["order_count"].value,
            )
            for day, event in found.items()
            if event is not None
        }
        assert figures == {str(DAYS[0]): (2, 20.0, 2), str(DAYS[1]): (1, 7.25, 1)}
        newest = found[str(DAYS[1])]
        assert newest is not None
        chart = str(newest.metadata["recent_revenue"].value)
        # What the Dagster UI shows on the asset's page at once.
        assert len(chart) < SHORT_MARKDOWN
        image = unquote(chart.removeprefix("![Revenue, GBP](<data:image/svg+xml,"))
        assert f">{DAYS[0]} to {DAYS[1]}</text>" in image
        assert ">Revenue, GBP: at most 20 a day</text>" in image
        chart = str(newest.metadata["recent_revenue_by_region"].value)
        image = chart.removeprefix("![Revenue, GBP](data:image/svg+xml;base64,").removesuffix(")")
        for text in (str(DAYS[0]), str(DAYS[1]), "20"):
            assert f">{text}</text>" in b64decode(image).decode()
        assert isinstance(newest.metadata["sample"], dg.TableMetadataValue)
        lineage = newest.metadata["dagster/column_lineage"].value
        assert isinstance(lineage, dg.TableColumnLineage)
        assert lineage.deps_by_column["total_revenue"] == [
            dg.TableColumnDep(dg.AssetKey("completed_orders"), "order_value_gbp")
        ]
