"""Asset checks: the audits of before publishing, run on the published tables, and more.

One factory makes the checks of every table from its entry in `tables/`. A run's checks look at
the days of that run; a check that is run by itself looks at the whole table. The rules are in
`transforms`: a check calls one and names what is wrong.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import dagster as dg
import duckdb
import narwhals as nw

from retail_assets import business_days, tables
from retail_assets.consumers import live_revenue
from retail_assets.defs import partitions
from retail_assets.defs.assets.events import EVENT_TABLES
from retail_assets.defs.io_manager import LakeIOManager, describe_failures
from retail_assets.ingest.exports import rejects
from retail_assets.ingest.exports import stale_days as stale
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.settings import Settings
from retail_assets.transforms import orders, reconciliation, revenue

SHOWN = 20
"""How many failing days, orders or files a check names."""


@dataclass(frozen=True)
class Scope:
    """The rows that a check reads: some days of a table, or (None) all of it."""

    connection: duckdb.DuckDBPyConnection
    table: tables.Table
    first: date | None
    last: date | None
    settings: Settings

    def source(self, table: tables.Table, *, open_end: bool = False, day: str | None = None) -> str:
        """The rows of a table in these days, for SQL; `day` is the column of a ledger."""
        column = day or table.day
        if self.first is None or column is None:
            return f"lake.{table.name}"
        end = "" if open_end else f" AND {column} <= DATE '{self.last}'"
        return f"lake.{table.name} WHERE {column} >= DATE '{self.first}'{end}"

    def rows(self, table: tables.Table, *, open_end: bool = False, day: str | None = None) -> Any:
        """The same rows as a relation."""
        return self.connection.sql(f"FROM {self.source(table, open_end=open_end, day=day)}")

    def one(self, values: str, table: tables.Table) -> tuple[Any, ...]:
        """Aggregates of the rows of a table in these days."""
        found = self.connection.execute(f"SELECT {values} FROM {self.source(table)}").fetchone()
        assert found is not None
        return found

    def frame(
        self, table: tables.Table, *, open_end: bool = False, day: str | None = None
    ) -> nw.LazyFrame:
        """The same rows, as the rules take them."""
        frame: nw.LazyFrame[Any] = nw.from_native(self.rows(table, open_end=open_end, day=day))
        return frame

    def whole(self) -> "Scope":
        """All rows, whatever the days of the run."""
        return replace(self, first=None, last=None)

    def days(self) -> list[date]:
        """The days, where there are some."""
        if self.first is None or self.last is None:
            return []
        return business_days.days_between(self.first, self.last)

    def has(self, day: date) -> bool:
        """Whether a day is among these."""
        return self.first is None or self.last is None or self.first <= day <= self.last


Check = Callable[[Scope], dg.AssetCheckResult]


def checks_of(table: tables.Table) -> dict[str, Check]:
    """The checks of a table, by name."""
    return {check.__name__: check for check in (*GENERAL, *SPECIAL.get(table, ()))}


def schema_matches(scope: Scope) -> dg.AssetCheckResult:
    """The table has the columns and types that `tables/` says."""
    relation = scope.connection.table(f"lake.{scope.table.name}")
    found = dict(zip(relation.columns, map(str, relation.types), strict=True))
    expected = dict(scope.table.types)
    return dg.AssetCheckResult(
        passed=found == expected,
        metadata={"differences": str(set(found.items()) ^ set(expected.items()))},
    )


def key_is_unique(scope: Scope) -> dg.AssetCheckResult:
    """No two rows share their key."""
    keys = ", ".join(scope.table.key)
    found = scope.connection.execute(
        f"SELECT {keys}, count(*) AS n FROM {scope.source(scope.table)}"
        f" GROUP BY {keys} HAVING count(*) > 1 LIMIT 5"
    ).fetchall()
    return dg.AssetCheckResult(
        passed=not found, metadata={"key": keys, "examples": str(found) if found else "none"}
    )


def required_values_are_there(scope: Scope) -> dg.AssetCheckResult:
    """No column that must have a value is null."""
    required = [column.name for column in scope.table.columns if not column.nullable]
    nulls = ", ".join(f"count(*) FILTER ({name} IS NULL)" for name in required)
    counts = scope.one(nulls, scope.table)
    missing = {name: n for name, n in zip(required, counts, strict=True) if n}
    return dg.AssetCheckResult(passed=not missing, metadata={"missing": missing})


def rows_add_up(scope: Scope) -> dg.AssetCheckResult:
    """Rows in each export = raw + rejected."""
    exports = reconciliation.export_rows(
        scope.frame(tables.EXPORT_FILES, day="export_date"),
        scope.frame(tables.RAW_ORDERS),
        scope.frame(tables.REJECTED_ORDERS),
    )
    rows_in, raw, rejected, wrong = (
        exports.to_native()
        .aggregate(
            "coalesce(sum(rows_in), 0), coalesce(sum(raw), 0), coalesce(sum(rejected), 0),"
            " list(export_date ORDER BY export_date) FILTER (NOT adds_up)"
        )
        .fetchone()
    )
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={
            "rows_in": int(rows_in),
            "raw": int(raw),
            "rejected": int(rejected),
            "days_at_fault": str([str(day) for day in wrong or ()]),
        },
    )


def few_rows_are_rejected(scope: Scope) -> dg.AssetCheckResult:
    """No export had more than RETAIL_MAX_REJECTED_SHARE of its rows rejected."""
    share = scope.settings.max_rejected_share
    found = rejects.days_above(scope.connection, share, scope.first, scope.last)
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"days": len(found), "rejected": [day.summary() for day in found[-SHOWN:]]},
    )


def volume_is_usual(scope: Scope) -> dg.AssetCheckResult:
    """The number of orders of each day is near that of the same weekday in the weeks before."""
    found = dict(
        scope.connection.execute(
            "SELECT export_date, raw_rows FROM lake.export_files WHERE ?::DATE IS NULL OR"
            " export_date BETWEEN ?::DATE - ?::INTEGER AND ?::DATE",
            [scope.first, scope.first, 7 * reconciliation.WEEKS_COMPARED, scope.last],
        ).fetchall()
    )
    unusual = {
        str(day): f"{found[day]} orders, usually about {usual:.0f}"
        for day, usual in reconciliation.unusual_days(found).items()
        if scope.has(day)
    }
    return dg.AssetCheckResult(
        passed=not unusual, severity=dg.AssetCheckSeverity.WARN, metadata={"unusual_days": unusual}
    )


def completed_reconcile_with_raw(scope: Scope) -> dg.AssetCheckResult:
    """Raw orders of each day = completed + excluded by reason, in number and in money."""
    raw = scope.frame(tables.RAW_ORDERS, open_end=True)
    published = scope.frame(tables.COMPLETED_ORDERS)
    behind = set(ledger.stale_days(scope.connection, tables.COMPLETED_ORDERS))
    days = {
        day
        for (day,) in scope.connection.execute(
            "SELECT day FROM lake.published_days WHERE table_name = ?",
            [tables.COMPLETED_ORDERS.name],
        ).fetchall()
        if scope.has(day)
    } - behind
    wrong = [
        row
        for row in orders.unreconciled_days(published, raw).to_native().fetchall()
        if row[0] in days
    ]
    excluded: dict[str, int] = {}
    for day, reason, count, _ in orders.exclusions(raw).to_native().fetchall():
        if day in days and reason is not None:
            excluded[reason] = excluded.get(reason, 0) + count
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={
            "excluded": excluded,
            "days_at_fault": str([str(row[0]) for row in wrong]),
            "days_to_be_restated": str([str(day) for day in sorted(behind)]),
        },
    )


def references_are_known(scope: Scope) -> dg.AssetCheckResult:
    """The product and customer of each completed order's line are in the reference data."""
    count, products, customers = scope.one(
        f"count(*), count(*) FILTER (product_category = '{orders.UNKNOWN}'),"
        f" count(*) FILTER (customer_segment = '{orders.UNKNOWN}')",
        tables.COMPLETED_ORDERS,
    )
    return dg.AssetCheckResult(
        passed=not (products or customers),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"lines": count, "unknown_product": products, "unknown_customer": customers},
    )


