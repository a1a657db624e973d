"""Reference data into the lake: a file replaces its table, all or nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.engines import event_lines
from retail_assets.engines.duckdb import BLANKS, MONEY
from retail_assets.engines.mapped_fields import Spelling, text_of
from retail_assets.engines.timestamps import DAY
from retail_assets.errors import AuditError, RetailAssetsError
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.exports import currencies
from retail_assets.ingest.exports.csv_file import (
    CsvFile,
    RowFormat,
    check_complete,
    in_utf8,
    inspect,
)
from retail_assets.ingest.rates import RATES
from retail_assets.ingest.repair import rates
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake
from retail_assets.lake.sql import identifier, literal
from retail_assets.mapping.exports import TableMapping, native_mapping
from retail_assets.mapping.fields import TimeField
from retail_assets.mapping.model import EventMappings
from retail_assets.tables import Table
from retail_assets.tables.model import Column
from retail_assets.transforms import events

if TYPE_CHECKING:
    import pyarrow as pa

LOOKED_UP = {
    tables.PRODUCTS: ("product_name", "product_category"),
    tables.CUSTOMERS: ("customer_segment", "home_region"),
}
"""The attributes that completed orders take over: a change makes their days stale."""

REFERENCE = (tables.PRODUCTS, tables.CUSTOMERS, tables.CURRENCY_RATES)
"""The tables that reference files fill."""

OPTIONAL = (tables.CURRENCY_RATES,)
"""Those that need no file."""

ABOVE_ZERO = r"0*[1-9]\d*(\.\d+)?|0+\.\d{0,9}[1-9]\d*"

WRITTEN = {
    tables.MONEY: MONEY,
    tables.RATE: ABOVE_ZERO,
    "BIGINT": r"[+-]?\d{1,18}",
    "DATE": DAY,
}
"""How values of a type are written: a cast alone would round, and take `infinity` for a date."""

IN_WORDS = {tables.RATE: f"a number above zero ({tables.RATE})"}
"""What such values are, where the type does not say it."""

SHOWN_ROWS = 3


def reference_path(reference_dir: Path, table: Table) -> Path:
    """Where a reference table's file lies."""
    return reference_dir / f"{table.name}.csv"


def _locate(reference_dir: Path, table: Table, mapping: TableMapping) -> CsvFile:
    path = reference_path(reference_dir, table)
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise RetailAssetsError(f"{path} does not exist: put the reference file there.") from error
    except OSError as error:
        raise RetailAssetsError(f"{path} cannot be read: {error.strerror}.") from error
    forms = "|".join(WRITTEN[type_] for type_ in table.types.values() if type_ in WRITTEN)
    # A row has a typed value, or a blank in its place.
    telling = re.compile(rf"({forms})?\Z")
    rows = RowFormat(mapping.sources, telling, layout=mapping)
    return CsvFile(path, rows, stat.st_size, stat.st_mtime_ns)


def read_reference(
    reference_dir: Path, table: Table, mapping: TableMapping | None = None
) -> "pa.Table":
    """Read a reference file.

    Args:
        reference_dir: where it lies.
        table: the table that it fills.
        mapping: how it is written; None: each field in a column of its name.

    Returns:
        The columns of the table; further columns of the file are left out. Whether keys are unique
        and required values there is checked when it is published.

    Raises:
        RetailAssetsError: if the file is missing, lacks columns, has values of a wrong type, or if
            a quote takes rows into its field; it names the rows.
    """
    mapping = mapping or native_mapping(table.column_names)
    file = inspect(_locate(reference_dir, table, mapping))
    with TemporaryDirectory() as folder, duckdb.connect() as connection:
        readable = in_utf8(file, Path(folder))
        _read_rows(connection, readable)
        check_complete(file, connection.table("rows").shape[0])
        if mapping.skip_rows:
            first = f"ltrim({identifier(file.header[0])}, {BLANKS})"
            skipped = (f"starts_with({first}, {literal(each)})" for each in mapping.skip_rows)
            connection.execute(f"DELETE FROM rows WHERE {' OR '.join(skipped)}")
        text = {column.name: _text(mapping, column) for column in table.columns}
        if table is tables.CURRENCY_RATES:
            text["currency"] = f"upper({text['currency']})"
        for column in table.columns:
            if column.type != "VARCHAR":
                _check_type(connection, file.path, column, text[column.name], mapping)
        select = ", ".join(
            f"CAST({text[name]} AS {type_}) AS {name}" for name, type_ in table.types.items()
        )
        return connection.sql(f"SELECT {select} FROM rows ORDER BY record").to_arrow_table()


