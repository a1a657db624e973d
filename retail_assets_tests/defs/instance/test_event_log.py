"""The pooled event log must differ from Dagster's stock one in speed alone."""

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import dagster as dg
import pytest
import sqlalchemy as db
from dagster import DagsterEventType, EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.utils import make_new_run_id
from dagster_shared.record import replace

from retail_assets.defs.instance import event_log
from retail_assets.defs.instance.event_log import MAX_OPEN_SHARDS, PooledSqliteEventLogStorage
from retail_assets_tests import processes
from retail_assets_tests.defs.instance.event_logs import (
    DAYS,
    answer_what_is_seen,
    answers,
    backfill,
    days_in,
    finish,
    fork_and_write,
    log_of,
    materialization,
    open_files,
    planned,
    tables,
    wipe,
    write_config,
    write_days,
)

# Deprecated, but what the UI of this version still asks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Function `EventMethods.get_event_records`"),
    pytest.mark.filterwarnings("ignore:Use fetch_.* instead of get_event_records"),
]
HANG_SECONDS = 60  # never reached unless something is broken: a red test instead of a stuck one

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="counts open files through /proc, which is Linux"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def open_instance(tmp_path: Path) -> Iterator[Callable[..., dg.DagsterInstance]]:
    """Open an instance as `dagster.yaml` would, on a folder of its own name."""
    opened = []

    def open_(name: str, *, stock: bool = False) -> dg.DagsterInstance:
        instance = dg.DagsterInstance.from_config(str(write_config(tmp_path / name, stock=stock)))
        opened.append(instance)
        expected = SqliteEventLogStorage if stock else PooledSqliteEventLogStorage
        assert type(log_of(instance)) is expected
        return instance

    yield open_
    for instance in opened:
        instance.dispose()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[PooledSqliteEventLogStorage]:
    storage = PooledSqliteEventLogStorage(str(tmp_path / "shards"))
    yield storage
    storage.dispose()


# --- equal to the stock class -------------------------------------------------------------------


Told: TypeAlias = tuple[object, ...]