def revenue_reconciles_with_orders(scope: Scope) -> dg.AssetCheckResult:
    """Revenue and order count of each day = those of its completed orders."""
    wrong = (
        revenue.unreconciled_days(scope.frame(scope.table), scope.frame(tables.COMPLETED_ORDERS))
        .to_native()
        .fetchall()
    )
    (total,) = scope.one("coalesce(sum(total_revenue), 0)", scope.table)
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={
            "total_revenue": float(total),
            "days_at_fault": str([str(row[0]) for row in wrong]),
        },
    )


def every_accepted_order_is_published(scope: Scope) -> dg.AssetCheckResult:
    """Revenue of all published days + waiting orders = all raw orders that count, to the penny.

    A warning where somebody has to act; an error where the ledger knows of no reason. Days that are
    behind are restated unasked.
    """
    waiting = stale.waiting_orders(
        scope.connection, scope.settings, days=scope.days(), all_days=scope.first is None
    )
    unexplained = [each for each in waiting if each.reason == "unexplained"]
    return dg.AssetCheckResult(
        passed=all(each.reason == "behind" for each in waiting),
        severity=dg.AssetCheckSeverity.ERROR if unexplained else dg.AssetCheckSeverity.WARN,
        metadata={
            "orders_waiting": sum(each.orders for each in waiting),
            "value_waiting_gbp": float(sum(each.value_gbp for each in waiting)),
            "what_to_do": stale.advice(waiting),
            "too_late": rejects.too_late(
                scope.connection, scope.settings.late_days, scope.first, scope.last
            )
            or "none",
            "days_without_export": stale.days_without_export(scope.connection) or "none",
        },
    )


