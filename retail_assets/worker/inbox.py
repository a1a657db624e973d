"""The inbox of the worker: received events that wait for a transaction, bounded in bytes."""

import threading
import time
from collections import deque

from retail_assets.ingest.messages.load import Received

MAX_BYTES = 128 << 20
"""Bytes that may wait; beyond that, sources have to wait."""

OVERHEAD_BYTES = 100
"""Bytes that an event costs besides its payload."""


class Inbox:
    """A queue of received events, from many threads to one."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[Received] = deque()
        self._bytes = 0
        self._events = 0
        self._closed = False
        self._woken = False
        self._changed = threading.Condition()

    @property
    def is_full(self) -> bool:
        """Whether a put would wait."""
        return self._bytes >= self._max_bytes

    @property
    def closed(self) -> bool:
        """Whether it refuses new events."""
        return self._closed

    @property
    def events(self) -> int:
        """How many events wait."""
        return self._events

    @property
    def bytes(self) -> int:
        """The bytes that wait."""
        return self._bytes

    def put(self, *received: Received, timeout: float | None = None) -> bool:
        """Add events, all of them for one batch; waits while the inbox is full.

        Returns:
            Whether they were added: not after the timeout in seconds, and not to a closed inbox.
        """
        with self._changed:
            room = self._changed.wait_for(lambda: self._closed or not self.is_full, timeout)
            if not room or self._closed:
                return False
            self._waiting += received
            self._bytes += sum(map(_weight, received))
            self._events += sum(len(some.payloads) for some in received)
            self._changed.notify_all()
            return True

    def offer(self, *received: Received) -> bool:
        """Add events, if there is room now."""
        return self.put(*received, timeout=0)

    def close(self) -> None:
        """Refuse new events; a `put` that waits returns False."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wake(self) -> None:
        """End the wait of `take`: there is other work."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def take(
        self, *, max_events: int, linger_seconds: float, timeout_seconds: float
    ) -> list[Received]:
        """Take a micro-batch: the events that wait, and those that follow within a moment.

        Args:
            max_events: the batch closes once it has this many.
            linger_seconds: how long its first event waits for others, since it was received.
            timeout_seconds: how long to wait for the first.

        Returns:
            At least one, unless the time was over or somebody called `wake`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._woken, timeout_seconds)
            self._woken = False
            if not self._waiting:
                return []
            until = self._waiting[0].received_at + linger_seconds
            while self._events < max_events and not (self._closed or self._woken):
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            batch: list[Received] = []
            events = 0
            while self._waiting and (
                not batch or events + len(self._waiting[0].payloads) <= max_events
            ):
                received = self._waiting.popleft()
                batch.append(received)
                events += len(received.payloads)
                self._bytes -= _weight(received)
            self._events -= events
            self._changed.notify_all()
            return batch


def _weight(received: Received) -> int:
    return sum(map(len, received.payloads)) + OVERHEAD_BYTES * len(received.payloads)
