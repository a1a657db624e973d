"""An order export as a file: where it is, what its bytes hash to, and whether it is whole."""

import csv
import gzip
import hashlib
import io
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import IO, BinaryIO, Literal, cast

from retail_assets import partitions
from retail_assets.engines.duckdb import REQUIRED
from retail_assets.errors import RetailAssetsError

CHUNK_BYTES = 1 << 20

BLANK_LINE = (b"\n\n", b"\n\r\n", b"\r\r")
"""Line ends that make a blank line, or a blank line within quotes."""

GZIP_RATIO = 8
"""What a byte of a compressed export is reckoned to hold."""


@dataclass(frozen=True)
class ExportFile:
    """A day's export as it lies in the exports folder.

    `lines` counts its lines, header and blank ones included, by their line feeds; `quoted` says
    whether it has quotes, `blank` whether it may have blank lines.
    """

    day: date
    path: Path
    size_bytes: int
    modified_ns: int
    content_hash: str = ""
    header: tuple[str, ...] = ()
    lines: int = 0
    quoted: bool = False
    blank: bool = False

    @property
    def weight(self) -> int:
        """About how many bytes it holds when it is not compressed."""
        return self.size_bytes * (GZIP_RATIO if self.path.suffix == ".gz" else 1)


def locate(exports_dir: Path, day: date) -> ExportFile:
    """Find the export of a day.

    Raises:
        RetailAssetsError: if there is none, or both a plain and a compressed one.
    """
    plain, packed = partitions.export_paths(exports_dir, day)
    found = [path for path in (plain, packed) if path.is_file()]
    if not found:
        raise RetailAssetsError(
            f"There is no export for {day}: neither {plain} nor {packed.name} exists."
            " Put the file there and run the day again."
        )
    if len(found) > 1:
        raise RetailAssetsError(
            f"There are two exports for {day}, {plain} and {packed.name}: remove one of them."
        )
    stat = found[0].stat()
    return ExportFile(day, found[0], stat.st_size, stat.st_mtime_ns)


def inspect(file: ExportFile) -> ExportFile:
    """Read a file once: its hash, its header, and whether it is whole.

    DuckDB takes a compressed file that breaks off for a whole one; this does not.

    Raises:
        RetailAssetsError: if it is empty, broken off, not UTF-8, or lacks required columns.
    """
    if file.size_bytes == 0:
        raise _empty(file.path)
    digest = hashlib.sha256()
    head, last, lines, quoted, blank = b"", b"\n", 0, False, False
    try:
        for chunk in _chunks(file.path, digest.update):
            if len(head) < CHUNK_BYTES:
                head += chunk
            lines += chunk.count(b"\n")
            quoted = quoted or b'"' in chunk
            seam = last + chunk[:2]
            blank = blank or any(ends in chunk or ends in seam for ends in BLANK_LINE)
            last = chunk[-2:]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RetailAssetsError(
            f"{file.path} is not a whole gzip file ({error}): send it again."
        ) from error
    except OSError as error:
        raise RetailAssetsError(f"{file.path} cannot be read: {error.strerror}.") from error
    if not head:
        raise _empty(file.path)
    return replace(
        file,
        content_hash=digest.hexdigest(),
        header=_header(file.path, head),
        lines=lines + (last[-1:] != b"\n"),
        quoted=quoted,
        blank=blank,
    )


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


def _header(path: Path, head: bytes) -> tuple[str, ...]:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]:
        raise RetailAssetsError(f"{path} is UTF-16: export it as UTF-8.")
    text = head.decode("utf-8-sig", errors="replace")
    try:
        # With its own line ends: a column's name may have one, and some end lines with CR alone.
        names = [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
    except csv.Error as error:
        raise RetailAssetsError(f"The header of {path} cannot be read: {error}.") from error
    if any("\ufffd" in name for name in names):
        raise RetailAssetsError(f"The header of {path} is not UTF-8: export it as UTF-8.")
    shown = ",".join(names)[:200]
    columns = tuple(name.lower() if name.lower() in REQUIRED else name for name in names)
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise RetailAssetsError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)};"
            f" its header is: {shown!r}. Export it with the required columns."
        )
    folded = [name.lower() for name in columns]
    if "" in columns or len(set(folded)) < len(folded):
        raise RetailAssetsError(
            f"{path} has columns without a name, or of the same name: {shown!r}."
        )
    return columns


def unmodified(file: ExportFile) -> bool:
    """Whether the file is still as it was when it was found."""
    try:
        stat = file.path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size_bytes, file.modified_ns)


def records(file: ExportFile) -> int:
    """Count the records of a file independently, header and blank lines left out."""
    csv.field_size_limit(file.size_bytes * GZIP_RATIO + CHUNK_BYTES)
    with _text(file.path) as text:
        return sum(1 for fields in csv.reader(text) if fields) - 1


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
