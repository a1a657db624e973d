"""The parts of the lake that a session keeps, so that small batches need no query for them.

To query the lake for the events that it has already, and for a few products and customers, takes
longer than to validate a hundred events, and ever longer as history grows. So the cache has Bloom
filters of identities and of files, and copies of the reference tables. What others commit it reads
from the history of the lake, within each batch's transaction, or before it if that is much. Where
that is not possible, the lake is queried.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from retail_assets import tables
from retail_assets.ingest.events.compiled_sql import REFERENCE_KEYS
from retail_assets.ingest.events.staging import Staging
from retail_assets.lake import history
from retail_assets.lake.connection import current_snapshot

if TYPE_CHECKING:
    import pyarrow as pa
    from rbloom import Bloom

    from retail_assets.ingest.events.saved_filter import SavedFilter

FALSE_POSITIVES = 0.001
"""Share of new identities that a filter does not rule out: for these the lake is queried."""

LEAST_EVENTS = 1_000_000
"""The least capacity of a filter: 1.8 MB."""

MOST_EVENTS = 50_000_000
"""For more events there is no filter: it would take a minute to fill, and 180 MB."""

LEAST_FILES = 100_000
"""The same for files, each with its name, its content, and perhaps the file that it copies."""

MOST_FILES = 10_000_000

MOST_ROWS = 1_000_000
"""A larger reference table is not copied."""

MOST_NEW = 500_000
"""Limit on foreign rows applied under the write lock (a quarter of a second); above it the
cache catches up outside. A transaction that ingests files has about as many."""

MOST_UNSAVED = 500_000
"""How many identities are added to a filter before it is saved again: they take half a second to
read."""

SAVED = "known_events.filter"
"""The file of the saved filter, in the lake's folder."""

_BATCH_ROWS = 100_000

_EVENTS = tables.ENRICHED_EVENTS.name
_LINES = tables.RAW_EVENTS.name
_FILES = tables.EVENT_FILES.name
_MAPPINGS = tables.EVENT_MAPPINGS.name
_FAILED = tables.FAILED_EVENT_FILES.name
_MESSAGES = tables.QUEUE_MESSAGES.name
_REFERENCE = tuple(table.name for table in (*REFERENCE_KEYS, tables.CURRENCY_RATES))

_FILTERED = {_EVENTS: "hash(event_id)", _FILES: "path, content_hash, copy_of"}
"""The columns that each filter has."""


class _Filter:
    """A Bloom filter that counts: it may say yes for what is not there, never no for what is."""

    def __init__(self, bloom: "Bloom", room: int, count: int = 0) -> None:
        self.bloom = bloom
        self.room = room
        self.count = self.saved = count

    @property
    def is_full(self) -> bool:
        """Whether it lets more pass than it should."""
        return self.count > self.room

    def __contains__(self, item: Hashable) -> bool:
        return item in self.bloom

    def add(self, items: Iterable[Hashable]) -> None:
        """Add some more."""
        added = list(items)
        self.bloom.update(added)
        self.count += len(added)

    def add_rows(self, batches: "Iterable[pa.RecordBatch]") -> None:
        """Add whatever is in the columns of some rows."""
        for batch in batches:
            for column in batch.columns:
                self.add(column.drop_null().to_pylist())


