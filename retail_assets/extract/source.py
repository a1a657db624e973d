"""A database that orders are read from: one connection, one snapshot, and nothing is changed.

Values are read as the texts that the server makes of them, so that decimals, zones and odd types
stay exact. What differs between servers is in `postgres.py` and `mysql.py`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import duckdb

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.lake.connection import load_extension
from retail_assets.mapping.database import DatabaseMapping, SourceTable
from retail_assets.secrets import mask
from retail_assets.settings import Settings

SHOP = "shop"
"""The name that DuckDB has for the attached database."""

CONNECT_SECONDS = 10

Kind = Literal["instant", "local", "date", "text"]
"""A timestamp with a zone, one without, a date, or anything else."""

_TYPES: dict[str, Kind] = {"TIMESTAMP WITH TIME ZONE": "instant", "DATE": "date"}

_SAID = re.compile(r"(?:ERROR|FATAL): +(.*?)(?:\n|$)|\": (.*?)(?:\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """A column of the source: its name, DuckDB's type, and what kind of time it is."""

    name: str
    type: str
    kind: Kind


@dataclass(frozen=True)
class Part:
    """Rows to read: an SQL condition, given what the rows are called, and a column to divide by."""

    condition: Callable[[str], str]
    by: Column


@dataclass(frozen=True)
class Selection:
    """The rows of `relation` to read: those of some parts, which have no row in common.

    If `whole_by` is a column, all rows with the same value in it as one of them are read, too, and
    rows may come several times, with another `part` each.
    """

    relation: str
    columns: Sequence[Column]
    parts: Sequence[Part]
    whole_by: Column | None = None


class Source(ABC):
    """An attached database, in a transaction with one snapshot."""

    extension: ClassVar[str]
    moment_suffix: ClassVar[str] = ""
    """What its texts of timestamps with a zone lack: they are in UTC."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, declared: DatabaseMapping) -> None:
        self.connection = connection
        self.declared = declared

    @abstractmethod
    def attach(self, url: str) -> None:
        """Attach the database as `SHOP`."""

    @abstractmethod
    def begin(self) -> dict[str, str]:
        """Begin a transaction that only reads; returns what identifies its snapshot."""

    @abstractmethod
    def name(self, name: str) -> str:
        """Quote an identifier in the server's SQL."""

    @abstractmethod
    def text(self, column: Column, of: str) -> str:
        """The server's SQL for a column as text."""

    @abstractmethod
    def is_no_day(self, time: str) -> str:
        """The server's SQL for whether a time is of a day that no calendar has."""

    @abstractmethod
    def call(self, sql: str) -> str:
        """DuckDB's SQL for the rows of a query in the server's SQL."""

    @abstractmethod
    def is_unique(self, table: SourceTable, column: str) -> bool:
        """Whether the server makes sure that no two rows of a table share a value."""

    @abstractmethod
    def read(self, into: str, selection: Selection, tell: Callable[[int], None]) -> None:
        """Insert rows into a temporary table, as texts, with the number of their part first.

        Args:
            into: a table with a column for the part and one for each column of the selection.
            selection: the rows.
            tell: called with the number of rows that were read so far.
        """

    def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query in the server's SQL."""
        return self.connection.execute(f"SELECT * FROM {self.call(sql)}").fetchall()

    def relation(self, table: SourceTable) -> str:
        """What stands after FROM for the rows of a table or a query, without its name."""
        if table.query is not None:
            # A newline ends a comment.
            return f"(\n{table.query}\n)"
        return ".".join(map(self.name, table.table_parts))

    def columns(self, relation: str) -> list[Column]:
        """The columns of a table or a query."""
        sql = f"SELECT * FROM {relation} AS source LIMIT 0"
        rows = self.connection.execute(f"DESCRIBE SELECT * FROM {self.call(sql)}").fetchall()
        return [Column(name, type_, kind_of(type_)) for name, type_, *_ in rows]

    def texts(self, columns: Sequence[Column], of: str) -> str:
        """The server's SQL for columns as texts, named c0, c1, … whatever they are called."""
        return ", ".join(f"{self.text(column, of)} AS c{n}" for n, column in enumerate(columns))


def kind_of(type_: str) -> Kind:
    """What kind of time a type of DuckDB is."""
    return _TYPES.get(type_, "local" if type_.startswith("TIMESTAMP") else "text")


@contextmanager
def open_source(settings: Settings, declared: DatabaseMapping) -> Iterator[Source]:
    """Open the database of `RETAIL_DATABASE_URL`; it is closed on every path.

    Raises:
        UsageError: if there is no such setting, or it names no known kind of database.
        RetailAssetsError: if the server cannot be reached, or refuses the user or a query.
    """
    if settings.database_url is None:
        raise UsageError(
            "RETAIL_DATABASE_URL is not set: name the shop's database in it, such as"
            " postgresql://USER:PASSWORD@HOST/DATABASE."
        )
    url = settings.database_url.get_secret_value()
    kind = _kind(url)
    spill = Path(settings.lake_dir / "spill")
    spill.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(
        config={
            "allow_unsigned_extensions": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": settings.memory_limit,
            "temp_directory": str(spill),
            **({"threads": settings.threads} if settings.threads else {}),
        }
    )
    try:
        load_extension(connection, kind.extension)
        connection.execute("SET allow_unsigned_extensions = false")
        connection.execute("SET TimeZone = 'UTC'")
        source = kind(connection, declared)
        with explained(url):
            source.attach(url)
        yield source
    finally:
        # Closed within a transaction whose server is gone, the extension would abort the process.
        with suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        connection.close()


def _kind(url: str) -> type[Source]:
    from retail_assets.extract.mysql import MySQL
    from retail_assets.extract.postgres import PostgreSQL

    scheme = url.partition(":")[0].lower()
    kinds: dict[str, type[Source]] = {
        "postgresql": PostgreSQL,
        "postgres": PostgreSQL,
        "mysql": MySQL,
        "mariadb": MySQL,
    }
    if scheme not in kinds or "://" not in url:
        raise UsageError(
            "RETAIL_DATABASE_URL names no database that can be read: it begins with postgresql://"
            " or mysql://."
        )
    return kinds[scheme]


def address(url: str) -> str:
    """Where a database is, without user and password."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise UsageError(f"RETAIL_DATABASE_URL is no URL: {mask(str(error))}.") from None
    return f"{parts.scheme}://{parts.hostname or 'localhost'}{port}{parts.path}"


@contextmanager
def explained(url: str, what: str = "") -> Iterator[None]:
    """Turn an error of the database into a sentence, without its password.

    Args:
        url: the database.
        what: what was read, such as "`orders`".
    """
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise RetailAssetsError(
            "There is not enough memory to read the database: raise RETAIL_MEMORY_LIMIT."
        ) from error
    except duckdb.Error as error:
        text = str(error)
        found = _SAID.findall(text)
        said = next((said for pair in found for said in pair if said), text.splitlines()[0])
        of = f" {what} of" if what else ""
        # Not `from error`: it may have the password.
        raise RetailAssetsError(
            f"{'Reading' if what else 'Opening'}{of} the database {address(url)} failed:"
            f" {mask(' '.join(said.split()))}. No file was changed: correct the server, the"
            " mapping's `database` or RETAIL_DATABASE_URL, and run it again."
        ) from None
