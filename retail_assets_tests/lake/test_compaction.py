"""Compaction of a lake that is written to all the time: the same rows in fewer files."""

import os
import shutil
import signal
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import duckdb
import pytest

from retail_assets import tables
from retail_assets.consumers import live_revenue
from retail_assets.consumers.framework import consume
from retail_assets.lake import compaction
from retail_assets.lake.compaction import LIMITS, Limits, Tier, reliable_since, steps
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.maintenance import maintain
from retail_assets.outbound.kafka import outbound_topics
from retail_assets_tests.lake.test_maintenance import files, grow_old
from retail_assets_tests.lake.work import lake_in
from retail_assets_tests.processes import finish, start

COMMITS = 24
ROWS = 40
NOTHING: Counter[str] = Counter()
EAGER = Limits(inlined_rows=1, min_files=2)
"""Everything is done as soon as there is anything to do."""
DAY = date(2026, 10, 5)


def compact(lake: Lake, connection, limits: Limits = LIMITS) -> Counter[str]:
    """Do all that is due; returns the count of each action."""
    done: Counter[str] = Counter()
    for step in steps(lake, connection, keep_days=30, limits=limits):
        done[step.action] += step.count
    return done


def commit_events(lake: Lake, connection, position: int, rows: int = ROWS, source="a") -> None:
    """Commit a few rows and a ledger row, as the resident worker does."""
    with lake.transaction(connection, "events"):
        connection.execute(
            "INSERT INTO lake.raw_events BY NAME SELECT ?::DATE AS received_date, ? AS source_name,"
            " 'kafka' AS source, 1 AS version, i AS position, 'payload ' || i AS payload,"
            " 'e' || i AS event_id FROM range(?, ?) AS r (i)",
            [DAY, source, position, position + rows],
        )
        connection.execute("UPDATE lake.changed_days SET version = version + 1")


def write_events(data_dir: str, source: str, commits: int) -> None:
    """Commit events in a process of one's own."""
    lake = lake_in(data_dir)
    with lake.connect() as connection:
        for number in range(commits):
            commit_events(lake, connection, number * ROWS, source=source)


def in_a_process(work, lake: Lake, *arguments) -> None:
    """Do work on the catalog elsewhere: closing it here would take the locks of DuckDB away."""
    assert finish([start(work, lake, *arguments)]) == [0]


def rows_of(connection, at: int | None = None) -> list[tuple]:
    version = "" if at is None else f" AT (VERSION => {at})"
    return connection.execute(
        f"SELECT rowid, * FROM lake.raw_events{version} ORDER BY source_name, position"
    ).fetchall()


def in_use(connection, table: str = "raw_events") -> list[Path]:
    found = connection.execute(f"SELECT data_file FROM ducklake_list_files('lake', '{table}')")
    return [Path(path) for (path,) in found.fetchall()]


def changes(connection, first: int, last: int, table: str = "raw_events") -> list[tuple]:
    return connection.execute(
        f"SELECT * FROM lake.table_changes('{table}', {first}, {last}) ORDER BY ALL"
    ).fetchall()


@pytest.fixture(scope="module")
def model(tmp_path_factory, new_lake):
    """A lake with many small commits."""
    data_dir = tmp_path_factory.mktemp("written")
    lake = new_lake(data_dir)
    with lake.connect() as connection:
        with lake.transaction(connection, "ledger"):
            connection.execute("INSERT INTO changed_days VALUES ('events', ?, 0, now())", [DAY])
        for number in range(COMMITS):
            # Every third so small that DuckLake keeps it in its catalog.
            commit_events(lake, connection, number * ROWS, rows=ROWS if number % 3 else 3)
    return data_dir


@pytest.fixture
def written(model, settings):
    """The same, the test's own."""
    shutil.copytree(model, settings.data_dir, dirs_exist_ok=True)
    return Lake.from_settings(settings)


def test_every_row_every_snapshot_and_every_change_stay_and_the_files_become_few(written):
    with written.connect() as connection:
        last = current_snapshot(connection)
        first = last - COMMITS + 1
        snapshots = range(first, last + 1)
        ranges = [(at, at) for at in snapshots]
        ranges += [(a, b) for a in snapshots[::6] for b in (a + 5, last) if b <= last]
        # In transactions: each statement outside of one would read the catalog first.
        connection.execute("BEGIN")
        before = {at: rows_of(connection, at) for at in snapshots}
        changed = {ab: changes(connection, *ab) for ab in ranges}
        connection.execute("COMMIT")
        assert len(in_use(connection)) == 16

        done = compact(written, connection, EAGER)

        assert (done["merge"], done["flush"]) == (17, 24 + COMMITS + 1)
        assert len(in_use(connection)) == 1
        connection.execute("BEGIN")
        assert rows_of(connection) == before[last]
        assert {at: rows_of(connection, at) for at in snapshots} == before
        assert {ab: changes(connection, *ab) for ab in ranges} == changed
        connection.execute("COMMIT")
        assert changes(connection, last + 1, current_snapshot(connection)) == []
        assert connection.execute("SELECT version FROM changed_days").fetchall() == [(COMMITS,)]
        assert compact(written, connection, EAGER) == NOTHING


