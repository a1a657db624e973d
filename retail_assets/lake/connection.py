"""Connecting to the lake: a DuckDB connection with the DuckLake catalog attached as `lake`."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import duckdb

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.explain import explain_text
from retail_assets.lake.durability import bytes_written, local_folder, sync_files
from retail_assets.lake.lock import write_lock
from retail_assets.lake.schema import create_missing_tables
from retail_assets.lake.sql import literal
from retail_assets.secrets import mask

if TYPE_CHECKING:
    from retail_assets.settings import Settings

POSTGRES = "postgres:"

CATALOG = "__ducklake_metadata_lake"
"""The name that DuckLake gives the database of the catalog of `lake`."""

AUTHOR = "getvariable('retail_assets_author')"
"""The SQL variable that marks the transactions of a connection in the history of the lake."""

ROW_GROUP = 122_880
"""Rows of a Parquet row group. Within one, the order of rows makes no day faster to find."""


@dataclass(frozen=True)
class Lake:
    """Where a lake is, and how to open it.

    `catalog` is the path of an SQLite file or `postgres:` with a libpq connection string, and
    `data_path` a folder or an `s3://` prefix. Connections spill to `spill_dir` beyond
    `memory_limit`. What a process makes after opening a lake for writing has the permissions that
    `umask` leaves: the owner's alone by default.
    """

    catalog: str
    data_path: str
    spill_dir: str
    timezone: str = "UTC"
    memory_limit: str = "512MB"
    threads: int | None = None
    umask: int = 0o077

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Lake":
        """Return the lake that the settings name."""
        return cls(
            catalog=_password_to_environment(settings.catalog),
            data_path=settings.data_path,
            spill_dir=str(settings.lake_dir / "spill"),
            timezone=settings.timezone,
            memory_limit=settings.memory_limit,
            threads=settings.threads,
            umask=int(settings.umask, 8),
        )

    @property
    def on_postgres(self) -> bool:
        """Whether the catalog is a PostgreSQL database."""
        return self.catalog.startswith(POSTGRES)

    def exists(self) -> bool:
        """Whether there is a catalog to read; a database server is not asked."""
        if self.on_postgres:
            return True
        catalog = Path(self.catalog)
        with _usable(catalog.parent):
            try:
                # SQLite makes an empty file before it writes to it.
                return catalog.stat().st_size > 0
            except FileNotFoundError:
                return False

    def must_exist(self) -> None:
        """Make sure that there is a lake: to open one for writing would make it.

        Raises:
            NoLakeError: if there is none.
        """
        if not self.exists():
            folder = local_folder(self.data_path)
            example = next(folder.rglob("*.parquet"), None) if folder is not None else None
            raise self._no_lake() if example is None else self._lost_catalog(example)

    @contextmanager
    def connect(
        self, *, read_only: bool = False, at: int | datetime | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection whose default database is the lake; it is closed on every path.

        Args:
            read_only: refuse to change the lake; never waits for a writer.
            at: read the lake as it was at a snapshot id or a time (implies read-only).

        Raises:
            UsageError: if the folder of the lake cannot be used.
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
        if read_only:
            self.must_exist()
            return self._open(lambda connection: self._attach_read_only(connection, at))
        return self._open_writable()[0]

    def create(self, *, beside_files: bool = False) -> bool:
        """Make an empty lake, unless there is one.

        Args:
            beside_files: even where the files of a lake lie already; it will not know them.

        Returns:
            Whether it was made.

        Raises:
            RetailAssetsError: if there are files, and a new catalog beside them is not asked for.
        """
        connection, made = self._open_writable(beside_files=beside_files)
        connection.close()
        return made

    def create_catalog(self) -> None:
        """Make a catalog without a table, for the rows of another one."""
        self._open(lambda connection: self._attach(connection, self._write_options())).close()

    def _open_writable(
        self, *, beside_files: bool = False
    ) -> tuple[duckdb.DuckDBPyConnection, bool]:
        """Open the lake, made first where there is none; returns as well whether it was made."""
        # Not when this package is imported: a process that writes to the lake is the platform's.
        os.umask(self.umask)
        made = False

        def attach(connection: duckdb.DuckDBPyConnection) -> None:
            nonlocal made
            made = self._attach_writable(connection, beside_files=beside_files)

        return self._open(attach), made

    def _open(
        self, attach: Callable[[duckdb.DuckDBPyConnection], object]
    ) -> duckdb.DuckDBPyConnection:
        _make_folder(Path(self.spill_dir), self.umask)
        connection = duckdb.connect(config=self._config())
        try:
            self._load_extensions(connection)
            attach(connection)
            connection.execute("USE lake")
            connection.execute(f"SET VARIABLE retail_assets_author = {literal(token_hex(8))}")
            connection.execute(f"SET TimeZone = {literal(self.timezone)}")
            if self.threads is None:
                connection.execute("RESET GLOBAL threads")
            elif self.threads > 1:
                connection.execute(f"SET GLOBAL threads = {self.threads}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def transaction(self, connection: duckdb.DuckDBPyConnection, message: str) -> Iterator[None]:
        """Change the lake in one transaction, one writer at a time over all processes.

        Stage first: everybody else who writes waits until this is over. Afterwards the connection
        is in no transaction, whatever happened.

        Raises:
            RuntimeError: if this thread is in such a transaction already.
        """
        with write_lock(self.catalog, message), self.locked_transaction(connection, message):
            yield

    @contextmanager
    def locked_transaction(
        self, connection: duckdb.DuckDBPyConnection, message: str
    ) -> Iterator[None]:
        """Like `transaction`, for callers that hold the write lock; files are synced first."""
        connection.execute("BEGIN")
        try:
            # First: at the end it would look through all that the transaction has changed.
            connection.execute(
                f"CALL lake.set_commit_message('retail_assets', ?, extra_info => {AUTHOR})",
                [message],
            )
            # From here on: SQLite, opened by then, writes no more before the COMMIT.
            before = bytes_written()
            yield
            if before is None or bytes_written() != before:
                self.sync()
            commit(connection)
        except BaseException:
            # A COMMIT that failed has rolled back already.
            with suppress(duckdb.TransactionException):
                connection.execute("ROLLBACK")
            raise

    def sync(self) -> None:
        """Wait until the lake's files are on the disk, which object storage does not need.

        Raises:
            OSError: if the disk could not keep them.
        """
        folder = local_folder(self.data_path)
        if folder is not None:
            sync_files(str(folder))

    def _config(self) -> dict[str, str | bool | int | float | list[str]]:
        return {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            # Until those of the wheels are loaded, whose signatures are checked.
            "allow_unsigned_extensions": True,
            # For local files it would fill the memory limit with files that are merged away soon.
            "enable_external_file_cache": self.data_path.startswith("s3://"),
            "memory_limit": self.memory_limit,
            "temp_directory": self.spill_dir,
            # `_open` sets them afterwards: reading the catalog takes twice the CPU with two.
            "threads": 1,
            # A row group. By default four are held back for each month and thread, then written
            # slowly.
            "partitioned_write_flush_threshold": ROW_GROUP,
        }

    def _load_extensions(self, connection: duckdb.DuckDBPyConnection) -> None:
        names = ["ducklake", "postgres_scanner" if self.on_postgres else "sqlite_scanner"]
        if self.data_path.startswith("s3://"):
            names.append("httpfs")
        for name in names:
            load_extension(connection, name)
        connection.execute("SET allow_unsigned_extensions = false")
        if not self.on_postgres:
            # With more threads each scan of the catalog has a connection and so a snapshot of its
            # own: a reader in a transaction lost the files that were merged meanwhile, silently.
            connection.execute("SET GLOBAL sqlite_disable_multithreaded_scans = true")
        if self.data_path.startswith("s3://"):
            _create_s3_secret(connection)

    def _attach(self, connection: duckdb.DuckDBPyConnection, options: Sequence[str]) -> None:
        kind = self.catalog if self.on_postgres else f"sqlite:{self.catalog}"
        try:
            connection.execute(
                f"ATTACH {literal('ducklake:' + kind)} AS lake ({', '.join(options)})"
            )
        except duckdb.Error as error:
            if "creating a new DuckLake is explicitly disabled" in str(error):
                raise self._no_lake() from None
            if "No snapshot found" in str(error):
                reason = str(error).splitlines()[0].removeprefix("Invalid Input Error: ")
                raise RetailAssetsError(
                    f"{reason} in the lake at {mask(self.catalog)}:"
                    " `FROM lake.snapshots()` lists those that there are."
                ) from None
            reason = explain_text(f"{type(error).__name__}: {error}") or mask(str(error))
            # Not `from error`: that may have the password.
            raise RetailAssetsError(
                f"The lake at {mask(self.catalog)} cannot be opened: {reason}"
            ) from None

    def _attach_read_only(
        self, connection: duckdb.DuckDBPyConnection, at: int | datetime | None
    ) -> None:
        self._attach(connection, [*self._options(), *_read_options(at)])
        if at is None:
            self._check_tables(connection)

    def _attach_writable(
        self, connection: duckdb.DuckDBPyConnection, *, beside_files: bool = False
    ) -> bool:
        """Attach the lake, made first where there is none; returns whether it was made."""
        if not self.on_postgres:
            _make_folder(Path(self.catalog).parent, self.umask)
        made = False
        if not self._attach_existing(connection):
            # Two at once would both create it.
            with _usable(Path(self.catalog).parent), write_lock(self.catalog, "make the lake"):
                if not self._attach_existing(connection):
                    if not beside_files:
                        self._check_no_files(connection)
                    self._attach(connection, self._write_options())
                    made = True
            # SQLite has synced the catalog and its folder, but not what the folder lies in.
            if not self.on_postgres:
                sync_files(str(Path(self.catalog).parent))
        create_missing_tables(self, connection)
        return made

    def _attach_existing(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Attach the lake for writing, if there is one."""
        if not self.exists():
            return False
        try:
            self._attach(connection, [*self._write_options(), "CREATE_IF_NOT_EXISTS false"])
        except NoLakeError:
            return False
        return True

    def _write_options(self) -> list[str]:
        return [*self._options(), *([] if self.on_postgres else ["META_JOURNAL_MODE 'WAL'"])]

    def _check_no_files(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make sure that a new catalog does not take the place of one that was lost."""
        pattern = literal(f"{self.data_path.rstrip('/')}/**/*.parquet")
        found = connection.execute(f"SELECT file FROM glob({pattern}) LIMIT 1").fetchone()
        if found is not None:
            raise self._lost_catalog(found[0])

    def _lost_catalog(self, example: str | Path) -> RetailAssetsError:
        return RetailAssetsError(
            f"There is no catalog at {mask(self.catalog)}, but there are files of a"
            f" lake, such as {example}, that a new one would not know: restore the catalog from its"
            " backup, or move these files away. `retail-assets init --beside-files` makes an empty"
            " lake beside them."
        )

    def _options(self) -> list[str]:
        # The catalog has the path that the lake was made at; the folder may have moved since.
        return [f"DATA_PATH {literal(self.data_path)}", "OVERRIDE_DATA_PATH true"]

    def _check_tables(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make sure that whoever creates the lake right now is done."""
        # Not duckdb_tables() or duckdb_columns(): these take a quarter of the time to open a lake.
        if connection.execute(f"SELECT 1 FROM {CATALOG}.ducklake_table LIMIT 1").fetchone() is None:
            raise self._no_lake()

    def _no_lake(self) -> "NoLakeError":
        return NoLakeError(
            f"There is no lake at {mask(self.catalog)} yet: run `retail-assets backfill` first."
        )


class NoLakeError(RetailAssetsError):
    """A reader came before anything was written."""


def _password_to_environment(catalog: str) -> str:
    """Leave the password to libpq, which reads PGPASSWORD: connection strings are in its errors.

    They would also be in Dagster's configuration of the resource.
    """
    if not catalog.startswith(POSTGRES):
        return catalog
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict, make_conninfo
    except ImportError:
        return catalog
    try:
        given = conninfo_to_dict(catalog.removeprefix(POSTGRES))
    except ProgrammingError:
        return catalog
    password = given.pop("password", None)
    if not password:
        return catalog
    os.environ["PGPASSWORD"] = str(password)
    return POSTGRES + make_conninfo("", **given)


def _make_folder(folder: Path, umask: int) -> None:
    with _usable(folder):
        folder.mkdir(mode=0o777 & ~umask, parents=True, exist_ok=True)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Say of a folder of the lake that cannot be used which setting names it.

    Raises:
        UsageError: in place of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The folder {mask(str(folder))} cannot be used: {error.strerror or error}."
            " Set RETAIL_DATA_DIR (or RETAIL_LAKE_CATALOG, where that is set) to a folder that you"
            " may write to, or make this one such."
        ) from error


