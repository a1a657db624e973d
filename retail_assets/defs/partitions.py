"""Daily partitions in the business time zone, and the days of a run."""

from collections.abc import Mapping
from datetime import date

import dagster as dg

from retail_assets.settings import Settings

PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""The tags of a Dagster run that say which day, or which range of days, it is about."""


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """One partition a day from the first day to yesterday, in the business time zone."""
    return dg.DailyPartitionsDefinition(
        start_date=settings.start_date.isoformat(), timezone=settings.timezone
    )


def event_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """One partition a day from the first day to today: events are ingested as they land."""
    return dg.DailyPartitionsDefinition(
        start_date=settings.start_date.isoformat(), timezone=settings.timezone, end_offset=1
    )


def backfill_policy(settings: Settings) -> dg.BackfillPolicy:
    """How a backfill is divided into runs: by RETAIL_RUN_DAYS, or not at all."""
    if settings.run_days is None:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=settings.run_days)


def run_days(tags: Mapping[str, str]) -> tuple[date, date] | None:
    """The first and the last day that a run with these tags is about, if it is about days."""
    first = tags.get(RANGE_START) or tags.get(PARTITION)
    last = tags.get(RANGE_END) or tags.get(PARTITION)
    return (date.fromisoformat(first), date.fromisoformat(last)) if first and last else None
