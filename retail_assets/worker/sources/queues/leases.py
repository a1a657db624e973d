"""Messages under way: held back by the queue until they are committed, then deleted.

The queue delivers a message again as soon as its time is over. So two threads work beside the
ingest: one extends that time while a message waits for its commit, however long; the other deletes
what was committed. A lease that was lost once stays lost: its message is another delivery's by now,
is committed by that one, and not deleted here.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue

from retail_assets.worker.sources.queues.base import Message, Queue, QueueError

logger = logging.getLogger(__name__)

KEEP_SECONDS = 1.0
"""How often leases are looked at."""

DELETE_SECONDS = 0.05
"""How long committed messages wait for others to be deleted with."""

RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)

LAST_SECONDS = 10.0
"""How long the end waits for the last messages to be deleted; the rest is delivered again."""


class Lease:
    """A message that is under way, held until `until` (by `time.monotonic`)."""

    def __init__(self, message: Message, until: float) -> None:
        self.message = message
        self.until = until
        self.lost = False

    def is_held(self) -> bool:
        """Whether the queue still holds the message back for this worker."""
        if time.monotonic() >= self.until:
            self.lost = True
        return not self.lost


class Leases:
    """The messages under way of one queue; for several threads.

    Args:
        queue: where they come from.
        hold_seconds: how long the queue holds a message back, unless it is extended.
        report: called with the work, and what is wrong with the queue there, or None once that
            works again.
    """

    def __init__(
        self, queue: Queue, hold_seconds: int, report: Callable[[str, str | None], None]
    ) -> None:
        self._queue = queue
        self._seconds = hold_seconds
        self._report = report
        self._held: dict[str, Lease] = {}
        self._done: SimpleQueue[Lease] = SimpleQueue()
        self._deleted: list[str] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"{queue.name} {name}", daemon=True)
            for name, work in (("leases", self._keep), ("deletion", self._delete_done))
        ]

    def start(self) -> None:
        """Begin to extend and to delete."""
        for thread in self._threads:
            thread.start()

    def take(self, messages: Sequence[Message], asked_at: float) -> list[Lease]:
        """Hold messages that were received by a call that began at `asked_at`."""
        taken = [Lease(message, asked_at + self._seconds) for message in messages]
        with self._lock:
            self._held.update((lease.message.receipt, lease) for lease in taken)
        return taken

    def done(self, lease: Lease) -> None:
        """Delete a message: what it brought is in the lake."""
        if lease.is_held():
            self._done.put(lease)
        else:
            self._drop(lease)

    def release(self, lease: Lease, seconds: int) -> None:
        """Have a message delivered again after so many seconds."""
        self._drop(lease)
        if lease.is_held():
            self._give_back([lease], seconds)
        lease.lost = True

    @property
    def count(self) -> int:
        """How many messages are under way."""
        return len(self._held)

    @property
    def bytes(self) -> int:
        """The bytes of their bodies."""
        return sum(len(lease.message.body) for lease in self._leases())

    def oldest_us(self) -> int | None:
        """When the oldest of them was sent, in microseconds since 1970."""
        return min((lease.message.sent_us for lease in self._leases()), default=None)

    def deleted(self) -> list[str]:
        """The ids of messages that were deleted, until `forget_deleted`."""
        with self._lock:
            return self._deleted.copy()

    def forget_deleted(self, count: int) -> None:
        """Forget the first of them: they are in the ledger."""
        with self._lock:
            del self._deleted[:count]

    def end(self) -> None:
        """Delete what is committed, give the rest back, and end."""
        deadline = time.monotonic() + LAST_SECONDS
        while self._held and not self._done.empty() and time.monotonic() < deadline:
            time.sleep(DELETE_SECONDS)
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        for leases in self._parts(self._leases()):
            if not self._give_back(leases, 0):
                return

    def _give_back(self, leases: Sequence[Lease], seconds: int) -> bool:
        try:
            self._queue.extend([lease.message for lease in leases], seconds)
        except QueueError as error:
            # They are delivered again in any case, once their time is over.
            logger.info("Messages were not given back to %s: %s", self._queue.name, error)
            return False
        return True

    def _leases(self) -> list[Lease]:
        with self._lock:
            return list(self._held.values())

    def _drop(self, lease: Lease) -> None:
        with self._lock:
            self._held.pop(lease.message.receipt, None)

    def _parts(self, leases: Sequence[Lease]) -> Iterator[list[Lease]]:
        rest = iter(leases)
        while part := list(islice(rest, self._queue.most_at_once)):
            yield part

    def _keep(self) -> None:
        while not self._ending.wait(KEEP_SECONDS):
            # A third of the time has passed: the rest is for more attempts.
            soon = time.monotonic() + 2 / 3 * self._seconds
            due = [lease for lease in self._leases() if lease.until < soon and not lease.lost]
            for part in self._parts(due):
                if not self._try("extend", partial(self._extend, part)):
                    break

    def _extend(self, leases: Sequence[Lease]) -> None:
        began = time.monotonic()
        lost = self._queue.extend([lease.message for lease in leases], self._seconds)
        for lease in leases:
            if lease.message.receipt in lost:
                if lease.message.receipt not in self._held:
                    continue  # it was deleted meanwhile
                lease.lost = True
                logger.warning(
                    "%s holds the message %s back no longer: it is delivered again",
                    *(self._queue.name, lease.message.message_id),
                )
            else:
                lease.until = began + self._seconds

    def _delete_done(self) -> None:
        waiting: list[Lease] = []
        failures = 0
        while True:
            waiting += self._next_done()
            waiting = [lease for lease in waiting if self._is_to_be_deleted(lease)]
            part = waiting[: self._queue.most_at_once]
            if part and self._try("delete", partial(self._delete, part)):
                failures = 0
                waiting = waiting[len(part) :]
            elif part:
                self._ending.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1
            if self._ending.is_set() and (failures or not waiting):
                return

    def _is_to_be_deleted(self, lease: Lease) -> bool:
        if lease.is_held():
            return lease.message.receipt in self._held
        # To delete another delivery's message would say nothing about that one.
        self._drop(lease)
        return False

    def _next_done(self) -> list[Lease]:
        found: list[Lease] = []
        try:
            found.append(self._done.get(timeout=DELETE_SECONDS))
            while len(found) < self._queue.most_at_once:
                found.append(self._done.get_nowait())
        except Empty:
            pass
        return found

    def _delete(self, leases: Sequence[Lease]) -> None:
        deleted = self._queue.delete([lease.message for lease in leases])
        gone = [lease for lease in leases if lease.message.receipt in deleted]
        with self._lock:
            # One whose time was over meanwhile may be delivered again.
            self._deleted += [lease.message.message_id for lease in gone if lease.is_held()]
            for lease in gone:
                self._held.pop(lease.message.receipt, None)
        if len(gone) < len(leases):
            raise QueueError(
                f"{self._queue.name} did not delete {len(leases) - len(gone)} messages: they are"
                " deleted later."
            )

    def _try(self, name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except QueueError as error:
            self._report(name, str(error))
            return False
        self._report(name, None)
        return True
