"""Creating the tables of `tables.py` in the lake, and adding the columns that it has gained."""

from typing import TYPE_CHECKING

from retail_assets import tables
from retail_assets.sql import literal

if TYPE_CHECKING:
    import duckdb

    from retail_assets.lake.connection import Lake


def create_missing_tables(lake: "Lake", connection: "duckdb.DuckDBPyConnection") -> None:
    """Create what is missing; does nothing, and takes no lock, where all is there."""
    if not _statements(connection):
        return
    with lake.transaction(connection, "create tables"):
        # Another process may have been here first: look again under the lock.
        for statement in _statements(connection):
            connection.execute(statement)


def _statements(connection: "duckdb.DuckDBPyConnection") -> list[str]:
    found: dict[str, set[str]] = {}
    for table_name, column_name in connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'lake'"
    ).fetchall():
        found.setdefault(table_name, set()).add(column_name)
    statements: list[str] = []
    for table in tables.ALL:
        if table.name not in found:
            statements += _create(table)
        else:
            for column in table.columns:
                if column.name not in found[table.name]:
                    statements += [
                        f"ALTER TABLE lake.{table.name} ADD COLUMN {column.name} {column.type}",
                        _comment(table, column),
                    ]
    for view in tables.VIEWS:
        if view.name not in found:
            statements += [
                f"CREATE VIEW lake.{view.name} AS {view.query}",
                f"COMMENT ON VIEW lake.{view.name} IS {literal(view.description)}",
            ]
    return statements


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
