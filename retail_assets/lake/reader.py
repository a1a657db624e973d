"""A connection for people: only statements that read the lake are executed on it.

There are two walls, since neither is enough. DuckDB's settings keep SQL from files outside of the
lake and cannot be changed back, but they would let ATTACH open the catalog for writing and COPY
overwrite a file of the lake. So each statement is parsed first: it has to be a query, and may call
only functions that read the lake.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import duckdb
from typing_extensions import Self

from retail_assets.errors import RetailAssetsError
from retail_assets.lake.connection import Lake
from retail_assets.lake.sql import literal

TABLE_FUNCTIONS = frozenset(
    (
        *("current_snapshot", "last_committed_snapshot", "snapshots", "options"),
        *("table_changes", "table_deletions", "table_info", "table_insertions"),
        *("ducklake_current_snapshot", "ducklake_list_files", "ducklake_snapshots"),
        *("ducklake_table_changes", "ducklake_table_deletions", "ducklake_table_info"),
        *(
            "ducklake_table_insertions",
            "pragma_table_info",
            "duckdb_columns",
            "duckdb_functions",
            "duckdb_keywords",
        ),
        *("duckdb_secrets", "duckdb_settings", "duckdb_tables", "duckdb_types", "duckdb_views"),
        *("generate_series", "histogram", "histogram_values", "json_each", "json_tree"),
        *("pg_timezone_names", "range", "repeat", "repeat_row", "summary", "unnest"),
    )
)
"""The table functions that read the lake, or nothing. Others of DuckDB read any file, run
statements given as text, or change the lake."""

OTHER_FUNCTIONS = frozenset(("getenv", "set_config", "write_log"))
"""Functions of values that do more than compute."""

HIDDEN = frozenset(("duckdb_databases", "pragma_database_list"))
"""Relations that would show the catalog's connection string, with its password."""

_INSTEAD = {
    "COPY": "`retail-assets query --output FILE` writes rows to a CSV, Parquet or Excel file",
    "EXPORT": "`retail-assets query --output FILE` writes rows to a CSV, Parquet or Excel file",
    "CALL": "write FROM instead of CALL, such as FROM lake.snapshots()",
    "PRAGMA": "SHOW TABLES and DESCRIBE say what there is",
    "SET": "settings come from the environment, see `RETAIL_…` in docs/settings.md",
    "VARIABLE_SET": "write the value where it is used",
    "ATTACH": "only the lake is read here; join other data outside of it",
    "DETACH": "only the lake is read here; join other data outside of it",
    "LOAD": "all that reading the lake needs is loaded",
    "CREATE": "WITH name AS (SELECT …) keeps a result within a query; for PIVOT name the values:"
    " PIVOT table ON column IN ('a', 'b')",
    "TRANSACTION": "--at, or connect(at=…), keeps several queries on one snapshot",
    "PREPARE": "connect().execute(sql, [value]) binds values",
    "EXECUTE": "connect().execute(sql, [value]) binds values",
}
"""The alternative to a refused statement, by DuckDB's name of its kind."""

_CHANGES = "the lake is changed by `backfill`, `ingest-events`, `replay` and `maintain` alone"

_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b\s*)?(\([\w\s,]*\)\s*)?", re.IGNORECASE)
"""Comments between its words do not match: they could hide where the query begins."""

_RESULTS = (
    *("arrow", "description", "df", "fetch_arrow_table", "fetch_df", "fetch_df_chunk"),
    *("fetch_record_batch", "fetchall", "fetchdf", "fetchmany", "fetchnumpy", "fetchone", "pl"),
    *("interrupt", "register", "rowcount", "to_arrow_table", "torch", "tf", "unregister"),
)
"""Members that a reader passes on to its connection: results, and frames to join."""


