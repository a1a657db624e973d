"""Exports of many days, split into a file for each day, which is then ingested as any other.

Each row goes to the file of its order's day, with where it came from. Of an order that several
exports have, the rows of the export that was written last are kept, whichever is split first; a row
without a readable day goes to the day on which its export was written, and is rejected there by
name. So every row of an export is in some day's file, and to split one again changes nothing.

`split_exports.json` in the lake's folder says which files are split; without it they are split once
more.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import TextIO
from zoneinfo import ZoneInfo

import duckdb
from filelock import FileLock

from retail_assets.engines.duckdb import day_of
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import CsvFile, inspect
from retail_assets.ingest.exports.csv_records import open_text, reader, records
from retail_assets.ingest.exports.files import row_format
from retail_assets.mapping import ExportMapping
from retail_assets.mapping.file_name import NATIVE
from retail_assets.settings import Settings

ORIGIN = ("source_file", "source_line", "source_time")
"""The columns that a day's file has after those of the exports: which one, where, written when."""

CHUNK_ROWS = 50_000
"""The rows that are held in memory."""

STATE = "split_exports.json"

Row = list[str]


@dataclass(frozen=True)
class SplitResult:
    """What was split: rows by export, and why an export was not."""

    rows: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def split_exports(
    settings: Settings,
    progress: Callable[[str, int], None] = lambda _name, _rows: None,
    *,
    at_most: int | None = None,
    settle_seconds: float = 0,
) -> SplitResult:
    """Split the exports of many days that are new or have changed.

    Args:
        settings: the data folder and the mapping; nothing happens where exports are of one day.
        progress: called with an export's name and the number of its rows that were read.
        at_most: how many exports to split; None: all.
        settle_seconds: an export that was written to since is left for later.
    """
    mapping = settings.source_mapping.exports
    if mapping.file_name.has_date or not settings.exports_dir.is_dir():
        return SplitResult()
    settings.lake_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(settings.lake_dir / f"{STATE}.lock"):
        known = _known(settings)
        settled = time() - settle_seconds
        found = [path for path in _exports(settings) if path.stat().st_mtime <= settled]
        new = [path for path in found if known.get(path.name, {}).get("state") != _state(path)]
        done: dict[str, int] = {}
        failed: dict[str, str] = {}
        for path in new[:at_most]:
            state = _state(path)
            try:
                done[path.name] = _split(settings, mapping, path, progress)
            except RetailAssetsError as error:
                failed[path.name] = str(error)
            known[path.name] = {"state": state, "problem": failed.get(path.name)}
            with replacing(settings.lake_dir / STATE) as file:
                json.dump(known, file, indent=1)
        return SplitResult(done, failed)


def unsplit_exports(settings: Settings) -> dict[str, str]:
    """The exports of many days that could not be split, each with the reason."""
    names = {path.name for path in _exports(settings)}
    return {
        name: entry["problem"]
        for name, entry in _known(settings).items()
        if name in names and entry["problem"]
    }


def _known(settings: Settings) -> dict[str, dict[str, str | None]]:
    with suppress(FileNotFoundError, ValueError):
        found: dict[str, dict[str, str | None]] = json.loads(
            (settings.lake_dir / STATE).read_text()
        )
        return found
    return {}


def _exports(settings: Settings) -> list[Path]:
    """The exports of many days, oldest first."""
    name = settings.source_mapping.exports.file_name
    if name.has_date or not settings.exports_dir.is_dir():
        return []
    found = [
        path
        for path in settings.exports_dir.iterdir()
        if name.matches(path.name) and NATIVE.day(path.name) is None and path.is_file()
    ]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _split(
    settings: Settings,
    mapping: ExportMapping,
    path: Path,
    progress: Callable[[str, int], None],
) -> int:
    """Split one export; returns the number of its rows."""
    stat = path.stat()
    file = inspect(CsvFile(path, row_format(mapping), stat.st_size, stat.st_mtime_ns))
    modified = datetime.fromtimestamp(stat.st_mtime, timezone.utc)
    written = modified.isoformat(timespec="microseconds")
    header = (*file.header, *ORIGIN)
    repeated = [name for name in ORIGIN if name in file.header]
    if repeated:
        raise RetailAssetsError(f"{path} has a column {repeated[0]}: give it another name.")
    spill = settings.lake_dir / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    count = 0
    with TemporaryDirectory(dir=spill) as folder, duckdb.connect() as connection:
        connection.execute("SET TimeZone = ?", [settings.timezone])
        days = _Days(
            mapping,
            file.header,
            connection,
            modified.astimezone(ZoneInfo(settings.timezone)).date(),
        )
        rows = _rows(file, written)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            by_day: dict[date, list[Row]] = {}
            for day, row in zip(days.of(chunk), chunk, strict=True):
                by_day.setdefault(day, []).append(row)
            for day, some in by_day.items():
                with open_text(Path(folder, str(day)), "ab") as part:
                    csv.writer(part).writerows(some)
            count += len(chunk)
            progress(path.name, count)
        if count != file.records:
            raise RetailAssetsError(
                f"{path} has {file.records:,} records, but {count:,} were read: check its quotes."
            )
        for part_path in sorted(Path(folder).iterdir()):
            _merge(settings, mapping, header, part_path, written)
    return count


