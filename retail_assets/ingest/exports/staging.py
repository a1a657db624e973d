"""Order exports in temporary tables: read, every record accounted for, validated.

A file that cannot be used fails alone, by name, and leaves no rows. The lake is not touched.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import duckdb
import narwhals as nw

from retail_assets.engines import duckdb as engine
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports import currencies
from retail_assets.ingest.exports.csv_file import check_complete, in_utf8, tidied, unmodified
from retail_assets.ingest.exports.csv_records import NATIVE, find_records
from retail_assets.ingest.exports.files import ExportFile
from retail_assets.ingest.exports.order_parts import date_refunds, gather_charges, settle_orders
from retail_assets.lake.connection import Lake
from retail_assets.lake.failures import bisect
from retail_assets.lake.sql import literal
from retail_assets.mapping import ExportMapping
from retail_assets.transforms import orders

T = TypeVar("T")

TEXTS_LENGTH = 1 << 20
"""About how many characters of malformed records are staged in one statement."""

_STAGING = {
    "export_rows": engine.ROWS,
    "malformed": engine.MALFORMED,
    "malformed_texts": "export_date DATE, record BIGINT, raw_text VARCHAR",
    "first_rows": "export_date DATE, source_file VARCHAR, first_rowid BIGINT, max_days_late BIGINT",
    "rejected_rows": "row_id BIGINT, export_date DATE, reason VARCHAR, field VARCHAR,"
    " raw_text VARCHAR",
    currencies.STAGED: currencies.COLUMNS,
    "line_numbers": "row_id BIGINT, export_date DATE, line_number BIGINT",
}
"""The temporary tables; `staged_raw` and `staged_rejects` follow from them."""

_REJECTS = """
    WITH stepping AS (
        -- How many malformed records stand before the well-formed row that follows so many others.
        SELECT export_date, max(n) AS n, record - 1 - n AS good_before FROM (
            SELECT export_date, record,
                row_number() OVER (PARTITION BY export_date ORDER BY record) AS n
            FROM malformed)
        GROUP BY export_date, record - 1 - n
    )
    SELECT f.export_date, r.reason, r.field, r.raw_text, f.source_file,
        r.row_id - f.first_rowid + 2 + coalesce(s.n, 0) AS row_number
    FROM rejected_rows AS r JOIN first_rows AS f USING (export_date)
    ASOF LEFT JOIN stepping AS s
        ON s.export_date = r.export_date AND r.row_id - f.first_rowid + 1 > s.good_before
    UNION ALL
    SELECT f.export_date,
        CASE m.error_type WHEN 'INVALID ENCODING' THEN 'not_utf8' WHEN 'SKIPPED ROW'
        THEN 'skipped_row' ELSE 'malformed_row' END, NULL,
        t.raw_text, f.source_file, m.record
    FROM malformed AS m JOIN malformed_texts AS t USING (export_date, record)
    JOIN first_rows AS f USING (export_date)
"""

_RAW = """
    SELECT r.export_date, r.order_date, r.order_id,
        coalesce(r.line_number, n.line_number, 1) AS line_number, r.customer_id, r.product_id,
        r.region, r.status, r.order_value_gbp, r.order_timestamp, r.extra, f.source_file,
        r.rowid - f.first_rowid + 1 AS row_number
    FROM export_rows AS r JOIN first_rows AS f USING (export_date)
    LEFT JOIN line_numbers AS n ON n.row_id = r.rowid
