"""The marts have the rows of the lake, whatever happened to the lake, the mart or the publisher."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from retail_assets import tables
from retail_assets.outbound.marts import failures
from retail_assets.outbound.marts.model import MART_TABLES, MartError
from retail_assets.outbound.marts.publish import publish as publish_mart
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish
from retail_assets_tests.outbound.marts.conftest import change, target_of

NAMES = [table.name for table in MART_TABLES]


def rows_in_lake(lake, table):
    with lake.connect(read_only=True) as connection:
        return sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)


def assert_equal(lake, place):
    for name in NAMES:
        assert place.rows(name) == rows_in_lake(lake, name), name


def days_of(published):
    return {name: list(table.days) for name, table in published.tables.items() if table.days}


def reasons(published):
    return {table.reason for table in published.tables.values()}


def test_rows_equal_those_of_the_lake_after_each_change_and_only_changed_days_are_written(
    lake, place
):
    target = target_of(lake, place)
    first = publish_mart(lake, target)
    assert_equal(lake, place)
    assert days_of(first) == {
        "daily_revenue": [FIRST, SECOND],
        "daily_revenue_by_category": [FIRST],
        "revenue_now": [FIRST, SECOND],
    }
    assert days_of(publish_mart(lake, target)) == {}
    publish(lake, [(THIRD, "North", "9.99")], [THIRD])
    publish(lake, [(FIRST, "North", "1.00"), (FIRST, "South", "2.50")], [FIRST])
    second = publish_mart(lake, target)
    # The first day was published again, and has the same rows.
    assert days_of(second) == {"daily_revenue": [THIRD], "revenue_now": [THIRD]}
    assert reasons(second) == {None}
    publish(lake, [(SECOND, "North", "4.00")], [FIRST, SECOND])
    assert days_of(publish_mart(lake, target)) == {
        "daily_revenue": [FIRST, SECOND],
        "revenue_now": [FIRST, SECOND],
    }
    assert_equal(lake, place)
    change(lake, *(f"DELETE FROM {name}" for name in NAMES[:2]))
    publish_mart(lake, target)
    assert [place.rows(name) for name in NAMES] == [[], [], []]
    assert days_of(publish_mart(lake, target)) == {}


def test_revenue_now_follows_the_stream_and_the_ledger_of_days(lake, file_place):
    target = target_of(lake, file_place)
    publish_mart(lake, target)
    change(lake, f"INSERT INTO live_revenue VALUES ('{FIRST}', 'North', 7.00, 1, 7.00)")
    assert days_of(publish_mart(lake, target)) == {"revenue_now": [FIRST]}
    assert [row[-1] for row in file_place.rows("revenue_now") if row[0] == FIRST] == ["stream"]
    change(
        lake,
        "INSERT INTO published_days SELECT 'raw_orders', day, version, row_count, published_at"
        f" FROM published_days WHERE table_name = 'daily_revenue' AND day = '{FIRST}'",
    )
    assert days_of(publish_mart(lake, target)) == {"revenue_now": [FIRST]}
    assert_equal(lake, file_place)
    assert {row[-1] for row in file_place.rows("revenue_now")} == {"batch"}


def test_the_watermark_moves_though_only_other_tables_change(lake, file_place, monkeypatch):
    target = target_of(lake, file_place)
    publish_mart(lake, target)
    before = target.watermarks()
    change(lake, f"INSERT INTO failed_days VALUES ('t', '{FIRST}', 'x', now())")
    publish_mart(lake, target)
    assert target.watermarks() == before
    monkeypatch.setattr("retail_assets.outbound.marts.publish.PERSIST_AFTER", 1)
    publish_mart(lake, target)
    assert {mark.snapshot_id for mark in target.watermarks().values()} == {
        next(iter(before.values())).snapshot_id + 1
    }


def test_where_the_history_is_gone_all_days_are_compared_and_those_that_differ_written(lake, place):
    target = target_of(lake, place)
    publish_mart(lake, target)
    publish(lake, [(SECOND, "North", "4.00")], [SECOND])
    with lake.connect() as connection:
        connection.execute("CALL ducklake_expire_snapshots('lake', older_than => now())")
    published = publish_mart(lake, target)
    assert days_of(published) == {"daily_revenue": [SECOND], "revenue_now": [SECOND]}
    assert "the lake no longer has the changes since it was published" in reasons(published)
    assert_equal(lake, place)


def test_after_the_lake_was_restored_from_a_backup_the_mart_has_its_rows(
    lake, file_place, tmp_path
):
    target = target_of(lake, file_place)
    data = Path(lake.catalog).parent
    shutil.copytree(data, tmp_path / "backup")
    publish(lake, [(THIRD, "lost", "9.00")], [THIRD])
    publish_mart(lake, target)
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    behind = publish_mart(lake, target)
    assert days_of(behind) == {"daily_revenue": [THIRD], "revenue_now": [THIRD]}
    assert_equal(lake, file_place)
    # The same once more, and this time as many snapshots are made as were lost.
    publish(lake, [(THIRD, "lost", "9.00")], [THIRD])
    publish_mart(lake, target)
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    publish(lake, [(SECOND, "new", "5.00")], [SECOND])
    published = publish_mart(lake, target)
    # The rows by category are of a snapshot that is in the backup.
    lost = "its rows are of a snapshot that the lake has lost: is that a backup?"
    assert reasons(published) == {lost, None}
    assert_equal(lake, file_place)


def test_another_lake_replaces_all_rows_and_this_is_said_loudly(
    lake, file_place, tmp_path, new_lake, caplog
):
    publish_mart(lake, target_of(lake, file_place))
    other = new_lake(tmp_path / "other")
    publish(other, [(THIRD, "North", "1.00")], [THIRD])
    # Both are copies of one model, which have the same id.
    published = publish_as(other, "another id", target_of(other, file_place))
    assert reasons(published) == {"its rows are those of another lake"}
    assert "its rows are those of another lake. All days are compared." in caplog.text
    assert_equal(other, file_place)


def publish_as(lake, lake_id, target):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retail_assets.lake.history.lake_id", lambda _: lake_id)
        return publish_mart(lake, target)


def test_rows_that_somebody_changed_are_repaired_when_all_days_are_compared(lake, database):
    target = target_of(lake, database)
    publish_mart(lake, target)
    database.execute("UPDATE daily_revenue SET total_revenue = 0 WHERE region = 'South'")
    database.execute("DELETE FROM daily_revenue_by_category")
    database.execute("INSERT INTO revenue_now VALUES ('1999-01-01', 'x', 1, 1, 1, 'batch')")
    published = publish_mart(lake, target, everything=True)
    assert [len(days) for days in days_of(published).values()] == [1, 1, 1]
    assert_equal(lake, database)


def test_a_table_or_column_that_somebody_dropped_is_made_and_filled(lake, database):
    target = target_of(lake, database)
    publish_mart(lake, target)
    database.execute("DROP TABLE daily_revenue")
    database.execute("ALTER TABLE revenue_now DROP COLUMN avg_order_value")
    published = publish_mart(lake, target)
    assert reasons(published) == {"there was no such table", "it lacked avg_order_value", None}
    assert database.rows("daily_revenue") == rows_in_lake(lake, "daily_revenue")
    columns = ", ".join(tables.REVENUE_NOW.columns[n].name for n in range(6))
    found = database.execute(f"SELECT {columns} FROM revenue_now")
    assert sorted(found, key=repr) == rows_in_lake(lake, "revenue_now")
    assert days_of(publish_mart(lake, target)) == {}


def test_a_table_that_is_not_the_platforms_is_refused_by_name_and_left_alone(lake, database):
    target = target_of(lake, database)
    database.execute("CREATE TABLE daily_revenue (order_date date, note varchar(20))")
    with pytest.raises(MartError, match=r"The table daily_revenue at .* note (var|character)"):
        publish_mart(lake, target)
    assert database.rows("daily_revenue") == []
    database.execute("DROP TABLE daily_revenue")
    publish_mart(lake, target)
    database.execute("DELETE FROM retail_assets_watermark")
    with pytest.raises(MartError, match="has rows, but no entry in retail_assets_watermark"):
        publish_mart(lake, target)
    publish_mart(lake, target, everything=True)
    assert_equal(lake, database)
    assert days_of(publish_mart(lake, target)) == {}


def test_a_database_that_was_restored_to_an_older_state_catches_up(lake, database):
    target = target_of(lake, database)
    publish_mart(lake, target)
    names = [*NAMES, "retail_assets_watermark"]
    for name in names:
        database.execute(f"CREATE TABLE backup_{name} AS SELECT * FROM {name}")
    publish(lake, [(SECOND, "North", "4.00")], [SECOND])
    publish_mart(lake, target)
    for name in names:
        database.execute(f"DELETE FROM {name}")
        database.execute(f"INSERT INTO {name} SELECT * FROM backup_{name}")
    published = publish_mart(lake, target)
    assert days_of(published) == {"daily_revenue": [SECOND], "revenue_now": [SECOND]}
    assert reasons(published) == {None}
    assert_equal(lake, database)


def test_readers_see_the_rows_of_before_until_all_tables_and_the_watermark_are_committed(
    lake, database
):
    target = target_of(lake, database)
    publish_mart(lake, target)
    before = [database.rows(name) for name in NAMES]
    marks = target.watermarks()
    publish(lake, [(SECOND, "North", "4.00")], [SECOND])
    seen = []

    class Watching:
        name, kind, shown = target.name, target.kind, target.shown

        @contextmanager
        def session(self):
            with target.session() as session:
                yield session
                seen.append(([database.rows(name) for name in NAMES], target.watermarks()))

    publish_mart(lake, Watching())
    assert seen == [(before, marks)]
    assert_equal(lake, database)


def test_two_publishers_at_once_do_the_work_of_one(lake, place):
    targets = [target_of(lake, place) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda target: publish_mart(lake, target), targets))
    assert sorted(published.days for published in both) == [0, 5]
    assert_equal(lake, place)


def test_a_failure_is_in_the_ledger_until_the_mart_is_published_and_changes_nothing(lake, database):
    target = target_of(lake, database)
    publish_mart(lake, target)
    database.execute("ALTER TABLE daily_revenue RENAME TO mine")
    database.execute("CREATE VIEW daily_revenue AS SELECT 1 AS a")
    publish(lake, [(SECOND, "North", "4.00")], [SECOND])
    before = database.rows("revenue_now")
    with pytest.raises(MartError, match=r"daily_revenue at .* is no table"):
        publish_mart(lake, target)
    assert database.rows("revenue_now") == before
    with lake.connect(read_only=True) as connection:
        [(name, problem)] = failures.problems(connection).items()
    assert name == "mart_tables"
    assert "is no table" in problem
    assert "secret" not in problem
    database.execute("DROP VIEW daily_revenue")
    publish_mart(lake, target)
    with lake.connect(read_only=True) as connection:
        assert failures.problems(connection) == {}
    assert_equal(lake, database)


def test_a_row_that_does_not_fit_keeps_its_day_as_it_was_by_name_and_the_others_go_on(
    lake, database
):
    target = target_of(lake, database)
    publish_mart(lake, target)
    publish(lake, [(FIRST, "x" * 256, "1.00"), (FIRST, "a", "1.00")], [FIRST])
    publish(lake, [(SECOND, "N\0rth", "1.00"), (THIRD, "North", "2.00")], [SECOND, THIRD])
    published = publish_mart(lake, target)
    assert days_of(published)["daily_revenue"] == [THIRD]
    assert published.problem == (
        f"4 days were left out, first of all daily_revenue {FIRST}: a region has more than 255"
        " characters"
    )
    # They stay a problem while nothing changes.
    assert publish_mart(lake, target).problem == published.problem
    kept = [row[:2] for row in database.rows("daily_revenue")]
    assert (FIRST, "South") in kept
    assert (SECOND, "north") in kept
    with lake.connect(read_only=True) as connection:
        assert "4 days were left out" in failures.problems(connection)["mart_tables"]
    publish(lake, [(FIRST, "x" * 255, "1.00")], [FIRST])
    publish(lake, [(SECOND, "North", "1.00")], [SECOND])
    assert publish_mart(lake, target).problem is None
    assert_equal(lake, database)
