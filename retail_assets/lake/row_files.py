"""Writes the rows of a query to a file: CSV, Parquet or an Excel workbook.

The rows leave the lake's connection as Arrow batches, and a DuckDB of their own writes them. So the
connection to the lake needs no right to write, and memory stays bounded.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.lake.connection import Lake, extension_path
from retail_assets.lake.sql import identifier, literal, numbered

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.lake.reader import LakeReader

BATCH_ROWS = 50_000

FORMATS = {
    ".csv": "FORMAT csv, HEADER true",
    ".parquet": "FORMAT parquet",
    ".xlsx": "FORMAT xlsx, HEADER true",
}
"""DuckDB's options by the ending of the file's name."""

FORMULA = r"^[=+\-@\t\r\n＝＋－＠]"  # spreadsheets take these for = + - @, too
"""The beginning of texts that a spreadsheet would run as formulas
(https://owasp.org/www-community/attacks/CSV_Injection)."""

EXCEL_DIGITS = 15
"""The digits that Excel keeps of a number; others become zeros."""

_EXCEL_TYPES = frozenset(
    (
        *("BOOLEAN", "DATE", "DOUBLE", "FLOAT", "TIME", "TIMESTAMP", "VARCHAR"),
        *("INTEGER", "SMALLINT", "TINYINT", "UINTEGER", "USMALLINT", "UTINYINT"),
    )
)
"""The types that Excel has. Others become texts, except numbers that may be long."""

_WIDE = re.compile(r"DECIMAL\((\d+),(\d+)\)|U?BIGINT|U?HUGEINT")


def write_rows(lake: Lake, reader: "LakeReader", sql: str, path: Path, *, raw: bool) -> int:
    """Write the rows of a query to a file, whole or not at all; an existing one is replaced.

    Args:
        lake: the lake.
        reader: a reader of it.
        sql: one query.
        path: a name that ends as one of `FORMATS`.
        raw: CSV: leave texts that a spreadsheet would run as formulas as they are, instead of
            writing an apostrophe before them.

    Returns:
        How many rows were written.

    Raises:
        UsageError: if the name has another ending, or lies in the folder of the lake.
        RetailAssetsError: if the query fails, the file cannot be written, or Excel cannot hold the
            rows.
    """
    options = FORMATS.get(path.suffix.lower())
    if options is None:
        raise UsageError(f"{path} ends with none of {', '.join(FORMATS)}: these can be written.")
    _check_folder(lake, path)
    part = path.with_name(f".{path.name}.part")
    try:
        with duckdb.connect() as writer:
            if path.suffix.lower() == ".xlsx":
                writer.execute(f"LOAD {literal(str(extension_path('excel')))}")
            writer.execute(f"SET TimeZone = {literal(lake.timezone)}")
            writer.register("rows", _renamed(reader.sql(sql).to_arrow_reader(BATCH_ROWS)))
            select = _select(writer, path.suffix.lower(), raw=raw)
            (count,) = writer.execute(
                f"COPY ({select}) TO {literal(str(part))} ({options})"
            ).fetchone() or (0,)
        part.replace(path)
    except (OSError, duckdb.Error) as error:
        reason = str(error).splitlines()[0]
        raise RetailAssetsError(f"{path} was not written: {reason}") from error
    finally:
        part.unlink(missing_ok=True)
    return int(count)


def _check_folder(lake: Lake, path: Path) -> None:
    """Make sure that the file is not in a folder of the lake."""
    own = [lake.data_path] if lake.on_postgres else [lake.data_path, str(Path(lake.catalog).parent)]
    for folder in own:
        if "://" not in folder and path.absolute().resolve().is_relative_to(Path(folder).resolve()):
            raise UsageError(f"{path} lies in the folder of the lake: name another folder.")


def _renamed(batches: "pa.RecordBatchReader") -> "pa.RecordBatchReader":
    """Give each column a name of its own."""
    import pyarrow as pa

    names = numbered(batches.schema.names)
    schema = pa.schema(
        [field.with_name(name) for field, name in zip(batches.schema, names, strict=True)]
    )
    return pa.RecordBatchReader.from_batches(
        schema, (batch.rename_columns(names) for batch in batches)
    )


def _select(writer: duckdb.DuckDBPyConnection, ending: str, *, raw: bool) -> str:
    """The query for `rows` with the values that the kind of file can hold."""
    columns = [
        (identifier(name), str(type_))
        for name, type_, *_ in writer.execute("DESCRIBE rows").fetchall()
    ]
    if ending == ".xlsx":
        return f"SELECT {', '.join(_excel(name, type_) for name, type_ in columns)} FROM rows"
    if ending == ".csv" and not raw:
        return f"SELECT {', '.join(_safe(name, type_) for name, type_ in columns)} FROM rows"
    return "FROM rows"


def _safe(name: str, type_: str) -> str:
    value = (
        name
        if type_ != "VARCHAR"
        else (
            f"CASE WHEN regexp_matches({name}, {literal(FORMULA)}) THEN concat('''', {name})"
            f" ELSE {name} END"
        )
    )
    head = name if not re.match(FORMULA, name[1:-1]) else identifier(f"'{name[1:-1]}")
    return f"{value} AS {head}"


def _excel(name: str, type_: str) -> str:
    if type_ == "TIMESTAMP WITH TIME ZONE":
        # Excel knows no zones: the time of the wall clock in the business time zone.
        return f"{name}::TIMESTAMP AS {name}"
    wide = _WIDE.fullmatch(type_)
    if wide:
        scale = int(wide[2] or 0)
        too_long = literal(
            f"{name} has a number of more than {EXCEL_DIGITS} digits, which Excel would change:"
            " write CSV or Parquet, or cast it to VARCHAR"
        )
        return (
            f"CASE WHEN abs({name}::DOUBLE) >= 1e{EXCEL_DIGITS - scale} THEN error({too_long})"
            f" ELSE {name} END AS {name}"
        )
    if type_ in _EXCEL_TYPES:
        return name
    return f"{name}::VARCHAR AS {name}"