def test_files_are_left_alone_until_there_are_many(written):
    with written.connect() as connection:
        assert compact(written, connection, Limits(min_files=17)) == NOTHING
        assert len(in_use(connection)) == 16


def test_more_files_than_are_merged_at_once_are_merged_one_batch_after_the_other(written):
    limits = Limits(min_files=2, tiers=(Tier(below=32_000, target=5_000),))
    with written.connect() as connection:
        done = list(steps(written, connection, limits=limits))
        merges = [step for step in done if step.table == "raw_events"]
        left = len(in_use(connection))
    counts = [step.count for step in merges if step.action == "merge"]
    assert len(counts) > 2
    assert left < 16 / 2


def test_a_row_is_rewritten_a_few_times_only_however_many_come(lake):
    bytes_written = bytes_merged = 0
    sizes: dict[Path, int] = {}
    with lake.connect() as connection:
        for number in range(64):
            commit_events(lake, connection, number * ROWS)
            if number % 16 == 15:
                compact(lake, connection)
            for path in files(lake) - sizes.keys():
                sizes[path] = path.stat().st_size
        live = in_use(connection)
    for size in sizes.values():
        bytes_merged += size
    bytes_written = 64 * min(sizes.values())
    assert len(live) < 2 * LIMITS.min_files
    assert bytes_merged < 3 * bytes_written


def begin(connection):
    connection.execute("BEGIN")
    return rows_of(connection), lambda: connection.execute("COMMIT")


def begin_a_long_result(connection):
    """A query whose rows are fetched later."""
    result = connection.execute("SELECT a.payload FROM raw_events AS a, raw_events AS b")
    result.fetchone()
    return None, result.fetchall


@pytest.mark.processes
@pytest.mark.parametrize("read", [begin, begin_a_long_result])
def test_an_open_reader_keeps_its_files_however_long_they_were_merged_away(written, read):
    # Where threads read the catalog side by side, each might see a snapshot of its own.
    written = replace(written, threads=2)
    with written.connect() as connection, written.connect(read_only=True) as reader:
        now = rows_of(connection)
        before, end = read(reader)
        compact(written, connection, EAGER)
        in_a_process(grow_old, written, timedelta(hours=1))
        kept = files(written)
        assert compact(written, connection, EAGER)["delete"] == 0
        assert files(written) == kept
        if before is not None:
            assert rows_of(reader) == before == now
        end()
        assert rows_of(reader) == now
        assert compact(written, connection, EAGER)["delete"] == 17
        assert len(files(written)) == len(kept) - 17
        assert rows_of(reader) == rows_of(connection) == now


@pytest.mark.processes
def test_after_two_days_files_go_whoever_reads(written):
    with written.connect() as connection, written.connect(read_only=True) as reader:
        begin(reader)
        compact(written, connection, EAGER)
        in_a_process(grow_old, written, timedelta(days=2, hours=1))
        assert compact(written, connection, EAGER)["delete"] == 17


@pytest.mark.processes
def test_files_that_were_just_merged_away_stay(written):
    with written.connect() as connection:
        before = files(written)
        assert compact(written, connection, EAGER)["merge"] > 0
        kept = files(written)
        assert before < kept
        in_a_process(grow_old, written, timedelta(minutes=9))
        assert compact(written, connection, EAGER) == NOTHING
        assert files(written) == kept


def set_times(lake: Lake, ages: dict[int, timedelta]) -> None:
    """Let snapshots be that old."""
    now = datetime.now(timezone.utc)
    with closing(sqlite3.connect(lake.catalog)) as catalog, catalog:
        for snapshot, age in ages.items():
            text = f"{now - age:%Y-%m-%d %H:%M:%S.%f}+00"
            catalog.execute(
                "UPDATE ducklake_snapshot SET snapshot_time = ? WHERE snapshot_id = ?",
                [text, snapshot],
            )


def snapshots(connection) -> list[int]:
    found = connection.execute("SELECT snapshot_id FROM lake.snapshots() ORDER BY 1").fetchall()
    return [snapshot for (snapshot,) in found]