def _read_rows(connection: duckdb.DuckDBPyConnection, file: CsvFile) -> None:
    """Read a file into a temporary table `rows`, with the number of each `record`."""
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in file.header)
    try:
        connection.execute(
            "CREATE TEMP TABLE rows AS SELECT row_number() OVER () + 1 AS record, * FROM"
            f" read_csv(?, auto_detect = false, columns = {{{columns}}}, header = true,"
            f" delim = {literal(file.layout.delimiter)}, skip = {file.layout.header_line - 1},"
            " quote = '\"', escape = '\"')",
            [str(file.path)],
        )
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise RetailAssetsError(f"{file.path} cannot be read: {reason}") from error


def _text(mapping: TableMapping, column: Column) -> str:
    """SQL for the text of a field; NULL where the mapping has none."""
    field = mapping.field(column.name)
    if field is None:
        return "NULL::VARCHAR"
    text = text_of(
        field,
        lambda source: f"nullif(trim({identifier(source)}, {BLANKS}), '')",
        Spelling.of(mapping, None),
    )
    if isinstance(field, TimeField) and field.format:
        # A day, not a time.
        return f"regexp_replace({text}, {literal(rf'^({DAY}) 00:00:00$')}, '\\1')"
    return text


def _check_type(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    column: Column,
    text: str,
    mapping: TableMapping,
) -> None:
    field = mapping.field(column.name)
    shown = text if field is None or field.source is None else identifier(field.source)
    wrong = connection.execute(
        f"SELECT record, {shown} FROM rows WHERE {text} IS NOT NULL"
        f" AND (TRY_CAST({text} AS {column.type}) IS NULL OR NOT regexp_full_match({text}, ?))"
        f" ORDER BY record LIMIT {SHOWN_ROWS}",
        [WRITTEN[column.type]],
    ).fetchall()
    if wrong:
        examples = ", ".join(f"record {record} has {value!r}" for record, value in wrong)
        raise RetailAssetsError(
            f"{path}: {column.name} must be {IN_WORDS.get(column.type, column.type)}, but"
            f" {examples}."
            " Correct the file; the table stays as it was."
        )


def no_rows(table: Table) -> "pa.Table":
    """The table without rows, where there is no file."""
    nothing = ", ".join(f"NULL::{type_} AS {name}" for name, type_ in table.types.items())
    with duckdb.connect() as connection:
        return connection.sql(f"SELECT {nothing} LIMIT 0").to_arrow_table()


def before_swap(
    table: Table, lake: Lake, mappings: EventMappings = (), *, max_shrink: float
) -> Callable[[duckdb.DuckDBPyConnection, str], None]:
    """Work before the staged rows of a reference file replace the old ones.

    Args:
        table: the table that the file fills.
        lake: the lake that has it.
        mappings: how events of other shapes are written: `settings.source_mapping.events`.
        max_shrink: the share of its rows that may be gone, from 0 to 1; more raise an AuditError.
            Rates may be gone only with 1: orders of their days would not count any more.
    """

    def prepare(connection: duckdb.DuckDBPyConnection, staged: str) -> None:
        _check_shrink(table, connection, staged, max_shrink)
        restate(table, lake, connection, staged, mappings)

    return prepare


