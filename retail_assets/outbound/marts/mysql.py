"""Marts in MySQL or MariaDB: one transaction a round, under a lock of the server.

Tables are created before it, because that would commit: a round that is killed meanwhile leaves a
table without rows and without a watermark.
"""

import hashlib
import re
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from retail_assets import tables
from retail_assets.errors import UsageError
from retail_assets.outbound.marts.database import (
    MOST_CHARACTERS,
    ROWS,
    DatabaseSession,
    Rows,
)
from retail_assets.outbound.marts.model import MartError, MartTable, Watermark
from retail_assets.secrets import mask
from retail_assets.tables import Column

CONNECT_SECONDS = 10
ANSWER_SECONDS = 600

LOCK_SECONDS = 60
"""How long a round waits for one that is under way."""

COLLATIONS = ("utf8mb4_0900_bin", "utf8mb4_nopad_bin", "utf8mb4_bin")
"""Texts that differ in case, accents or blanks differ: MySQL 8, MariaDB, older servers (where
blanks at the end do not count)."""

_SSL_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")


class MySQLMart:
    """The tables in a database of MySQL or MariaDB."""

    name = "mart_tables"
    kind = "mysql"

    def __init__(self, url: str) -> None:
        self._options, self._mode, self._authority = connection_options(url)
        self.shown = mask(url)

    @contextmanager
    def session(self) -> Iterator["MySQLSession"]:
        """Begin a round that nobody else publishes beside; its end commits.

        Raises:
            MartError: if the server cannot be reached, refuses, or does not commit.
        """
        with self._connected() as connection:
            session = MySQLSession(connection, self._options["database"], self.shown)
            session.lock()
            yield session
            connection.commit()

    def watermarks(self) -> Mapping[str, Watermark]:
        """See `MartTarget`."""
        with self._connected() as connection:
            return MySQLSession(connection, self._options["database"], self.shown).watermarks()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            import pymysql
        except ImportError:
            raise MartError(
                "RETAIL_MART_URL names MySQL, but its driver is not installed: install"
                " retail-assets[mysql]."
            ) from None
        try:
            connection = pymysql.connect(
                **self._options,
                **_encryption(self._mode, self._authority),
                charset="utf8mb4",
                connect_timeout=CONNECT_SECONDS,
                read_timeout=ANSWER_SECONDS,
                write_timeout=ANSWER_SECONDS,
                autocommit=False,
                # What does not fit is an error, and never cut.
                init_command="SET SESSION sql_mode = 'TRADITIONAL', time_zone = '+00:00'",
            )
            try:
                yield connection
            finally:
                # What was not committed is undone, and the lock is free.
                connection.close()
        except pymysql.MySQLError as error:
            # Not `from error`: it may have the password.
            code, *text = error.args or ("no reason given",)
            reason = mask(" ".join(str(text[0] if text else code).split())).rstrip(".")
            raise MartError(
                f"The mart at {self.shown} could not be published: {reason}. It has the rows that"
                " it had; correct RETAIL_MART_URL or the server, and it goes on from there."
            ) from None


