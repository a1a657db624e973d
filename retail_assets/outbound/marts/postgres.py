"""Marts in PostgreSQL: one transaction a round, under an advisory lock; rows go in by COPY."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

from retail_assets import tables
from retail_assets.lake.sql import literal
from retail_assets.outbound.marts.database import ROWS, DatabaseSession, Rows
from retail_assets.outbound.marts.model import MartError, MartTable, Watermark
from retail_assets.secrets import mask
from retail_assets.tables import Column

if TYPE_CHECKING:
    import psycopg

CONNECT_SECONDS = 10

LOCK_SECONDS = 60
"""How long a round waits for one that is under way, and for somebody who changes its tables."""

_DEAD_AFTER: Mapping[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""A server that vanished ends the round after about a minute."""


class PostgresMart:
    """The tables in a schema of a PostgreSQL database."""

    name = "mart_tables"
    kind = "postgres"

    def __init__(self, url: str, schema: str | None) -> None:
        self._url = url
        self._schema = schema or "public"
        self.shown = f"{mask(url)}, schema {self._schema}"

    @contextmanager
    def session(self) -> Iterator["PostgresSession"]:
        """Begin a transaction that nobody else publishes beside; its end commits.

        Raises:
            MartError: if the server cannot be reached, refuses, or does not commit.
        """
        with self._connected() as connection:
            session = PostgresSession(connection, self._schema, self.shown)
            session.lock()
            yield session

    def watermarks(self) -> Mapping[str, Watermark]:
        """See `MartTarget`."""
        with self._connected() as connection:
            return PostgresSession(connection, self._schema, self.shown).watermarks()

    @contextmanager
    def _connected(self) -> Iterator["psycopg.Connection[Any]"]:
        try:
            import psycopg
        except ImportError:
            raise MartError(
                "RETAIL_MART_URL names PostgreSQL, but its driver is not installed: install"
                " retail-assets[postgres]."
            ) from None
        try:
            with psycopg.connect(
                self._url,
                connect_timeout=CONNECT_SECONDS,
                application_name="retail_assets marts",
                client_encoding="utf8",
                **_DEAD_AFTER,
            ) as connection:
                yield connection
        except psycopg.errors.LockNotAvailable:
            raise MartError(
                f"Somebody has held a lock on the mart at {self.shown} for more than"
                f" {LOCK_SECONDS} s, such as another publisher: pg_stat_activity shows who. It is"
                " tried again."
            ) from None
        except psycopg.Error as error:
            # Not `from error`: it may have the password.
            reason = mask(" ".join(str(error).split())).rstrip(".")
            raise MartError(
                f"The mart at {self.shown} could not be published: {reason}. It has the rows that"
                " it had; correct RETAIL_MART_URL or the server, and it goes on from there."
            ) from None


class PostgresSession(DatabaseSession):
    """A round in a transaction of PostgreSQL; its tables are created in the same transaction."""

    types: Mapping[str, str] = {
        "DATE": "date",
        "VARCHAR": "text",
        "TEXT": "text",
        "BIGINT": "bigint",
        tables.MONEY: "numeric(12,2)",
        tables.TOTAL: "numeric(18,2)",
        "INSTANT": "timestamp with time zone",
    }

    def __init__(self, connection: "psycopg.Connection[Any]", schema: str, shown: str) -> None:
        self._connection = connection
        self._schema = schema
        self.shown = shown

    def lock(self) -> None:
        """Wait until no other round is under way; the end of the transaction frees the lock."""
        digest = hashlib.sha256(f"retail_assets marts {self._schema}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        self.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        self.execute("SELECT pg_advisory_xact_lock(%s)", [key])
        if not self.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [self._schema]):
            self.execute(f"CREATE SCHEMA {_quoted(self._schema)}")

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `DatabaseSession`."""
        cursor = self._connection.execute(sql.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def stream(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """See `DatabaseSession`."""
        with self._connection.cursor(name="mart_rows") as cursor:
            cursor.execute(sql.encode(), parameters or None)
            while rows := cursor.fetchmany(ROWS):
                yield rows

    def insert(self, table: MartTable, rows: Rows) -> None:
        """See `DatabaseSession`."""
        columns = ", ".join(table.column_names)
        copy_sql = f"COPY {self.name(table.name)} ({columns}) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(copy_sql.encode()) as copy:
            for some in rows:
                for row in some:
                    copy.write_row(row)

    def columns(self, name: str) -> dict[str, str] | None:
        """See `DatabaseSession`."""
        rows = self.execute(
            "SELECT c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod)"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
            " AND NOT a.attisdropped WHERE n.nspname = %s AND c.relname = %s ORDER BY a.attnum",
            [self._schema, name],
        )
        if not rows:
            return None
        if rows[0][0] not in ("r", "p"):
            raise MartError(
                f"{name} at {self.shown} is no table, so that nothing can be published into it:"
                " rename or drop it."
            )
        return {column: kind for _, column, kind in rows if column is not None}

    def name(self, table: str) -> str:
        """See `DatabaseSession`."""
        return f"{_quoted(self._schema)}.{table}"

    def create(
        self, name: str, description: str, columns: Sequence[Column], key: Sequence[str]
    ) -> None:
        """See `DatabaseSession`."""
        listed = ", ".join(f"{each.name} {self.types[each.type]} NOT NULL" for each in columns)
        self.execute(f"CREATE TABLE {self.name(name)} ({listed}, PRIMARY KEY ({', '.join(key)}))")
        self.execute(f"COMMENT ON TABLE {self.name(name)} IS {literal(description)}")
        for column in columns:
            self.execute(
                f"COMMENT ON COLUMN {self.name(name)}.{column.name} IS"
                f" {literal(column.description)}"
            )

    def listed(self, days: Collection[date | None]) -> tuple[str, list[Any]]:
        """See `DatabaseSession`."""
        return "= ANY(%s::date[])", [[day for day in days if day is not None]]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
