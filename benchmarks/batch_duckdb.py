"""The batch job in plain DuckDB: raw, rejected, completed and revenue tables in a file, synced.

It repeats the rules on purpose, and imports nothing of the platform.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.batch_input import FIELDS, STATUSES, by_header

TEXTS = tuple(name for name in FIELDS if name != "status")


def job(data: Path, out: Path) -> Callable[[], dict[str, Any]]:
    """Return the job over all exports of a data folder."""

    def source(paths: list[Path], names: tuple[str, ...]) -> str:
        columns = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
        return (
            f"read_csv({[str(path) for path in paths]}, columns = {{{columns}}}, header = true,"
            " auto_detect = false, delim = ',', quote = '\"', escape = '\"', filename = true,"
            " store_rejects = true, rejects_limit = 0)"
        )

    def run() -> dict[str, Any]:
        database = out / "orders.duckdb"
        with duckdb.connect(str(database)) as connection:
            execute = connection.execute
            execute("SET TimeZone = 'Europe/London'")
            reads = []
            for names, paths in by_header(data):
                name = f"read_{len(reads)}"
                execute(f"CREATE TEMP TABLE {name} AS {_typed(source(paths, names))}")
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
                path = data / f"reference/{table}.csv"
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

    return run


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
