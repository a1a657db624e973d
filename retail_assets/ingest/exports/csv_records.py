"""The records of a CSV file as they stand in it, read with Python's own reader of CSV."""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from retail_assets.errors import RetailAssetsError
from retail_assets.mapping.exports import FileLayout

MAX_FIELD_LENGTH = 16 << 20

NATIVE = FileLayout()
"""How files are written without a mapping: commas, UTF-8, the header in the first line."""

BLANK = frozenset(("\n", "\r", "\r\n"))


class Record(NamedTuple):
    """A record as it stands in its file: the header has number 1, the file's first line is line 1.

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


def records(
    path: Path,
    max_field_length: int = MAX_FIELD_LENGTH,
    *,
    layout: FileLayout = NATIVE,
    only: Collection[int] | None = None,
) -> Iterator[Record]:
    """The records of a file, the header among them; blank lines are left out.

    Args:
        path: the file.
        max_field_length: how many characters a field may have.
        layout: how the file is written; lines before its header are passed over.
        only: the numbers of those that are wanted; the file is read up to the last of them.

    Raises:
        RetailAssetsError: if the file cannot be read, or has a field that is too long.
    """
    csv.field_size_limit(max_field_length)
    number, position = 0, layout.header_line
    last = None if only is None else max(only, default=0)
    with naming_file(path), open_text(path, "rb", layout.encoding) as text:
        for line in islice(text, layout.header_line - 1, None):
            if number == last:
                return
            if only is not None and '"' not in line and number + 1 not in only:
                # Most lines: in a file of millions this alone takes noticeable time.
                number += line not in BLANK
                position += 1
                continue
            lines = [line]
            if '"' in line:
                try:
                    next(reader(_gathering(lines, text), layout))
                except csv.Error as error:
                    raise RetailAssetsError(
                        f"{path}, line {position}: a field is longer than {max_field_length:,}"
                        " characters: close its quote, and ingest the file again."
                    ) from error
            if line.strip("\r\n"):
                number += 1
                if only is None or number in only:
                    yield Record(number, position, lines)
            position += len(lines)


def _gathering(lines: list[str], more: Iterator[str]) -> Iterator[str]:
    """The first of some lines, and further ones, which are added to them when they are read."""
    yield lines[0]
    for line in more:
        lines.append(line)
        yield line


def find_records(
    path: Path, numbers: Collection[int], layout: FileLayout = NATIVE
) -> Iterator[Record]:
    """The records of a file that have these numbers, in order, in one pass.

    Raises:
        RetailAssetsError: if the file cannot be read, or has a field that is too long.
    """
    return records(path, layout=layout, only=frozenset(numbers))


def reader(lines: Iterator[str], layout: FileLayout) -> Iterator[list[str]]:
    """The fields of records, as Python's own reader of CSV has them."""
    return csv.reader(without_nul(lines), delimiter=layout.delimiter, skipinitialspace=True)


def without_nul(text: Iterator[str]) -> Iterator[str]:
    """The lines of a text as Python 3.10 can read them: its reader of CSV refuses NUL."""
    if sys.version_info >= (3, 11):
        return text
    return (line.replace("\0", " ") for line in text)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Name the file where reading it fails."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RetailAssetsError(
            f"{path} is not a whole gzip file ({error}): send it again."
        ) from error
    except UnicodeError as error:
        raise RetailAssetsError(
            f"{path} is not written in the encoding that its mapping names: {error}."
        ) from error
    except OSError as error:
        raise RetailAssetsError(f"{path} cannot be read: {error.strerror}.") from error


def open_text(
    path: Path, mode: Literal["rb", "wb", "ab"], encoding: str = NATIVE.encoding
) -> io.TextIOWrapper:
    """A file as text with its own line ends; a byte order mark is passed over."""
    if mode == "rb" and encoding == NATIVE.encoding:
        encoding = "utf-8-sig"
    return io.TextIOWrapper(_bytes(path, mode), encoding, errors="surrogateescape", newline="")


def _bytes(path: Path, mode: Literal["rb", "wb", "ab"]) -> BinaryIO:
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, mode, compresslevel=1))
    return path.open(mode)
