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

STATUSES = ("completed", "pending", "cancelled", "returned", "refunded")
FIELDS = (
    "order_id",
    "customer_id",
    "product_id",
    "region",
    "status",
    "order_value_gbp",
    "order_timestamp",
)
TEXTS = tuple(name for name in FIELDS if name != "status")


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
        return sorted((self.data / "exports").glob("orders_*.csv*"))


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
    import csv
    import gzip
    from itertools import groupby

    import duckdb

    def header(path: Path) -> tuple[str, ...]:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            return tuple(next(csv.reader(file)))

    def source(paths: list[Path], names: tuple[str, ...]) -> str:
        columns = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
        return (
            f"read_csv({[str(path) for path in paths]}, columns = {{{columns}}}, header = true,"
            " auto_detect = false, delim = ',', quote = '\"', escape = '\"', filename = true,"
            " store_rejects = true, rejects_limit = 0)"
        )

    def run() -> Result:
        database = work.out / "orders.duckdb"
        with duckdb.connect(str(database)) as connection:
            execute = connection.execute
            execute("SET TimeZone = 'Europe/London'")
            headers = {path: header(path) for path in work.exports}
            reads = []
            for names, paths in groupby(sorted(work.exports, key=headers.__getitem__), headers.get):
                name = f"read_{len(reads)}"
                execute(f"CREATE TEMP TABLE {name} AS {_typed(source(list(paths), names or ()))}")
                reads.append(f"FROM {name}")
            rows = f"({' UNION ALL BY NAME '.join(reads)})"
            execute(
                f"CREATE TEMP TABLE used AS SELECT max(version) AS version FROM {rows}"
                " WHERE reason IS NULL GROUP BY order_id, export_date"
            )
            execute(
                f"CREATE TABLE raw_orders AS SELECT * EXCLUDE (reason) FROM {rows}"
                " SEMI JOIN used USING (version)"
            )
            execute(
                "CREATE TABLE rejected_orders AS SELECT * REPLACE (coalesce(reason,"
                f" 'duplicate_order') AS reason) FROM {rows} ANTI JOIN used USING (version)"
                " UNION ALL BY NAME SELECT DISTINCT ON (scan_id, file_id, line) csv_line AS"
                " order_id, 'malformed_row' AS reason FROM reject_errors"
            )
            for table in ("products", "customers"):
                path = work.data / f"reference/{table}.csv"
                execute(f"CREATE TABLE {table} AS FROM read_csv('{path}', all_varchar = true)")
            execute(
                "CREATE TABLE completed_orders AS SELECT o.*, product_name, product_category,"
                " customer_segment, home_region FROM raw_orders AS o LEFT JOIN products USING"
                " (product_id) LEFT JOIN customers USING (customer_id) WHERE version IN"
                " (SELECT max(version) FROM raw_orders GROUP BY order_id) AND status = 'completed'"
            )
            for name, keys in (
                ("daily_revenue", "order_date, region"),
                ("daily_revenue_by_category", "order_date, region, product_category"),
            ):
                execute(
                    f"CREATE TABLE {name} AS SELECT {keys}, sum(order_value_gbp) AS total_revenue,"
                    " count(*) AS order_count, avg(order_value_gbp) AS avg_order_value"
                    f" FROM completed_orders GROUP BY {keys}"
                )
            (revenue,) = execute("SELECT sum(total_revenue) FROM daily_revenue").fetchone() or (0,)
            (rows,) = execute("SELECT count(*) FROM completed_orders").fetchone() or (0,)
            (rejected,) = execute("SELECT count(*) FROM rejected_orders").fetchone() or (0,)
        with database.open("rb") as file:
            os.fsync(file.fileno())
        return {"revenue": float(revenue), "rows": rows, "rejected": rejected}

    return run, lambda: None


def _typed(source: str) -> str:
    """SQL for the rows of exports, typed, with the reason why a row cannot be used.

    `version` orders the rows of an order: by export, then by row.
    """
    blank = " OR ".join(f"r.{name} = ''" for name in FIELDS)
    return f"""
        SELECT * EXCLUDE (is_blank), order_timestamp::DATE AS order_date,
            CASE WHEN is_blank THEN 'missing_value'
            WHEN order_value_gbp IS NULL THEN 'invalid_number'
            WHEN order_timestamp IS NULL THEN 'invalid_timestamp'
            WHEN order_value_gbp <= 0 THEN 'not_positive'
            WHEN status NOT IN {STATUSES} THEN 'unknown_status'
            WHEN order_date > export_date THEN 'future_order'
            WHEN order_date < export_date - 7 THEN 'too_late' END AS reason
        FROM (
            SELECT * REPLACE (
                CASE WHEN regexp_full_match(order_value_gbp, '[+-]?\\d{{1,10}}(\\.\\d{{1,2}}0*)?')
                    THEN order_value_gbp::DECIMAL(12,2) END AS order_value_gbp,
                CASE WHEN length(order_timestamp) > 19
                    THEN TRY_CAST(order_timestamp AS TIMESTAMPTZ)::TIMESTAMP
                    ELSE TRY_CAST(order_timestamp AS TIMESTAMP) END AS order_timestamp),
                {blank} AS is_blank
            FROM (SELECT {", ".join(f"coalesce(trim({name}), '') AS {name}" for name in TEXTS)},
                lower(coalesce(trim(status), '')) AS status,
                strptime(regexp_extract(filename, 'orders_(.{{10}})', 1), '%Y_%m_%d')::DATE
                    AS export_date,
                (export_date - DATE '2000-01-01') * 100_000_000 + row_number() OVER () AS version
                FROM {source}) AS r)
    """


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
