"""A session of ingest: a connection, and what is kept for it from batch to batch of events."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import duckdb
from typing_extensions import Self

from retail_assets.ingest.events.cache import EventCache
from retail_assets.ingest.events.staging import Staging
from retail_assets.lake.connection import Lake
from retail_assets.mapping.model import EventMappings


class EventSession:
    """Owns the staging tables of a connection, and its cache if it has one.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        mappings: how events of other shapes are written: `settings.source_mapping.events`.
        cached: keep a cache of the lake for many small batches, and have these use one thread: the
            connection is the session's alone.
    """

    def __init__(
        self,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        mappings: EventMappings = (),
        *,
        cached: bool = False,
    ) -> None:
        self.lake = lake
        self.connection = connection
        self.mappings = mappings
        self.staging = Staging(connection, mappings)
        self.cache = EventCache(self.staging, Path(lake.spill_dir).parent) if cached else None
        (self._threads,) = connection.execute("SELECT current_setting('threads')").fetchone() or (
            1,
        )
        self._threads_used = self._threads

    def open(self, *, small: bool) -> None:
        """Outside of a transaction, get ready for a batch."""
        self.staging.open()
        if self.cache:
            self.cache.warm()
            self.cache.save()
            # With a few rows, most of the time would go into waking the other threads.
            threads = 1 if small else self._threads
            if threads != self._threads_used:
                self.connection.execute(f"SET threads = {threads}")
                self._threads_used = threads

    @contextmanager
    def transaction(self, message: str) -> Iterator[None]:
        """A transaction of the lake with the cache up to date.

        While the cache has much to catch up with, it is in no transaction.
        """
        with ExitStack() as stack:
            stack.enter_context(self.lake.transaction(self.connection, message))
            if self.cache and not self.cache.refresh():
                # To catch up with so much would hold up all who write.
                stack.close()
                self.cache.warm()
                stack.enter_context(self.lake.transaction(self.connection, message))
                self.cache.refresh()
            yield


class FreshSessions:
    """Sessions for attempts that may fail: after a failure nothing is known of a connection.

    So the next attempt has another one. As long as none fails they share one, which has its
    statements planned already.
    """

    def __init__(self, lake: Lake, mappings: EventMappings) -> None:
        self._lake = lake
        self._mappings = mappings
        self._stack = ExitStack()
        self._session: EventSession | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self._stack.close()

    @contextmanager
    def attempt(self) -> Iterator[EventSession]:
        """A session for one attempt, which fails by an exception."""
        if self._session is None:
            connection = self._stack.enter_context(self._lake.connect())
            self._session = EventSession(self._lake, connection, self._mappings)
        try:
            yield self._session
        except BaseException:
            self.__exit__()
            raise