def told(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Told:
    """What an instance has of a backfill, without what differs from run to run."""
    log = log_of(instance)
    rows = [
        (e.dagster_event_type, e.step_key, e.dagster_event and e.dagster_event.partition)
        for e in (r.event_log_entry for r in log.get_records_for_run(run.run_id).records)
    ]
    attempts = log.get_latest_asset_partition_materialization_attempts_without_materializations
    return (
        rows,
        days_in(log, "daily"),
        days_in(log, "downstream"),
        attempts(dg.AssetKey("daily")),
        log.get_stats_for_run(run.run_id).materializations,
        instance.all_asset_keys(),
    )


@pytest.fixture(scope="module")
def recording(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dg.DagsterRun, list[EventLogEntry], Told]:
    """A backfill, its events, and what the stock class has of it."""
    home = write_config(tmp_path_factory.mktemp("recorder"), stock=True)
    with dg.DagsterInstance.from_config(str(home)) as recorder:
        assert type(log_of(recorder)) is SqliteEventLogStorage
        run = backfill(recorder)
        records = log_of(recorder).get_records_for_run(run.run_id).records
        return run, [record.event_log_entry for record in records], told(recorder, run)


def test_a_new_shard_has_the_tables_and_the_revision_of_the_stock_class(tmp_path: Path) -> None:
    found = []
    for class_ in (SqliteEventLogStorage, PooledSqliteEventLogStorage):
        log = class_(str(tmp_path / class_.__name__))
        log.store_event(materialization("run", "daily", DAYS[0]))
        log.dispose()
        with closing(sqlite3.connect(log.path_for_shard("run"))) as shard:
            found.append(
                (
                    shard.execute(
                        "SELECT type, name, sql FROM sqlite_master ORDER BY 2"
                    ).fetchall(),
                    shard.execute("SELECT * FROM alembic_version").fetchall(),
                    shard.execute("PRAGMA journal_mode").fetchall(),
                )
            )
    assert found[0] == found[1]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_same_events_give_equal_rows_and_answers(
    open_instance: Callable[..., dg.DagsterInstance],
    recording: tuple[dg.DagsterRun, list[EventLogEntry], Told],
    tmp_path: Path,
    batch_size: int,
) -> None:
    run, events, _ = recording
    kinds = {event.dagster_event_type for event in events}
    assert kinds >= {
        DagsterEventType.ASSET_MATERIALIZATION,
        DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        DagsterEventType.ASSET_OBSERVATION,
        DagsterEventType.ASSET_CHECK_EVALUATION,
        DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
        DagsterEventType.RUN_FAILURE,
    }
    runless = [materialization("", "reported", day) for day in DAYS]
    runless += [planned("", "reported", DAYS[0])]  # must not hide the last materialization

    stock, ours = open_instance("stock", stock=True), open_instance("ours")
    for instance in (stock, ours):
        instance.add_run(replace(run, job_snapshot_id=None, execution_plan_snapshot_id=None))
        everything = events + runless
        for at in range(0, len(everything), batch_size):
            log_of(instance).store_event_batch(everything[at : at + batch_size])

    of_stock, of_ours = (tables(tmp_path / name / "history/runs") for name in ("stock", "ours"))
    assert of_ours == of_stock
    assert len(of_ours["index.db"]["asset_event_tags"]) > len(DAYS)
    assert len(of_ours["index.db"]["asset_keys"]) == 5
    assert of_ours["index.db"]["asset_check_executions"]
    assert answers(ours, run.run_id) == answers(stock, run.run_id)

    for instance in (stock, ours):
        instance.delete_run(run.run_id)
    of_stock, of_ours = (tables(tmp_path / name / "history/runs") for name in ("stock", "ours"))
    assert of_ours == of_stock
    assert not of_ours[f"{run.run_id}.db"]["event_logs"]

    for instance in (stock, ours):
        log_of(instance).wipe()
    of_stock, of_ours = (tables(tmp_path / name / "history/runs") for name in ("stock", "ours"))
    assert of_ours == of_stock
    assert list(of_ours) == [".db", "index.db"]  # the stock wipe overlooks runless events


@pytest.mark.parametrize("batch_size", ["0", "5", "500"])
def test_a_backfill_is_recorded_as_by_the_stock_class(
    open_instance: Callable[..., dg.DagsterInstance],
    recording: tuple[dg.DagsterRun, list[EventLogEntry], Told],
    monkeypatch: pytest.MonkeyPatch,
    batch_size: str,
) -> None:
    _, _, stock = recording
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", batch_size)
    instance = open_instance("ours")
    ours = told(instance, backfill(instance))
    assert ours == stock
    assert ours[1] == set(DAYS)


def test_the_stock_class_reads_what_was_written_when_the_lines_are_deleted(
    open_instance: Callable[..., dg.DagsterInstance], tmp_path: Path
) -> None:
    ours = open_instance("home")
    run = backfill(ours)
    given = answers(ours, run.run_id)
    ours.dispose()

    stock = open_instance("home", stock=True)
    assert answers(stock, run.run_id) == given
    assert not (tmp_path / "home/history/runs/index.db-wal").exists()


def test_another_minor_version_of_dagster_gets_the_stock_class_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dg, "__version__", "1.14.0")
    with dg.DagsterInstance.from_config(str(write_config(tmp_path, stock=False))) as instance:
        assert type(log_of(instance)) is SqliteEventLogStorage
    assert "this is 1.14.0: using the stock SQLite event log" in caplog.text


# --- several processes and threads --------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("neighbour", ["SqliteEventLogStorage", "PooledSqliteEventLogStorage"])
def test_two_processes_write_one_run_at_once_and_no_event_is_lost(
    storage: PooledSqliteEventLogStorage, neighbour: str
) -> None:
    run_id = make_new_run_id()
    days = [f"{2000 + i}-01-01" for i in range(60)]
    base_dir = storage._base_dir
    finish(
        processes.start(write_days, base_dir, "PooledSqliteEventLogStorage", run_id, "left", days),
        processes.start(write_days, base_dir, neighbour, run_id, "right", days),
    )

    assert len(storage.get_records_for_run(run_id).records) == 2 * len(days)
    assert days_in(storage, "left") == days_in(storage, "right") == set(days)
    index = tables(Path(base_dir))["index.db"]
    ids = {(row["asset_key"], row["partition"]): row["id"] for row in index["event_logs"]}
    assert len(ids) == 2 * len(days)
    tagged = {
        (row["asset_key"], row["value"]): row["event_id"] for row in index["asset_event_tags"]
    }
    assert tagged == ids


