"""The lake's tables are those of `tables/`, with their types, comments and partitions."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from retail_assets import tables
from retail_assets.lake import schema
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


def test_sums_of_an_older_lake_become_wider_and_their_views_with_them(lake):
    """What was committed before stays readable as it was."""
    with lake.connect() as connection:
        for table in (tables.DAILY_REVENUE, tables.LIVE_REVENUE, tables.LIVE_REVENUE_MINUTES):
            connection.execute(f"DROP TABLE lake.{table.name}")
            for statement in schema._create(table):
                connection.execute(statement.replace("DECIMAL(18,2)", "DECIMAL(12,2)"))
        for view in tables.VIEWS:
            query = view.query.replace("DECIMAL(18,2)", "DECIMAL(12,2)")
            connection.execute(f"CREATE OR REPLACE VIEW lake.{view.name} AS {query}")
        insert = "INSERT INTO lake.daily_revenue VALUES ('2026-10-05', ?, 1.00, 1, 1.00)"
        connection.executemany(insert, [[f"region {n}"] for n in range(20)])
        connection.execute("INSERT INTO lake.daily_revenue VALUES ('2026-10-05', 'x', 9, 1, 9)")
        before = connection.execute("FROM lake.daily_revenue ORDER BY ALL").fetchall()
        (snapshot,) = connection.execute("SELECT max(snapshot_id) FROM lake.snapshots()").fetchone()
    with lake.connect() as connection:
        connection.execute(
            "INSERT INTO lake.daily_revenue VALUES ('2026-10-06', 'x', 10000000000, 1, 1)"
        )
        found = columns(connection)
        assert found["daily_revenue"]["total_revenue"] == ("DECIMAL(18,2)", False)
        for view in tables.VIEWS:
            assert {name: type_ for name, (type_, _) in found[view.name].items()} == {
                column.name: column.type for column in view.columns
            }
        old = f"FROM lake.daily_revenue AT (VERSION => {snapshot}) ORDER BY ALL"
        assert connection.execute(old).fetchall() == before
    assert [row[2] for row in read(lake)] == [
        *(row[2] for row in before),
        Decimal("10000000000.00"),
    ]


def test_a_view_is_made_again_when_its_description_has_changed(lake, monkeypatch):
    with lake.connect():
        pass
    view = replace(tables.REVENUE_NOW, description="Otherwise.", query=tables.REVENUE_NOW.query[:])
    only_batch = view.query.split(" UNION ALL ")[0]
    monkeypatch.setattr(tables, "VIEWS", (replace(view, query=only_batch), *tables.VIEWS[1:]))
    for _ in range(2):
        with lake.connect() as connection:
            found = connection.execute(
                "SELECT sql, comment FROM duckdb_views() WHERE view_name = 'revenue_now'"
            ).fetchall()
            snapshot = connection.execute("SELECT max(snapshot_id) FROM lake.snapshots()")
            snapshots = {snapshot.fetchone()}
    assert [("UNION" in sql, comment) for sql, comment in found] == [(False, "Otherwise.")]
    assert len(snapshots) == 1


def test_a_required_column_cannot_be_null(lake):
    with (
        lake.connect() as connection,
        pytest.raises(duckdb.ConstraintException, match="NOT NULL"),
    ):
        connection.execute("INSERT INTO daily_revenue (region) VALUES ('North')")