def commit(connection: duckdb.DuckDBPyConnection) -> None:
    """Commit; the one place where the lake changes, so the one that faults are injected at."""
    connection.execute("COMMIT")


def load_extension(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load an extension of DuckDB from its wheel, into a connection that allows unsigned ones.

    Raises:
        RetailAssetsError: if the wheel is not installed, or its file is not the one that was
            signed.
    """
    path = extension_path(name)
    _check_signature(path, path.stat().st_mtime_ns)
    connection.execute(f"LOAD {literal(str(path))}")


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


@lru_cache
def _check_signature(path: Path, modified_ns: int) -> None:  # noqa: ARG001
    """Check DuckDB's signature of an extension, once a process: that takes a tenth of a second.

    Raises:
        RetailAssetsError: if the file is not the one that DuckDB's makers signed.
    """
    with duckdb.connect(config={"allow_unsigned_extensions": False}) as connection:
        try:
            connection.execute(f"LOAD {literal(str(path))}")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise RetailAssetsError(
                f"DuckDB's extension {path} cannot be loaded: {reason} Install its wheel again."
            ) from error


def current_snapshot(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the id of the newest snapshot that this connection sees."""
    row = connection.execute("SELECT id FROM lake.current_snapshot()").fetchone()
    assert row is not None
    return int(row[0])


def committed_snapshot(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the id of the snapshot that this connection has committed last, without a query.

    Raises:
        TypeError: if it has committed none.
    """
    row = connection.execute("SELECT id FROM lake.last_committed_snapshot()").fetchone()
    assert row is not None
    return int(row[0])


def _read_options(at: int | datetime | None) -> list[str]:
    options = ["READ_ONLY"]
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise UsageError(f"The time {at} has no time zone: add one, such as +00:00.")
        options.append(f"SNAPSHOT_TIME {literal(at.isoformat(sep=' '))}")
    elif at is not None:
        if at < 0:
            raise UsageError(f"There is no snapshot {at}: snapshot ids start at 0.")
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
    given = ", ".join(f"{key} {literal(value)}" for key, value in options.items() if value)
    connection.execute(f"CREATE SECRET lake_files (TYPE s3{', ' + given if given else ''})")
