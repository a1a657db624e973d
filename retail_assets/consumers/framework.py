"""The framework of consumers: it recomputes the keys that changed since a consumer's offset.

A consumer is a pure function from tables of the lake to tables of its own. A round finds the keys
that changed since the consumer's offset (a snapshot of the lake), computes all rows of these keys,
and writes the rows that differ in one transaction with the new offset. So a round can be repeated,
and two workers can run the same consumer at once.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb

from retail_assets.consumers.own_rows import STAMP, OthersWereFasterError, replace_rows
from retail_assets.errors import RetailAssetsError
from retail_assets.explain import explain_text
from retail_assets.ingest.ledgers.offsets import consumer_offset, move_consumer, rewind_consumer
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.rows import insert_columns
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.secrets import mask
from retail_assets.tables import CONSUMER_DEAD_LETTERS, ENRICHED_EVENTS, Table

if TYPE_CHECKING:
    from retail_assets.consumers.keyed.round import KeyedRound

ATTEMPTS = 3
"""How often a round is tried as a whole before it looks for the failing keys."""

LAST_ATTEMPT = ATTEMPTS - 1
"""The `failures` with which failing keys are quarantined at once, for callers that do not retry."""

MOST_QUARANTINED = 20
"""If more keys fail in a round, the keys are not the cause, and none is quarantined."""

RETRY_AFTER = "INTERVAL 10 MINUTE"
"""When a quarantined key is tried again, unless it changes before."""

PERSIST_AFTER, PERSIST_AGE = 1_000, "INTERVAL 10 MINUTE"
"""How far an offset falls behind while nothing changes, in snapshots and in time.

To move it is a commit. But if its snapshot expired, everything would be recomputed.
"""

PIECE_ROWS = 200_000
"""Keys with so many source rows are computed at a time, which bounds the memory: after a break, the
changes may concern all of history. A rebuild computes all keys together, in one pass over the
sources."""

SHOWN_KEYS = 1_000
"""How many keys the report of a round names."""

_KEYS, _PIECE = "temp.main.consumer_keys", "temp.main.consumer_piece"

Compute = Callable[[duckdb.DuckDBPyConnection, str | None], Mapping[str, str]]
"""Takes a connection to the lake, and the name of a table with a column of keys (None: all keys).

