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

DAYS = [date(2026, 10, 30) + timedelta(days=n) for n in range(4)]
STEPS = 25


def rows_of(connection: duckdb.DuckDBPyConnection, table: str, at: int | None = None) -> list:
    version = "" if at is None else f" AT (VERSION => {at})"
    return connection.execute(f"SELECT * FROM lake.{table}{version} ORDER BY ALL").fetchall()


def write(lake: Lake, connection: duckdb.DuckDBPyConnection, choice: random.Random) -> None:
    """Ingest, restate or delete: so few rows that the catalog keeps them, or more."""
    table, day, action = choice.choice(list(COLUMNS)), choice.choice(DAYS), choice.random()
    day_column, text_column = COLUMNS[table]
    with lake.transaction(connection, "write"):
        if action < 0.6:
            left = "" if action < 0.3 else f" AND hash({text_column}) % {choice.choice([2, 5])} = 0"
            connection.execute(f"DELETE FROM {table} WHERE {day_column} = ?{left}", [day])
        if action < 0.3 or action >= 0.6:
            rows, batch = choice.choice([1, 3, 30, 200]), choice.randrange(10**6)
            values = (
                "?, 'r' || n || '-' || ?, 1, 1, 1"
                if table == "daily_revenue"
                else ("'t', ?, 'r' || n || '-' || ?, now()")
            )
            connection.execute(
                f"INSERT INTO {table} SELECT {values} FROM range({rows}) AS t(n)", [day, batch]
            )


def keep_up(lake: Lake, connection: duckdb.DuckDBPyConnection, choice: random.Random) -> None:
    """Do some upkeep."""
    action = choice.choice(["flush", "rewrite", "merge", "maintain"])
    if action == "flush":
        list(compaction.flush(lake, connection, 1))
    elif action == "rewrite":
        list(compaction.rewrite(lake, connection, min_files=1))
    elif action == "merge":
        list(compaction.merge(lake, connection, compaction.TIERS, min_files=2))
    else:
        maintain(lake, keep_days=30)


@pytest.mark.parametrize("seed", range(4))
def test_every_kept_snapshot_reads_as_it_did_when_it_was_committed(lake, seed):
    choice = random.Random(seed)  # noqa: S311 - a sequence of steps, no secret
    seen: dict[tuple[int, str], list] = {}
    with lake.connect() as connection:
        for _ in range(STEPS):
            (write if choice.random() < 0.6 else keep_up)(lake, connection, choice)
            now = current_snapshot(connection)
            for table in COLUMNS:
                seen.setdefault((now, table), rows_of(connection, table))
    with lake.connect(read_only=True) as connection:
        kept = {
            n for (n,) in connection.execute("SELECT snapshot_id FROM lake.snapshots()").fetchall()
        }
        assert len({at for at, _ in seen} & kept) > STEPS / 2
        for (at, table), rows in seen.items():
            if at in kept:
                assert rows_of(connection, table, at) == rows, f"{table} at {at}"


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
