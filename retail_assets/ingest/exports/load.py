"""Order exports into `raw_orders` and `rejected_orders`, each with its ledger entry, exactly once.

A day's file is read, validated by `transforms.orders`, and put in place of what an earlier version
of the file gave, in one transaction. A file with the same bytes as the ledger's is left alone,
unless the rules or settings have changed that it was validated with.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.engines import duckdb as engine
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import check_complete, inspect, tidied, unmodified
from retail_assets.ingest.exports.csv_records import find_records
from retail_assets.ingest.exports.files import ExportFile, MissingExportError, locate
from retail_assets.ingest.exports.other_files import lookalikes
from retail_assets.ingest.ledgers.exports import ExportEntry, export_entries
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.publish import Publication, replace_days
from retail_assets.lake.rows import insert_columns
from retail_assets.transforms import orders

T = TypeVar("T")

SHOWN_LOOKALIKES = 3

TEXTS_LENGTH = 1 << 20
"""About how many characters of malformed records are staged in one statement."""

BATCH_BYTES = 512 << 20
"""Files are ingested together up to this size, so that what is staged stays bounded."""


@dataclass(frozen=True)
class Ingested:
    """The result of an ingest: one publication of each table, and the days that were unchanged."""

    raw: Publication
    rejected: Publication
    unchanged: tuple[date, ...] = ()


def ingest(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    exports_dir: Path,
    days: Collection[date],
    *,
    late_days: int,
    max_order_gbp: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Ingested:
    """Ingest the exports of some days; a bad file fails its own day alone, by name.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        exports_dir: where `orders_YYYY_MM_DD.csv[.gz]` lie.
        days: the export dates to ingest.
        late_days: how many days before its export an order may lie.
        max_order_gbp: an export with an order worth more fails its day; None: no limit.
        progress: called with the number of days done, after each batch.

    Returns:
        Row counts of each day that is in the lake now (of unchanged days, as the ledger has them),
        and the problem of each day that failed, which is in the ledger as well.
    """
    files, failed = _inspect(exports_dir, days)
    known = export_entries(connection, [file.day for file in files])
    unchanged = {
        file.day: known[file.day]
        for file in files
        if file.day in known
        and known[file.day].content_hash == file.content_hash
        and known[file.day].up_to_date(late_days=late_days, timezone=lake.timezone)
    }
    raw = {day: entry.raw_rows for day, entry in unchanged.items()}
    rejected = {day: entry.rejected_rows for day, entry in unchanged.items()}
    _note(lake, connection, [file for file in files if file.day in unchanged], known, failed)
    snapshot = current_snapshot(connection) if unchanged else None
    done = len(failed) + len(unchanged)
    progress(done)
    changed = [file for file in files if file.day not in unchanged]
    for batch in _batches(changed, lambda file: file.weight, BATCH_BYTES):
        result = _Batch(lake, connection, late_days, max_order_gbp).ingest(batch)
        raw |= result.raw
        rejected |= result.rejected
        failed |= result.failed
        snapshot = result.snapshot or snapshot
        done += len(batch)
        progress(done)
    return Ingested(
        Publication(tables.RAW_ORDERS, raw, failed, snapshot),
        Publication(tables.REJECTED_ORDERS, rejected, failed, snapshot),
        tuple(unchanged),
    )


def _inspect(exports_dir: Path, days: Collection[date]) -> tuple[list[ExportFile], dict[date, str]]:
    """The exports of some days, and the problem of each day that has none of use."""
    files: list[ExportFile] = []
    failed: dict[date, str] = {}
    missing: list[date] = []
    for day in sorted(set(days)):
        try:
            files.append(inspect(locate(exports_dir, day)))
        except RetailAssetsError as error:
            failed[day] = str(error)
            if isinstance(error, MissingExportError):
                missing.append(day)
    similar = lookalikes(exports_dir) if missing else {}
    for day in missing:
        if day in similar:
            names = ", ".join(map(repr, similar[day][:SHOWN_LOOKALIKES]))
            failed[day] += f" Its date is in the name of {names}: should that be it, rename it."
    return files, failed


def _note(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    unchanged: Sequence[ExportFile],
    known: Mapping[date, ExportEntry],
    failed: Mapping[date, str],
) -> None:
    """Note the failures, and the names and times of files whose bytes are the ledger's."""
    recovered = ledger.failures(connection, tables.RAW_ORDERS, [file.day for file in unchanged])
    moved = [
        file
        for file in unchanged
        if (known[file.day].source_file, known[file.day].modified_ns)
        != (file.path.name, file.modified_ns)
    ]
    if not (failed or recovered or moved):
        return
    with lake.transaction(connection, "note exports without new content"):
        for table in (tables.RAW_ORDERS, tables.REJECTED_ORDERS):
            ledger.mark_failed(connection, table, failed)
            ledger.forget_failures(connection, table, list(recovered))
        for file in moved:
            connection.execute(
                "UPDATE lake.export_files SET source_file = ?, modified_ns = ?"
                " WHERE export_date = ?",
                [file.path.name, file.modified_ns, file.day],
            )