@pytest.mark.processes
def test_a_reader_in_another_process_sees_each_event_as_soon_as_it_is_stored(
    storage: PooledSqliteEventLogStorage,
) -> None:
    run_id = make_new_run_id()
    ask, asked = processes.CONTEXT.Pipe()
    reader = processes.start(answer_what_is_seen, storage._base_dir, run_id, asked)

    for count, day in enumerate(DAYS, start=1):
        storage.store_event_batch([materialization(run_id, "daily", day)])
        ask.send("what is there?")
        assert ask.poll(HANG_SECONDS)
        assert ask.recv() == (count, set(DAYS[:count]))
    ask.send("enough")
    finish(reader)


def test_threads_share_the_storage(storage: PooledSqliteEventLogStorage) -> None:
    run_ids = [make_new_run_id() for _ in range(4)]

    def write_and_read(run_id: str) -> None:
        for day in DAYS:
            storage.store_event_batch([planned(run_id, run_id, day)] * 2)
            storage.store_event(materialization(run_id, run_id, day))
            storage.get_records_for_run(run_id)

    threads = [threading.Thread(target=write_and_read, args=(run_id,)) for run_id in run_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)

    for run_id in run_ids:
        assert len(storage.get_records_for_run(run_id).records) == 3 * len(DAYS)
        assert days_in(storage, run_id) == set(DAYS)


@pytest.mark.processes
@needs_fork
@needs_proc
def test_a_forked_child_inherits_no_open_shard_and_both_go_on_writing(tmp_path: Path) -> None:
    finish(processes.start(fork_and_write, str(tmp_path)))


# --- watching -----------------------------------------------------------------------------------


@pytest.mark.parametrize("watching", [SqliteEventLogStorage, PooledSqliteEventLogStorage])
def test_a_watcher_is_told_of_every_event_although_the_writer_stays_open(
    storage: PooledSqliteEventLogStorage, watching: type[SqliteEventLogStorage]
) -> None:
    run_id = make_new_run_id()
    storage.store_event(materialization(run_id, "daily", "before"))
    watcher = watching(storage._base_dir)
    seen: queue.Queue[str] = queue.Queue()

    def callback(event: EventLogEntry, _cursor: str) -> None:
        seen.put(event.get_dagster_event().partition or "")

    watcher.watch(run_id, watcher.get_records_for_run(run_id).cursor, callback)
    for day in DAYS:
        storage.store_event_batch([materialization(run_id, "daily", day)])
        assert seen.get(timeout=HANG_SECONDS) == day

    watcher.end_watch(run_id, callback)
    storage.store_event(materialization(run_id, "daily", "after"))
    other = make_new_run_id()
    if watching is SqliteEventLogStorage:
        # The stock class makes the tables of a file that another process is about to give them.
        storage.store_event(materialization(other, "daily", "before"))
    told = threading.Event()
    watcher.watch(other, None, lambda *_: told.set())
    storage.store_event(materialization(other, "daily", "another run"))
    assert told.wait(HANG_SECONDS)
    assert seen.empty()
    watcher.dispose()


def test_reading_does_not_wake_the_watcher(storage: PooledSqliteEventLogStorage) -> None:
    run_id = make_new_run_id()
    storage.store_event(materialization(run_id, "daily", DAYS[0]))
    shard = Path(storage.path_for_shard(run_id))
    os.utime(shard, (0, 0))
    assert len(storage.get_records_for_run(run_id).records) == 1
    assert shard.stat().st_mtime == 0  # or a watcher, which reads when it is told, never rests


# --- files: wiped, evicted, disposed, failed ----------------------------------------------------


@pytest.mark.processes
def test_events_stored_after_another_process_wiped_the_files_are_not_lost(
    storage: PooledSqliteEventLogStorage,
) -> None:
    run_id = make_new_run_id()
    storage.store_event(materialization(run_id, "daily", DAYS[0]))
    finish(processes.start(wipe, storage._base_dir))
    assert storage.get_records_for_run(run_id).records == []

    storage.store_event_batch([materialization(run_id, "daily", day) for day in DAYS[1:3]])
    stock = SqliteEventLogStorage(storage._base_dir)
    assert len(stock.get_records_for_run(run_id).records) == 2
    assert days_in(stock) == set(DAYS[1:3])


