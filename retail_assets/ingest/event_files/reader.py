"""Reads the new lines of an event file, after those in the ledger, in chunks.

A file has grown, is the same, or is another one: the hash of the ingested content decides. If a
plain file has grown, only its first bytes and the last ones before the new ones are read again;
otherwise the whole file.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO

import numpy as np

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files import content_hash
from retail_assets.ingest.event_files import decoding as event_content
from retail_assets.ingest.event_files.content_hash import ContentHash
from retail_assets.ingest.event_files.decoding import Content
from retail_assets.ingest.event_files.json_documents import (
    DocumentSplitter,
    are_documents,
    is_array_of_values,
)
from retail_assets.ingest.events.lines import BOM, KEPT_BYTES, MAX_LINE_BYTES
from retail_assets.ingest.ledgers.event_files import DOCUMENTS, OPEN, TAKEN, VALUES, WHOLE, Progress
from retail_assets.ingest.messages.bodies import event_places

_AROUND = len(BOM) + len(b"\r")
"""Bytes that may stand with a line and are no part of it."""


_several = re.compile(rb"\n\[|\}\{").search
"""Finds a line that may have several events, after the first line; faster than `in`."""


@dataclass(frozen=True)
class ReadLimits:
    """How much of a file is read and ingested at once.

    A chunk ends with the block of `block_bytes`, or of JSON documents `document_block_bytes`,
    that brings it to `chunk_bytes`, and has `chunk_lines` at most: in memory a line takes about
    `line_bytes` besides its own. If more than `reread_bytes` have to be read again, new lines wait
    until nobody writes to the file.
    """

    block_bytes: int = 4 << 20
    document_block_bytes: int = 256 << 10
    chunk_bytes: int = 64 << 20
    chunk_lines: int = 200_000
    line_bytes: int = 100
    reread_bytes: int = 1 << 20


LIMITS = ReadLimits()


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file.

    `cut` are the lines (from 0) of which only the beginning is there, because they are too long.
    `restarted`: the content before is not what the ledger has; `progress` is where this ends, and
    `last` says that nothing more is there now. `resumed`: it was restarted only because a last line
    that was ingested without its newline went on.
    """

    data: bytes
    cut: tuple[int, ...]
    lines: int
    restarted: bool
    progress: Progress
    last: bool
    resumed: bool = False


def read_new(
    open_file: Callable[[], IO[bytes]],
    *,
    compressed: bool,
    known: Progress,
    settled: bool,
    limits: ReadLimits = LIMITS,
) -> Iterator[Chunk]:
    """Read the new lines of a file; of JSON documents (`json_documents`) these are its elements.

    Args:
        open_file: opens its bytes; called more than once.
        compressed: whether its name says that it is compressed.
        known: how far it was ingested before.
        settled: whether nobody writes to it any more, so that a last line without newline is whole.
        limits: how much is read and given at once.

    Returns:
        At least one chunk; the last may have no lines. A file that cannot be read yet, because
        somebody may be writing to it, gives one without lines whose last line is open.

    Raises:
        RetailAssetsError: if it is a compressed file that breaks off or is damaged, or of a kind
            that is not read; nothing is yielded. If it is a JSON document that breaks off; what
            comes before is yielded.
        OSError: if it cannot be read.
    """
    opened = partial(event_content.opened, open_file, compressed=compressed, settled=settled)
    if known.checkpoint and known.checkpoint not in (DOCUMENTS, VALUES):
        with opened() as content:
            digest = _same_ends(content, known, known.checkpoint) if content else None
            if content and digest:
                yield from _following(content, "", digest, known, limits, settled=settled)
                return
    restarted = resumed = False
    if known.bytes_taken:
        with opened() as content:
            if content is None:
                yield _left(known)
                return
            found, resumed = _continued(content, known, limits, settled=settled)
            if found is not None:
                yield from found
                return
        restarted = True
    with opened() as content:
        kind = None if content is None else _kind(content, settled=settled)
        if content is None or kind is None:
            yield _left(known)
        else:
            yield from _following(
                content,
                kind,
                ContentHash(),
                Progress(),
                limits,
                settled=settled,
                restarted=restarted,
                resumed=resumed,
            )


