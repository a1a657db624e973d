"""Exports of many days, split into a file for each day, which is then ingested as any other.

All rows of an order go to the file of its day, with where each came from. Of an order that several
exports have, the rows of the export that was written last are kept, whichever is split first, and
whatever day the others say; a row without a readable day or order goes to the day on which its
export was written, and is rejected there by name. So every row of an export is in some day's file,
and to split one again changes nothing.

Without the state that `split_state` keeps they are split once more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time

from filelock import FileLock

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import CsvFile, inspect
from retail_assets.ingest.exports.csv_records import Record, reader, records
from retail_assets.ingest.exports.files import row_format
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.ingest.exports.split_days import (
    ORIGIN,
    OrderDays,
    day_files,
    still_too_long,
)
from retail_assets.ingest.exports.split_parts import Parts, Row
from retail_assets.ingest.exports.split_state import STATE, SplitState
from retail_assets.ingest.ledgers.event_files import FoundFile
from retail_assets.lake.lock import named_lock
from retail_assets.mapping import ExportMapping
from retail_assets.mapping.file_name import NATIVE
from retail_assets.mapping.model import fingerprint
from retail_assets.settings import Settings

CHUNK_ROWS = 50_000
"""The rows that are held in memory."""

RETRY_SECONDS = 600
"""Where exports are split a few at a time, one that could not be is tried again after these."""

BROKEN_OFF = "its splitting broke off, or another host splits it now"


@dataclass(frozen=True)
class SplitResult:
    """What was split: rows by export, and why an export was not.

    `undated` has how many rows without a readable day an export had, and the file that they are in.
    """

    rows: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    undated: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each export that has such rows."""
        return tuple(
            f"{name} has {rows:,} rows without a readable day, total rows among them: they are in"
            f" {file}, and rejected there."
            for name, (rows, file) in self.undated.items()
        )


def split_exports(
    settings: Settings,
    progress: Callable[[str, int], None] = lambda _name, _rows: None,
    *,
    at_most: int | None = None,
    settle_seconds: float = 0,
) -> SplitResult:
    """Split the exports of many days that are new, have changed, or could not be split before.

    Another mapping splits all again.

    Args:
        settings: the data folder and the mapping; nothing happens where exports are of one day.
        progress: called with an export's name and the number of its rows that were read.
        at_most: how many exports to split; None: all.
        settle_seconds: an export that was written to since is left for later.
    """
    mapping = settings.source_mapping.exports
    location = ExportsLocation(settings.exports_location)
    if mapping.file_name.has_date or not (found := _exports(settings, location)):
        return SplitResult()
    settings.lake_dir.mkdir(parents=True, exist_ok=True)
    with _alone(settings, location):
        state = SplitState(settings)
        known, mark = state.read()
        settled = time() - settle_seconds
        found = [file for file in found if file.modified_ns / 1e9 <= settled]
        split_by = fingerprint(mapping)
        new = [file for file in found if not _is_known(known.get(file.path), file, split_by)]
        now = time()
        again = [
            file
            for file in found
            if file not in new
            and known[file.path]["problem"]
            and (at_most is None or now - float(known[file.path].get("tried") or 0) > RETRY_SECONDS)
        ]
        done: dict[str, int] = {}
        failed: dict[str, str] = {}
        undated: dict[str, tuple[int, str]] = {}
        for file in [*new, *again][:at_most]:
            name = file.path
            entry = {"state": _state(file), "mapping": split_by, "tried": str(now)}
            if not location.is_local:
                # Other hosts find it unfinished, and this one does if it is killed now.
                state.write({**known, name: {**entry, "problem": BROKEN_OFF}})
            try:
                rows, without_day = _split_at(settings, mapping, location, name, mark, progress)
                done[name] = rows
                undated |= {name: without_day} if without_day[0] else {}
            except RetailAssetsError as error:
                failed[name] = str(error)
            known[name] = {**entry, "problem": failed.get(name)}
            mark = state.write(known)
            if name in done:
                OrderDays.confirm(settings, mapping, mark)
        return SplitResult(done, failed, undated)


def unsplit_exports(settings: Settings) -> dict[str, str]:
    """The exports of many days that could not be split, each with the reason."""
    names = {file.path for file in _exports(settings)}
    return {
        name: entry["problem"]
        for name, entry in (SplitState(settings).read()[0] if names else {}).items()
        if name in names and entry["problem"]
    }


