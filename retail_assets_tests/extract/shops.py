"""A shop's database on a real server, a database of each test's own."""

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pymysql
import yaml
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from retail_assets import business_days
from retail_assets.settings import Settings
from retail_assets_tests.servers import PASSWORD

ORDERS = {
    "table": "orders",
    "day": "placed_at",
    "changed": "updated_at",
    "columns": {
        "order_id": "id",
        "customer_id": "customer",
        "product_id": "product",
        "region": "region",
        "status": "state",
        "order_value_gbp": "total",
        "order_timestamp": "placed_at",
    },
}
"""How the mapping declares the table that `Shop.create` makes."""


@dataclass(frozen=True)
class Shop:
    """A database of a kind, `postgres` or `mariadb`, and its URL."""

    kind: str
    url: str

    def execute(self, *statements: str) -> None:
        """Change the database, each statement for itself."""
        with self._connection() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def create(self, *, moments: bool = False, key: str = "PRIMARY KEY") -> None:
        """Make the table of orders; with `moments` its times have a zone."""
        time = "timestamp"
        if self.kind == "mariadb":
            time = "timestamp NULL" if moments else "datetime"
        elif moments:
            time = "timestamptz"
        self.execute(
            f"CREATE TABLE orders (id varchar(40) {key}, customer varchar(40), product varchar(40),"
            " region varchar(200), state varchar(20), total decimal(12,2),"
            f" placed_at {time}, updated_at {time})"
        )

    def order(self, order_id: str, placed: str, changed: str | None = None, **more: str) -> None:
        """Add an order of ten pounds, or put it in place of the one of this id."""
        values = {
            "id": order_id,
            "customer": "C1",
            "product": "P1",
            "region": "North",
            "state": "completed",
            "total": "10.00",
            "placed_at": placed,
            "updated_at": changed or placed,
        } | more
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM orders WHERE id = %s", [order_id])
            cursor.execute(f"INSERT INTO orders ({names}) VALUES ({marks})", list(values.values()))

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        if self.kind == "postgres":
            with psycopg.connect(self.url, autocommit=True) as connection:
                yield connection
            return
        host, _, database = self.url.partition("@127.0.0.1:")[2].partition("/")
        with pymysql.connect(
            host="127.0.0.1",
            port=int(host),
            user="retail",
            password=PASSWORD,
            database=database,
            autocommit=True,
            init_command="SET time_zone = '+00:00'",
        ) as connection:
            yield connection


def postgres_shop(connection_string: str, encoding: str = "UTF8") -> Shop:
    """A new database on a PostgreSQL server."""
    name = f"shop_{uuid4().hex}"
    with psycopg.connect(connection_string, dbname="postgres", autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    port = conninfo_to_dict(connection_string)["port"]
    return Shop("postgres", f"postgresql://postgres:{quote(PASSWORD)}@127.0.0.1:{port}/{name}")


def mariadb_shop(port: int) -> Shop:
    """A new database on a MariaDB server."""
    name = f"shop_{uuid4().hex}"
    with (
        pymysql.connect(host="127.0.0.1", port=port, user="retail", password=PASSWORD) as admin,
        admin.cursor() as cursor,
    ):
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return Shop("mariadb", f"mysql://retail:{quote(PASSWORD)}@127.0.0.1:{port}/{name}")


def query(sql: str) -> dict[str, Any]:
    """How the mapping declares the same rows as `ORDERS` from a query."""
    return {name: value for name, value in ORDERS.items() if name != "table"} | {"query": sql}


def declare(settings: Settings, shop: Shop, database: Mapping[str, Any], **more: Any) -> Settings:
    """The settings with a mapping file that declares a database."""
    path = settings.data_dir / "mapping.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"database": dict(database)}, sort_keys=False))
    # Built again: the model caches what it has read of its mapping.
    values = settings.model_dump() | {"mapping": path, "database_url": SecretStr(shop.url)} | more
    return Settings(**values)


def rows_of(settings: Settings, day: date) -> list[Sequence[str]]:
    """The rows of a day's export as Python reads them, without the header."""
    return table_of(settings, day)[1:]


def table_of(settings: Settings, day: date) -> list[Sequence[str]]:
    """A day's export, its header first."""
    plain, compressed = business_days.export_paths(settings.exports_dir, day)
    assert plain.exists() != compressed.exists()
    return read_csv(plain if plain.exists() else compressed)


def read_csv(path: Path) -> list[Sequence[str]]:
    """A CSV file, compressed or not."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.reader(text.splitlines(keepends=True)))


def ids(settings: Settings, day: date) -> list[str]:
    """The order ids of a day's export."""
    return [row[0] for row in rows_of(settings, day)]
