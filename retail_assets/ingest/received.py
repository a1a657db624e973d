"""Events that came by position, from Kafka or a webhook: into the tables, each exactly once.

The rows and the offsets that speak of them are one transaction. Who offers a position again that
the ledger has already, such as a worker that does not know yet that it lost its partition, changes
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

import duckdb

from retail_assets.ingest import offsets
from retail_assets.ingest.event_files import apply_deltas
from retail_assets.ingest.event_lines import payloads_to_arrow
from retail_assets.ingest.events import SMALL, EventBatch
from retail_assets.lake.connection import Lake

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_LINES = 20_480
"""How many lines a core judges at a time."""


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True)
class Received:
    """Payloads that came together from one source, by position; a payload is one event.

    `offered_at` is when the oldest was offered, in seconds since 1970; `defect` is why these cannot
    be taken for events at all, if so. Once they are durable the
    ingest calls `done`; if they could not be taken in, it calls `failed` with the reason instead.
    """

    source: str
    source_name: str
    received_date: date
    positions: Sequence[int]
    payloads: Sequence[bytes]
    offered_at: float
    defect: str | None = None
    done: Callable[[], None] = field(default=_nothing, compare=False)
    failed: Callable[[str], None] = field(default=_nothing, compare=False)


@dataclass(frozen=True)
class Taken:
    """What came of a batch: lines that were new, and of these accepted and dead-lettered ones."""

    lines: int
    accepted: int
    dead_lettered: int

    @property
    def duplicate(self) -> int:
        """Lines whose event is there from elsewhere."""
        return self.lines - self.accepted - self.dead_lettered


def take(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    batch: Sequence[Received],
    *,
    also: Callable[[], None] = _nothing,
) -> Taken:
    """Take in what was received, in one transaction.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        batch: what was received; nobody is told of it here.
        also: called in the transaction, for a heartbeat.
    """
    few = sum(len(received.payloads) for received in batch) <= SMALL
    with EventBatch(connection) as events:
        if not few:
            events.add(*_arrow(batch))
        with lake.transaction(connection, "ingest events"):
            if few:
                # Each statement outside would be a transaction of its own, which opens the
                # catalog: that takes longer than to judge these.
                events.add(*_arrow(batch))
            known = _known(connection, batch)
            entries = _advance(known, batch, events)
            settled = events.settle()
            others = []
            for delta in settled.deltas:
                part = (delta.source, delta.source_name)
                if part in entries:
                    entries[part] = entries[part].plus(delta)
                else:
                    others.append(delta)
            _write(connection, entries, known)
            apply_deltas(connection, others)
            also()
    mine = [delta for delta in settled.deltas if (delta.source, delta.source_name) in entries]
    lines = sum(entry.lines - _lines(known, part) for part, entry in entries.items())
    return Taken(lines, sum(item.taken for item in mine), sum(item.taken_dead for item in mine))


def warm_up(connection: duckdb.DuckDBPyConnection) -> None:
    """Judge a made-up event and forget it, so that the first real one need not wait for that."""
    made_up = Received("kafka", "", date.today(), [0], [b"{}"], offered_at=0.0)  # noqa: DTZ011
    with EventBatch(connection) as events:
        events.add(*_arrow([made_up]))


_Part = tuple[str, str]


def _known(
    connection: duckdb.DuckDBPyConnection, batch: Sequence[Received]
) -> dict[_Part, offsets.Offset]:
    """What the ledger has of the parts that something was received from."""
    names: dict[str, set[str]] = {}
    for received in batch:
        names.setdefault(received.source, set()).add(received.source_name)
    return {
        (source, part): entry
        for source, parts in names.items()
        for part, entry in offsets.read(connection, source, parts).items()
    }


def _lines(known: dict[_Part, offsets.Offset], part: _Part) -> int:
    return known[part].lines if part in known else 0


def _advance(
    known: dict[_Part, offsets.Offset], batch: Sequence[Received], events: EventBatch
) -> dict[_Part, offsets.Offset]:
    """Move the offsets past what was received; lines that they were past already are left out."""
    positions: dict[_Part, list[int]] = {}
    for received in batch:
        positions.setdefault((received.source, received.source_name), []).extend(received.positions)
    entries: dict[_Part, offsets.Offset] = {}
    for part, found in positions.items():
        entry = known.get(part, offsets.Offset(*part))
        ahead = sum(position >= entry.position for position in found)
        if ahead < len(found):
            events.leave_out_before(*part, entry.position)
        if ahead:
            entries[part] = replace(entry, position=max(found) + 1, lines=entry.lines + ahead)
    return entries


def _write(
    connection: duckdb.DuckDBPyConnection,
    entries: dict[_Part, offsets.Offset],
    known: dict[_Part, offsets.Offset],
) -> None:
    for source in {source for source, _ in entries}:
        offsets.write(
            connection,
            [entry for (name, _), entry in entries.items() if name == source],
            [part for name, part in known if name == source],
        )


def _arrow(batch: Sequence[Received]) -> "tuple[pa.Table, pa.Table]":
    """Lines and sources as `EventBatch.add` takes them."""
    import numpy as np
    import pyarrow as pa

    lines = pa.concat_tables(
        payloads_to_arrow(list(received.payloads), received.defect) for received in batch
    ).combine_chunks()
    positions = [np.asarray(received.positions, np.int64) for received in batch]
    numbers = np.repeat(
        np.arange(len(batch), dtype=np.int32), [len(received.payloads) for received in batch]
    )
    lines = lines.append_column("position", pa.array(np.concatenate(positions)))
    lines = lines.append_column("source_no", pa.array(numbers))
    lines = pa.Table.from_batches(lines.to_batches(max_chunksize=CHUNK_LINES))
    sources = pa.table(
        {
            "source_no": pa.array(range(len(batch)), pa.int32()),
            "received_date": pa.array([item.received_date for item in batch], pa.date32()),
            "source": pa.array([item.source for item in batch], pa.string()),
            "source_name": pa.array([item.source_name for item in batch], pa.string()),
        }
    )
    return lines, sources
