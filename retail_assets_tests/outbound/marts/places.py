"""Places for marts of the tests, and what is in them. Light to import; arguments are plain."""

import io
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pyarrow.csv
import pyarrow.parquet as pq
import pymysql

from retail_assets.outbound.marts.model import MART_TABLES
from retail_assets.outbound.marts.mysql import connection_options
from retail_assets_tests.servers import PASSWORD

Rows = list[tuple[Any, ...]]


class PostgresPlace:
    """A database of its own, and the setting that names it."""

    kind = "postgres"

    def __init__(self, server: str) -> None:
        name = f"mart_{uuid4().hex}"
        with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            port = connection.info.port
        self.url = f"postgresql://postgres:{quote(PASSWORD)}@127.0.0.1:{port}/{name}"
        self.settings = {"mart_url": self.url}

    def execute(self, sql: str) -> Rows:
        """Execute a statement in a transaction of its own."""
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self, table: str) -> Rows:
        """The rows of a table, in order."""
        return sorted(self.execute(f"SELECT * FROM {table}"), key=repr)


class MariaDBPlace:
    """The same in MariaDB."""

    kind = "mariadb"

    def __init__(self, port: int) -> None:
        name = f"mart_{uuid4().hex}"
        self.url = f"mysql://retail:{quote(PASSWORD)}@127.0.0.1:{port}/mysql"
        self.execute(f"CREATE DATABASE {name}")
        self.url = self.url.removesuffix("mysql") + name
        self.settings = {"mart_url": self.url}

    def execute(self, sql: str) -> Rows:
        """Execute a statement in a transaction of its own."""
        with (
            closing(
                pymysql.connect(**connection_options(self.url)[0], autocommit=True)
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return list(cursor.fetchall())

    def rows(self, table: str) -> Rows:
        """The rows of a table, in order."""
        return sorted(self.execute(f"SELECT * FROM {table}"), key=repr)


class FolderPlace:
    """A folder of Parquet or CSV files."""

    def __init__(self, root: Path, file_format: str) -> None:
        self.kind = file_format
        self.root = root
        self.settings = {"mart_files": str(root), "mart_format": file_format}

    def rows(self, table: str) -> Rows:
        """The rows of all files of a table, in order."""
        found: Rows = []
        for path in (self.root / table).rglob("*"):
            if path.is_file():
                found += rows_of(table, path.name, path.read_bytes())
        return sorted(found, key=repr)


def rows_of(table: str, name: str, content: bytes) -> Rows:
    """The rows of a file."""
    schema = next(mart.schema for mart in MART_TABLES if mart.name == table)
    if name.endswith(".parquet"):
        rows = pq.read_table(io.BytesIO(content))
    else:
        rows = pyarrow.csv.read_csv(
            io.BytesIO(content),
            convert_options=pyarrow.csv.ConvertOptions(column_types=schema),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        )
    assert rows.schema == schema
    return [tuple(row.values()) for row in rows.to_pylist()]
