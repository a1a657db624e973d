"""A hash of content that grows: it goes on from what was stored, without what came before.

The digest of the first chunk is its SHA-256; that of each further one is the SHA-256 of the digest
before it and the chunk. The last, perhaps incomplete, chunk's digest is the hash of the content. So
equal contents have equal hashes, however they were read; that of at most one chunk is its SHA-256;
and a `checkpoint` is enough to go on.
"""

import hashlib

from typing_extensions import Self

CHUNK_BYTES = 256 << 10
"""The parts of a grown file that are read again: its first chunk, and its last one or two."""


class ContentHash:
    """The hash of what was given to it so far; `size` counts the bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._first = self._before = self._last = b""
        self._chunk = hashlib.sha256()
        self._room = CHUNK_BYTES

    @classmethod
    def resume(cls, checkpoint: str) -> Self:
        """Go on from a checkpoint: what is given then is the content after its `size` bytes."""
        size, first, last = checkpoint.split(":")
        resumed = cls()
        resumed.size, resumed._first, resumed._last = (
            int(size),
            bytes.fromhex(first),
            bytes.fromhex(last),
        )
        resumed._chunk = hashlib.sha256(resumed._last)
        return resumed

    @property
    def checkpoint(self) -> str | None:
        """The state for `resume`: bytes, digest of the first chunk, digest up to there.

        It lies one or two chunks back. None if there is only one chunk.
        """
        if not self._first:
            return None
        chunks = (self.size - 1) // CHUNK_BYTES - 1
        return f"{chunks * CHUNK_BYTES}:{self._first.hex()}:{self._before.hex()}"

    def begins_like(self, chunk: bytes) -> bool:
        """Whether the hashed content began with this chunk."""
        return hashlib.sha256(chunk).digest() == self._first

    def update(self, data: bytes | memoryview) -> None:
        """Add content."""
        rest = memoryview(data)
        while rest:
            if not self._room:
                digest = self._chunk.digest()
                self._first = self._first or digest
                self._before, self._last = self._last, digest
                self._chunk, self._room = hashlib.sha256(digest), CHUNK_BYTES
            part = rest[: self._room]
            self._chunk.update(part)
            self._room -= len(part)
            self.size += len(part)
            rest = rest[len(part) :]

    def copy(self) -> "ContentHash":
        """Another that goes on by itself."""
        copy: ContentHash = object.__new__(ContentHash)
        copy.__dict__.update(self.__dict__)
        copy._chunk = self._chunk.copy()
        return copy

    def hexdigest(self) -> str:
        """The hash of the content so far, in hexadecimal."""
        return self._chunk.hexdigest()
