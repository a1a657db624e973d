"""Connecting: who may write, what is refused and how, transactions and their lock."""

# ruff: noqa: PT012 - what a transaction does when its body raises is the point

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

import retail_assets
from retail_assets import tables
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.lake import connection as lake_connection
from retail_assets.lake import lock
from retail_assets.lake.connection import Lake, current_snapshot, extension_path
from retail_assets.lake.lock import write_lock
from retail_assets.settings import Settings
from retail_assets_tests.lake import work
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish, read
from retail_assets_tests.processes import finish, start

FAILURE = "INSERT INTO failed_days VALUES ('t', DATE '2026-10-05', ?, now())"


def problems(lake: Lake) -> list[str]:
    with lake.connect(read_only=True) as connection:
        return [row[0] for row in connection.execute("SELECT problem FROM failed_days").fetchall()]


# --- readers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM daily_revenue",
        "UPDATE daily_revenue SET total_revenue = 0",
        "INSERT INTO daily_revenue SELECT * FROM daily_revenue",
        "CREATE TABLE mine (i INTEGER)",
        "DROP TABLE daily_revenue",
    ],
)
def test_a_read_only_connection_refuses_to_write(lake, statement):
    publish(lake, [(FIRST, "North", "10.00")], [FIRST])
    with (
        lake.connect(read_only=True) as connection,
        pytest.raises(duckdb.InvalidInputException, match="read-only"),
    ):
        connection.execute(statement)
    assert read(lake) == [(FIRST, "North", Decimal("10.00"))]


def test_a_reader_does_not_wait_for_a_writer(lake):
    with lake.connect() as writer, lake.transaction(writer, "slow"):
        writer.execute(FAILURE, ["open"])
        assert problems(lake) == []
    assert problems(lake) == ["open"]


def test_a_reader_without_a_lake_is_told_what_to_do_and_leaves_nothing_behind(settings):
    lake = Lake.from_settings(settings)
    with pytest.raises(RetailAssetsError, match=r"There is no lake at .*retail-assets backfill"):
        lake.open(read_only=True)
    assert not Path(lake.catalog).exists()


def test_a_reader_that_comes_while_the_lake_is_made_is_told_that_there_is_none_yet(settings):
    lake = Lake.from_settings(settings)
    catalog = Path(lake.catalog)
    catalog.parent.mkdir(parents=True)
    catalog.touch()
    with pytest.raises(RetailAssetsError, match="There is no lake"):
        lake.open(read_only=True)

    connection = duckdb.connect()
    lake._load_extensions(connection)
    connection.execute(f"ATTACH 'sqlite:{catalog}' AS half; CREATE TABLE half.t (i INTEGER)")
    connection.close()
    with pytest.raises(RetailAssetsError, match="There is no lake"):
        lake.open(read_only=True)

    connection = duckdb.connect()
    lake._load_extensions(connection)
    connection.execute(f"ATTACH 'ducklake:sqlite:{catalog}' AS l (DATA_PATH '{lake.data_path}')")
    connection.close()
    with pytest.raises(RetailAssetsError, match="There is no lake"):
        lake.open(read_only=True)

    with lake.connect():
        pass
    assert read(lake) == []


def test_a_catalog_that_is_none_is_named(settings):
    lake = Lake.from_settings(settings)
    Path(lake.catalog).parent.mkdir(parents=True)
    Path(lake.catalog).write_text("no database at all\n" * 100)
    for read_only in (True, False):
        with pytest.raises(RetailAssetsError, match=r"catalog\.sqlite cannot be opened"):
            lake.open(read_only=read_only)


def test_a_connection_is_closed_when_its_body_raises(lake):
    with pytest.raises(KeyError), lake.connect() as connection:
        raise KeyError
    with pytest.raises(duckdb.ConnectionException):
        connection.execute("SELECT 1")


