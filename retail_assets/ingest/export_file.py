"""An order export as a file: where it is, what its bytes hash to, how many records it has.

The records are counted here, independently of the reader that types them: a row that the reader
loses, or takes into a field of another, has to be missed by somebody.
"""

import csv
import gzip
import hashlib
import io
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice, tee
from pathlib import Path
from typing import IO, BinaryIO, Literal, TypeAlias, cast

import numpy as np

from retail_assets import partitions
from retail_assets.engines.duckdb import MAX_RAW_TEXT_BYTES, REQUIRED
from retail_assets.errors import RetailAssetsError
from retail_assets.transforms.orders import STATUSES

CHUNK_BYTES = 1 << 20

GZIP_RATIO = 8
"""What a byte of a compressed export is reckoned to hold."""

LINE_FEED, CARRIAGE_RETURN, QUOTE, COMMA = b'\n\r",'

FEWEST_COMMAS = len(REQUIRED) - 1
"""What a row has at least."""


@dataclass(frozen=True)
class Limits:
    """What an export may be, so that reading it takes a bounded amount of memory.

    The reader holds a batch of rows column by column: about 60 KB for each column.
    """

    columns: int = 1_000
    header_bytes: int = 256 << 10
    line_bytes: int = 16 << 20


LIMITS = Limits()

Bytes: TypeAlias = "np.typing.NDArray[np.uint8]"
Flags: TypeAlias = "np.typing.NDArray[np.bool_]"


@dataclass(frozen=True)
class ExportFile:
    """A day's export as it lies in the exports folder.

    `records` counts its records, header and blank lines left out: as its quotes open and close in
    turn, or exactly where `surveyed`. `blank` says whether it may have blank lines.
    """

    day: date
    path: Path
    size_bytes: int
    modified_ns: int
    content_hash: str = ""
    header: tuple[str, ...] = ()
    records: int = 0
    surveyed: bool = False
    blank: bool = False

    @property
    def weight(self) -> int:
        """About how many bytes it holds when it is not compressed."""
        return self.size_bytes * (GZIP_RATIO if self.path.suffix == ".gz" else 1)


class MissingExportError(RetailAssetsError):
    """There is no export of a day."""


def locate(exports_dir: Path, day: date) -> ExportFile:
    """Find the export of a day.

    Raises:
        MissingExportError: if there is none.
        RetailAssetsError: if there are both a plain and a compressed one.
    """
    plain, packed = partitions.export_paths(exports_dir, day)
    found = [path for path in (plain, packed) if path.is_file()]
    if not found:
        raise MissingExportError(
            f"There is no export for {day}: neither {plain} nor {packed.name} exists."
            " Put the file there and run the day again."
        )
    if len(found) > 1:
        raise RetailAssetsError(
            f"There are two exports for {day}, {plain} and {packed.name}: remove one of them."
        )
    stat = found[0].stat()
    return ExportFile(day, found[0], stat.st_size, stat.st_mtime_ns)


def inspect(file: ExportFile, limits: Limits = LIMITS) -> ExportFile:
    """Read a file once: its hash, its header, its number of records, and whether it is whole.

    DuckDB takes a compressed file that breaks off for a whole one; this does not.

    Raises:
        RetailAssetsError: if it is empty, broken off, not UTF-8, lacks required columns, exceeds
            the limits, or has a quote that takes other records into its field.
    """
    if file.size_bytes == 0:
        raise _empty(file.path)
    digest = hashlib.sha256()
    head, count, open_line = b"", _Count(), 0
    try:
        for chunk in _chunks(file.path, digest.update):
            if len(head) < CHUNK_BYTES:
                head += chunk
            count.add(chunk)
            end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            open_line = open_line + len(chunk) if end < 0 else len(chunk) - end - 1
            if open_line > limits.line_bytes:
                raise _too_long(file.path, count.line_feeds + 1, limits)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RetailAssetsError(
            f"{file.path} is not a whole gzip file ({error}): send it again."
        ) from error
    except OSError as error:
        raise RetailAssetsError(f"{file.path} cannot be read: {error.strerror}.") from error
    if not head:
        raise _empty(file.path)
    file = replace(
        file,
        content_hash=digest.hexdigest(),
        header=_header(file.path, head, limits),
        records=count.records - 1,
        blank=count.may_have_blank_lines,
    )
    return survey(file, limits) if count.suspicious else file


