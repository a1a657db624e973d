"""The ways to do the same work that are compared, each run in a process of its own.

`python -m benchmarks.cases CASE DATA_DIR WORK_DIR FIRST LAST` does the work once and prints JSON:
seconds of the work (imports and the set-up of an empty lake not counted), peak memory in MB, and
where the case knows them the orders that count, the rejected rows, and revenue in GBP. Case (p)
runs where the platform is not installed.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.batch_input import FIELDS, STATUSES, exports


@dataclass(frozen=True)
class Work:
    """The input of a case: the data folder, a fresh folder for results, and the days."""

    data: Path
    out: Path
    first: date
    last: date

    @property
    def days(self) -> list[date]:
        """All days."""
        from retail_assets import business_days

        return business_days.days_between(self.first, self.last)

    @property
    def exports(self) -> list[Path]:
        """The exports of all days."""
        return exports(self.data)


Result = dict[str, Any]


def pandas_plain(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(a) A pandas script of the tutorial kind: read, filter, group, write the result only."""
    import pandas as pd

    def run() -> Result:
        parts = []
        for path in work.exports:
            orders = pd.read_csv(path, on_bad_lines="skip", encoding_errors="replace")
            value = pd.to_numeric(orders["order_value_gbp"], errors="coerce")
            orders["order_value_gbp"] = value.where(value < 1e10)
            orders["order_date"] = pd.to_datetime(
                orders["order_timestamp"].astype(str).str[:10], format="%Y-%m-%d", errors="coerce"
            )
            orders = orders[orders["status"].astype(str).str.strip().str.lower() == "completed"]
            parts.append(
                orders.groupby(["order_date", "region"], as_index=False).agg(
                    total_revenue=("order_value_gbp", "sum"), order_count=("order_id", "count")
                )
            )
        revenue = pd.concat(parts).groupby(["order_date", "region"], as_index=False).sum()
        revenue["avg_order_value"] = revenue["total_revenue"] / revenue["order_count"]
        revenue.to_csv(work.out / "daily_revenue.csv", index=False)
        return {"revenue": float(revenue["total_revenue"].sum())}

    return run, lambda: None


