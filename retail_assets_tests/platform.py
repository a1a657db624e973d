"""The platform on a data folder of a test: its definitions and a real Dagster instance."""

import atexit
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from retail_assets.cli import backfill
from retail_assets.definitions import build_definitions
from retail_assets.defs import partitions
from retail_assets.defs.automation import batch as automation
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import copy_data, made_once, order_row, write_export_to

DAGSTER_CALLS_ITSELF = pytest.mark.filterwarnings(
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)
"""Dagster 1.13 sets up resources within resources by a property that it has deprecated."""

PRODUCTS = (
    "product_id,product_name,product_category,unit_price_gbp,stock_on_hand\n"
    "P1,Kettle,Kitchen,20.00,5\n"
    "P2,Lamp,Lighting,30.00,7\n"
)
CUSTOMERS = (
    "customer_id,customer_segment,home_region,joined_on\n"
    "C1,loyal,North,2020-01-01\n"
    "C2,new,South,2026-09-30\n"
)


QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

INSTANCE = Path(__file__).parent.parent / "deploy" / "dagster" / "dagster.yaml"

NO_OUTPUT = """
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""
"""What a step prints is not kept: that would take two processes for each step."""

FIRST = date(2026, 10, 12)
"""The first day of what `published_platform` has published."""

DAYS = [FIRST + timedelta(days=n) for n in range(4)]
"""Its days: on each one order of ten pounds, O0 to O3."""


@contextmanager
def open_platform(settings: Settings) -> Iterator["Platform"]:
    """The platform on the test's data folder, with a Dagster instance as the project has it."""
    home = settings.data_dir / "dagster"
    new_home(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        with dg.DagsterInstance.get() as instance:
            yield Platform(settings, instance)


def new_home(home: Path) -> None:
    """Make a DAGSTER_HOME as the project has it, if there is none; a copy, with its databases."""
    if not home.exists():
        shutil.copytree(_home(), home)


@cache
def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="dagster-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "dagster.yaml").write_text(INSTANCE.read_text() + NO_OUTPUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        with dg.DagsterInstance.get() as instance:
            instance.get_runs()
    return home


@contextmanager
def published_platform(settings: Settings, folders: pytest.TempPathFactory) -> Iterator["Platform"]:
    """The same, with four days published; a copy, because publishing takes seconds."""
    copy_data(made_once(folders, "published", _publish_days), settings)
    with open_platform(settings) as platform:
        yield platform


def _publish_days(folder: Path) -> None:
    settings = Settings(data_dir=folder)
    write_reference(settings)
    for n, day in enumerate(DAYS):
        write_export_to(settings.exports_dir, day, [order_row(f"O{n}", day)])
    with open_platform(settings) as platform:
        assert platform.run(automation.REFERENCE).success
        assert platform.run(automation.BATCH, DAYS[0], DAYS[-1], checks=True).success


def write_reference(
    settings: Settings, products: str = PRODUCTS, customers: str = CUSTOMERS
) -> None:
    """Write both reference files."""
    settings.reference_dir.mkdir(parents=True, exist_ok=True)
    (settings.reference_dir / "products.csv").write_text(products)
    (settings.reference_dir / "customers.csv").write_text(customers)


class Platform:
    """Runs jobs, sensors and schedules of the definitions as Dagster's processes would."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        # Tables this small take longer with more threads.
        self.settings = settings = settings.model_copy(update={"threads": 1})
        self.instance = instance
        self.definitions = build_definitions(settings)
        self.repository = self.definitions.get_repository_def()
        self.cursors: dict[str, str | None] = {}

    def run(
        self,
        job: str,
        first: date | None = None,
        last: date | None = None,
        *,
        checks: bool = False,
        **options: Any,
    ) -> dg.ExecuteInProcessResult:
        """Run a job, over a range of days if one is given; without its checks unless asked."""
        definition = self.definitions.resolve_job_def(job)
        if not checks:
            definition = without_checks(definition, options.pop("asset_selection", None))
        tags = {}
        if first is not None:
            tags = {
                partitions.RANGE_START: str(first),
                partitions.RANGE_END: str(last or first),
            }
        return definition.execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=False, run_config=QUIET, **options
        )

    def tick(self, sensor: str) -> dg.SensorResult:
        """Evaluate a sensor with the cursor of its last tick."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(sensor),
            repository_def=self.repository,
            sensor_name=sensor,
        )
        result = self.definitions.resolve_sensor_def(sensor)(context)
        assert isinstance(result, dg.SensorResult)
        for found in result.asset_events:
            self.instance.report_runless_asset_event(found)
        self.cursors[sensor] = result.cursor
        return result

    def requested(self, sensor: str) -> list[tuple[str, str]]:
        """The ranges of days that a tick of a sensor starts runs for."""
        return [
            (str(days[0]), str(days[1]))
            for request in self.tick(sensor).run_requests or []
            if (days := request_days(request)) is not None
        ]

    def start(self, job: str, sensor: str) -> list[dg.ExecuteInProcessResult]:
        """Carry out what a tick of a sensor requests."""
        results = []
        for request in self.tick(sensor).run_requests or []:
            days = request_days(request)
            options: dict[str, Any] = {}
            if request.asset_selection:
                options["asset_selection"] = list(request.asset_selection)
            results.append(self.run(job, *(days or ()), **options))
        return results

    def query(self, sql: str, at: int | None = None) -> list[tuple[Any, ...]]:
        """Ask the lake."""
        with Lake.from_settings(self.settings).connect(read_only=True, at=at) as connection:
            return connection.execute(sql).fetchall()

    def change(self, *statements: str) -> None:
        """Change the lake behind the platform's back."""
        lake = Lake.from_settings(self.settings)
        with lake.connect() as connection, lake.transaction(connection, "a test's fault"):
            for statement in statements:
                connection.execute(statement)

    def materialized(self, asset: str) -> set[str]:
        """The partitions of an asset that Dagster shows as materialized."""
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))


def without_checks(
    job: dg.JobDefinition, assets: Collection[dg.AssetKey] | None = None
) -> dg.JobDefinition:
    """A job with the assets that are named, or all of its own, and none of their checks.

    Dagster adds the checks of the assets that are selected unless it is given an empty selection;
    they take more than half of a small run.
    """
    selected = job.asset_layer.executable_asset_keys if assets is None else assets
    return job.get_subset(asset_selection=set(selected), asset_check_selection=set())


def leave_out_checks(patch: pytest.MonkeyPatch) -> None:
    """Have `retail-assets backfill` run its jobs without checks, as `Platform.run` does."""

    def build(settings: Settings) -> dg.Definitions:
        whole = build_definitions(settings)
        return dg.Definitions(
            assets=whole.assets,
            jobs=whole.jobs,
            resources=whole.resources,
            executor=whole.executor,
        )

    patch.setattr(backfill, "build_definitions", build)


def request_days(request: dg.RunRequest) -> tuple[date, date] | None:
    """The first and the last day of a run request, if it is about days."""
    tags = dict(request.tags)
    if request.partition_key is not None:
        tags[partitions.PARTITION] = request.partition_key
    return partitions.run_days(tags)


def revenue_by_day(platform: Platform) -> dict[str, str]:
    """The published revenue of each day."""
    return {
        str(day): str(total)
        for day, total in platform.query(
            "SELECT order_date, sum(total_revenue) FROM daily_revenue GROUP BY 1 ORDER BY 1"
        )
    }