def _exports(settings: Settings, location: ExportsLocation | None = None) -> list[FoundFile]:
    """The exports of many days, oldest first."""
    name = settings.source_mapping.exports.file_name
    if name.has_date:
        return []
    location = location or ExportsLocation(settings.exports_location)
    found = location.files(lambda path: name.matches(path) and NATIVE.day(path) is None)
    return sorted(found, key=lambda file: (file.modified_ns, file.path))


def _is_known(entry: Mapping[str, str | None] | None, file: FoundFile, mapping: str) -> bool:
    """Whether a file was split, or tried to be, as it is now."""
    return entry is not None and (entry["state"], entry.get("mapping")) == (_state(file), mapping)


def _state(file: FoundFile) -> str:
    return f"{file.size_bytes}:{file.modified_ns}"


@contextmanager
def _alone(settings: Settings, location: ExportsLocation) -> Iterator[None]:
    """One process at a time: those of a bucket may be on several hosts."""
    with FileLock(settings.lake_dir / f"{STATE}.lock"), ExitStack() as stack:
        if not location.is_local:
            stack.enter_context(named_lock(settings.catalog, "split", "split exports into days"))
        yield


def _split_at(
    settings: Settings,
    mapping: ExportMapping,
    location: ExportsLocation,
    name: str,
    mark: str,
    progress: Callable[[str, int], None],
) -> tuple[int, tuple[int, str]]:
    """Split one export, in its folder or in one of copies, as `_split`."""
    with location.copies([name], str(settings.lake_dir / "spill")) as (folder, unreadable):
        if name in unreadable:
            raise RetailAssetsError(unreadable[name])
        try:
            return _split(settings, mapping, location, folder / name, mark, progress)
        except RetailAssetsError as error:
            raise RetailAssetsError(location.shown(str(error), folder)) from error


def _split(
    settings: Settings,
    mapping: ExportMapping,
    location: ExportsLocation,
    path: Path,
    mark: str,
    progress: Callable[[str, int], None],
) -> tuple[int, tuple[int, str]]:
    """Split one export; returns how many rows it has, how many without a day, and their file."""
    if not path.exists():
        raise RetailAssetsError(f"{path} is gone: put it there again.")
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
    with (
        TemporaryDirectory(dir=spill) as folder,
        closing(Parts(Path(folder), mapping, header, modified, settings)) as parts,
    ):
        rows = _rows(file, written)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            parts.add(chunk)
            count += len(chunk)
            progress(path.name, count)
        if count != file.records:
            raise RetailAssetsError(
                f"{path} has {file.records:,} records, but {count:,} were read: check its quotes."
            )
        parts.finish()
        _merge(settings, mapping, location, path.parent, mark, parts, header, written)
        return count, (parts.undated, NATIVE.of_day(parts.otherwise))


def _merge(
    settings: Settings,
    mapping: ExportMapping,
    location: ExportsLocation,
    folder: Path,
    mark: str,
    parts: Parts,
    header: Sequence[str],
    written: str,
) -> None:
    """Put the rows of an export into the files of their days, and no order into two of them.

    An order is first added where it belongs, then removed where it was. After a kill in between the
    export is split once more.
    """
    problems: dict[date, str] = {}
    with (
        day_files(location, folder, mapping, parts.connection) as files,
        OrderDays(settings, mapping, files, mark) as known,
    ):
        newer, moved = known.compare(parts.orders(), written)
        for day in parts.days():
            try:
                if rows := [row for row in parts.rows(day) if row[0] not in newer]:
                    files.merge(day, header, rows)
            except RetailAssetsError as error:
                problems[day] = str(error)
        files.place()
        for day, orders in moved.items():
            files.remove(day, {order for order, to in orders.items() if to not in problems})
        files.place()
        known.enter(
            ((o, day) for o, day in parts.orders() if o not in newer and day not in problems),
            written,
        )
    if problems:
        raise RetailAssetsError(" ".join(problems.values()))


def _breaks_off(record: Record, file: CsvFile) -> bool:
    """Whether a record is the last one, without its end, and no comment or total row."""
    begins = record.text.lstrip(' \t"')
    skipped = any(begins.startswith(each.strip()) for each in file.layout.skip_rows)
    return not record.lines[-1].endswith(("\n", "\r")) and not skipped


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
        if len(fields) < width and _breaks_off(record, file):
            raise RetailAssetsError(
                f"{file.path} breaks off in line {record.line}: an order may lack lines, so nothing"
                " of it is used. Download it again; if that line is no order, name how it begins in"
                " the mapping's `skip_rows`."
            )
        if len(fields) == width:
            yield [*fields, file.path.name, str(record.line), written]
        else:
            yield still_too_long(fields, width)