def lines_add_up(scope: Scope) -> dg.AssetCheckResult:
    """Lines of each version of an event file = accepted + dead-lettered + duplicate.

    The tables have as many rows; of a version that was retracted they have the raw lines alone.
    """
    files = reconciliation.file_lines(
        scope.frame(tables.EVENT_FILES, open_end=True, day="received_date"),
        *(scope.frame(table, open_end=True) for table in EVENT_TABLES),
    )
    lines, accepted, dead, wrong = (
        files.to_native()
        .aggregate(
            "coalesce(sum(lines), 0), coalesce(sum(accepted), 0), coalesce(sum(dead_lettered), 0),"
            " list(path ORDER BY path) FILTER (NOT adds_up)"
        )
        .fetchone()
    )
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={
            "lines": int(lines),
            "accepted": int(accepted),
            "dead_lettered": int(dead),
            "files_at_fault": str((wrong or [])[:SHOWN]),
        },
    )


def streams_add_up(scope: Scope) -> dg.AssetCheckResult:
    """Lines of each Kafka partition and webhook = accepted + dead-lettered + duplicate."""
    parts, lines, wrong = (
        reconciliation.stream_lines(
            *(scope.whole().frame(table) for table in (tables.STREAM_OFFSETS, *EVENT_TABLES))
        )
        .to_native()
        .aggregate(
            "count(*), coalesce(sum(lines), 0), list(concat_ws(':', name, part)"
            " ORDER BY name, part) FILTER (NOT adds_up)"
        )
        .fetchone()
    )
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={
            "parts": int(parts),
            "lines": int(lines),
            "parts_at_fault": str((wrong or [])[:SHOWN]),
        },
    )


def changed_files_are_known(scope: Scope) -> dg.AssetCheckResult:
    """No event file got shorter or started differently within a day; names those that did."""
    files, stay, back, changed = scope.connection.execute(
        "SELECT count(DISTINCT path), coalesce(sum(accepted) FILTER (retracted_at IS NULL), 0),"
        " coalesce(sum(accepted) FILTER (retracted_at IS NOT NULL), 0),"
        " list(DISTINCT path ORDER BY path) FILTER"
        " (greatest(superseded_at, retracted_at) > now() - INTERVAL 1 DAY)"
        " FROM lake.event_files WHERE superseded_at IS NOT NULL OR retracted_at IS NOT NULL"
    ).fetchone() or (0, 0, 0, None)
    return dg.AssetCheckResult(
        passed=not changed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "files_changed": int(files),
            "events_of_earlier_versions_that_stay": int(stay),
            "events_taken_back": int(back),
            "changed_within_a_day": str((changed or [])[:SHOWN]),
        },
    )


def files_are_readable(scope: Scope) -> dg.AssetCheckResult:
    """No event file failed and waits to be corrected."""
    found = dict(
        scope.connection.execute(
            "SELECT path, problem FROM lake.failed_event_files ORDER BY path"
        ).fetchall()
    )
    return dg.AssetCheckResult(
        passed=not found, severity=dg.AssetCheckSeverity.WARN, metadata={"failed_files": found}
    )


