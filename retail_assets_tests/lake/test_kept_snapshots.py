"""A snapshot that is kept never changes, whatever upkeep does in whatever order."""

import random
from datetime import date, timedelta

import duckdb
import pytest

from retail_assets.lake import compaction
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.maintenance import maintain

COLUMNS = {"daily_revenue": ("order_date", "region"), "failed_days": ("day", "problem")}
"""A table with a partition for each month, and one without: the day and the text of its rows."""

DAYS = [date(2026, 10, 31) + timedelta(days=n) for n in range(10)]
STEPS = 25


def rows_of(connection: duckdb.DuckDBPyConnection, table: str, at: int | None = None) -> list:
    version = "" if at is None else f" AT (VERSION => {at})"
    return connection.execute(f"SELECT * FROM lake.{table}{version} ORDER BY ALL").fetchall()


def write(
    lake: Lake, connection: duckdb.DuckDBPyConnection, table: str, choice: random.Random
) -> None:
    """Ingest, restate or delete: so few rows that the catalog keeps them, or more."""
    day, kind = choice.choice(DAYS), choice.choice(["ingest", "restate", "delete", "delete"])
    day_column, text_column = COLUMNS[table]
    salt, tenths, rows = choice.randrange(10**6), choice.choice([1, 7]), choice.choice([3, 60])
    with lake.transaction(connection, kind):
        if kind == "restate":
            connection.execute(f"DELETE FROM {table} WHERE {day_column} = ?", [day])
        if kind == "delete":
            connection.execute(
                f"DELETE FROM {table} WHERE hash({text_column}, ?) % 10 < ?", [salt, tenths]
            )
        else:
            values = (
                "?, 'r' || n || '-' || ?, 1, 1, 1"
                if table == "daily_revenue"
                else ("'t', ?, 'r' || n || '-' || ?, now()")
            )
            connection.execute(
                f"INSERT INTO {table} SELECT {values} FROM range({rows}) AS t(n)", [day, salt]
            )


def keep_up(lake: Lake, connection: duckdb.DuckDBPyConnection, choice: random.Random) -> None:
    """Do some upkeep."""
    action = choice.choice(["flush", "rewrite", "rewrite", "merge", "maintain"])
    if action == "flush":
        list(compaction.flush(lake, connection, 1))
    elif action == "rewrite":
        list(compaction.rewrite(lake, connection, min_files=1))
    elif action == "merge":
        list(compaction.merge(lake, connection, compaction.TIERS, min_files=2))
    else:
        maintain(lake, keep_days=30)


@pytest.mark.parametrize(
    ("seed", "table"),
    [(2, "daily_revenue"), (3, "failed_days"), (5, "daily_revenue"), (8, "failed_days")],
)
def test_every_kept_snapshot_reads_as_it_did_when_it_was_committed(lake, table, seed):
    choice = random.Random(seed)  # noqa: S311 - a sequence of steps, no secret
    seen: dict[int, list] = {}
    with lake.connect() as connection:
        for _ in range(STEPS):
            if choice.random() < 0.6:
                write(lake, connection, table, choice)
            else:
                keep_up(lake, connection, choice)
            seen.setdefault(current_snapshot(connection), rows_of(connection, table))
        # All that the catalog keeps, as another tool might.
        connection.execute("CALL ducklake_flush_inlined_data('lake')")
        seen.setdefault(current_snapshot(connection), rows_of(connection, table))
    with lake.connect(read_only=True) as connection:
        found = connection.execute("SELECT snapshot_id FROM lake.snapshots()").fetchall()
        kept = seen.keys() & {snapshot for (snapshot,) in found}
        assert len(kept) > 5
        for at in sorted(kept):
            assert rows_of(connection, table, at) == seen[at], f"{table} at {at}"


def test_deletions_that_the_catalog_keeps_are_flushed_before_their_file_is_rewritten(lake):
    """Flushed later they would be dated back, beside the ones that came after them."""
    with lake.connect() as connection:

        def delete(first: int, last: int) -> None:
            with lake.transaction(connection, "delete"):
                connection.execute(
                    "DELETE FROM failed_days WHERE problem::INT BETWEEN ? AND ?", [first, last]
                )

        with lake.transaction(connection, "insert"):
            connection.execute(
                "INSERT INTO failed_days SELECT 't', ?, n, now() FROM range(100) AS t(n)", [DAYS[0]]
            )
        delete(0, 3)
        delete(10, 89)
        at = current_snapshot(connection)
        rows = rows_of(connection, "failed_days")
        assert len(rows) == 16
        list(compaction.rewrite(lake, connection, min_files=1))
        list(compaction.flush(lake, connection, 1))
        connection.execute("CALL ducklake_flush_inlined_data('lake')")
        assert rows_of(connection, "failed_days", at) == rows == rows_of(connection, "failed_days")
