"""Messages of a Kafka partition that are not in the lake yet, in the order of offsets.

Only one chunk of a partition is under way at a time. The ledger moves past the last offset that a
transaction ingests: if a chunk were refused while the next one is ingested, it would be lost.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import date
from operator import lt, methodcaller
from typing import TYPE_CHECKING

from retail_assets.ingest.messages.payloads import Tombstone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

    from retail_assets.worker.sources.received_dates import ReceivedDates

CHUNK_EVENTS = 200_000
CHUNK_BYTES = 64 << 20
"""Events of one partition that are ingested at once."""

_A_DAY = 86_400_000

EVENT_BYTES = 100
"""Bytes of memory that an event costs besides its payload."""


def payload_of(message: "Message") -> bytes:
    """The payload of a message; one without a value is a tombstone of its key, and no event."""
    value: bytes | None = message.value()
    return Tombstone.of(message.key()) if value is None else value


@dataclass
class Chunk:
    """Messages of one day that follow each other in a partition."""

    received_date: date
    offered_at: float
    positions: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    recorded_us: list[int] = field(default_factory=list)
    weight: int = 0
    began: float = field(default_factory=time.monotonic)

    def is_much(self, messages: int, seconds: float) -> bool:
        """Whether it has so many messages, or was begun so long ago."""
        return len(self.positions) >= messages or time.monotonic() >= self.began + seconds


@dataclass
class PartitionQueue:
    """The messages of a partition on their way into the lake.

    `position` is the ledger's, if it has one. `day` is that of the last message, even if an earlier
    queue ingested it: otherwise days would depend on where a worker was restarted. `failure` says
    why the first chunk could not be ingested; it goes into the inbox again, not before `retry_at`.
    """

    source_name: str
    dates: "ReceivedDates"
    position: int | None = None
    day: date | None = None
    under_way: bool = False
    failure: str | None = None
    retry_at: float = 0
    weight: int = 0
    _chunks: deque[Chunk] = field(default_factory=deque)
    _next: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether all that came is in the lake."""
        return not self._chunks

    @property
    def waits(self) -> bool:
        """Whether messages came that are not under way."""
        return len(self._chunks) > self.under_way

    def extend(self, messages: "Sequence[Message]") -> None:
        """Add messages of the partition, in their order.

        Nearly always all of them go into the open chunk, which is seen at once.
        """
        offsets: list[int] = list(map(methodcaller("offset"), messages))
        payloads: list[bytes] = list(map(methodcaller("value"), messages))
        if None in payloads:
            payloads = list(map(payload_of, messages))
        stamps = map(methodcaller("timestamp"), messages)
        times = [milliseconds if kind else -1 for kind, milliseconds in stamps]
        weight = sum(map(len, payloads)) + EVENT_BYTES * len(payloads)
        follows = offsets[0] >= self._next and all(map(lt, offsets, offsets[1:]))
        chunk = self._open(len(offsets), weight)
        if chunk and follows and self.dates.are_of(chunk.received_date, times):
            self._next = offsets[-1] + 1
            self._put(chunk, offsets, payloads, times, weight)
            return
        for offset, payload, timestamp in zip(offsets, payloads, times, strict=True):
            self.add(offset, payload, timestamp)

    def add(self, offset: int, payload: bytes, timestamp: int) -> None:
        """Add a message; `timestamp` in milliseconds since 1970, -1 for none."""
        if offset < self._next:
            return
        self._next = offset + 1
        self.day = day = self.dates.of(timestamp, self.day)
        chunk = self._open(1, 0)
        now = time.time()
        if chunk is None or chunk.received_date != day:
            offered_at = min(timestamp / 1000, now) if timestamp > 0 else now
            chunk = Chunk(day, offered_at)
            self._chunks.append(chunk)
        # A time in the future, or none, was not recorded by the broker.
        recorded = timestamp if 0 < timestamp < now * 1000 + _A_DAY else int(now * 1000)
        self._put(chunk, [offset], [payload], [recorded], len(payload) + EVENT_BYTES)

    def _put(
        self,
        chunk: Chunk,
        offsets: list[int],
        payloads: list[bytes],
        times: list[int],
        weight: int,
    ) -> None:
        chunk.positions += offsets
        chunk.payloads += payloads
        chunk.recorded_us += [1000 * milliseconds for milliseconds in times]
        chunk.weight += weight
        self.weight += weight

    def _open(self, events: int, weight: int) -> Chunk | None:
        """The last chunk, if it has room and is not under way."""
        if not self.waits:
            return None
        last = self._chunks[-1]
        has_room = (
            len(last.positions) + events <= CHUNK_EVENTS and last.weight + weight < CHUNK_BYTES
        )
        return last if has_room else None

    def first(self) -> Chunk | None:
        """Return the chunk to put into the inbox now, if there is one."""
        if self.under_way or not self._chunks or time.monotonic() < self.retry_at:
            return None
        return self._chunks[0]

    def is_durable(self) -> None:
        """Drop the chunk under way: it is in the lake."""
        chunk = self._chunks.popleft()
        self.position = chunk.positions[-1] + 1
        self.weight -= chunk.weight
        self.under_way, self.failure = False, None

    def has_failed(self, reason: str, retry_seconds: float) -> None:
        """Keep the chunk under way for another attempt: it is not in the lake."""
        self.under_way, self.failure = False, reason
        self.retry_at = time.monotonic() + retry_seconds