def connection_options(url: str) -> tuple[dict[str, Any], str, str | None]:
    """What PyMySQL calls the parts of a URL such as `mysql://user:password@host:3306/database`.

    Returns:
        The options, the mode of encryption, and the file of authorities, if it names one.

    Raises:
        UsageError: if it names no database, or has an option that there is not.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 3306
    except ValueError:
        raise UsageError(
            "RETAIL_MART_URL cannot be read: a password with special characters is written with %,"
            " such as %2F for a slash."
        ) from None
    database = unquote(parts.path.strip("/"))
    if not parts.hostname or not database or "/" in database:
        raise UsageError(
            "RETAIL_MART_URL names no database of a server: write"
            " mysql://user:password@host:3306/database."
        )
    options = dict(parse_qsl(parts.query))
    mode = options.pop("ssl-mode", "VERIFY_CA" if "ssl-ca" in options else "PREFERRED")
    authority = options.pop("ssl-ca", None)
    if options or mode not in _SSL_MODES:
        raise UsageError(
            f"RETAIL_MART_URL has {next(iter(options), f'ssl-mode={mode}')}, which there is not:"
            f" its options are ssl-mode ({', '.join(_SSL_MODES)}) and ssl-ca, a file."
        )
    found: dict[str, Any] = {
        "host": parts.hostname,
        "port": port,
        "user": unquote(parts.username or ""),
        # The driver would take a text for Latin-1.
        "password": unquote(parts.password or "").encode(),
        "database": database,
    }
    return found, mode, authority


def _encryption(mode: str, authority: str | None) -> dict[str, Any]:
    """The driver's options. Without `ssl-ca` its own context would not compare the host's name."""
    if mode in ("DISABLED", "PREFERRED"):
        return {"ssl_disabled": mode == "DISABLED"}
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise MartError(
            f"RETAIL_MART_URL: the file ssl-ca={authority} cannot be used: {error.strerror}."
        ) from None
    # Certificates that MySQL makes for itself would not pass.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = mode == "VERIFY_IDENTITY"
    if mode == "REQUIRED":
        context.verify_mode = ssl.CERT_NONE
    return {"ssl": context}


class MySQLSession(DatabaseSession):
    """A round on a connection to MySQL."""

    types: Mapping[str, str] = {
        "DATE": "date",
        "VARCHAR": f"varchar({MOST_CHARACTERS})",
        "TEXT": "longtext",
        "BIGINT": "bigint",
        tables.MONEY: "decimal(12,2)",
        tables.TOTAL: "decimal(18,2)",
        "INSTANT": "timestamp",
    }

    def __init__(self, connection: Any, database: str, shown: str) -> None:
        self._connection = connection
        self._database = database
        self.shown = shown

    def lock(self) -> None:
        """Wait until no other round is under way; the end of the connection frees the lock.

        Raises:
            MartError: if it is not free within a minute.
        """
        # Locks are the server's, and their names short.
        digest = hashlib.sha256(self._database.encode()).hexdigest()[:32]
        [(locked,)] = self.execute(
            "SELECT GET_LOCK(%s, %s)", [f"retail_assets marts {digest}", LOCK_SECONDS]
        )
        if not locked:
            raise MartError(
                f"Another publisher has held the mart at {self.shown} for more than {LOCK_SECONDS}"
                " s: SHOW PROCESSLIST shows who. It is tried again."
            )

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `DatabaseSession`."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    def stream(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """See `DatabaseSession`."""
        from pymysql.cursors import SSCursor

        with self._connection.cursor(SSCursor) as cursor:
            cursor.execute(sql, parameters or None)
            while rows := cursor.fetchmany(ROWS):
                yield list(rows)

    def insert(self, table: MartTable, rows: Rows) -> None:
        """See `DatabaseSession`."""
        columns = ", ".join(table.column_names)
        values = ", ".join(["%s"] * len(table.columns))
        sql = f"INSERT INTO {self.name(table.name)} ({columns}) VALUES ({values})"
        with self._connection.cursor() as cursor:
            for some in rows:
                cursor.executemany(sql, some)

    def columns(self, name: str) -> dict[str, str] | None:
        """See `DatabaseSession`."""
        # Two queries: joined, the server would open the tables of all databases.
        where = "WHERE table_schema = %s AND table_name = %s"
        kind = self.execute(
            f"SELECT table_type, engine FROM information_schema.tables {where}",
            [self._database, name],
        )
        if not kind:
            return None
        if kind != [("BASE TABLE", "InnoDB")]:
            raise MartError(
                f"{name} at {self.shown} is no table of InnoDB, so that its rows could not change"
                " together: rename or drop it."
            )
        found = self.execute(
            f"SELECT column_name, column_type FROM information_schema.columns {where}"
            " ORDER BY ordinal_position",
            [self._database, name],
        )
        return {column: re.sub(r"int\(\d+\)", "int", text) for column, text in found}

    def name(self, table: str) -> str:
        """See `DatabaseSession`."""
        return table

    def create(
        self, name: str, description: str, columns: Sequence[Column], key: Sequence[str]
    ) -> None:
        """See `DatabaseSession`."""
        listed = ", ".join(
            f"{each.name} {self.types[each.type]} NOT NULL COMMENT %s" for each in columns
        )
        self.execute(
            f"CREATE TABLE {name} ({listed}, PRIMARY KEY ({', '.join(key)})) ENGINE = InnoDB,"
            f" CHARACTER SET utf8mb4, COLLATE {self._collation}, COMMENT = %s",
            [*(column.description for column in columns), description],
        )

    @cached_property
    def _collation(self) -> str:
        found = {
            name
            for (name,) in self.execute(
                "SELECT collation_name FROM information_schema.collations"
                " WHERE collation_name IN (%s, %s, %s)",
                COLLATIONS,
            )
        }
        return next(name for name in COLLATIONS if name in found)

    def listed(self, days: Collection[date | None]) -> tuple[str, list[Any]]:
        """See `DatabaseSession`."""
        wanted = [day for day in days if day is not None]
        return f"IN ({', '.join(['%s'] * len(wanted)) or 'NULL'})", wanted
