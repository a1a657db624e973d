"""The files that the catalog names, in all snapshots, and how to open them."""

import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import duckdb

from retail_assets.lake.connection import CATALOG, Lake
from retail_assets.lake.sql import literal

PAGE_FILES = 1_000
"""How many files are listed at a time, which bounds the memory."""

_COLUMNS = (
    "CASE WHEN NOT f.path_is_relative THEN f.path WHEN NOT t.path_is_relative"
    " THEN t.path || f.path ELSE s.path || t.path || f.path END AS path,"
    " CASE WHEN f.path_is_relative AND t.path_is_relative AND s.path_is_relative"
    " THEN 1 ELSE 0 END AS below_data_path, t.table_name, f.file_size_bytes, f.end_snapshot"
)
_OWNER = (
    " JOIN ducklake_table AS t ON t.table_id = f.table_id AND t.begin_snapshot <= f.begin_snapshot"
    " AND (t.end_snapshot IS NULL OR t.end_snapshot > f.begin_snapshot)"
    " JOIN ducklake_schema AS s ON s.schema_id = t.schema_id"
)
_FILES = (
    (
        "SELECT f.data_file_id AS id, f.data_file_id AS data_file_id, f.record_count AS row_count,"
        f" f.file_format AS format, {_COLUMNS} FROM ducklake_data_file AS f{_OWNER}"
    ),
    (
        "SELECT f.delete_file_id AS id, f.data_file_id, f.delete_count AS row_count,"
        f" f.format AS format, {_COLUMNS} FROM ducklake_delete_file AS f{_OWNER}"
    ),
)


@dataclass(frozen=True)
class LakeFile:
    """A file of rows, or of the rows deleted from the file `data_file_id`.

    `path` is as in the catalog: relative to the data folder where `below_data_path`. `newest` says
    whether the newest snapshot reads it.
    """

    id: int
    data_file_id: int
    table: str
    path: str
    below_data_path: bool
    size_bytes: int
    rows: int
    format: str
    newest: bool

    def location(self, lake: Lake) -> str:
        """Its whole path, or its URL."""
        return f"{lake.data_path.rstrip('/')}/{self.path}" if self.below_data_path else self.path


def files_after(
    lake: Lake, connection: duckdb.DuckDBPyConnection, last_id: int, limit: int = PAGE_FILES
) -> list[LakeFile]:
    """List the next files in the order of their ids, which is that of their commits.

    The database of the catalog finds them by its index.
    """
    return _listed(lake, connection, f"> {int(last_id)}", f" ORDER BY id LIMIT {int(limit)}")


def named_files(
    lake: Lake, connection: duckdb.DuckDBPyConnection, files: list[LakeFile]
) -> list[LakeFile]:
    """The files among some that the catalog still names: upkeep may have replaced others."""
    if not files:
        return []
    ids = ", ".join(str(file.id) for file in files)
    return _listed(lake, connection, f"IN ({ids})", " ORDER BY id")


def _listed(
    lake: Lake, connection: duckdb.DuckDBPyConnection, condition: str, order: str
) -> list[LakeFile]:
    data, deletes = _FILES
    rows = query_catalog(
        lake,
        connection,
        f"SELECT id, data_file_id, table_name, path, below_data_path, file_size_bytes, row_count,"
        f" format, end_snapshot FROM ({data} WHERE f.data_file_id {condition}"
        f" UNION ALL {deletes} WHERE f.delete_file_id {condition}) AS files{order}",
    )
    return [
        LakeFile(
            int(id_),
            int(data_id),
            table,
            path,
            bool(below),
            int(size),
            int(count),
            kind,
            end is None,
        )
        for id_, data_id, table, path, below, size, count, kind, end in rows
    ]


def query_catalog(
    lake: Lake, connection: duckdb.DuckDBPyConnection, sql: str
) -> list[tuple[Any, ...]]:
    """Query the database of the catalog in its own SQL; never with values from outside."""
    function = "postgres_query" if lake.on_postgres else "sqlite_query"
    return connection.execute(f"SELECT * FROM {function}('{CATALOG}', {literal(sql)})").fetchall()


class FileStore:
    """Opens the files of a lake, in a folder or in a bucket."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder."""
        return "://" not in self._lake.data_path

    def open(self, file: LakeFile) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            OSError: if it is missing, or no file.
        """
        location = file.location(self._lake)
        if "://" in location:
            opened: IO[bytes] = self._remote.open(location, "rb", block_size=2**16)
            return opened
        if not stat.S_ISREG(Path(location).stat().st_mode):
            raise FileNotFoundError(f"{location} is no file")
        return Path(location).open("rb")

    @cached_property
    def _remote(self) -> Any:
        import fsspec

        # A cached instance would have the endpoint and the keys of an earlier environment.
        return fsspec.filesystem(
            self._lake.data_path.partition("://")[0],
            use_listings_cache=False,
            skip_instance_cache=True,
        )


def tag(opened: Any) -> str | None:
    """The ETag of an opened file in a bucket, which takes no request."""
    details = getattr(opened, "details", None)
    found = details.get("ETag") if isinstance(details, dict) else None
    return f"etag:{found.strip(chr(34))}" if found else None
