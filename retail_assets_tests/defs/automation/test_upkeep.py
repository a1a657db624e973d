"""Jobs that people launch by hand do what their commands do, with a form that is filled in."""

from pathlib import Path
from typing import Any

import dagster as dg

from retail_assets import tables
from retail_assets.defs.automation.upkeep import upkeep_jobs
from retail_assets.defs.resource import LakeResource
from retail_assets_tests.dashboard.rows import insert
from retail_assets_tests.event_files import EventLoader, event

DAY = "2026-10-12"


def run(settings: Any, name: str, **config: Any) -> dg.ExecuteInProcessResult:
    (job,) = (each for each in upkeep_jobs(settings) if each.name == name)
    assert isinstance(job, dg.JobDefinition)
    (node,) = (each.name for each in job.graph.nodes)
    return job.execute_in_process(
        run_config={"ops": {node: {"config": config}}} if config else {},
        resources={"lake": LakeResource.from_settings(settings)},
        raise_on_error=False,
    )


def facts(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata of the one output of a run."""
    (output,) = (each for each in result.all_events if each.is_successful_output)
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (failed,) = (each for each in result.all_events if each.is_step_failure)
    return str(failed.step_failure_data.user_failure_data.description)


def test_a_redrive_without_a_word_is_of_unknown_currencies(settings, lake):
    with EventLoader.open(settings) as loader:
        loader.write(f"{DAY}/a.jsonl", [event(1, currency="EUR"), event(2, order_value_gbp=-1)])
        loader.ingest()
        rate = {"currency": "EUR", "day": DAY, "rate": "0.5"}
        insert(lake, tables.CURRENCY_RATES, rate)
        assert facts(run(settings, "redrive")) == {"redriven": 1, "still_dead": 0}
        assert loader.events() == [("E1",)]
    assert "no reason of dead letters" in failure(run(settings, "redrive", reason="x"))


def test_a_rewind_recomputes_the_tables_of_a_consumer(settings, lake):
    with EventLoader.open(settings) as loader:
        loader.write(f"{DAY}/a.jsonl", [event(1)])
        loader.ingest()
    assert facts(run(settings, "rewind")) == {"rows_changed": 1, "quarantined_keys": 0}
    with lake.connect(read_only=True) as connection:
        assert connection.execute("SELECT order_id FROM live_orders").fetchall() == [("O1",)]
    assert "choose from live_orders" in failure(run(settings, "rewind", consumer="x"))


def test_upkeep_is_done_and_damage_fails_by_name(settings, lake):
    insert(lake, tables.COMPLETED_ORDERS, {"order_id": "A"})
    with lake.connect() as connection:
        connection.execute("CALL ducklake_flush_inlined_data('lake')")
    assert facts(run(settings, "maintain", keep_days=0))["files_after"] > 0
    assert run(settings, "verify").success
    with lake.connect(read_only=True) as connection:
        ((file,),) = connection.execute(
            "SELECT data_file FROM ducklake_list_files('lake', 'completed_orders')"
        ).fetchall()
    with Path(file).open("ab") as damaged:
        damaged.write(b"x")
    assert "1 of " in failure(run(settings, "verify"))
