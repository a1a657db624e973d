"""Publishes the marts: the days that changed since the mart's own watermark.

A round compares the rows of the candidate days in the lake and in the mart, writes the days that
differ, and moves the watermark: in a database all in one transaction, in files day by day and the
watermark at the end. Candidates come from the history of the lake. All days are candidates where
the history cannot say: after the first round, where the history expired, and where the watermark is
that of another lake or of one that was restored from a backup.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import duckdb

from retail_assets.explain import told
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.outbound.marts import failures
from retail_assets.outbound.marts.model import (
    DAYS,
    HERE,
    MART_TABLES,
    SOURCES,
    THERE,
    MartSession,
    MartTable,
    MartTarget,
    Published,
    PublishedTable,
    Watermark,
)
from retail_assets.tables import Table

logger = logging.getLogger(__name__)

PERSIST_AFTER = 1_000
"""Snapshots after which the watermark moves though nothing changed: the lake forgets old ones."""

PERSIST_AGE = "INTERVAL 10 MINUTE"
"""The same in time."""


@dataclass(frozen=True)
class Position:
    """A snapshot of a lake: its id, and its commit in µs since 1970."""

    lake_id: str
    snapshot_id: int
    snapshot_us: int


def publish(lake: Lake, target: MartTarget, *, everything: bool = False) -> Published:
    """Bring a mart up to date, and enter a failure in the lake's ledger.

    Args:
        lake: the lake; it is only read, unless the round fails or the one before has failed.
        target: where to publish to.
        everything: compare all days; tables without a watermark are taken over.

    Returns:
        The outcome; its tables have no days if nothing differed.

    Raises:
        MartError: if the mart could not be published; it has what it had.
        RetailAssetsError: if the lake cannot be read.
    """
    with lake.connect(read_only=True) as connection:
        try:
            with target.session() as session:
                done = _Round(connection, target, session, everything).run()
        except Exception as error:
            failures.note(lake, connection, target.name, told(error))
            raise
        failures.note(lake, connection, target.name, done.problem)
    return done


def is_behind(
    connection: duckdb.DuckDBPyConnection, lake_id: str, snapshot: int, snapshot_us: int
) -> bool:
    """Whether the lake may have rows for the marts that a snapshot did not have; takes 10 ms."""
    if lake_id != history.lake_id(connection):
        return True
    if snapshot_us != history.committed_us(connection, snapshot):
        return True
    if snapshot == current_snapshot(connection):
        return False
    kept, written = history.changes_since(connection, snapshot, *SOURCES)
    return written or not kept


def position(connection: duckdb.DuckDBPyConnection) -> Position:
    """The newest snapshot that a connection sees."""
    snapshot = current_snapshot(connection)
    committed = history.committed_us(connection, snapshot)
    assert committed is not None
    return Position(history.lake_id(connection), snapshot, committed)


def changed_days(
    connection: duckdb.DuckDBPyConnection, after: int, upto: int, sources: Iterable[Table]
) -> dict[Table, set[date]]:
    """The days of each source that a commit after a snapshot, up to another, may have changed."""
    found: dict[Table, set[date]] = {}
    where = {source: column for mart in MART_TABLES for source, column in mart.sources.items()}
    for source in sources:
        _, written = history.changes_since(connection, after, source)
        day, some = where[source]
        rows = (
            connection.execute(
                f"SELECT DISTINCT {day} FROM lake.table_changes('{source.name}', {after + 1},"
                f" {upto}) WHERE {day} IS NOT NULL AND {some}"
            ).fetchall()
            if written
            else []
        )
        found[source] = {row[0] for row in rows}
    return found


class _Round:
    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: MartTarget,
        session: MartSession,
        everything: bool,
    ) -> None:
        self.connection = connection
        self.target = target
        self.session = session
        self.everything = everything
        self.changes: dict[int, dict[Table, set[date]]] = {}

    def run(self) -> Published:
        began = time.monotonic()
        # All tables are read from one snapshot, which is newer than that of whoever was before.
        with SnapshotRead(self.connection):
            self.now = position(self.connection)
            # All tables first: in MySQL that commits.
            ready = [(table, self._prepare(table)) for table in MART_TABLES]
            done = {table.name: self._publish(table, *found) for table, found in ready}
        return Published(self.target.name, self.now.snapshot_id, time.monotonic() - began, done)

    def _prepare(self, table: MartTable) -> tuple[Watermark | None, str | None]:
        """Have the table ready; returns its watermark, and why all days have to be compared."""
        watermark = self.session.watermark(table)
        reason = self.session.prepare(table, ours=watermark is not None or self.everything)
        return watermark, reason or self._why_all(table, watermark)

    def _publish(
        self, table: MartTable, watermark: Watermark | None, reason: str | None
    ) -> PublishedTable:
        days = None if reason or watermark is None else self._candidates(table, watermark)
        before = None if watermark is None else watermark.snapshot_id
        if days is not None and not days:
            assert watermark is not None
            if self._is_far_behind(watermark):
                self._move(table, watermark.left_out)
            return PublishedTable((), 0, before)
        if reason:
            level = logging.INFO if watermark is None or self.everything else logging.WARNING
            name = f"{self.target.name}, {table.name}"
            logger.log(level, "%s: %s. All days are compared.", name, reason)
        differing, left_out = self._compare(table, days)
        rows = self.session.write(self.connection, table) if differing else 0
        self._move(table, left_out)
        self._drop()
        return PublishedTable(tuple(differing), rows, before, left_out, reason)

    def _why_all(self, table: MartTable, watermark: Watermark | None) -> str | None:
        """Why all days have to be compared, if they have to."""
        reason = None
        if self.everything:
            reason = "it was asked for"
        elif watermark is None:
            reason = "it was never published"
        elif watermark.lake_id != self.now.lake_id:
            reason = "its rows are those of another lake"
        elif watermark.definition != table.definition:
            reason = "its columns or its query have changed"
        elif self._is_of_lost_snapshot(watermark):
            reason = "its rows are of a snapshot that the lake has lost: is that a backup?"
        elif watermark.snapshot_id < self.now.snapshot_id:
            kept, _ = history.changes_since(self.connection, watermark.snapshot_id, *table.sources)
            reason = None if kept else "the lake no longer has the changes since it was published"
        return reason

    def _is_of_lost_snapshot(self, watermark: Watermark) -> bool:
        """Whether the lake never had the snapshot: as after it was restored from a backup."""
        if watermark.snapshot_id > self.now.snapshot_id:
            return True
        committed = history.committed_us(self.connection, watermark.snapshot_id)
        return committed is not None and committed != watermark.snapshot_us

    def _candidates(self, table: MartTable, watermark: Watermark) -> set[date]:
        """The days that may have changed, and those that were left out: they stay a problem."""
        after, upto = watermark.snapshot_id, self.now.snapshot_id
        found = self.changes.setdefault(after, {})
        if after < upto:
            missing = [source for source in table.sources if source not in found]
            found.update(changed_days(self.connection, after, upto, missing))
        return set(watermark.left_out).union(*(found.get(each, ()) for each in table.sources))

    def _is_far_behind(self, watermark: Watermark) -> bool:
        behind = self.now.snapshot_id - watermark.snapshot_id
        return behind >= PERSIST_AFTER or (
            behind > 0
            and history.is_kept(self.connection, watermark.snapshot_id, older_than=PERSIST_AGE)
        )

    def _compare(
        self, table: MartTable, days: set[date] | None
    ) -> tuple[list[date], dict[date, str]]:
        """Load the rows of some days (None: of all) from both sides; `DAYS` has those that differ.

        Returns:
            The days that differ and can be written, and the problem of each other one.
        """
        columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        self._drop()
        self.connection.execute(f"CREATE TEMP TABLE {THERE} ({columns})")
        odd = self.session.load(self.connection, table, days)
        self.connection.execute(f"CREATE TEMP TABLE {DAYS} (day DATE)")
        self._list_days(days or ())
        self.connection.execute(
            f"CREATE TEMP TABLE {HERE} AS {table.rows(_condition(table.day, days))}"
        )
        here, there = f"FROM {HERE}", f"FROM {THERE}"
        rows = self.connection.execute(
            f"SELECT DISTINCT {table.day} FROM (({here} EXCEPT ALL {there})"
            f" UNION ALL ({there} EXCEPT ALL {here}))"
        ).fetchall()
        differing = {row[0] for row in rows} | odd
        left_out = self._unfit(table) if differing else {}
        # A day that is left out keeps its rows.
        differing -= left_out.keys()
        self.connection.execute(f"DELETE FROM {DAYS}")
        self._list_days(differing)
        return sorted(differing, key=lambda day: (day is not None, day)), left_out

    def _unfit(self, table: MartTable) -> dict[date, str]:
        problem = self.session.unfit(table)
        if problem is None:
            return {}
        return dict(
            self.connection.execute(
                f"SELECT {table.day}, min(problem) FROM (SELECT {table.day}, {problem} AS problem"
                f" FROM {HERE}) WHERE problem IS NOT NULL GROUP BY ALL"
            ).fetchall()
        )

    def _list_days(self, days: Iterable[date | None]) -> None:
        self.connection.execute(f"INSERT INTO {DAYS} SELECT unnest(?::DATE[])", [list(days)])

    def _move(self, table: MartTable, left_out: Iterable[date]) -> None:
        now = self.now
        self.session.set_watermark(
            table,
            Watermark(
                now.lake_id,
                now.snapshot_id,
                now.snapshot_us,
                table.definition,
                tuple(sorted(left_out)),
            ),
        )

    def _drop(self) -> None:
        for name in (HERE, THERE, DAYS):
            self.connection.execute(f"DROP TABLE IF EXISTS {name}")


def _condition(column: str, days: set[date] | None) -> str:
    """A condition for the days of `DAYS`; the range lets the lake leave out files of other days."""
    if days is None:
        return "true"
    return (
        f"{column} BETWEEN DATE '{min(days)}' AND DATE '{max(days)}'"
        f" AND {column} IN (SELECT day FROM {DAYS})"
    )
