"""Writing sample files into a watched folder: all of them or none, and never over a user's file.

Every file is first written beside its place under a temporary name (`.NAME.partial`, which no
sensor takes for data). Only when all are written, and none would change a file that is already
there, are they renamed into place. The comparison is of content, for `.gz` files of what they
unpack to, because another zlib may pack the same bytes differently.
"""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from retail_assets.business_days import export_paths

if TYPE_CHECKING:
    from typing_extensions import Self

COMPARED_AT_ONCE_BYTES = 1 << 20


def export_path(data_dir: Path, export_date: date, *, compressed: bool = False) -> Path:
    """Where the order export of a day lies."""
    return export_paths(data_dir / "exports", export_date)[compressed]


def event_path(
    data_dir: Path, received: date, minute_of_day: int, *, compressed: bool = False
) -> Path:
    """Where the events lie that were collected from this minute of the business day on."""
    clock = f"{minute_of_day // 60:02d}{minute_of_day % 60:02d}"
    name = f"orders_{clock}.jsonl{'.gz' if compressed else ''}"
    return data_dir / "events" / received.isoformat() / name


class StagedFiles:
    """Files on their way into a folder; a context manager.

    Leaving the block normally renames them into place in the order they were staged; an exception
    removes the temporary files and any folder made for them, and leaves the rest as it was.
    """

    def __init__(self) -> None:
        self.written: list[Path] = []
        self.unchanged: list[Path] = []
        self._made_folders: list[Path] = []

    @contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Give a binary file to write the content of `path` to; compressed for `.gz`.

        Raises FileExistsError, naming the file, if `path` or its compressed or plain form holds
        other content.
        """
        self._make_folder(path.parent)
        self.written.append(path)
        with _partial(path).open("wb") as raw:
            if path.suffix == ".gz":
                # no name and no time in the header: the same content gives the same bytes
                with gzip.GzipFile(
                    filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0
                ) as compressed:
                    yield cast("BinaryIO", compressed)
            else:
                yield raw
        if _would_replace(path):
            raise FileExistsError(
                f"{path} or its compressed copy exists with other content. Nothing was written: "
                "choose an empty data folder (RETAIL_DATA_DIR) or move that file away."
            )
        if path.exists():
            _partial(path).unlink()
            self.written.pop()
            self.unchanged.append(path)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for path in self.written:
                _partial(path).replace(path)
            return
        for path in self.written:
            _partial(path).unlink(missing_ok=True)
        for folder in reversed(self._made_folders):
            with suppress(OSError):  # somebody else has put a file there meanwhile
                folder.rmdir()

    def _make_folder(self, folder: Path) -> None:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            self._made_folders.append(parent)


def write_lines(handle: BinaryIO, lines: Iterable[str]) -> None:
    """Write text as UTF-8; the surrogate U+DCF4 becomes the byte F4, which is not UTF-8."""
    handle.write("".join(lines).encode("utf-8", "surrogateescape"))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _would_replace(path: Path) -> bool:
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    return twin.exists() or (
        path.exists() and not _same_content(path, _partial(path), compressed=path.suffix == ".gz")
    )


def _same_content(left: Path, right: Path, *, compressed: bool) -> bool:
    if not compressed and left.stat().st_size != right.stat().st_size:
        return False
    with (
        _reader(left, compressed=compressed) as one,
        _reader(right, compressed=compressed) as other,
    ):
        while True:
            block = _block(one)
            if block is None or block != _block(other):
                return False
            if not block:
                return True


def _block(handle: BinaryIO) -> bytes | None:
    """The next block; None where a file that should be compressed is not."""
    try:
        return handle.read(COMPARED_AT_ONCE_BYTES)
    except (gzip.BadGzipFile, EOFError):
        return None


def _reader(path: Path, *, compressed: bool) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if compressed else path.open("rb")
