"""The text of a file in any encoding: compressed files, and text that is not UTF-8.

The first bytes of a file decide; its name says only that it has to be compressed.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Protocol

from retail_assets.errors import RetailAssetsError

BLOCK_BYTES = 4 << 20

HEAD_BYTES = 64

GZIP, ZSTD = "gzip", "zstd"

_CODECS = (
    (GZIP, re.compile(rb"\x1f\x8b")),
    # The second begins a frame that is skipped.
    (ZSTD, re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),
)

_FOREIGN = (
    ("a ZIP archive", re.compile(rb"PK\x03\x04")),
    ("a Parquet file", re.compile(rb"PAR1")),
    ("an Avro file", re.compile(rb"Obj\x01")),
    ("a bzip2 file", re.compile(rb"BZh[1-9]1AY&SY")),
    ("an xz file", re.compile(rb"\xfd7zXZ\0")),
    ("an LZ4 file", re.compile(rb"\x04\x22\x4d\x18")),
    ("a Snappy file", re.compile(rb"\xff\x06\0\0sNaPpY")),
    ("an SQLite database", re.compile(rb"SQLite format 3\0")),
)

_ENCODINGS = (
    # UTF-32 has the mark of UTF-16, and two bytes more.
    ("UTF-32", "utf-32", re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff")),
    ("UTF-16", "utf-16", re.compile(rb"\xff\xfe|\xfe\xff")),
    ("UTF-16", "utf-16-le", re.compile(rb"[\[{]\0[^\0]\0")),
    ("UTF-16", "utf-16-be", re.compile(rb"\0[\[{]\0[^\0]")),
)
"""How each text that is not UTF-8 begins: with its mark, or with an ASCII bracket and another."""

_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*[\[{]")


class Stream(Protocol):
    """The interface of a file of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


@dataclass
class Content:
    """A file's content, as UTF-8; `plain` is the file itself, if its bytes are the content."""

    stream: Stream
    plain: IO[bytes] | None = None
    _ahead: bytes = b""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        if not self._ahead:
            return self.stream.read(size)
        block, self._ahead = self._ahead[:size], self._ahead[size:]
        return block

    def peek(self, size: int) -> bytes:
        """The next so many bytes, or what there is; they stay to be read."""
        while len(self._ahead) < size and (block := self.stream.read(size - len(self._ahead))):
            self._ahead += block
        return self._ahead[:size]

    def seek(self, position: int) -> None:
        """Go on elsewhere, in a plain file."""
        assert self.plain is not None
        self.plain.seek(position)
        self._ahead = b""


@contextmanager
def opened(
    open_file: Callable[[], IO[bytes]], *, compressed: bool, settled: bool
) -> Iterator[Content | None]:
    """Open the content of a file.

    Args:
        open_file: opens its bytes; called more than once.
        compressed: whether its name says that it is compressed.
        settled: whether nobody writes to it any more.

    Returns:
        The content; None of a compressed file that somebody may be writing to.

    Raises:
        RetailAssetsError: if it is no whole compressed file, or of a kind that is not read; also
            while it is read, if it is no whole text.
        OSError: if it cannot be read.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(open_file())
        content = Content(raw, raw)
        codec = _codec(content.peek(HEAD_BYTES), compressed=compressed)
        if codec:
            if not settled:
                yield None
                return
            # Nothing of it is ingested unless all of it can be read.
            with open_file() as again:
                decompressed = _Decompressed(again, codec)
                while decompressed.read(BLOCK_BYTES):
                    pass
            content = Content(_Decompressed(stack.enter_context(open_file()), codec))
        head = content.peek(HEAD_BYTES)
        for kind, pattern in _FOREIGN:
            if pattern.match(head):
                raise RetailAssetsError(f"it is {kind}, no lines of JSON: unpack or convert it")
        for name, encoding, pattern in _ENCODINGS:
            if pattern.match(head):
                content = Content(_Decoded(content, name, encoding, settled=settled))
                break
        yield content


def _codec(head: bytes, *, compressed: bool) -> str | None:
    for codec, pattern in _CODECS:
        if pattern.match(head):
            return codec
    # Some ways of copying unpack a file, and leave it its name.
    if compressed and head and not _JSON.match(head):
        raise RetailAssetsError("it is no whole gzip or zstd file: put it there again")
    return None


class _Decompressed:
    """Unpacks a compressed file; what is wrong with it is no fault of the disk."""

    def __init__(self, raw: IO[bytes], codec: str) -> None:
        self._codec = codec
        if codec == GZIP:
            self._stream: Stream = gzip.GzipFile(fileobj=raw)
        else:
            import pyarrow as pa

            self._stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except (EOFError, zlib.error) as error:
            raise self._broken(error) from error
        except OSError as error:
            # Those of the disk have a number.
            if error.errno is not None:
                raise
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> RetailAssetsError:
        return RetailAssetsError(f"it is no whole {self._codec} file ({error}): put it there again")


class _Decoded:
    """Makes UTF-8 of another text."""

    def __init__(self, stream: Stream, name: str, encoding: str, *, settled: bool) -> None:
        self._stream, self._name, self._settled = stream, name, settled
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        while not self._ready and not self._ended:
            block = self._stream.read(size)
            self._ended = not block
            try:
                # The end may have half of a character that is still being written.
                text = self._decoder.decode(block, final=self._ended and self._settled)
            except UnicodeDecodeError as error:
                # The error holds the whole block.
                raise RetailAssetsError(
                    f"it is no whole {self._name} text ({error.reason}): write it again, as UTF-8"
                ) from None
            self._ready = text.encode()
        block, self._ready = self._ready[:size], self._ready[size:]
        return block
