"""`daily_asset`: an asset whose partitions are days and whose rows are a table of the lake."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, wraps
from typing import Any

import dagster as dg
import duckdb
import narwhals as nw

from retail_assets.defs.io_manager import OPEN_END, AssetOutput, column_schema
from retail_assets.tables import Table, View

OWNERS = ["team:analytics"]
KINDS = {"duckdb", "ducklake", "parquet"}

RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)
"""For transient failures, such as a busy catalog; bad data are never retried."""

Rule = Callable[..., nw.LazyFrame]


@cache  # Dagster tries a thousand dates for each
def freshness(timezone: str) -> dg.FreshnessPolicy:
    """Yesterday must be there when people come to work."""
    return dg.FreshnessPolicy.cron(
        deadline_cron="0 8 * * *", lower_bound_delta=timedelta(hours=8), timezone=timezone
    )


def table_spec(table: Table | View, *, code_version: str) -> dict[str, Any]:
    """The part of an asset's definition that follows from its table."""
    return {
        "key": dg.AssetKey(table.name),
        "description": table.description,
        "group_name": table.group,
        "owners": OWNERS,
        "kinds": KINDS,
        "tags": {"domain": "events" if table.group == "events" else "orders"},
        "code_version": code_version,
        "metadata": {
            "dagster/column_schema": column_schema(table),
            "dagster/table_name": f"lake.main.{table.name}",
        },
    }


@dataclass(frozen=True)
class DailyAsset:
    """A rule and its definition in Dagster; `build` makes the asset for a set of partitions."""

    rule: Rule
    table: Table
    code_version: str
    audit: Callable[..., nw.LazyFrame] | None
    open_end: tuple[str, ...]
    describe: Callable[[duckdb.DuckDBPyConnection], Mapping[str, Any]] | None
    automation_condition: dg.AutomationCondition[Any] | None

    def build(
        self,
        partitions_def: dg.PartitionsDefinition[str],
        timezone: str,
        backfill_policy: dg.BackfillPolicy | None = None,
    ) -> dg.AssetsDefinition:
        """Return the asset.

        Args:
            partitions_def: its days.
            timezone: the business time zone.
            backfill_policy: how a backfill is divided into runs, the same for all assets of one;
                None: not at all.
        """

        @wraps(self.rule)
        def compute(**inputs: nw.LazyFrame) -> AssetOutput:
            audit = self.audit
            return AssetOutput(
                self.rule(**inputs),
                audit=(lambda staged: audit(staged, **inputs)) if audit else None,
                only_days=bool(self.open_end),
                describe=self.describe,
            )

        compute.__annotations__ = {**self.rule.__annotations__, "return": AssetOutput}
        make: Callable[[Callable[..., AssetOutput]], dg.AssetsDefinition] = dg.asset(
            **table_spec(self.table, code_version=self.code_version),
            partitions_def=partitions_def,
            backfill_policy=backfill_policy or dg.BackfillPolicy.single_run(),
            ins={name: dg.AssetIn(metadata={OPEN_END: True}) for name in self.open_end},
            automation_condition=self.automation_condition,
            freshness_policy=freshness(timezone),
            retry_policy=RETRIES,
            io_manager_key="lake_io",
        )
        return make(compute)


def daily_asset(
    *,
    table: Table,
    code_version: str = "1",
    audit: Callable[..., nw.LazyFrame] | None = None,
    open_end: tuple[str, ...] = (),
    describe: Callable[[duckdb.DuckDBPyConnection], Mapping[str, Any]] | None = None,
    automation_condition: dg.AutomationCondition[Any] | None = None,
) -> Callable[[Rule], DailyAsset]:
    """Make an asset of a rule: a function that takes the frames of its upstream assets, by name.

    The rule returns a narwhals `LazyFrame` with the columns and types of the table. Its rows are
    staged, audited and published by day; a day that breaks a key, lacks a required value or fails
    the audit is left out, named in the run, and keeps its previous rows.

    Args:
        table: the columns, key and day of what the rule returns.
        code_version: change it with the rule, so that Dagster shows results of an older one.
        audit: takes the staged rows and the rule's inputs (by name), returns a row for each day
            that must not be published.
        open_end: inputs that are loaded from the first day of the run on, without an end.
        describe: more metadata for the newest day.
        automation_condition: when Dagster materializes it by itself.

    Returns:
        A decorator; `build` of its result makes the asset for a set of partitions.
    """

    def decorate(rule: Rule) -> DailyAsset:
        return DailyAsset(
            rule, table, code_version, audit, open_end, describe, automation_condition
        )

    return decorate
