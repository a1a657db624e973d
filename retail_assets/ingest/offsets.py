"""The ledger of the stream: how far each source was taken in, and how far each consumer has come.

Every function that writes works in the caller's transaction, so that an offset and the rows that it
speaks of are committed together.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from retail_assets.ingest.events import Delta
from retail_assets.lake.rows import insert_columns

SOURCE, CONSUMER = "source", "consumer"

_WHERE = "WHERE kind = ? AND name = ? AND part IN (SELECT unnest(?::VARCHAR[]))"


@dataclass(frozen=True)
class Offset:
    """The ledger's entry of one part of a source; `position` is the next one that is new."""

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


def next_positions(
    connection: duckdb.DuckDBPyConnection, source: str, source_names: Collection[str] | None = None
) -> dict[str, int]:
    """The next position that is new of each part of a source, as far as there are any.

    Args:
        connection: a connection to the lake.
        source: `kafka` or `webhook`.
        source_names: the parts, such as `orders:0`; by default all that the ledger has.
    """
    some = "" if source_names is None else " AND part IN (SELECT unnest(?::VARCHAR[]))"
    return dict(
        connection.execute(
            f"SELECT part, position FROM lake.stream_offsets WHERE kind = ? AND name = ?{some}",
            [SOURCE, source, *([] if source_names is None else [list(source_names)])],
        ).fetchall()
    )


def read(
    connection: duckdb.DuckDBPyConnection, source: str, source_names: Collection[str]
) -> dict[str, Offset]:
    """The entries of some parts of a source, as far as there are any."""
    rows = connection.execute(
        "SELECT name, part, position, lines, accepted, dead_lettered FROM lake.stream_offsets"
        f" {_WHERE}",
        [SOURCE, source, list(source_names)],
    ).fetchall()
    return {row[1]: Offset(*row) for row in rows}


def write(
    connection: duckdb.DuckDBPyConnection, entries: Sequence[Offset], known: Collection[str]
) -> None:
    """Put entries of one source in place of those that the ledger has (`known`, by part)."""
    if not entries:
        return
    _replace(connection, SOURCE, entries, known)


def apply_deltas(connection: duckdb.DuckDBPyConnection, deltas: Sequence[Delta]) -> None:
    """Bring the entries of sources in line with rows that came and went by what others received."""
    changed: dict[str, dict[str, Delta]] = {}
    for delta in deltas:
        if delta.accepted or delta.dead_lettered:
            changed.setdefault(delta.source, {})[delta.source_name] = delta
    for source, parts in changed.items():
        found = read(connection, source, parts)
        write(connection, [entry.plus(parts[part]) for part, entry in found.items()], found)


def consumer_offset(connection: duckdb.DuckDBPyConnection, name: str) -> int | None:
    """The snapshot up to which a consumer has seen the lake; None if it has seen nothing."""
    found = consumer_offsets(connection)
    return found.get(name)


def consumer_offsets(connection: duckdb.DuckDBPyConnection) -> Mapping[str, int]:
    """The snapshot up to which each consumer has seen the lake."""
    return dict(
        connection.execute(
            "SELECT name, position FROM lake.stream_offsets WHERE kind = ?", [CONSUMER]
        ).fetchall()
    )


def set_consumer_offset(
    connection: duckdb.DuckDBPyConnection, name: str, snapshot: int | None
) -> None:
    """Enter up to which snapshot a consumer has seen the lake; None forgets it."""
    known = connection.execute(
        f"SELECT part FROM lake.stream_offsets {_WHERE}", [CONSUMER, name, [""]]
    ).fetchall()
    if snapshot is None:
        if known:
            connection.execute(f"DELETE FROM lake.stream_offsets {_WHERE}", [CONSUMER, name, [""]])
        return
    _replace(connection, CONSUMER, [Offset(name, "", snapshot)], [part for (part,) in known])


def _replace(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    entries: Sequence[Offset],
    known: Collection[str],
) -> None:
    old = [entry.part for entry in entries if entry.part in known]
    if old:
        connection.execute(
            f"DELETE FROM lake.stream_offsets {_WHERE}", [kind, entries[0].name, old]
        )
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