@pytest.mark.processes
def test_a_long_history_is_thinned_to_minutes_and_hours_and_then_forgotten(written):
    limits = Limits(max_snapshots=6, expired_snapshots=4)
    with written.connect() as connection:
        top = current_snapshot(connection)
        now = datetime.now(timezone.utc)
        minute = timedelta(seconds=now.second, microseconds=now.microsecond)
        hour = minute + timedelta(minutes=now.minute)
        second = timedelta(seconds=1)
        days_ago = [timedelta(days=days) + hour for days in (40, 35, 20, 10)]
        ages = [
            days_ago[0],
            days_ago[1],  # the state 30 days ago
            days_ago[2] - 2 * second,
            days_ago[2] - 600 * second,  # the last of its hour
            days_ago[3] - 600 * second,  # the last of its hour
            minute + timedelta(hours=5) - 2 * second,
            minute + timedelta(hours=5) - 9 * second,  # the last of its minute
            minute + timedelta(hours=4) - 9 * second,  # the last of its minute
            *(timedelta(minutes=50 - n) for n in range(9)),  # of the last hour
        ]
        first = top - len(ages) + 1
        in_a_process(
            set_times,
            written,
            {snapshot: timedelta(days=50) for snapshot in range(first)}
            | {first + n: age for n, age in enumerate(ages)},
        )
        kept = [first + n for n in (1, 3, 4, 6, 7, *range(8, 17))]
        before = {at: rows_of(connection, at) for at in kept}
        changed = changes(connection, first + 8, top)

        done = compact(written, connection, limits)

        assert done["expire"] == first + 3
        assert [at for at in snapshots(connection) if at <= top] == kept
        assert {at: rows_of(connection, at) for at in kept} == before
        assert reliable_since(connection) == first + 6
        assert changes(connection, first + 8, top) == changed
        with pytest.raises(duckdb.Error, match="No snapshot found at version"):
            changes(connection, first + 5, top)


@pytest.mark.processes
def test_a_short_history_is_kept_whole(written):
    with written.connect() as connection:
        top = current_snapshot(connection)
        in_a_process(set_times, written, dict.fromkeys(range(top), timedelta(days=29)))
        assert compact(written, connection)["expire"] == 0
        assert reliable_since(connection) == snapshots(connection)[0]


def test_a_ledger_row_that_is_updated_all_the_time_stays_in_few_files(lake):
    limits = Limits(inlined_rows=5, min_files=3)
    rewritten = 0
    with lake.connect() as connection:
        connection.execute("INSERT INTO changed_days VALUES ('events', ?, 0, now())", [DAY])
        for number in range(1, 61):
            with lake.transaction(connection, "count"):
                connection.execute("UPDATE changed_days SET version = version + 1")
            if number % 6 == 0:
                rewritten += compact(lake, connection, limits)["rewrite"]
                assert len(in_use(connection, "changed_days")) < 6
        assert connection.execute("SELECT version FROM changed_days").fetchall() == [(60,)]
    assert rewritten >= 9


VALUES = {
    "VARCHAR": "'x' || i",
    "BIGINT": "i",
    "DOUBLE": "0.5",
    "DATE": f"DATE '{DAY}'",
    tables.MONEY: "10.00",
    tables.INSTANT: "now()",
    "TIMESTAMP": "now()::TIMESTAMP",
}


def write_and_take_back(lake: Lake, connection, table: tables.Table, **values: str) -> None:
    """Leave files of a table most of whose rows are deleted."""
    values = {
        column.name: VALUES[column.type] for column in table.columns if not column.nullable
    } | values
    select = ", ".join(f"{value} AS {name}" for name, value in values.items())
    for number in range(3):
        first = number * ROWS
        with lake.transaction(connection, "write"):
            connection.execute(
                f"INSERT INTO {table.name} BY NAME SELECT {select}"
                f" FROM range({first}, {first} + {ROWS}) AS r (i)"
            )
        with lake.transaction(connection, "retract"):
            name = next(name for name, value in values.items() if value == VALUES["VARCHAR"])
            connection.execute(
                f"DELETE FROM {table.name} WHERE {name} IN"
                f" (SELECT 'x' || i FROM range({first}, {first} + {ROWS - 1}) AS r (i))"
            )


@pytest.mark.parametrize(
    "upkeep", [partial(compact, limits=EAGER), lambda lake, _: maintain(lake, keep_days=30)]
)
def test_a_table_whose_changes_are_followed_is_not_rewritten(lake, upkeep):
    with lake.connect() as connection:
        for name in compaction.FOLLOWED:
            write_and_take_back(lake, connection, tables.BY_NAME[name])
        last = current_snapshot(connection)
        upkeep(lake, connection)
        commit_events(lake, connection, 0)
        for name in compaction.FOLLOWED:
            found = changes(connection, last + 1, current_snapshot(connection), name)
            assert found == [], name


