"""The batch pipeline: reference data, order exports, completed orders, daily revenue."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

import dagster as dg
import narwhals as nw

from retail_assets import tables
from retail_assets.defs.assets.charts import recent_revenue
from retail_assets.defs.assets.daily import RETRIES, daily_asset, freshness, table_spec
from retail_assets.defs.assets.extract import files_behind
from retail_assets.defs.io_manager import AssetOutput, LakeIOManager
from retail_assets.defs.partitions import backfill_policy
from retail_assets.defs.resource import LakeResource
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports import load as order_exports
from retail_assets.ingest.exports import reference
from retail_assets.mapping import Mapping, load
from retail_assets.settings import Settings
from retail_assets.transforms import orders, revenue


class SourceFolders(dg.ConfigurableResource[None]):
    """Where outside data lie, how it is written, and limits on late orders and shrunken files."""

    exports: str
    reference_dir: str
    mapping: str | None
    late_days: int
    max_order_gbp: float
    reference_max_shrink: float

    @property
    def source_mapping(self) -> Mapping:
        """What RETAIL_MAPPING says."""
        return load(Path(self.mapping)) if self.mapping else Mapping()


def reference_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """The reference tables, each from its file."""
    return [
        _reference_asset(table, files_behind(settings, table))
        for table in (tables.PRODUCTS, tables.CUSTOMERS, tables.CURRENCY_RATES)
    ]


def _reference_asset(table: tables.Table, deps: Sequence[dg.AssetKey]) -> dg.AssetsDefinition:
    def compute(lake: LakeResource, source_folders: SourceFolders) -> AssetOutput:
        folder, max_shrink = Path(source_folders.reference_dir), source_folders.reference_max_shrink
        try:
            mapping = source_folders.source_mapping
            if table in reference.OPTIONAL and not reference.reference_path(folder, table).exists():
                # Rows that the lake has stay until a file says otherwise.
                rows, max_shrink = reference.no_rows(table), 0
            else:
                rows = reference.read_reference(folder, table, mapping.reference.of(table.name))
        except RetailAssetsError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        prepare = reference.before_swap(table, lake.lake, mapping.events, max_shrink=max_shrink)
        return AssetOutput(rows, before_swap=prepare)

    make: Callable[[Callable[..., AssetOutput]], dg.AssetsDefinition] = dg.asset(
        **table_spec(table, code_version="1"),
        deps=deps,
        retry_policy=RETRIES,
        io_manager_key="lake_io",
    )
    return make(compute)


def order_exports_assets(
    settings: Settings, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """`raw_orders` and `rejected_orders`: one ingest, one transaction with its ledger entry."""

    def out(table: tables.Table) -> dg.AssetOut:
        return dg.AssetOut(
            **table_spec(table, code_version="1"),
            io_manager_key="lake_io",
            freshness_policy=freshness(settings.timezone),
        )

    @dg.multi_asset(
        name="order_exports",
        outs={
            tables.RAW_ORDERS.name: out(tables.RAW_ORDERS),
            tables.REJECTED_ORDERS.name: out(tables.REJECTED_ORDERS),
        },
        deps=[
            dg.AssetKey(tables.CURRENCY_RATES.name),
            *files_behind(settings, tables.RAW_ORDERS),
        ],
        partitions_def=partitions_def,
        backfill_policy=backfill_policy(settings),
        retry_policy=RETRIES,
    )
    def ingest_order_exports(
        context: dg.AssetExecutionContext,
        lake_io: dg.ResourceParam[LakeIOManager],
        source_folders: SourceFolders,
    ) -> Iterator[dg.Output[object]]:
        with lake_io.connection() as connection:
            ingested = order_exports.ingest(
                lake_io.lake.lake,
                connection,
                source_folders.exports,
                [date.fromisoformat(key) for key in context.partition_keys],
                late_days=source_folders.late_days,
                max_order_gbp=source_folders.max_order_gbp,
                mapping=source_folders.source_mapping.exports.daily,
                progress=lambda done: context.log.info("%s exports done", done),
            )
        context.log.info("%s exports were in the lake already", len(ingested.unchanged))
        yield dg.Output(ingested.raw, output_name=tables.RAW_ORDERS.name)
        yield dg.Output(ingested.rejected, output_name=tables.REJECTED_ORDERS.name)

    return ingest_order_exports


FOLLOW_COMPLETED_ORDERS = (
    dg.AutomationCondition.eager()
    .without(dg.AutomationCondition.in_latest_time_window())
    .with_label("follow_completed_orders")
)
"""Follow completed orders on any day: `eager` looks only at the latest one, and a restated day of
last week would keep its old revenue."""


@daily_asset(
    table=tables.COMPLETED_ORDERS,
    audit=lambda staged, raw_orders, **_: orders.unreconciled_days(staged, raw_orders),
    open_end=("raw_orders",),
)
def completed_orders(
    raw_orders: nw.LazyFrame, products: nw.LazyFrame, customers: nw.LazyFrame
) -> nw.LazyFrame:
    return orders.completed_orders(raw_orders, products, customers)


@daily_asset(
    table=tables.DAILY_REVENUE,
    audit=revenue.unreconciled_days,
    describe=recent_revenue,
    automation_condition=FOLLOW_COMPLETED_ORDERS,
)
def daily_revenue(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    return revenue.daily_revenue(completed_orders)


@daily_asset(
    table=tables.DAILY_REVENUE_BY_CATEGORY,
    audit=revenue.unreconciled_days,
    automation_condition=FOLLOW_COMPLETED_ORDERS,
)
def daily_revenue_by_category(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    return revenue.daily_revenue_by_category(completed_orders)


DAILY_ASSETS = (completed_orders, daily_revenue, daily_revenue_by_category)
