"""Reading several tables of the lake as they were at one moment, while others write."""

import duckdb
from typing_extensions import Self


class SnapshotRead:
    """What a connection reads comes from one snapshot of the lake, from `begin` until `end`.

    As a context manager it begins, and ends, or aborts after an error.
    Temporary tables that are made meanwhile stay after `end`, and go with `abort`. DuckDB ends the
    use of a snapshot with the first error: after one, `abort`, and `begin` again if need be.
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
        """Stay on the snapshot that is the newest now; nothing changes where it reads already."""
        if not self._reading:
            self.connection.execute("BEGIN")
            self._reading = True

    def end(self) -> None:
        """Read what is newest from here on, each time."""
        if self._reading:
            self._reading = False
            self.connection.execute("COMMIT")

    def abort(self) -> None:
        """Like `end`, after an error as well."""
        if self._reading:
            self._reading = False
            self.connection.execute("ROLLBACK")
