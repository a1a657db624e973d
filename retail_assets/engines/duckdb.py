"""Reading order exports with DuckDB: text fields in, typed columns out, nothing raised per row.

What cannot be read becomes null here; whether that matters is decided in `transforms.orders`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

REQUIRED = (
    "order_id",
    "customer_id",
    "product_id",
    "region",
    "status",
    "order_value_gbp",
    "order_timestamp",
)
"""The columns that every order export has, in any order."""

BLANKS = "' \t\r\n\u00a0'"
MONEY = r"[+-]?[0-9]{1,10}(\.[0-9]{1,2}0*)?"
DAY = r"\d{4}-\d{2}-\d{2}"
CLOCK = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?"
LOCAL_TIME = rf"{DAY}([T ]({CLOCK}|([01]\d|2[0-3]):[0-5]\d))?"
OFFSET_TIME = rf"{DAY}[T ]{CLOCK}([Zz]|[+-](0\d|1[0-4])(:?[0-5]\d)?)"

MAX_LINE_BYTES = 2_000_000

READ_ERRORS = (duckdb.InvalidInputException, duckdb.IOException, duckdb.ConversionException)
"""What DuckDB raises for a file that it cannot read."""


@dataclass(frozen=True)
class SourceFile:
    """An order export to read."""

    file_id: int
    export_date: date
    path: Path


ROWS = """
    file_id INTEGER, export_date DATE, order_date DATE, days_late BIGINT, order_id VARCHAR,
    customer_id VARCHAR, product_id VARCHAR, region VARCHAR, status VARCHAR,
    order_value_gbp DECIMAL(12,2), order_timestamp TIMESTAMP, extra VARCHAR,
    has_order_value BOOLEAN, has_order_timestamp BOOLEAN
"""
"""The columns of typed export rows, as `read_order_exports` inserts them."""


def read_order_exports(
    connection: duckdb.DuckDBPyConnection,
    into: str,
    files: Sequence[SourceFile],
    header: Sequence[str],
    *,
    strict: bool = True,
) -> None:
    """Read order exports of one header, typed, in file order.

    Args:
        connection: where the temporary tables are. Malformed records go to `temp.malformed`
            (file_id, record, error_type, raw_text).
        into: a temporary table with the columns `ROWS`; its rowids follow the order of rows.
        files: all compressed or none.
        header: the column names of the files, in order.
        strict: insist on RFC 4180; without, line ends may be mixed within a file.

    Raises:
        READ_ERRORS: if a file as a whole cannot be read. Nothing has been inserted then.
    """
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE file_ids AS SELECT unnest(?::INTEGER[]) AS file_id,"
        " unnest(?::DATE[]) AS export_date, unnest(?::VARCHAR[]) AS filename",
        [
            [file.file_id for file in files],
            [file.export_date for file in files],
            [str(file.path) for file in files],
        ],
    )
    try:
        connection.execute(
            f"INSERT INTO {into} " + _typed(header, _records(files, header, strict))
        )
        connection.execute(
            "INSERT INTO malformed SELECT f.file_id, e.line, min(e.error_type),"
            " coalesce(any_value(e.csv_line), '') FROM export_errors AS e"
            " JOIN export_scans AS s USING (scan_id, file_id)"
            " JOIN file_ids AS f ON f.filename = s.file_path GROUP BY f.file_id, e.line"
        )
    finally:
        for table in ("export_errors", "export_scans"):
            connection.execute(f"DROP TABLE IF EXISTS temp.main.{table}")


def raw_texts(
    files: Sequence[SourceFile],
    header: Sequence[str],
    first_rowid: int,
    rowids: str,
    *,
    strict: bool = True,
) -> str:
    """Return a query for the original fields of some rows, as JSON: (rowid, raw_text).

    Reading again costs less than keeping the text of every row for the few that are rejected.

    Args:
        files: the same files, in the same order, as when they were read.
        header: the column names of the files, in order.
        first_rowid: the rowid that the first row of the first file was given.
        rowids: a query for the rowids of interest.
        strict: as when they were read.
    """
    fields = ", ".join(f"{_quoted(name)} := r.{_quoted(name)}" for name in header)
    records = _records(files, header, strict, rejects=False)
    return (
        f"SELECT rowid_, to_json(struct_pack({fields}))::VARCHAR AS raw_text FROM (SELECT *,"
        f" row_number() OVER () + {int(first_rowid) - 1} AS rowid_ FROM {records}) AS r"
        f" WHERE rowid_ IN ({rowids})"
    )


def _records(
    files: Sequence[SourceFile], header: Sequence[str], strict: bool, rejects: bool = True
) -> str:
    paths = ", ".join(_literal(str(file.path)) for file in files)
    columns = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in header)
    compression = "gzip" if files[0].path.suffix == ".gz" else "none"
    errors = (
        "store_rejects = true, rejects_limit = 0, rejects_table = 'export_errors',"
        " rejects_scan = 'export_scans'"
        if rejects
        else "ignore_errors = true"
    )
    # Without new_line: naming it makes this version drop all rows of a file with other line ends.
    return (
        f"read_csv([{paths}], auto_detect = false, columns = {{{columns}}}, header = true,"
        f" delim = ',', quote = '\"', escape = '\"', compression = '{compression}',"
        f" filename = true, null_padding = false, strict_mode = {str(strict).lower()},"
        f" max_line_size = {MAX_LINE_BYTES}, {errors})"
    )


def _typed(header: Sequence[str], records: str) -> str:
    text = {name: f"nullif(trim(r.{name}, {BLANKS}), '')" for name in REQUIRED}
    extras = [name for name in header if name not in REQUIRED]
    extra = (
        "to_json(struct_pack("
        + ", ".join(f"{_quoted(name)} := r.{_quoted(name)}" for name in extras)
        + "))::VARCHAR"
        if extras
        else "NULL"
    )
    # A CASE evaluates its branches only where they apply: the slow conversion of time zones is
    # done for timestamps with an offset alone.
    return f"""
        SELECT file_id, export_date, order_timestamp::DATE AS order_date,
            export_date - order_timestamp::DATE AS days_late, order_id, customer_id, product_id,
            region, status, order_value_gbp, order_timestamp, extra, has_order_value,
            has_order_timestamp
        FROM (
            SELECT file_id, export_date, {text["order_id"]} AS order_id,
                {text["customer_id"]} AS customer_id, {text["product_id"]} AS product_id,
                {text["region"]} AS region, lower({text["status"]}) AS status,
                CASE WHEN regexp_full_match(value_text, '{MONEY}')
                    THEN TRY_CAST(value_text AS DECIMAL(12,2)) END AS order_value_gbp,
                CASE WHEN regexp_full_match(time_text, '{LOCAL_TIME}')
                    THEN TRY_CAST(time_text AS TIMESTAMP)
                    WHEN regexp_full_match(time_text, '{OFFSET_TIME}')
                    THEN TRY_CAST(upper(time_text) AS TIMESTAMPTZ)
                        AT TIME ZONE current_setting('TimeZone')
                    END AS order_timestamp,
                {extra} AS extra, value_text IS NOT NULL AS has_order_value,
                time_text IS NOT NULL AS has_order_timestamp
            FROM (
                SELECT *, {text["order_value_gbp"]} AS value_text,
                    {text["order_timestamp"]} AS time_text
                FROM {records} AS r JOIN file_ids USING (filename)
            ) AS r
        )
    """


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
