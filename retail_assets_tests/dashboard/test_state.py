"""A lake that cannot be read is said in a sentence, and what was read before stays."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta

import duckdb
import pytest

from retail_assets import tables
from retail_assets.dashboard.reading.state import Condition, failed_state
from retail_assets.dashboard.watch import Watch
from retail_assets.errors import RetailAssetsError
from retail_assets.lake.connection import Lake
from retail_assets_tests.dashboard.rows import MONDAY, NOW, published


class Clock:
    """A time that tests move; the seconds that only grow move with it."""

    def __init__(self):
        self.time = NOW

    def now(self):
        return self.time

    def monotonic(self):
        return self.time.timestamp()

    def go(self, **by):
        self.time += timedelta(**by)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(settings, clock):
    found = Watch(settings, now=clock.now, monotonic=clock.monotonic)
    yield found
    found.close()


def test_no_lake_an_empty_one_and_the_first_order(watch, clock, settings, new_lake):
    view = watch.read()
    assert view.state.condition is Condition.missing
    assert "run `retail-assets backfill`" in view.state.sentence
    assert watch.read().version == view.version
    lake = new_lake(settings.data_dir)
    empty = watch.read()
    assert (empty.state.condition, empty.revenue) == (Condition.empty, None)
    published(lake, (MONDAY, "09:00", "North", "10.00"))
    insert_raw(lake)
    found = watch.read()
    assert found.state.condition is Condition.ready
    assert found.revenue.amount.orders == 1
    assert found.health.verdict.sentence


def insert_raw(lake):
    from retail_assets_tests.dashboard.rows import insert

    insert(lake, tables.RAW_ORDERS, {"order_date": MONDAY, "export_date": MONDAY})


def test_a_lake_that_goes_away_leaves_its_last_numbers_with_a_sentence(watch, lake, settings):
    published(lake, (MONDAY, "09:00", "North", "10.00"))
    insert_raw(lake)
    before = watch.read()
    moved = settings.lake_dir.with_name("moved")
    settings.lake_dir.rename(moved)
    gone = watch.read()
    assert gone.state.condition is Condition.missing
    assert (gone.revenue, gone.read_at) == (before.revenue, before.read_at)
    moved.rename(settings.lake_dir)
    assert watch.read().state.condition is Condition.ready


def test_another_lake_at_the_same_path_is_read_anew(watch, lake, settings, new_lake, tmp_path):
    published(lake, (MONDAY, "09:00", "North", "10.00"))
    insert_raw(lake)
    assert watch.read().revenue.amount.orders == 1
    settings.lake_dir.rename(tmp_path / "old")
    published(new_lake(settings.data_dir), *[(MONDAY, "09:00", "North", "10.00")] * 2)
    insert_raw(lake)
    assert watch.read().revenue.amount.orders == 2


def test_nothing_is_read_again_until_a_commit_or_the_next_minute(watch, lake, clock):
    published(lake, (MONDAY, "09:00", "North", "10.00"))
    insert_raw(lake)
    first = watch.read()
    assert watch.read() is first
    published(lake, (MONDAY - timedelta(days=1), "09:00", "North", "10.00"))
    second = watch.read()
    assert second.version > first.version
    clock.go(minutes=1)
    third = watch.read()
    assert third.revenue.minute == first.revenue.minute + 1
    assert third.revenue.past.usual is first.revenue.past.usual
    clock.go(minutes=5)
    assert watch.read().revenue.past.usual is not first.revenue.past.usual


def test_a_catalog_of_a_newer_format_asks_for_a_newer_release(watch, lake, settings):
    with closing(sqlite3.connect(settings.catalog)) as catalog, catalog:
        catalog.execute("UPDATE ducklake_metadata SET value = '99.0' WHERE key = 'version'")
    view = watch.read()
    assert view.state.condition is Condition.newer
    assert "newer release" in view.state.sentence


def test_a_lake_of_an_earlier_release_asks_for_init(watch, lake):
    insert_raw(lake)
    with lake.connect() as connection:
        connection.execute("DROP TABLE lake.live_revenue")
    view = watch.read()
    assert view.state.condition is Condition.older
    assert "retail-assets init" in view.state.sentence
    Lake.create(lake)
    from retail_assets.lake import schema

    schema._complete.clear()
    Lake.create(lake)
    assert watch.read().state.condition is Condition.ready


@pytest.mark.parametrize(
    ("error", "condition", "says"),
    [
        (duckdb.IOException("IO Error: database is locked"), Condition.locked, "by itself"),
        (RetailAssetsError("The lake is away."), Condition.unavailable, "The lake is away."),
        (OSError(28, "No space left on device"), Condition.unavailable, "disk is full"),
        (duckdb.Error("something new"), Condition.unavailable, "something new"),
    ],
)
def test_each_fault_of_reading_has_a_sentence(error, condition, says):
    state = failed_state(error)
    assert state.condition is condition
    assert says in state.sentence


def test_a_fault_that_nobody_expected_does_not_end_the_board(watch, lake, monkeypatch):
    insert_raw(lake)
    monkeypatch.setattr("retail_assets.dashboard.watch.state_of", lambda _: 1 / 0)
    assert watch.read().state.condition is Condition.unavailable
    monkeypatch.undo()


HOLDER = """
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1], isolation_level=None)
catalog.execute("PRAGMA journal_mode = DELETE")
catalog.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.processes  # the locks of SQLite are between processes
def test_a_catalog_that_another_process_holds_is_locked_and_read_when_it_is_free(
    watch, lake, settings
):
    insert_raw(lake)
    command = [sys.executable, "-c", HOLDER, settings.catalog]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert watch.read().state.condition is Condition.locked
        holder.stdin.close()
        holder.wait()
    assert watch.read().state.condition is Condition.ready
