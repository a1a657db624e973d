"""The ledger of the stream: how far each source was ingested, and each consumer has followed.

Each transaction appends a row: to replace one takes ten times longer. The rows of a part add up,
and are compacted into one now and then.

Every function that writes works in the caller's transaction, so that an offset and its rows are
committed together.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from retail_assets.ingest.events.batch import Delta
from retail_assets.lake.connection import current_snapshot
from retail_assets.lake.rows import insert_columns

SOURCE, CONSUMER, TOPIC = "source", "consumer", "topic"

COMPACT_ROWS = 100

# A bare `kind = ?` would have DuckLake compare it with the statistics of each file first, which
# takes longer than to read a ledger as small as this; and `IN (SELECT unnest(…))` is a join.
_KIND = "concat(kind) = ?"
_PARTS = f"{_KIND} AND concat(name) = ? AND list_contains(?::VARCHAR[], part)"


@dataclass(frozen=True)
class Offset:
    """The ledger's entry of a part of a source; `position` is the next one that is new."""

    name: str
    part: str
    position: int = 0
    lines: int = 0
    accepted: int = 0
    dead_lettered: int = 0

    def plus(self, delta: Delta) -> "Offset":
        """This with rows that came or went."""
        return replace(
            self,
            accepted=self.accepted + delta.accepted,
            dead_lettered=self.dead_lettered + delta.dead_lettered,
        )


@dataclass(frozen=True)
class KnownTopic:
    """A Kafka topic of some name: which one of that name it is, from 1, and its id, if known."""

    number: int
    topic_id: str | None = None


def known_topics(connection: duckdb.DuckDBPyConnection, name: str) -> list[KnownTopic]:
    """The Kafka topics of a name that were read so far."""
    rows = connection.execute(
        f"SELECT position, topic_id FROM lake.stream_offsets WHERE {_KIND} AND name = 'kafka'"
        " AND part = ?",
        [TOPIC, name],
    ).fetchall()
    return [KnownTopic(*row) for row in rows]


def enter_topic(connection: duckdb.DuckDBPyConnection, name: str, topic: KnownTopic) -> None:
    """Enter a Kafka topic, perhaps in place of the entry that did not know its id."""
    connection.execute(
        f"DELETE FROM lake.stream_offsets WHERE {_KIND} AND part = ? AND position = ?",
        [TOPIC, name, topic.number],
    )
    connection.execute(
        "INSERT INTO lake.stream_offsets BY NAME SELECT ? AS kind, 'kafka' AS name, ? AS part,"
        " ? AS position, 0 AS lines, 0 AS accepted, 0 AS dead_lettered, 0 AS duplicate,"
        " now() AS updated_at, ? AS topic_id",
        [TOPIC, name, topic.number, topic.topic_id],
    )


def next_positions(
    connection: duckdb.DuckDBPyConnection, source: str, source_names: Collection[str] | None = None
) -> dict[str, int]:
    """The next position that is new of each part of a source, as far as there are any.

    Args:
        connection: a connection to the lake.
        source: `kafka` or `webhook`.
        source_names: the parts, such as `orders:0`; by default all that the ledger has.
    """
    some = "" if source_names is None else " AND list_contains(?::VARCHAR[], part)"
    return dict(
        connection.execute(
            f"SELECT part, max(position) FROM lake.stream_offsets WHERE {_KIND} AND name = ?"
            f"{some} GROUP BY part",
            [SOURCE, source, *([] if source_names is None else [list(source_names)])],
        ).fetchall()
    )


def append(connection: duckdb.DuckDBPyConnection, entries: Sequence[Offset]) -> None:
    """Add the ingested lines of some parts, each up to a new position."""
    if entries:
        _insert(connection, SOURCE, entries)


