"""Reads order exports with DuckDB: text fields in, typed columns out, no error per row.

Values that cannot be read are null; `transforms.orders` decides whether that matters.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from retail_assets.engines.timestamps import wall_clock
from retail_assets.lake.sql import identifier, literal

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

OPTIONAL = ("line_number", "currency")
"""Further columns that have a meaning where an export has them; a currency is kept as an extra."""

BLANKS = "' \t\r\n\u00a0'"
"""Characters trimmed from fields. An empty field, quoted or not, is null from the start."""

MONEY = r"[+-]?[0-9]{1,10}(\.[0-9]{1,2}0*)?"
LINE_NUMBER = r"\+?[0-9]{1,9}(\.0*)?"
MAX_LINE_BYTES = 2_000_000

READ_ERRORS = (
    duckdb.DataError,
    duckdb.InternalError,
    duckdb.InvalidInputException,
    duckdb.IOException,
    duckdb.OutOfMemoryException,
)
"""DuckDB's errors for a file that it cannot read."""

SEPARATOR = "\x1f"
"""The control character Unit Separator, between the fields in `raw`."""

DATE_IN_NAME = r"(\d{4}_\d{2}_\d{2})\.csv(\.gz)?$"

ROWS = """
    export_date DATE, order_date DATE, days_late BIGINT, order_id VARCHAR, customer_id VARCHAR,
    product_id VARCHAR, region VARCHAR, status VARCHAR, order_value_gbp DECIMAL(12,2),
    order_timestamp TIMESTAMP, line_number BIGINT, currency VARCHAR, extra VARCHAR,
    has_order_value BOOLEAN, has_order_timestamp BOOLEAN, has_line_number BOOLEAN, raw VARCHAR
"""
"""The columns of typed export rows; `raw` has the original fields, each between two separators."""

MALFORMED = "export_date DATE, record BIGINT, error_type VARCHAR"
"""The columns of malformed records; the header of a file is its record 1.

Blank lines are counted as well. DuckDB's text of a record is not used: it may be cut, missing, or
that of another record.
"""


def read_order_exports(
    connection: duckdb.DuckDBPyConnection,
    rows: str,
    malformed: str,
    paths: Sequence[Path],
    header: Sequence[str],
) -> None:
    """Read order exports of one header, typed, in file order.

    Args:
        connection: where the temporary tables are.
        rows: a temporary table with the columns `ROWS`; its rowids follow the order of rows.
        malformed: a temporary table with the columns `MALFORMED`.
        paths: the files, all compressed or none; the date is in the name.
        header: the column names of the files, in order.

    Raises:
        READ_ERRORS: if a file as a whole cannot be read. Nothing has been inserted then.
    """
    try:
        connection.execute(f"INSERT INTO {rows} {_typed(header, _records(paths, header))}")
        connection.execute(
            f"INSERT INTO {malformed} SELECT {_date_of('s.file_path')}, e.line, min(e.error_type)"
            " FROM export_errors AS e JOIN export_scans AS s USING (scan_id, file_id) GROUP BY ALL"
        )
    finally:
        for table in ("export_errors", "export_scans"):
            connection.execute(f"DROP TABLE IF EXISTS temp.main.{table}")


def raw_text(raw: str, header: Sequence[str]) -> str:
    """Return an SQL expression for the original fields of a row, as a JSON object.

    Args:
        raw: an expression for the column `raw`.
        header: the column names of the file, in order.
    """
    parts = f"string_split({raw}, {literal(SEPARATOR)})"
    fields = ", ".join(
        f"{identifier(name)} := {parts}[{position}]"
        for position, name in enumerate(header, start=2)
    )
    # If a field has the separator itself, the ends of fields are unknown.
    return (
        f"CASE WHEN len({parts}) = {len(header) + 2}"
        f" THEN to_json(struct_pack({fields}))::VARCHAR ELSE {raw} END"
    )


