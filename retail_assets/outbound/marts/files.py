"""Marts as files: a Parquet or CSV file for each day, in a folder or a bucket.

A table is a folder with `year=YYYY/month=MM/YYYY-MM-DD.parquet`; each file has all columns. A file
is replaced as a whole: in a folder it is written aside, synced and renamed, in a bucket a put is
atomic. The watermark, a JSON file that readers of Parquet leave out, is written at the end: a round
that was killed is done again.
"""

import io
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from retail_assets.lake.connection import Lake
from retail_assets.lake.lock import named_lock
from retail_assets.outbound.marts.model import (
    DAYS,
    HERE,
    WATERMARK,
    MartError,
    MartTable,
    Watermark,
    insert,
)
from retail_assets.outbound.marts.stores import Store, open_store
from retail_assets.secrets import mask

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "csv"]

logger = logging.getLogger(__name__)

AT_ONCE = 500
"""How many files are read, or written and then synced, at a time."""

_PATH = f"_{WATERMARK}.json"

_FILE = re.compile(r"year=\d{4}/month=\d\d/(\d{4}-\d\d-\d\d)\.(parquet|csv)")


UNFINISHED = Watermark("", -1, 0, "")
"""The watermark of a table whose first round is under way, or was killed."""


@dataclass(frozen=True)
class FilesState:
    """The format of a table's files, and whether there were any, when the watermark was written."""

    format: Format
    has_files: bool


class FilesMart:
    """The tables as files below a folder or an `s3://` prefix."""

    name = "mart_files"

    def __init__(self, lake: Lake, root: str, file_format: Format) -> None:
        self._lake = lake
        self._root = root.rstrip("/")
        self._format = file_format
        self.shown = mask(self._root)
        self.kind: str = file_format

    @contextmanager
    def session(self) -> Iterator["FilesSession"]:
        """Begin a round that nobody else of this lake publishes beside.

        Raises:
            MartError: if the place cannot be used.
        """
        with (
            named_lock(self._lake.catalog, "mart_files", "publish files"),
            self._explained(),
        ):
            store = open_store(self._root, self._lake.umask)
            store.clear_aside()
            yield FilesSession(store, self._format, self.shown)

    def watermarks(self) -> Mapping[str, Watermark]:
        """See `MartTarget`."""
        with self._explained():
            return _read_watermarks(open_store(self._root, self._lake.umask), self.shown)[0]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ImportError) as error:
            # Not `told`: it would take a file of the mart for one of the lake.
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise MartError(
                f"The mart in {self.shown} could not be published: {mask(reason).rstrip('.')}."
                " Correct RETAIL_MART_FILES or what it names; the days that were not written have"
                " the rows that they had."
            ) from None
        except Exception as error:
            if not type(error).__module__.startswith(("botocore", "aiohttp", "s3fs")):
                raise
            reason = mask(" ".join(str(error).split())).rstrip(".")
            raise MartError(
                f"The mart in {self.shown} could not be published: {reason}. Check the AWS_*"
                " variables and RETAIL_MART_FILES; the days that were not written have the rows"
                " that they had."
            ) from None


