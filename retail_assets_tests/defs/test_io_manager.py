"""The I/O manager, in real runs of small assets on a real Dagster instance."""

from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb as duckdb_package
import narwhals as nw
import pandas as pd
import pyarrow as pa
import pytest

from retail_assets import tables
from retail_assets.defs.io_manager import (
    MASKED,
    OPEN_END,
    AssetOutput,
    LakeIOManager,
    column_lineage,
    column_schema,
)
from retail_assets.defs.resource import LakeResource
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import AUTHOR
from retail_assets.transforms import revenue
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish, read

DAYS = dg.DailyPartitionsDefinition(start_date=str(FIRST), end_date="2026-10-09")
FOURTH = date(2026, 10, 8)
COMPLETED = tables.COMPLETED_ORDERS
DAILY: dict[str, Any] = {
    "partitions_def": DAYS,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "io_manager_key": "lake_io",
}

Order = tuple[date, str, str]

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="looks for open files in /proc, which is Linux"
)


def completed(orders: Sequence[Order]) -> pa.Table:
    """Rows of `completed_orders` for (day, order_id, value)."""
    texts = {
        name: ["x"] * len(orders) for name, type_ in COMPLETED.types.items() if type_ == "VARCHAR"
    }
    columns = texts | {
        "order_date": [day for day, _, _ in orders],
        "order_id": [order_id for _, order_id, _ in orders],
        "line_number": [1] * len(orders),
        "order_timestamp": pa.array(
            [pd.Timestamp(day) for day, _, _ in orders], pa.timestamp("us")
        ),
        "order_value_gbp": pa.array(
            [Decimal(value) for _, _, value in orders], pa.decimal128(12, 2)
        ),
        "export_date": [day for day, _, _ in orders],
        "customer_id": [f"customer of {order_id}" for _, order_id, _ in orders],
    }
    dates = pa.array(columns["order_date"], pa.date32())
    return pa.table(columns | {"order_date": dates, "export_date": dates})


GOOD = [
    (FIRST, "A1", "1.50"),
    (FIRST, "A2", "2.50"),
    (SECOND, "B1", "10.00"),
    (THIRD, "C1", "100.00"),
]
TWICE = [*GOOD, (SECOND, "B1", "11.00")]
"""The second day has an order twice."""


def completed_asset(orders: Sequence[Order]) -> dg.AssetsDefinition:
    @dg.asset(name=COMPLETED.name, **DAILY)
    def build(context: dg.AssetExecutionContext) -> nw.DataFrame:
        window = [order for order in orders if str(order[0]) in context.partition_keys]
        return nw.from_native(completed(window))

    return build