def test_retail_assets_connect_reads_the_lake_of_the_environment_and_refuses_to_write(lake):
    first = publish(lake, [(FIRST, "North", "10.00")], [FIRST]).snapshot
    publish(lake, [(FIRST, "North", "11.00")], [FIRST])
    with retail_assets.connect() as connection:
        assert connection.sql("SELECT total_revenue FROM daily_revenue").fetchall() == [
            (Decimal("11.00"),)
        ]
        with pytest.raises(RetailAssetsError, match="read-only"):
            connection.execute("DELETE FROM daily_revenue")
    with retail_assets.connect(at=first) as connection:
        assert connection.sql("SELECT total_revenue FROM daily_revenue").fetchall() == [
            (Decimal("10.00"),)
        ]


# --- time travel --------------------------------------------------------------------------------


def test_at_a_snapshot_or_a_time_the_numbers_are_those_published_then(lake):
    snapshots, times = [], []
    for value in ("10.00", "20.00", "30.00"):
        snapshots.append(publish(lake, [(FIRST, "North", value)], [FIRST]).snapshot)
        times.append(datetime.now(timezone.utc))
    expected = [[(FIRST, "North", Decimal(value))] for value in ("10.00", "20.00", "30.00")]
    assert [read(lake, snapshot) for snapshot in snapshots] == expected
    assert [read(lake, when) for when in times] == expected
    tokyo = timezone(timedelta(hours=9))
    assert [read(lake, when.astimezone(tokyo)) for when in times] == expected


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (99_999, "No snapshot found at version 99999 in the lake at"),
        (datetime(2020, 1, 1, tzinfo=timezone.utc), "No snapshot found at timestamp 2020-01-01"),
    ],
)
def test_a_snapshot_that_is_not_there_is_an_error_that_says_where_to_look(lake, at, says):
    with pytest.raises(RetailAssetsError, match=says) as caught:
        lake.open(at=at)
    assert "lake.snapshots()" in str(caught.value)


@pytest.mark.parametrize(
    ("at", "says"),
    [(-1, "snapshot ids start at 0"), (datetime(2026, 10, 5), "has no time zone")],  # noqa: DTZ001
)
def test_a_snapshot_that_makes_no_sense_is_wrong_usage(lake, at, says):
    with pytest.raises(UsageError, match=says):
        lake.open(at=at)


# --- where the lake lies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["with space", "it's", 'say "hi"', "größe-日本", "br[a]ck*et", "a;b"]
)
def test_any_data_folder_can_hold_the_lake(tmp_path, name):
    lake = Lake.from_settings(Settings(data_dir=tmp_path / name))
    publish(lake, [(FIRST, f"r{n}", "1.00") for n in range(30)], [FIRST])
    assert len(read(lake)) == 30
    assert list((tmp_path / name / "lake" / "files").rglob("*.parquet"))


def test_a_data_folder_can_be_moved(lake, settings, tmp_path):
    rows = [(FIRST, f"r{n}", "1.00") for n in range(30)]
    publish(lake, rows, [FIRST])
    moved = settings.lake_dir.rename(tmp_path / "moved")
    elsewhere = Lake(str(moved / "catalog.sqlite"), str(moved / "files"), str(moved / "spill"))
    assert len(read(elsewhere)) == 30
    publish(elsewhere, [(SECOND, f"r{n}", "1.00") for n in range(30)], [SECOND])
    assert len(read(elsewhere)) == 60
    assert not settings.lake_dir.exists()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_folder_that_cannot_be_used_is_wrong_usage_and_tells_no_password(tmp_path, read_only):
    (tmp_path / "file").touch()
    spill = str(tmp_path / "file" / "spill")
    for catalog in (
        str(tmp_path / "file" / "catalog.sqlite"),
        "postgres:postgresql://me:s3cret@h/x",
    ):
        with pytest.raises(UsageError, match=r"file.* cannot be used: .*RETAIL_DATA_DIR") as caught:
            Lake(catalog, str(tmp_path / "files"), spill).open(read_only=read_only)
        assert "cret" not in str(caught.value)


