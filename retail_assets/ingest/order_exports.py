"""Order exports into `raw_orders` and `rejected_orders`, each with its ledger entry, exactly once.

A day's file is read, judged by `transforms.orders`, and put in place of what an earlier version of
the file gave, in one transaction. A file with the same bytes as the ledger's is left alone.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.engines import duckdb as engine
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.export_file import (
    ExportFile,
    blank_lines,
    inspect,
    locate,
    records,
    unmodified,
    with_even_line_ends,
)
from retail_assets.lake import days as ledger
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.publish import Publication, replace_days
from retail_assets.lake.rows import insert_columns
from retail_assets.transforms import orders

BATCH_BYTES = 512 << 20
"""Files are taken in together up to this size, so that what is staged stays bounded."""


@dataclass(frozen=True)
class Ingested:
    """What came of taking in exports: one publication of each table, and what was the same."""

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
    progress: Callable[[int], None] = lambda _: None,
) -> Ingested:
    """Take in the exports of some days; a bad file fails its own day alone, by name.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        exports_dir: where `orders_YYYY_MM_DD.csv[.gz]` lie.
        days: the export dates to take in.
        late_days: how many days before its export an order may lie.
        progress: called with the number of days done, after each batch.

    Returns:
        Row counts of each day that is in the lake now (of unchanged days, as the ledger has them),
        and the problem of each day that failed, which is in the ledger as well.
    """
    failed: dict[date, str] = {}
    files: list[ExportFile] = []
    for day in sorted(set(days)):
        try:
            files.append(inspect(locate(exports_dir, day)))
        except RetailAssetsError as error:
            failed[day] = str(error)
    known = _known(connection, [file.day for file in files])
    unchanged = {
        file.day: known[file.day]
        for file in files
        if file.day in known and known[file.day].content_hash == file.content_hash
    }
    raw = {day: entry.raw_rows for day, entry in unchanged.items()}
    rejected = {day: entry.rejected_rows for day, entry in unchanged.items()}
    _settle(lake, connection, [file for file in files if file.day in unchanged], known, failed)
    snapshot = current_snapshot(connection) if unchanged else None
    done = len(failed) + len(unchanged)
    progress(done)
    for batch in _batches([file for file in files if file.day not in unchanged]):
        taken = _Batch(lake, connection, late_days).take(batch)
        raw |= taken.raw
        rejected |= taken.rejected
        failed |= taken.failed
        snapshot = taken.snapshot or snapshot
        done += len(batch)
        progress(done)
    return Ingested(
        Publication(tables.RAW_ORDERS, raw, failed, snapshot),
        Publication(tables.REJECTED_ORDERS, rejected, failed, snapshot),
        tuple(unchanged),
    )


@dataclass(frozen=True)
class _LedgerEntry:
    source_file: str
    modified_ns: int
    content_hash: str
    raw_rows: int
    rejected_rows: int


def _known(connection: duckdb.DuckDBPyConnection, days: Sequence[date]) -> dict[date, _LedgerEntry]:
    return {
        day: _LedgerEntry(*entry)
        for day, *entry in connection.execute(
            "SELECT export_date, source_file, modified_ns, content_hash, raw_rows, rejected_rows"
            " FROM lake.export_files"
            " WHERE export_date IN (SELECT unnest(?::DATE[]))",
            [list(days)],
        ).fetchall()
    }


def _settle(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    unchanged: Sequence[ExportFile],
    known: Mapping[date, _LedgerEntry],
    failed: Mapping[date, str],
) -> None:
    """Note the failures, and of files with the same bytes that they were seen as they are now."""
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


def _batches(files: Sequence[ExportFile]) -> Iterator[list[ExportFile]]:
    batch: list[ExportFile] = []
    weight = 0
    for file in files:
        if batch and weight + file.weight > BATCH_BYTES:
            yield batch
            batch, weight = [], 0
        batch.append(file)
        weight += file.weight
    if batch:
        yield batch


_STAGING = {
    "export_rows": engine.ROWS,
    "malformed": engine.MALFORMED,
    "first_rows": "export_date DATE, source_file VARCHAR, first_rowid BIGINT",
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
        m.raw_text, f.source_file, m.record
    FROM malformed AS m JOIN first_rows AS f USING (export_date)
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
"""What makes two versions of an order differ; where it stood in a file does not."""


@dataclass(frozen=True)
class _Batch:
    """Takes some files in, in one transaction."""

    lake: Lake
    connection: duckdb.DuckDBPyConnection
    late_days: int

    def take(self, files: Sequence[ExportFile]) -> "_Taken":
        """Stage, judge and commit the files; those that cannot be used fail by name."""
        execute = self.connection.execute
        try:
            for name, columns in _STAGING.items():
                execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
            failed = self._read(files)
            execute(f"CREATE OR REPLACE TEMP TABLE staged_rejects AS {_REJECTS}")
            execute(f"CREATE OR REPLACE TEMP VIEW staged_raw AS {_RAW}")
            read = [file for file in files if file.day not in failed]
            rejected = self._counts("staged_rejects", read)
            raw = self._counts("export_rows", read)
            unsound = self._unsound(read, raw, rejected)
            for name in ("export_rows", "staged_rejects") if unsound else ():
                execute(
                    f"DELETE FROM {name} WHERE export_date IN (SELECT unnest(?::DATE[]))",
                    [list(unsound)],
                )
            good = [file for file in read if file.day not in unsound]
            snapshot = self._commit(good, raw, rejected, failed | unsound)
        finally:
            execute("DROP VIEW IF EXISTS temp.main.staged_raw")
            for name in (*_STAGING, "staged_rejects"):
                execute(f"DROP TABLE IF EXISTS temp.main.{name}")
        return _Taken(
            {file.day: raw[file.day] for file in good},
            {file.day: rejected[file.day] for file in good},
            failed | unsound,
            snapshot,
        )

    def _read(self, files: Sequence[ExportFile]) -> dict[date, str]:
        """Read the files, those of one header at once; returns the problem of each that fails."""
        failed: dict[date, str] = {}

        def kind(file: ExportFile) -> tuple[str, tuple[str, ...]]:
            return file.path.suffix, file.header

        for (_, header), group in groupby(sorted(files, key=kind), key=kind):
            alike = list(group)
            try:
                self._read_group(alike, header)
            except engine.READ_ERRORS:
                # One of them is at fault: find out which.
                for file in alike:
                    try:
                        self._read_alone(file)
                    except engine.READ_ERRORS as error:
                        reason = str(error).strip().splitlines()[0]
                        failed[file.day] = f"{file.path} cannot be read: {reason}"
        return failed

    def _read_alone(self, file: ExportFile) -> None:
        try:
            self._read_group([file], file.header)
        except duckdb.InvalidInputException:
            # Line ends that change within a file are what can be mended.
            Path(self.lake.spill_dir).mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.lake.spill_dir) as folder:
                self._read_group([with_even_line_ends(file, Path(folder))], file.header)

    def _read_group(self, files: Sequence[ExportFile], header: Sequence[str]) -> None:
        """Stage the rows of some files, and set aside the well-formed ones that are rejected."""
        execute = self.connection.execute
        engine.read_order_exports(
            self.connection,
            "export_rows",
            "malformed",
            [file.path for file in files],
            header,
        )
        self._pass_over_blank_lines(files)
        execute(
            "INSERT INTO first_rows SELECT f.export_date, f.source_file, min(r.rowid) FROM"
            " (SELECT unnest(?::DATE[]) AS export_date, unnest(?::VARCHAR[]) AS source_file) AS f"
            " LEFT JOIN export_rows AS r USING (export_date) GROUP BY ALL",
            [[file.day for file in files], [file.path.name for file in files]],
        )
        days = ", ".join(f"DATE '{file.day}'" for file in files)
        rows = self.connection.sql(
            f"SELECT *, rowid AS row_number FROM export_rows WHERE export_date IN ({days})"
        )
        judged = orders.judge(nw.from_native(rows), late_days=self.late_days)
        text = engine.raw_text("raw", header)
        execute(
            f"INSERT INTO rejected_rows SELECT row_number, export_date, reason, field, {text}"
            f" FROM ({judged.to_native().sql_query()}) WHERE reason IS NOT NULL"
        )
        self._delete_rejected()
        # Groups of hashes cost a third of groups of texts; few rows are left for the rule.
        twins = rows.filter(
            "hash(export_date, order_id) IN (SELECT hash(export_date, order_id) FROM export_rows"
            f" WHERE export_date IN ({days}) GROUP BY ALL HAVING count(*) > 1)"
        )
        repeats = orders.repeated(nw.from_native(twins)).to_native().sql_query()
        execute(
            "INSERT INTO rejected_rows SELECT r.rowid, r.export_date, 'duplicate_order',"
            f" 'order_id', {text} FROM export_rows AS r JOIN ({repeats}) AS d"
            " USING (export_date, order_id) WHERE r.rowid < d.last_row_number"
        )
        self._delete_rejected()

    def _pass_over_blank_lines(self, files: Sequence[ExportFile]) -> None:
        """Number malformed records as all others are: the reader counts blank lines for them."""
        execute = self.connection.execute
        concerned = {
            day for (day,) in execute("SELECT DISTINCT export_date FROM malformed").fetchall()
        }
        for file in files:
            if file.blank and file.day in concerned and (blank := blank_lines(file)):
                execute(
                    "UPDATE malformed SET record = record - len(list_filter(?::BIGINT[],"
                    " lambda line: line < record)) WHERE export_date = ?",
                    [blank, file.day],
                )

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

    def _unsound(
        self, files: Sequence[ExportFile], raw: Mapping[date, int], rejected: Mapping[date, int]
    ) -> dict[date, str]:
        """The files that must not be committed: changed since they were found, or rows lost."""
        problems: dict[date, str] = {}
        swallowed = self._swallowed()
        for file in files:
            found = raw[file.day] + rejected[file.day]
            if not unmodified(file):
                problems[file.day] = (
                    f"{file.path} changed while it was read: run the day again when it is whole."
                )
            elif file.day in swallowed and swallowed[file.day] is not None:
                problems[file.day] = (
                    f"{file.path}: the quote that opens in record {swallowed[file.day]} takes too"
                    " many of the lines after it into its field: close it."
                )
            # Without quotes a record is a line; only blank lines may make a difference.
            elif file.day in swallowed if file.quoted else found != file.lines - 1:
                expected = records(file)
                if found != expected:
                    problems[file.day] = (
                        f"{file.path} has {expected} records, but {found} were read: check its"
                        " quotes and line ends."
                    )
        return problems

    def _swallowed(self) -> dict[date, int | None]:
        """The files with a quote that is not closed properly.

        Of each, the first record that took in more lines than its raw text could keep, if any.
        """
        return dict(
            self.connection.execute(
                "SELECT export_date, min(record) FILTER (WHERE contains(raw_text, chr(10))"
                " AND strlen(raw_text) >= ?) FROM malformed WHERE error_type IN"
                " ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM') GROUP BY export_date",
                [engine.MAX_RAW_TEXT_BYTES],
            ).fetchall()
        )

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
            # Only now: whoever took in the same new file a moment ago has its rows in the lake.
            known = _known(self.connection, days)
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
        columns: dict[str, Sequence[object]] = {
            "export_date DATE": [file.day for file in files],
            "source_file VARCHAR": [file.path.name for file in files],
            "size_bytes BIGINT": [file.size_bytes for file in files],
            "modified_ns BIGINT": [file.modified_ns for file in files],
            "content_hash VARCHAR": [file.content_hash for file in files],
            "rows_in BIGINT": [raw[file.day] + rejected[file.day] for file in files],
            "raw_rows BIGINT": [raw[file.day] for file in files],
            "rejected_rows BIGINT": [rejected[file.day] for file in files],
        }
        insert_columns(self.connection, "export_files", columns, "now() AS ingested_at")


@dataclass(frozen=True)
class _Taken:
    raw: dict[date, int]
    rejected: dict[date, int]
    failed: dict[date, str]
    snapshot: int | None
