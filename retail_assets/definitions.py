"""The code location: every asset, check, job, schedule and sensor, for one set of settings."""

import warnings

import dagster as dg

from retail_assets.defs import asset_checks as checks
from retail_assets.defs import partitions
from retail_assets.defs.assets import (
    consumers,
    events,
    extract,
    fraud,
    lookups,
    marts,
    orders,
    outside,
)
from retail_assets.defs.automation import batch as automation
from retail_assets.defs.automation import events as event_automation
from retail_assets.defs.automation import extract as extract_automation
from retail_assets.defs.automation import lookups as lookup_automation
from retail_assets.defs.automation import marts as mart_automation
from retail_assets.defs.automation import published
from retail_assets.defs.automation import worker as stream_automation
from retail_assets.defs.automation.notifications import notification_sensor
from retail_assets.defs.automation.upkeep import upkeep_jobs
from retail_assets.defs.io_manager import LakeIOManager
from retail_assets.defs.resource import LakeResource
from retail_assets.ingest.event_files.watch import FolderWatch
from retail_assets.settings import Settings, load_settings


def build_definitions(settings: Settings) -> dg.Definitions:
    """Assemble the platform for a data folder; tests and production run the same graph.

    Args:
        settings: the settings, as `load_settings()` reads them.

    Returns:
        All assets, checks, jobs, schedules, sensors and resources; `dagster.Definitions.merge` adds
        others to them.
    """
    with warnings.catch_warnings():
        # Backfill policies are beta, and each asset that has one would say so in every process.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _assemble(settings)


def _assemble(settings: Settings) -> dg.Definitions:
    days = partitions.daily_partitions(settings)
    policy = partitions.backfill_policy(settings)
    lake = LakeResource.from_settings(settings)
    event_jobs = (event_automation.job(), stream_automation.job(settings))
    return dg.Definitions(
        assets=[
            *outside.sources(settings),
            *outside.views(),
            *extract.extract_assets(settings, days),
            *orders.reference_assets(settings),
            orders.order_exports_assets(settings, days),
            *(asset.build(days, settings.timezone, policy) for asset in orders.DAILY_ASSETS),
            events.event_assets(settings, partitions.event_partitions(settings)),
            *consumers.consumer_assets(settings),
            fraud.fraud_model_asset(settings, days),
            stream_automation.SPEC,
            *lookups.lookup_assets(settings),
            *marts.mart_assets(settings),
        ],
        asset_checks=[
            *(checks.table_checks(table, settings) for table in checks.CHECKED),
            fraud.newest_model_is_usable,
        ],
        jobs=[
            *extract_automation.jobs(settings),
            *automation.jobs(),
            *event_jobs,
            *mart_automation.jobs(settings),
            *upkeep_jobs(settings),
        ],
        schedules=[
            *extract_automation.schedules(settings),
            *automation.schedules(settings),
            stream_automation.schedule(settings),
            *mart_automation.schedules(settings),
        ],
        sensors=[
            *automation.sensors(settings),
            event_automation.sensor(settings, event_jobs, FolderWatch(settings)),
            published.sensor(settings),
            stream_automation.sensor(settings),
            notification_sensor(settings),
            *lookup_automation.sensors(settings),
            *mart_automation.sensors(settings),
            _conditions(),
        ],
        resources={
            "lake": lake,
            "lake_io": LakeIOManager(lake=lake),
            "source_folders": orders.SourceFolders(
                exports=settings.exports_location,
                reference_dir=str(settings.reference_dir),
                mapping=str(settings.mapping) if settings.mapping else None,
                late_days=settings.late_days,
                max_order_gbp=settings.max_order_gbp,
                reference_max_shrink=settings.reference_max_shrink,
            ),
        },
        # A step in a process of its own costs seconds; the work of a day, milliseconds.
        executor=dg.in_process_executor,
    )


def _conditions() -> dg.SensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        description="Materializes revenue after completed orders that were materialized"
        " alone, runs the consumers after events, and trains the fraud model each night.",
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The platform for the settings in the environment, as `dagster` loads it."""
    return build_definitions(load_settings())
