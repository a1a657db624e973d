"""The lake's tables are those of `tables.py`, with their types, comments and partitions."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from retail_assets import tables
from retail_assets.lake.connection import Lake
from retail_assets_tests.lake.revenue import FIRST, publish, read


def columns(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, tuple[str, bool]]]:
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for table, column, type_, nullable in connection.execute(
        "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns()"
        " WHERE database_name = 'lake' ORDER BY table_name, column_index"
    ).fetchall():
        found.setdefault(table, {})[column] = (type_, nullable)
    return found


def test_a_new_lake_has_all_tables_as_described(settings):
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        found = columns(connection)
        comments = dict(
            connection.execute(
                "SELECT table_name, comment FROM duckdb_tables() WHERE database_name = 'lake'"
            ).fetchall()
        )
        column_comments = {
            (table, column): comment
            for table, column, comment in connection.execute(
                "SELECT table_name, column_name, comment FROM duckdb_columns()"
                " WHERE database_name = 'lake'"
            ).fetchall()
            if table in tables.BY_NAME
        }
    for view in tables.VIEWS:
        assert {name: type_ for name, (type_, _) in found.pop(view.name).items()} == {
            column.name: column.type for column in view.columns
        }
    assert found == {
        table.name: {column.name: (column.type, column.nullable) for column in table.columns}
        for table in tables.ALL
    }
    assert {name: list(of) for name, of in found.items()} == {
        table.name: list(table.column_names) for table in tables.ALL
    }
    assert comments == {table.name: table.description for table in tables.ALL}
    assert column_comments == {
        (table.name, column.name): column.description
        for table in tables.ALL
        for column in table.columns
    }


def test_a_table_of_days_keeps_a_month_in_a_folder(lake):
    publish(lake, [(FIRST, f"r{n}", "1.00") for n in range(30)], [FIRST])
    files = Path(lake.data_path)
    [file] = files.rglob("*.parquet")
    assert file.parent.relative_to(files).parts == (
        "main",
        "daily_revenue",
        "year=2026",
        "month=10",
    )


def test_opening_a_lake_that_has_everything_changes_nothing(lake):
    with lake.connect() as connection:
        before = connection.execute("SELECT * FROM lake.snapshots()").fetchall()
    with lake.connect() as connection:
        assert connection.execute("SELECT * FROM lake.snapshots()").fetchall() == before


def test_a_table_that_is_missing_is_made_and_the_others_keep_their_rows(lake):
    publish(lake, [(FIRST, "North", "10.00")], [FIRST])
    with lake.connect() as connection:
        before = columns(connection)
        connection.execute("DROP TABLE lake.failed_days")
    with lake.connect() as connection:
        assert columns(connection) == before
    assert [row[:2] for row in read(lake)] == [(FIRST, "North")]


def test_a_column_that_tables_py_has_gained_is_added_and_null_in_old_rows(lake, monkeypatch):
    publish(lake, [(FIRST, "North", "10.00")], [FIRST])
    gained = tables.Column("margin", tables.MONEY, "What is left.", nullable=True)
    table = replace(tables.DAILY_REVENUE, columns=(*tables.DAILY_REVENUE.columns, gained))
    others = [table if known.name == table.name else known for known in tables.ALL]
    monkeypatch.setattr(tables, "ALL", tuple(others))
    for _ in range(2):
        with lake.connect() as connection:
            assert columns(connection)["daily_revenue"]["margin"] == (tables.MONEY, True)
            assert connection.execute("SELECT region, margin FROM daily_revenue").fetchall() == [
                ("North", None)
            ]
            found = connection.execute(
                "SELECT comment FROM duckdb_columns() WHERE column_name = 'margin'"
            ).fetchall()
    assert found == [("What is left.",)]


def test_a_required_column_cannot_be_null(lake):
    with (
        lake.connect() as connection,
        pytest.raises(duckdb.ConstraintException, match="NOT NULL"),
    ):
        connection.execute("INSERT INTO daily_revenue (region) VALUES ('North')")
