"""What becomes of a sample of an export by a mapping: nothing is stored."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from retail_assets import tables
from retail_assets.engines.duckdb import raw_text
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import inspect
from retail_assets.ingest.exports.csv_records import find_records
from retail_assets.ingest.exports.files import ExportFile, ExportFolder
from retail_assets.ingest.exports.reference import read_reference, reference_path
from retail_assets.ingest.exports.rejects import value_of_field
from retail_assets.ingest.exports.split import split_exports
from retail_assets.ingest.exports.staging import staged_exports
from retail_assets.lake.connection import Lake
from retail_assets.mapping.exports import ExportFields
from retail_assets.settings import Settings
from retail_assets.transforms.orders import REASONS

SHOWN_ROWS = 2

SHOWN_VALUES = 5


@dataclass(frozen=True)
class Fault:
    """Rows that are rejected for one reason, with their values of the field, most frequent first.

    `line` is where the first of them stands in the sample.
    """

    reason: str
    field: str | None
    rows: int
    line: int
    values: Sequence[str]

    @property
    def sentence(self) -> str:
        """What is wrong, where, and the rule."""
        shown = ", ".join(repr(value[:80]) for value in self.values)
        where = f" in {self.field}" if self.field else ""
        rule = REASONS.get(self.reason, "")
        return f"{self.reason}{where}: {self.rows:,} rows, first line {self.line}: {shown}. {rule}"


@dataclass(frozen=True)
class SampleResult:
    """What became of a sample.

    `columns` has the column of each field, and `rows` the first usable rows: what stands in these,
    and what became of it.
    """

    columns: Mapping[str, str]
    rows: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]
    usable: int
    faults: Sequence[Fault]

    @property
    def fields(self) -> Sequence[str]:
        """The fields of an order."""
        return tuple(ExportFields.model_fields)

    def cells(self, field: str) -> list[Any]:
        """What stands in each row for a field, and what became of it."""
        column = self.columns.get(field, "")
        return [cell for row, order in self.rows for cell in (row.get(column, ""), order[field])]


def check_sample(settings: Settings, sample: Path) -> SampleResult:
    """Read a sample of an export as the mapping of the settings says.

    Args:
        settings: the mapping, the zone, and the limits on late orders.
        sample: the file; whatever it is called, it is read as an export.

    Raises:
        RetailAssetsError: if the file as a whole cannot be read.
    """
    with TemporaryDirectory() as folder:
        aside = Settings(data_dir=Path(folder), exports=None, mapping=settings.mapping)
        try:
            with _staged(aside, sample, settings.reference_dir) as (connection, files):
                return SampleResult(
                    aside.export_mapping.columns,
                    _first_rows(connection, files),
                    sum(connection.table("export_rows").shape[:1]),
                    _faults(aside, connection, {file.day: file.path for file in files}),
                )
        except RetailAssetsError as error:
            copies = re.compile(rf"{re.escape(str(aside.exports_dir))}/[^\s:,]*")
            said = (copies.sub(lambda _: str(sample), each) for each in str(error).splitlines())
            raise RetailAssetsError(*said) from error


@contextmanager
def _staged(
    settings: Settings, sample: Path, reference_dir: Path
) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[ExportFile]]]:
    mapping = settings.source_mapping.exports
    name = mapping.file_name
    settings.exports_dir.mkdir()
    day = name.day(sample.name) or date.today()  # noqa: DTZ011  # any day will do
    matches = name.matches(sample.name)
    called = sample.name if matches else name.of_day(day).replace("*", "sample")
    try:
        copyfile(sample, settings.exports_dir / called)
    except OSError as error:
        raise RetailAssetsError(f"{sample} cannot be read: {error.strerror}.") from error
    split = split_exports(settings)
    problems = [*split.failed.values()]
    folder = ExportFolder(settings.exports_dir, mapping.daily)
    files = [] if problems else [inspect(folder.locate(each)) for each in folder.days()]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = ?", [settings.timezone])
        _add_rates(connection, settings, reference_dir)
        lake = Lake.from_settings(settings)
        # An order of a sample that is not called as an export may be of any day.
        late_days = settings.late_days if matches else 1_000_000
        with staged_exports(
            lake, connection, files, late_days=late_days, max_order_gbp=settings.max_order_gbp
        ) as staged:
            problems += staged.failed.values()
            if problems:
                raise RetailAssetsError(*problems)
            yield connection, files


def _add_rates(
    connection: duckdb.DuckDBPyConnection, settings: Settings, reference_dir: Path
) -> None:
    """Have the rates of the data folder where a lake has them."""
    table = tables.CURRENCY_RATES
    columns = ", ".join(f"{name} {type_}" for name, type_ in table.types.items())
    connection.execute("ATTACH ':memory:' AS lake")
    connection.execute(f"CREATE TABLE lake.{table.name} ({columns})")
    if reference_path(reference_dir, table).is_file():
        mapping = settings.source_mapping.reference.of(table.name)
        connection.register("rates", read_reference(reference_dir, table, mapping))
        connection.execute(f"INSERT INTO lake.{table.name} BY NAME FROM rates")


def _first_rows(
    connection: duckdb.DuckDBPyConnection, files: Sequence[ExportFile]
) -> list[tuple[Mapping[str, str], Mapping[str, Any]]]:
    if not files:
        return []
    fields = ", ".join(ExportFields.model_fields)
    found = connection.execute(
        f"SELECT {raw_text('raw', files[0].header)}, {fields} FROM export_rows"
        f" WHERE export_date = ? ORDER BY rowid LIMIT {SHOWN_ROWS}",
        [files[0].day],
    ).fetchall()
    return [
        (json.loads(raw), dict(zip(ExportFields.model_fields, values, strict=True)))
        for raw, *values in found
    ]


def _faults(
    settings: Settings, connection: duckdb.DuckDBPyConnection, paths: Mapping[date, Path]
) -> list[Fault]:
    mapping = settings.export_mapping
    found = connection.execute(
        "SELECT reason, field, sum(n)::BIGINT, min(first), min(source_line),"
        f" list(value ORDER BY n DESC, value)[:{SHOWN_VALUES}] FROM ("
        " SELECT reason, field, count(*) AS n, min((export_date, row_number)) AS first,"
        " min(TRY_CAST(row ->> '$.source_line' AS BIGINT)) AS source_line,"
        f" coalesce({value_of_field(mapping, 'row')}, raw_text) AS value FROM ("
        "  SELECT *, CASE WHEN json_valid(raw_text) THEN raw_text END AS row FROM staged_rejects"
        ") GROUP BY ALL) GROUP BY ALL ORDER BY 3 DESC, 1, 2"
    ).fetchall()
    faults = []
    for reason, field, rows, (day, record), source_line, values in found:
        line = source_line or next(iter(find_records(paths[day], [record], mapping))).line
        faults.append(Fault(reason, field and mapping.shown(field), rows, line, values))
    return faults
