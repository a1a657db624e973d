"""One task that reads the lake for all open pages, and pushes what has changed to them.

Nothing else may query the lake on the event loop: a query that blocks it drops the sockets of all
pages. After the first read nothing is read without an open page.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from retail_assets.dashboard.watch import View

InThread = Callable[[Callable[[], View]], Awaitable[View]]


class Poller:
    """Calls `read` in a thread, again and again, and hands on each view that is new.

    Args:
        read: returns the newest view; may block.
        push: gets each view whose version differs from the one before, on the event loop.
        in_thread: runs a function in a thread and returns its result.
        seconds: least seconds from the start of a read to that of the next one; it rests at least
            as long as the read took, so that the machine has at most half of its time to give.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        read: Callable[[], View],
        push: Callable[[View], None],
        in_thread: InThread,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._push = push
        self._in_thread = in_thread
        self._seconds = seconds
        self._clock = clock
        self._pages = 0
        self._opened = asyncio.Event()
        self._woken = asyncio.Event()
        self._version = -1
        self.warm = asyncio.Event()
        """Set once the lake has been read for the first time."""

    @property
    def pages(self) -> int:
        """How many pages are open."""
        return self._pages

    def opened(self) -> None:
        """Note that a page was opened: it is read for at once."""
        self._pages += 1
        self._opened.set()
        self._woken.set()

    def closed(self) -> None:
        """Note that a page was closed."""
        self._pages -= 1
        if not self._pages:
            self._opened.clear()

    async def run(self) -> None:
        """Read once, so that the first page has something to show, then as pages are open."""
        await self.once()
        self.warm.set()
        while True:
            await self._opened.wait()
            self._woken.clear()
            await self._rest(await self.once())

    async def once(self) -> float:
        """Read once, push what is new; returns how many seconds to rest."""
        started = self._clock()
        view = await self._in_thread(self._read)
        took = self._clock() - started
        if view.version != self._version:
            self._version = view.version
            self._push(view)
        return max(self._seconds - took, took)

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), seconds)
        except asyncio.TimeoutError:
            return
