"""What a connection that takes in one small batch after the other remembers of the lake.

To ask the lake which events it has already, and what it knows of a few products and customers,
takes longer than to judge a hundred events, and ever longer as history grows. So the worker keeps
filters of the identities and of the files that there may be, and copies of the reference tables;
what others commit is taken up from the history of the lake, within each batch's transaction. Where
that is not possible, the lake is asked as ever.
"""

import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from weakref import WeakKeyDictionary

import duckdb

from retail_assets import tables
from retail_assets.ingest.event_workspace import REFERENCE_KEYS, forget_plans
from retail_assets.lake.connection import CATALOG, author, current_snapshot

FALSE_POSITIVES = 0.001
"""For so many of the identities that are new the lake is asked all the same."""

LEAST_EVENTS = 1_000_000
"""What a filter has room for at least: 1.8 MB."""

MOST_EVENTS = 50_000_000
"""Of more events there is no filter: it takes a minute to fill, and 180 MB."""

LEAST_FILES = 100_000
"""The same of files, each with its name, its content, and perhaps the file that it is a copy of."""

MOST_FILES = 10_000_000

MOST_ROWS = 1_000_000
"""A larger reference table is not copied."""

_EVENTS = tables.ENRICHED_EVENTS.name
_LINES = tables.RAW_EVENTS.name
_FILES = tables.EVENT_FILES.name
_FAILED = tables.FAILED_EVENT_FILES.name

_NOTED = {_EVENTS: "hash(event_id)", _FILES: "path, content_hash, copy_of"}
"""What the filters have of rows."""

_INSERTED = ("inserted_into_table", "inlined_insert")
_CHANGE = re.compile(r"(\w+):(\d+)")

_memories: "WeakKeyDictionary[duckdb.DuckDBPyConnection, EventMemory]" = WeakKeyDictionary()