def stream_agrees_with_batch(scope: Scope) -> dg.AssetCheckResult:
    """Live revenue = batch revenue on days with both an export and events; names differences."""
    whole = scope.whole()
    both = (
        f"order_date IN ({tables.whole_days(tables.DAILY_REVENUE)})"
        " AND order_date IN (SELECT order_date FROM lake.live_revenue)"
    )
    live, batch = (
        nw.from_native(whole.rows(table).filter(both))
        for table in (tables.LIVE_REVENUE, tables.DAILY_REVENUE)
    )
    days = sorted(reconciliation.revenue_differences(live, batch).to_native().fetchall())
    listed = [day for day, _ in days][-SHOWN:]
    differing = (
        reconciliation.order_differences(
            live_revenue.live_orders(scope.connection, listed),
            whole.frame(tables.COMPLETED_ORDERS).filter(nw.col("order_date").is_in(listed)),
        )
        .to_native()
        .order("order_date DESC, order_id")
        .limit(SHOWN)
        .fetchall()
    )
    return dg.AssetCheckResult(
        passed=not days,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "days_that_differ": len(days),
            "stream_minus_batch_gbp": {str(day): float(value) for day, value in days[-SHOWN:]},
            "orders": [
                f"{day} {order}: stream {stream}, batch {batch}"
                for day, order, _, stream, batch in differing
            ],
        },
    )


GENERAL: tuple[Check, ...] = (schema_matches, key_is_unique, required_values_are_there)
SPECIAL: dict[tables.Table, tuple[Check, ...]] = {
    tables.RAW_ORDERS: (rows_add_up, volume_is_usual, few_rows_are_rejected),
    tables.COMPLETED_ORDERS: (completed_reconcile_with_raw, references_are_known),
    tables.RAW_EVENTS: (
        lines_add_up,
        streams_add_up,
        changed_files_are_known,
        files_are_readable,
    ),
    tables.LIVE_REVENUE: (stream_agrees_with_batch,),
    tables.DAILY_REVENUE: (revenue_reconciles_with_orders, every_accepted_order_is_published),
    tables.DAILY_REVENUE_BY_CATEGORY: (revenue_reconciles_with_orders,),
}
CHECKED = (
    tables.PRODUCTS,
    tables.CUSTOMERS,
    tables.CURRENCY_RATES,
    tables.RAW_ORDERS,
    tables.REJECTED_ORDERS,
    tables.COMPLETED_ORDERS,
    tables.DAILY_REVENUE,
    tables.DAILY_REVENUE_BY_CATEGORY,
    tables.RAW_EVENTS,
    tables.ENRICHED_EVENTS,
    tables.DEAD_LETTER_EVENTS,
    tables.DEAD_LETTER_COUNTS,
    tables.LIVE_REVENUE,
    tables.LIVE_ORDERS,
    tables.LIVE_ORDER_LINES,
    tables.LIVE_REVENUE_BY_CATEGORY,
    tables.LIVE_REVENUE_MINUTES,
    tables.INVENTORY_LEVELS,
    tables.STOCK_ALERTS,
    tables.FRAUD_ALERTS,
)


def table_checks(table: tables.Table, settings: Settings) -> dg.AssetChecksDefinition:
    """The checks of a table, all in one step.

    For a table of days the step fails, and with it the run, where a day of the run failed: so a
    backfill with a bad day is seen to have failed, though the other days are published.
    """
    checks = checks_of(table)

    @dg.multi_asset_check(
        name=f"{table.name}_checks",
        specs=[
            dg.AssetCheckSpec(name, asset=table.name, description=check.__doc__)
            for name, check in checks.items()
        ],
        can_subset=True,
    )
    def run_checks(
        context: dg.AssetCheckExecutionContext, lake_io: dg.ResourceParam[LakeIOManager]
    ) -> Iterator[dg.AssetCheckResult]:
        first, last = partitions.run_days(context.run.tags) or (None, None)
        lake_io.lake.lake.must_exist()
        with lake_io.connection() as connection, SnapshotRead(connection):
            scope = Scope(connection, table, first, last, settings)
            for key in context.selected_asset_check_keys:
                yield checks[key.name](scope)._replace(asset_key=key.asset_key, check_name=key.name)
            dated = table.day is not None
            failed = ledger.failures(connection, table, scope.days()) if dated else {}
        if failed:
            raise dg.Failure(describe_failures(failed), allow_retries=False)

    return run_checks