def _check_shrink(
    table: Table, connection: duckdb.DuckDBPyConnection, staged: str, max_shrink: float
) -> None:
    key = ", ".join(table.key)
    had, gone = connection.execute(
        f"SELECT count(*), count(*) FILTER (({key}) NOT IN (SELECT {key} FROM {staged}))"
        f" FROM lake.{table.name}"
    ).fetchone() or (0, 0)
    if table is tables.CURRENCY_RATES and gone and max_shrink < 1:
        raise AuditError(
            f"{gone:,} of the {had:,} rates in the lake are not in {table.name}.csv: the table"
            " stays as it was, because amounts of their days would have no rate. Keep the rates of"
            " earlier days in the file; if they were wrong, run"
            f" `retail-assets reference load {table.name} --allow-shrink`."
        )
    if gone > had * max_shrink:
        raise AuditError(
            f"{gone:,} of the {had:,} {table.name} in the lake are not in {table.name}.csv, more"
            f" than RETAIL_REFERENCE_MAX_SHRINK={max_shrink} allows: the table stays as it was."
            " Send the whole file; if this one is whole, run"
            f" `retail-assets reference load {table.name} --allow-shrink`."
        )


def restate(
    table: Table,
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    staged: str,
    mappings: EventMappings = (),
) -> None:
    """Let a change of reference data reach what was made with the old.

    The days of the completed orders that it concerns are marked as changed, and the events that it
    concerns are enriched again, so that the order of arrival makes no difference. Called in the
    transaction that swaps the staged rows in, while the table has its old rows.
    """
    if table is tables.CURRENCY_RATES:
        _restate_rates(EventSession(lake, connection, mappings), staged)
        return
    key, columns = table.key[0], ", ".join((*table.key, *LOOKED_UP[table]))
    old, new = f"SELECT {columns} FROM lake.{table.name}", f"SELECT {columns} FROM {staged}"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE changed_keys AS SELECT DISTINCT {key}"
        f" FROM (({old} EXCEPT {new}) UNION ALL ({new} EXCEPT {old}))"
    )
    concerned = f"{key} IN (SELECT {key} FROM temp.main.changed_keys)"
    found = connection.execute(
        f"SELECT DISTINCT order_date FROM lake.completed_orders WHERE {concerned}"
    ).fetchall()
    ledger.mark_changed(connection, "orders", [day for (day,) in found])
    if table is tables.PRODUCTS:
        # Consumers look up the categories of lines, and follow the events.
        concerned = (
            f"({concerned} OR (lines IS NOT NULL AND list_has_any({event_lines.products('lines')},"
            f" (SELECT list({key}) FROM temp.main.changed_keys))))"
        )
    _enrich_again(table, connection, staged, concerned)
    connection.execute("DROP TABLE temp.main.changed_keys")


def _restate_rates(session: EventSession, staged: str) -> None:
    connection = session.connection
    columns = ", ".join(tables.CURRENCY_RATES.column_names)
    old, new = f"SELECT {columns} FROM {RATES}", f"SELECT {columns} FROM {staged}"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE changed_rates AS SELECT DISTINCT currency, day"
        f" FROM (({old} EXCEPT {new}) UNION ALL ({new} EXCEPT {old}))"
    )
    currencies.restate(connection, staged, "temp.main.changed_rates")
    rates.restate(session, staged, "temp.main.changed_rates")
    connection.execute("DROP TABLE temp.main.changed_rates")


def _enrich_again(
    table: Table, connection: duckdb.DuckDBPyConnection, staged: str, concerned: str
) -> None:
    looked_up = ", ".join(name for names in LOOKED_UP.values() for name in names)
    rows = connection.sql(
        # Not validated again: `processed_at` says with which mapping they were.
        f"SELECT * EXCLUDE ({looked_up}), order_date AS event_date"
        f" FROM lake.enriched_events WHERE {concerned}"
    )
    sources = {
        source: connection.table(staged if source is table else f"lake.{source.name}")
        for source in LOOKED_UP
    }
    enriched = events.enrich(
        nw.from_native(rows),
        nw.from_native(sources[tables.PRODUCTS]),
        nw.from_native(sources[tables.CUSTOMERS]),
    ).select(*tables.ENRICHED_EVENTS.column_names)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE restated_events AS {enriched.to_native().sql_query()}"
    )
    connection.execute(f"DELETE FROM lake.enriched_events WHERE {concerned}")
    connection.execute(
        "INSERT INTO lake.enriched_events BY NAME SELECT * FROM temp.main.restated_events"
    )
    connection.execute("DROP TABLE temp.main.restated_events")