def pandas_durable(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(a+) A pandas script that validates and keeps raw, rejected and completed rows as Parquet."""
    import numpy as np
    import pandas as pd

    from retail_assets.mapping.file_name import NATIVE

    def read(path: Path) -> Any:
        rows = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            on_bad_lines="skip",
            encoding="utf-8-sig",
            encoding_errors="replace",
        )
        extra = [name for name in rows.columns if name not in FIELDS]
        rows["extra"] = None
        if extra:
            rows["extra"] = rows[extra].to_json(orient="records", lines=True).splitlines()
        for name in FIELDS:
            rows[name] = rows[name].str.strip()
        rows["status"] = rows["status"].str.lower()
        rows["export_date"] = pd.Timestamp(NATIVE.day(path.name))
        rows["source_file"] = path.name
        rows["row_number"] = np.arange(len(rows))
        return rows.drop(columns=extra)

    def validate(rows: Any) -> Any:
        value = rows["order_value_gbp"].where(
            rows["order_value_gbp"].str.fullmatch(r"[+-]?\d{1,10}(\.\d{1,2}0*)?")
        )
        rows["value"] = pd.to_numeric(value, errors="coerce")
        offset = rows["order_timestamp"].str.contains(r"(?:Z|[+-]\d{2}:\d{2})$")
        when = pd.to_datetime(
            rows["order_timestamp"].where(~offset), errors="coerce", format="ISO8601"
        )
        if offset.any():
            aware = pd.to_datetime(
                rows["order_timestamp"][offset], errors="coerce", utc=True, format="ISO8601"
            )
            when[offset] = aware.dt.tz_convert("Europe/London").dt.tz_localize(None)
        rows["when"] = when
        rows["order_date"] = when.dt.normalize()
        late = (rows["export_date"] - rows["order_date"]).dt.days
        rows["reason"] = np.select(
            [
                (rows[list(FIELDS)] == "").any(axis=1),
                rows["value"].isna(),
                when.isna(),
                rows["value"] <= 0,
                ~rows["status"].isin(STATUSES),
                late < 0,
                late > 7,
                rows.duplicated("order_id", keep="last"),
            ],
            [
                "missing_value",
                "invalid_number",
                "invalid_timestamp",
                "not_positive",
                "unknown_status",
                "future_order",
                "too_late",
                "duplicate_order",
            ],
            default="",
        )
        return rows

    def run() -> Result:
        raws = []
        for path in work.exports:
            rows = validate(read(path))
            name = path.name.split(".")[0]
            good = rows[rows["reason"] == ""].drop(columns=["reason", "order_value_gbp"])
            good.to_parquet(work.out / f"raw_{name}.parquet", index=False)
            rows[rows["reason"] != ""].to_parquet(work.out / f"bad_{name}.parquet", index=False)
            raws.append(good)
        raw = pd.concat(raws)
        latest = raw.sort_values("export_date", kind="stable").drop_duplicates(
            "order_id", keep="last"
        )
        products = pd.read_csv(work.data / "reference/products.csv", dtype=str)
        customers = pd.read_csv(work.data / "reference/customers.csv", dtype=str)
        completed = (
            latest[latest["status"] == "completed"]
            .merge(
                products[["product_id", "product_name", "product_category"]],
                on="product_id",
                how="left",
            )
            .merge(
                customers[["customer_id", "customer_segment", "home_region"]],
                on="customer_id",
                how="left",
            )
            .fillna({"product_category": "unknown", "customer_segment": "unknown"})
        )
        completed.to_parquet(work.out / "completed.parquet", index=False)
        for name, keys in (
            ("daily_revenue", ["order_date", "region"]),
            ("daily_revenue_by_category", ["order_date", "region", "product_category"]),
        ):
            revenue = completed.groupby(keys, as_index=False).agg(
                total_revenue=("value", "sum"), order_count=("order_id", "count")
            )
            revenue["avg_order_value"] = revenue["total_revenue"] / revenue["order_count"]
            revenue.to_parquet(work.out / f"{name}.parquet", index=False)
        return {"revenue": float(completed["value"].sum()), "rows": len(raw)}

    return run, lambda: None


def duckdb_sql(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(b) Plain DuckDB SQL: raw, rejected, completed and revenue tables in a DuckDB file."""
    from benchmarks.batch_duckdb import job

    return job(work.data, work.out), lambda: None


def polars(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(p) Polars: raw, rejected, completed and revenue rows as Parquet files."""
    from benchmarks.batch_polars import job

    return job(work.data, work.out), lambda: None


def platform(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(c) This platform without Dagster: the same ingest, audits and publishing."""
    import narwhals as nw

    from retail_assets import tables
    from retail_assets.ingest.exports import load as order_exports
    from retail_assets.ingest.exports import reference
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.publish import publish_days, publish_table
    from retail_assets.transforms import orders, revenue

    lake = Lake.from_settings(_settings(work))

    def set_up() -> None:
        with lake.connect():
            pass

    def run() -> Result:
        with lake.connect() as connection:

            def rows(table: tables.Table, end: str = "") -> Any:
                relation = connection.table(f"lake.{table.name}")
                if table.day:
                    relation = relation.filter(f"{table.day} >= DATE '{work.first}'{end}")
                return nw.from_native(relation)

            for table in (tables.PRODUCTS, tables.CUSTOMERS):
                frame = reference.read_reference(work.data / "reference", table)
                publish_table(lake, connection, table, frame)
            order_exports.ingest(lake, connection, work.data / "exports", work.days, late_days=7)
            raw = rows(tables.RAW_ORDERS)
            published = publish_days(
                lake,
                connection,
                tables.COMPLETED_ORDERS,
                orders.completed_orders(raw, rows(tables.PRODUCTS), rows(tables.CUSTOMERS)),
                work.days,
                only_days=True,
                audit=lambda staged: orders.unreconciled_days(staged, raw),
            )
            completed = rows(tables.COMPLETED_ORDERS, f" AND order_date <= DATE '{work.last}'")
            for table, rule in (
                (tables.DAILY_REVENUE, revenue.daily_revenue),
                (tables.DAILY_REVENUE_BY_CATEGORY, revenue.daily_revenue_by_category),
            ):
                done = publish_days(
                    lake,
                    connection,
                    table,
                    rule(completed),
                    work.days,
                    audit=lambda staged: revenue.unreconciled_days(staged, completed),
                )
                if done.failed or len(done.rows) != len(work.days):
                    raise RuntimeError(done.failed)
            total = sum(Decimal(day["order_value_gbp"]) for day in published.measures.values())
            if not total:
                raise RuntimeError(published)
            (rejected,) = connection.execute(
                "SELECT count(*) FROM lake.rejected_orders"
            ).fetchone() or (0,)
            found = sum(published.rows.values())
            return {"revenue": float(total), "rows": found, "rejected": rejected}

    return run, set_up


def dagster_backfill(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(d) This platform in Dagster: one single-run backfill of the batch job, with its checks."""
    import dagster as dg

    from retail_assets.cli import backfill
    from retail_assets.lake.connection import Lake

    settings = _settings(work)
    _dagster_home(work, pooled=True)

    def set_up() -> None:
        with Lake.from_settings(settings).connect():
            pass
        dg.DagsterInstance.get().dispose()

    def run() -> Result:
        outcome = backfill.run_backfill(settings, work.first, work.last)
        if outcome.failed or outcome.problems:
            raise RuntimeError(outcome)
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            (total,) = connection.execute(
                "SELECT sum(total_revenue) FROM daily_revenue"
            ).fetchone() or (0,)
        return {"revenue": float(total)}

    return run, set_up


def dagster_empty(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(e) Dagster as it comes: a single-run backfill of as many assets that do nothing."""
    import dagster as dg

    os.environ.pop("DAGSTER_EVENT_BATCH_SIZE", None)
    _dagster_home(work, pooled=False)
    days = dg.DailyPartitionsDefinition(work.first.isoformat(), timezone="Europe/London")

    def empty(name: str, upstream: str | None) -> dg.AssetsDefinition:
        @dg.asset(
            name=name,
            deps=[upstream] if upstream else [],
            partitions_def=days,
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def nothing() -> None:
            return None

        return nothing

    chain = ("raw_orders", "rejected_orders", "completed_orders", "revenue", "by_category")
    definitions = dg.Definitions(
        assets=[empty(name, before) for name, before in zip(chain, (None, *chain), strict=False)],
        jobs=[dg.define_asset_job("empty", partitions_def=days)],
    )

    def run() -> Result:
        with dg.DagsterInstance.get() as instance:
            result = definitions.resolve_job_def("empty").execute_in_process(
                instance=instance,
                tags={
                    "dagster/asset_partition_range_start": work.first.isoformat(),
                    "dagster/asset_partition_range_end": work.last.isoformat(),
                },
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        if not result.success:
            raise RuntimeError(result)
        return {}

    return run, lambda: dg.DagsterInstance.get().dispose()


def dagster_run_per_day(work: Work) -> tuple[Callable[[], Result], Callable[[], None]]:
    """(f) Dagster with a run for each day and the default executor: a step, a process."""
    import subprocess

    settings = _settings(work)
    _dagster_home(work, pooled=False)
    os.environ.pop("DAGSTER_EVENT_BATCH_SIZE", None)
    os.environ |= {
        "RETAIL_DATA_DIR": str(settings.data_dir),
        "RETAIL_LAKE_CATALOG": settings.catalog,
        "RETAIL_LAKE_DATA": settings.data_path,
        "RETAIL_START_DATE": str(work.first),
    }
    module = work.out / "per_day.py"
    module.write_text(
        "import dagster as dg\n"
        "from retail_assets.definitions import build_definitions\n"
        "from retail_assets.settings import load_settings\n"
        "from dataclasses import replace\n"
        "defs = build_definitions(load_settings())\n"
        "defs = dg.Definitions(**{**{name: getattr(defs, name) for name in ('assets',"
        " 'asset_checks', 'jobs', 'resources')}, 'executor': dg.multiprocess_executor})\n"
    )

    def run() -> Result:
        for day in work.days:
            subprocess.run(
                [
                    sys.executable,
                    *("-m", "dagster", "job", "execute"),
                    *("-f", str(module), "-j", "batch", "--tags"),
                    json.dumps({"dagster/partition": day.isoformat()}),
                ],
                check=True,
                capture_output=True,
            )
        return {}

    return run, lambda: None


def _settings(work: Work) -> Any:
    from retail_assets.settings import Settings

    return Settings(
        data_dir=work.data,
        lake_catalog=str(work.out / "lake/catalog.sqlite"),
        lake_data=str(work.out / "lake/files"),
        start_date=work.first,
    )


def _dagster_home(work: Work, *, pooled: bool) -> None:
    home = work.out / "dagster"
    home.mkdir(parents=True)
    config = "telemetry:\n  enabled: false\n"
    if pooled:
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "500")
        config += (
            "event_log_storage:\n  module: retail_assets.defs.instance.event_log\n"
            f"  class: PooledSqliteEventLogStorage\n  config:\n    base_dir: {home}/history/runs\n"
        )
    (home / "dagster.yaml").write_text(config)
    os.environ["DAGSTER_HOME"] = str(home)


CASES = {
    "a": pandas_plain,
    "a+": pandas_durable,
    "b": duckdb_sql,
    "p": polars,
    "c": platform,
    "d": dagster_backfill,
    "e": dagster_empty,
    "f": dagster_run_per_day,
}


def main() -> None:
    """Do one case once."""
    case, data, out, first, last = sys.argv[1:]
    work = Work(Path(data), Path(out), date.fromisoformat(first), date.fromisoformat(last))
    run, set_up = CASES[case](work)
    set_up()
    began = time.perf_counter()
    result = run()
    result["seconds"] = time.perf_counter() - began
    usage = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    result["peak_mb"] = usage / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
