"""A CSV file from outside: what its bytes hash to, its header, its records.

The records are counted, independently of the reader that types them: a row that the reader
loses, or takes into a field of another, has to be missed by somebody.
"""

import codecs
import csv
import gzip
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, TypeVar

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_records import (
    MAX_FIELD_LENGTH,
    NATIVE,
    Record,
    naming_file,
    open_text,
    reader,
    records,
    without_nul,
)
from retail_assets.ingest.exports.record_count import RecordCount
from retail_assets.mapping.exports import FileLayout

CHUNK_BYTES = 1 << 20

FOLDED_BYTES = 10_000
"""A record of several lines with stray quotes is not believed to be longer."""


@dataclass(frozen=True)
class Limits:
    """The limits of a file, so that reading it takes bounded memory.

    The reader holds a batch of rows column by column: about 60 KB for each column.
    """

    columns: int = 1_000
    header_bytes: int = 256 << 10
    line_bytes: int = MAX_FIELD_LENGTH


LIMITS = Limits()


@dataclass(frozen=True)
class RowFormat:
    """The rows of a kind of file: their columns, a value that shows it is a row, how it is written.

    Letter case of the columns' names does not matter.
    """

    required: tuple[str, ...]
    telling: re.Pattern[str]
    optional: tuple[str, ...] = ()
    layout: FileLayout = NATIVE

    def spelled(self, name: str) -> str:
        """The name of a column as it stands here, if it does."""
        return self._spellings.get(name.lower(), name)

    @cached_property
    def _spellings(self) -> dict[str, str]:
        return {name.strip().lower(): name for name in (*self.required, *self.optional)}


@dataclass(frozen=True)
class CsvFile:
    """A file as it lies in its folder.

    `records` counts its records, header and blank lines left out: as its quotes open and close in
    turn, or exactly where `surveyed`. `uneven` says whether it has blank lines or line ends of
    several kinds: DuckDB gives the malformed records of such a file wrong numbers.
    """

    path: Path
    row_format: RowFormat
    size_bytes: int
    modified_ns: int
    content_hash: str = ""
    header: tuple[str, ...] = ()
    records: int = 0
    surveyed: bool = False
    uneven: bool = False

    @property
    def layout(self) -> FileLayout:
        """How the file is written."""
        return self.row_format.layout


File = TypeVar("File", bound=CsvFile)


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
    count = RecordCount(len(file.row_format.required) - 1, file.layout.delimiter)
    head, open_line = b"", 0
    with naming_file(file.path):
        for chunk in _from_header(_as_utf8(_chunks(file.path, digest.update), file), file):
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
        header=_header(file, head, limits),
        records=count.records - 1,
        uneven=count.uneven,
    )
    return survey(file, limits) if count.suspicious else file


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
            with gzip.GzipFile(fileobj=source) as decompressed:
                while chunk := decompressed.read(CHUNK_BYTES):
                    yield chunk
        else:
            while chunk := file.read(CHUNK_BYTES):
                update(chunk)
                yield chunk


def _as_utf8(chunks: Iterator[bytes], file: CsvFile) -> Iterator[bytes]:
    """The text of a file in UTF-8; bytes that its encoding lacks stay as they are."""
    if file.layout.encoding == NATIVE.encoding:
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(file.layout.encoding)("surrogateescape")
    for chunk in chain(chunks, [b""]):
        text = decoder.decode(chunk, final=not chunk)
        if text:
            yield text.encode(errors="surrogateescape")


def _from_header(chunks: Iterator[bytes], file: CsvFile) -> Iterator[bytes]:
    """The text of a file from the line of its header on."""
    before = file.layout.header_line - 1
    head, ends = b"", [0]
    while len(ends) <= before:
        chunk = next(chunks, b"")
        head += chunk
        if not chunk or len(head) > HEAD_BYTES:
            raise RetailAssetsError(
                f"{file.path} has no line {before + 1}, where its mapping says that the header is:"
                " correct `header_line`."
            )
        # A carriage return at the end may be the first half of a line end.
        ends = [0, *(found.end() for found in _LINE_END.finditer(head, 0, len(head) - 1))]
    if head:
        yield head[ends[before] :]
    yield from chunks


_LINE_END = re.compile(rb"\r\n|\r|\n")

HEAD_BYTES = 4 << 20
"""The lines before the header may have so many."""


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
"""The first bytes of files that are no text."""


