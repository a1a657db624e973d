"""What rounds on the lake and on keyed state share: how they write to the consumers' own tables."""

import duckdb

from retail_assets.tables import INSTANT, Table

STAMP = "updated_at"
"""The column that says when a row was written: filled here, and not compared."""


class OthersWereFasterError(Exception):
    """Another worker has moved an offset since it was looked at."""


def replace_rows(
    connection: duckdb.DuckDBPyConnection, table: Table, deleted: int, inserted: int
) -> None:
    """Replace rows of a consumer's table, in the caller's transaction.

    Args:
        connection: has them in the temporary tables `gone_…` and `new_…`.
        table: the table.
        deleted: how many rows go.
        inserted: how many come.
    """
    if deleted:
        same = " AND ".join(f"t.{name} IS NOT DISTINCT FROM g.{name}" for name in table.key)
        connection.execute(
            f"DELETE FROM lake.{table.name} AS t USING temp.main.gone_{table.name} AS g"
            f" WHERE {same}{_within(connection, table)}"
        )
    if inserted:
        stamp = f", now() AS {STAMP}" if STAMP in table.types else ""
        connection.execute(
            f"INSERT INTO lake.{table.name} BY NAME SELECT *{stamp} FROM temp.main.new_{table.name}"
        )


def _within(connection: duckdb.DuckDBPyConnection, table: Table) -> str:
    """A condition on the days of the rows that go, so that files of other days are not read."""
    times = [
        column.name
        for column in table.columns
        if column.type in ("DATE", INSTANT) and not column.nullable and column.name != STAMP
    ]
    if not times:
        return ""
    name = table.day or times[0]
    low, high = connection.execute(
        f"SELECT min({name})::VARCHAR, max({name})::VARCHAR FROM temp.main.gone_{table.name}"
    ).fetchone() or (None, None)
    type_ = table.types[name]
    return "" if low is None else f" AND t.{name} BETWEEN {type_} '{low}' AND {type_} '{high}'"
