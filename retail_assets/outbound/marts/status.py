"""How far the marts are behind the lake, for `status`."""

from typing import Any

import duckdb

from retail_assets.lake import history
from retail_assets.lake.connection import current_snapshot
from retail_assets.outbound.marts import failures
from retail_assets.outbound.marts.model import MART_TABLES, SOURCES, MartError, MartTarget
from retail_assets.outbound.marts.publish import changed_days, is_behind
from retail_assets.outbound.marts.targets import mart_targets
from retail_assets.settings import Settings

NEVER = "never published: run `retail-assets publish-marts`"


def mart_status(settings: Settings, connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Where each mart is, how many commits and days it is behind, and its last problem.

    Args:
        settings: which marts there are; none give no entry.
        connection: a connection to the lake, which may be read-only.
    """
    problems = failures.problems(connection)
    found: dict[str, Any] = {}
    for target in mart_targets(settings):
        found[target.name] = target.shown
        try:
            found |= _behind(connection, target)
        except MartError as error:
            problems[target.name] = str(error)
        if target.name in problems:
            found[f"{target.name}'s problem"] = problems[target.name]
    return found


def _behind(connection: duckdb.DuckDBPyConnection, target: MartTarget) -> dict[str, Any]:
    watermarks = target.watermarks()
    found = [watermarks[table.name] for table in MART_TABLES if table.name in watermarks]
    if len(found) < len(MART_TABLES):
        return {f"{target.name} behind, commits": NEVER}
    oldest = min(found, key=lambda watermark: watermark.snapshot_id)
    if not is_behind(connection, oldest.lake_id, oldest.snapshot_id, oldest.snapshot_us):
        return {f"{target.name} behind, commits": 0, f"{target.name} behind, days": 0}
    kept, _ = history.changes_since(connection, oldest.snapshot_id, *SOURCES)
    known = (
        kept
        and oldest.lake_id == history.lake_id(connection)
        and oldest.snapshot_us == history.committed_us(connection, oldest.snapshot_id)
    )
    if not known:
        return {f"{target.name} behind, commits": "unknown: all days are compared next"}
    commits, _ = history.lag(connection, oldest.snapshot_id, *SOURCES)
    upto = current_snapshot(connection)
    days = set().union(*changed_days(connection, oldest.snapshot_id, upto, SOURCES).values())
    return {f"{target.name} behind, commits": commits, f"{target.name} behind, days": len(days)}