def _following(
    content: Content,
    kind: str,
    digest: ContentHash,
    known: Progress,
    limits: ReadLimits,
    *,
    settled: bool,
    splitter: DocumentSplitter | None = None,
    restarted: bool = False,
    resumed: bool = False,
) -> Iterator[Chunk]:
    """Read what follows on what the digest has."""
    if not kind:
        resumable = content.plain is not None
        return _Reader(digest, known, limits, settled, restarted, resumed, resumable).read(content)
    splitter = splitter or DocumentSplitter(whole_arrays=kind == VALUES)
    return _DocumentReader(digest, known, limits, settled, restarted, resumed, splitter).read(
        content
    )


def _kind(content: Content, *, settled: bool) -> str | None:
    """The parts of a content: `DOCUMENTS`, `VALUES` or lines (empty); None: not clear yet."""
    for is_it, kind in ((are_documents, DOCUMENTS), (is_array_of_values, VALUES)):
        found = is_it(content.peek, settled=settled)
        if found is None or found:
            return found and kind
    return ""


def _left(known: Progress) -> Chunk:
    """Nothing is read now: the file is looked at again once nobody writes to it."""
    if known.last_line == TAKEN:
        return _no_lines(Progress(last_line=OPEN), restarted=True)
    return _no_lines(replace(known, last_line=OPEN))


def _no_lines(progress: Progress, *, restarted: bool = False) -> Chunk:
    return Chunk(b"", (), 0, restarted, progress, last=True)


def _same_ends(content: Content, known: Progress, checkpoint: str) -> ContentHash | None:
    """Compare the first chunk and the last ones of what was ingested before.

    Returns:
        The hash of all of it; None if the content is another, or has nothing more.
    """
    digest = ContentHash.resume(checkpoint)
    if content.plain is None or not digest.begins_like(content.peek(content_hash.CHUNK_BYTES)):
        return None
    content.seek(digest.size)
    while (left := known.bytes_taken - digest.size) and (block := content.read(left)):
        digest.update(block)
    if left or digest.hexdigest() != known.content_hash:
        return None
    # If nothing was added, why was it written to? And a line that was ingested without its newline
    # may have gone on.
    return digest if content.peek(1) and known.last_line != TAKEN else None


def _continued(
    content: Content, known: Progress, limits: ReadLimits, *, settled: bool
) -> tuple[Iterator[Chunk] | None, bool]:
    """The content after the ingested part, and whether it begins with that part.

    None follows if the content before is another, or a last line that was ingested without its
    newline has gone on.
    """
    kind = known.checkpoint if known.checkpoint in (DOCUMENTS, VALUES) else ""
    now = kind or _kind(content, settled=settled)
    reread = kind or content.plain is None
    if now is None or (reread and not settled and known.bytes_taken > limits.reread_bytes):
        return iter([_left(known)]), True
    splitter = DocumentSplitter(whole_arrays=kind == VALUES)
    digest = None
    if now == kind:
        digest = _same_beginning(content, known, limits, splitter if kind else None)
    more = content.peek(1)
    if digest is None or (more and known.last_line == TAKEN):
        return None, digest is not None
    if kind and known.last_line == TAKEN:
        return iter([_no_lines(known)]), True
    return _following(
        content, kind, digest, known, limits, settled=settled, splitter=splitter
    ), True


def _same_beginning(
    content: Content, known: Progress, limits: ReadLimits, splitter: DocumentSplitter | None
) -> ContentHash | None:
    """Read what was ingested before; its hash, ready to go on, or None if it is another."""
    digest = ContentHash()
    # Until there were checkpoints all hashes were such.
    plain = hashlib.sha256() if known.bytes_taken > content_hash.CHUNK_BYTES else None
    size = limits.document_block_bytes if splitter else limits.block_bytes
    left = known.bytes_taken
    while left and (block := content.read(min(size, left))):
        digest.update(block)
        if plain and not known.checkpoint:
            plain.update(block)
        if splitter:
            splitter.feed(block)
        left -= len(block)
    same = digest.hexdigest() == known.content_hash or (
        plain is not None and plain.hexdigest() == known.content_hash
    )
    return digest if same and not left else None


