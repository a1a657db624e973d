"""Reads for one page at a time, in threads: a few at once, so that the live pages go on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import duckdb

from retail_assets.dashboard.reading.state import naming_state
from retail_assets.lake.connection import Lake
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.settings import Settings

T = TypeVar("T")

AT_ONCE = 2
"""Pages that are read for at the same time; others wait."""


class Readers:
    """Runs functions of a read-only connection, each on a snapshot of its own.

    Args:
        settings: which lake.
        in_thread: runs a function in a thread and returns its result.
    """

    def __init__(
        self, settings: Settings, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        self.settings = settings
        self._lake = Lake.from_settings(settings)
        self._in_thread = in_thread
        self._free = asyncio.Semaphore(AT_ONCE)

    async def read(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Call a function with a connection in a thread.

        Raises:
            LakeStateError: if the lake cannot be read; it says what to do.
        """

        def work() -> T:
            with (
                naming_state(),
                self._lake.connect(read_only=True) as connection,
                SnapshotRead(connection),
            ):
                return function(connection)

        async with self._free:
            found: T = await self._in_thread(work)
            return found

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that opens what it needs."""
        async with self._free:
            found: T = await self._in_thread(function)
            return found