def test_a_catalog_that_may_not_be_looked_at_is_wrong_usage(tmp_path):
    lake = Lake("/" + "x" * 300 + "/catalog.sqlite", str(tmp_path), str(tmp_path))
    with pytest.raises(UsageError, match="cannot be used: File name too long"):
        lake.exists()


def test_relative_settings_do_not_depend_on_where_a_process_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=Path("data"), lake_catalog="c.sqlite", lake_data="files//here")
    lake = Lake.from_settings(settings)
    assert (lake.catalog, lake.data_path) == (
        str(tmp_path / "c.sqlite"),
        str(tmp_path / "files" / "here"),
    )
    assert Settings(lake_data="s3://bucket/lake").data_path == "s3://bucket/lake"
    assert Settings(lake_catalog="postgres:dbname=x").catalog == "postgres:dbname=x"


@pytest.mark.processes
def test_extensions_come_from_wheels_and_nothing_is_written_to_the_home_directory(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "from retail_assets.lake.connection import Lake\n"
        "from retail_assets.settings import load_settings\n"
        "with Lake.from_settings(load_settings()).connect() as connection:\n"
        '    print(*connection.execute("SELECT extension_name FROM duckdb_extensions() WHERE loaded'
        ' AND NOT installed ORDER BY 1").fetchall())\n'
        '    print(*connection.execute("SELECT name, value FROM duckdb_settings() WHERE name IN"\n'
        "        \" ('autoinstall_known_extensions', 'autoload_known_extensions')\").fetchall())\n"
    )
    environment = {**os.environ, "HOME": str(home), "RETAIL_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    loaded, settings = done.stdout.splitlines()
    assert loaded == "('ducklake',) ('sqlite_scanner',)"
    assert settings == (
        "('autoinstall_known_extensions', 'false') ('autoload_known_extensions', 'false')"
    )
    assert list(home.iterdir()) == []
    site_packages = Path(duckdb.__file__).parents[1]
    for name in ("ducklake", "sqlite_scanner", "postgres_scanner", "httpfs"):
        assert extension_path(name).is_relative_to(site_packages)
        assert extension_path(name).is_file()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_connection_has_the_threads_of_the_settings_or_one_for_each_core(lake, read_only):
    cores = duckdb.execute("SELECT current_setting('threads')").fetchone()
    for threads, expected in ((None, cores), (1, (1,)), (3, (3,))):
        with replace(lake, threads=threads).connect(read_only=read_only) as connection:
            found = connection.execute("SELECT current_setting('threads')").fetchone()
        assert found == expected


def test_a_missing_extension_is_named_with_the_wheel_to_install():
    with pytest.raises(RetailAssetsError, match=r"install duckdb-extension-no-such==\d"):
        extension_path("no_such")


@pytest.mark.processes
def test_processes_that_open_a_new_lake_at_once_make_it_once(settings):
    processes = [start(work.open_and_write, str(settings.data_dir), name) for name in "abcd"]
    assert finish(processes) == [0, 0, 0, 0]
    lake = Lake.from_settings(settings)
    assert sorted(problems(lake)) == ["a", "b", "c", "d"]
    with lake.connect(read_only=True) as connection:
        found = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' ORDER BY ALL"
        ).fetchall()
        made = connection.execute(
            "SELECT count(*) FROM lake.snapshots() WHERE commit_message = 'create tables'"
        ).fetchone()
    assert [name for (name,) in found] == sorted(tables.BY_NAME)
    assert made == (1,)


# --- transactions -------------------------------------------------------------------------------


def lock_is_free(lake: Lake) -> bool:
    """Whether another thread gets the lock at once."""
    free = threading.Event()

    def take() -> None:
        with write_lock(lake.catalog):
            free.set()

    threading.Thread(target=take, daemon=True).start()
    return free.wait(10)


