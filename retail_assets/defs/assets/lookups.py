"""The answers of APIs as an asset: without a worker, Dagster asks them.

A run enters what is new, and asks, from the same offset as the worker. So it finds nothing to ask
after the worker, and both can run at once.
"""

import time
from contextlib import closing
from typing import Any

import dagster as dg
import duckdb

from retail_assets import tables
from retail_assets.defs.assets.daily import RETRIES, table_spec
from retail_assets.defs.resource import LakeResource
from retail_assets.lake.connection import current_snapshot
from retail_assets.outbound.lookups.asking import Asking
from retail_assets.outbound.lookups.follow import waiting_of
from retail_assets.settings import Settings

RUN_SECONDS = 300
"""How long a run asks at most; the sensor `lookups` asks about the rest."""


def lookup_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """`api_lookups`, if the mapping has lookups."""
    if not settings.source_mapping.lookups:
        return []

    spec = dg.AssetSpec(
        **table_spec(tables.API_LOOKUPS, code_version="1"), deps=[tables.ENRICHED_EVENTS.name]
    )

    @dg.multi_asset(name=tables.API_LOOKUPS.name, specs=[spec], retry_policy=RETRIES)
    def api_lookups(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult[Any]:
        until = time.monotonic() + RUN_SECONDS
        asking = Asking(lake.lake, settings)
        with lake.get_connection() as connection, closing(asking):
            before = current_snapshot(connection)
            asked = asking.ask(connection, stop=lambda: time.monotonic() > until)
            for name, found in asked.items():
                context.log.info("%s: %s", name, found.said)
            failed = [found.said for found in asked.values() if found.failed]
            if failed:
                raise dg.Failure(" ".join(failed), allow_retries=False)
            return dg.MaterializeResult(metadata=lookup_metadata(connection, before))

    return [api_lookups]


def lookup_metadata(connection: duckdb.DuckDBPyConnection, before: int) -> dict[str, Any]:
    """By lookup, what was answered after a snapshot, and what waits, with the newest problem.

    Args:
        connection: a connection to the lake, in no transaction.
        before: a snapshot that is kept, as is the next one.
    """
    found: dict[str, Any] = {"answers": 0}
    now = current_snapshot(connection)
    if now > before:
        rows = connection.execute(
            "SELECT lookup, state, count(*) FROM"
            f" lake.table_insertions('api_lookups', {before + 1}, {now}) GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        found["answers"] = sum(count for _, _, count in rows)
        found |= {f"{name}_{state}": count for name, state, count in rows}
    for name, (waiting, failing, problem) in waiting_of(connection).items():
        found |= {f"{name}_waiting": waiting, f"{name}_failing": failing}
        if problem:
            found[f"{name}_problem"] = problem
    return found