def plain_hash(open_file: Callable[[], IO[bytes]], *, compressed: bool, size: int) -> str:
    """The hash of the first bytes of a content as earlier releases made it, whatever its size.

    Raises:
        RetailAssetsError: if there is no such content any more.
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with event_content.opened(open_file, compressed=compressed, settled=True) as content:
        while content and size and (block := content.read(min(size, LIMITS.block_bytes))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


@dataclass
class _Gatherer:
    """Gathers lines into chunks, from where the digest ends."""

    digest: ContentHash
    known: Progress
    limits: ReadLimits
    settled: bool
    restarted: bool = False
    resumed: bool = False

    def __post_init__(self) -> None:
        self._before = self.known.lines
        self._begin()

    def _begin(self) -> None:
        self._whole: list[bytes] = []
        self._size = self._lines = 0
        self._cut: list[int] = []

    @property
    def _checkpoint(self) -> str | None:
        """Where to go on from later."""
        return None

    def _gather(self, data: bytes, lines: int) -> None:
        self._whole.append(data)
        self._size += len(data)
        self._lines += lines

    @property
    def _is_full(self) -> bool:
        return self._lines >= self.limits.chunk_lines or self._size >= self.limits.chunk_bytes

    def _chunk(self, last_line: str, *, last: bool) -> Chunk:
        self._before += self._lines
        digest = self.digest
        progress = Progress(
            digest.size, digest.hexdigest(), self._before, last_line, self._checkpoint
        )
        chunk = Chunk(
            b"".join(self._whole),
            tuple(self._cut),
            self._lines,
            self.restarted,
            progress,
            last,
            self.resumed,
        )
        self._begin()
        self.restarted = self.resumed = False
        return chunk


@dataclass
class _Reader(_Gatherer):
    """Reads lines; of a `resumable` content there are checkpoints."""

    resumable: bool = False

    @property
    def _checkpoint(self) -> str | None:
        return self.digest.checkpoint if self.resumable else None

    def read(self, content: Content) -> Iterator[Chunk]:
        """Yield chunks; what follows the last newline is kept back until its line ends."""
        open_line = bytearray()
        block = content.read(self.limits.block_bytes)
        # Only the beginning of a line that is too long is kept, but all of it is hashed.
        open_digest, open_bytes = self.digest.copy(), 0
        while block:
            start = 0
            for end in self._ends(block):
                whole = block[start:end]
                open_digest.update(whole)
                self._add(open_line, open_bytes, whole)
                self.digest = open_digest
                open_line, open_digest, open_bytes = bytearray(), open_digest.copy(), 0
                start = end
                if self._lines >= self.limits.chunk_lines:
                    # Whoever finds this in the ledger has to go on, even from between two lines.
                    yield self._chunk(OPEN, last=False)
            rest = block[start:]
            open_digest.update(rest)
            open_bytes += len(rest)
            if len(open_line) <= MAX_LINE_BYTES + _AROUND:
                open_line += rest
            if self._size >= self.limits.chunk_bytes:
                yield self._chunk(OPEN, last=False)
            block = content.read(self.limits.block_bytes)
        # It stays so: if anything followed, the file would be read from its beginning.
        last_line = TAKEN if self.known.last_line == TAKEN else WHOLE
        if open_bytes:
            last_line = OPEN
            if self.settled:
                last_line = TAKEN
                self._add(open_line, open_bytes, b"\n")
                self.digest = open_digest
        yield self._chunk(last_line, last=True)

    def _ends(self, block: bytes) -> list[int]:
        """Where lines of a block end: all of them, or so many as the chunk has room for."""
        ends = []
        most = self.limits.chunk_lines
        room = most - self._lines
        if block.count(b"\n") > room:
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            ends = (newlines[room - 1 : -1 : most] + 1).tolist()
        last = block.rfind(b"\n") + 1
        return [*ends, last] if last else ends

    def _add(self, open_line: bytearray, open_bytes: int, whole: bytes) -> None:
        cut = b""
        if open_bytes > MAX_LINE_BYTES + _AROUND:
            # Only the first line of these is the open one; what is left of it is dropped.
            self._cut.append(self._lines)
            cut = bytes(open_line[: KEPT_BYTES + _AROUND]).removeprefix(BOM) + b"\n"
            whole = whole[whole.index(b"\n") + 1 :]
            open_line.clear()
        data = bytes(open_line) + whole if open_line else whole
        # Files that were put end to end may each begin with one. One byte is found much faster.
        if BOM[:1] in data and BOM in data:
            data = data.removeprefix(BOM).replace(b"\n" + BOM, b"\n")
        data = cut + _event_a_line(data)
        self._gather(data, data.count(b"\n"))


def _event_a_line(data: bytes) -> bytes:
    """Put the events of lines that have several on a line each."""
    parts: list[bytes] = []
    done = 0
    begin = 0 if data.startswith(b"[") else _line_of_several(data, 0)
    while begin is not None:
        end = data.find(b"\n", begin)
        end = len(data) if end < 0 else end
        parts += (data[done:begin], b"\n".join(_events(data[begin:end])))
        done = end
        begin = _line_of_several(data, done)
    return b"".join([*parts, data[done:]]) if parts else data


def _line_of_several(data: bytes, start: int) -> int | None:
    """Where the next line begins that may have several events; `start` is a line's end, or 0."""
    found = _several(data, start)
    return data.rfind(b"\n", start, found.end() - 1) + 1 if found else None


