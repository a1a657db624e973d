"""Dagster's SQLite event log with connections that stay open.

The stock class opens an engine and a connection for every event, and a single-run backfill of
years writes two events per partition. This one keeps an engine per shard and writes a batch of
asset events (`DAGSTER_EVENT_BATCH_SIZE`) in one transaction per shard. Files, rows and answers
stay those of the stock class: to go back, delete `event_log_storage` from `dagster.yaml`.

It depends on Dagster's internals, so nothing else belongs in this module.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from contextlib import contextmanager, suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster
import sqlalchemy as db
from alembic.runtime.migration import MigrationContext
from dagster import EventLogEntry, Field, StringSource
from dagster._core.events import ASSET_EVENTS
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
)
from dagster_shared.serdes import serialize_value
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence

    from dagster._config import UserConfigSchema
    from dagster._serdes import ConfigurableClassData

WRITTEN_FOR = "1.13"
"""The Dagster minor version whose internals this module was checked against."""

MAX_OPEN_SHARDS = 16
"""One shard per run, three file handles per shard. At least 2: a batch holds index and run."""

BUSY_TIMEOUT_SECONDS = 30
"""How long to wait for another process that is writing; as in the stock class."""


class _Shard(NamedTuple):
    engine: db.Engine
    file_id: tuple[int, int] | None


class PooledSqliteEventLogStorage(SqliteEventLogStorage):
    """`SqliteEventLogStorage` that reuses one connection per shard, least recently used closed."""

    _obs: Any  # the stock class leaves it untyped

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._tables: set[str] = set()
        super().__init__(base_dir, inst_data)
        _storages.add(self)
        _register_fork_hooks()

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """`base_dir` may be left out: then the files lie where the stock class puts them."""
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(  # type: ignore[override]  # the fallback is not a subclass
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> SqliteEventLogStorage:
        """Make the storage, or the stock one (slow, never wrong) under an unchecked Dagster."""
        base_dir = config_value.get("base_dir") or _default_base_dir()
        if dagster.__version__.split(".")[:2] == WRITTEN_FOR.split("."):
            return cls(base_dir, inst_data)
        logging.getLogger(__name__).warning(
            "%s was checked against Dagster %s, this is %s: using the stock SQLite event log, which"
            " is slower. Check the module against this version and raise WRITTEN_FOR.",
            cls.__name__,
            WRITTEN_FOR,
            dagster.__version__,
        )
        return SqliteEventLogStorage(base_dir, inst_data)

    def _initdb(self, engine: db.Engine, for_index_shard: bool = False) -> None:
        """Leave a shard that has a revision as it is, and give a new one the tables of the index.

        The stock class reads all migrations of Dagster for that, a fifth of a second for each run.
        """
        with engine.connect() as connection:
            if _revision(connection) is not None:
                return
            begun = bool(db.inspect(connection).get_table_names())
        revision = None
        index_url = db.make_url(self.conn_string_for_shard(INDEX_SHARD_NAME))
        if not for_index_shard and not begun and engine.url != index_url:
            with self._transaction(INDEX_SHARD_NAME) as index:
                revision = _revision(index)
                statements = index.exec_driver_sql(
                    "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
                    " AND name NOT LIKE 'sqlite%' ORDER BY rowid"
                ).all()
        if revision is None:
            super()._initdb(engine, for_index_shard)
            return
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            # Another process may have been faster.
            if _revision(connection) is None:
                for (statement,) in statements:
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (revision,))
            connection.commit()

    @contextmanager
    def _connect(self, shard: str) -> Iterator[db.Connection]:
        with self._db_lock, self._transaction(shard) as connection:
            yield connection

    @contextmanager
    def _transaction(self, shard: str) -> Iterator[db.Connection]:
        """Yield the shard's connection in a transaction. The caller holds the lock."""
        try:
            with self._engine(shard).connect() as connection, connection.begin():
                yield connection
                wrote = connection.connection.in_transaction
        except BaseException:
            # The traceback may keep a half-read cursor alive, and with it an old snapshot that
            # every later read on this connection would see.
            self._close(shard)
            raise
        if wrote:
            # Watchers look at the file, which an open connection leaves alone for a long time. The
            # write-ahead log is no substitute: it is written just before a commit becomes visible.
            with suppress(FileNotFoundError):
                os.utime(self.path_for_shard(shard))

    def _engine(self, shard: str) -> db.Engine:
        path = self.path_for_shard(shard)
        file_id = _file_id(path)
        if shard in self._shards and self._shards[shard].file_id == file_id:
            self._shards.move_to_end(shard)
            return self._shards[shard].engine
        self._close(shard)  # another process wiped the file: ours would write to the deleted one
        engine = db.create_engine(
            self.conn_string_for_shard(shard),
            poolclass=QueuePool,
            pool_size=1,
            connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        db.event.listen(engine, "connect", _synchronous_normal)
        if shard not in self._initialized_dbs or file_id is None:
            self._initdb(engine)
            self._initialized_dbs.add(shard)
        self._shards[shard] = _Shard(engine, _file_id(path))
        while len(self._shards) > MAX_OPEN_SHARDS:
            self._close(next(iter(self._shards)))
        return engine

    def _close(self, *shards: str) -> None:
        for shard in shards:
            if shard in self._shards:
                self._shards.pop(shard).engine.dispose()

    def has_table(self, table_name: str) -> bool:
        """Cache a yes: tables are never dropped, but a migration may add one."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events in order, contiguous asset events of one run as one write per shard."""
        for (run_id, together), group in groupby(events, lambda e: (e.run_id, _is_asset_event(e))):
            if together:
                self._store_asset_events(run_id, list(group))
            else:
                for event in group:
                    self.store_event(event)

    def _store_asset_events(self, run_id: str, events: Sequence[EventLogEntry]) -> None:
        rows = [self._event_to_row(event) for event in events]
        insert = SqlEventLogStorageTable.insert()
        # All or nothing, because Dagster stores a failed batch again event by event. The run's
        # shard commits first: a crash in between leaves an unmirrored event, as in the stock class.
        with (
            self._db_lock,
            self._transaction(INDEX_SHARD_NAME) as index,
            self._transaction(run_id) as run,
        ):
            run.execute(insert, rows)
            index.execute(insert, rows)
            # SQLite numbers a new row max + 1, and this transaction is the only writer.
            last_id = index.scalar(db.select(db.func.max(SqlEventLogStorageTable.c.id)))
            ids = range(last_id - len(events) + 1, last_id + 1)
            self._store_asset_event_tags(index, events, ids)
            # Events of one type set the same columns of an asset's row, so the latest one decides.
            latest = {(r["asset_key"], r["dagster_event_type"]): i for i, r in enumerate(rows)}
            for i in sorted(latest.values()):
                self._store_asset_event(index, events[i], ids[i])

    def _store_asset_check_evaluation_planned(
        self, event: EventLogEntry, event_id: int | None
    ) -> None:
        """Store a row for each partition, as the stock class does, but serialize the event once.

        A backfill of years has ten thousands of them: all its days for each check.
        """
        planned: Any = event.get_dagster_event().event_specific_data
        subset = planned.partitions_subset
        timestamp = self._event_insert_timestamp(event)  # type: ignore[no-untyped-call]
        row = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": serialize_value(event),
            "evaluation_event_timestamp": timestamp,
            "evaluation_event_storage_id": event_id,
        }
        with self.index_connection() as connection:
            connection.execute(
                AssetCheckExecutionsTable.insert(),
                [
                    {**row, "partition": key}
                    for key in (subset.get_partition_keys() if subset else [None])
                ],
            )

    def wipe(self) -> None:
        """Close first, so that no connection is left on a deleted file."""
        with self._db_lock:
            self._close(*self._shards)
        super().wipe()

    def dispose(self) -> None:
        """Close everything; a later call opens what it needs again."""
        super().dispose()  # first, and outside the lock: the observer's thread may be reading
        self._obs = None
        self._watchers.clear()
        with self._db_lock:
            self._close(*self._shards)