class _Count:
    """Counts the lines of a file outside quotes, blank ones left out, chunk by chunk.

    A quote opens or closes: where quotes are as they should be, each such line is a record.
    """

    def __init__(self) -> None:
        self.line_feeds = 0
        self._ends, self._all_ends = 0, 0
        self._inside, self._at_end, self._at_return = np.uint8(0), True, False
        self._begun_inside, self._commas, self._row_inside = False, 0, False
        self._folded, self._stray, self._at_quote = False, False, False
        self._at_border = True

    def add(self, chunk: bytes) -> None:
        """Count the lines that end in a chunk."""
        found = np.frombuffer(chunk, np.uint8)
        feeds = found == LINE_FEED
        self.line_feeds += int(np.count_nonzero(feeds))
        ends = feeds
        if self._at_return or b"\r" in chunk:
            returns = found == CARRIAGE_RETURN
            ends = feeds | returns
            # CR LF is one end of a line.
            self._all_ends -= int(np.count_nonzero(feeds[1:] & returns[:-1]))
            self._all_ends -= self._at_return and bool(feeds[0])
            self._at_return = bool(returns[-1])
        self._all_ends += int(np.count_nonzero(ends))
        if self._inside or self._begun_inside or b'"' in chunk:
            inside = np.bitwise_xor.accumulate((found == QUOTE).view(np.uint8)) ^ self._inside
            self._inside = inside[-1]
            self._look_at_quotes(found, ends, inside.view(bool))
            self._look_inside(found, ends, inside.view(bool))
            ends &= ~inside.view(bool)
        else:
            self._stray |= self._at_quote and found[0] not in (COMMA, LINE_FEED, CARRIAGE_RETURN)
            self._at_quote = False
        self._at_border = chunk[-1] in b',"\n\r'
        # Of several line ends in a row, the first one ends a line; the others are blank lines, or
        # the second half of CR LF.
        self._ends += int(np.count_nonzero(ends[1:] > ends[:-1]))
        self._ends += bool(ends[0]) and not self._at_end
        self._at_end = bool(ends[-1])

    def _look_at_quotes(self, found: Bytes, ends: Flags, inside: Flags) -> None:
        """Look for quotes that open or close within a field: others read these differently."""
        quotes = found == QUOTE
        between = (found == COMMA) | ends | quotes
        self._stray |= bool(
            np.any(quotes[1:] & inside[1:] & ~between[:-1])
            or np.any(quotes[:-1] & ~inside[:-1] & ~between[1:])
            or (quotes[0] and inside[0] and not self._at_border)
            or (self._at_quote and not between[0])
        )
        self._at_quote = bool(quotes[-1] and not inside[-1])

    def _look_inside(self, found: Bytes, ends: Flags, inside: Flags) -> None:
        """Look for lines that begin within quotes and have the commas of a row."""
        at = np.flatnonzero(ends)
        within = inside[at]
        self._folded |= bool(within.any())
        if self._begun_inside or within.any():
            commas = np.flatnonzero(found == COMMA)
            before = np.searchsorted(commas, at)
            counts = np.diff(before, prepend=-self._commas, append=len(commas))
            begun_inside = np.concatenate(([self._begun_inside], within))
            self._row_inside |= bool(np.any(counts[begun_inside] >= FEWEST_COMMAS))
            self._commas = int(counts[-1])
        else:
            self._commas = 0
        if len(at):
            self._begun_inside = bool(within[-1])

    @property
    def suspicious(self) -> bool:
        """Whether a quote may have taken rows into its field: they cannot be counted like this.

        Where no line ends within quotes, each is a record at most: nothing can be missed then.
        """
        return bool(self._row_inside or self._inside or (self._folded and self._stray))

    @property
    def records(self) -> int:
        """The lines so far, the last one with or without its end."""
        return self._ends + (not self._at_end)

    @property
    def may_have_blank_lines(self) -> bool:
        """Whether there are more line ends, those within quotes included, than lines."""
        return self._all_ends != self._ends


