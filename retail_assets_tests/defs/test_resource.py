"""The lake as a resource, as in Dagster's documentation of DuckDB."""

import dagster as dg
import duckdb as duckdb_package
import pandas as pd
import pytest
from dagster_duckdb import DuckDBResource

from retail_assets.defs.resource import LakeResource
from retail_assets_tests.defs.test_io_manager import needs_proc, open_catalogs, run
from retail_assets_tests.lake.revenue import FIRST, publish


@needs_proc
def test_sql_and_frames_work_as_dagsters_documentation_of_duckdb_shows(lake, settings):
    publish(lake, [(FIRST, "North", "1.00")], [FIRST])

    @dg.asset
    def iris_dataset(duckdb: DuckDBResource) -> None:
        iris_df = pd.DataFrame({"species": ["setosa", "virginica"], "petal": [1.4, 6.0]})
        with duckdb.get_connection() as conn:
            conn.execute("CREATE TABLE iris_dataset AS SELECT * FROM iris_df")
        del iris_df

    @dg.asset(deps=[iris_dataset])
    def iris_setosa(duckdb: DuckDBResource) -> None:
        with duckdb.get_connection() as conn:
            conn.execute(
                "CREATE TABLE iris_setosa AS SELECT * FROM iris_dataset WHERE species = 'setosa'"
            )
            assert conn.sql("SELECT region FROM daily_revenue").fetchall() == [("North",)]

    with dg.DagsterInstance.ephemeral() as instance:
        assert run(settings, instance, [iris_dataset, iris_setosa]).success
    with lake.connect(read_only=True) as connection:
        found = connection.execute("SELECT species, petal FROM iris_setosa").fetchall()
    assert found == [("setosa", 1.4)]
    assert open_catalogs(settings) == []


def test_the_resource_closes_its_connection_when_the_body_raises(lake, settings):
    resource = LakeResource.from_settings(settings)
    with pytest.raises(KeyError), resource.get_connection() as connection:
        raise KeyError
    with pytest.raises(duckdb_package.ConnectionException, match="closed"):
        connection.execute("SELECT 1")


def test_a_read_only_resource_refuses_to_write(lake, settings):
    resource = LakeResource.from_settings(settings, read_only=True)
    with (
        resource.get_connection() as connection,
        pytest.raises(duckdb_package.InvalidInputException, match="read-only"),
    ):
        connection.execute("DELETE FROM daily_revenue")