def test_no_table_that_is_published_on_is_ever_rewritten(settings):
    topics = {
        "publish_bootstrap": "localhost:9092",
        "publish_events_topic": "events",
        "publish_alerts_topic": "alerts",
    }
    found = outbound_topics(settings.model_copy(update=topics))
    published = {table.name for each in found for table in each.tables}
    assert published == {"enriched_events", "fraud_alerts", "stock_alerts"}
    assert published <= compaction.FOLLOWED


def test_consumers_of_a_table_that_was_rewritten_find_that_nothing_differs(lake):
    with lake.connect() as connection:
        write_and_take_back(lake, connection, tables.LIVE_ORDERS, status="'completed'")
        assert consume(lake, connection, live_revenue.CONSUMER).inserted["live_revenue"] == 3
        last = current_snapshot(connection)
        assert compact(lake, connection, EAGER)["rewrite"] == 3
        commit_events(lake, connection, 0)
        assert changes(connection, last + 1, current_snapshot(connection), "live_orders")
        again = consume(lake, connection, live_revenue.CONSUMER)
        assert again.keys == (DAY,)
        assert sum(again.inserted.values()) + sum(again.deleted.values()) == 0


def test_between_any_two_steps_others_write_and_so_may_the_connection_itself(written):
    with written.connect() as connection, written.connect() as other:
        before = len(rows_of(connection))
        taken = []
        for step in steps(written, connection, limits=EAGER):
            taken.append(step.action)
            commit_events(written, other, len(taken) * ROWS, source="other")
            commit_events(written, connection, len(taken) * ROWS, source="own")
            if len(taken) == 6:
                break
        found = rows_of(connection)
        assert len(found) == before + 12 * ROWS
        assert len({row[0] for row in found}) == len(found)
        assert {"flush", "merge"} <= set(taken)


class Doomed:
    """A connection whose process gets SIGKILL around a statement: before, during or after it."""

    def __init__(self, connection, text: str, when: str) -> None:
        self._connection, self._text, self._when = connection, text, when

    def execute(self, sql: str, *arguments):
        if self._text not in sql:
            return self._connection.execute(sql, *arguments)
        if self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._when == "during":
            threading.Timer(0.004, os.kill, [os.getpid(), signal.SIGKILL]).start()
        result = self._connection.execute(sql, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        return result


def compact_and_die(data_dir: str, text: str, when: str) -> None:
    """Compact until a statement with that text."""
    limits = replace(
        EAGER,
        max_snapshots=5,
        expired_snapshots=1,
        merged_grace=timedelta(0),
        full_history=timedelta(0),
    )
    lake = lake_in(data_dir)
    with lake.connect() as connection:
        compact(lake, Doomed(connection, text, when), limits)  # type: ignore[arg-type]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("flush_inlined_data", "during"),
        ("flush_inlined_data", "after"),
        ("merge_adjacent_files", "during"),
        ("merge_adjacent_files", "after"),
        ("expire_snapshots", "during"),
        ("SET schedule_start", "after"),
        ("cleanup_old_files", "during"),
        ("cleanup_old_files", "after"),
    ],
)
def test_a_kill_in_the_middle_leaves_the_lake_whole(written, text, when):
    data_dir = str(Path(written.catalog).parent.parent)
    with written.connect() as connection:
        before = rows_of(connection)
    assert finish([start(compact_and_die, data_dir, text, when)]) == [-signal.SIGKILL]
    with written.connect() as connection:
        assert rows_of(connection) == before
        commit_events(written, connection, 0, source="next")
        at_once = replace(EAGER, merged_grace=timedelta(0))
        compact(written, connection, at_once)
        assert len(rows_of(connection)) == len(before) + ROWS
        assert set(in_use(connection)) <= files(written)
        compact(written, connection, at_once)
        assert connection.execute(
            f"SELECT count(*) FROM {compaction.CATALOG}.ducklake_files_scheduled_for_deletion"
        ).fetchone() == (0,)
        assert len(rows_of(connection)) == len(before) + ROWS


@pytest.mark.processes
def test_writers_and_a_compaction_at_once_end_with_every_row_once(written):
    data_dir = str(Path(written.catalog).parent.parent)
    with written.connect(read_only=True) as connection:
        before = len(rows_of(connection))
    writers = [start(write_events, data_dir, source, 25) for source in ("b", "c")]
    with written.connect() as connection, written.connect(read_only=True) as reader:
        seen = before
        while any(writer.is_alive() for writer in writers):
            compact(written, connection, EAGER)
            found = len(rows_of(reader))
            assert found >= seen
            seen = found
        assert finish(writers) == [0, 0]
        compact(written, connection, EAGER)
        found = rows_of(connection)
        assert len(found) == before + 2 * 25 * ROWS
        assert len({(row[3], row[4]) for row in found}) == len(found)
        assert len(in_use(connection)) == 1
        assert connection.execute("SELECT version FROM changed_days").fetchall() == [
            (COMMITS + 50,)
        ]