class _Hashing(io.RawIOBase):
    """A file that shows every byte that is read from it to a hash."""

    def __init__(self, file: IO[bytes], update: Callable[[bytes], None]) -> None:
        self._file, self._update = file, update

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._file.read(len(buffer))
        self._update(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _chunks(path: Path, update: Callable[[bytes], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        if path.suffix == ".gz":
            source = io.BufferedReader(_Hashing(file, update), CHUNK_BYTES)
            with gzip.GzipFile(fileobj=source) as unpacked:
                while chunk := unpacked.read(CHUNK_BYTES):
                    yield chunk
        else:
            while chunk := file.read(CHUNK_BYTES):
                update(chunk)
                yield chunk


def _empty(path: Path) -> RetailAssetsError:
    return RetailAssetsError(f"{path} is empty, without even a header: export it again.")


def _too_long(path: Path, line: int, limits: Limits) -> RetailAssetsError:
    return RetailAssetsError(
        f"{path}, line {line}: the line is longer than {limits.line_bytes:,} bytes. Check its line"
        " ends and quotes, and export it again."
    )


OTHER_FORMATS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\x1f\x8b": "compressed with gzip: let its name end with .csv.gz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF": "a PDF document",
}
"""What files begin with that are no text."""


def _header(path: Path, head: bytes, limits: Limits) -> tuple[str, ...]:
    for start, words in OTHER_FORMATS.items():
        if head.startswith(start):
            raise RetailAssetsError(f"{path} is no CSV text but {words}: export it as CSV.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:4]:
        raise RetailAssetsError(f"{path} is UTF-16: export it as UTF-8.")
    text = head[: limits.header_bytes].decode("utf-8-sig", errors="replace")
    # With its own line ends: a column's name may have one, and some end lines with CR alone.
    for_reader, lines = tee(_without_nul(io.StringIO(text, newline="")))
    reader = csv.reader(for_reader, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise RetailAssetsError(f"The header of {path} cannot be read: {error}.") from error
    header = "".join(islice(lines, reader.line_num))
    if len(head) > limits.header_bytes and len(header) == len(text):
        raise RetailAssetsError(
            f"The header of {path} is longer than {limits.header_bytes:,} bytes: check its line"
            " ends and quotes, and export it again."
        )
    if len(names) > limits.columns:
        raise RetailAssetsError(
            f"{path} has {len(names):,} columns, and more than {limits.columns:,} are not read:"
            " export it with fewer."
        )
    if "\0" in text[: len(header)]:
        raise RetailAssetsError(f"The header of {path} has a NUL byte: export it without.")
    _check_encoding(path, header, head)
    shown = ",".join(names)[:200]
    columns = tuple(name.lower() if name.lower() in REQUIRED else name for name in names)
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise RetailAssetsError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)};"
            f" its header is: {shown!r}. {_advice(header)}"
        )
    folded = [name.lower() for name in columns]
    if "" in columns or len(set(folded)) < len(folded):
        raise RetailAssetsError(
            f"{path} has columns without a name, or of the same name: {shown!r}."
        )
    return columns


def _check_encoding(path: Path, header: str, head: bytes) -> None:
    if "\ufffd" not in header:
        return
    try:
        head.decode()
    except UnicodeDecodeError as error:
        found, line = head[error.start], head.count(b"\n", 0, error.start) + 1
        raise RetailAssetsError(
            f"The header of {path} is not UTF-8: line {line} has the byte 0x{found:02X}, as"
            " Windows-1252 or Latin-1 would: export it as UTF-8."
        ) from None


DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _advice(header: str) -> str:
    """What to do about a header that lacks columns: its delimiter may be to blame."""
    found = max(DELIMITERS, key=header.count)
    if header.count(found) > header.count(","):
        return (
            f"Its fields are separated by {DELIMITERS[found]} ({found!r}): export it with commas."
        )
    return "Export it with the required columns."


def unmodified(file: ExportFile) -> bool:
    """Whether the file is still as it was when it was found."""
    try:
        stat = file.path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size_bytes, file.modified_ns)


