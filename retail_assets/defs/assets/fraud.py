"""The fraud model, trained for each day, with its metrics as metadata."""

from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from retail_assets import tables
from retail_assets.consumers.fraud import consumer as fraud
from retail_assets.consumers.fraud import training as fraud_training
from retail_assets.defs.assets.daily import KINDS, RETRIES, freshness, table_spec
from retail_assets.defs.resource import LakeResource
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

FRAUD_MODEL = "fraud_model"

TRAINED_AT = "0 5 * * *"


def train_nightly(timezone: str) -> dg.AutomationCondition[Any]:
    """Train the model of yesterday at five.

    Unlike `on_cron` it does not wait for events of yesterday: there may be none.
    """
    tick: dg.AutomationCondition[Any] = dg.AutomationCondition.cron_tick_passed(
        TRAINED_AT, timezone
    )
    newest: dg.AutomationCondition[Any] = dg.AutomationCondition.in_latest_time_window()
    return (newest & tick.since_last_handled() & ~dg.AutomationCondition.in_progress()).with_label(
        "train_nightly"
    )


def fraud_model_asset(
    settings: Settings, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """`fraud_model`: the model of each day, trained on the events received up to it."""
    spec = table_spec(tables.FRAUD_MODELS, code_version="1")
    make: Callable[[Callable[..., None]], dg.AssetsDefinition] = dg.asset(
        **{**spec, "key": dg.AssetKey(FRAUD_MODEL), "kinds": {*KINDS, "scikitlearn"}},
        deps=[tables.ENRICHED_EVENTS.name],
        partitions_def=partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
        automation_condition=train_nightly(settings.timezone),
        freshness_policy=freshness(settings.timezone),
        retry_policy=RETRIES,
    )

    def fraud_model(context: dg.AssetExecutionContext, lake: LakeResource) -> None:
        with lake.get_connection() as connection:
            for key in context.partition_keys:
                day = date.fromisoformat(key)
                training = fraud_training.train_day(lake.lake, connection, settings, day)
                context.add_asset_metadata(_metadata(training), partition_key=key)
                if training.problem:
                    context.log.warning(training.problem)
                if training.rebuilt:
                    context.log.info("The worker will compute all fraud alerts again")

    return make(fraud_model)


def _metadata(training: fraud_training.Training) -> dict[str, Any]:
    return {
        "model": training.version or "none",
        "orders": training.orders,
        "trained_from": str(training.trained_from),
        "changed": training.changed,
        "alerts_rebuilt": training.rebuilt,
        **({"problem": training.problem} if training.problem else {}),
        **training.metrics,
    }


@dg.asset_check(
    asset=FRAUD_MODEL, name="newest_model_is_usable", description="The newest model can be read."
)
def newest_model_is_usable(lake: LakeResource) -> dg.AssetCheckResult:
    with lake.lake.connect(read_only=True) as connection:
        models, problem = fraud.newest_problem(connection)
    return dg.AssetCheckResult(
        passed=problem is None,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"models": models, **({"problem": problem} if problem else {})},
    )
