"""Creates the tables of `tables/` in the lake, and migrates those of an older lake.

New columns are added, and decimals are widened. A view is replaced if its columns or its
description differ from `tables/`: a change of its query has to change one of these.
"""

import re
from typing import TYPE_CHECKING

from retail_assets import tables
from retail_assets.lake.sql import literal

if TYPE_CHECKING:
    import duckdb

    from retail_assets.lake.connection import Lake


_complete: dict[str, tuple[int, tuple[tables.Table, ...], tuple[tables.View, ...]]] = {}
"""By catalog: the version of its schema that this process found complete, and what was wanted."""


def create_missing_tables(lake: "Lake", connection: "duckdb.DuckDBPyConnection") -> None:
    """Create what is missing; takes no lock if nothing is."""
    from retail_assets.lake.history import schema_version

    # Reading all columns takes a quarter of the time to open a lake: once for each schema.
    found = schema_version(connection), tables.ALL, tables.VIEWS
    if _complete.get(lake.catalog) == found:
        return
    if not _statements(connection):
        _complete[lake.catalog] = found
        return
    with lake.transaction(connection, "create tables"):
        # Another process may have been faster: look again under the lock.
        for statement in _statements(connection):
            connection.execute(statement)


def _statements(connection: "duckdb.DuckDBPyConnection") -> list[str]:
    found: dict[str, dict[str, str]] = {}
    for table_name, column_name, type_ in connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns()"
        " WHERE database_name = 'lake' ORDER BY table_name, column_index"
    ).fetchall():
        found.setdefault(table_name, {})[column_name] = type_
    statements: list[str] = []
    for table in tables.ALL:
        if table.name not in found:
            statements += _create(table)
        else:
            for column in table.columns:
                statements += _amend(table, column, found[table.name].get(column.name))
    described = dict(
        connection.execute(
            "SELECT view_name, comment FROM duckdb_views() WHERE database_name = 'lake'"
        ).fetchall()
    )
    for view in tables.VIEWS:
        columns = {column.name: column.type for column in view.columns}
        if (found.get(view.name), described.get(view.name)) != (columns, view.description):
            statements += [
                f"CREATE OR REPLACE VIEW lake.{view.name} AS {view.query}",
                f"COMMENT ON VIEW lake.{view.name} IS {literal(view.description)}",
            ]
    return statements


def _amend(table: tables.Table, column: tables.Column, found: str | None) -> list[str]:
    """Statements that add or widen a column, if needed."""
    if found is None:
        return [
            f"ALTER TABLE lake.{table.name} ADD COLUMN {column.name} {column.type}"
            + (f" DEFAULT {column.default}" if column.default else ""),
            *([column.when_added] if column.when_added else []),
            _comment(table, column),
        ]
    old, new = _DECIMAL.fullmatch(found), _DECIMAL.fullmatch(column.type)
    if old and new and old[2] == new[2] and int(old[1]) < int(new[1]):
        return [
            f"ALTER TABLE lake.{table.name} ALTER COLUMN {column.name} SET DATA TYPE {column.type}"
        ]
    return []


_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")


def _create(table: tables.Table) -> list[str]:
    columns = ", ".join(
        f"{column.name} {column.type}{'' if column.nullable else ' NOT NULL'}"
        for column in table.columns
    )
    statements = [
        f"CREATE TABLE lake.{table.name} ({columns})",
        f"COMMENT ON TABLE lake.{table.name} IS {literal(table.description)}",
    ]
    if table.day is not None:
        # A file a day would make a backfill of years slow and its files small.
        month = f"year({table.day}), month({table.day})"
        statements.append(f"ALTER TABLE lake.{table.name} SET PARTITIONED BY ({month})")
    return [*statements, *(_comment(table, column) for column in table.columns)]


def _comment(table: tables.Table, column: tables.Column) -> str:
    return f"COMMENT ON COLUMN lake.{table.name}.{column.name} IS {literal(column.description)}"
