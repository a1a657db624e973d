"""What a connection that takes in one small batch after the other remembers of the lake.

To ask the lake which events it has already, and what it knows of a few products and customers,
takes longer than to judge a hundred events, and ever longer as history grows. So the worker keeps a
filter of the identities that there may be, and copies of the reference tables; what others commit
is taken up from the history of the lake, within each batch's transaction. Where that is not
possible, the lake is asked as ever.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import duckdb

from retail_assets import tables
from retail_assets.ingest.event_workspace import forget_plans
from retail_assets.lake.connection import CATALOG, author, current_snapshot

if TYPE_CHECKING:
    from rbloom import Bloom

FALSE_POSITIVES = 0.001
"""For so many of the identities that are new the lake is asked all the same."""

LEAST_EVENTS = 1_000_000
"""What a filter has room for at least: 1.8 MB."""

MOST_EVENTS = 50_000_000
"""Of more events there is no filter: it takes a minute to fill, and 180 MB."""

MOST_ROWS = 1_000_000
"""A larger reference table is not copied."""

_REFERENCE = (tables.PRODUCTS.name, tables.CUSTOMERS.name)
_EVENTS = tables.ENRICHED_EVENTS.name
_LINES = tables.RAW_EVENTS.name

_INSERTED = ("inserted_into_table", "inlined_insert")
_CHANGE = re.compile(r"(\w+):(\d+)")

_memories: "WeakKeyDictionary[duckdb.DuckDBPyConnection, EventMemory]" = WeakKeyDictionary()


def remember(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a connection a memory, for as long as it is open."""
    _memories[connection] = EventMemory(connection)


def memory_of(connection: duckdb.DuckDBPyConnection) -> "EventMemory | None":
    """The memory of a connection, if it was given one."""
    return _memories.get(connection)


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
        self._identities: Bloom | None = None
        self._count = self._room = 0
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
        if self._count > self._room:
            self._seen.pop(_EVENTS, None)
        missing = [name for name in (_EVENTS, *_REFERENCE) if name not in self._seen]
        if not missing:
            return
        self._connection.execute("BEGIN")
        try:
            snapshot = current_snapshot(self._connection)
            self._tables = _table_ids(self._connection)
            for name in missing:
                if name == _EVENTS:
                    self._read_identities()
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
        inserted: list[int] = []
        for snapshot, changes, mine in history:
            for kind, table_id in _CHANGE.findall(changes or ""):
                name = self._tables.get(int(table_id))
                if name in _REFERENCE:
                    if snapshot > self._seen.get(name, snapshot):
                        del self._seen[name]
                elif kind not in _INSERTED or mine:
                    continue
                elif name == _LINES:
                    self.positions.clear()
                elif name == _EVENTS and snapshot > self._seen.get(name, snapshot):
                    inserted.append(snapshot)
        if inserted:
            rows = self._connection.execute(
                "SELECT hash(event_id) FROM"
                f" lake.table_insertions('{_EVENTS}', {min(inserted)}, {max(inserted)})"
            ).fetchall()
            self.add(identity for (identity,) in rows)

    def holds(self, table: str) -> bool:
        """Whether `temp.main.all_TABLE` has all rows of a reference table."""
        return table in self._seen and table in self._copied

    def known(self, identities: Iterable[int]) -> list[int] | None:
        """Return those of some identities (as DuckDB hashes them) that the lake may have.

        None if nothing is known of that.
        """
        filter_ = self._identities
        if filter_ is None or _EVENTS not in self._seen:
            return None
        return [identity for identity in identities if identity in filter_]

    def add(self, identities: Iterable[int]) -> None:
        """Note that the lake has some identities, or is about to have them."""
        if self._identities is None:
            return
        noted = list(identities)
        self._identities.update(noted)
        self._count += len(noted)

    def _read_identities(self) -> None:
        from rbloom import Bloom

        execute = self._connection.execute
        (count,) = execute(f"SELECT count(*) FROM lake.{_EVENTS}").fetchone() or (0,)
        self._count, self._room = 0, max(LEAST_EVENTS, 2 * count)
        self._identities = None
        if count > MOST_EVENTS:
            return
        self._identities = Bloom(self._room, FALSE_POSITIVES)
        reader = execute(f"SELECT hash(event_id) FROM lake.{_EVENTS}").to_arrow_reader(100_000)
        for batch in reader:
            self.add(batch.column(0).to_pylist())

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