def _header(file: CsvFile, head: bytes, limits: Limits) -> tuple[str, ...]:
    path, row_format = file.path, file.row_format
    for start, words in OTHER_FORMATS.items():
        if head.startswith(start):
            raise RetailAssetsError(f"{path} is no CSV text but {words}: export it as CSV.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:4]:
        raise RetailAssetsError(
            f"{path} is UTF-16: export it as UTF-8, or name the `encoding`"
            " utf-16 in a mapping (RETAIL_MAPPING)."
        )
    text = head[: limits.header_bytes].decode("utf-8-sig", errors="replace")
    # With its own line ends: a column's name may have one, and some end lines with CR alone.
    lines = io.StringIO(text, newline="")
    rows = csv.reader(without_nul(lines), delimiter=file.layout.delimiter, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(rows, [])]
    except csv.Error as error:
        raise RetailAssetsError(f"The header of {path} cannot be read: {error}.") from error
    lines.seek(0)
    header = "".join(islice(lines, rows.line_num))
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
    shown = file.layout.delimiter.join(names)[:200]
    columns = tuple(map(row_format.spelled, names))
    missing = [name for name in row_format.required if name not in columns]
    if missing:
        raise RetailAssetsError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)};"
            f" its header is: {shown!r}. {_advice(header, file.layout)}"
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
            " Windows-1252 or Latin-1 would: export it as UTF-8, or name its `encoding` in a"
            " mapping (RETAIL_MAPPING)."
        ) from None


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _advice(header: str, layout: FileLayout) -> str:
    """Advice on a header that lacks columns: its delimiter may be to blame."""
    others = {sign: words for sign, words in DELIMITERS.items() if sign != layout.delimiter}
    found = max(others, key=header.count)
    if header.count(found) > header.count(layout.delimiter):
        return (
            f"Its fields are separated by {others[found]} ({found!r}): export it with"
            f" {DELIMITERS.get(layout.delimiter, layout.delimiter)}, or name the `delimiter` in a"
            " mapping (RETAIL_MAPPING)."
        )
    return "Export it with the required columns, or name its own in a mapping (RETAIL_MAPPING)."


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
    ends: set[str] = set()
    for record in records(file.path, limits.line_bytes, layout=file.layout):
        count = record.number
        blank |= record.line > next_line
        next_line = record.line + len(record.lines)
        ends |= {line[len(line.rstrip("\r\n")) :] for line in record.lines}
        if len(record.lines) > 1 and count > 1:
            _check_folded(file, record)
    uneven = blank or len(ends - {""}) > 1
    return replace(file, records=count - 1, surveyed=True, uneven=uneven)


@cache
def _well_formed(delimiter: str) -> re.Pattern[str]:
    sign = re.escape(delimiter)
    field = rf' *"[^"]*(?:""[^"]*)*" *|(?! *")[^{sign}\r\n]*'
    return re.compile(rf"(?:{field})(?:{sign}(?:{field}))*[\r\n]*")


def _check_folded(file: CsvFile, record: Record) -> None:
    """Raise if a record over several lines looks as if it had swallowed other records.

    A field may well have several lines, such as an address. But where two lines look like rows,
    one of them stands in a field; and where quotes or the number of fields are wrong
    already, one after the first is enough, or more text than such a record may have.
    """
    columns, lines, delimiter = len(file.header), record.lines, file.layout.delimiter
    if all(line.count(delimiter) < columns - 1 for line in lines[1:]) and (
        len(lines) * max(map(len, lines)) < FOLDED_BYTES
    ):
        return
    fields = next(reader(iter(lines), file.layout))
    sound = len(fields) == columns or (len(fields) == columns + 1 and not fields[-1])
    sound = sound and _well_formed(delimiter).fullmatch("".join(lines)) is not None
    rows = [n for n, line in enumerate(lines) if _looks_like_a_row(line, file)]
    swallowed = rows[1:] or [n for n in rows if n and not sound]
    if not swallowed and not sound and sum(map(len, lines)) >= FOLDED_BYTES:
        swallowed = [1]
    if swallowed:
        opened = max((n for n in range(swallowed[0]) if '"' in lines[n]), default=0)
        raise RetailAssetsError(
            f"{file.path}, line {record.line + opened}: a quote opens there and takes the lines"
            f" after it, such as line {record.line + swallowed[0]}, into its field. Close it, or"
            " write it twice if it belongs to the text, and ingest the file again."
        )


def _looks_like_a_row(line: str, file: CsvFile) -> bool:
    cells = [cell.strip(' "\r\n').lower() for cell in line.split(file.layout.delimiter)]
    return len(cells) >= len(file.header) and any(map(file.row_format.telling.match, cells))


def tidied(file: File, folder: Path) -> File:
    """Copy a file into a folder, in UTF-8, without blank lines, each record ended by a line feed.

    Raises:
        RetailAssetsError: if the file cannot be read, or has a field that is too long.
        OSError: if the copy cannot be written.
    """
    copy = _copy_of(file, folder, header_line=1, uneven=False)
    with open_text(copy.path, "wb") as target:
        for record in records(file.path, layout=file.layout):
            target.writelines((*record.lines[:-1], record.lines[-1].rstrip("\r\n"), "\n"))
    return copy


def in_utf8(file: File, folder: Path) -> File:
    """A file whose text is UTF-8: itself, or a copy of it in a folder.

    Raises:
        RetailAssetsError: if the file cannot be read.
        OSError: if the copy cannot be written.
    """
    if file.layout.encoding == NATIVE.encoding:
        return file
    copy = _copy_of(file, folder, header_line=file.layout.header_line, uneven=file.uneven)
    with (
        naming_file(file.path),
        open_text(file.path, "rb", file.layout.encoding) as source,
        open_text(copy.path, "wb") as target,
    ):
        shutil.copyfileobj(source, target, CHUNK_BYTES)
    return copy


def _copy_of(file: File, folder: Path, *, header_line: int, uneven: bool) -> File:
    layout = file.layout.model_copy(
        update={"encoding": NATIVE.encoding, "header_line": header_line}
    )
    row_format = replace(file.row_format, layout=layout)
    return replace(file, path=folder / file.path.name, row_format=row_format, uneven=uneven)