def _records(paths: Sequence[Path], header: Sequence[str]) -> str:
    files = ", ".join(literal(str(path)) for path in paths)
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in _fields(header).values())
    compression = "gzip" if paths[0].suffix == ".gz" else "none"
    # This avoids two faults of DuckDB. With new_line given, a file with other line ends loses all
    # rows. If only some columns are used, a malformed row is an internal error; `raw` uses all.
    return (
        f"read_csv([{files}], auto_detect = false, columns = {{{columns}}}, header = true,"
        f" delim = ',', quote = '\"', escape = '\"', compression = '{compression}',"
        f" filename = true, null_padding = false, strict_mode = true,"
        f" max_line_size = {MAX_LINE_BYTES}, store_rejects = true, rejects_limit = 0,"
        " rejects_table = 'export_errors', rejects_scan = 'export_scans')"
    )


def _fields(header: Sequence[str]) -> dict[str, str]:
    """SQL names for the columns of a file, whose own names may be anything."""
    return {name: f"field_{position}" for position, name in enumerate(header)}


def _typed(header: Sequence[str], records: str) -> str:
    fields = _fields(header)
    known = [name for name in (*REQUIRED, *OPTIONAL) if name in fields]
    line_number, currency = (name if name in known else "NULL" for name in OPTIONAL)
    separator = literal(SEPARATOR)
    raw = ", ".join([separator, *(f"{field}, {separator}" for field in fields.values())])
    tidy = {
        name: f"CASE WHEN untidy THEN nullif(trim({field}, {BLANKS}), '') ELSE {field} END"
        for name, field in fields.items()
        if name in known
    }
    extras = ", ".join(
        f"{identifier(name)} := {field}"
        for name, field in fields.items()
        if name not in known or name == "currency"
    )
    extra = f"to_json(struct_pack({extras}))::VARCHAR" if extras else "NULL"
    # Whether some field has blanks around it: a regular expression would double the time.
    untidy = " OR ".join(
        [
            *(f"{fields[name]} LIKE ' %' OR {fields[name]} LIKE '% '" for name in known),
            *(f"contains(raw, {literal(blank)})" for blank in "\t\r\n\u00a0"),
        ]
    )
    # A CASE evaluates a branch only for the rows that need it: trimming and time zones are slow.
    return f"""
        SELECT export_date, order_timestamp::DATE AS order_date,
            export_date - order_timestamp::DATE AS days_late, order_id, customer_id, product_id,
            region, status, order_value_gbp, order_timestamp, line_number, currency, extra,
            has_order_value, has_order_timestamp, has_line_number, raw
        FROM (
            SELECT export_date, order_id, customer_id, product_id, region, lower(status) AS status,
                CASE WHEN regexp_full_match(order_value_gbp, '{MONEY}')
                    THEN TRY_CAST(order_value_gbp AS DECIMAL(12,2)) END AS order_value_gbp,
                {wall_clock("order_timestamp")} AS order_timestamp,
                CASE WHEN regexp_full_match({line_number}, '{LINE_NUMBER}')
                    THEN TRY_CAST({line_number} AS BIGINT) END AS line_number,
                upper({currency}) AS currency,
                extra, order_value_gbp IS NOT NULL AS has_order_value,
                order_timestamp IS NOT NULL AS has_order_timestamp,
                {line_number} IS NOT NULL AS has_line_number, raw
            FROM (
                SELECT export_date, {", ".join(f"{text} AS {name}" for name, text in tidy.items())},
                    {extra} AS extra, raw
                FROM (
                    SELECT *, {untidy} AS untidy
                    FROM (
                        SELECT *, concat({raw}) AS raw,
                            {_date_of("filename")} AS export_date
                        FROM {records}
                    )
                )
            )
        )
    """


def _date_of(path: str) -> str:
    """SQL for the date in a file's name, which DuckDB computes once per file."""
    return f"strptime(regexp_extract({path}, {literal(DATE_IN_NAME)}, 1), '%Y_%m_%d')::DATE"
