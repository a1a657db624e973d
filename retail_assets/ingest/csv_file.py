"""A CSV file from outside: what its bytes hash to, its header, its records.

The records are counted here, independently of the reader that types them: a row that the reader
loses, or takes into a field of another, has to be missed by somebody.
"""

import csv
import gzip
import hashlib
import io
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from retail_assets.errors import RetailAssetsError

CHUNK_BYTES = 1 << 20

LINE_FEED, CARRIAGE_RETURN, QUOTE, COMMA = b'\n\r",'

FOLDED_BYTES = 10_000
"""A record of several lines with stray quotes is not believed to be longer."""


@dataclass(frozen=True)
class Limits:
    """What a file may be, so that reading it takes a bounded amount of memory.

    The reader holds a batch of rows column by column: about 60 KB for each column.
    """

    columns: int = 1_000
    header_bytes: int = 256 << 10
    line_bytes: int = 16 << 20


LIMITS = Limits()

Bytes: TypeAlias = "np.typing.NDArray[np.uint8]"
Flags: TypeAlias = "np.typing.NDArray[np.bool_]"


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a kind of file have: their columns, and a value that shows it is a row."""

    required: tuple[str, ...]
    telling: re.Pattern[str]


@dataclass(frozen=True)
class CsvFile:
    """A file as it lies in its folder.

    `records` counts its records, header and blank lines left out: as its quotes open and close in
    turn, or exactly where `surveyed`. `blank` says whether it has blank lines.
    """

    path: Path
    row_format: RowFormat
    size_bytes: int
    modified_ns: int
    content_hash: str = ""
    header: tuple[str, ...] = ()
    records: int = 0
    surveyed: bool = False
    blank: bool = False


File = TypeVar("File", bound=CsvFile)


class Record(NamedTuple):
    """A record as it stands in its file: the header has number 1, the first line is line 1.

    Bytes that are not UTF-8 are surrogates in `lines`.
    """

    number: int
    line: int
    lines: list[str]

    @property
    def text(self) -> str:
        """The record without the end of its last line; bytes that are not UTF-8 are replaced."""
        text = "".join((*self.lines[:-1], self.lines[-1].rstrip("\r\n")))
        return text.encode(errors="surrogateescape").decode(errors="replace")


def inspect(file: File, limits: Limits = LIMITS) -> File:
    """Read a file once: its hash, its header, its number of records, and whether it is whole.

    DuckDB takes a compressed file that breaks off for a whole one; this does not.

    Raises:
        RetailAssetsError: if it is empty, broken off, not UTF-8, lacks required columns, exceeds
            the limits, or has a quote that takes other records into its field.
    """
    if file.size_bytes == 0:
        raise _empty(file.path)
    digest = hashlib.sha256()
    head, count, open_line = b"", _Count(len(file.row_format.required) - 1), 0
    with _naming(file.path):
        for chunk in _chunks(file.path, digest.update):
            if len(head) < CHUNK_BYTES:
                head += chunk
            count.add(chunk)
            end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            open_line = open_line + len(chunk) if end < 0 else len(chunk) - end - 1
            if open_line > limits.line_bytes:
                raise _too_long(file.path, count.line_feeds + 1, limits)
    if not head:
        raise _empty(file.path)
    file = replace(
        file,
        content_hash=digest.hexdigest(),
        header=_header(file.path, head, file.row_format.required, limits),
        records=count.records - 1,
        blank=count.has_blank_lines or count.suspicious,
    )
    return survey(file, limits) if count.suspicious else file


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file where reading it fails."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RetailAssetsError(
            f"{path} is not a whole gzip file ({error}): send it again."
        ) from error
    except OSError as error:
        raise RetailAssetsError(f"{path} cannot be read: {error.strerror}.") from error


class _Count:
    """Counts the lines of a file outside quotes, blank ones left out, chunk by chunk.

    A quote opens or closes: where quotes are as they should be, each such line is a record, with
    so many commas at least.
    """

    def __init__(self, fewest_commas: int) -> None:
        self.line_feeds = 0
        self._fewest_commas = fewest_commas
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
        if b"\r" in chunk:
            ends = feeds | (found == CARRIAGE_RETURN)
        if self._inside or self._begun_inside or b'"' in chunk:
            inside = np.bitwise_xor.accumulate((found == QUOTE).view(np.uint8)) ^ self._inside
            self._inside = inside[-1]
            self._look_at_quotes(found, ends, inside.view(bool))
            self._look_inside(found, ends, inside.view(bool))
            ends = ends & ~inside.view(bool)
        else:
            self._stray |= self._at_quote and found[0] not in (COMMA, LINE_FEED, CARRIAGE_RETURN)
            self._at_quote = False
        self._all_ends += int(np.count_nonzero(ends))
        if self._at_return or b"\r" in chunk:
            # CR LF is one end of a line.
            returns = ends & ~feeds
            self._all_ends -= int(np.count_nonzero((ends & feeds)[1:] & returns[:-1]))
            self._all_ends -= self._at_return and bool(ends[0] & feeds[0])
            self._at_return = bool(returns[-1])
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
            self._row_inside |= bool(np.any(counts[begun_inside] >= self._fewest_commas))
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
    def has_blank_lines(self) -> bool:
        """Whether there are more line ends outside quotes than lines."""
        return self._all_ends > self._ends


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


def _header(path: Path, head: bytes, required: Collection[str], limits: Limits) -> tuple[str, ...]:
    for start, words in OTHER_FORMATS.items():
        if head.startswith(start):
            raise RetailAssetsError(f"{path} is no CSV text but {words}: export it as CSV.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:4]:
        raise RetailAssetsError(f"{path} is UTF-16: export it as UTF-8.")
    text = head[: limits.header_bytes].decode("utf-8-sig", errors="replace")
    # With its own line ends: a column's name may have one, and some end lines with CR alone.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(_without_nul(lines), skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise RetailAssetsError(f"The header of {path} cannot be read: {error}.") from error
    lines.seek(0)
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
    columns = tuple(name.lower() if name.lower() in required else name for name in names)
    missing = [name for name in required if name not in columns]
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


def check_complete(file: CsvFile, found: int) -> None:
    """Compare the number of records that a reader has found with the file.

    Raises:
        RetailAssetsError: if it is another number, or the file has changed since.
    """
    if not unmodified(file):
        raise RetailAssetsError(
            f"{file.path} changed while it was read: ingest it again when it is whole."
        )
    if found != file.records and not file.surveyed:
        file = survey(file)
    if found != file.records:
        raise RetailAssetsError(
            f"{file.path} has {file.records:,} records, but {found:,} were read: check its quotes"
            " and line ends, and ingest it again."
        )


def unmodified(file: CsvFile) -> bool:
    """Whether the file is still as it was when it was found."""
    try:
        stat = file.path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size_bytes, file.modified_ns)


def survey(file: File, limits: Limits = LIMITS) -> File:
    """Count the records of a file exactly, with Python's own reader, which takes longer.

    Raises:
        RetailAssetsError: if a quote takes other records into its field: it names the line.
    """
    count, next_line, blank = 0, 1, False
    for record in records(file.path, limits):
        count = record.number
        blank |= record.line > next_line
        next_line = record.line + len(record.lines)
        if len(record.lines) > 1 and count > 1:
            _check_folded(file, record)
    return replace(file, records=count - 1, surveyed=True, blank=file.blank and blank)


def records(path: Path, limits: Limits = LIMITS) -> Iterator[Record]:
    """The records of a file, the header among them; blank lines are left out.

    Raises:
        RetailAssetsError: if the file cannot be read, or has a field that is too long.
    """
    csv.field_size_limit(limits.line_bytes)
    number, position = 0, 1
    with _naming(path), _text(path, "rb") as text:
        for line in text:
            lines = [line]
            if '"' in line:
                try:
                    next(csv.reader(_without_nul(_gathering(lines, text)), skipinitialspace=True))
                except csv.Error as error:
                    raise RetailAssetsError(
                        f"{path}, line {position}: a field is longer than {limits.line_bytes:,}"
                        " characters: close its quote, and ingest the file again."
                    ) from error
            if line.strip("\r\n"):
                number += 1
                yield Record(number, position, lines)
            position += len(lines)


def _gathering(lines: list[str], more: Iterator[str]) -> Iterator[str]:
    """The first of some lines, and further ones, which are added to them when they are read."""
    yield lines[0]
    for line in more:
        lines.append(line)
        yield line


def find_records(path: Path, numbers: Collection[int]) -> Iterator[Record]:
    """The records of a file that have these numbers, in order, in one pass.

    Raises:
        RetailAssetsError: if the file cannot be read, or has a field that is too long.
    """
    wanted = frozenset(numbers)
    for record in islice(records(path), max(wanted, default=0)):
        if record.number in wanted:
            yield record


def _without_nul(text: Iterator[str]) -> Iterator[str]:
    """The lines of a text as Python 3.10 can read them: its reader of CSV refuses NUL."""
    if sys.version_info >= (3, 11):
        return text
    return (line.replace("\0", " ") for line in text)


_FIELD = r' *"[^"]*(?:""[^"]*)*" *|(?! *")[^,\r\n]*'
_WELL_FORMED = re.compile(rf"(?:{_FIELD})(?:,(?:{_FIELD}))*[\r\n]*")


def _check_folded(file: CsvFile, record: Record) -> None:
    """Raise if a record that goes over several lines looks as if it had taken in others.

    A field may well have several lines, such as an address. But where two lines look like rows,
    one of them has been taken into a field; and where quotes or the number of fields are wrong
    already, one after the first is enough, or more text than such a record may have.
    """
    columns, lines = len(file.header), record.lines
    fields = next(csv.reader(_without_nul(iter(lines)), skipinitialspace=True))
    sound = len(fields) == columns or (len(fields) == columns + 1 and not fields[-1])
    sound = sound and _WELL_FORMED.fullmatch("".join(lines)) is not None
    if all(line.count(",") < columns - 1 for line in lines[1:]) and (
        len(lines) * max(map(len, lines)) < FOLDED_BYTES
    ):
        return
    rows = [n for n, line in enumerate(lines) if _looks_like_a_row(line, file)]
    taken = rows[1:] or [n for n in rows if n and not sound]
    if not taken and not sound and sum(map(len, lines)) >= FOLDED_BYTES:
        taken = [1]
    if taken:
        opened = max((n for n in range(taken[0]) if '"' in lines[n]), default=0)
        raise RetailAssetsError(
            f"{file.path}, line {record.line + opened}: a quote opens there and takes the lines"
            f" after it, such as line {record.line + taken[0]}, into its field. Close it, or write"
            " it twice if it belongs to the text, and ingest the file again."
        )


def _looks_like_a_row(line: str, file: CsvFile) -> bool:
    cells = [cell.strip(' "\r\n').lower() for cell in line.split(",")]
    return len(cells) >= len(file.header) and any(map(file.row_format.telling.match, cells))


def tidied(file: File, folder: Path) -> File:
    """Copy a file into a folder, without blank lines and with every record ended by a line feed.

    Raises:
        RetailAssetsError: if the file cannot be read, or has a field that is too long.
        OSError: if the copy cannot be written.
    """
    copy = replace(file, path=folder / file.path.name, blank=False)
    with _text(copy.path, "wb") as target:
        for record in records(file.path):
            target.writelines((*record.lines[:-1], record.lines[-1].rstrip("\r\n"), "\n"))
    return copy


def _text(path: Path, mode: Literal["rb", "wb"]) -> io.TextIOWrapper:
    """A file as text with its own line ends; a byte order mark is passed over."""
    encoding = "utf-8-sig" if mode == "rb" else "utf-8"
    return io.TextIOWrapper(_bytes(path, mode), encoding, errors="surrogateescape", newline="")


def _bytes(path: Path, mode: Literal["rb", "wb"]) -> BinaryIO:
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, mode, compresslevel=1))
    return path.open(mode)