@dg.asset(**DAILY)
def daily_revenue(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    return revenue.daily_revenue(completed_orders)


@dg.asset(**DAILY)
def daily_revenue_by_category(completed_orders: pd.DataFrame) -> pd.DataFrame:
    """As a user would write it who knows pandas."""
    found = completed_orders.groupby(
        ["order_date", "region", "product_category"], as_index=False
    ).agg(total_revenue=("order_value_gbp", "sum"), order_count=("order_id", "count"))
    found["avg_order_value"] = found["total_revenue"]
    return found


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of the test's own."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(
    settings,
    instance,
    assets: Sequence[Any],
    first: date | None = None,
    last: date | None = None,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    lake = LakeResource.from_settings(settings)
    tags = {}
    if last is not None:
        tags = {
            "dagster/asset_partition_range_start": str(first),
            "dagster/asset_partition_range_end": str(last),
        }
    return dg.materialize(
        assets,
        instance=instance,
        resources={"lake_io": LakeIOManager(lake=lake), "lake": lake, "duckdb": lake},
        partition_key=str(first) if first is not None and last is None else None,
        tags=tags,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        **options,
    )


def materializations(instance, name: str) -> dict[str | None, dict[str, Any]]:
    """The metadata of each partition's own materialization; there is one of each."""
    records = instance.fetch_materializations(dg.AssetKey(name), limit=100).records
    found = {
        record.partition_key: {
            key: value.value for key, value in record.asset_materialization.metadata.items()
        }
        for record in records
    }
    assert len(found) == len(records)
    return found


def open_catalogs(settings) -> list[str]:
    """What this process has open of the catalog."""
    folder = Path("/proc/self/fd")
    paths = []
    for descriptor in folder.iterdir():
        try:
            paths.append(str(descriptor.readlink()))
        except OSError:  # the one that lists the folder
            continue
    return [path for path in paths if path.startswith(settings.catalog)]


# --- what is published --------------------------------------------------------------------------


def test_a_day_is_loaded_as_a_lazy_frame_and_what_is_returned_is_published(
    lake, settings, instance
):
    kinds = []

    @dg.asset(name="daily_revenue", **DAILY)
    def spying(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
        kinds.append(completed_orders.implementation)
        return revenue.daily_revenue(completed_orders)

    done = run(settings, instance, [completed_asset(GOOD), spying], FIRST)
    assert done.success
    assert kinds == [nw.Implementation.DUCKDB]
    assert read(lake) == [(FIRST, "x", Decimal("4.00"))]
    assert set(materializations(instance, "daily_revenue")) == {str(FIRST)}


def test_a_range_in_one_run_gives_each_partition_its_own_counts_and_measures(
    lake, settings, instance
):
    done = run(settings, instance, [completed_asset(GOOD), daily_revenue], FIRST, FOURTH)
    assert done.success
    found = materializations(instance, "daily_revenue")
    facts = ("dagster/partition_row_count", "total_revenue", "order_count")
    assert {day: tuple(metadata[name] for name in facts) for day, metadata in found.items()} == {
        str(FIRST): (1, 4.0, 2),
        str(SECOND): (1, 10.0, 1),
        str(THIRD): (1, 100.0, 1),
        str(FOURTH): (0, 0.0, 0),
    }
    counts = {
        day: metadata["dagster/partition_row_count"]
        for day, metadata in materializations(instance, COMPLETED.name).items()
    }
    assert counts == {str(FIRST): 2, str(SECOND): 1, str(THIRD): 1, str(FOURTH): 0}
    [snapshot] = {metadata["snapshot"] for metadata in found.values()}
    assert read(lake, snapshot) == read(lake)
    assert read(lake, snapshot - 1) == []


def test_a_sample_is_shown_with_the_newest_day_and_tells_nothing_personal(lake, settings, instance):
    run(settings, instance, [completed_asset(GOOD), daily_revenue], FIRST, THIRD)
    found = materializations(instance, COMPLETED.name)
    assert [day for day, metadata in found.items() if "sample" in metadata] == [str(THIRD)]
    [record] = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(COMPLETED.name), asset_partitions=[str(THIRD)]), limit=1
    ).records
    metadata = record.asset_materialization.metadata
    [row] = metadata["sample"].records
    assert row.data["order_id"] == "C1"
    assert row.data["order_value_gbp"] == "100.00"
    assert row.data["customer_id"] == MASKED
    assert "customer of" not in str(row.data)
    assert metadata["sample"].schema == column_schema(COMPLETED)
    assert metadata["dagster/column_lineage"].value == column_lineage(COMPLETED)


def test_schema_and_lineage_are_those_of_tables_py():
    schema = column_schema(tables.DAILY_REVENUE)
    assert [(column.name, column.type) for column in schema.columns] == list(
        tables.DAILY_REVENUE.types.items()
    )
    assert all(column.description and not column.constraints.nullable for column in schema.columns)
    lineage = column_lineage(tables.DAILY_REVENUE)
    assert lineage is not None
    assert lineage.deps_by_column["total_revenue"] == [
        dg.TableColumnDep(dg.AssetKey("completed_orders"), "order_value_gbp")
    ]
    assert column_lineage(tables.PRODUCTS) is None


def test_a_users_asset_gets_and_returns_pandas_by_its_annotations(lake, settings, instance):
    done = run(
        settings, instance, [completed_asset(GOOD), daily_revenue_by_category], FIRST, FOURTH
    )
    assert done.success
    with lake.connect(read_only=True) as connection:
        assert connection.execute(
            "SELECT order_date, product_category, total_revenue, order_count"
            " FROM daily_revenue_by_category ORDER BY ALL"
        ).fetchall() == [
            (FIRST, "x", Decimal("4.00"), 2),
            (SECOND, "x", Decimal("10.00"), 1),
            (THIRD, "x", Decimal("100.00"), 1),
        ]


def test_pandas_frames_have_types_that_lose_nothing(lake, settings, instance):
    seen: dict[str, str] = {}

    @dg.asset(name="daily_revenue", **DAILY)
    def spying(completed_orders: pd.DataFrame) -> AssetOutput:
        seen.update(completed_orders.dtypes.astype(str))
        return AssetOutput(completed([]).slice(0, 0).to_pandas(), only_days=True)

    run(settings, instance, [completed_asset(GOOD), spying], FIRST)
    assert seen["order_value_gbp"] == "decimal128(12, 2)[pyarrow]"
    assert seen["order_date"] == "date32[day][pyarrow]"


