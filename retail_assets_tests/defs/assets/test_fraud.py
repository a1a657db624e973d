"""The asset `fraud_model`: a model for each day, its metadata, its check, and when it runs."""

from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from retail_assets.defs import partitions
from retail_assets.defs.assets import fraud
from retail_assets.defs.assets.events import event_assets
from retail_assets.defs.resource import LakeResource
from retail_assets.settings import Settings
from retail_assets_tests.consumers.fraud.test_consumer import FIRST, TRAINED, history
from retail_assets_tests.event_files import EventLoader
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, QUIET

pytestmark = DAGSTER_CALLS_ITSELF

LONDON = ZoneInfo("Europe/London")


@pytest.fixture
def platform(settings: Settings, lake: object) -> dg.Definitions:
    """A lake with three days of forty orders each, and the asset with what it needs."""
    settings = settings.model_copy(update={"fraud_training_orders": 100, "threads": 1})
    with EventLoader.open(settings) as loader:
        for day, lines in history().items():
            loader.write(f"{day}/history.jsonl", lines)
        loader.ingest()
    return dg.Definitions(
        assets=[
            fraud.fraud_model_asset(settings, partitions.daily_partitions(settings)),
            event_assets(settings, partitions.event_partitions(settings)),
        ],
        asset_checks=[fraud.newest_model_is_usable],
        resources={"lake": LakeResource.from_settings(settings), "lake_io": dg.mem_io_manager},
        jobs=[dg.define_asset_job("train", selection=dg.AssetSelection.assets("fraud_model"))],
        executor=dg.in_process_executor,
    )


def train(platform: dg.Definitions, first: date, last: date) -> dg.ExecuteInProcessResult:
    return platform.resolve_job_def("train").execute_in_process(
        tags={partitions.RANGE_START: str(first), partitions.RANGE_END: str(last)},
        run_config=QUIET,
        raise_on_error=False,
    )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str | None, dict[str, Any]]:
    """What the materialization of each partition says."""
    return {
        event.partition: {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def test_each_day_of_a_run_has_a_model_with_its_evaluation_or_says_why_not(
    platform: dg.Definitions,
) -> None:
    result = train(platform, FIRST, TRAINED)
    assert result.success
    found = metadata(result)
    assert list(found) == ["2026-10-12", "2026-10-13", "2026-10-14"]
    assert [of_day["model"] for of_day in found.values()][:2] == ["none", "none"]
    assert "80 orders from 2026-07-16 to 2026-10-13 are too few" in found["2026-10-13"]["problem"]
    trained = found["2026-10-14"]
    assert trained["model"].startswith("2026-10-14:")
    assert (trained["orders"], trained["held_out"], trained["suspected_by_rules"]) == (120, 24, 0)
    assert 0 <= trained["share_flagged"] <= 1
    assert (trained["changed"], trained["alerts_rebuilt"]) == (True, False)
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.metadata["models"].value) == (True, 1)
    again = metadata(train(platform, TRAINED, TRAINED))["2026-10-14"]
    assert again == {**trained, "changed": False}


def test_a_newest_model_that_cannot_be_used_is_a_warning(
    platform: dg.Definitions, settings: Settings
) -> None:
    train(platform, TRAINED, TRAINED)
    with (
        EventLoader.open(settings) as loader,
        loader.lake.transaction(loader.connection, "spoil"),
    ):
        loader.connection.execute("UPDATE fraud_models SET model = '\\x00'::BLOB")
    checks = dg.AssetSelection.checks_for_assets("fraud_model")
    job = dg.Definitions(
        assets=platform.assets,
        asset_checks=platform.asset_checks,
        resources=platform.resources,
        jobs=[dg.define_asset_job("check", selection=checks)],
    ).resolve_job_def("check")
    (check,) = job.execute_in_process(run_config=QUIET).get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "materialize fraud_model of that day again" in str(check.metadata["problem"].value)


def test_yesterday_is_trained_at_five_and_once(platform: dg.Definitions) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = None
        requested = []
        for hour, minute in ((4, 0), (4, 59), (5, 1), (5, 2), (23, 0)):
            result = dg.evaluate_automation_conditions(
                platform,
                instance,
                asset_selection=dg.AssetSelection.assets("fraud_model"),
                evaluation_time=datetime(2026, 10, 20, hour, minute, tzinfo=LONDON),
                cursor=cursor,
            )
            cursor = result.cursor
            keys = result.get_requested_partitions(dg.AssetKey("fraud_model"))
            requested.append((hour, minute, keys))
    assert requested == [
        (4, 0, set()),
        (4, 59, set()),
        (5, 1, {"2026-10-19"}),
        (5, 2, set()),
        (23, 0, set()),
    ]
