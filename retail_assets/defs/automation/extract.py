"""The nightly extraction, where the mapping declares a database; the sensors ingest its files."""

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from retail_assets import business_days
from retail_assets.defs import partitions
from retail_assets.defs.assets.extract import ORDER_EXPORT_FILES
from retail_assets.settings import Settings

EXTRACT = "extract"


def jobs(settings: Settings) -> Sequence[UnresolvedAssetJobDefinition]:
    """The job that extracts days; none, where no database is declared."""
    if settings.source_mapping.database is None:
        return ()
    return (
        dg.define_asset_job(
            EXTRACT,
            selection=dg.AssetSelection.assets(ORDER_EXPORT_FILES),
            description="The shop's database to order exports and reference files, for a day or a"
            " range of days.",
        ),
    )


def schedules(settings: Settings) -> Sequence[dg.ScheduleDefinition]:
    """Extract the last days each night, well after midnight: some orders are committed late."""
    declared = settings.source_mapping.database
    if declared is None:
        return ()
    hour, minute = map(int, declared.nightly.split(":"))

    @dg.schedule(
        name="nightly_extract",
        job_name=EXTRACT,
        cron_schedule=f"{minute} {hour} * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Extracts the last {declared.nightly_days} days from the shop's database; the"
        " sensor `new_exports` runs the days whose files have changed.",
    )
    def nightly_extract() -> dg.RunRequest | dg.SkipReason:
        last = business_days.last_complete_day(settings)
        first = max(last - timedelta(days=declared.nightly_days - 1), settings.start_date)
        if first > last:
            return dg.SkipReason(f"{last} lies before the first partition {settings.start_date}.")
        return dg.RunRequest(
            run_key=f"{EXTRACT}:{last}",
            tags={
                partitions.RANGE_START: first.isoformat(),
                partitions.RANGE_END: last.isoformat(),
            },
        )

    return (nightly_extract,)
