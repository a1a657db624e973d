"""Days that are published but that no run of this Dagster instance has materialized.

A command without DAGSTER_HOME, or another instance, published them: the ledger says so, and Dagster
would show them as missing. They are reported a few at a time, those before what follows from them,
so that no automation takes a table for older than the one that it is made from.
"""

from datetime import datetime, timedelta, timezone

import dagster as dg
import duckdb

from retail_assets import tables
from retail_assets.defs.automation.batch import busy_days
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings

SENSOR = "published_days"

TABLES = (
    tables.RAW_ORDERS,
    tables.REJECTED_ORDERS,
    tables.COMPLETED_ORDERS,
    tables.DAILY_REVENUE,
    tables.DAILY_REVENUE_BY_CATEGORY,
)
"""The tables of the batch, each after those that it is made from."""

TICK_SECONDS = 15

MOST_DAYS = 40
"""How many days are reported by a tick: each is an event for each table."""


def sensor(settings: Settings) -> dg.SensorDefinition:
    """Report the published days that Dagster would show as missing."""

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows days as materialized that commands or other instances have published.",
    )
    def published_days(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        if busy_days(context.instance):
            return dg.SensorResult(
                skip_reason="A run of the batch is going on, and reports its days itself.",
                cursor=context.cursor,
            )
        try:
            with Lake.from_settings(settings).connect(read_only=True) as connection:
                return _report(context, connection, settings)
        except NoLakeError:
            return dg.SensorResult(skip_reason="There is no lake yet.", cursor=context.cursor)

    return published_days


def _report(
    context: dg.SensorEvaluationContext,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
) -> dg.SensorResult:
    """Report what was published since the cursor: the newest time up to which all days are."""
    since = context.cursor or ""
    (newest,) = connection.execute(
        "SELECT max(published_at) FROM lake.published_days"
    ).fetchone() or (None,)
    if newest is None or str(_us(newest)) == since:
        return dg.SensorResult(skip_reason="Nothing was published since.", cursor=since)
    missing = _missing(context.instance, connection, settings, int(since or 0))
    days = sorted(missing)
    events = [event for day in days[:MOST_DAYS] for event in missing[day]]
    left = len(days) - MOST_DAYS
    return dg.SensorResult(
        asset_events=events,
        skip_reason=f"{len(days[:MOST_DAYS])} days are reported"
        f"{f', {left} more by the next ticks' if left > 0 else ''}.",
        cursor=since if left > 0 else str(_us(newest)),
    )


def _missing(
    instance: dg.DagsterInstance,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    since_us: int,
) -> dict[str, list[dg.AssetMaterialization]]:
    """By day, the materializations that Dagster lacks, in the order of `TABLES`."""
    rows = connection.execute(
        "SELECT table_name, day::VARCHAR, row_count, published_at FROM lake.published_days"
        " WHERE day >= $start AND published_at > make_timestamptz($since::BIGINT)",
        {"start": settings.start_date, "since": since_us},
    ).fetchall()
    found: dict[str, list[dg.AssetMaterialization]] = {}
    for table in TABLES:
        key = dg.AssetKey(table.name)
        known = instance.get_materialized_partitions(key)
        for name, day, count, published_at in rows:
            if name == table.name and day not in known:
                found.setdefault(day, []).append(
                    dg.AssetMaterialization(
                        key,
                        partition=day,
                        description="Published by a command or another instance of Dagster.",
                        metadata={
                            "dagster/partition_row_count": count,
                            "published_at": dg.MetadataValue.timestamp(published_at),
                        },
                    )
                )
    return found


def _us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
