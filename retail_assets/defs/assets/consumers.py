"""The consumers as assets: without a worker, Dagster runs them.

A run is a round of a consumer, from the same offset as in the worker. So it finds nothing to do
after the worker, and both can run at once.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import duckdb

from retail_assets import tables
from retail_assets.consumers.framework import Consumer, consume
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs.assets.charts import dead_letters_by_reason
from retail_assets.defs.assets.daily import RETRIES, table_spec
from retail_assets.defs.resource import LakeResource
from retail_assets.settings import Settings

FOLLOW_EVENTS = (
    dg.AutomationCondition.any_deps_updated().since(
        dg.AutomationCondition.newly_requested() | dg.AutomationCondition.newly_updated()
    )
    & ~dg.AutomationCondition.in_progress()
).with_label("follow_events")
"""Follow the events of any day; `eager` would wait for the many days without events."""


def consumer_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """An asset for each table of each consumer; those of one consumer materialize together."""
    return [_assets(consumer) for consumer in all_consumers(settings)]


def _assets(consumer: Consumer) -> dg.AssetsDefinition:
    sources = [dg.AssetKey(table.name) for table in consumer.sources]

    @dg.multi_asset(
        name=f"follow_{consumer.name}",
        specs=[
            dg.AssetSpec(
                **table_spec(table, code_version="1"),
                deps=sources,
                automation_condition=FOLLOW_EVENTS,
                skippable=True,
            )
            for table in consumer.tables
        ],
        can_subset=True,
        retry_policy=RETRIES,
    )
    def follow(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with lake.get_connection() as connection:
            failures = context.retry_number
            consumed = consume(lake.lake, connection, consumer, failures=failures)
            if consumed is None:
                context.log.info("Nothing has changed since the last round")
            elif consumed.failed:
                context.log.warning("Quarantined, tried again later: %s", dict(consumed.failed))
            for table in consumer.tables:
                if dg.AssetKey(table.name) not in context.selected_asset_keys:
                    continue
                done = {
                    "keys_recomputed": consumed.key_count if consumed else 0,
                    "rows_inserted": consumed.inserted.get(table.name, 0) if consumed else 0,
                    "rows_deleted": consumed.deleted.get(table.name, 0) if consumed else 0,
                }
                yield dg.MaterializeResult(
                    asset_key=table.name, metadata=done | _metadata(connection, table)
                )

    return follow


def _metadata(connection: duckdb.DuckDBPyConnection, table: tables.Table) -> dict[str, Any]:
    sums = "".join(f", coalesce(sum({name}), 0)" for name in table.measures)
    rows, *measures = connection.execute(
        f"SELECT count(*){sums} FROM lake.{table.name}"
    ).fetchone() or (0,)
    return {
        "dagster/row_count": rows,
        **{name: float(value) for name, value in zip(table.measures, measures, strict=True)},
        **(dead_letters_by_reason(connection) if table is tables.DEAD_LETTER_COUNTS else {}),
    }
