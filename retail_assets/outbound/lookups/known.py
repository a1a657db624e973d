"""What is known of the answers of a lookup, so that a batch costs as much as it has values."""

import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING

from retail_assets.lake import history
from retail_assets.tables import API_LOOKUPS

if TYPE_CHECKING:
    import duckdb

FETCHED_ROWS = 50_000
"""How many answers are read at a time."""

CACHE_KIB = 16_384
"""Memory of the database; beyond that it is in a file that goes with the process."""


class KnownAnswers:
    """Until when an answer of a lookup is good, by value, as of the snapshot it has followed to.

    A query of `api_lookups` reads the values of all answers that there ever were, whatever it looks
    for. So they are kept in an index on this machine, which follows the table by its changes. It is
    a temporary database of SQLite, because what an index in memory takes grows with the answers.
    """

    def __init__(self, lookup: str) -> None:
        self._lookup = lookup
        self._seen: int | None = None
        # Made in one thread and used in another one.
        self._index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for name, value in (("cache_size", -CACHE_KIB), ("journal_mode", "OFF")):
            self._index.execute(f"PRAGMA {name} = {value}")
        self._index.execute(
            "CREATE TABLE good_until (value TEXT PRIMARY KEY, us INTEGER) WITHOUT ROWID"
        )

    def close(self) -> None:
        """Remove the index."""
        self._index.close()

    def follow(self, connection: "duckdb.DuckDBPyConnection", snapshot: int) -> None:
        """Catch up with `api_lookups`.

        Args:
            connection: a connection to the lake, in a transaction.
            snapshot: the one that this transaction reads.
        """
        if self._seen == snapshot:
            return
        seen, self._seen = self._seen, None  # until it is done
        kept, changed = (
            (False, True) if seen is None else history.changes_since(connection, seen, API_LOOKUPS)
        )
        if changed and kept and seen is not None:
            changes = f"lake.table_changes('api_lookups', {seen + 1}, {snapshot})"
            kept = not connection.execute(
                f"SELECT 1 FROM {changes} WHERE change_type <> 'insert' LIMIT 1"
            ).fetchall()
            self._read(connection, changes if kept else None)
        elif not kept:
            self._read(connection, None)
        self._seen = snapshot

    def unanswered(self, values: Iterable[tuple[str, int]]) -> list[str]:
        """The values without an answer that was still good at a time, in µs since 1970."""
        query = "SELECT 1 FROM good_until WHERE value = ? AND us >= ?"
        return [each[0] for each in values if self._index.execute(query, each).fetchone() is None]

    def _read(self, connection: "duckdb.DuckDBPyConnection", changes: str | None) -> None:
        """Read the answers that came, or all of them."""
        self._index.execute("BEGIN")
        if changes is None:
            self._index.execute("DELETE FROM good_until")
        # In the order of the index, which is filled in half the time.
        answers = connection.execute(
            "SELECT value, epoch_us(max(valid_until))"
            f" FROM {changes or 'lake.api_lookups'} WHERE lookup = ? GROUP BY value ORDER BY value",
            [self._lookup],
        )
        while rows := answers.fetchmany(FETCHED_ROWS):
            self._index.executemany(
                "INSERT INTO good_until VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET us = max(us, excluded.us)",
                rows,
            )
        self._index.execute("COMMIT")
