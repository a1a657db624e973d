"""Messages of a Kafka partition that are not in the lake yet, in the order of offsets.

Only one portion of a partition is under way at a time. The ledger moves to behind the last offset
that a transaction takes in: were a portion refused while the next one is taken, it would be lost.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from operator import lt, methodcaller
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from retail_assets.ingest.messages.payloads import Tombstone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

PORTION_EVENTS = 200_000
PORTION_BYTES = 64 << 20
"""Events of one partition that are ingested at once."""

_A_DAY = 86_400_000

EVENT_BYTES = 100
"""Bytes of memory that an event costs besides its payload."""


def payload_of(message: "Message") -> bytes:
    """The payload of a message; one without a value says that its key is gone: no event."""
    value: bytes | None = message.value()
    return Tombstone.of(message.key()) if value is None else value


class ReceivedDates:
    """The day on which a message was received: that of its timestamp, if that is a partition."""

    def __init__(self, timezone: str, first: date) -> None:
        self._timezone = ZoneInfo(timezone)
        self._first = first
        self._day = first
        self._from = self._to = 0

    def today(self) -> date:
        """The day that it is now."""
        return datetime.now(self._timezone).date()

    def of(self, timestamp: int, before: date | None) -> date:
        """Return the day of a message.

        A partition's messages were received one after the other, so none counts for an earlier day
        than the one before it, whatever the clock of its producer said: two producers whose clocks
        differ would make portions of a message each at midnight.

        Args:
            timestamp: milliseconds since 1970; -1 for none.
            before: the day of the message before it in its partition, if it is known.
        """
        if not self._from <= timestamp < self._to and not self._look_up(timestamp):
            return before or self.today()
        return self._day if before is None or before < self._day else before

    def are_of(self, day: date, timestamps: "Sequence[int]") -> bool:
        """Whether all messages are of a day, as far as that is seen at once."""
        return day == self._day and self._from <= min(timestamps) and max(timestamps) < self._to

    def _look_up(self, timestamp: int) -> bool:
        """Keep the day of a timestamp and its bounds; False if it is no partition."""
        try:
            day = datetime.fromtimestamp(timestamp / 1000, self._timezone).date()
        except (OverflowError, OSError, ValueError):
            return False
        if not self._first <= day <= self.today():
            return False
        self._day, self._from, self._to = day, self._begin(day), self._begin(day + timedelta(1))
        return True

    def _begin(self, day: date) -> int:
        midnight = datetime(day.year, day.month, day.day, tzinfo=self._timezone)
        return int(midnight.timestamp() * 1000)


@dataclass
class Portion:
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

    `position` is the ledger's, if it has one; `day` is that of the last message, also of one that
    another queue took in before: otherwise the days would depend on where a worker was restarted.
    `failure` says why the first portion could not be taken in, so that it has to be put into the
    inbox again, but not before `retry_at`.
    """

    source_name: str
    dates: ReceivedDates
    position: int | None = None
    day: date | None = None
    under_way: bool = False
    failure: str | None = None
    retry_at: float = 0
    weight: int = 0
    _portions: deque[Portion] = field(default_factory=deque)
    _next: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether all that came is in the lake."""
        return not self._portions

    @property
    def waits(self) -> bool:
        """Whether something came that is not even under way."""
        return len(self._portions) > self.under_way

    def extend(self, messages: "Sequence[Message]") -> None:
        """Take messages of the partition, in their order.

        Nearly always all of them go into the portion that is there, which is seen at once.
        """
        offsets: list[int] = list(map(methodcaller("offset"), messages))
        payloads: list[bytes] = list(map(methodcaller("value"), messages))
        if None in payloads:
            payloads = list(map(payload_of, messages))
        stamps = map(methodcaller("timestamp"), messages)
        times = [milliseconds if kind else -1 for kind, milliseconds in stamps]
        weight = sum(map(len, payloads)) + EVENT_BYTES * len(payloads)
        follows = offsets[0] >= self._next and all(map(lt, offsets, offsets[1:]))
        portion = self._open(len(offsets), weight)
        if portion and follows and self.dates.are_of(portion.received_date, times):
            self._next = offsets[-1] + 1
            self._put(portion, offsets, payloads, times, weight)
            return
        for offset, payload, timestamp in zip(offsets, payloads, times, strict=True):
            self.add(offset, payload, timestamp)

    def add(self, offset: int, payload: bytes, timestamp: int) -> None:
        """Take a message; `timestamp` in milliseconds since 1970, -1 for none."""
        if offset < self._next:
            return
        self._next = offset + 1
        self.day = day = self.dates.of(timestamp, self.day)
        portion = self._open(1, 0)
        now = time.time()
        if portion is None or portion.received_date != day:
            offered_at = min(timestamp / 1000, now) if timestamp > 0 else now
            portion = Portion(day, offered_at)
            self._portions.append(portion)
        # No broker has recorded a time that is not there yet, or before there was any.
        recorded = timestamp if 0 < timestamp < now * 1000 + _A_DAY else int(now * 1000)
        self._put(portion, [offset], [payload], [recorded], len(payload) + EVENT_BYTES)

    def _put(
        self,
        portion: Portion,
        offsets: list[int],
        payloads: list[bytes],
        times: list[int],
        weight: int,
    ) -> None:
        portion.positions += offsets
        portion.payloads += payloads
        portion.recorded_us += [1000 * milliseconds for milliseconds in times]
        portion.weight += weight
        self.weight += weight

    def _open(self, events: int, weight: int) -> Portion | None:
        """The last portion, if so much may still be added to it: not once it is under way."""
        if not self.waits:
            return None
        last = self._portions[-1]
        has_room = (
            len(last.positions) + events <= PORTION_EVENTS and last.weight + weight < PORTION_BYTES
        )
        return last if has_room else None

    def first(self) -> Portion | None:
        """Return the portion that is to be put into the inbox now, if there is one."""
        if self.under_way or not self._portions or time.monotonic() < self.retry_at:
            return None
        return self._portions[0]

    def is_durable(self) -> None:
        """Let go of the portion under way: it is in the lake."""
        portion = self._portions.popleft()
        self.position = portion.positions[-1] + 1
        self.weight -= portion.weight
        self.under_way, self.failure = False, None

    def has_failed(self, reason: str, retry_seconds: float) -> None:
        """Keep the portion under way for another attempt: it is not in the lake."""
        self.under_way, self.failure = False, reason
        self.retry_at = time.monotonic() + retry_seconds
