"""Reads order exports with DuckDB: text fields in, typed columns out, no error per row.

Values that cannot be read are null; `transforms.orders` decides whether that matters.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from retail_assets.engines.mapped_fields import Spelling, number_of, text_of, text_to_read, time_of
from retail_assets.lake.sql import identifier, literal
from retail_assets.mapping.exports import ExportFields, ExportMapping, FileLayout
from retail_assets.mapping.fields import TextField
from retail_assets.mapping.file_name import FileName

BLANK_CHARACTERS = " \t\r\n\u00a0"
"""Characters trimmed from fields. An empty field, quoted or not, is null from the start."""

BLANKS = literal(BLANK_CHARACTERS)
"""The same in SQL."""

FILE_IN_PATH = r"[^/\\]*$"

MONEY = "[+-]?[0-9]{1,10}([.][0-9]{1,2}0*)?"
ANY_NUMBER = "[+-]?[0-9]+([.][0-9]+)?"
LINE_NUMBER = "[+]?[0-9]{1,9}([.]0*)?"
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

ROWS = """
    export_date DATE, order_date DATE, days_late BIGINT, order_id VARCHAR, customer_id VARCHAR,
    product_id VARCHAR, region VARCHAR, status VARCHAR, order_value_gbp DECIMAL(12,2),
    order_timestamp TIMESTAMP, line_number BIGINT, currency VARCHAR, extra VARCHAR,
    has_order_value BOOLEAN, has_order_timestamp BOOLEAN, has_line_number BOOLEAN, raw VARCHAR,
    charges VARCHAR, unreadable_charge VARCHAR
"""
"""The columns of typed export rows.

