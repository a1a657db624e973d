"""Upkeep: fewer files and less history, and nothing that a reader needs is taken away."""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from retail_assets.errors import RetailAssetsError
from retail_assets.lake import maintenance
from retail_assets.lake.connection import Lake
from retail_assets.lake.maintenance import Maintained, maintain
from retail_assets_tests.lake import work
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish, read, rows_of
from retail_assets_tests.processes import finish, start

NEXT_MONTH = date(2026, 11, 5)
REGIONS = [f"r{n:02}" for n in range(30)]
"""More rows than DuckLake keeps in its catalog instead of in files."""


def publish_day(lake: Lake, day: date, value: str) -> int | None:
    return publish(lake, [(day, region, value) for region in REGIONS], [day]).snapshot


def day_rows(day: date, value: str) -> list[tuple[date, str, Decimal]]:
    return [(day, region, Decimal(value)) for region in REGIONS]


def files(lake: Lake) -> set[Path]:
    return set(Path(lake.data_path).rglob("*.parquet"))


def grow_old(lake: Lake, age: timedelta) -> None:
    """Let all that has happened in a lake have happened longer ago."""
    with closing(sqlite3.connect(lake.catalog)) as catalog, catalog:
        for table, column in (
            ("ducklake_snapshot", "snapshot_time"),
            ("ducklake_files_scheduled_for_deletion", "schedule_start"),
        ):
            for row, text in catalog.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
                # Local time and the hours of its offset, as DuckLake writes it.
                local = datetime.fromisoformat(text[:19]) - age
                catalog.execute(
                    f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
                    [f"{local}{text[19:]}", row],
                )


@pytest.fixture(scope="module")
def model(tmp_path_factory, new_lake):
    """A lake with three days of one month and one of the next, each published three times."""
    data_dir = tmp_path_factory.mktemp("worked")
    lake = new_lake(data_dir)
    for value in ("1.00", "2.00", "3.00"):
        for day in (FIRST, SECOND, THIRD, NEXT_MONTH):
            publish_day(lake, day, value)
    return data_dir


@pytest.fixture
def worked(model, settings):
    """The same, the test's own."""
    shutil.copytree(model, settings.data_dir, dirs_exist_ok=True)
    return Lake.from_settings(settings)


NOW = [row for day in (FIRST, SECOND, THIRD, NEXT_MONTH) for row in day_rows(day, "3.00")]


def test_a_fresh_lake_is_compacted_and_loses_no_file_that_somebody_may_still_read(worked):
    before = files(worked)
    done = maintain(worked, keep_days=30)
    assert (done.snapshots_expired, done.files_deleted) == (0, 0)
    assert before <= files(worked)
    assert read(worked) == NOW


def test_the_files_of_a_month_become_one_and_the_counts_are_true(worked):
    def in_use():
        with worked.connect(read_only=True) as connection:
            return connection.execute(
                "SELECT count(*) FROM ducklake_list_files('lake', 'daily_revenue')"
            ).fetchone()[0]

    assert in_use() == 4
    done = maintain(worked, keep_days=30)
    assert in_use() == 2
    assert done.files_before == 4
    with worked.connect(read_only=True) as connection:
        listed = connection.execute(
            "SELECT sum(file_count) FROM ducklake_table_info('lake')"
        ).fetchone()
    assert listed == (done.files_after,)
    assert read(worked) == NOW


def test_maintaining_twice_changes_nothing_more(worked):
    first = maintain(worked, keep_days=30)
    again = maintain(worked, keep_days=30)
    assert again == Maintained(0, first.files_after, first.files_after, 0)


def test_every_snapshot_of_the_days_kept_reads_as_before(lake):
    snapshots = {value: publish_day(lake, FIRST, value) for value in ("1.00", "2.00", "3.00")}
    times = {}
    for value in ("4.00", "5.00"):
        publish_day(lake, FIRST, value)
        times[value] = datetime.now(timezone.utc)
    maintain(lake, keep_days=1)
    for value, snapshot in snapshots.items():
        assert read(lake, snapshot) == day_rows(FIRST, value)
    for value, when in times.items():
        assert read(lake, when) == day_rows(FIRST, value)


