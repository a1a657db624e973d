"""What marts in PostgreSQL and in MySQL share: statements, the check of a table, the watermark."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any

import duckdb

from retail_assets import tables
from retail_assets.lake.sql import literal
from retail_assets.outbound.marts.model import (
    DAYS,
    HERE,
    WATERMARK,
    MartError,
    MartTable,
    Watermark,
    to_duckdb,
)
from retail_assets.tables import Column

ROWS = 10_000
"""How many rows are read or written at a time."""

MOST_CHARACTERS = 255
"""The longest text of a key: an index of MySQL holds two of them, one of PostgreSQL as well."""

WATERMARK_COLUMNS = (
    Column("table_name", "VARCHAR", "The table that the row is about."),
    Column("lake_id", "VARCHAR", "Identifies the lake whose rows it has."),
    Column("snapshot_id", "BIGINT", "The snapshot of the lake whose rows it has."),
    Column("snapshot_us", "BIGINT", "When that was committed, in microseconds since 1970."),
    Column("definition", "VARCHAR", "Identifies the columns and the query of the table."),
    Column("left_out", "TEXT", "Days whose rows this database cannot hold, as a JSON list."),
    Column("published_at", "INSTANT", "When the row was written."),
)

Rows = Iterator[list[tuple[Any, ...]]]


class DatabaseSession(ABC):
    """A round in one transaction of a database.

    Subclasses say how its SQL differs. `types` has the type of each kind of column as the database
    shows it, `shown` where it is.
    """

    types: Mapping[str, str]
    shown: str

    @abstractmethod
    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement; returns its rows, if it has any."""

    @abstractmethod
    def stream(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """Yield the rows of a query, some at a time."""

    @abstractmethod
    def insert(self, table: MartTable, rows: Rows) -> None:
        """Insert rows."""

    @abstractmethod
    def columns(self, name: str) -> dict[str, str] | None:
        """The type of each column of a table, by name; None if there is none.

        Raises:
            MartError: if it is something that rows cannot be published into.
        """

    @abstractmethod
    def name(self, table: str) -> str:
        """A table as it stands in SQL."""

    @abstractmethod
    def create(
        self, name: str, description: str, columns: Sequence[Column], key: Sequence[str]
    ) -> None:
        """Create a table."""

    @abstractmethod
    def listed(self, days: Collection[date | None]) -> tuple[str, list[Any]]:
        """A condition of SQL on what is before it, for some days, and its parameters."""

    def watermark(self, table: MartTable) -> Watermark | None:
        """See `MartSession`."""
        return self._watermarks.get(table.name)

    def watermarks(self) -> dict[str, Watermark]:
        """All watermarks, by table; there may be no table of them yet."""
        if self.columns(WATERMARK) is None:
            return {}
        rows = self.execute(
            "SELECT table_name, lake_id, snapshot_id, snapshot_us, definition, left_out"
            f" FROM {self.name(WATERMARK)}"
        )
        return {
            name: Watermark(
                lake, snapshot, us, definition, tuple(map(date.fromisoformat, json.loads(left_out)))
            )
            for name, lake, snapshot, us, definition, left_out in rows
        }

    @cached_property
    def _watermarks(self) -> Mapping[str, Watermark]:
        """Those of before the round."""
        return self.watermarks()

    def prepare(self, table: MartTable, *, ours: bool) -> str | None:
        """See `MartSession`."""
        if not self._watermarks and self.columns(WATERMARK) is None:
            about = "Which state of which lake the tables of retail_assets here have."
            self.create(WATERMARK, about, WATERMARK_COLUMNS, ("table_name",))
        found = self.columns(table.name)
        if found is None:
            self.create(table.name, table.description, table.columns, table.key)
            return "there was no such table" if ours else "it is new"
        wanted = {column.name: self.types[column.type] for column in table.columns}
        odd = [
            f"{name} {kind}" + (f" instead of {wanted[name]}" if name in wanted else "")
            for name, kind in found.items()
            if wanted.get(name) != kind
        ]
        if odd:
            raise MartError(
                f"The table {table.name} at {self.shown} has columns that are not the platform's:"
                f" {', '.join(odd)}. Rename the table or drop these columns; a table that is not"
                " there is made and published whole."
            )
        missing = [column for column in table.columns if column.name not in found]
        if not ours and (missing or self.execute(f"SELECT 1 FROM {self.name(table.name)} LIMIT 1")):
            raise MartError(
                f"The table {table.name} at {self.shown} has rows, but no entry in {WATERMARK}:"
                " it may be somebody else's. Rename it, or let `retail-assets publish-marts --all`"
                " take it over and replace its rows."
            )
        for column in missing:
            self.execute(
                f"ALTER TABLE {self.name(table.name)} ADD COLUMN {column.name}"
                f" {self.types[column.type]}"
            )
        if missing:
            return f"it lacked {', '.join(column.name for column in missing)}"
        return None

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: MartTable,
        days: Collection[date] | None,
    ) -> set[date]:
        """See `MartSession`."""
        query = f"SELECT {', '.join(table.column_names)} FROM {self.name(table.name)}"
        if days is None:
            return to_duckdb(connection, table, self.stream(query, ()))
        some, parameters = self.listed(days)
        where = f"{query} WHERE {table.day} {some}"
        return to_duckdb(connection, table, self.stream(where, parameters))

    def unfit(self, table: MartTable) -> str | None:
        """See `MartSession`."""
        texts = [column.name for column in table.columns if column.type == "VARCHAR"]
        cases = " ".join(
            f"WHEN length({name}) > {MOST_CHARACTERS} THEN"
            f" {literal(f'a {name} has more than {MOST_CHARACTERS} characters')}"
            f" WHEN contains({name}, chr(0)) THEN {literal(f'a {name} has the character NUL')}"
            for name in texts
        )
        return f"CASE {cases} END"

    def write(self, connection: duckdb.DuckDBPyConnection, table: MartTable) -> int:
        """See `MartSession`."""
        days = [row[0] for row in connection.execute(f"SELECT day FROM {DAYS}").fetchall()]
        where, parameters = self.listed(days)
        name = self.name(table.name)
        self.execute(f"DELETE FROM {name} WHERE {table.day} {where}", parameters)
        if None in days:
            self.execute(f"DELETE FROM {name} WHERE {table.day} IS NULL")
        found = connection.execute(
            f"SELECT {', '.join(table.column_names)} FROM {HERE}"
            f" WHERE {table.day} IN (SELECT day FROM {DAYS}) ORDER BY {', '.join(table.key)}"
        )
        written = 0

        def rows() -> Rows:
            nonlocal written
            while some := found.fetchmany(ROWS):
                written += len(some)
                yield some

        self.insert(table, rows())
        return written

    def set_watermark(self, table: MartTable, watermark: Watermark) -> None:
        """See `MartSession`."""
        name = self.name(WATERMARK)
        self.execute(f"DELETE FROM {name} WHERE table_name = %s", [table.name])
        self.execute(
            f"INSERT INTO {name} (table_name, lake_id, snapshot_id, snapshot_us, definition,"
            " left_out, published_at) VALUES (%s, %s, %s, %s, %s, %s, CURRENT_TIMESTAMP)",
            [
                table.name,
                watermark.lake_id,
                watermark.snapshot_id,
                watermark.snapshot_us,
                watermark.definition,
                json.dumps([str(day) for day in watermark.left_out]),
            ],
        )


KINDS = ("DATE", "VARCHAR", "BIGINT", tables.MONEY, tables.TOTAL, "TEXT", "INSTANT")
"""The kinds of columns that `types` of a session names."""
