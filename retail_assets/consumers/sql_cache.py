"""The rules of consumers as SQL, made once.

To put a rule into SQL takes up to a tenth of a second of Python, which keeps the threads of the
ingest waiting; and it comes to the same text in each round.
"""

from collections.abc import Callable, Hashable, Mapping

import duckdb
import narwhals as nw

from retail_assets.consumers.framework import Compute

Rules = Callable[[duckdb.DuckDBPyConnection, str | None], Mapping[str, "str | nw.LazyFrame"]]
"""Like `Compute`, but what it returns may be frames of the connection."""


class Texts:
    """Texts of rules, for as long as a consumer is there."""

    def __init__(self) -> None:
        self._texts: dict[Hashable, str] = {}

    def of(self, name: Hashable, rule: Callable[[], nw.LazyFrame]) -> str:
        """The SELECT of a rule, which is made of tables that are there under the same names."""
        if name not in self._texts:
            self._texts[name] = str(nw.to_native(rule()).sql_query())
        return self._texts[name]


def once(rules: Rules) -> Compute:
    """Have rules that do nothing but say which rows there are put into SQL once."""
    made: dict[str | None, dict[str, str]] = {}

    def texts(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        if keys not in made:
            made[keys] = {
                table: rows if isinstance(rows, str) else str(nw.to_native(rows).sql_query())
                for table, rows in rules(connection, keys).items()
            }
        return made[keys]

    return texts