def _rows(file: CsvFile, written: str) -> Iterator[Row]:
    """The rows of an export with their origin; one of too few or too many fields stays so."""
    width = len(file.header)
    for record in records(file.path, layout=file.layout):
        if record.number == 1:
            continue
        fields = next(reader(iter(record.lines), file.layout))
        if len(fields) == width + 1 and not fields[-1]:
            # Some end each row with a delimiter.
            fields.pop()
        if len(fields) == width:
            yield [*fields, file.path.name, str(record.line), written]
        else:
            yield _still_too_long(fields, width)


def _still_too_long(fields: Row, width: int) -> Row:
    """A row of too many fields, so that it has too many with the columns of the origin as well."""
    # DuckDB passes over blank ones.
    return [*fields, *["too many fields"] * (len(ORIGIN) + 1)] if len(fields) > width else fields


class _Days:
    """The days of rows, as the typed read would have them."""

    def __init__(
        self,
        mapping: ExportMapping,
        header: Sequence[str],
        connection: duckdb.DuckDBPyConnection,
        otherwise: date,
    ) -> None:
        self._connection, self._otherwise = connection, otherwise
        self._width = len(header) + len(ORIGIN)
        self._order = header.index(mapping.fields.order_id.sources[0])
        sources = mapping.fields.order_timestamp.sources
        self._places = [header.index(name) for name in sources]
        self._query = day_of(mapping)
        self._last: tuple[str | None, date] = (None, otherwise)

    def of(self, rows: Sequence[Row]) -> Iterator[date]:
        """The day of each row: its own, else that of the row before if it is of the same order."""
        whole = [row if len(row) == self._width else None for row in rows]
        texts = [[row[place] if row else "" for row in whole] for place in self._places]
        found = self._connection.execute(self._query, texts).fetchall()
        for row, (day,) in zip(whole, found, strict=True):
            order = row[self._order].strip() if row else self._last[0]
            same = order == self._last[0]
            self._last = (order, day or (self._last[1] if same else self._otherwise))
            yield self._last[1]


def _merge(
    settings: Settings, mapping: ExportMapping, header: Sequence[str], part: Path, written: str
) -> None:
    """Put the rows of an export for one day into the file of that day."""
    target = settings.exports_dir / NATIVE.of_day(date.fromisoformat(part.name))
    with open_text(part, "rb") as text:
        new = list(csv.reader(text))
    header, old, new = _aligned(target, list(header), new)
    place = header.index(mapping.fields.order_id.sources[0])

    def order(row: Row) -> str | None:
        return row[place].strip() if len(row) == len(header) else None

    orders = {order(row) for row in new} - {None}
    broken = [row for row in new if order(row) is None]
    kept = [
        row for row in old if row not in broken and (order(row) not in orders or row[-1] > written)
    ]
    newer = {order(row) for row in kept if order(row) in orders}
    added = [row for row in new if order(row) not in newer]
    with replacing(target) as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept, *added])


def _aligned(target: Path, header: Row, new: list[Row]) -> tuple[Row, list[Row], list[Row]]:
    """The columns of a day's file and of new rows together, its rows, and the new ones.

    Raises:
        RetailAssetsError: if the file was not made of exports of many days.
    """
    if target.with_name(f"{target.name}.gz").exists():
        raise RetailAssetsError(f"{target}.gz is in the way of {target.name}: move it elsewhere.")
    if not target.exists():
        return header, [], new
    with open_text(target, "rb") as text:
        known, *old = csv.reader(text)
    if tuple(known[-len(ORIGIN) :]) != ORIGIN:
        raise RetailAssetsError(
            f"{target} was not made of an export of many days, and is left as it is: move it"
            " elsewhere, and the export's rows of that day are put in its place."
        )
    if known == header:
        return header, old, new
    both = list(dict.fromkeys([*known[: -len(ORIGIN)], *header[: -len(ORIGIN)], *ORIGIN]))

    def realigned(rows: list[Row], names: Row) -> list[Row]:
        return [
            [dict(zip(names, row, strict=True)).get(name, "") for name in both]
            if len(row) == len(names)
            else _still_too_long(row, len(names))
            for row in rows
        ]

    return both, realigned(old, known), realigned(new, header)


@contextmanager
def replacing(target: Path) -> Iterator[TextIO]:
    """Write a file beside another one and put it in its place, on the disk, when it is whole."""
    beside = target.with_name(f".{target.name}.new")
    with beside.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    beside.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