def test_an_input_with_an_open_end_has_all_later_days_as_well(lake, settings, instance):
    run(settings, instance, [completed_asset(GOOD)], FIRST, THIRD)
    seen = []

    @dg.asset(
        name="daily_revenue",
        ins={"completed_orders": dg.AssetIn(metadata={OPEN_END: True})},
        **DAILY,
    )
    def spying(completed_orders: nw.LazyFrame) -> AssetOutput:
        seen.extend(completed_orders.select("order_id").to_native().fetchall())
        return AssetOutput(revenue.daily_revenue(completed_orders), only_days=True)

    done = run(settings, instance, [completed_asset(GOOD), spying], SECOND, selection=[spying.key])
    assert done.success
    assert sorted(seen) == [("B1",), ("C1",)]
    assert read(lake) == [(SECOND, "x", Decimal("10.00"))]


def test_a_table_without_days_is_published_whole_with_its_count(lake, settings, instance):
    @dg.asset(io_manager_key="lake_io")
    def products() -> pd.DataFrame:
        return pd.DataFrame(
            {
                "product_id": ["P1", "P2"],
                "product_name": ["Tea", "Jam"],
                "product_category": ["Drinks", "Food"],
                "unit_price_gbp": [Decimal("1.00"), None],
                "stock_on_hand": pd.array([1, None], dtype="Int64"),
            }
        )

    assert run(settings, instance, [products]).success
    [metadata] = materializations(instance, "products").values()
    assert metadata["dagster/row_count"] == 2
    with lake.connect(read_only=True, at=metadata["snapshot"]) as connection:
        assert connection.execute("SELECT count(*) FROM products").fetchone() == (2,)


# --- what fails ---------------------------------------------------------------------------------


def test_in_a_range_with_one_bad_day_only_the_others_are_materialized(lake, settings, instance):
    run(settings, instance, [completed_asset(TWICE), daily_revenue], FIRST, THIRD)
    for name in (COMPLETED.name, "daily_revenue"):
        assert set(materializations(instance, name)) == {str(FIRST), str(THIRD)}
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == {str(FIRST), str(THIRD)}
    assert [day for day, _, _ in read(lake)] == [FIRST, THIRD]
    with lake.connect(read_only=True) as connection:
        [(day, problem)] = ledger.failures(connection, COMPLETED, [FIRST, SECOND, THIRD]).items()
        inherited = ledger.failures(connection, tables.DAILY_REVENUE, [SECOND])
    assert day == SECOND
    assert "rows share their key (order_id, line_number), for example B1 1" in problem
    assert inherited == {SECOND: problem}


def test_the_bad_day_is_named_in_the_log_of_the_run(lake, settings, instance):
    done = run(settings, instance, [completed_asset(TWICE)], FIRST, THIRD)
    errors = [entry.user_message for entry in instance.all_logs(done.run_id) if entry.level == 40]
    assert any(f"completed_orders of {SECOND} was not published" in text for text in errors)


def test_a_value_that_does_not_fit_fails_its_day_alone(lake, settings, instance):
    """Though what the rule read belongs to a transaction that the error has ended."""

    @dg.asset(name="daily_revenue", **DAILY)
    def too_much(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
        made = revenue.daily_revenue(completed_orders)
        return made.with_columns((nw.col("order_count") * nw.lit(2**62)).cast(nw.Int64))

    done = run(settings, instance, [completed_asset(GOOD), too_much], FIRST, THIRD)
    assert done.success
    assert [row[:2] for row in read(lake)] == [(SECOND, "x"), (THIRD, "x")]
    published = instance.get_materialized_partitions(dg.AssetKey("daily_revenue"))
    assert published == {str(SECOND), str(THIRD)}
    with lake.connect(read_only=True) as connection:
        ((day, problem),) = connection.execute("SELECT day, problem FROM failed_days").fetchall()
    assert (day, "Overflow" in problem) == (FIRST, True)


def test_a_bad_day_that_is_corrected_is_materialized_by_the_next_run(lake, settings, instance):
    run(settings, instance, [completed_asset(TWICE), daily_revenue], FIRST, THIRD)
    run(settings, instance, [completed_asset(GOOD), daily_revenue], SECOND)
    days = {str(FIRST), str(SECOND), str(THIRD)}
    for name in (COMPLETED.name, "daily_revenue"):
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == days
    assert [day for day, _, _ in read(lake)] == [FIRST, SECOND, THIRD]


def test_a_run_of_nothing_but_bad_days_fails_and_says_why(lake, settings, instance):
    publish(lake, [(SECOND, "before", "7.00")], [SECOND])
    done = run(settings, instance, [completed_asset(TWICE), daily_revenue], SECOND)
    assert not done.success
    [failure] = [event for event in done.all_events if event.is_step_failure]
    assert failure.step_key == COMPLETED.name
    assert "1 day failed.\n2026-10-06: completed_orders of 2026-10-06 was not published" in (
        failure.step_failure_data.user_failure_data.description
    )
    assert materializations(instance, COMPLETED.name) == {}
    assert read(lake) == [(SECOND, "before", Decimal("7.00"))]


@needs_proc
def test_rows_that_cannot_be_published_fail_the_step_without_a_retry(lake, settings, instance):
    @dg.asset(name="daily_revenue", retry_policy=dg.RetryPolicy(max_retries=3), **DAILY)
    def wrong() -> pd.DataFrame:
        return pd.DataFrame({"order_date": [FIRST], "region": ["x"]})

    done = run(settings, instance, [wrong], FIRST)
    assert [event.event_type_value for event in done.all_events if event.is_step_failure] == [
        "STEP_FAILURE"
    ]
    assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in done.all_events)
    assert open_catalogs(settings) == []