def test_wipe_empties_the_log_and_it_can_be_used_again(
    storage: PooledSqliteEventLogStorage,
) -> None:
    run_id = make_new_run_id()
    storage.store_event(materialization(run_id, "daily", DAYS[0]))
    storage.wipe()
    assert storage.get_all_run_ids() == []
    assert storage.get_asset_records() == []

    storage.store_event(materialization(run_id, "daily", DAYS[1]))
    assert days_in(SqliteEventLogStorage(storage._base_dir)) == {DAYS[1]}


@needs_proc
def test_the_least_recently_used_shards_are_closed_and_open_again_when_asked(
    storage: PooledSqliteEventLogStorage,
) -> None:
    run_ids = [make_new_run_id() for _ in range(MAX_OPEN_SHARDS + 4)]
    for run_id in run_ids:
        storage.store_event_batch([materialization(run_id, "daily", day) for day in DAYS[:2]])
        assert len(open_files(storage._base_dir)) <= MAX_OPEN_SHARDS

    assert open_files(storage._base_dir) == {"index", *run_ids[-(MAX_OPEN_SHARDS - 1) :]}
    for run_id in run_ids:
        storage.store_event(materialization(run_id, "daily", DAYS[2]))
        assert len(storage.get_records_for_run(run_id).records) == 3
    assert len(open_files(storage._base_dir)) == MAX_OPEN_SHARDS


@needs_proc
def test_dispose_closes_every_file_and_the_storage_opens_again(
    storage: PooledSqliteEventLogStorage,
) -> None:
    run_id = make_new_run_id()
    storage.watch(run_id, None, lambda *_: None)
    storage.store_event(materialization(run_id, "daily", DAYS[0]))
    storage.dispose()
    assert open_files(storage._base_dir) == set()
    assert not list(Path(storage._base_dir).glob("*.db-wal"))

    told = threading.Event()
    storage.watch(run_id, storage.get_records_for_run(run_id).cursor, lambda *_: told.set())
    storage.store_event(materialization(run_id, "daily", DAYS[1]))
    assert days_in(storage) == set(DAYS[:2])
    assert told.wait(HANG_SECONDS)
    storage.dispose()
    storage.dispose()


def test_a_failed_batch_leaves_nothing_so_that_dagster_can_store_it_event_by_event(
    storage: PooledSqliteEventLogStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_new_run_id()
    storage.store_event(materialization(run_id, "daily", DAYS[0]))
    storage.dispose()
    monkeypatch.setattr(event_log, "BUSY_TIMEOUT_SECONDS", 0)
    blocker = sqlite3.connect(storage.path_for_shard("index"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    batch = [materialization(run_id, "daily", day) for day in DAYS[1:4]]
    with pytest.raises(db.exc.OperationalError, match="locked"):
        storage.store_event_batch(batch)
    assert len(storage.get_records_for_run(run_id).records) == 1

    blocker.close()
    storage.store_event_batch(batch)
    assert len(storage.get_records_for_run(run_id).records) == 4
    assert days_in(storage) == set(DAYS[:4])


def test_an_error_with_a_half_read_cursor_does_not_freeze_what_later_reads_see(
    storage: PooledSqliteEventLogStorage,
) -> None:
    run_id = make_new_run_id()
    storage.store_event_batch([materialization(run_id, "daily", day) for day in DAYS[:2]])

    def read_one_and_fail() -> None:
        with storage.run_connection(run_id) as connection:
            rows = connection.execute(db.select(SqlEventLogStorageTable.c.id))
            rows.fetchone()
            raise LookupError

    with pytest.raises(LookupError) as kept:  # keeps the frame, and so the cursor, alive
        read_one_and_fail()
    SqliteEventLogStorage(storage._base_dir).store_event(materialization(run_id, "daily", DAYS[2]))
    assert len(storage.get_records_for_run(run_id).records) == 3
    assert kept.traceback
