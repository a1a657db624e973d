"""The keyed state: an SQLite file beside the lake, with rows of the lake by key.

The lake is its changelog. The file says which snapshots of the lake it reflects, and is brought up
to date from there, or built again from the lake if that is not possible. Nothing depends on it: a
lost file costs the time to build it.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from retail_assets.consumers.keyed.layout import APPLICATION, Kept, encoded, layout_of

CACHE_KIB = 32_768
"""Memory of a connection to the file, in KiB; what the file has beyond that stays on the disk."""

SQLITE = b"SQLite format 3\0"
"""How a file of SQLite begins."""

FETCHED = 10_000
"""Rows that pass through Python at a time."""

MOST_LOADED = 100_000
"""Rows of a table that a round may load; where a customer has more, DuckDB reads them faster."""

Followed = tuple[int, int]


@dataclass(frozen=True)
class Position:
    """Where a state is.

    `lake` is the lake's id. The state has the events as of the snapshot `events`, the consumers'
    own tables as of `own`, which was committed at `own_us` (µs since 1970): a lake that was
    restored from a backup may have another snapshot of that number. `offsets` has, by consumer, the
    offset of its last round on this state, and the snapshot of that round.
    """

    lake: str
    events: int
    own: int
    own_us: int | None
    offsets: Mapping[str, Followed]


class TooManyRowsError(Exception):
    """The rows of some keys are more than a round may load."""


class StoreError(Exception):
    """The file cannot be used: why, for the log. It is built again."""


class Store:
    """An open file of keyed state; for the thread that opened it."""

    def __init__(self, path: Path, since: str) -> None:
        """Open a file that `create` made.

        Args:
            path: the file.
            since: the day of the opening stock, which it must have been made for.

        Raises:
            StoreError: if it is missing, damaged, unfinished, or of another layout.
        """
        self.path = path
        if not path.is_file():
            raise StoreError("there is none")
        if not is_state(path):
            raise StoreError("it is damaged, or something else")
        try:
            self.db = _open(path)
            row = self.db.execute("SELECT * FROM position").fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"it is damaged: {error}") from error
        if row is None or row[0] != layout_of(since):
            self.db.close()
            raise StoreError("it is of another version or opening day")
        _, lake, events, own, own_us, offsets = row
        followed = {name: (offset, at) for name, (offset, at) in json.loads(offsets).items()}
        self.position = Position(lake, events, own, own_us, followed)

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def bytes(self) -> int:
        """The size of the file and of its log."""
        names = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(path.stat().st_size for path in names if path.exists())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Change the state, or nothing after an error.

        Raises:
            StoreError: in place of an error of SQLite.
        """
        before = self.position
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self.db.execute("COMMIT")
        except BaseException as error:
            self.position = before
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"it cannot be read or written: {error}") from error
            raise

    def move(self, position: Position) -> None:
        """Enter where the state is, in the caller's transaction."""
        enter(self.db, position)
        self.position = position

    def load(
        self, connection: duckdb.DuckDBPyConnection, kept: Kept, column: str, keys: Collection[Any]
    ) -> str:
        """Put the rows of some keys into a temporary table.

        Args:
            connection: the connection that gets it.
            kept: rows of which table.
            column: the indexed column.
            keys: its values, as stored.

        Returns:
            The name of the table, which has the columns of `kept`.

        Raises:
            TooManyRowsError: if there are more than `MOST_LOADED`.
        """
        self._want([(key,) for key in keys])
        return self._load(
            connection,
            kept,
            f"SELECT {_prefixed(kept)} FROM wanted CROSS JOIN {kept.name} AS t"
            f" ON t.{column} = wanted.key",
        )

    def load_stock(
        self,
        connection: duckdb.DuckDBPyConnection,
        kept: Kept,
        ranges: Sequence[tuple[str, int, int]],
    ) -> str:
        """Like `load`, for orders or lines that moved the stock of a product between two times.

        Args:
            connection: the connection that gets the table.
            kept: rows of which table.
            ranges: the product and the times, in microseconds since 1970, the second exclusive.
        """
        self._want(ranges)
        return self._load(
            connection,
            kept,
            " UNION ".join(
                f"SELECT {_prefixed(kept)} FROM wanted CROSS JOIN {kept.name} AS t"
                f" ON t.product_id = wanted.key AND t.{at} >= wanted.low AND t.{at} < wanted.high"
                for at in ("sold_at", "returned_at")
            ),
        )

    def stock_days(self, first: Mapping[str, int]) -> list[tuple[Any, ...]]:
        """Product, day, taken and back of each product from a day on."""
        self._want([(product, day) for product, day in first.items()])
        return self.db.execute(
            "SELECT s.* FROM wanted CROSS JOIN stock_days AS s"
            " ON s.product_id = wanted.key AND s.day >= wanted.low"
        ).fetchall()

    def ordered(self, products: Collection[str], since: date) -> set[str]:
        """Those of some products that an order since a day has."""
        day = (since - date(1970, 1, 1)).days
        self._want([(product,) for product in products])
        found = " OR ".join(
            f"EXISTS (SELECT 1 FROM {name} AS t WHERE t.product_id = wanted.key"
            " AND t.order_date >= ?)"
            for name in ("live_orders", "live_order_lines")
        )
        rows = self.db.execute(f"SELECT key FROM wanted WHERE {found}", [day, day])
        return {product for (product,) in rows}

    def apply(self, connection: duckdb.DuckDBPyConnection, kept: Kept) -> None:
        """Change the rows of a table, in the caller's transaction.

        Args:
            connection: has the rows in the temporary tables `gone_…` and `new_…`.
            kept: which table.
        """
        key = kept.table.key
        where = " AND ".join(f"{name} IS ?" for name in key)
        places = ", ".join("?" * len(kept.columns))
        for kind, columns, statement in (
            ("gone", key, f"DELETE FROM {kept.name} WHERE {where}"),
            ("new", kept.columns, f"INSERT INTO {kept.name} VALUES ({places})"),
        ):
            found = connection.execute(
                f"SELECT {encoded(kept.table, columns)} FROM temp.main.{kind}_{kept.name}"
            )
            while rows := found.fetchmany(FETCHED):
                self.db.executemany(statement, rows)

    def add_stock(self, moved: Iterable[tuple[str, int, int, int]]) -> None:
        """Add to product, day, what was taken and came back, in the caller's transaction."""
        self.db.executemany(
            "INSERT INTO stock_days VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " taken = taken + excluded.taken, back = back + excluded.back",
            moved,
        )

    def _load(self, connection: duckdb.DuckDBPyConnection, kept: Kept, query: str) -> str:
        rows = self.db.execute(query).fetchmany(MOST_LOADED + 1)
        if len(rows) > MOST_LOADED:
            raise TooManyRowsError(f"there are more than {MOST_LOADED:,} rows of {kept.name}")
        connection.register("kept_rows", kept.arrow(rows))
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE kept_{kept.name} AS SELECT {kept.decoded} FROM kept_rows"
        )
        connection.unregister("kept_rows")
        return f"temp.main.kept_{kept.name}"

    def _want(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.db.execute("DELETE FROM temp.wanted")
        if rows:
            columns = ("key", "low", "high")[: len(rows[0])]
            self.db.executemany(
                f"INSERT INTO temp.wanted ({', '.join(columns)})"
                f" VALUES ({', '.join('?' * len(columns))})",
                rows,
            )


def is_state(path: Path) -> bool:
    """Whether a file has the header of a keyed state; see sqlite.org/fileformat2.html."""
    with path.open("rb") as file:
        header = file.read(72)
    return header.startswith(SQLITE) and header[68:] == APPLICATION.to_bytes(4, "big")


def enter(db: sqlite3.Connection, position: Position) -> None:
    """Enter where a state is."""
    db.execute(
        "UPDATE position SET lake = ?, events = ?, own = ?, own_us = ?, offsets = ?",
        [
            *(position.lake, position.events, position.own, position.own_us),
            json.dumps(dict(position.offsets)),
        ],
    )


def _prefixed(kept: Kept) -> str:
    return ", ".join(f"t.{name}" for name in kept.columns)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=10)
    # After a power cut the file is whole, if perhaps older: then it is brought up to date again.
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", f"cache_size = -{CACHE_KIB}"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TEMP TABLE wanted (key, low, high)")
    return db
