"""Inserting a few rows from Python into a table of the lake."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb


def insert_columns(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: Mapping[str, Sequence[Any]],
    also: str,
) -> None:
    """Insert rows given column by column.

    Args:
        connection: a connection to the lake, in a transaction.
        table: the table's name.
        columns: values by name and type of the column, such as `"path VARCHAR"`.
        also: a further column of the select list, such as `now() AS ingested_at`.
    """
    select = ", ".join(f"unnest(?::{type_}[]) AS {name}" for name, type_ in map(str.split, columns))
    connection.execute(
        f"INSERT INTO lake.{table} BY NAME SELECT *, {also} FROM (SELECT {select})",
        [list(values) for values in columns.values()],
    )