def survey(file: ExportFile, limits: Limits = LIMITS) -> ExportFile:
    """Count the records of a file exactly, with Python's own reader, which takes longer.

    Raises:
        RetailAssetsError: if a quote takes other records into its field: it names the line.
    """
    csv.field_size_limit(limits.line_bytes)
    count, position = 0, 0
    with _text(file.path) as text:
        for_reader, lines = tee(_without_nul(text))
        reader = csv.reader(for_reader, skipinitialspace=True)
        try:
            for fields in reader:
                if reader.line_num == position + 1:
                    next(lines)
                else:
                    record = list(islice(lines, reader.line_num - position))
                    if count:
                        _check_folded(file, fields, record, position + 1)
                position = reader.line_num
                if fields:
                    count += 1
        except csv.Error as error:
            raise RetailAssetsError(
                f"{file.path}, line {position + 1}: a field is longer than {limits.line_bytes:,}"
                " characters: close its quote, and run the day again."
            ) from error
    return replace(file, records=count - 1, surveyed=True)


def _without_nul(text: Iterator[str]) -> Iterator[str]:
    """The lines of a text as Python 3.10 can read them: its reader of CSV refuses NUL."""
    if sys.version_info >= (3, 11):
        return text
    return (line.replace("\0", " ") for line in text)


_FIELD = r' *"[^"]*(?:""[^"]*)*" *|(?! *")[^,\r\n]*'
_WELL_FORMED = re.compile(rf"(?:{_FIELD})(?:,(?:{_FIELD}))*[\r\n]*")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")


def _check_folded(file: ExportFile, fields: list[str], lines: list[str], position: int) -> None:
    """Raise if a record that goes over several lines looks as if it had taken in others.

    A field may well have several lines, such as an address. But where two lines look like rows,
    one of them has been taken into a field; and where quotes or the number of fields are wrong
    already, one after the first is enough, or more text than a rejected row can keep.
    """
    columns = len(file.header)
    sound = len(fields) == columns or (len(fields) == columns + 1 and not fields[-1])
    sound = sound and _WELL_FORMED.fullmatch("".join(lines)) is not None
    if all(line.count(",") < columns - 1 for line in lines[1:]) and (
        len(lines) * max(map(len, lines)) < MAX_RAW_TEXT_BYTES
    ):
        return
    rows = [n for n, line in enumerate(lines) if _looks_like_a_row(line, columns)]
    taken = rows[1:] or [n for n in rows if n and not sound]
    if not taken and not sound and sum(map(len, lines)) >= MAX_RAW_TEXT_BYTES:
        taken = [1]
    if taken:
        opened = max((n for n in range(taken[0]) if '"' in lines[n]), default=0)
        raise RetailAssetsError(
            f"{file.path}, line {position + opened}: a quote opens there and takes the lines after"
            f" it, such as line {position + taken[0]}, into its field. Close it, or write it twice"
            " if it belongs to the text, and run the day again."
        )


def _looks_like_a_row(line: str, columns: int) -> bool:
    cells = [cell.strip(' "\r\n').lower() for cell in line.split(",")]
    return len(cells) >= columns and any(
        cell in STATUSES or _DATE.match(cell) is not None for cell in cells
    )


def blank_lines(file: ExportFile) -> list[int]:
    """The position of each blank line among records and blank lines, from 1; the header is 1."""
    found: list[int] = []
    position, quoted = 0, False
    with _text(file.path) as text:
        for line in text:
            if not quoted:
                position += 1
                if not line.strip("\r\n"):
                    found.append(position)
            quoted ^= line.count('"') % 2 == 1
    return found


def with_even_line_ends(file: ExportFile, folder: Path) -> ExportFile:
    """Copy a file whose line ends change within it, so that all are the same, into a folder."""
    copy = replace(file, path=folder / file.path.name)
    with (
        # Every byte is a character of Latin-1, so that nothing else changes.
        io.TextIOWrapper(_bytes(file.path, "rb"), encoding="latin-1") as source,
        io.TextIOWrapper(_bytes(copy.path, "wb"), encoding="latin-1", newline="\n") as target,
    ):
        shutil.copyfileobj(source, target, CHUNK_BYTES)
    return copy


def _text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_bytes(path, "rb"), "utf-8-sig", errors="replace", newline="")


def _bytes(path: Path, mode: Literal["rb", "wb"]) -> BinaryIO:
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, mode))
    return path.open(mode)
