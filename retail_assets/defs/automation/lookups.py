"""The sensor of lookups: where no worker does, it asks APIs about the events that came.

It asks within its tick, as that of notifications sends: a value that had no answer is due again
after seconds, and a run for each of these would be thousands a day.
"""

import threading
import time
from collections.abc import Sequence

import dagster as dg
import duckdb

from retail_assets import tables
from retail_assets.defs.assets.lookups import lookup_metadata
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.outbound.lookups.asking import Asking
from retail_assets.settings import Settings

LOOKUPS = "lookups"

INTERVAL_SECONDS = 30

TICK_SECONDS = 20
"""How long a tick asks: Dagster ends a tick after a minute."""


def sensors(settings: Settings) -> Sequence[dg.SensorDefinition]:
    """Ask what waits; none, where the mapping has no lookups."""
    if not settings.source_mapping.lookups:
        return ()
    asking = Asking(Lake.from_settings(settings), settings)
    lock = threading.Lock()

    @dg.sensor(
        name=LOOKUPS,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks APIs about new values of events, where no stream worker does, and shows"
        " what they answer.",
    )
    def lookups(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        # Dagster gives up a tick that takes too long, whose thread goes on.
        if not lock.acquire(blocking=False):
            return dg.SensorResult(skip_reason="An earlier tick is still asking.")
        try:
            return _tick(context, Lake.from_settings(settings), asking)
        finally:
            lock.release()

    return (lookups,)


def _tick(context: dg.SensorEvaluationContext, lake: Lake, asking: Asking) -> dg.SensorResult:
    if not lake.exists():
        return dg.SensorResult(skip_reason="There is no lake yet.")
    until = time.monotonic() + TICK_SECONDS
    with lake.connect() as connection:
        before = int(context.cursor) if context.cursor else current_snapshot(connection)
        asked = asking.ask(connection, stop=lambda: time.monotonic() > until)
        events = _answers(connection, before)
        now = current_snapshot(connection)
    said = "; ".join(f"{name}: {found.said.rstrip('.')}" for name, found in asked.items())
    return dg.SensorResult(skip_reason=f"{said}.", asset_events=events, cursor=str(now))


def _answers(connection: duckdb.DuckDBPyConnection, before: int) -> list[dg.AssetMaterialization]:
    """A materialization of what was answered since a tick, by whoever asked."""
    if before == current_snapshot(connection):
        return []
    kept, changed = history.changes_since(connection, before, tables.API_LOOKUPS)
    if not kept or not changed:
        return []
    metadata = lookup_metadata(connection, before)
    return [dg.AssetMaterialization(tables.API_LOOKUPS.name, metadata=metadata)]
