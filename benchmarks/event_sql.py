"""Event pipelines in SQL that the platform is compared with: plain DuckDB, and chDB.

Each does the same durable work: every line kept, valid events enriched and each once, dead letters
with their reason, in three tables whose files are synced. They repeat the rules on purpose, and
import nothing of the platform.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Counts = dict[str, Any]

STATUSES = "('completed', 'pending', 'cancelled', 'returned', 'refunded')"
TEXTS = ("event_id", "order_id", "customer_id", "product_id", "region", "status")
FIELDS = (*TEXTS, "order_value_gbp", "quantity", "event_timestamp")
REQUIRED = ("order_id", "customer_id", "order_value_gbp", "region")

_TIME = "event_timestamp::TIMESTAMPTZ"


def duckdb_sql(events: Path, reference: Path, out: Path) -> Callable[[], Counts]:
    """Plain DuckDB SQL: read, validate, find duplicates, join; three Parquet files, synced."""
    import duckdb

    def run() -> Counts:
        with duckdb.connect() as connection:
            execute = connection.execute
            execute("SET TimeZone = 'Europe/London'; SET preserve_insertion_order = false")
            execute(
                "CREATE TABLE lines AS SELECT row_number() OVER () AS position, payload FROM"
                f" read_csv('{events}', columns = {{'payload': 'VARCHAR'}}, header = false,"
                " auto_detect = false, delim = '\x01', quote = '', escape = '',"
                " max_line_size = 4000000)"
            )
            execute(f"CREATE TABLE events AS {_validated('lines')}")
            execute(
                "CREATE TABLE copies AS SELECT position FROM (SELECT position, row_number() OVER"
                " (PARTITION BY event_id ORDER BY position) AS copy FROM events"
                " SEMI JOIN (SELECT event_id FROM events WHERE reason IS NULL"
                " GROUP BY event_id HAVING count(*) > 1) AS repeated USING (event_id)"
                " WHERE reason IS NULL) WHERE copy > 1"
            )
            for name in ("products", "customers"):
                execute(
                    f"CREATE TABLE {name} AS FROM read_csv('{reference / name}.csv',"
                    " all_varchar = true)"
                )
            enriched = """
                SELECT events.* EXCLUDE (payload, reason), now() AS processed_at,
                    event_timestamp::DATE AS order_date,
                    CASE WHEN order_value_gbp >= 500 THEN 'high' WHEN order_value_gbp >= 100
                        THEN 'mid' ELSE 'low' END AS value_tier,
                    coalesce(product_name, 'unknown') AS product_name,
                    coalesce(product_category, 'unknown') AS product_category,
                    coalesce(customer_segment, 'unknown') AS customer_segment,
                    coalesce(home_region, 'unknown') AS home_region
                FROM events ANTI JOIN copies USING (position)
                LEFT JOIN products USING (product_id)
                LEFT JOIN customers USING (customer_id) WHERE reason IS NULL
            """
            written = {
                "raw": "SELECT position, payload, event_id FROM events",
                "enriched": enriched,
                "dead": "SELECT position, reason, payload FROM events WHERE reason IS NOT NULL",
            }
            for name, query in written.items():
                execute(f"COPY ({query}) TO '{out / name}.parquet'")
                _sync(out / f"{name}.parquet")
            _sync(out)
            return _counts(
                lambda name, what: (
                    execute(f"SELECT {what} FROM '{out / name}.parquet'").fetchone() or (0,)
                )[0]
            )

    return run


def _validated(lines: str) -> str:
    """SQL for typed events with the reason why a line is none."""
    schema = ", ".join(f'"{name}": "JSON"' for name in FIELDS)
    nothing = ", ".join(f'"{name}": null' for name in FIELDS)
    texts = ", ".join(
        f"CASE WHEN f.{name} LIKE '\"%' THEN trim(f.{name} ->> '$') END AS {name}" for name in TEXTS
    )
    missing = " OR ".join(f"f.{name} IS NULL" for name in REQUIRED)
    wrong = " OR ".join(f"(f.{name} IS NOT NULL AND {name} IS NULL)" for name in TEXTS)
    return f"""
        SELECT position, payload, coalesce(nullif(event_id, ''), sha256(payload)) AS event_id,
            order_id, customer_id, product_id, region,
            coalesce(lower(status), 'completed') AS status,
            TRY_CAST(number AS DECIMAL(12,2)) AS order_value_gbp, quantity, event_timestamp, extra,
            CASE WHEN form IS NULL THEN 'not_json' WHEN form <> 'OBJECT' THEN 'not_an_object'
                WHEN {missing} THEN 'missing_field' WHEN {wrong} THEN 'wrong_type'
                WHEN order_id = '' OR customer_id = '' OR region = '' THEN 'blank_value'
                WHEN number IS NULL THEN 'wrong_type' WHEN NOT isfinite(number) THEN 'not_finite'
                WHEN number <= 0 THEN 'not_positive'
                WHEN number >= 9999999999.995 THEN 'out_of_range'
                WHEN abs(number * 100 - round(number * 100)) > 0.0001 THEN 'fraction_of_penny'
                WHEN f.quantity IS NOT NULL AND quantity IS NULL THEN 'wrong_type'
                WHEN quantity <= 0 THEN 'not_positive'
                WHEN lower(status) NOT IN {STATUSES} THEN 'unknown_status'
                WHEN f.event_timestamp IS NOT NULL AND event_timestamp IS NULL
                    THEN 'invalid_timestamp'
                WHEN event_timestamp NOT BETWEEN TIMESTAMPTZ '2000-01-01' AND now() + INTERVAL 1 DAY
                    THEN 'absurd_timestamp' END AS reason
        FROM (
            SELECT *, {texts}, TRY_CAST(f.order_value_gbp ->> '$' AS DOUBLE) AS number,
                TRY_CAST(f.quantity::VARCHAR AS BIGINT) AS quantity,
                TRY_CAST(f.event_timestamp ->> '$' AS TIMESTAMPTZ) AS event_timestamp,
                CASE WHEN len(keys) > {len(FIELDS)} THEN
                    json_merge_patch(payload, '{{{nothing}}}')::VARCHAR END AS extra
            FROM (
                SELECT *, CASE WHEN json_valid(payload) THEN json_type(payload) END AS form,
                    CASE WHEN form = 'OBJECT' THEN json_transform(payload, '{{{schema}}}') END AS f,
                    CASE WHEN form = 'OBJECT' THEN json_keys(payload) END AS keys
                FROM {lines}
            )
        )
    """


def chdb_sql(events: Path, reference: Path, out: Path) -> Callable[[], Counts]:
    """SQL of chDB, ClickHouse in the process: the same into three MergeTree tables, synced."""
    from chdb.session import Session

    session = Session(str(out / "clickhouse"))
    text = ", ".join(f"{name} Nullable(String)" for name in FIELDS)
    missing = " OR ".join(f"f.{name} IS NULL" for name in REQUIRED)
    wrong = " OR ".join(f"JSONType(payload, '{name}') NOT IN ('String', 'Null')" for name in TEXTS)
    nothing = ", ".join(f"'{name}'" for name in FIELDS)
    attributes = ("product_name", "product_category", "customer_segment", "home_region")
    validated = f"""
        WITH JSONExtract(payload, 'Tuple({text})') AS f,
            toFloat64OrNull(f.order_value_gbp) AS number
        SELECT position, payload,
            ifNull(nullIf(trim(ifNull(f.event_id, '')), ''), hex(SHA256(payload))) AS event_id,
            trim(ifNull(f.order_id, '')) AS order_id,
            trim(ifNull(f.customer_id, '')) AS customer_id, trim(ifNull(f.region, '')) AS region,
            trim(f.product_id) AS product_id, lower(trim(ifNull(f.status, 'completed'))) AS status,
            toDecimal64OrNull(f.order_value_gbp, 2) AS order_value_gbp,
            toInt64OrNull(f.quantity) AS quantity,
            parseDateTime64BestEffortOrNull(f.event_timestamp, 6, 'Europe/London')
                AS event_timestamp,
            if(JSONLength(payload) > {len(FIELDS)}, toJSONString(CAST(arrayFilter(
                pair -> pair.1 NOT IN ({nothing}), JSONExtractKeysAndValuesRaw(payload)),
                'Map(String, String)')), NULL) AS extra,
            multiIf(NOT isValidJSON(payload), 'not_json',
                JSONType(payload) <> 'Object', 'not_an_object',
                {missing}, 'missing_field', {wrong}, 'wrong_type',
                order_id = '' OR customer_id = '' OR region = '', 'blank_value',
                number IS NULL, 'wrong_type', NOT isFinite(number), 'not_finite',
                number <= 0, 'not_positive', number >= 9999999999.995, 'out_of_range',
                abs(number * 100 - round(number * 100)) > 0.0001, 'fraction_of_penny',
                f.quantity IS NOT NULL AND quantity IS NULL, 'wrong_type',
                quantity <= 0, 'not_positive', status NOT IN {STATUSES}, 'unknown_status',
                f.event_timestamp IS NOT NULL AND event_timestamp IS NULL, 'invalid_timestamp',
                event_timestamp NOT BETWEEN toDateTime('2000-01-01 00:00:00') AND
                    now() + INTERVAL 1 DAY, 'absurd_timestamp', '') AS reason
        FROM (SELECT rowNumberInAllBlocks() + 1 AS position, payload
            FROM file('{events}', 'LineAsString', 'payload String'))
    """
    enriched = f"""
        SELECT e.* EXCEPT (payload, reason), now() AS processed_at,
            toDate(event_timestamp) AS order_date,
            multiIf(order_value_gbp >= 500, 'high', order_value_gbp >= 100, 'mid', 'low')
                AS value_tier,
            {", ".join(f"if({name} = '', 'unknown', {name}) AS {name}" for name in attributes)}
        FROM events AS e
        LEFT JOIN file('{reference}/products.csv', 'CSVWithNames', 'product_id String,
            product_name String, product_category String') AS p USING (product_id)
        LEFT JOIN file('{reference}/customers.csv', 'CSVWithNames', 'customer_id String,
            customer_segment String, home_region String') AS c USING (customer_id)
        WHERE reason = '' AND position IN
            (SELECT min(position) FROM events WHERE reason = '' GROUP BY event_id)
    """
    written = {
        "raw": "SELECT position, payload, event_id FROM events",
        "enriched": enriched,
        "dead": "SELECT position, reason, payload FROM events WHERE reason <> ''",
    }

    def run() -> Counts:
        session.query("CREATE DATABASE benchmark; USE benchmark")
        session.query(
            "CREATE TABLE events ENGINE = Memory AS" + validated + " SETTINGS"
            " max_parsing_threads = 1, input_format_parallel_parsing = 0"
        )
        for name, query in written.items():
            session.query(
                f"CREATE TABLE {name} ENGINE = MergeTree ORDER BY position SETTINGS"
                f" fsync_after_insert = 1, fsync_part_directory = 1 AS {query}"
            )
        return _counts(
            lambda name, what: session.query(f"SELECT {what} FROM {name}", "TSV").data().strip()
        )

    return run


def _counts(one: Callable[[str, str], Any]) -> Counts:
    return {
        "lines": int(one("raw", "count(*)")),
        "accepted": int(one("enriched", "count(*)")),
        "dead": int(one("dead", "count(*)")),
        "revenue": float(one("enriched", "sum(order_value_gbp)")),
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