def _default_base_dir() -> str:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        raise dagster.DagsterInvariantViolationError(
            f"{PooledSqliteEventLogStorage.__name__} does not know where its files are: set"
            " DAGSTER_HOME, or base_dir in the config of event_log_storage."
        )
    return str(Path(home) / "history" / "runs")


def _is_asset_event(event: EventLogEntry) -> bool:
    if event.dagster_event_type not in ASSET_EVENTS:
        return False
    return event.get_dagster_event().asset_key is not None


def _revision(connection: db.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _synchronous_normal(connection: sqlite3.Connection, _record: object) -> None:
    """With WAL, a killed process loses nothing; a power cut may lose the last events, no more."""
    connection.execute("PRAGMA synchronous=NORMAL")


_storages: weakref.WeakSet[PooledSqliteEventLogStorage] = weakref.WeakSet()
_held: list[PooledSqliteEventLogStorage] = []


def _before_fork() -> None:
    """Close all: a child that inherits open SQLite files believes it holds its parent's locks."""
    for storage in list(_storages):
        if storage._db_lock.acquire(timeout=BUSY_TIMEOUT_SECONDS):  # noqa: SLF001  # own class
            storage._close(*storage._shards)  # noqa: SLF001  # own class
            _held.append(storage)


def _after_fork() -> None:
    while _held:
        _held.pop()._db_lock.release()  # noqa: SLF001  # own class


@cache
def _register_fork_hooks() -> None:
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
        )