def remember(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a connection a memory, for as long as it is open."""
    _memories[connection] = EventMemory(connection)


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


class EventMemory:
    """What is remembered, and up to which snapshot of the lake each part of it is true.

    `positions` are the next ones that are new of parts of sources, by source and `source_name`: to
    be used after `refresh`, and set after a commit. `fields` are those in event_fields: none ever
    leaves it.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
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
        self._seen: dict[str, int] = {}
        self._tables: dict[int, str] = {}

    def use_one_thread(self, *, only: bool) -> None:
        """Have statements use one thread, or all of them.

        With a few rows, most of the time would go into waking the others.
        """
        wanted = 1 if only else self._threads
        if wanted != self._threads_used:
            self._connection.execute(f"SET threads = {wanted}")
            self._threads_used = wanted

    def prepare(self) -> None:
        """Outside of a transaction, read from the lake what is missing or out of date."""
        for name, filter_ in self._filters.items():
            if filter_.is_full:
                self._seen.pop(name, None)
        missing = [name for name in self._wanted if name not in self._seen]
        if not missing:
            return
        self._connection.execute("BEGIN")
        try:
            snapshot = current_snapshot(self._connection)
            self._tables = _table_ids(self._connection)
            for name in missing:
                if name in _NOTED:
                    self._read_filter(name)
                elif name == _FAILED:
                    self._read_failed()
                else:
                    self._copy(name)
                self._seen[name] = snapshot
        finally:
            self._connection.execute("COMMIT")

    def refresh(self) -> None:
        """In a transaction, take up what others have committed since the last batch.

        A part that cannot be brought up to date is not used before the next `prepare`.
        """
        now = current_snapshot(self._connection)
        oldest = min(self._seen.values(), default=None)
        if oldest is None:
            self.positions.clear()
            return
        if now == oldest:
            return
        history = self._connection.execute(
            "SELECT snapshot_id, changes_made, commit_extra_info IS NOT DISTINCT FROM ?"
            f" FROM {CATALOG}.ducklake_snapshot_changes WHERE snapshot_id > ?",
            [author(self._connection), oldest],
        ).fetchall()
        if len(history) < now - oldest:
            # Part of it has been forgotten.
            self._seen.clear()
            self.positions.clear()
            return
        self._take_up(history)
        self._seen = dict.fromkeys(self._seen, now)

    def _take_up(self, history: Sequence[tuple[int, str | None, bool]]) -> None:
        """Bring what is remembered up to date: each snapshot, its changes, whether it is mine."""
        inserted: dict[str, list[int]] = {}
        for snapshot, changes, mine in history:
            for kind, table_id in _CHANGE.findall(changes or ""):
                name = self._tables.get(int(table_id))
                if name in REFERENCE_KEYS or name == _FAILED:
                    if snapshot > self._seen.get(name, snapshot):
                        del self._seen[name]
                elif kind not in _INSERTED or mine:
                    continue
                elif name == _LINES:
                    self.positions.clear()
                elif name in self._filters and snapshot > self._seen.get(name, snapshot):
                    inserted.setdefault(name, []).append(snapshot)
        for name, snapshots in inserted.items():
            rows = self._connection.execute(
                f"SELECT {_NOTED[name]} FROM"
                f" lake.table_insertions('{name}', {min(snapshots)}, {max(snapshots)})"
            ).fetchall()
            self._filters[name].add(item for row in rows for item in row if item is not None)

    def holds(self, table: str) -> bool:
        """Whether `temp.main.all_TABLE` has all rows of a reference table."""
        return table in self._seen and table in self._copied

    def known(self, identities: Iterable[int]) -> list[int] | None:
        """Return those of some identities (as DuckDB hashes them) that the lake may have.

        None if nothing is known of that.
        """
        filter_ = self._filters.get(_EVENTS)
        if filter_ is None or _EVENTS not in self._seen:
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
        if filter_ is None or _FILES not in self._seen:
            return True
        return any(name in filter_ for name in names)

    def add_files(self, names: Iterable[str | None]) -> None:
        """Note paths and contents that the ledger has, or is about to have."""
        if _FILES in self._filters:
            self._filters[_FILES].add(name for name in names if name is not None)

    def failed_files(self) -> Collection[str] | None:
        """The files that could not be read, after `refresh`; None if nothing is known of them."""
        self._want(_FAILED)
        return self._failed if _FAILED in self._seen else None

    def _want(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.append(name)

    def _read_filter(self, name: str) -> None:
        execute = self._connection.execute
        least, most = (LEAST_EVENTS, MOST_EVENTS) if name == _EVENTS else (LEAST_FILES, MOST_FILES)
        self._filters.pop(name, None)
        (count,) = execute(f"SELECT count(*) FROM lake.{name}").fetchone() or (0,)
        if count > most:
            return
        filter_ = _Filter(count, least)
        for batch in execute(f"SELECT {_NOTED[name]} FROM lake.{name}").to_arrow_reader(100_000):
            for column in batch.columns:
                filter_.add(column.drop_null().to_pylist())
        self._filters[name] = filter_

    def _read_failed(self) -> None:
        rows = self._connection.execute(f"SELECT path FROM lake.{_FAILED}").fetchall()
        self._failed = frozenset(path for (path,) in rows)

    def _copy(self, name: str) -> None:
        """Copy a reference table, unless it is too large."""
        execute = self._connection.execute
        (rows,) = execute(f"SELECT count(*) FROM lake.{name}").fetchone() or (0,)
        self._copied.discard(name)
        if rows <= MOST_ROWS:
            forget_plans(self._connection)
            # A table that is made anew leaves nothing of the old one in memory, unlike TRUNCATE.
            execute(f"CREATE OR REPLACE TEMP TABLE all_{name} AS SELECT * FROM lake.{name}")
            self._copied.add(name)


def _table_ids(connection: duckdb.DuckDBPyConnection) -> dict[int, str]:
    rows = connection.execute(
        f"SELECT table_id, table_name FROM {CATALOG}.ducklake_table WHERE end_snapshot IS NULL"
    ).fetchall()
    return dict(rows)
