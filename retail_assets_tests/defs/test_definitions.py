"""The code location loads as Dagster loads it, and is described down to the last asset."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from retail_assets import tables
from retail_assets.definitions import build_definitions
from retail_assets.settings import Settings

ROOT = Path(__file__).parents[2]

SOURCES = {"exports_folder", "reference_folder", "events_folder", "event_streams"}
VIEWS = {"revenue_now", "revenue_by_category_now", "revenue_by_minute", "order_charges"}
PARENTS = {
    **{name: set() for name in SOURCES},
    "products": {"reference_folder"},
    "customers": {"reference_folder"},
    "currency_rates": {"reference_folder"},
    "raw_orders": {"currency_rates", "exports_folder"},
    "rejected_orders": {"currency_rates", "exports_folder"},
    "completed_orders": {"raw_orders", "products", "customers"},
    "daily_revenue": {"completed_orders"},
    "daily_revenue_by_category": {"completed_orders"},
    "raw_events": {"events_folder", "event_streams"},
    "enriched_events": {"raw_events", "products", "customers", "currency_rates"},
    "dead_letter_events": {"raw_events", "currency_rates"},
    "dead_letter_counts": {"dead_letter_events"},
    "live_orders": {"enriched_events"},
    "live_order_lines": {"enriched_events"},
    "live_revenue": {"live_orders", "live_order_lines"},
    "live_revenue_by_category": {"live_orders", "live_order_lines"},
    "live_revenue_minutes": {"live_orders", "live_order_lines"},
    "inventory_levels": {"live_orders", "live_order_lines", "products"},
    "stock_alerts": {"live_orders", "live_order_lines", "products"},
    "fraud_alerts": {"enriched_events"},
    "fraud_model": {"enriched_events"},
    "stream_worker": set(),
    "revenue_now": {"daily_revenue", "live_revenue"},
    "revenue_by_category_now": {"daily_revenue_by_category", "live_revenue_by_category"},
    "revenue_by_minute": {"live_revenue_minutes"},
    "order_charges": {"completed_orders", "raw_orders"},
}
REFERENCE = {"products", "customers", "currency_rates"}
FOLLOWING = {"daily_revenue", "daily_revenue_by_category"}
EVENTS = {"raw_events", "enriched_events", "dead_letter_events"}
FOLLOWING_EVENTS = {
    "dead_letter_counts",
    "live_orders",
    "live_order_lines",
    "live_revenue",
    "live_revenue_by_category",
    "live_revenue_minutes",
    "inventory_levels",
    "stock_alerts",
    "fraud_alerts",
}
MODEL = {"fraud_model"}
WORKER = {"stream_worker"}
OUTSIDE = WORKER | SOURCES | VIEWS
"""What no run makes."""

TABLES = {"fraud_model": tables.FRAUD_MODELS}
"""The table of an asset that is not named like it."""


@pytest.fixture
def definitions(settings: Settings) -> dg.Definitions:
    return build_definitions(settings)


@pytest.mark.processes
def test_they_load_in_a_fresh_interpreter_without_heavy_libraries(settings: Settings) -> None:
    heavy = {"pandas", "pyarrow", "dagster_webserver"}
    code = (
        "import sys; from retail_assets.definitions import defs; defs();"
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.processes
def test_dagster_finds_the_workspace_valid(settings: Settings, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr


def test_the_asset_graph(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    } == PARENTS


@pytest.mark.parametrize("name", sorted(PARENTS.keys() - OUTSIDE))
def test_every_asset_is_described(definitions: dg.Definitions, name: str) -> None:
    asset = definitions.resolve_asset_graph().get(dg.AssetKey(name))
    table = TABLES.get(name) or tables.BY_NAME[name]
    assert asset.description == table.description
    group = "reference" if name in REFERENCE else "batch"
    assert asset.group_name == ("events" if name in EVENTS | FOLLOWING_EVENTS | MODEL else group)
    assert asset.owners == ["team:analytics"]
    assert asset.kinds - {"scikitlearn"} == {"duckdb", "ducklake", "parquet"}
    assert asset.tags["domain"] == ("events" if asset.group_name == "events" else "orders")
    assert asset.code_version
    assert asset.metadata["dagster/table_name"] == f"lake.main.{table.name}"
    schema = asset.metadata["dagster/column_schema"]
    assert [(column.name, column.type, column.description) for column in schema.columns] == [
        (column.name, column.type, column.description) for column in table.columns
    ]
    assert {column.name: column.constraints.nullable for column in schema.columns} == {
        column.name: column.nullable for column in table.columns
    }


@pytest.mark.parametrize("name", sorted(SOURCES | VIEWS))
def test_what_no_run_makes_is_external_and_described(
    definitions: dg.Definitions, name: str
) -> None:
    asset = definitions.resolve_asset_graph().get(dg.AssetKey(name))
    assert asset.is_external
    assert asset.description
    assert asset.owners == ["team:analytics"]
    assert asset.kinds
    assert asset.group_name == ("sources" if name in SOURCES else "answers")


@pytest.mark.parametrize("name", sorted(PARENTS.keys() - OUTSIDE))
def test_assets_of_days_backfill_in_one_run_and_have_a_deadline(
    definitions: dg.Definitions, settings: Settings, name: str
) -> None:
    asset = definitions.resolve_asset_graph().get(dg.AssetKey(name))
    if name in REFERENCE | FOLLOWING_EVENTS:
        assert asset.partitions_def is None
        assert (asset.automation_condition is not None) == (name in FOLLOWING_EVENTS)
        return
    if name in EVENTS:
        assert asset.partitions_def == dg.DailyPartitionsDefinition(
            str(settings.start_date), timezone="Europe/London", end_offset=1
        )
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()
        return
    assert asset.partitions_def == dg.DailyPartitionsDefinition(
        str(settings.start_date), timezone="Europe/London"
    )
    assert asset.backfill_policy == dg.BackfillPolicy.single_run()
    assert asset.freshness_policy is not None
    assert (asset.automation_condition is not None) == (name in FOLLOWING | MODEL)


def test_every_asset_has_checks_and_every_check_a_description(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    general = {"schema_matches", "key_is_unique", "required_values_are_there"}
    special = {
        "raw_orders": {"rows_add_up", "volume_is_usual", "few_rows_are_rejected"},
        "completed_orders": {"completed_reconcile_with_raw", "references_are_known"},
        "daily_revenue": {
            "revenue_reconciles_with_orders",
            "every_accepted_order_is_published",
        },
        "daily_revenue_by_category": {"revenue_reconciles_with_orders"},
        "raw_events": {
            "lines_add_up",
            "streams_add_up",
            "files_are_readable",
            "changed_files_are_known",
        },
        "live_revenue": {"stream_agrees_with_batch"},
    }
    found: dict[str, set[str]] = {}
    for key in graph.asset_check_keys:
        found.setdefault(key.asset_key.to_user_string(), set()).add(key.name)
        assert graph.get(key).description
    expected = {
        name: general | special.get(name, set()) for name in PARENTS.keys() - MODEL - OUTSIDE
    }
    assert found == expected | {"fraud_model": {"newest_model_is_usable"}}


def test_the_jobs(definitions: dg.Definitions) -> None:
    restated = {"completed_orders", *FOLLOWING}
    found = {
        job.name: {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
        for job in definitions.get_repository_def().get_all_jobs()
        if not job.name.startswith("__")
    }
    assert found == {
        "batch": {"raw_orders", "rejected_orders"} | restated,
        "restate": restated,
        "reference": REFERENCE,
        "events": EVENTS,
        "event_checks": set(),
        **{name: set() for name in ("redrive", "rewind", "maintain", "verify")},
        "train": MODEL,
    }
    assert all(
        definitions.resolve_job_def(name).executor_def == dg.in_process_executor for name in found
    )


def test_schedule_and_sensors_are_on_and_say_what_they_do(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    assert {
        schedule.name: (schedule.job_name, schedule.cron_schedule)
        for schedule in repository.schedule_defs
    } == {"nightly": ("batch", "0 6 * * *"), "event_checks": ("event_checks", "0 7 * * *")}
    for schedule in repository.schedule_defs:
        assert schedule.execution_timezone == "Europe/London"
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
        assert schedule.description
    assert {
        sensor.name: [target.job_name for target in sensor.targets]
        for sensor in repository.sensor_defs
        if not isinstance(sensor, dg.AutomationConditionSensorDefinition)
    } == {
        "new_exports": ["batch"],
        "restated_days": ["restate"],
        "changed_reference": ["reference"],
        "new_event_files": ["events", "event_checks"],
        "published_days": [],
        "stream_worker": [],
        "notifications": [],
    }
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "new_exports",
        "restated_days",
        "changed_reference",
        "new_event_files",
        "published_days",
        "stream_worker",
        "notifications",
        "automation",
    }
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
        assert sensor.description