def is_long(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether it is time to `compact`."""
    row = connection.execute(
        "SELECT count(*) - count(DISTINCT (kind, name, part)) FROM lake.stream_offsets"
    ).fetchone()
    return row is not None and row[0] >= COMPACT_ROWS


def compact(connection: duckdb.DuckDBPyConnection) -> None:
    """Replace the rows of each part by one."""
    for kind in (SOURCE, CONSUMER):
        _replace(connection, kind, _read(connection, _KIND, [kind]))


def apply_deltas(connection: duckdb.DuckDBPyConnection, deltas: Sequence[Delta]) -> None:
    """Bring the entries of sources in line with rows that came and went by what others received."""
    changed: dict[str, dict[str, Delta]] = {}
    for delta in deltas:
        if delta.accepted or delta.dead_lettered:
            changed.setdefault(delta.source, {})[delta.source_name] = delta
    for source, parts in changed.items():
        found = _read(connection, _PARTS, [SOURCE, source, list(parts)])
        _replace(connection, SOURCE, [entry.plus(parts[entry.part]) for entry in found])


def consumer_offset(connection: duckdb.DuckDBPyConnection, name: str) -> int | None:
    """The snapshot up to which a consumer has seen the lake.

    None if it has seen nothing; below 0 if it was rewound.
    """
    found = consumer_offsets(connection)
    return found.get(name)


def consumer_offsets(connection: duckdb.DuckDBPyConnection) -> Mapping[str, int]:
    """The snapshot up to which each consumer has seen the lake."""
    return dict(
        connection.execute(
            f"SELECT name, max(position) FROM lake.stream_offsets WHERE {_KIND} GROUP BY name",
            [CONSUMER],
        ).fetchall()
    )


def move_consumer(connection: duckdb.DuckDBPyConnection, name: str, snapshot: int) -> None:
    """Enter up to which snapshot a consumer has seen the lake: a later one than before."""
    move_consumers(connection, [name], snapshot)


def move_consumers(
    connection: duckdb.DuckDBPyConnection, names: Collection[str], snapshot: int
) -> None:
    """Like `move_consumer`, for several at once."""
    _insert(connection, CONSUMER, [Offset(name, "", snapshot) for name in names])


def rewind_consumer(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Have a consumer begin again."""
    # An offset that there never was: a round that is under way must notice.
    _replace(connection, CONSUMER, [Offset(name, "", -current_snapshot(connection) - 1)])


def _read(
    connection: duckdb.DuckDBPyConnection, where: str, parameters: Sequence[object]
) -> list[Offset]:
    rows = connection.execute(
        "SELECT name, part, max(position), sum(lines)::BIGINT, sum(accepted)::BIGINT,"
        f" sum(dead_lettered)::BIGINT FROM lake.stream_offsets WHERE {where} GROUP BY name, part",
        parameters,
    ).fetchall()
    return [Offset(*row) for row in rows]


def _replace(connection: duckdb.DuckDBPyConnection, kind: str, entries: Sequence[Offset]) -> None:
    _delete(connection, kind, entries)
    if entries:
        _insert(connection, kind, entries)


def _delete(connection: duckdb.DuckDBPyConnection, kind: str, entries: Sequence[Offset]) -> None:
    parts: dict[str, list[str]] = {}
    for entry in entries:
        parts.setdefault(entry.name, []).append(entry.part)
    for name, some in parts.items():
        connection.execute(f"DELETE FROM lake.stream_offsets WHERE {_PARTS}", [kind, name, some])


def _insert(connection: duckdb.DuckDBPyConnection, kind: str, entries: Sequence[Offset]) -> None:
    columns: dict[str, list[object]] = {
        "name VARCHAR": [entry.name for entry in entries],
        "part VARCHAR": [entry.part for entry in entries],
        "position BIGINT": [entry.position for entry in entries],
        "lines BIGINT": [entry.lines for entry in entries],
        "accepted BIGINT": [entry.accepted for entry in entries],
        "dead_lettered BIGINT": [entry.dead_lettered for entry in entries],
        "duplicate BIGINT": [
            entry.lines - entry.accepted - entry.dead_lettered for entry in entries
        ],
    }
    insert_columns(connection, "stream_offsets", columns, f"'{kind}' AS kind, now() AS updated_at")
