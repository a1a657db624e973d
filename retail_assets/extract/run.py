"""An extraction: the orders of some days, and the reference tables, from one snapshot to files."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta

import duckdb
from filelock import FileLock, Timeout

from retail_assets import business_days, tables
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.extract import files, selection
from retail_assets.extract.files import ExtractedFile
from retail_assets.extract.selection import OrderColumns, Window
from retail_assets.extract.source import Column, Selection, Source, address, explained, open_source
from retail_assets.lake import day_ledger
from retail_assets.lake.connection import Lake
from retail_assets.mapping.database import DatabaseMapping, SourceTable
from retail_assets.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did.

    `orders` and `reference` are the files that are in their places, `failed` has the problem of
    each day whose file is not, `problems` that of each reference file; `notes` are sentences on
    rows that are in no file of use, and `origin` says which snapshot of which database it was.
    """

    orders: Sequence[ExtractedFile]
    reference: Sequence[ExtractedFile]
    failed: dict[date, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    origin: dict[str, str]


def extract(
    settings: Settings,
    days: Collection[date],
    *,
    may_replace: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> ExtractResult:
    """Write the order exports of contiguous days, and the reference files, from the database.

    A file whose rows are the same keeps its bytes and its time. All files are from one snapshot; if
    the database fails, none is changed. The days of files that somebody else wrote fail alone.

    Args:
        settings: the mapping's `database`, and `RETAIL_DATABASE_URL`.
        days: the days; none for the reference files alone.
        may_replace: also in place of files that somebody else wrote or changed.
        say: called with what is done now.
        progress: called with the number of days whose files are written.

    Raises:
        UsageError: if nothing is declared, or a declared column is not there.
        RetailAssetsError: if the database cannot be read; the ledger has the days as failed.
    """
    declared = settings.source_mapping.database
    if declared is None:
        raise UsageError(
            "No database is declared: set RETAIL_MAPPING to a mapping file with a section"
            " `database`, and RETAIL_DATABASE_URL."
        )
    lake = Lake.from_settings(settings)
    with lake.connect() as connection, _alone(settings, say):
        files.remove_unfinished((settings.exports_dir, settings.reference_dir))
        try:
            extraction = _Extraction(settings, declared, sorted(days), say, progress)
            written, notes, origin = extraction.run()
        except UsageError:
            raise
        except RetailAssetsError as error:
            failed = dict.fromkeys(days, str(error))
            with lake.transaction(connection, "note a failed extraction"):
                day_ledger.mark_failed(connection, tables.EXTRACTED_FILES, failed)
            raise
        placed, refused = files.place(
            lake, connection, settings.data_dir, written, origin, may_replace=may_replace
        )
    return ExtractResult(
        [file for file in placed if file.day is not None],
        [file for file in placed if file.day is None],
        {file.day: refused[file.path] for file in written if file.path in refused and file.day},
        tuple(refused[f.path] for f in written if f.path in refused and not f.day),
        tuple(notes),
        origin,
    )


@contextmanager
def _alone(settings: Settings, say: Callable[[str], None]) -> Iterator[None]:
    """One extraction at a time: the files of an older snapshot must not come last."""
    lock = FileLock(settings.lake_dir / "extract.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say("waiting for another extraction to end")
        logger.info("Another extraction is running: this one begins when it has ended.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Read:
    """Rows that were read: all columns of the source, and those of the file by name."""

    columns: list[Column]
    written: dict[str, Column]


@dataclass(frozen=True)
class _ReadOrders(_Read):
    """Orders that were read: the columns that decide on files, and whether rows are orders."""

    of: OrderColumns
    unique: bool


class _Extraction:
    """The steps of an extraction up to files that lie beside their places."""

    def __init__(
        self,
        settings: Settings,
        declared: DatabaseMapping,
        days: Sequence[date],
        say: Callable[[str], None],
        progress: Callable[[int], None],
    ) -> None:
        self._settings, self._declared, self._days = settings, declared, days
        self._say, self._progress = say, progress
        self._notes: list[str] = []

    def run(self) -> tuple[list[ExtractedFile], list[str], dict[str, str]]:
        """Read the database, then write; returns the files, notes and the snapshot's identity."""
        url = self._settings.database_url.get_secret_value() if self._settings.database_url else ""
        self._say("connecting")
        with open_source(self._settings, self._declared) as source:
            with explained(url, "the snapshot"):
                origin = {"database": address(url), **source.begin()}
            reference = {}
            for name, table in self._declared.reference.items():
                with explained(url, f"`{name}`"):
                    reference[name] = self._read_reference(source, name, table)
            orders = None
            if self._days:
                with explained(url, "`orders`"):
                    orders = self._read_orders(source)
            # The snapshot is not held while files are written.
            with explained(url, "the end of the snapshot"):
                source.connection.execute("COMMIT")
            written = [
                self._write_reference(source, name, read) for name, read in reference.items()
            ]
            if orders is not None:
                written += self._write_orders(source, orders)
        return written, self._notes, origin

    def _read_reference(self, source: Source, name: str, table: SourceTable) -> _Read:
        self._say(f"reading {name}")
        relation = source.relation(table)
        columns = source.columns(relation)
        written = selection.written_columns(table, columns, f"database.{name}")
        _create(source.connection, f"read_{name}", len(columns))
        source.read(f"read_{name}", Selection(relation, columns, ()), lambda _: None)
        return _Read(columns, written)

    def _write_reference(self, source: Source, name: str, read: _Read) -> ExtractedFile:
        texts = _texts(source, read, None)
        path = self._settings.reference_dir / f"{name}.csv"
        order = ", ".join(texts.values())
        return files.write(source.connection, path, texts, f"read_{name}", order)

    def _read_orders(self, source: Source) -> _ReadOrders:
        """Read the rows that the files may need into `read_rows`."""
        orders = self._declared.orders
        self._say("reading orders")
        relation = source.relation(orders)
        columns = source.columns(relation)
        of = selection.order_columns(orders, columns)
        written = selection.written_columns(orders, columns, "database.orders")
        _create(source.connection, "read_rows", len(columns))
        unique = source.is_unique(orders, of.order_id.name)
        wanted = Selection(
            relation,
            columns,
            selection.parts(of, self._window, source.name),
            None if unique else of.order_id,
        )
        source.read("read_rows", wanted, lambda rows: self._say(f"{rows:,} rows of orders read"))
        count = source.fetch(
            f"SELECT count(*) AS n FROM {relation} AS source"
            f" WHERE {selection.without_day(of, source.name)}"
            f" OR {source.is_no_day(f'source.{source.name(of.day.name)}')}"
        )[0][0]
        if count:
            self._notes.append(
                f"Rows of orders without a usable {of.day.name}: {count:,}. They belong to no day,"
                " so no export has them: correct them in the database."
            )
        return _ReadOrders(columns, written, of, unique)

    def _write_orders(self, source: Source, read: _ReadOrders) -> list[ExtractedFile]:
        """Sort the rows by file, and write a file for each day, with or without rows."""
        self._say("sorting orders by day")
        connection = source.connection
        connection.execute(self._filed(read))
        connection.execute("DROP TABLE read_rows")
        self._note_too_late(connection, read)
        texts = _texts(source, read, read.of.timezone)
        found = []
        for done, day in enumerate(self._days, start=1):
            path = business_days.export_paths(self._settings.exports_dir, day)[
                self._declared.compress
            ]
            rows = f"filed WHERE file_day = DATE '{day}'"
            late = "placed IS DISTINCT FROM file_day"
            found.append(files.write(connection, path, texts, rows, "rowid", day=day, late=late))
            self._progress(done)
        return found

    @property
    def _window(self) -> Window:
        settings = self._settings
        return Window(self._days[0], self._days[-1], settings.late_days, settings.timezone)

    def _filed(self, read: _ReadOrders) -> str:
        """SQL for `filed`: each row with the day of its file, in the order that is written."""
        of, zone = read.of, self._settings.timezone
        texts = [f"c{n}" for n in range(len(read.columns))]
        key, day = (texts[read.columns.index(column)] for column in (of.order_id, of.day))

        def of_order(column: Column | None) -> str:
            if column is None:
                return "NULL::DATE"
            text = texts[read.columns.index(column)]
            own = selection.business_day(text, column.kind, of.timezone, zone)
            if read.unique:
                return own
            return f"CASE WHEN {key} IS NULL THEN {own} ELSE max({own}) OVER orders END"

        listed = selection.files_of_order("placed", "changed", self._window)
        # Chunks may share an order, each with all its rows.
        whole = (
            ""
            if read.unique
            else f" WINDOW orders AS (PARTITION BY {key})"
            f" QUALIFY {key} IS NULL OR part = min(part) OVER orders"
        )
        order = [day, key, *([] if read.unique else texts)]
        return (
            "CREATE TEMP TABLE filed AS"
            f" SELECT unnest({listed}) AS file_day, placed, {', '.join(texts)} FROM"
            f" (SELECT {', '.join(texts)}, {of_order(of.day)} AS placed,"
            f" {of_order(of.changed)} AS changed FROM read_rows{whole})"
            f" ORDER BY file_day, {', '.join(order)}"
        )

    def _note_too_late(self, connection: duckdb.DuckDBPyConnection, read: _ReadOrders) -> None:
        late_days = self._settings.late_days
        key = f"c{read.columns.index(read.of.order_id)}"
        found = connection.execute(
            f"SELECT count(DISTINCT {key}), min(placed), max(placed) FROM filed"
            f" WHERE placed + {late_days} < file_day"
        ).fetchone()
        if found and found[0]:
            count, first, last = found
            end = min(last + timedelta(days=late_days), self._days[-1])
            self._notes.append(
                f"Orders that changed more than RETAIL_LATE_DAYS ({late_days}) days after their"
                f" day: {count:,}, of {first} to {last}. Their rows are rejected (`too_late`) and"
                f" their earlier versions count; `retail-assets extract --start {first}"
                f" --end {end}` brings them in."
            )


def _texts(source: Source, read: _Read, zone: str | None) -> dict[str, str]:
    """SQL for each column of a file, by its name there."""
    return {
        name: _written(f"c{read.columns.index(column)}", column, zone, source.moment_suffix)
        for name, column in read.written.items()
    }


def _written(text: str, column: Column, zone: str | None, suffix: str) -> str:
    if column.kind == "instant" and suffix:
        return f"{text} || '{suffix}'"
    if column.kind == "local" and zone is not None:
        return f"coalesce(({selection.moment(text, 'local', zone)})::VARCHAR, {text})"
    return text


def _create(connection: duckdb.DuckDBPyConnection, table: str, columns: int) -> None:
    texts = ", ".join(f"c{n} VARCHAR" for n in range(columns))
    connection.execute(f"CREATE TEMP TABLE {table} (part BIGINT, {texts})")
