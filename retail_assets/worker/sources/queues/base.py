"""The interface of a message queue: another service is one class with these methods."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from retail_assets.errors import RetailAssetsError


class QueueError(RetailAssetsError):
    """A queue that does not answer, or refuses: one sentence, with what to do."""


@dataclass(frozen=True)
class Message:
    """A message as a queue delivered it.

    `message_id` is the same in each delivery, `receipt` belongs to this one; `sent_us` is when it
    was sent, in microseconds since 1970, and `deliveries` how often it was delivered, this time
    included.
    """

    message_id: str
    receipt: str
    body: bytes
    sent_us: int
    deliveries: int = 1


@dataclass(frozen=True)
class Depth:
    """About how many messages wait in a queue, and how many are held back for receivers."""

    waiting: int
    held: int


class Queue(Protocol):
    """A queue that holds a message back for its receiver for a while, until it is deleted.

    All methods may be called from several threads, and raise `QueueError`.
    """

    name: str
    url: str

    @property
    def most_at_once(self) -> int:
        """How many messages one call may receive, extend or delete."""

    def check(self) -> None:
        """Look whether it is there and may be used."""

    def receive(self, *, wait_seconds: float, hold_seconds: int) -> Sequence[Message]:
        """Wait for messages; each is held back for this receiver for so long."""

    def extend(self, messages: Sequence[Message], hold_seconds: int) -> Collection[str]:
        """Hold messages back for so long from now on; with 0 they are delivered again.

        Returns:
            The receipts of those that are held back no longer, or were deleted by others.
        """

    def delete(self, messages: Sequence[Message]) -> Collection[str]:
        """Delete messages.

        Returns:
            The receipts of those that are deleted now.
        """

    def depth(self) -> Depth:
        """Count what waits."""