def open_reader(lake: Lake, at: int | datetime | None = None) -> "LakeReader":
    """Open a connection that only reads the lake.

    Args:
        lake: the lake.
        at: a snapshot id or a time with a zone, to read the lake as it was then.

    Raises:
        RetailAssetsError: if there is no lake, or no such snapshot.
    """
    connection = lake.open(read_only=True, at=at)
    try:
        folder = literal(lake.data_path.rstrip("/") + "/")
        connection.execute(f"SET allowed_directories = [{folder}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return LakeReader(connection)


class LakeReader:
    """A DuckDB connection on the lake that executes nothing but queries.

    It has the methods of `duckdb.DuckDBPyConnection` that read: `sql`, `execute`, `table`, `cursor`
    and those that fetch. `register(name, frame)` lets queries join a pandas or Arrow frame. Columns
    and units are those of the data dictionary. It protects against SQL, not against Python code,
    which can open any file.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        # Not in the lake: functions would be looked up in its catalog first.
        self._parser = connection.cursor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name in _RESULTS:
            return getattr(self._connection, name)
        raise AttributeError(
            f"The lake's read-only connection has no {name!r}: use sql(), execute(), table() and"
            " what fetches their results."
        )

    def close(self) -> None:
        """Close the connection."""
        self._parser.close()
        self._connection.close()

    def cursor(self) -> "LakeReader":
        """Return another reader on the same lake and snapshot, for another thread."""
        cursor = self._connection.cursor()
        cursor.execute("USE lake")
        return LakeReader(cursor)

    def sql(self, query: str, **options: Any) -> duckdb.DuckDBPyRelation:
        """Return the rows of a query as a relation, as DuckDB's `sql` does.

        Raises:
            RetailAssetsError: if it is no query of the lake; it says what to use instead.
            duckdb.Error: if DuckDB cannot execute it.
        """
        for _ in self.statements(query):
            pass
        return self._connection.sql(query, **options)

    query = sql

    def execute(self, query: str, parameters: object = None) -> Self:
        """Execute a query, with values bound to its parameters; fetch the rows from this reader.

        Raises:
            RetailAssetsError: if it is no query of the lake; it says what to use instead.
            duckdb.Error: if DuckDB cannot execute it.
        """
        for _ in self.statements(query):
            pass
        self._connection.execute(query, parameters)
        return self

    def table(self, name: str) -> duckdb.DuckDBPyRelation:
        """Return all rows of a table or view of the lake as a relation.

        Raises:
            duckdb.Error: if there is none of that name.
        """
        return self._connection.table(name)

    view = table

    def rows(self, at_once: int = 10_000) -> Iterator[Sequence[Any]]:
        """Yield the rows of the query that was executed last, as tuples.

        Args:
            at_once: how many are fetched, and held in memory, at once.
        """
        while found := self._connection.fetchmany(at_once):
            yield from found

    def statements(self, text: str) -> Iterator[str]:
        """Split a text into its statements, each of which only reads the lake.

        Raises:
            RetailAssetsError: if one does not, or there is none.
            duckdb.Error: if it cannot be parsed.
        """
        found = self._parser.extract_statements(text)
        if not found:
            raise RetailAssetsError("There is no query: write a SELECT.")
        for statement in found:
            self._check(statement)
        for statement in found:
            yield statement.query

    def _check(self, statement: duckdb.Statement) -> None:
        kind = statement.type.name
        text = statement.query
        explains = _EXPLAIN.match(text) if kind == "EXPLAIN" else None
        if explains:
            text = text[explains.end() :]
        (parsed,) = self._parser.execute(
            "SELECT json_serialize_sql(?::VARCHAR)", [text]
        ).fetchone() or ("",)
        try:
            tree = json.loads(parsed)
            if not tree["error"] and tree["statements"]:
                _check_calls(tree["statements"])
                return
        except RecursionError:
            raise _refusal("it is nested too deeply", "write it in parts, with WITH") from None
        if text.lstrip()[:6].upper() == "PRAGMA":
            kind = "PRAGMA"
        raise _refusal(f"it is read-only, and this is {kind}", _INSTEAD.get(kind, _CHANGES))


def _check_calls(tree: Any) -> None:
    """Make sure that a parsed query calls only functions that read the lake."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        if not isinstance(node, dict):
            continue
        if node.get("type") == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise _refusal(
                    f"it reads only the lake, and {name}() does something else",
                    "SHOW TABLES says what there is",
                )
        name = str(node.get("function_name", "")).lower()
        if name in OTHER_FUNCTIONS:
            raise _refusal(
                f"it reads only the lake, and {name}() does something else", "leave it out"
            )
        if node.get("type") == "BASE_TABLE" and str(node["table_name"]).lower() in HIDDEN:
            raise _refusal(
                f"{node['table_name']} would show how the catalog is reached",
                "SHOW TABLES says what there is",
            )
        waiting += node.values()


def _refusal(reason: str, instead: str) -> RetailAssetsError:
    return RetailAssetsError(f"The query was not run: {reason}. Instead: {instead}.")