def _events(line: bytes) -> list[bytes]:
    """The events of a line: if it is an array of objects, or objects end to end, each of them."""
    if len(line) > MAX_LINE_BYTES:
        return [line]
    try:
        text = line.decode()
        events = [text[start:end].encode() for start, end in event_places(text)]
    except (ValueError, RecursionError, RetailAssetsError):
        return [line]
    return events if len(events) > 1 or (events and line.startswith(b"[")) else [line]


@dataclass
class _DocumentReader(_Gatherer):
    """Reads the elements of JSON documents, from where the splitter is."""

    splitter: DocumentSplitter = field(default_factory=DocumentSplitter)

    @property
    def _checkpoint(self) -> str:
        return VALUES if self.splitter.whole_arrays else DOCUMENTS

    def read(self, content: Content) -> Iterator[Chunk]:
        """Yield chunks; an element that is not complete is kept back.

        Raises:
            RetailAssetsError: if nobody writes to it any more, and a bracket is not closed.
        """
        open_digest = self.digest.copy()
        while block := content.read(self.limits.document_block_bytes):
            self._split(block)
            complete = self.splitter.complete
            if complete:
                open_digest.update(memoryview(block)[:complete])
                self.digest = open_digest.copy()
            open_digest.update(memoryview(block)[complete:])
            if self._is_full:
                yield self._chunk(OPEN, last=False)
        last_line = OPEN if self.splitter.depth or self.splitter.rest else WHOLE
        if self.settled:
            if self.splitter.depth:
                if self._lines:
                    yield self._chunk(OPEN, last=False)
                raise RetailAssetsError(
                    f"its JSON breaks off after element {self._before}: put it there again"
                )
            lines = self._lines
            self._split(b"\n")
            self.digest = open_digest
            last_line = TAKEN if self._lines > lines else WHOLE
        yield self._chunk(last_line, last=True)

    def _split(self, block: bytes) -> None:
        elements = self.splitter.feed(block)
        self._cut += [self._lines + number for number in self.splitter.cut]
        self._gather(b"\n".join([*elements, b""]), len(elements))
