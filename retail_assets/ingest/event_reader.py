"""The new lines of an event file: those after what the ledger says was taken, in bounded portions.

A file is read as bytes, and what was taken of it before is compared by its hash. So it does not
matter how a file came to be as it is: it grew, it is the same, or it is another.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_lines import BOM, KEPT_BYTES, MAX_LINE_BYTES

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK_BYTES = 4 << 20
PORTION_BYTES = 64 << 20
PORTION_LINES = 200_000
"""What is taken from a file at once, and committed: more would be held in memory. Short lines take
many times their bytes there."""

_AROUND = len(BOM) + len(b"\r")
"""What may belong to a line's bytes and is none of it."""

WHOLE, OPEN, TAKEN = "whole", "open", "taken"
"""The last line: ended by a newline; without one, and left; without one, and taken in."""


@dataclass(frozen=True)
class Progress:
    """How far a file was taken in: bytes of its content (unpacked), their hash, lines."""

    bytes_taken: int = 0
    content_hash: str = hashlib.sha256().hexdigest()
    lines: int = 0
    last_line: str = WHOLE


@dataclass(frozen=True)
class Portion:
    """Some whole lines of a file.

    `cut` are the lines (from 0) of which only the beginning is there, because they are too long.
    `restarted`: the content before is not what the ledger has; `progress` is where this ends, and
    `last` says that nothing more is there now.
    """

    data: bytes
    cut: tuple[int, ...]
    lines: int
    restarted: bool
    progress: Progress
    last: bool


def read_new(
    open_file: Callable[[], IO[bytes]], *, packed: bool, known: Progress, still: bool
) -> Iterator[Portion]:
    """Read what is new of a file.

    Args:
        open_file: opens its bytes; called more than once.
        packed: whether it is a gzip file.
        known: how far it was taken in before.
        still: whether nobody writes to it any more, so that a last line without newline is whole.

    Returns:
        At least one portion; the last may have no lines.

    Raises:
        RetailAssetsError: if it is a gzip file that breaks off or is damaged; nothing is yielded.
        OSError: if it cannot be read.
    """
    with _opened(open_file, packed=packed) as stream:
        digest = _same_beginning(stream, known)
        if digest is not None:
            first = stream.read(BLOCK_BYTES)
            # A line that was taken without its newline may have gone on.
            if not (first and known.last_line == TAKEN):
                yield from _Reader(digest, known, still=still).read(stream, first)
                return
    with _opened(open_file, packed=packed) as stream:
        reader = _Reader(hashlib.sha256(), Progress(), still=still, restarted=True)
        yield from reader.read(stream, stream.read(BLOCK_BYTES))


@contextmanager
def _opened(open_file: Callable[[], IO[bytes]], *, packed: bool) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        if not packed:
            yield stack.enter_context(open_file())
            return
        try:
            # Nothing of it is taken in unless all of it can be read.
            with open_file() as raw, gzip.GzipFile(fileobj=raw) as stream:
                while stream.read(BLOCK_BYTES):
                    pass
            raw = stack.enter_context(open_file())
            yield stack.enter_context(gzip.GzipFile(fileobj=raw))  # type: ignore[arg-type]
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RetailAssetsError(
                f"it is no whole gzip file ({error}): put it there again"
            ) from error


def _same_beginning(stream: IO[bytes], known: Progress) -> "_Hash | None":
    """Read what was taken before; its hash, ready to go on, or None if the content is another."""
    digest = hashlib.sha256()
    left = known.bytes_taken
    while left and (block := stream.read(min(BLOCK_BYTES, left))):
        digest.update(block)
        left -= len(block)
    return digest if not left and digest.hexdigest() == known.content_hash else None


@dataclass
class _Reader:
    digest: "_Hash"
    known: Progress
    still: bool
    restarted: bool = False
    _whole: list[bytes] = field(default_factory=list)
    _size: int = 0
    _lines: int = 0
    _cut: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._position = self.known.bytes_taken
        self._before = self.known.lines

    def read(self, stream: IO[bytes], block: bytes) -> Iterator[Portion]:
        """Yield portions; what follows the last newline is kept back until its line ends."""
        open_line = bytearray()
        # Of a line that is too long only the beginning is kept, but all of it is hashed.
        open_digest, open_bytes = self.digest.copy(), 0
        while block:
            start = 0
            for end in self._ends(block):
                whole = block[start:end]
                open_digest.update(whole)
                self._add(open_line, open_bytes, whole)
                self.digest, self._position = open_digest, self._position + open_bytes + len(whole)
                open_line, open_digest, open_bytes = bytearray(), open_digest.copy(), 0
                start = end
                if self._lines >= PORTION_LINES:
                    # Whoever finds this in the ledger has to go on, even from between two lines.
                    yield self._portion(OPEN, last=False)
            rest = block[start:]
            open_digest.update(rest)
            open_bytes += len(rest)
            if len(open_line) <= MAX_LINE_BYTES + _AROUND:
                open_line += rest
            if self._size >= PORTION_BYTES:
                yield self._portion(OPEN, last=False)
            block = stream.read(BLOCK_BYTES)
        # It stays so: if anything followed, the file would be read from its beginning.
        last_line = TAKEN if self.known.last_line == TAKEN else WHOLE
        if open_bytes:
            last_line = OPEN
            if self.still:
                last_line = TAKEN
                self._add(open_line, open_bytes, b"\n")
                self.digest, self._position = open_digest, self._position + open_bytes
        yield self._portion(last_line, last=True)

    def _ends(self, block: bytes) -> list[int]:
        """Where lines of a block end: all of them, or so many as the portion has room for."""
        ends = []
        room = PORTION_LINES - self._lines
        if block.count(b"\n") > room:
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            ends = (newlines[room - 1 : -1 : PORTION_LINES] + 1).tolist()
        last = block.rfind(b"\n") + 1
        return [*ends, last] if last else ends

    def _add(self, open_line: bytearray, open_bytes: int, whole: bytes) -> None:
        if open_bytes > MAX_LINE_BYTES + _AROUND:
            # Only the first line of these is the open one; what is left of it is dropped.
            self._cut.append(self._lines)
            whole = whole[whole.index(b"\n") :]
            del open_line[KEPT_BYTES + _AROUND :]
        data = bytes(open_line) + whole if open_line else whole
        if not self._position and not self._lines and data.startswith(BOM):
            data = data[len(BOM) :]
        self._whole.append(data)
        self._size += len(data)
        self._lines += data.count(b"\n")

    def _portion(self, last_line: str, *, last: bool) -> Portion:
        self._before += self._lines
        portion = Portion(
            b"".join(self._whole),
            tuple(self._cut),
            self._lines,
            self.restarted,
            Progress(self._position, self.digest.hexdigest(), self._before, last_line),
            last,
        )
        self._whole, self._size, self._lines, self._cut = [], 0, 0, []
        self.restarted = False
        return portion
