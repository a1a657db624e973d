"""A queue in memory that behaves as Amazon SQS does: a message comes again until it is deleted."""

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

from retail_assets.worker.sources.queues.base import Depth, Message, QueueError

SENT_US = 1_791_800_000_000_000
"""When messages of tests were sent: 12 October 2026."""


@dataclass
class Sent:
    """A message in the queue: hidden until a moment (by `time.monotonic`)."""

    message_id: str
    body: bytes
    sent_us: int
    hidden_until: float = 0.0
    receipt: str = ""
    deliveries: int = 0


@dataclass
class MemoryQueue:
    """See `Queue`; `trouble` is what every call raises now, and `calls` what was called."""

    name: str = "orders"
    url: str = "memory://orders"
    most_at_once: int = 3
    sent: dict[str, Sent] = field(default_factory=dict)
    trouble: str | None = None
    deletes: bool = True
    calls: list[str] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def send(self, *bodies: str | bytes, sent_us: int = SENT_US) -> None:
        with self._lock:
            for body in bodies:
                number = next(self._numbers)
                text = body.encode() if isinstance(body, str) else body
                self.sent[f"M{number}"] = Sent(f"M{number}", text, sent_us + number)

    def copy(self) -> "MemoryQueue":
        """What it would have if all receivers were dead: everything that is not deleted."""
        with self._lock:
            again = {
                sent.message_id: Sent(sent.message_id, sent.body, sent.sent_us)
                for sent in self.sent.values()
            }
        return MemoryQueue(self.name, self.url, self.most_at_once, again, _numbers=self._numbers)

    def show_again(self) -> None:
        """Deliver all messages again, whoever has them."""
        with self._lock:
            for sent in self.sent.values():
                sent.hidden_until = 0.0

    def check(self) -> None:
        self._called("check")

    def receive(self, *, wait_seconds: float, hold_seconds: int) -> Sequence[Message]:
        self._called("receive")
        deadline = time.monotonic() + wait_seconds
        while True:
            with self._lock:
                now = time.monotonic()
                found = [sent for sent in self.sent.values() if sent.hidden_until <= now]
                for sent in found[: self.most_at_once]:
                    sent.hidden_until = now + hold_seconds
                    sent.deliveries += 1
                    sent.receipt = f"{sent.message_id}/{sent.deliveries}"
                if found or now >= deadline:
                    return [
                        Message(s.message_id, s.receipt, s.body, s.sent_us, s.deliveries)
                        for s in found[: self.most_at_once]
                    ]
            time.sleep(0.005)

    def extend(self, messages: Sequence[Message], hold_seconds: int) -> Collection[str]:
        self._called(f"extend to {hold_seconds}")
        assert len(messages) <= self.most_at_once
        lost = set()
        with self._lock:
            for message in messages:
                sent = self.sent.get(message.message_id)
                if sent is None or sent.receipt != message.receipt:
                    lost.add(message.receipt)
                else:
                    sent.hidden_until = time.monotonic() + hold_seconds
        return lost

    def delete(self, messages: Sequence[Message]) -> Collection[str]:
        self._called("delete")
        assert len(messages) <= self.most_at_once
        if not self.deletes:
            raise QueueError("orders deletes nothing")
        with self._lock:
            for message in messages:
                self.sent.pop(message.message_id, None)
        return {message.receipt for message in messages}

    def depth(self) -> Depth:
        self._called("depth")
        with self._lock:
            now = time.monotonic()
            held = sum(sent.hidden_until > now for sent in self.sent.values())
            return Depth(len(self.sent) - held, held)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.trouble is not None:
            raise QueueError(self.trouble)
