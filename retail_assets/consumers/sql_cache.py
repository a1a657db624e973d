"""The rules of consumers as compiled SQL.

Compiling a rule takes up to a tenth of a second of Python, while the threads of the ingest wait.
The SQL is the same in each round, so it is compiled once.
"""

from collections.abc import Callable, Hashable, Mapping

import duckdb
import narwhals as nw

from retail_assets.consumers.framework import Compute

Rules = Callable[[duckdb.DuckDBPyConnection, str | None], Mapping[str, "str | nw.LazyFrame"]]
"""Like `Compute`, but may return frames of the connection."""


class CompiledSql:
    """CompiledSql of rules, kept as long as a consumer."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, str] = {}

    def of(self, name: Hashable, rule: Callable[[], nw.LazyFrame]) -> str:
        """The SELECT of a rule, whose tables must have the same names each time."""
        if name not in self._compiled:
            self._compiled[name] = str(nw.to_native(rule()).sql_query())
        return self._compiled[name]


def compile_once(rules: Rules) -> Compute:
    """Compile the SQL of rules once; they must have no effects but their result."""
    made: dict[str | None, dict[str, str]] = {}

    def compiled(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        if keys not in made:
            made[keys] = {
                table: rows if isinstance(rows, str) else str(nw.to_native(rows).sql_query())
                for table, rows in rules(connection, keys).items()
            }
        return made[keys]

    return compiled