`raw` has the original fields, each between two separators; `charges` is a JSON object of the
order's charges by name, null where the row has none.
"""

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
    mapping: ExportMapping,
) -> None:
    """Read order exports of one header, typed, in file order.

    Args:
        connection: where the temporary tables are.
        rows: a temporary table with the columns `ROWS`; its rowids follow the order of rows.
        malformed: a temporary table with the columns `MALFORMED`.
        paths: the files, in UTF-8, all compressed or none; the date is in the name.
        header: the column names of the files, in order.
        mapping: how they are written, and which column is which field.

    Raises:
        READ_ERRORS: if a file as a whole cannot be read. Nothing has been inserted then.
    """
    try:
        connection.execute(f"INSERT INTO {rows} {_typed(header, paths, mapping)}")
        day = _date_of("s.file_path", mapping.file_name)
        before = mapping.header_line - 1  # DuckDB counts these lines, too
        connection.execute(
            f"INSERT INTO {malformed} SELECT {day}, e.line - {before}, min(e.error_type)"
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


def _records(paths: Sequence[Path], header: Sequence[str], layout: FileLayout) -> str:
    files = ", ".join(literal(str(path)) for path in paths)
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in _fields(header).values())
    compression = "gzip" if paths[0].suffix == ".gz" else "none"
    # This avoids two faults of DuckDB. With new_line given, a file with other line ends loses all
    # rows. If only some columns are used, a malformed row is an internal error; `raw` uses all.
    return (
        f"read_csv([{files}], auto_detect = false, columns = {{{columns}}}, header = true,"
        f" delim = {literal(layout.delimiter)}, quote = '\"', escape = '\"',"
        f" compression = '{compression}', skip = {layout.header_line - 1},"
        f" filename = true, null_padding = false, strict_mode = true,"
        f" max_line_size = {MAX_LINE_BYTES}, store_rejects = true, rejects_limit = 0,"
        " rejects_table = 'export_errors', rejects_scan = 'export_scans')"
    )


def _fields(header: Sequence[str]) -> dict[str, str]:
    """SQL names for the columns of a file, whose own names may be anything."""
    return {name: f"field_{position}" for position, name in enumerate(header)}


def _typed(header: Sequence[str], paths: Sequence[Path], mapping: ExportMapping) -> str:
    columns = _fields(header)
    known = [name for name in mapping.sources if name in columns]
    separator = literal(SEPARATOR)
    raw = ", ".join([separator, *(f"{field}, {separator}" for field in columns.values())])
    tidy = "".join(
        f", CASE WHEN untidy THEN nullif(trim({columns[name]}, {BLANKS}), '')"
        f" ELSE {columns[name]} END AS {columns[name]}"
        for name in known
    )
    # Whether some field has blanks around it: a regular expression would double the time.
    untidy = " OR ".join(
        [
            *(f"{columns[name]} LIKE ' %' OR {columns[name]} LIKE '% '" for name in known),
            *(f"contains(raw, {literal(blank)})" for blank in "\t\r\n\u00a0"),
        ]
    )
    kept = {name: field for name, field in columns.items() if name not in mapping.used_up}
    extra = ", ".join(f"{identifier(name)} := {field}" for name, field in kept.items())
    extra = f"to_json(struct_pack({extra}))::VARCHAR" if extra else "NULL"
    row_no = ", row_no" if mapping.fills else ""
    fields, spelling = mapping.fields, _spelling(mapping)
    # A CASE evaluates a branch only for the rows that need it: trimming and time zones are slow.
    return f"""
        SELECT export_date, order_timestamp::DATE AS order_date,
            export_date - order_timestamp::DATE AS days_late, order_id, customer_id, product_id,
            region, status, order_value_gbp, order_timestamp, line_number, currency, extra,
            has_order_value, has_order_timestamp, has_line_number, raw, charges, unreadable_charge
        FROM (
            SELECT export_date, order_id, customer_id, product_id, region, lower(status) AS status,
                {_amount(fields.order_value_gbp, "order_value_gbp", spelling)} AS order_value_gbp,
                {time_of(fields.order_timestamp, "order_timestamp", spelling)} AS order_timestamp,
                {number_of(fields.line_number, "line_number", spelling, LINE_NUMBER, "BIGINT")}
                    AS line_number,
                upper(currency) AS currency,
                extra, order_value_gbp IS NOT NULL AS has_order_value,
                order_timestamp IS NOT NULL AS has_order_timestamp,
                line_number IS NOT NULL AS has_line_number, raw, {_charges(mapping)}{row_no}
            FROM (
                SELECT export_date, {_texts(columns, mapping)}, extra, raw{row_no}
                FROM (
                    SELECT export_date{tidy}, {extra} AS extra, raw{row_no}
                    FROM (
                        SELECT *, {untidy} AS untidy
                            {", row_number() OVER () AS row_no" if mapping.fills else ""}
                        FROM (
                            SELECT *, concat({raw}) AS raw,
                                {_date_of("filename", mapping.file_name)} AS export_date
                            FROM {_records(paths, header, mapping)}
                        )
                    )
                )
            )
        )
        {"ORDER BY row_no" if mapping.fills else ""}
    """


def _texts(columns: dict[str, str], mapping: ExportMapping) -> str:
    """SQL for the text of each field of `ExportFields`, from the columns without blanks."""
    spelling = _spelling(mapping)
    order_id = text_of(mapping.fields.order_id, lambda source: columns[source], spelling)
    order = f"PARTITION BY export_date, {order_id}"

    def text(source: str) -> str:
        column = columns[source]
        if source not in mapping.fills:
            return column
        return f"coalesce({column}, max({column}) OVER ({order}))"

    texts = []
    for name in ExportFields.model_fields:
        field = getattr(mapping.fields, name)
        there = field is not None and all(source in columns for source in field.sources)
        value = text_to_read(field, text, spelling) if there else "NULL::VARCHAR"
        texts.append(f"{value} AS {name}")
    for name, charge in mapping.charges.items():
        texts.append(f"{text_to_read(charge, text, spelling)} AS charge_{name}")
    return ", ".join(texts)


def _charges(mapping: ExportMapping) -> str:
    """SQL for `charges` and `unreadable_charge`, from the texts of the charges."""
    if not mapping.charges:
        return "NULL::VARCHAR AS charges, NULL::VARCHAR AS unreadable_charge"
    spelling = _spelling(mapping)
    amounts = {
        name: _amount(charge, f"charge_{name}", spelling)
        for name, charge in mapping.charges.items()
    }
    packed = ", ".join(f"{identifier(name)} := {amount}" for name, amount in amounts.items())
    there = ", ".join(f"charge_{name}" for name in amounts)
    unreadable = " ".join(
        f"WHEN charge_{name} IS NOT NULL AND {amount} IS NULL THEN {literal(name)}"
        for name, amount in amounts.items()
    )
    return (
        f"CASE WHEN coalesce({there}) IS NOT NULL THEN to_json(struct_pack({packed}))::VARCHAR END"
        f" AS charges, CASE {unreadable} END AS unreadable_charge"
    )


def _amount(field: TextField, text: str, spelling: Spelling) -> str:
    return number_of(field, text, spelling, MONEY, "DECIMAL(12,2)")


def identity_of(mapping: ExportMapping) -> tuple[Sequence[str], str]:
    """What tells the order of a row and its day, as the typed read has them.

    Returns:
        The columns that are read, and a query whose parameters are lists of their texts. It gives
        the `order_id`, the day (DATE, in the session's time zone), both null where there is none,
        and whether the value is negative (BOOLEAN).
    """
    fields = mapping.fields
    names, texts, lists = _from_lists(
        mapping, fields.order_id, fields.order_timestamp, fields.order_value_gbp
    )
    order, time, value = texts
    spelling = _spelling(mapping)
    amount = number_of(fields.order_value_gbp, "order_value", spelling, ANY_NUMBER, "DECIMAL(38,6)")
    return names, (
        f"SELECT order_id, ({time_of(fields.order_timestamp, 'text', spelling)})::DATE,"
        f" coalesce({amount} < 0, false)"
        f" FROM (SELECT {order} AS order_id, {time} AS text, {value} AS order_value FROM {lists})"
    )


def order_id_of(mapping: ExportMapping) -> tuple[Sequence[str], str]:
    """The columns and the query, as of `identity_of`, for the `order_id` alone."""
    names, (order,), lists = _from_lists(mapping, mapping.fields.order_id)
    return names, f"SELECT {order} FROM {lists}"


def _from_lists(mapping: ExportMapping, *fields: TextField) -> tuple[list[str], list[str], str]:
    """The columns of some fields, SQL for their texts, and a table of lists of the columns."""
    names = dict.fromkeys(source for field in fields for source in field.sources)
    columns = {name: f"c{n}" for n, name in enumerate(names)}
    lists = ", ".join(f"unnest(?::VARCHAR[]) AS {column}" for column in columns.values())

    def text(source: str) -> str:
        return f"nullif(trim({columns[source]}, {BLANKS}), '')"

    spelling = _spelling(mapping)
    texts = [text_to_read(field, text, spelling) for field in fields]
    return list(names), texts, f"(SELECT {lists})"


def _spelling(mapping: ExportMapping) -> Spelling:
    return Spelling.of(mapping, mapping.timezone)


def _date_of(path: str, name: FileName) -> str:
    """SQL for the date in a file's name, which DuckDB computes once per file."""
    file = f"regexp_extract({path}, {literal(FILE_IN_PATH)})"
    found = f"regexp_extract({file}, {literal(name.regex)}, 1)"
    return f"strptime({found}, {literal(name.format)})::DATE"
