"""What a connection that takes in one small batch after the other remembers of the lake.

To ask the lake which events it has already, and what it knows of a few products and customers,
takes longer than to judge a hundred events, and ever longer as history grows. So the worker keeps
filters of the identities and of the files that there may be, and copies of the reference tables;
what others commit is taken up from the history of the lake, within each batch's transaction, or
before it if that is much. Where that is not possible, the lake is asked as ever.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import duckdb

from retail_assets import tables
from retail_assets.ingest.events.staging import REFERENCE_KEYS, forget_plans
from retail_assets.lake import history
from retail_assets.lake.connection import current_snapshot

if TYPE_CHECKING:
    import pyarrow as pa

FALSE_POSITIVES = 0.001
"""Share of new identities that a filter does not rule out: for these the lake is queried."""

LEAST_EVENTS = 1_000_000
"""What a filter has room for at least: 1.8 MB."""

MOST_EVENTS = 50_000_000
"""Of more events there is no filter: it takes a minute to fill, and 180 MB."""

LEAST_FILES = 100_000
"""The same of files, each with its name, its content, and perhaps the file that it is a copy of."""

MOST_FILES = 10_000_000

MOST_ROWS = 1_000_000
"""A larger reference table is not copied."""

MOST_NEW = 500_000
"""Of more rows that others committed nothing is taken up while all who write wait: these take a
quarter of a second. A transaction that takes in files has about as many."""

_BATCH_ROWS = 100_000

_EVENTS = tables.ENRICHED_EVENTS.name
_LINES = tables.RAW_EVENTS.name
_FILES = tables.EVENT_FILES.name
_FAILED = tables.FAILED_EVENT_FILES.name

_NOTED = {_EVENTS: "hash(event_id)", _FILES: "path, content_hash, copy_of"}
"""What the filters have of rows."""

_memories: "WeakKeyDictionary[duckdb.DuckDBPyConnection, EventMemory]" = WeakKeyDictionary()


def remember(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a connection a memory, for as long as anybody has it."""
    _memories[connection] = EventMemory(connection)


def forget(connection: duckdb.DuckDBPyConnection) -> None:
    """Take its memory from a connection that is not used any more, though somebody has it still."""
    _memories.pop(connection, None)


def memory_of(connection: duckdb.DuckDBPyConnection) -> "EventMemory | None":
    """The memory of a connection, if it was given one."""
    return _memories.get(connection)


class _Filter:
    """What there may be of something; it never denies what there is."""

    def __init__(self, count: int, least: int) -> None:
        from rbloom import Bloom

        self.room = max(least, 2 * count)
        self._count = 0
        self._bloom = Bloom(self.room, FALSE_POSITIVES)

    @property
    def is_full(self) -> bool:
        """Whether it lets more pass than it should."""
        return self._count > self.room

    def __contains__(self, item: Hashable) -> bool:
        return item in self._bloom

    def add(self, items: Iterable[Hashable]) -> None:
        """Note that there are some more."""
        noted = list(items)
        self._bloom.update(noted)
        self._count += len(noted)

    def add_rows(self, batches: "Iterable[pa.RecordBatch]") -> None:
        """Note whatever is in the columns of some rows."""
        for batch in batches:
            for column in batch.columns:
                self.add(column.drop_null().to_pylist())


