"""The marts as assets: revenue in a database or in files, for other tools."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from retail_assets import tables
from retail_assets.defs.assets.daily import OWNERS, RETRIES
from retail_assets.defs.resource import LakeResource
from retail_assets.outbound.marts.model import MART_TABLES, MartTarget, Published
from retail_assets.outbound.marts.publish import publish
from retail_assets.outbound.marts.targets import mart_targets
from retail_assets.settings import Settings

STREAM = dg.AssetSelection.assets(tables.LIVE_REVENUE.name)

FOLLOW_BATCH = (
    dg.AutomationCondition.any_deps_updated()
    .ignore(STREAM)
    .since(dg.AutomationCondition.newly_requested() | dg.AutomationCondition.newly_updated())
    & ~dg.AutomationCondition.in_progress()
).with_label("follow_batch")
"""Follow the days of the batch. Live revenue changes all day, and the sensor `marts` follows it: a
run for each of its changes would be thousands a day."""

SHOWN_DAYS = 20


class MartConfig(dg.Config):
    """How a run publishes."""

    everything: bool = Field(
        default=False,
        description="Compare all days, repair what somebody changed, and take over tables and"
        " files that have no watermark.",
    )


def mart_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """An asset for each place that the settings name."""
    return [_asset(target) for target in mart_targets(settings)]


def _asset(target: MartTarget) -> dg.AssetsDefinition:
    names = ", ".join(table.name for table in MART_TABLES)

    @dg.asset(
        name=target.name,
        description=f"{names}, published to {target.shown} for other tools: the days that changed,"
        " with a watermark that says which snapshot of the lake they have.",
        group_name="marts",
        owners=OWNERS,
        kinds={"python", target.kind},
        code_version="1",
        deps=[
            tables.DAILY_REVENUE.name,
            tables.DAILY_REVENUE_BY_CATEGORY.name,
            tables.LIVE_REVENUE.name,
        ],
        automation_condition=FOLLOW_BATCH,
        retry_policy=RETRIES,
    )
    def mart(
        context: dg.AssetExecutionContext, config: MartConfig, lake: LakeResource
    ) -> dg.MaterializeResult[Any]:
        published = publish(lake.lake, target, everything=config.everything)
        if published.problem:
            context.log.warning(published.problem)
        return dg.MaterializeResult(metadata=mart_metadata(published))

    return mart


def mart_metadata(published: Published) -> dict[str, Any]:
    """What a round did, for Dagster."""
    found: dict[str, Any] = {
        "to_snapshot": published.snapshot,
        "days": published.days,
        "rows": published.rows,
        "seconds": round(published.seconds, 3),
        **({"problem": published.problem} if published.problem else {}),
    }
    for name, table in published.tables.items():
        found |= {f"{name}_days": len(table.days), f"{name}_rows": table.rows}
        if table.from_snapshot is not None:
            found[f"{name}_from_snapshot"] = table.from_snapshot
        if table.days:
            found[f"{name}_newest_days"] = _shown(table.days)
        if table.reason:
            found[f"{name}_all_days_compared_because"] = table.reason
    return found


def _shown(days: Sequence[Any]) -> str:
    return ", ".join(map(str, days[-SHOWN_DAYS:]))