def _batches(items: Iterable[T], weight: Callable[[T], int], limit: int) -> Iterator[list[T]]:
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


_STAGING = {
    "export_rows": engine.ROWS,
    "malformed": engine.MALFORMED,
    "malformed_texts": "export_date DATE, record BIGINT, raw_text VARCHAR",
    "first_rows": "export_date DATE, source_file VARCHAR, first_rowid BIGINT, max_days_late BIGINT",
    "rejected_rows": "row_id BIGINT, export_date DATE, reason VARCHAR, field VARCHAR,"
    " raw_text VARCHAR",
}
"""The temporary tables of a batch."""

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
        CASE m.error_type WHEN 'INVALID ENCODING' THEN 'not_utf8' ELSE 'malformed_row' END, NULL,
        t.raw_text, f.source_file, m.record
    FROM malformed AS m JOIN malformed_texts AS t USING (export_date, record)
    JOIN first_rows AS f USING (export_date)
"""

_RAW = """
    SELECT r.export_date, r.order_date, r.order_id, r.customer_id, r.product_id, r.region, r.status,
        r.order_value_gbp, r.order_timestamp, r.extra, f.source_file,
        r.rowid - f.first_rowid + 1 AS row_number
    FROM export_rows AS r JOIN first_rows AS f USING (export_date)
