"""Reading several tables of the lake as they were at one moment, while others write."""

import duckdb
from typing_extensions import Self


class SnapshotRead:
    """Reads of a connection from one snapshot of the lake, from `begin` until `end`.

    As a context manager it begins, and ends, or aborts after an error. Temporary tables that are
    made meanwhile stay after `end`, and go with `abort`. After the first error DuckDB reads nothing
    more: call `abort`, then `begin` to go on.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self._reading = False

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.end()
        else:
            self.abort()

    def begin(self) -> None:
        """Stay on the newest snapshot, or on that of an earlier `begin`."""
        if not self._reading:
            self.connection.execute("BEGIN")
            self._reading = True

    def end(self) -> None:
        """Read the newest snapshot each time from here on."""
        if self._reading:
            self._reading = False
            self.connection.execute("COMMIT")

    def abort(self) -> None:
        """Like `end`, after an error as well."""
        if self._reading:
            self._reading = False
            self.connection.execute("ROLLBACK")