def test_how_the_lake_was_at_the_start_of_the_days_kept_can_be_read_however_old_that_is(lake):
    old = publish_day(lake, FIRST, "1.00")
    kept = publish_day(lake, FIRST, "2.00")
    grow_old(lake, timedelta(days=100))
    publish_day(lake, FIRST, "3.00")
    with lake.connect(read_only=True) as connection:
        older = connection.execute(
            "SELECT count(*) FROM lake.snapshots() WHERE snapshot_id < ?", [kept]
        ).fetchone()
    done = maintain(lake, keep_days=30)
    assert (done.snapshots_expired,) == older
    ago = datetime.now(timezone.utc) - timedelta(days=29)
    assert read(lake, ago) == day_rows(FIRST, "2.00")
    assert read(lake, kept) == day_rows(FIRST, "2.00")
    assert read(lake) == day_rows(FIRST, "3.00")
    with pytest.raises(RetailAssetsError, match="No snapshot found"):
        read(lake, old)


def test_files_are_deleted_once_nothing_has_needed_them_for_some_minutes(worked):
    maintain(worked, keep_days=0)
    before = files(worked)
    grow_old(worked, timedelta(minutes=5))
    assert maintain(worked, keep_days=0).files_deleted == 0
    assert files(worked) == before
    grow_old(worked, timedelta(days=3))
    done = maintain(worked, keep_days=0)
    assert done.snapshots_expired > 0
    assert done.files_deleted == len(before) - len(files(worked)) > 0
    grow_old(worked, timedelta(minutes=11))
    before = files(worked)
    done = maintain(worked, keep_days=0)
    assert done.files_deleted == len(before) - len(files(worked)) > 0
    assert read(worked) == NOW
    with worked.connect(read_only=True) as connection:
        listed = connection.execute(
            "SELECT data_file FROM ducklake_list_files('lake', 'daily_revenue')"
        ).fetchall()
    assert {Path(path) for (path,) in listed} <= files(worked)


@pytest.mark.processes
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Europe/London"])
def test_files_stay_and_go_by_the_minute_whatever_the_time_zone_of_a_machine(worked, zone):
    """DuckLake writes the machine's local time into an SQLite catalog, and compares it as text."""
    values = str(Path(worked.catalog).parent.parent)
    assert finish([start(work.maintain_in_zone, values, zone)]) == [0]
    before = files(worked)
    grow_old(worked, timedelta(minutes=5))
    assert maintain(worked, keep_days=0).files_deleted == 0
    assert finish([start(work.maintain_in_zone, values, zone)]) == [0]
    assert files(worked) == before
    grow_old(worked, timedelta(minutes=6))
    assert maintain(worked, keep_days=0).files_deleted > 0
    assert read(worked) == NOW


def test_a_reader_that_is_open_meanwhile_goes_on_reading_what_it_read(worked):
    # Where threads read the catalog side by side, each might see a snapshot of its own.
    worked = replace(worked, threads=2)
    with (
        worked.connect(read_only=True) as in_transaction,
        worked.connect(read_only=True) as between,
    ):
        in_transaction.execute("BEGIN")
        assert rows_of(in_transaction) == NOW
        publish_day(worked, FIRST, "4.00")
        maintain(worked, keep_days=0)
        assert rows_of(in_transaction) == NOW
        assert rows_of(between) == day_rows(FIRST, "4.00") + NOW[30:]
        maintain(worked, keep_days=0)
        assert rows_of(in_transaction) == NOW


def leave(lake: Lake, name: str, *, days_old: int = 0) -> Path:
    """Leave a file that the catalog does not know among those of the lake."""
    left = Path(lake.data_path) / "main" / "daily_revenue" / name
    left.write_bytes(next(iter(files(lake))).read_bytes())
    when = datetime.now(timezone.utc).timestamp() - days_old * 86_400
    os.utime(left, (when, when))
    return left


def trash(lake: Lake) -> Path:
    return Path(lake.data_path) / "trash"


def test_files_of_a_writer_that_was_killed_go_to_the_trash_and_are_deleted_in_the_end(worked):
    young, old = leave(worked, "ducklake-young.parquet"), leave(worked, "old.parquet", days_old=3)
    done = maintain(worked, keep_days=30)
    assert (done.files_deleted, done.files_to_trash) == (0, 1)
    assert young.exists()
    assert not old.exists()
    [moved] = trash(worked).rglob("*.parquet")
    day = trash(worked) / f"{datetime.now(timezone.utc):%Y-%m-%d}"
    assert moved == day / "main" / "daily_revenue" / "old.parquet"
    assert maintain(worked, keep_days=30).files_to_trash == 0
    assert moved.exists()
    long_ago = datetime.now(timezone.utc) - timedelta(days=maintenance.TRASH_DAYS + 1)
    day.rename(trash(worked) / f"{long_ago:%Y-%m-%d}")
    (trash(worked) / "2020-13-99").mkdir()
    maintain(worked, keep_days=30)
    assert [path.name for path in trash(worked).iterdir()] == ["2020-13-99"]
    assert read(worked) == NOW


