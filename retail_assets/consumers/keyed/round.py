"""A round of all consumers on keyed state: it costs what its batch does, whatever the history.

The round takes the events that changed since the last one, loads what the rules need of their keys
from the state, and runs the same rules as `framework.consume` on these few rows. What differs from
the consumers' tables is written in one transaction of the lake with all offsets, then to the state.
If the process ends between the two, the state is behind, and catches up from the lake.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import duckdb

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.keyed.layout import EVENTS, KEPT, OWN, Kept, encoded
from retail_assets.consumers.keyed.stock import DAY_MICROSECONDS, StockDays
from retail_assets.consumers.keyed.store import Followed, Position, Store, StoreError
from retail_assets.consumers.own_rows import OthersWereFasterError, replace_rows
from retail_assets.ingest.ledgers.offsets import consumer_offsets, move_consumers
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, committed_snapshot, current_snapshot
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.tables import Table

Kind = Literal["gone", "new"]

MOST_EVENTS = 20_000
"""With more changed events, a round that reads the lake in pieces is faster."""

MOST_ROWS = 1_000_000
"""With more changed rows, it is faster to build the state again."""

BEHIND = 100
"""How many snapshots the state falls behind while nothing changes."""

SIGNS: tuple[tuple[int, Kind], ...] = ((-1, "gone"), (1, "new"))
"""What to do with the sums of rows that are gone, and of those that came."""

_OWN = [kept.table for kept in OWN]
_STOCK = (tables.LIVE_ORDERS, tables.LIVE_ORDER_LINES)


@dataclass(frozen=True)
class Outcome:
    """What a round did: whether it wrote, and the consumers that have to read the lake first."""

    wrote: bool = False
    stale: tuple[Consumer, ...] = ()


@dataclass
class KeyedRound:
    """One round. Consumers call `keys`, `load` and `compare` in their `follow`.

    With `only_state`, it brings the state up to date and leaves the consumers to read the lake.
    """

    lake: Lake
    connection: duckdb.DuckDBPyConnection
    store: Store
    stock: StockDays
    consumers: Sequence[Consumer]
    only_state: bool = False
    seen: int = 0
    _offsets: dict[str, int | None] = field(default_factory=dict)
    _between: dict[tuple[int, int], frozenset[str]] = field(default_factory=dict)
    _gone: Counter[str] = field(default_factory=Counter)
    _new: Counter[str] = field(default_factory=Counter)

    def run(self) -> Outcome:
        """Follow the lake.

        Raises:
            StoreError: if the state has to be built again. The tables are as before.
            OthersWereFasterError: if another worker has followed meanwhile.
            TooManyRowsError: if keys have more rows than a round may load.
            Exception: of a rule, or of the lake. The state and the tables are as before.
        """
        with self.store.transaction():
            with SnapshotRead(self.connection):
                stale = self._catch_up()
                if stale is not None and not stale:
                    for consumer in self.consumers:
                        assert consumer.follow is not None
                        consumer.follow(self)
            if stale is None or stale:
                return Outcome(stale=tuple(stale or ()))
            self._publish()
            return Outcome(wrote=True)

    def changed(self, table: Table) -> bool:
        """Whether rows of a table came or went in this round."""
        return bool(self._gone[table.name] or self._new[table.name])

    def count(self, kind: Kind, table: Table) -> int:
        """How many rows of a table are gone, or came, in this round."""
        return (self._gone if kind == "gone" else self._new)[table.name]

    def rows(self, kind: Kind, table: Table) -> str:
        """A relation with the rows that are gone or came, empty where there are none."""
        name = f"{kind}_{table.name}"
        if not self.count(kind, table):
            columns = ", ".join(f"{each} {table.types[each]}" for each in KEPT[table.name].columns)
            self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
        return f"temp.main.{name}"

    def keys(self, column: str, *of: Table) -> list[Any]:
        """The values, as stored, that a column has in the rows that came or went."""
        rows = " UNION ALL ".join(
            f"SELECT {encoded(table, [column])} AS key FROM temp.main.{kind}_{table.name}"
            for kind, counts in (("gone", self._gone), ("new", self._new))
            for table in of
            if counts[table.name]
        )
        if not rows:
            return []
        found = self.fetch(f"SELECT DISTINCT key FROM ({rows}) WHERE key IS NOT NULL")
        return [key for (key,) in found]

    def load(self, table: Table, column: str, keys: Collection[Any]) -> str:
        """Put the rows of some keys into a temporary table; returns its name."""
        return self.store.load(self.connection, KEPT[table.name], column, keys)

    def compare(self, table: Table, query: str, own: str) -> None:
        """Find out which rows of a consumer's table differ; the state has the new ones from here.

        Args:
            table: the table.
            query: a SELECT of the rows as they have to be, with other columns perhaps.
            own: a relation with the rows of the same keys as they are.
        """
        kept = KEPT[table.name]
        columns = ", ".join(f"{name}::{table.types[name]} AS {name}" for name in kept.columns)
        name = table.name
        self.make(f"staged_{name}", f"SELECT {columns} FROM ({query})")
        staged = f"FROM temp.main.staged_{name}"
        own = f"SELECT {kept.selected} FROM {own}"
        self._gone[name] = self.make(f"gone_{name}", f"({own}) EXCEPT ({staged})")
        self._new[name] = self.make(f"new_{name}", f"({staged}) EXCEPT ({own})")
        self._apply(kept)

    def apply_stock(self) -> list[tuple[str, int, int, int]]:
        """Have the state add up what the orders that came and went did to the stock.

        Returns:
            Product, day, and what was taken and came back, more than there was: of a product and
            day there may be two rows.
        """
        moved: list[tuple[str, int, int, int]] = []
        if not any(map(self.changed, _STOCK)):
            return moved
        for sign, kind in SIGNS:
            orders, lines = (self.rows(kind, table) for table in _STOCK)
            found = self.fetch(self.stock.query(self.connection, orders, lines))
            moved += [
                (product, day, sign * took, sign * back) for product, day, took, back in found
            ]
        self.store.add_stock(moved)
        return moved

    def load_stock(self, table: Table, days: Sequence[tuple[Any, ...]]) -> str:
        """Put the orders or lines that moved the stock on days into a temporary table.

        Args:
            table: orders or lines.
            days: products and days since 1970.

        Returns:
            The name of the table.
        """
        # Before 1970, microseconds are rounded up to days.
        ranges = [
            (product, (day - (day <= 0)) * DAY_MICROSECONDS, (day + 1) * DAY_MICROSECONDS)
            for product, day in days
        ]
        return self.store.load_stock(self.connection, KEPT[table.name], ranges)

    def stage(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Make a temporary table of values, by name and type of the column."""
        select = ", ".join(f"unnest(?::{t}[]) AS {n}" for n, t in map(str.split, columns))
        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT {select}",
            list(map(list, columns.values())),
        )

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self.connection.execute(query).fetchall()

    def _catch_up(self) -> list[Consumer] | None:
        """Bring the state up to date with what others wrote, and with the events.

        Returns:
            The consumers that have to read the lake; None if nothing has changed.
        """
        self._look()
        position = self.store.position
        changed = self._changed(position.events, EVENTS.table, tables.DEAD_LETTER_EVENTS)
        others = self._changed(position.own, *_OWN)
        self._check_size(((position.events, changed), (position.own, others)))
        stale = [consumer for consumer in self.consumers if self._is_stale(consumer)]
        if not changed and not others and not stale:
            if self.seen > position.events + BEHIND:
                self._move(self.seen, self.seen)
            return None
        self._apply_own(others)
        if stale:
            # They read the lake first; the others have not seen the events yet.
            self._move(position.events, self.seen)
            return stale
        for table in changed:
            columns = EVENTS.selected if table is EVENTS.table else "received_date, reason"
            self._read_changes(table, columns, position.events)
        self._apply(EVENTS)
        events = self._gone[EVENTS.name] + self._new[EVENTS.name]
        if self.only_state or events > MOST_EVENTS:
            self._move(self.seen, self.seen)
            return list(self.consumers)
        return []

    def _look(self) -> None:
        """See where the lake and the consumers are."""
        self.seen, position = current_snapshot(self.connection), self.store.position
        offsets = consumer_offsets(self.connection)
        self._offsets = {each.name: offsets.get(each.name) for each in self.consumers}
        if self.seen < max(position.events, position.own):
            raise StoreError("it is ahead of the lake")
        for name, offset in self._offsets.items():
            if offset is not None and offset < 0:
                # Perhaps to mend what is wrong.
                raise StoreError(f"{name} was rewound")

    def _check_size(self, changes: Iterable[tuple[int, list[Table]]]) -> None:
        rows = sum(
            history.rows_added(self.connection, after, *changed)
            for after, changed in changes
            if changed
        )
        if rows > MOST_ROWS:
            raise StoreError(f"it is {rows:,} rows behind")

    def _apply_own(self, changed: Sequence[Table]) -> None:
        """Take over what others wrote to the consumers' tables."""
        for table in changed:
            self._read_changes(table, KEPT[table.name].selected, self.store.position.own)
            self._apply(KEPT[table.name])
        self.apply_stock()
        # From here on, these are what the consumers change.
        self._gone.clear()
        self._new.clear()

    def _changed(self, after: int, *of: Table) -> list[Table]:
        """Those of some tables that changed since a snapshot, whose changes can be read."""
        if after == self.seen:
            return []
        if not history.has_changes_since(self.connection, after):
            raise StoreError(f"the changes since snapshot {after} of the lake are expired")
        changed = self._changed_between(after, self.seen)
        return [table for table in of if table.name in changed]

    def _changed_between(self, after: int, upto: int) -> frozenset[str]:
        if (after, upto) not in self._between:
            found = history.changed_tables(self.connection, after, upto) if after < upto else ()
            self._between[after, upto] = frozenset(found)
        return self._between[after, upto]

    def _is_stale(self, consumer: Consumer) -> bool:
        offset = self._offsets[consumer.name]
        if offset is None:
            return True
        position = self.store.position
        known, covered = position.offsets.get(consumer.name, (None, 0))
        for table in consumer.sources:
            # Of the events it is told what changed since `events`, of others it must know all.
            if table in (EVENTS.table, tables.DEAD_LETTER_EVENTS):
                after, upto = offset, position.events
            elif table in _OWN and known == offset:
                after, upto = covered, self.seen
            else:
                after, upto = offset, self.seen
            if table.name in self._changed_between(after, upto):
                return True
        return False

    def _read_changes(self, table: Table, columns: str, after: int) -> None:
        """Read which rows of a table came and went since a snapshot.

        A row that came and went meanwhile, or was rewritten, is neither.
        """
        name = table.name
        self.make(
            "changes",
            f"SELECT change_type IN ('insert', 'update_postimage') AS came, {columns}"
            f" FROM lake.table_changes('{name}', {after + 1}, {self.seen})",
        )
        came, went = (
            f"(SELECT {columns} FROM temp.main.changes WHERE {condition})"
            for condition in ("came", "NOT came")
        )
        self._gone[name] = self.make(f"gone_{name}", f"{went} EXCEPT ALL {came}")
        self._new[name] = self.make(f"new_{name}", f"{came} EXCEPT ALL {went}")

    def make(self, name: str, query: str) -> int:
        """Make a temporary table; returns its number of rows."""
        row = self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}").fetchone()
        assert row is not None
        return int(row[0])

    def _apply(self, kept: Kept) -> None:
        if self.changed(kept.table):
            self.store.apply(self.connection, kept)

    def _publish(self) -> None:
        """Write what differs to the lake with all offsets, and enter that in the state."""
        names = list(self._offsets)
        with self.lake.transaction(self.connection, "publish consumers"):
            # While the offsets are the same, the tables are as they were compared.
            now = consumer_offsets(self.connection)
            if {name: now.get(name) for name in names} != self._offsets:
                raise OthersWereFasterError
            for table in filter(self.changed, _OWN):
                replace_rows(self.connection, table, self._gone[table.name], self._new[table.name])
            move_consumers(self.connection, names, self.seen)
        own = committed_snapshot(self.connection)
        self._move(self.seen, own, dict.fromkeys(names, (self.seen, own)))

    def _move(self, events: int, own: int, offsets: Mapping[str, Followed] | None = None) -> None:
        before = self.store.position
        own_us = history.committed_us(self.connection, own)
        offsets = before.offsets if offsets is None else offsets
        self.store.move(Position(before.lake, events, own, own_us, offsets))
