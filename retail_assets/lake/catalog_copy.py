"""The catalog of a lake copied to another place: from a file to a server, or back.

All snapshots that are kept stay readable, and every ledger is in the tables themselves. The Parquet
files are copied by other tools, before or after: the catalog knows them by paths below its folder.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import duckdb

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.lake.compaction import flush_all
from retail_assets.lake.connection import Lake, NoLakeError, load_extension
from retail_assets.lake.lock import write_lock
from retail_assets.lake.sql import identifier, literal
from retail_assets.secrets import mask

UNFINISHED = ".copying"

_INLINED = "ducklake_inlined_"
"""The tables of rows that are in no file yet, which each kind of catalog writes in its own way."""


def copy_catalog(lake: Lake, to: str, data_path: str) -> int:
    """Copy the catalog of a lake; nobody writes to the lake meanwhile.

    Args:
        lake: the lake, which stays as it is.
        to: the new catalog: the path of an SQLite file, or `postgres:` and a connection string.
        data_path: where the copies of the lake's files lie.

    Returns:
        The number of the newest snapshot, which both have now.

    Raises:
        UsageError: if there is a catalog already.
        RetailAssetsError: if one of the two cannot be read or written.
    """
    lake.must_exist()
    target = replace(lake, catalog=to, data_path=data_path, threads=1)
    _must_be_empty(target)
    with lake.connect() as connection, write_lock(lake.catalog, "copy the catalog"):
        flush_all(lake, connection)
        # Under another name until it is whole: a file that is there is a lake.
        unfinished = target if target.on_postgres else replace(target, catalog=f"{to}{UNFINISHED}")
        if not target.on_postgres:
            _remove(Path(unfinished.catalog))
        unfinished.create_catalog()
        newest = _copy(lake, unfinished)
        if not target.on_postgres:
            Path(unfinished.catalog).replace(to)
            _remove(Path(unfinished.catalog))
        return newest


def _must_be_empty(target: Lake) -> None:
    """Make sure that there is no lake yet; its files may have been copied before."""
    if target.on_postgres:
        with suppress(NoLakeError), target.connect(read_only=True):
            raise _there_is_one(target)
    elif target.exists():
        raise _there_is_one(target)


def _there_is_one(target: Lake) -> UsageError:
    return UsageError(
        f"There is a lake at {mask(target.catalog)} already: name a catalog that is new."
    )


def _remove(catalog: Path) -> None:
    for ending in ("", "-wal", "-shm", ".lock", ".lock.holder"):
        with suppress(FileNotFoundError):
            Path(f"{catalog}{ending}").unlink()


def _copy(lake: Lake, target: Lake) -> int:
    """Put the rows of each table of a catalog in place of those of an empty one."""
    with duckdb.connect(config={"threads": 1, "allow_unsigned_extensions": True}) as connection:
        execute = connection.execute
        for name in {_scanner(lake), _scanner(target)}:
            load_extension(connection, name)
        # Texts are written with their offset, and read by it.
        execute("SET TimeZone = 'UTC'")
        if not lake.on_postgres:
            # Its columns have whatever type was written; the new ones have types of their own.
            execute("SET GLOBAL sqlite_all_varchar = true")
        _attach(connection, lake, "source", "READ_ONLY")
        _attach(connection, target, "target")
        there, wanted = (_tables(connection, name) for name in ("source", "target"))
        for name in there:
            in_use = name.startswith(_INLINED) and name != f"{_INLINED}data_tables"
            if in_use and execute(f"SELECT 1 FROM source.{identifier(name)} LIMIT 1").fetchone():
                raise RetailAssetsError(
                    f"The catalog's table {name} has rows that are in no file: run"
                    " `retail-assets maintain`, and copy again."
                )
        execute("BEGIN")
        for name in wanted:
            execute(f"DELETE FROM target.{identifier(name)}")
            if name in there and not name.startswith(_INLINED):
                columns = ", ".join(map(identifier, _columns(connection, "target", name)))
                execute(
                    f"INSERT INTO target.{identifier(name)} ({columns})"
                    f" SELECT {columns} FROM source.{identifier(name)}"
                )
        execute(
            "UPDATE target.ducklake_metadata SET value = ? WHERE key = 'data_path'",
            [target.data_path.rstrip("/") + "/"],
        )
        execute("COMMIT")
        found = execute("SELECT max(snapshot_id) FROM target.ducklake_snapshot").fetchone()
        assert found is not None
        return int(found[0])


def _scanner(lake: Lake) -> str:
    return "postgres_scanner" if lake.on_postgres else "sqlite_scanner"


def _attach(connection: duckdb.DuckDBPyConnection, lake: Lake, name: str, *options: str) -> None:
    where = lake.catalog.removeprefix("postgres:")
    kind = "POSTGRES" if lake.on_postgres else "SQLITE"
    connection.execute(
        f"ATTACH {literal(where)} AS {name} ({', '.join((f'TYPE {kind}', *options))})"
    )


def _tables(connection: duckdb.DuckDBPyConnection, catalog: str) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = ?"
            " AND starts_with(table_name, 'ducklake_') ORDER BY table_name",
            [catalog],
        ).fetchall()
    ]


def _columns(connection: duckdb.DuckDBPyConnection, catalog: str, table: str) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT column_name FROM duckdb_columns() WHERE database_name = ? AND table_name = ?"
            " ORDER BY column_index",
            [catalog, table],
        ).fetchall()
    ]