@pytest.mark.processes
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_is_raised_in_a_transaction_nothing_of_it_stays(lake, error):
    with lake.connect() as connection:
        with pytest.raises(error), lake.transaction(connection, "broken"):
            connection.execute(FAILURE, ["half"])
            raise error
        assert lock_is_free(lake)
        assert problems(lake) == []
        with lake.transaction(connection, "whole"):
            connection.execute(FAILURE, ["whole"])
    assert problems(lake) == ["whole"]


@pytest.mark.processes
def test_a_statement_that_fails_is_what_the_caller_sees(lake):
    with lake.connect() as connection:
        with (
            pytest.raises(duckdb.ConstraintException, match="NOT NULL"),
            lake.transaction(connection, "broken"),
        ):
            connection.execute(FAILURE, ["half"])
            connection.execute(FAILURE, [None])
        assert lock_is_free(lake)
        with lake.transaction(connection, "whole"):
            connection.execute(FAILURE, ["whole"])
    assert problems(lake) == ["whole"]


def test_who_waits_for_the_lock_is_told_who_holds_it(lake, monkeypatch, caplog):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0.1)
    holder = rf"held by process {os.getpid()} on {socket.gethostname()} since 2\S+ \S+ to count"
    with ThreadPoolExecutor() as pool, lake.connect() as connection:
        with lake.transaction(connection, "count"):
            waits = pool.submit(open_lock, lake)
            with pytest.raises(RetailAssetsError, match=rf"not free for 0.1 s, {holder}: look for"):
                waits.result()
        assert re.search(rf"Waiting for the write lock of the lake, {holder}\.", caplog.text)
        caplog.clear()
        pool.submit(open_lock, lake).result()
        Path(lake.catalog + ".lock.holder").write_text("half of")
        with write_lock(lake.catalog):
            Path(lake.catalog + ".lock.holder").write_text("half of")
            with pytest.raises(RetailAssetsError, match="that has not said which"):
                pool.submit(open_lock, lake).result()


def open_lock(lake: Lake) -> None:
    with write_lock(lake.catalog):
        pass


def test_what_the_platform_writes_is_its_owner_s_alone(settings):
    os.umask(0o022)
    lake = Lake.from_settings(settings)
    with lake.connect() as connection, lake.transaction(connection, "many"):
        connection.execute(
            "INSERT INTO changed_days SELECT 't' || n, ?, 1, now() FROM range(100) AS t(n)",
            [date(2026, 10, 5)],
        )
    made = [settings.lake_dir, *settings.lake_dir.rglob("*")]
    assert any(path.suffix == ".parquet" for path in made)
    modes = {path: path.stat().st_mode & 0o777 for path in made}
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in made}


def test_a_group_may_be_let_read_and_who_only_reads_changes_nothing_of_its_process(settings):
    os.umask(0o022)
    lake = Lake.from_settings(settings.model_copy(update={"umask": "027"}))
    assert lake.create()
    assert settings.lake_dir.stat().st_mode & 0o777 == 0o750
    assert Path(lake.catalog).stat().st_mode & 0o777 == 0o640
    os.umask(0o022)
    shutil.rmtree(lake.spill_dir)
    with lake.connect(read_only=True):
        assert os.umask(0o022) == 0o022
    assert Path(lake.spill_dir).stat().st_mode & 0o777 == 0o750


@pytest.mark.processes
def test_a_commit_that_fails_leaves_no_transaction_and_no_lock(lake, monkeypatch):
    def fail(connection):
        message = "the disk is full"
        raise OSError(message)

    with lake.connect() as connection:
        with monkeypatch.context() as patch:
            patch.setattr(lake_connection, "commit", fail)
            with (
                pytest.raises(OSError, match="disk is full"),
                lake.transaction(connection, "broken"),
            ):
                connection.execute(FAILURE, ["half"])
        assert lock_is_free(lake)
        assert problems(lake) == []
        with lake.transaction(connection, "whole"):
            connection.execute(FAILURE, ["whole"])
    assert problems(lake) == ["whole"]