"""


@dataclass(frozen=True)
class Staged:
    """The files whose rows are staged, in `staged_raw` and `staged_rejects`, and the others.

    Rows and the most days that an order is late by export date; `failed` has the problem of each
    file that cannot be used.
    """

    files: Sequence[ExportFile]
    raw: Mapping[date, int]
    rejected: Mapping[date, int]
    max_days_late: Mapping[date, int | None]
    failed: Mapping[date, str]


@contextmanager
def staged_exports(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[ExportFile],
    *,
    late_days: int,
    max_order_gbp: float | None,
) -> Iterator[Staged]:
    """Stage some files for a while, by the rules that `ingest` describes."""
    staging = _Staging(lake, connection, late_days, max_order_gbp)
    try:
        for name, columns in _STAGING.items():
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
        failed = staging.read(files)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE staged_rejects AS {_REJECTS}")
        connection.execute(f"CREATE OR REPLACE TEMP VIEW staged_raw AS {_RAW}")
        read = [file for file in files if file.day not in failed]
        late = connection.execute("SELECT export_date, max_days_late FROM first_rows").fetchall()
        yield Staged(
            read,
            staging.counts("export_rows", read),
            staging.counts("staged_rejects", read),
            dict(late),
            failed,
        )
    finally:
        connection.execute("DROP VIEW IF EXISTS temp.main.staged_raw")
        for name in (
            *_STAGING,
            "foreign_rows",
            "shared_orders",
            "charges_of_rows",
            "staged_rejects",
        ):
            connection.execute(f"DROP TABLE IF EXISTS temp.main.{name}")


@dataclass(frozen=True)
class _Staging:
    lake: Lake
    connection: duckdb.DuckDBPyConnection
    late_days: int
    max_order_gbp: float | None

    def read(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """Read the files, those of one header at once; returns the problem of each that fails."""
        failed: dict[date, str] = {}

        def kind(file: ExportFile) -> tuple[str, tuple[str, ...]]:
            return file.path.suffix, file.header

        for _, group in groupby(sorted(files, key=kind), key=kind):
            failed |= self._stage(list(group))
        implausible = self._implausible(files)
        self._discard(implausible)
        return failed | implausible

    def _stage(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """Stage files of one header; returns the problem of each that cannot be.

        A file of which not every record is accounted for is staged again alone: read together with
        others, DuckDB neither raises nor notes what is wrong with its quotes.
        """
        again: list[ExportFile] = []

        def attempt(some: Sequence[ExportFile]) -> str | None:
            try:
                self._read_group(some)
                incomplete = self._incomplete(some)
            except engine.READ_ERRORS as error:
                self._discard([file.day for file in some])
                return _unreadable(some[0], error)
            self._discard(incomplete)
            if len(some) == 1:
                return incomplete.get(some[0].day)
            again.extend(file for file in some if file.day in incomplete)
            return None

        failing = list(bisect(files, attempt))
        failing += [(file, problem) for file in again if (problem := attempt([file]))]
        return {file.day: problem for file, problem in failing if not self._stage_tidied(file)}

    def _stage_tidied(self, file: ExportFile) -> bool:
        """Stage a file without its blank lines and with even line ends, if that helps."""
        if not unmodified(file):
            return False
        Path(self.lake.spill_dir).mkdir(parents=True, exist_ok=True)
        try:
            with TemporaryDirectory(dir=self.lake.spill_dir) as folder:
                self._read_group([tidied(file, Path(folder))])
            complete = not self._incomplete([replace(file, uneven=False)])
        except (*engine.READ_ERRORS, OSError, RetailAssetsError):
            complete = False
        if not complete:
            self._discard([file.day])
        return complete

    def _discard(self, days: Collection[date]) -> None:
        for table in _STAGING:
            self.connection.execute(
                f"DELETE FROM {table} WHERE export_date IN (SELECT unnest(?::DATE[]))", [list(days)]
            )

    def _incomplete(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """The files of which not every record is staged, typed or rejected, and why."""
        staged = " UNION ALL ".join(
            f"SELECT export_date FROM {table}"
            for table in ("export_rows", "rejected_rows", "malformed")
        )
        found = self.counts(f"({staged})", files)
        malformed: dict[date, list[int]] = {file.day: [] for file in files}
        for day, number in self.connection.execute(
            "SELECT export_date, record FROM malformed"
        ).fetchall():
            if day in malformed:
                malformed[day].append(number)
        problems: dict[date, str] = {}
        kept: Counter[date] = Counter()

        def texts() -> Iterator[tuple[date, int, str]]:
            for file in files:
                try:
                    check_complete(file, found[file.day])
                    if malformed[file.day] and not file.uneven:
                        for record in find_records(file.path, malformed[file.day], file.layout):
                            kept[file.day] += 1
                            yield file.day, record.number, record.text
                except RetailAssetsError as error:
                    problems[file.day] = str(error)

        self._keep_texts(texts())
        self._note_skipped(files[0].mapping, malformed)
        for file in files:
            if kept[file.day] != len(malformed[file.day]):
                problems.setdefault(
                    file.day,
                    f"{file.path} has malformed records whose text was not found in it: remove its"
                    " blank lines, end all lines alike, and ingest it again.",
                )
        return problems

    def _keep_texts(self, texts: Iterable[tuple[date, int, str]]) -> None:
        """Stage the texts of malformed records, each with its export date and number."""
        for some in batches(texts, lambda text: len(text[2]), TEXTS_LENGTH):
            self.connection.execute(
                "INSERT INTO malformed_texts SELECT unnest(?::DATE[]), unnest(?::BIGINT[]),"
                " unnest(?::VARCHAR[])",
                [*map(list, zip(*some, strict=True))],
            )

    def _note_skipped(self, mapping: ExportMapping, days: Collection[date]) -> None:
        """Note which malformed records of some days are comments or totals."""
        if mapping.skip_rows:
            self.connection.execute(
                "UPDATE malformed SET error_type = 'SKIPPED ROW' FROM malformed_texts AS t"
                " WHERE t.export_date IN (SELECT unnest(?::DATE[]))"
                " AND malformed.export_date = t.export_date"
                f" AND malformed.record = t.record AND {_is_skipped('t.raw_text', mapping)}",
                [list(days)],
            )

    def _implausible(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """The files with an order of implausible value, such as an id in the column of values.

        One of these would drown the revenue of years: the day fails until somebody has looked.
        """
        if self.max_order_gbp is None:
            return {}
        paths = {file.day: file.path for file in files}
        found = self.connection.execute(
            "SELECT export_date, arg_max(order_id, order_value_gbp), max(order_value_gbp)"
            " FROM export_rows WHERE order_value_gbp > ? GROUP BY export_date",
            [self.max_order_gbp],
        ).fetchall()
        return {
            day: f"{paths[day]}: order {order_id} is worth {value:,} GBP, more than"
            f" RETAIL_MAX_ORDER_GBP ({self.max_order_gbp:,.2f}): correct the export, or raise the"
            " setting if that is right, and run the day again."
            for day, order_id, value in found
        }

    def _read_group(self, files: Sequence[ExportFile]) -> None:
        """Stage the rows of some files, and move the well-formed ones that are rejected."""
        execute = self.connection.execute
        header, mapping = files[0].header, files[0].mapping
        with self._in_utf8(files) as paths:
            engine.read_order_exports(
                self.connection, "export_rows", "malformed", paths, header, mapping
            )
        execute(
            "INSERT INTO first_rows SELECT f.export_date, f.source_file, min(r.rowid),"
            " max(r.days_late) FROM"
            " (SELECT unnest(?::DATE[]) AS export_date, unnest(?::VARCHAR[]) AS source_file) AS f"
            " LEFT JOIN export_rows AS r USING (export_date) GROUP BY ALL",
            [[file.day for file in files], [file.path.name for file in files]],
        )
        days = ", ".join(f"DATE '{file.day}'" for file in files)
        rows = self.connection.sql(
            f"SELECT *, rowid AS row_number FROM export_rows WHERE export_date IN ({days})"
        )
        text = engine.raw_text("raw", header)
        if mapping.skip_rows:
            skipped = _is_skipped(
                f"raw[{len(engine.SEPARATOR) + 1}:]", mapping, between=engine.SEPARATOR
            )
            execute(
                f"INSERT INTO rejected_rows SELECT rowid, export_date, 'skipped_row', NULL, {text}"
                f" FROM export_rows WHERE export_date IN ({days}) AND {skipped}"
            )
            self._delete_rejected()
        if _names_currency(mapping, header):
            currencies.convert(self.connection, "export_rows", days)
        refunds = mapping.refunds != "reject"
        if mapping.refunds == "order_day":
            date_refunds(self.connection, days)
        if mapping.charges:
            gather_charges(self.connection, days)
        validated = orders.validate(nw.from_native(rows), late_days=self.late_days, refunds=refunds)
        execute(
            f"INSERT INTO rejected_rows SELECT row_number, export_date, reason, field, {text}"
            f" FROM ({validated.to_native().sql_query()}) WHERE reason IS NOT NULL"
        )
        self._delete_rejected()
        # Groups of hashes cost a third of groups of texts; few rows are left for the rules.
        execute(
            "CREATE OR REPLACE TEMP TABLE shared_orders AS SELECT rowid AS row_number, export_date,"
            " order_id, line_number, product_id, order_value_gbp FROM export_rows"
            f" WHERE export_date IN ({days}) AND hash(export_date, order_id) IN"
            " (SELECT hash(export_date, order_id) FROM export_rows"
            f" WHERE export_date IN ({days}) GROUP BY ALL HAVING count(*) > 1)"
        )
        candidates = nw.from_native(self.connection.table("temp.main.shared_orders"))
        if mapping.lines == "products":
            repeats = orders.repeated(candidates).to_native().sql_query()
            execute(
                "INSERT INTO rejected_rows SELECT r.rowid, r.export_date, 'duplicate_order',"
                f" 'order_id', {text} FROM export_rows AS r JOIN ({repeats}) AS d"
                " ON d.row_number = r.rowid"
            )
            self._delete_rejected()
            if mapping.charges:
                execute(
                    "DELETE FROM charges_of_rows WHERE row_id IN (SELECT row_id FROM rejected_rows"
                    " WHERE reason = 'duplicate_order')"
                )
        execute("DELETE FROM shared_orders WHERE row_number IN (SELECT row_id FROM rejected_rows)")
        numbers = orders.numbered(candidates).to_native().sql_query()
        execute(
            f"INSERT INTO line_numbers SELECT row_number, export_date, line_number FROM ({numbers})"
        )
        if mapping.charges or refunds:
            settle_orders(self.connection, mapping, days, text)

    @contextmanager
    def _in_utf8(self, files: Sequence[ExportFile]) -> Iterator[list[Path]]:
        """The paths of some files, or of copies in UTF-8."""
        if files[0].layout.encoding == NATIVE.encoding:
            yield [file.path for file in files]
            return
        Path(self.lake.spill_dir).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.lake.spill_dir) as folder:
            yield [in_utf8(file, Path(folder)).path for file in files]

    def _delete_rejected(self) -> None:
        self.connection.execute(
            "DELETE FROM export_rows WHERE rowid IN (SELECT row_id FROM rejected_rows)"
        )

    def counts(self, source: str, files: Sequence[ExportFile]) -> dict[date, int]:
        counts = dict(
            self.connection.execute(
                f"SELECT export_date, count(*) FROM {source} GROUP BY ALL"
            ).fetchall()
        )
        return {file.day: counts.get(file.day, 0) for file in files}


def _names_currency(mapping: ExportMapping, header: Sequence[str]) -> bool:
    field = mapping.fields.currency
    return all(source in header for source in field.sources)


def _is_skipped(text: str, mapping: ExportMapping, between: str | None = None) -> str:
    """SQL for whether the text of a row begins as a comment or total row does.

    Args:
        text: SQL for the text.
        mapping: how such rows begin.
        between: what stands between fields there, if it is not the delimiter.
    """
    before = engine.BLANK_CHARACTERS + '"'
    bare = f"ltrim({text}, {literal(before)})"
    begin = (
        each.strip().replace(mapping.delimiter, between or mapping.delimiter)
        for each in mapping.skip_rows
    )
    return " OR ".join(f"starts_with({bare}, {literal(each)})" for each in begin).join("()")


def _unreadable(file: ExportFile, error: duckdb.Error) -> str:
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, duckdb.OutOfMemoryException):
        reason += (
            f" ({len(file.header):,} columns): raise RETAIL_MEMORY_LIMIT, or export fewer columns"
        )
    return f"{file.path} cannot be read: {reason}."


def batches(items: Iterable[T], weight: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Items in lists that weigh no more than a limit, as far as one item does not."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + weight(item) > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight(item)
    if batch:
        yield batch