class EventCache:
    """Parts of the lake, each with the snapshot up to which it is true.

    `positions` are the next ones that are new of parts of sources, by source and `source_name`, and
    `messages` what the ledger of queues has, by source and queue: to be used after `refresh`, and
    set after a commit. `fields` are those in event_fields: none ever
    leaves it. `mapping_is_noted` says that the last row of event_mappings is that of the session.

    Args:
        staging: the staging tables of the connection.
        folder: where the filter of identities is saved.
    """

    def __init__(self, staging: Staging, folder: Path) -> None:
        self._staging = staging
        self._saved = folder / SAVED
        self._connection = staging.connection
        self._wanted = [_EVENTS, *_REFERENCE]
        self._filters: dict[str, _Filter] = {}
        self._failed: frozenset[str] = frozenset()
        self.positions: dict[tuple[str, str], int] = {}
        self.messages: dict[tuple[str, str], dict[str, int]] = {}
        self.fields: set[tuple[str, str]] = set()
        self.mapping_is_noted = False
        self._copied: set[str] = set()
        self._now = -1
        self._seen: dict[str, int] = {}
        self._tables: dict[int, str] = {}

    def warm(self) -> None:
        """Outside of a transaction, read from the lake what is missing, and catch up."""
        if not self._missing() and not self.is_behind:
            return
        self._connection.execute("BEGIN")
        try:
            now = current_snapshot(self._connection)
            self._catch_up(now)
            self._tables = history.table_names(self._connection)
            for name in self._missing():
                if name in _FILTERED:
                    self._read_filter(name, now)
                elif name == _FAILED:
                    self._read_failed()
                else:
                    self._copy(name)
                self._seen[name] = now
            self._connection.execute("COMMIT")
        except BaseException:
            # Copies that were made may be gone.
            self.invalidate()
            with suppress(duckdb.TransactionException):
                self._connection.execute("ROLLBACK")
            raise

    def save(self) -> None:
        """Outside of a transaction, save the filter of identities if much was added to it."""
        filter_ = self._filters.get(_EVENTS)
        if filter_ is None or filter_.count - filter_.saved < MOST_UNSAVED:
            return
        from retail_assets.ingest.events.saved_filter import SavedFilter, save

        snapshot = self._seen.get(_EVENTS)
        if snapshot is None:
            return
        saved = SavedFilter(
            filter_.bloom,
            filter_.count,
            filter_.room,
            history.lake_id(self._connection),
            snapshot,
            history.committed_us(self._connection, snapshot),
        )
        save(self._saved, saved)
        filter_.saved = filter_.count

    def invalidate(self) -> None:
        """Have all parts read again."""
        self._seen.clear()
        self._forget_positions()
        self.mapping_is_noted = False

    @property
    def is_behind(self) -> bool:
        """Whether others had committed more than `refresh` reads."""
        return any(snapshot != self._now for snapshot in self._seen.values())

    def refresh(self) -> bool:
        """In a transaction, catch up with what others have committed since the last batch.

        A part that cannot be brought up to date, or has too much to catch up with, is not used
        before the next `warm`.

        Returns:
            Whether `warm` has nothing to catch up with.
        """
        self._catch_up(current_snapshot(self._connection), at_most=MOST_NEW)
        return not self.is_behind

    def _catch_up(self, now: int, *, at_most: int | None = None) -> None:
        """Bring all parts up to date where no more rows than these have come."""
        oldest = min(self._seen.values(), default=None)
        self._now = now
        if oldest is None:
            self._forget_positions()
            self.mapping_is_noted = False
            return
        if now == oldest:
            return
        commits = history.commits(self._connection, oldest, now)
        if commits is None:
            self.invalidate()
            return
        inserted = self._follow(commits)
        for name in self._seen:
            snapshots = inserted.get(name)
            if not snapshots or self._add_inserted(name, snapshots, at_most):
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
                if name in _REFERENCE or name == _FAILED:
                    if is_new:
                        del self._seen[name]
                elif name == _MESSAGES:
                    if not commit.own:
                        self.messages.clear()
                elif not change.inserted or commit.own:
                    continue
                elif name in (_LINES, _MAPPINGS):
                    self.positions.clear()
                    self.mapping_is_noted = False
                elif name in self._filters and is_new:
                    inserted.setdefault(name, []).append(commit.snapshot)
        return inserted

    def _forget_positions(self) -> None:
        self.positions.clear()
        self.messages.clear()

    def _add_inserted(self, name: str, snapshots: Sequence[int], at_most: int | None) -> bool:
        """Add the rows that some snapshots inserted to a filter, unless they are too many."""
        inserted = (
            f"SELECT {_FILTERED[name]} FROM"
            f" lake.table_insertions('{name}', {min(snapshots)}, {max(snapshots)})"
        )
        if at_most is None:
            self._filters[name].add_rows(_batches(self._connection, inserted))
            return True
        batches = list(_batches(self._connection, f"{inserted} LIMIT {at_most + 1}"))
        if sum(batch.num_rows for batch in batches) > at_most:
            return False
        self._filters[name].add_rows(batches)
        return True

    def copied_tables(self) -> Collection[str]:
        """The reference tables of which `temp.main.copied_TABLE` has all rows."""
        return {name for name in self._copied if self._is_current(name)}

    def known(self, identities: Iterable[int]) -> list[int] | None:
        """Return those of some identities (as DuckDB hashes them) that the lake may have.

        None if nothing is known of that.
        """
        filter_ = self._filters.get(_EVENTS)
        if filter_ is None or not self._is_current(_EVENTS):
            return None
        return [identity for identity in identities if identity in filter_]

    def add(self, identities: Iterable[int]) -> None:
        """Add identities that the lake has, or is about to have."""
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
        """Add paths and contents that the ledger has, or is about to have."""
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
        """The parts to read, among them a filter that lets too much pass."""
        for name, filter_ in self._filters.items():
            if filter_.is_full:
                self._seen.pop(name, None)
        return [name for name in self._wanted if name not in self._seen]

    def _read_filter(self, name: str, now: int) -> None:
        from rbloom import Bloom

        from retail_assets.ingest.events import saved_filter

        is_of_events = name == _EVENTS
        least, most = (LEAST_EVENTS, MOST_EVENTS) if is_of_events else (LEAST_FILES, MOST_FILES)
        self._filters.pop(name, None)
        count = self._count(name)
        if count > most or (is_of_events and self._load_filter(now)):
            return
        room = max(least, 2 * count)
        hashed = saved_filter.IDENTITY if is_of_events else None
        filter_ = _Filter(Bloom(room, FALSE_POSITIVES, hashed), room)
        query = f"SELECT {_FILTERED[name]} FROM lake.{name}"
        filter_.add_rows(_batches(self._connection, query))
        self._filters[name] = filter_

    def _load_filter(self, now: int) -> bool:
        """Load the saved filter and add what was committed since, by whomever; False if not."""
        from retail_assets.ingest.events import saved_filter

        saved = saved_filter.load(self._saved)
        if saved is None or not self._is_of_this_lake(saved):
            return False
        commits = history.commits(self._connection, saved.snapshot, now)
        if commits is None:
            return False
        snapshots = [
            commit.snapshot
            for commit in commits
            if any(self._tables.get(change.table_id) == _EVENTS for change in commit.changes)
        ]
        self._filters[_EVENTS] = _Filter(saved.bloom, saved.room, saved.count)
        if snapshots:
            self._add_inserted(_EVENTS, snapshots, None)
        return not self._filters[_EVENTS].is_full

    def _is_of_this_lake(self, saved: "SavedFilter") -> bool:
        connection = self._connection
        return saved.lake == history.lake_id(connection) and (
            saved.committed_us == history.committed_us(connection, saved.snapshot)
        )

    def _read_failed(self) -> None:
        rows = self._connection.execute(f"SELECT path FROM lake.{_FAILED}").fetchall()
        self._failed = frozenset(path for (path,) in rows)

    def _copy(self, name: str) -> None:
        """Copy a reference table, unless it is too large."""
        self._copied.discard(name)
        if self._count(name) <= MOST_ROWS:
            self._staging.discard_plans()
            # A table that is made again leaves nothing of the old one in memory, unlike TRUNCATE.
            self._connection.execute(
                f"CREATE OR REPLACE TEMP TABLE copied_{name} AS SELECT * FROM lake.{name}"
            )
            self._copied.add(name)

    def _count(self, name: str) -> int:
        (count,) = self._connection.execute(f"SELECT count(*) FROM lake.{name}").fetchone() or (0,)
        return int(count)


def _batches(connection: duckdb.DuckDBPyConnection, query: str) -> "Iterator[pa.RecordBatch]":
    """The rows of a query, as they come."""
    yield from connection.execute(query).to_arrow_reader(_BATCH_ROWS)