Returns a SELECT of all rows of these keys for each table of the consumer, by name: the table's
columns except `updated_at`. The framework leaves out rows of other keys.
"""


@dataclass(frozen=True)
class Consumer:
    """Tables that follow from others, key by key.

    `key` is a column of every one of `tables`, which are the consumer's own, and of every one of
    `sources`, whose changes make a key's rows stale. `staging` names temporary tables that
    `compute` makes, which are dropped after the round. `in_pieces` says whether many keys are
    computed some at a time. Where keys have many rows but only sums are kept, this would read all
    rows again for each piece. `follow` computes the same rows from the keyed state of a worker;
    without it, a consumer always reads the lake.
    """

    name: str
    key: str
    tables: tuple[Table, ...]
    compute: Compute
    sources: tuple[Table, ...] = (ENRICHED_EVENTS,)
    staging: tuple[str, ...] = ()
    in_pieces: bool = True
    follow: "Callable[[KeyedRound], None] | None" = None


@dataclass(frozen=True)
class Consumed:
    """The outcome of a round.

    `snapshot` is the new offset, `keys` the first of the `key_count` keys that were recomputed,
    `inserted` and `deleted` the numbers of rows by table, `failed` the quarantined keys and why,
    and `rebuilt` whether all keys were recomputed.
    """

    consumer: str
    snapshot: int
    key_count: int
    keys: tuple[Any, ...]
    inserted: Mapping[str, int]
    deleted: Mapping[str, int]
    failed: Mapping[str, str]
    rebuilt: bool


@dataclass(frozen=True)
class Lag:
    """How far a consumer is behind: commits to its sources, and seconds since the oldest."""

    snapshots: int
    seconds: float


class ConsumerError(RetailAssetsError):
    """A round of `consumer` that failed. The tables and the offset are as before."""

    def __init__(self, consumer: str, problem: str) -> None:
        super().__init__(
            f"The consumer {consumer} could not follow: {problem}. Its tables stay as they are;"
            " it goes on from there once this is corrected."
        )
        self.consumer = consumer


def consume(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    consumer: Consumer,
    *,
    failures: int = 0,
    between_pieces: Callable[[], None] = lambda: None,
) -> Consumed | None:
    """Run one round of a consumer.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        consumer: whose round.
        failures: how many rounds in a row have failed just before. From the third attempt on,
            failing keys are found by halving and entered in `consumer_dead_letters`, and the others
            are published.
        between_pieces: called in the middle of a round of many keys, in no transaction.

    Returns:
        The outcome; None if nothing had changed, or another worker was faster.

    Raises:
        ConsumerError: if the round failed. Try again after a while, with `failures` one higher.
    """
    try:
        isolate = failures + 1 >= ATTEMPTS
        return _Round(lake, connection, consumer, isolate, between_pieces).run()
    except Exception as error:
        raise ConsumerError(consumer.name, _reason(error)) from error


def rewind(lake: Lake, connection: duckdb.DuckDBPyConnection, consumer: Consumer) -> None:
    """Clear a consumer's offset: its next round recomputes everything, to the same rows.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        consumer: whose offset.
    """
    with lake.transaction(connection, f"rewind {consumer.name}"):
        rewind_consumer(connection, consumer.name)


def lag(connection: duckdb.DuckDBPyConnection, consumer: Consumer) -> Lag:
    """Return how far a consumer is behind its sources; zero and zero if it has followed them.

    Args:
        connection: a connection to the lake, which may be read-only.
        consumer: whose lag.
    """
    offset = consumer_offset(connection, consumer.name)
    return Lag(*history.lag(connection, -1 if offset is None else offset, *consumer.sources))


def quarantined_keys(connection: duckdb.DuckDBPyConnection, consumer: Consumer) -> int:
    """How many keys of a consumer are quarantined."""
    if not history.most_rows(connection, CONSUMER_DEAD_LETTERS):
        return 0
    (keys,) = connection.execute(
        "SELECT count(*) FROM lake.consumer_dead_letters WHERE consumer = ?", [consumer.name]
    ).fetchone() or (0,)
    return int(keys)


@dataclass
class _Round:
    lake: Lake
    connection: duckdb.DuckDBPyConnection
    consumer: Consumer
    isolate: bool
    between_pieces: Callable[[], None]
    offset: int | None = None
    seen: int = 0
    rebuild: bool = False
    key_count: int = 0
    suspects: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    inserted: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    read: SnapshotRead = field(init=False)

    def __post_init__(self) -> None:
        self.read = SnapshotRead(self.connection)

    def run(self) -> Consumed | None:
        self._drop_all()
        try:
            self.read.begin()
            changed = self._look()
            self.read.end()
            if not changed:
                return None
            if self.key_count:
                self._compute_all()
            return self._publish()
        finally:
            self.read.abort()
            self._drop_all()

    def _look(self) -> bool:
        """Find the keys to recompute, in a transaction that reads one snapshot."""
        self.offset = consumer_offset(self.connection, self.consumer.name)
        self.seen = current_snapshot(self.connection)
        if self.offset == self.seen:
            return False
        kept, changed = history.changes_since(
            self.connection, -1 if self.offset is None else self.offset, *self.consumer.sources
        )
        self.rebuild = not kept
        quarantined = self._quarantined()
        due = [key for key, is_due in quarantined.items() if is_due]
        if self.rebuild or changed or due:
            self._list_keys(list(quarantined), due)
        # Also without keys: the offset moves, so that the consumer is not behind any more.
        return self.rebuild or changed or self.key_count > 0 or self._is_far_behind()

    def _quarantined(self) -> dict[str, bool]:
        """The quarantined keys, and whether each is to be tried again."""
        if not history.most_rows(self.connection, CONSUMER_DEAD_LETTERS):
            return {}
        # For all consumers: a filter takes DuckLake longer than to read these few.
        rows = self._execute(
            f"SELECT consumer, key, failed_at < now() - {RETRY_AFTER}"
            " FROM lake.consumer_dead_letters"
        ).fetchall()
        return {key: is_due for consumer, key, is_due in rows if consumer == self.consumer.name}

    def _is_far_behind(self) -> bool:
        assert self.offset is not None
        far = self.seen - self.offset >= PERSIST_AFTER
        return far or history.is_kept(self.connection, self.offset, older_than=PERSIST_AGE)

    def _list_keys(self, quarantined: list[str], due: list[str]) -> None:
        """Number the keys, quarantined ones last."""
        key, key_type = self.consumer.key, self.consumer.tables[0].types[self.consumer.key]
        changed = " UNION ALL ".join(
            f"SELECT CAST({key} AS VARCHAR) AS text, {key} FROM {source}"
            for source in self._stale_sources()
        )
        retried = f"SELECT text, CAST(text AS {key_type}) FROM (SELECT unnest($due) AS text)"
        self._execute(
            "CREATE TEMP TABLE consumer_keys AS SELECT *, row_number() OVER (ORDER BY suspect) AS"
            f" number FROM (SELECT DISTINCT text, {key}, text IN (SELECT unnest($quarantined)) AS"
            f" suspect FROM ({changed} UNION ALL {retried}) WHERE {key} IS NOT NULL)",
            {"quarantined": quarantined, "due": due},
        )
        self.key_count, self.suspects = self._one(
            f"SELECT count(*), count(*) FILTER (suspect) FROM {_KEYS}"
        )

    def _stale_sources(self) -> list[str]:
        """The relations with the keys that may have changed."""
        sources, own = self.consumer.sources, self.consumer.tables
        if self.rebuild:
            return [f"lake.{table.name}" for table in (*sources, *own)]
        assert self.offset is not None
        return [
            f"lake.table_changes('{table.name}', {self.offset + 1}, {self.seen})"
            for table in sources
        ]

    def _compute_all(self) -> None:
        """Compute the keys piece by piece; failing ones are quarantined, or end the round."""
        for table in self.consumer.tables:
            for kind in ("gone", "new"):
                self._create(kind, table)
        # Quarantined keys are likely to fail again: each is a piece of its own.
        known = self.key_count - self.suspects
        pieces = [(number, number) for number in range(known + 1, self.key_count + 1)]
        pieces += self._pieces(known)
        while pieces:
            first, last = pieces.pop()
            try:
                self._compute(first, last)
            except Exception as error:
                self.read.abort()
                if last <= known and not self.isolate:
                    raise
                if first < last:
                    middle = (first + last) // 2
                    pieces += [(middle + 1, last), (first, middle)]
                    continue
                self._quarantine(first, error)
                if len(self.failed) > MOST_QUARANTINED + self.suspects:
                    raise
            if pieces:
                self.between_pieces()

    def _pieces(self, known: int) -> list[tuple[int, int]]:
        """The first and last key of each piece, without the quarantined ones."""
        if not known:
            return []
        if self.rebuild or known == 1 or not self.consumer.in_pieces:
            return [(1, known)]
        if history.most_rows(self.connection, *self.consumer.sources) <= PIECE_ROWS:
            return [(1, known)]
        key = self.consumer.key
        rows = " UNION ALL ".join(
            f"SELECT {key} FROM lake.{table.name} WHERE {key} IN (SELECT {key} FROM {_KEYS})"
            for table in self.consumer.sources
        )
        # Deleted keys have no rows.
        return self._execute(
            "SELECT min(number), max(number) FROM (SELECT number, sum(coalesce(rows, 0) + 1) OVER"
            f" (ORDER BY number) // {PIECE_ROWS} AS piece FROM {_KEYS} LEFT JOIN (SELECT {key},"
            f" count(*) AS rows FROM ({rows}) GROUP BY ALL) USING ({key})"
            f" WHERE number <= {known}) GROUP BY piece"
        ).fetchall()

    def _compute(self, first: int, last: int) -> None:
        """Compute some keys, by their numbers, in a transaction, and stage the rows that differ."""
        self.read.begin()
        key, these = self.consumer.key, ""
        keys = None
        if not self.rebuild or last - first + 1 < self.key_count:
            self._execute(
                f"CREATE OR REPLACE TEMP TABLE consumer_piece AS SELECT {key} FROM {_KEYS}"
                f" WHERE number BETWEEN {first} AND {last}"
            )
            keys, these = _PIECE, f" WHERE {key} IN (SELECT {key} FROM {_PIECE})"
        found = self.consumer.compute(self.connection, keys)
        deleted, inserted = Counter(self.deleted), Counter(self.inserted)
        for table in self.consumer.tables:
            self._create("staged", table)
            self._insert("staged", table, f"FROM ({found[table.name]}){these}")
            self._create("own", table)
            self._insert("own", table, f"FROM lake.{table.name}{these}")
            own, staged = (f"FROM temp.main.{kind}_{table.name}" for kind in ("own", "staged"))
            deleted[table.name] += self._insert("gone", table, f"FROM ({own} EXCEPT {staged})")
            inserted[table.name] += self._insert("new", table, f"FROM ({staged} EXCEPT {own})")
            self._drop("staged", table)
            self._drop("own", table)
        self.read.end()
        self.deleted, self.inserted = deleted, inserted

    def _quarantine(self, number: int, error: Exception) -> None:
        (text,) = self._one(f"SELECT text FROM {_KEYS} WHERE number = {number}")
        self.failed[text] = _reason(error)

    def _create(self, kind: str, table: Table) -> None:
        """Create a temporary table with the columns of one of the consumer's tables."""
        columns = ", ".join(f"{name} {table.types[name]}" for name in _computed(table))
        self._execute(f"CREATE TEMP TABLE {kind}_{table.name} ({columns})")

    def _insert(self, kind: str, table: Table, source: str) -> int:
        """Insert rows into such a table; returns how many."""
        columns = ", ".join(_computed(table))
        return int(
            self._one(f"INSERT INTO temp.main.{kind}_{table.name} SELECT {columns} {source}")[0]
        )

    def _drop(self, kind: str, table: Table) -> None:
        self._execute(f"DROP TABLE IF EXISTS temp.main.{kind}_{table.name}")

    def _publish(self) -> Consumed | None:
        self.read.abort()
        with suppress(OthersWereFasterError):
            name = self.consumer.name
            with self.lake.transaction(self.connection, f"publish {name}"):
                # While the offset is the same, the tables are as they were compared.
                if consumer_offset(self.connection, name) != self.offset:
                    raise OthersWereFasterError
                for table in self.consumer.tables:
                    changed = (self.deleted[table.name], self.inserted[table.name])
                    replace_rows(self.connection, table, *changed)
                self._note_failures()
                move_consumer(self.connection, name, self.seen)
            return self._report() if self.key_count else None
        return None

    def _note_failures(self) -> None:
        """Enter the keys that failed, and remove those that do not fail any more."""
        if not self.suspects and not self.failed:
            return
        where = f"WHERE consumer = ? AND key IN (SELECT text FROM {_KEYS})"
        known = dict(
            self._execute(
                f"SELECT key, attempts FROM lake.consumer_dead_letters {where}",
                [self.consumer.name],
            ).fetchall()
        )
        if known:
            self._execute(f"DELETE FROM lake.consumer_dead_letters {where}", [self.consumer.name])
        if self.failed:
            columns: dict[str, list[Any]] = {
                "consumer VARCHAR": [self.consumer.name] * len(self.failed),
                "key VARCHAR": list(self.failed),
                "problem VARCHAR": list(map(mask, self.failed.values())),
                "snapshot BIGINT": [self.seen] * len(self.failed),
                "attempts BIGINT": [known.get(key, ATTEMPTS - 1) + 1 for key in self.failed],
            }
            insert_columns(self.connection, "consumer_dead_letters", columns, "now() AS failed_at")

    def _report(self) -> Consumed:
        keys = self._execute(
            f"SELECT {self.consumer.key} FROM {_KEYS} ORDER BY ALL LIMIT {SHOWN_KEYS}"
        ).fetchall()
        return Consumed(
            self.consumer.name,
            self.seen,
            self.key_count,
            tuple(key for (key,) in keys),
            self.inserted,
            self.deleted,
            self.failed,
            self.rebuild,
        )

    def _drop_all(self) -> None:
        for name in ("consumer_keys", "consumer_piece", *self.consumer.staging):
            self._execute(f"DROP TABLE IF EXISTS temp.main.{name}")
        for table in self.consumer.tables:
            for kind in ("staged", "own", "gone", "new"):
                self._drop(kind, table)

    def _execute(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        return self.connection.execute(sql, parameters)

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self._execute(sql).fetchone()
        assert row is not None
        return row


def _computed(table: Table) -> list[str]:
    return [name for name in table.column_names if name != STAMP]


def _reason(error: Exception) -> str:
    said = str(error).strip().splitlines()[0] if str(error) else ""
    return explain_text(f"{type(error).__name__}: {error}") or f"{type(error).__name__}: {said}"