class FilesSession:
    """A round on files."""

    def __init__(self, store: Store, file_format: Format, shown: str) -> None:
        self._store = store
        self._format = file_format
        self._shown = shown
        self._watermarks: dict[str, Watermark] | None = None
        self._stale: dict[str, list[str]] = {}
        self._states: dict[str, FilesState] = {}

    def watermark(self, table: MartTable) -> Watermark | None:
        """See `MartSession`."""
        return self._known().get(table.name)

    def prepare(self, table: MartTable, *, ours: bool) -> str | None:
        """See `MartSession`."""
        known = self._known().get(table.name)
        has_files = self._store.has_any(table.name)
        if known is None:
            if has_files and not ours and self._files(table):
                raise MartError(
                    f"There are files of {table.name} in {self._shown}, but no {_PATH} that says"
                    " whose they are. Move them away, or let `retail-assets publish-marts --all`"
                    " take them over."
                )
            # A round that is killed before its end must know its own files.
            self.set_watermark(table, UNFINISHED)
            return None if has_files else "it is new"
        before = self._states[table.name]
        if known == UNFINISHED:
            return "its first round did not end"
        if before.has_files and not has_files:
            return "its files are gone"
        return None if before.format == self._format else f"its files were {before.format}"

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: MartTable,
        days: Collection[date] | None,
    ) -> set[date]:
        """See `MartSession`."""
        if days is None:
            files = self._files(table)
            paths = [(day, path) for day, path in files if path == self._place(table, day)]
            # Of the other format, or of another month than the day.
            self._stale[table.name] = sorted({path for _, path in files} - {p for _, p in paths})
        else:
            paths = [(day, self._place(table, day)) for day in sorted(days)]
        odd: set[date] = set()
        for start in range(0, len(paths), AT_ONCE):
            some = paths[start : start + AT_ONCE]
            found = self._store.read([path for _, path in some])
            read = []
            for day, path in some:
                if path not in found:
                    continue
                rows = self._parse(table, found[path])
                if rows is None or rows.column(table.day).unique().to_pylist() != [day]:
                    odd.add(day)
                else:
                    read.append(rows)
            if read:
                from pyarrow import concat_tables

                insert(connection, concat_tables(read))
        return odd

    def unfit(self, table: MartTable) -> str | None:  # noqa: ARG002  # a file holds any text
        """See `MartSession`."""
        return None

    def write(self, connection: duckdb.DuckDBPyConnection, table: MartTable) -> int:
        """See `MartSession`."""
        days = {row[0] for row in connection.execute(f"SELECT day FROM {DAYS}").fetchall()}
        reader = connection.execute(
            f"SELECT {', '.join(table.column_names)} FROM {HERE}"
            f" WHERE {table.day} IN (SELECT day FROM {DAYS}) ORDER BY {', '.join(table.key)}"
        ).to_arrow_reader(100_000)
        written = 0
        contents: dict[str, bytes] = {}
        for day, rows in _by_day(reader, table):
            contents[self._place(table, day)] = self._bytes(rows)
            days.discard(day)
            written += rows.num_rows
            if len(contents) >= AT_ONCE:
                self._store.write(contents)
                contents = {}
        self._store.write(contents)
        self._store.delete([self._place(table, day) for day in sorted(days)])
        return written

    def set_watermark(self, table: MartTable, watermark: Watermark) -> None:
        """See `MartSession`."""
        self._store.delete(self._stale.pop(table.name, ()))
        self._known()[table.name] = watermark
        self._states[table.name] = FilesState(self._format, self._store.has_any(table.name))
        content = _dump(self._known(), self._states)
        self._store.write({_PATH: content}, sync_before=True)

    def _known(self) -> dict[str, Watermark]:
        if self._watermarks is None:
            self._watermarks, self._states = _read_watermarks(self._store, self._shown)
        return self._watermarks

    def _files(self, table: MartTable) -> list[tuple[date, str]]:
        """The files of a table that are the platform's by their names, with their days."""
        found, others = [], []
        for path in self._store.find(table.name):
            name = _FILE.fullmatch(path.removeprefix(f"{table.name}/"))
            try:
                found.append((date.fromisoformat(name[1] if name else ""), path))
            except ValueError:
                others.append(path)
        if others:
            logger.warning(
                "%s in %s has %s files that are not the platform's, such as %s: who reads all of it"
                " reads them as well.",
                *(table.name, self._shown, len(others), others[0]),
            )
        return sorted(found)

    def _place(self, table: MartTable, day: date) -> str:
        return f"{table.name}/year={day:%Y}/month={day:%m}/{day}.{self._format}"

    def _bytes(self, rows: "pa.Table") -> bytes:
        from pyarrow import csv, parquet

        buffer = io.BytesIO()
        if self._format == "parquet":
            parquet.write_table(rows, buffer, compression="zstd")
        else:
            csv.write_csv(rows, buffer)
        return buffer.getvalue()

    def _parse(self, table: MartTable, content: bytes) -> "pa.Table | None":
        """The rows of a file; None if it is none of these."""
        from pyarrow import ArrowException, csv, parquet

        try:
            if self._format == "parquet":
                rows = parquet.read_table(io.BytesIO(content))
            else:
                rows = csv.read_csv(
                    io.BytesIO(content),
                    parse_options=csv.ParseOptions(newlines_in_values=True),
                    convert_options=csv.ConvertOptions(
                        column_types=table.schema, strings_can_be_null=False
                    ),
                )
        except (ArrowException, OSError):
            return None
        return rows if rows.schema.equals(table.schema) else None


def _by_day(reader: "pa.RecordBatchReader", table: MartTable) -> Iterator[tuple[date, "pa.Table"]]:
    """The rows of each day, from batches in the order of days."""
    import pyarrow as pa

    open_rows: list[pa.Table] = []
    open_day: date | None = None
    for batch in reader:
        rows = pa.Table.from_batches([batch]).cast(table.schema)
        days = rows.column(table.day).to_pylist()
        start = 0
        for end in range(1, len(days) + 1):
            if end < len(days) and days[end] == days[start]:
                continue
            if open_rows and days[start] != open_day:
                assert open_day is not None
                yield open_day, pa.concat_tables(open_rows)
                open_rows = []
            open_day = days[start]
            open_rows.append(rows.slice(start, end - start))
            start = end
    if open_rows:
        assert open_day is not None
        yield open_day, pa.concat_tables(open_rows)


def _read_watermarks(
    store: Store, shown: str
) -> tuple[dict[str, Watermark], dict[str, FilesState]]:
    """The watermarks and the states of the files, by table."""
    content = store.read([_PATH]).get(_PATH, b"{}")
    watermarks, states = {}, {}
    try:
        for name, fields in json.loads(content).items():
            states[name] = FilesState(fields.pop("format"), fields.pop("has_files"))
            left_out = tuple(map(date.fromisoformat, fields.pop("left_out")))
            watermarks[name] = Watermark(**fields, left_out=left_out)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise MartError(
            f"{_PATH} in {shown} is not what the platform wrote: delete it, and let"
            " `retail-assets publish-marts --all` compare all days."
        ) from None
    return watermarks, states


def _dump(watermarks: Mapping[str, Watermark], states: Mapping[str, FilesState]) -> bytes:
    fields: dict[str, dict[str, Any]] = {
        name: vars(watermark)
        | vars(states[name])
        | {"left_out": [str(day) for day in watermark.left_out]}
        for name, watermark in watermarks.items()
    }
    return (json.dumps(fields, indent=2) + "\n").encode()
