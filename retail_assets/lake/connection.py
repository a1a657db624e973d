"""Connecting to the lake: a DuckDB connection with the DuckLake catalog attached as `lake`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.lake.lock import write_lock
from retail_assets.lake.schema import create_missing_tables

if TYPE_CHECKING:
    from retail_assets.settings import Settings

POSTGRES = "postgres:"


@dataclass(frozen=True)
class Lake:
    """Where a lake is, and how to open it.

    `catalog` is the path of an SQLite file or `postgres:` with a libpq connection string, and
    `data_path` a folder or an `s3://` prefix. Connections spill to `spill_dir` beyond
    `memory_limit`.
    """

    catalog: str
    data_path: str
    spill_dir: str
    timezone: str = "UTC"
    memory_limit: str = "600MB"
    threads: int | None = None

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Lake":
        """Return the lake that the settings name."""
        return cls(
            catalog=settings.catalog,
            data_path=settings.data_path,
            spill_dir=str(settings.lake_dir / "spill"),
            timezone=settings.timezone,
            memory_limit=settings.memory_limit,
            threads=settings.threads,
        )

    @property
    def on_postgres(self) -> bool:
        """Whether the catalog is a PostgreSQL database."""
        return self.catalog.startswith(POSTGRES)

    def exists(self) -> bool:
        """Whether there is a catalog to read; a database server is taken at its word."""
        return self.on_postgres or Path(self.catalog).exists()

    @contextmanager
    def connect(
        self, *, read_only: bool = False, at: int | datetime | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection whose default database is the lake; it is closed on every path.

        Args:
            read_only: refuse to change the lake; never waits for a writer.
            at: read the lake as it was at a snapshot id or a time (implies read-only).

        Raises:
            RetailAssetsError: if a reader finds no lake, or the catalog cannot be opened.
        """
        connection = self.open(read_only=read_only, at=at)
        try:
            yield connection
        finally:
            connection.close()

    def open(
        self, *, read_only: bool = False, at: int | datetime | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Like `connect`, for callers that close the connection themselves."""
        read_only = read_only or at is not None
        if read_only and not self.exists():
            raise RetailAssetsError(
                f"There is no lake at {self.catalog} yet: run `retail-assets backfill` first."
            )
        connection = duckdb.connect(config=self._config())
        try:
            self._load_extensions(connection)
            if read_only:
                self._attach(connection, _read_options(at))
            else:
                self._attach_writable(connection)
            connection.execute("USE lake")
            connection.execute(f"SET TimeZone = {_literal(self.timezone)}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def transaction(
        self, connection: duckdb.DuckDBPyConnection, message: str
    ) -> Iterator[None]:
        """Change the lake in one transaction, one writer at a time over all processes.

        Stage first: everybody else who writes waits until this is over.
        """
        with write_lock(self.catalog):
            connection.execute("BEGIN")
            try:
                # First: at the end it would look through all that the transaction has changed.
                connection.execute(
                    "CALL lake.set_commit_message(?, ?)", ["retail_assets", message]
                )
                yield
                commit(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def _config(self) -> dict[str, str | bool | int | float | list[str]]:
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": self.memory_limit,
            "temp_directory": self.spill_dir,
        }
        if self.threads is not None:
            config["threads"] = self.threads
        return config

    def _load_extensions(self, connection: duckdb.DuckDBPyConnection) -> None:
        names = ["ducklake", "postgres_scanner" if self.on_postgres else "sqlite_scanner"]
        if self.data_path.startswith("s3://"):
            names.append("httpfs")
        for name in names:
            connection.execute(f"LOAD {_literal(str(extension_path(name)))}")
        if self.data_path.startswith("s3://"):
            _create_s3_secret(connection)

    def _attach(self, connection: duckdb.DuckDBPyConnection, options: Sequence[str]) -> None:
        kind = self.catalog if self.on_postgres else f"sqlite:{self.catalog}"
        try:
            connection.execute(
                f"ATTACH {_literal('ducklake:' + kind)} AS lake ({', '.join(options)})"
            )
        except duckdb.Error as error:
            raise RetailAssetsError(f"The lake at {self.catalog} cannot be opened: {error}") from error

    def _attach_writable(self, connection: duckdb.DuckDBPyConnection) -> None:
        options = [f"DATA_PATH {_literal(self.data_path)}"]
        if not self.on_postgres:
            options.append("META_JOURNAL_MODE 'WAL'")
            Path(self.catalog).parent.mkdir(parents=True, exist_ok=True)
        if self.on_postgres or not self.exists():
            # The first ATTACH creates the catalog; two at once would both try.
            with write_lock(self.catalog):
                self._attach(connection, options)
        else:
            self._attach(connection, options)
        create_missing_tables(self, connection)


def commit(connection: duckdb.DuckDBPyConnection) -> None:
    """Commit; the one place where the lake changes, so the one that faults are injected at."""
    connection.execute("COMMIT")


def extension_path(name: str) -> Path:
    """Where the wheel `duckdb-extension-NAME` keeps the binary for this version of DuckDB.

    Raises:
        RetailAssetsError: if the wheel is not installed.
    """
    spec = find_spec(f"duckdb_extension_{name}")
    if spec is None or spec.origin is None:
        raise RetailAssetsError(
            f"DuckDB's extension {name} is not installed:"
            f" install duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__}."
        )
    folder = Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}"
    return folder / f"{name}.duckdb_extension"


def current_snapshot(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the id of the newest snapshot that this connection sees."""
    row = connection.execute("SELECT id FROM lake.current_snapshot()").fetchone()
    assert row is not None
    return int(row[0])


def _read_options(at: int | datetime | None) -> list[str]:
    options = ["READ_ONLY"]
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise UsageError(f"The time {at} has no time zone: add one, such as +00:00.")
        options.append(f"SNAPSHOT_TIME {_literal(at.isoformat(sep=' '))}")
    elif at is not None:
        options.append(f"SNAPSHOT_VERSION {int(at)}")
    return options


def _create_s3_secret(connection: duckdb.DuckDBPyConnection) -> None:
    # The standard variables of the AWS tools, so that no second set of credentials exists.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options = {
        "KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID"),
        "SECRET": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "SESSION_TOKEN": os.environ.get("AWS_SESSION_TOKEN"),
        "REGION": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {
            "ENDPOINT": host.rstrip("/"),
            "URL_STYLE": "path",
            "USE_SSL": "false" if scheme == "http" else "true",
        }
    given = ", ".join(f"{key} {_literal(value)}" for key, value in options.items() if value)
    connection.execute(f"CREATE SECRET lake_files (TYPE s3{', ' + given if given else ''})")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