@pytest.mark.processes
def test_a_commit_that_conflicts_says_so_and_not_that_there_is_nothing_to_roll_back(lake):
    publish(lake, [(FIRST, f"r{n}", "1.00") for n in range(30)], [FIRST])
    with lake.connect() as connection, lake.connect() as somebody:
        with (
            pytest.raises(duckdb.TransactionException, match="Failed to commit"),
            lake.transaction(connection, "broken"),
        ):
            connection.execute("DELETE FROM daily_revenue")
            # Without the lock, as a user's own SQL may be.
            somebody.execute("DELETE FROM daily_revenue WHERE region = 'r1'")
        assert lock_is_free(lake)
        with lake.transaction(connection, "whole"):
            connection.execute(FAILURE, ["whole"])
    assert len(read(lake)) == 29
    assert problems(lake) == ["whole"]


@pytest.mark.processes
@pytest.mark.parametrize("same_connection", [True, False])
def test_a_nested_transaction_is_refused_at_once_and_spoils_nothing(lake, same_connection):
    with lake.connect() as connection, lake.connect() as another:
        inner = connection if same_connection else another
        with lake.transaction(connection, "outer"):
            connection.execute(FAILURE, ["outer"])
            with pytest.raises(RuntimeError, match="cannot be nested"):  # noqa: SIM117
                with lake.transaction(inner, "inner"):
                    pass
        assert lock_is_free(lake)
    assert problems(lake) == ["outer"]


def test_each_commit_says_what_it_was_for(lake):
    with lake.connect() as connection:
        with lake.transaction(connection, "try it"):
            connection.execute(FAILURE, ["x"])
        found = connection.execute(
            "SELECT author, commit_message FROM lake.snapshots() WHERE snapshot_id = ?",
            [current_snapshot(connection)],
        ).fetchall()
    assert found == [("retail_assets", "try it")]


@pytest.mark.processes
def test_transactions_of_several_processes_wait_for_each_other_and_readers_for_nobody(lake):
    with lake.connect() as connection, lake.transaction(connection, "start"):
        connection.execute(
            "INSERT INTO changed_days VALUES ('orders', DATE '2026-10-05', 0, now())"
        )
    data_dir = str(Path(lake.catalog).parent.parent)
    # Each opens and closes its connection, so that now and then the last writer closes the
    # catalog and SQLite removes its write-ahead log under the readers' eyes.
    writers = [start(work.count_up, data_dir, 6) for _ in range(2)]
    readers = [start(work.read_while_counting, data_dir, 12) for _ in range(2)]
    assert finish([*writers, *readers]) == [0, 0, 0, 0]
    with lake.connect(read_only=True) as connection:
        found = connection.execute("SELECT version FROM changed_days").fetchall()
    assert found == [(12,)]


@pytest.mark.parametrize(
    "connection_string",
    [
        "postgres:host=127.0.0.1 port=1 user=me password=s3cret dbname=x",
        "postgres:host=127.0.0.1 port=1 user=me password='s3 cret' dbname=x",
        "postgres:postgresql://me:s3cret@127.0.0.1:1/x",
    ],
)
def test_an_error_does_not_tell_the_password(tmp_path, connection_string):
    lake = Lake(connection_string, str(tmp_path / "files"), str(tmp_path / "spill"))
    with pytest.raises(RetailAssetsError, match="cannot be opened") as caught:
        lake.open(read_only=True)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_extension_that_was_tampered_with_is_refused(tmp_path):
    copy = tmp_path / "sqlite_scanner.duckdb_extension"
    binary = bytearray(extension_path("sqlite_scanner").read_bytes())
    binary[len(binary) // 2] ^= 1
    copy.write_bytes(binary)
    with pytest.raises(RetailAssetsError, match=r"cannot be loaded: .*signature"):
        lake_connection._check_signature(copy, 0)


def test_a_connection_loads_no_extension_of_a_users_choice(lake):
    with lake.connect(read_only=True) as connection:
        row = connection.execute("SELECT current_setting('allow_unsigned_extensions')").fetchone()
    assert row == (False,)