def test_the_steps_of_a_run_share_a_connection_until_one_fails(lake, settings, instance):
    """A connection is known by what it marks its transactions with."""
    seen = []

    def describe(connection: duckdb_package.DuckDBPyConnection) -> dict[str, Any]:
        seen.append(connection.execute(f"SELECT {AUTHOR}").fetchone())
        if len(seen) == 2:
            raise ConnectionError
        return {}

    def described(rows: Any) -> AssetOutput:
        return AssetOutput(rows, describe=describe)

    @dg.asset(name=COMPLETED.name, **DAILY)
    def orders() -> AssetOutput:
        return described(completed(GOOD[:2]))

    @dg.asset(name="daily_revenue", retry_policy=dg.RetryPolicy(max_retries=1), **DAILY)
    def unlucky(completed_orders: nw.LazyFrame) -> AssetOutput:
        return described(revenue.daily_revenue(completed_orders))

    @dg.asset(name="daily_revenue_by_category", deps=[unlucky], **DAILY)
    def after(completed_orders: nw.LazyFrame) -> AssetOutput:
        return described(revenue.daily_revenue_by_category(completed_orders))

    assert run(settings, instance, [orders, unlucky, after], FIRST).success
    first, failing, again, last = seen
    assert first == failing != again == last
    assert read(lake) == [(FIRST, "x", Decimal("4.00"))]


@needs_proc
def test_a_second_attempt_sees_what_was_committed_since_the_first(lake, settings, instance):
    run(settings, instance, [completed_asset(GOOD)], FIRST)
    attempts = []

    @dg.asset(name="daily_revenue", retry_policy=dg.RetryPolicy(max_retries=1), **DAILY)
    def unlucky(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
        count = completed_orders.select(nw.len()).to_native().fetchall()
        attempts.append(count)
        assert open_catalogs(settings)
        if len(attempts) == 1:
            with dg.DagsterInstance.ephemeral() as another:
                run(settings, another, [completed_asset([(FIRST, "A9", "9.00")])], FIRST)
            raise ConnectionError
        return revenue.daily_revenue(completed_orders)

    source = completed_asset(GOOD)
    done = run(settings, instance, [source, unlucky], FIRST, selection=[unlucky.key])
    assert done.success
    assert attempts == [[(2,)], [(1,)]]
    assert read(lake) == [(FIRST, "x", Decimal("9.00"))]
    assert open_catalogs(settings) == []


def test_all_that_a_step_reads_is_of_one_snapshot(lake, settings, instance):
    run(settings, instance, [completed_asset(GOOD)], FIRST)

    @dg.asset(name="daily_revenue", **DAILY)
    def slow(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
        with dg.DagsterInstance.ephemeral() as another:
            run(settings, another, [completed_asset([(FIRST, "A9", "9.00")])], FIRST)
        return revenue.daily_revenue(completed_orders)

    source = completed_asset(GOOD)
    run(settings, instance, [source, slow], FIRST, selection=[slow.key])
    assert read(lake) == [(FIRST, "x", Decimal("4.00"))]


def test_an_asset_without_a_table_is_told_where_to_describe_it(lake, settings, instance):
    @dg.asset(**DAILY)
    def unheard_of() -> pd.DataFrame:
        return pd.DataFrame()

    done = run(settings, instance, [unheard_of], FIRST)
    [failure] = [event for event in done.all_events if event.is_step_failure]
    assert "describe it in retail_assets/tables/" in str(
        failure.step_failure_data.error_display_string
    )