def test_more_unknown_files_than_killed_writers_leave_stay_until_somebody_says_so(
    worked, monkeypatch
):
    monkeypatch.setattr(maintenance, "ORPHANS", 2)
    left = {leave(worked, f"{number}.parquet", days_old=3) for number in range(3)}
    with pytest.raises(RetailAssetsError, match=r"3 files .* are not in the catalog"):
        maintain(worked, keep_days=30)
    assert left <= files(worked)
    assert maintain(worked, keep_days=30, all_orphans=True).files_to_trash == 3
    assert len(list(trash(worked).rglob("*.parquet"))) == 3
    monkeypatch.setattr(maintenance, "ORPHAN_BYTES", 1)
    large = leave(worked, "large.parquet", days_old=3)
    large.write_bytes(bytes(10_000_000))
    os.utime(large, (0, 0))
    with pytest.raises(RetailAssetsError, match=r"1 files .10,000,000 bytes."):
        maintain(worked, keep_days=30)
    assert large.exists()


def test_an_older_catalog_does_not_take_the_files_that_came_after_it(worked, monkeypatch):
    backup = Path(worked.catalog).read_bytes()
    publish_day(worked, FIRST, "4.00")
    newer = files(worked)
    for path in newer:
        # However old the files look: a copy may have lost their times.
        os.utime(path, (0, 0))
    for leftover in Path(worked.catalog).parent.glob("catalog.sqlite-*"):
        leftover.unlink()
    Path(worked.catalog).write_bytes(backup)
    monkeypatch.setattr(maintenance, "GRACE", timedelta(seconds=-5))
    assert maintain(worked, keep_days=30).files_to_trash == 0
    assert newer <= files(worked)
    assert read(worked) == NOW


@pytest.mark.parametrize("spelling", ["{}//lake//files", "file://{}/lake/files"])
def test_files_in_use_are_not_taken_for_orphans_by_another_spelling_of_the_path(
    worked, monkeypatch, spelling
):
    folder = Path(worked.catalog).parent.parent
    oddly = replace(worked, data_path=spelling.format(folder))
    assert read(oddly) == NOW
    monkeypatch.setattr(maintenance, "GRACE", timedelta(seconds=-5))
    with pytest.raises(RetailAssetsError, match="is in use, but the catalog knows it by another"):
        maintain(oddly, keep_days=30)
    assert read(worked) == NOW


@pytest.mark.processes
def test_writers_go_on_while_the_lake_is_maintained(worked):
    data_dir = str(Path(worked.catalog).parent.parent)
    writer = start(work.publish_values, data_dir, FIRST, 8)
    for _ in range(3):
        maintain(worked, keep_days=0)
    assert finish([writer]) == [0]
    maintain(worked, keep_days=0)
    assert read(worked) == day_rows(FIRST, "8.00") + NOW[30:]


def test_there_must_be_a_lake(settings):
    lake = Lake.from_settings(settings)
    with pytest.raises(RetailAssetsError, match="There is no lake"):
        maintain(lake, keep_days=30)
    assert not Path(lake.catalog).exists()


def test_no_lake_is_made_beside_the_files_of_one_whose_catalog_is_gone(worked):
    before = files(worked)
    for path in Path(worked.catalog).parent.glob("catalog.sqlite*"):
        path.unlink()
    for use in (worked.create, lambda: publish_day(worked, FIRST, "4.00"), lambda: read(worked)):
        with pytest.raises(
            RetailAssetsError, match=r"There is no catalog at .*restore the catalog"
        ):
            use()
    with pytest.raises(RetailAssetsError, match=r"There is no catalog at .*restore the catalog"):
        maintain(worked, keep_days=30)
    assert not Path(worked.catalog).exists()
    assert files(worked) == before
    assert worked.create(beside_files=True)
    assert not worked.create()
    maintain(worked, keep_days=30)
    assert files(worked) == before
    assert read(worked) == []