class EventMemory:
    """What is remembered, and up to which snapshot of the lake each part of it is true.

    It is of one connection, and given it whenever it has to ask: to hold it would keep both alive.

    `positions` are the next ones that are new of parts of sources, by source and `source_name`: to
    be used after `refresh`, and set after a commit. `fields` are those in event_fields: none ever
    leaves it.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        (self._threads,) = connection.execute("SELECT current_setting('threads')").fetchone() or (
            1,
        )
        self._threads_used = self._threads
        self._wanted = [_EVENTS, *REFERENCE_KEYS]
        self._filters: dict[str, _Filter] = {}
        self._failed: frozenset[str] = frozenset()
        self.positions: dict[tuple[str, str], int] = {}
        self.fields: set[tuple[str, str]] = set()
        self._copied: set[str] = set()
        self._now = -1
        self._seen: dict[str, int] = {}
        self._tables: dict[int, str] = {}

    def use_one_thread(self, connection: duckdb.DuckDBPyConnection, *, only: bool) -> None:
        """Have statements use one thread, or all of them.

        With a few rows, most of the time would go into waking the others.
        """
        wanted = 1 if only else self._threads
        if wanted != self._threads_used:
            connection.execute(f"SET threads = {wanted}")
            self._threads_used = wanted

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Outside of a transaction, read from the lake what is missing, and catch up."""
        if not self._missing() and not self.is_behind:
            return
        connection.execute("BEGIN")
        try:
            now = current_snapshot(connection)
            self._take_up(connection, now)
            self._tables = history.table_names(connection)
            for name in self._missing():
                if name in _NOTED:
                    self._read_filter(connection, name)
                elif name == _FAILED:
                    self._read_failed(connection)
                else:
                    self._copy(connection, name)
                self._seen[name] = now
        finally:
            connection.execute("COMMIT")

    @property
    def is_behind(self) -> bool:
        """Whether others had committed more than `refresh` may take up."""
        return any(snapshot != self._now for snapshot in self._seen.values())

    def refresh(self, connection: duckdb.DuckDBPyConnection) -> None:
        """In a transaction, take up what others have committed since the last batch.

        A part that cannot be brought up to date, or has too much to take up, is not used before the
        next `prepare`.
        """
        self._take_up(connection, current_snapshot(connection), at_most=MOST_NEW)

    def _take_up(
        self, connection: duckdb.DuckDBPyConnection, now: int, *, at_most: int | None = None
    ) -> None:
        """Bring what is remembered up to date, where no more rows than these have come."""
        oldest = min(self._seen.values(), default=None)
        self._now = now
        if oldest is None:
            self.positions.clear()
            return
        if now == oldest:
            return
        commits = history.commits(connection, oldest, now)
        if commits is None:
            self._seen.clear()
            self.positions.clear()
            return
        inserted = self._follow(commits)
        for name in self._seen:
            snapshots = inserted.get(name)
            if not snapshots or self._add_inserted(connection, name, snapshots, at_most):
                self._seen[name] = now

    def _follow(self, commits: Sequence[history.Commit]) -> dict[str, list[int]]:
        """Invalidate what has changed.

        Returns:
            The snapshots that added to the filters.
        """
        inserted: dict[str, list[int]] = {}
        for commit in commits:
            for change in commit.changes:
                name = self._tables.get(change.table_id)
                is_new = name is not None and commit.snapshot > self._seen.get(
                    name, commit.snapshot
                )
                if name in REFERENCE_KEYS or name == _FAILED:
                    if is_new:
                        del self._seen[name]
                elif not change.inserted or commit.own:
                    continue
                elif name == _LINES:
                    self.positions.clear()
                elif name in self._filters and is_new:
                    inserted.setdefault(name, []).append(commit.snapshot)
        return inserted

    def _add_inserted(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        snapshots: Sequence[int],
        at_most: int | None,
    ) -> bool:
        """Note the rows that some snapshots inserted, unless they are too many."""
        inserted = (
            f"SELECT {_NOTED[name]} FROM"
            f" lake.table_insertions('{name}', {min(snapshots)}, {max(snapshots)})"
        )
        if at_most is None:
            self._filters[name].add_rows(_batches(connection, inserted))
            return True
        batches = list(_batches(connection, f"{inserted} LIMIT {at_most + 1}"))
        if sum(batch.num_rows for batch in batches) > at_most:
            return False
        self._filters[name].add_rows(batches)
        return True

    def holds(self, table: str) -> bool:
        """Whether `temp.main.all_TABLE` has all rows of a reference table."""
        return self._is_current(table) and table in self._copied

    def known(self, identities: Iterable[int]) -> list[int] | None:
        """Return those of some identities (as DuckDB hashes them) that the lake may have.

        None if nothing is known of that.
        """
        filter_ = self._filters.get(_EVENTS)
        if filter_ is None or not self._is_current(_EVENTS):
            return None
        return [identity for identity in identities if identity in filter_]

    def add(self, identities: Iterable[int]) -> None:
        """Note that the lake has some identities, or is about to have them."""
        if _EVENTS in self._filters:
            self._filters[_EVENTS].add(identities)

    def may_have_files(self, names: Iterable[str]) -> bool:
        """Whether a file of the ledger may have one of some paths or contents.

        After `refresh`. The first time it is always so; the ledger is read for the next.
        """
        self._want(_FILES)
        filter_ = self._filters.get(_FILES)
        if filter_ is None or not self._is_current(_FILES):
            return True
        return any(name in filter_ for name in names)

    def add_files(self, names: Iterable[str | None]) -> None:
        """Note paths and contents that the ledger has, or is about to have."""
        if _FILES in self._filters:
            self._filters[_FILES].add(name for name in names if name is not None)

    def failed_files(self) -> Collection[str] | None:
        """The files that could not be read, after `refresh`; None if nothing is known of them."""
        self._want(_FAILED)
        return self._failed if self._is_current(_FAILED) else None

    def _want(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.append(name)

    def _is_current(self, name: str) -> bool:
        return self._seen.get(name) == self._now

    def _missing(self) -> Sequence[str]:
        """What is to be read; so is a filter that lets too much pass."""
        for name, filter_ in self._filters.items():
            if filter_.is_full:
                self._seen.pop(name, None)
        return [name for name in self._wanted if name not in self._seen]

    def _read_filter(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        least, most = (LEAST_EVENTS, MOST_EVENTS) if name == _EVENTS else (LEAST_FILES, MOST_FILES)
        self._filters.pop(name, None)
        (count,) = connection.execute(f"SELECT count(*) FROM lake.{name}").fetchone() or (0,)
        if count > most:
            return
        filter_ = _Filter(count, least)
        filter_.add_rows(_batches(connection, f"SELECT {_NOTED[name]} FROM lake.{name}"))
        self._filters[name] = filter_

    def _read_failed(self, connection: duckdb.DuckDBPyConnection) -> None:
        rows = connection.execute(f"SELECT path FROM lake.{_FAILED}").fetchall()
        self._failed = frozenset(path for (path,) in rows)

    def _copy(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Copy a reference table, unless it is too large."""
        execute = connection.execute
        (rows,) = execute(f"SELECT count(*) FROM lake.{name}").fetchone() or (0,)
        self._copied.discard(name)
        if rows <= MOST_ROWS:
            forget_plans(connection)
            # A table that is made again leaves nothing of the old one in memory, unlike TRUNCATE.
            execute(f"CREATE OR REPLACE TEMP TABLE all_{name} AS SELECT * FROM lake.{name}")
            self._copied.add(name)


def _batches(connection: duckdb.DuckDBPyConnection, query: str) -> "Iterator[pa.RecordBatch]":
    """The rows of a query, as they come."""
    yield from connection.execute(query).to_arrow_reader(_BATCH_ROWS)
