"""The batch pipeline in one process, without Dagster: what a run's steps do, in their order."""

from collections.abc import Sequence
from datetime import date
from functools import partial
from inspect import signature
from typing import Any

import duckdb
import narwhals as nw

from retail_assets import business_days, tables
from retail_assets.defs.assets.daily import DailyAsset
from retail_assets.defs.assets.orders import DAILY_ASSETS
from retail_assets.ingest.exports import load as order_exports
from retail_assets.ingest.exports import reference
from retail_assets.ingest.exports.stale_days import stale_days
from retail_assets.lake.connection import CATALOG, Lake
from retail_assets.lake.publish import publish_days, publish_table
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.settings import Settings

VOLATILE = (
    *("ingested_at", "published_at", "changed_at", "failed_at", "processed_at", "first_seen_at"),
    *("updated_at", "attempts"),
)
"""When something was done. All else is equal after a run that was disturbed: versions too, since
a change and its version are committed together."""

_COMPARED = {
    "problem": r"regexp_replace(problem, '/\S*/', '', 'g')",  # the folders of files
    "superseded_at": "superseded_at IS NOT NULL",
    "retracted_at": "retracted_at IS NOT NULL",
}


def run_batch(settings: Settings, days: Sequence[date]) -> None:
    """Ingest the reference data and the exports of some days, and recompute what is behind."""
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        for table in (tables.PRODUCTS, tables.CUSTOMERS):
            rows = reference.read_reference(settings.reference_dir, table)
            mark = partial(reference.restate, table, lake)
            publish_table(lake, connection, table, rows, before_swap=mark)
        order_exports.ingest(
            lake, connection, settings.exports_location, days, late_days=settings.late_days
        )
        stretches = list(business_days.ranges(stale_days(settings)))
        for asset in DAILY_ASSETS:
            for first, last in stretches:
                recompute(lake, connection, asset, first, last)


def recompute(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    asset: DailyAsset,
    first: date,
    last: date,
) -> None:
    """Publish the days of a range, as the I/O manager does."""
    read = SnapshotRead(connection)
    read.begin()
    inputs: dict[str, Any] = {}
    sources: list[tables.Table] = []
    for name in signature(asset.rule).parameters:
        table = tables.BY_NAME[name]
        frame = connection.table(f"lake.{name}")
        if table.day is not None:
            frame = frame.filter(f"{table.day} >= DATE '{first}'")
            if name not in asset.open_end:
                frame = frame.filter(f"{table.day} <= DATE '{last}'")
            sources.append(table)
        inputs[name] = nw.from_native(frame)
    audit = asset.audit
    publish_days(
        lake,
        connection,
        asset.table,
        asset.rule(**inputs),
        business_days.days_between(first, last),
        audit=(lambda staged: audit(staged, **inputs)) if audit else None,
        only_days=bool(asset.open_end),
        sources=sources,
        read=read,
    )


def _ever_written(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """The tables that have ever had a row; to ask the others takes half of the time."""
    rows = connection.execute(
        f"SELECT DISTINCT table_name FROM {CATALOG}.ducklake_table"
        f" JOIN {CATALOG}.ducklake_table_stats USING (table_id) WHERE next_row_id > 0"
    ).fetchall()
    return {name for (name,) in rows}


def contents(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table, in order, without what tells when or in which folder.

    At which snapshot a consumer is depends on how often others have committed.
    """
    found: dict[str, list[tuple[Any, ...]]] = {table.name: [] for table in tables.ALL}
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        connection.execute("BEGIN")
        ever_written = _ever_written(connection)
        for table in tables.ALL:
            if table.name not in ever_written:
                continue
            columns = [
                _COMPARED.get(name, name) for name in table.column_names if name not in VOLATILE
            ]
            where = " WHERE kind = 'source'" if table is tables.STREAM_OFFSETS else ""
            found[table.name] = connection.execute(
                f"SELECT {', '.join(columns)} FROM {table.name}{where} ORDER BY ALL"
            ).fetchall()
    return found