"""

_CONTENT = ", ".join(
    name for name in tables.RAW_ORDERS.column_names if name not in ("source_file", "row_number")
)
"""Columns in which two versions of an order may differ; the position in a file is none."""


@dataclass(frozen=True)
class _Batch:
    """Ingests some files in one transaction."""

    lake: Lake
    connection: duckdb.DuckDBPyConnection
    late_days: int
    max_order_gbp: float | None

    def ingest(self, files: Sequence[ExportFile]) -> "_BatchResult":
        """Stage, validate and commit the files; those that cannot be used fail by name."""
        execute = self.connection.execute
        try:
            for name, columns in _STAGING.items():
                execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
            failed = self._read(files)
            implausible = self._implausible(files)
            self._discard(list(implausible))
            failed |= implausible
            execute(f"CREATE OR REPLACE TEMP TABLE staged_rejects AS {_REJECTS}")
            execute(f"CREATE OR REPLACE TEMP VIEW staged_raw AS {_RAW}")
            read = [file for file in files if file.day not in failed]
            rejected = self._counts("staged_rejects", read)
            raw = self._counts("export_rows", read)
            snapshot = self._commit(read, raw, rejected, failed)
        finally:
            execute("DROP VIEW IF EXISTS temp.main.staged_raw")
            for name in (*_STAGING, "staged_rejects"):
                execute(f"DROP TABLE IF EXISTS temp.main.{name}")
        return _BatchResult(raw, rejected, failed, snapshot)

    def _read(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """Read the files, those of one header at once; returns the problem of each that fails."""
        failed: dict[date, str] = {}

        def kind(file: ExportFile) -> tuple[str, tuple[str, ...]]:
            return file.path.suffix, file.header

        for _, group in groupby(sorted(files, key=kind), key=kind):
            failed |= self._stage(list(group))
        return failed

    def _stage(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """Stage files of one header, or halves of them, until those that cannot be are alone.

        A file of which not every record is accounted for is staged again alone: read together with
        others, DuckDB neither raises nor notes what is wrong with its quotes.
        """
        try:
            self._read_group(files)
            failed = self._incomplete(files)
            parts = [[file] for file in files if file.day in failed]
        except engine.READ_ERRORS as error:
            failed = {file.day: _unreadable(file, error) for file in files}
            half = len(files) // 2
            parts = [list(files[:half]), list(files[half:])]
        if not failed:
            return {}
        self._discard(failed)
        if len(files) == 1:
            return self._stage_tidied(files[0], failed[files[0].day])
        return {day: text for part in parts for day, text in self._stage(part).items()}

    def _stage_tidied(self, file: ExportFile, problem: str) -> dict[date, str]:
        """Stage a file without its blank lines and with even line ends, which is what can help."""
        failed = {file.day: problem}
        if unmodified(file):
            Path(self.lake.spill_dir).mkdir(parents=True, exist_ok=True)
            try:
                with TemporaryDirectory(dir=self.lake.spill_dir) as folder:
                    self._read_group([tidied(file, Path(folder))])
                failed = self._incomplete([replace(file, uneven=False)])
            except (*engine.READ_ERRORS, OSError, RetailAssetsError):
                pass
            if failed:
                failed = {file.day: problem}
                self._discard(failed)
        return failed

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
        found = self._counts(f"({staged})", files)
        malformed = self._counts("malformed", files)
        problems = {
            file.day: self._problem(file, found[file.day], malformed[file.day]) for file in files
        }
        return {day: problem for day, problem in problems.items() if problem}

    def _problem(self, file: ExportFile, found: int, malformed: int) -> str | None:
        """Why a file is not complete of which so many records were found, if it is not."""
        try:
            check_complete(file, found)
            kept = 0 if file.uneven or not malformed else self._keep_texts(file)
        except RetailAssetsError as error:
            return str(error)
        if kept == malformed:
            return None
        return (
            f"{file.path} has malformed records whose text was not found in it: remove its blank"
            " lines, end all lines alike, and ingest it again."
        )

    def _keep_texts(self, file: ExportFile) -> int:
        """Stage the texts of a file's malformed records, from the file; returns how many."""
        numbers = self.connection.execute(
            "SELECT record FROM malformed WHERE export_date = ?", [file.day]
        ).fetchall()
        records = find_records(file.path, [number for (number,) in numbers])
        kept = 0
        for texts in _batches(
            ((record.number, record.text) for record in records),
            lambda numbered: len(numbered[1]),
            TEXTS_LENGTH,
        ):
            self.connection.execute(
                "INSERT INTO malformed_texts SELECT ?, unnest(?::BIGINT[]), unnest(?::VARCHAR[])",
                [file.day, *map(list, zip(*texts, strict=True))],
            )
            kept += len(texts)
        return kept

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
        """Stage the rows of some files, and set aside the well-formed ones that are rejected."""
        execute = self.connection.execute
        header = files[0].header
        engine.read_order_exports(
            self.connection,
            "export_rows",
            "malformed",
            [file.path for file in files],
            header,
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
        validated = orders.judge(nw.from_native(rows), late_days=self.late_days)
        text = engine.raw_text("raw", header)
        execute(
            f"INSERT INTO rejected_rows SELECT row_number, export_date, reason, field, {text}"
            f" FROM ({validated.to_native().sql_query()}) WHERE reason IS NOT NULL"
        )
        self._delete_rejected()
        # Groups of hashes cost a third of groups of texts; few rows are left for the rule.
        candidates = rows.filter(
            "hash(export_date, order_id) IN (SELECT hash(export_date, order_id) FROM export_rows"
            f" WHERE export_date IN ({days}) GROUP BY ALL HAVING count(*) > 1)"
        )
        repeats = orders.repeated(nw.from_native(candidates)).to_native().sql_query()
        execute(
            "INSERT INTO rejected_rows SELECT r.rowid, r.export_date, d.reason, 'order_id', "
            f"{text} FROM export_rows AS r JOIN ({repeats}) AS d"
            " USING (export_date, order_id) WHERE r.rowid < d.last_row_number"
        )
        self._delete_rejected()

    def _delete_rejected(self) -> None:
        self.connection.execute(
            "DELETE FROM export_rows WHERE rowid IN (SELECT row_id FROM rejected_rows)"
        )

    def _counts(self, source: str, files: Sequence[ExportFile]) -> dict[date, int]:
        counts = dict(
            self.connection.execute(
                f"SELECT export_date, count(*) FROM {source} GROUP BY ALL"
            ).fetchall()
        )
        return {file.day: counts.get(file.day, 0) for file in files}

    def _commit(
        self,
        files: Sequence[ExportFile],
        raw: Mapping[date, int],
        rejected: Mapping[date, int],
        failed: Mapping[date, str],
    ) -> int | None:
        if not files and not failed:
            return None
        days = [file.day for file in files]
        with self.lake.transaction(self.connection, "ingest order exports"):
            # Only now: another process may have ingested the same new file a moment ago.
            known = export_entries(self.connection, days)
            changed = self._changed_days(days, known)
            for table, source, counts in (
                (tables.RAW_ORDERS, "temp.main.staged_raw", raw),
                (tables.REJECTED_ORDERS, "temp.main.staged_rejects", rejected),
            ):
                rows = {day: counts[day] for day in days}
                replace_days(self.connection, table, source, rows, known)
                ledger.mark_published(self.connection, table, rows, {})
                ledger.mark_failed(self.connection, table, failed)
            self._enter(files, raw, rejected, known)
            ledger.mark_changed(self.connection, "orders", changed)
        return current_snapshot(self.connection)

    def _changed_days(self, days: Sequence[date], known: Collection[date]) -> set[date]:
        """The business days whose orders differ once these exports are in.

        Those of every order that is new, gone or different in an export, and of all its other
        versions; and the day of an export that comes for the first time, even if it is empty.
        """
        again = [day for day in days if day in known]
        first = [day for day in days if day not in known]
        parameters = {"first": first}
        changed = (
            "SELECT order_id, order_date FROM staged_raw"
            " WHERE export_date IN (SELECT unnest($first::DATE[]))"
        )
        if again:
            parameters["again"] = again
            new = (
                f"SELECT {_CONTENT} FROM staged_raw"
                " WHERE export_date IN (SELECT unnest($again::DATE[]))"
            )
            old = new.replace("staged_raw", "lake.raw_orders")
            changed += (
                " UNION ALL SELECT order_id, order_date FROM"
                f" (({new} EXCEPT {old}) UNION ALL ({old} EXCEPT {new}))"
            )
        found = self.connection.execute(
            f"WITH changed_orders AS NOT MATERIALIZED ({changed})"
            " SELECT DISTINCT order_date FROM changed_orders UNION SELECT DISTINCT order_date"
            " FROM lake.raw_orders WHERE order_id IN (SELECT order_id FROM changed_orders)",
            parameters,
        ).fetchall()
        return {day for (day,) in found} | set(first)

    def _enter(
        self,
        files: Sequence[ExportFile],
        raw: Mapping[date, int],
        rejected: Mapping[date, int],
        known: Collection[date],
    ) -> None:
        again = [file.day for file in files if file.day in known]
        if again:
            self.connection.execute(
                "DELETE FROM lake.export_files WHERE export_date IN (SELECT unnest(?::DATE[]))",
                [again],
            )
        max_days_late = dict(
            self.connection.execute("SELECT export_date, max_days_late FROM first_rows").fetchall()
        )
        columns: dict[str, Sequence[object]] = {
            "export_date DATE": [file.day for file in files],
            "source_file VARCHAR": [file.path.name for file in files],
            "size_bytes BIGINT": [file.size_bytes for file in files],
            "modified_ns BIGINT": [file.modified_ns for file in files],
            "content_hash VARCHAR": [file.content_hash for file in files],
            "rows_in BIGINT": [raw[file.day] + rejected[file.day] for file in files],
            "raw_rows BIGINT": [raw[file.day] for file in files],
            "rejected_rows BIGINT": [rejected[file.day] for file in files],
            "rules_version BIGINT": [orders.RULES_VERSION] * len(files),
            "timezone VARCHAR": [self.lake.timezone] * len(files),
            "late_days BIGINT": [self.late_days] * len(files),
            "max_days_late BIGINT": [max_days_late[file.day] for file in files],
        }
        insert_columns(self.connection, "export_files", columns, "now() AS ingested_at")


def _unreadable(file: ExportFile, error: duckdb.Error) -> str:
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, duckdb.OutOfMemoryException):
        reason += (
            f" ({len(file.header):,} columns): raise RETAIL_MEMORY_LIMIT, or export fewer columns"
        )
    return f"{file.path} cannot be read: {reason}."


@dataclass(frozen=True)
class _BatchResult:
    raw: dict[date, int]
    rejected: dict[date, int]
    failed: dict[date, str]
    snapshot: int | None
