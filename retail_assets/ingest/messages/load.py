"""Events that came by position, from Kafka, a webhook or a queue: into the tables, each once.

The rows and their offsets are one transaction. A position that the ledger has already changes
nothing; a worker that lost its partition and does not know it yet may offer one. Nor does a message
of a queue that the ledger of queues has: see `ingest/ledgers/queue_messages.py`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import duckdb

from retail_assets.ingest.events.batch import AbortError, EventBatch, abort, event_batch
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.events.strategies import Small
from retail_assets.ingest.ledgers import offsets, queue_messages
from retail_assets.ingest.ledgers.event_files import apply_deltas
from retail_assets.ingest.ledgers.queue_messages import QueueMessage
from retail_assets.ingest.messages.payloads import payloads_to_arrow
from retail_assets.lake.connection import Lake
from retail_assets.mapping.model import EventMappings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

logger = logging.getLogger(__name__)

LINES_PER_CORE = 10_240
"""How many lines a core validates at a time."""


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True)
class Received:
    """Payloads that came together from one source, by position; a payload is one event.

    `offered_at` is when the oldest was offered, in seconds since 1970, and `received_at` since when
    it waits here, by `time.monotonic`; `recorded_us` is when the source recorded the receipt of
    each, in microseconds since 1970, by default of all at `offered_at`. `defect` is why these
    cannot be events at all, if so. `message` is the message of a queue that they came in, if it is
    a queue. Once they are durable the ingest calls `done`; if they could not be ingested, it calls
    `failed` with the reason instead.
    """

    source: str
    source_name: str
    received_date: date
    positions: Sequence[int]
    payloads: Sequence[bytes]
    offered_at: float
    defect: str | None = None
    recorded_us: Sequence[int] = ()
    message: QueueMessage | None = None
    received_at: float = field(default_factory=time.monotonic, compare=False)
    done: Callable[[], None] = field(default=_nothing, compare=False)
    failed: Callable[[str], None] = field(default=_nothing, compare=False)


@dataclass(frozen=True)
class SourceResult:
    """The result of a batch for a source: its new lines, and how they were counted."""

    lines: int
    accepted: int
    dead_lettered: int

    @property
    def duplicate(self) -> int:
        """Lines whose event is there from elsewhere."""
        return self.lines - self.accepted - self.dead_lettered


def ingest(
    session: EventSession,
    batch: Sequence[Received],
    *,
    also: Callable[[], None] = _nothing,
) -> dict[str, SourceResult]:
    """Ingest what was received, in one transaction.

    Args:
        session: a session of ingest.
        batch: what was received; `done` and `failed` are not called here.
        also: called in the transaction, for a heartbeat.

    Returns:
        The result of each source with new lines.
    """
    with event_batch(session, "ingest events", _arrow(batch)) as events:
        messages = _Messages.of(session, batch)
        messages.leave_out_known(events)
        entries = _advance(_next_positions(session, batch), messages.new, events)
        result = events.apply()
        others = []
        for delta in result.deltas:
            part = (delta.source, delta.source_name)
            if part in entries:
                entries[part] = entries[part].plus(delta)
            else:
                others.append(delta)
        offsets.append(session.connection, list(entries.values()))
        apply_deltas(session, others)
        messages.enter(session)
        also()
    messages.committed(session)
    warn_of_new_fields(result.new_fields)
    if session.cache:
        session.cache.positions.update({part: entry.position for part, entry in entries.items()})
    mine = [delta for delta in result.deltas if (delta.source, delta.source_name) in entries]
    return {
        source: SourceResult(
            sum(entry.lines for part, entry in entries.items() if part[0] == source),
            sum(delta.new_accepted for delta in mine if delta.source == source),
            sum(delta.new_dead_lettered for delta in mine if delta.source == source),
        )
        for source in sorted({source for source, _ in entries})
    }


def can_ingest(session: EventSession) -> bool:
    """Whether a made-up event goes through all that a batch goes through but the commit.

    If it does not, an error says nothing about the events that caused it.
    """
    try:
        ingest(session, [_made_up()], also=abort)
    except AbortError:
        return True
    except Exception:
        logger.exception("A made-up event cannot be ingested either")
    return False


def _made_up() -> Received:
    event = b'{"order_id": "O", "customer_id": "C", "order_value_gbp": 1, "region": "North"}'
    return Received("kafka", "", date.today(), [0], [event], offered_at=0.0)  # noqa: DTZ011


def warn_of_new_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Log the fields, with their JSON types, that no event had before."""
    if fields:
        found = ", ".join(f"{name} ({kind})" for name, kind in fields)
        logger.warning("Fields that no event had before: %s", found)


def warm_session(
    lake: Lake, connection: duckdb.DuckDBPyConnection, mappings: EventMappings
) -> EventSession:
    """Get a connection ready to ingest one batch after the other, of few events each.

    The session has a cache, and has validated a made-up event: the first real one need not wait.
    """
    session = EventSession(lake, connection, mappings, cached=True)
    session.open(small=True)
    Small(session.staging).stage(*_arrow([_made_up()]))
    session.staging.clear(changes_stored=False)
    return session


_Part = tuple[str, str]


@dataclass
class _Messages:
    """The messages of queues in a batch, by what the ledger has of each.

    `new` are the parts of the batch without what was ingested before, or is not this worker's.
    """

    known: dict[queue_messages.Part, dict[str, int]]
    new: list[Received] = field(default_factory=list)
    _left_out: dict[_Part, list[int]] = field(default_factory=dict)
    _entered: dict[tuple[queue_messages.Part, str], QueueMessage] = field(default_factory=dict)
    _repeated: list[QueueMessage] = field(default_factory=list)

    @classmethod
    def of(cls, session: EventSession, batch: Sequence[Received]) -> "_Messages":
        """In a transaction, look each message up."""
        parts = {received.message.part for received in batch if received.message}
        found = cls(queue_messages.ingested(session, parts) if parts else {})
        for received in batch:
            found._sort(received)
        return found

    def _sort(self, received: Received) -> None:
        message = received.message
        if message is None:
            self.new.append(received)
            return
        known, count = self.known[message.part], len(received.payloads)
        before = max(0, min(known.get(message.message_id, 0) - message.first, count))
        if before == count:
            self._repeated.append(message)
        elif message.is_held():
            known[message.message_id] = message.first + count
            self._entered[message.part, message.message_id] = message
        else:
            before = count
        if before:
            part = (received.source, received.source_name)
            self._left_out.setdefault(part, []).extend(received.positions[:before])
        if before < count:
            self.new.append(replace(received, positions=received.positions[before:]))

    def leave_out_known(self, events: EventBatch) -> None:
        """Unstage what is not new."""
        for part, positions in self._left_out.items():
            events.leave_out_positions(*part, positions)

    def enter(self, session: EventSession) -> None:
        """Enter the messages that are new."""
        counts = [self.known[part][id_] for part, id_ in self._entered]
        queue_messages.enter(session.connection, list(self._entered.values()), counts)

    def committed(self, session: EventSession) -> None:
        """After the commit, keep what the ledger has now."""
        if session.cache:
            session.cache.messages.update(self.known)
        for message in self._repeated:
            message.on_repeat()


def _next_positions(session: EventSession, batch: Sequence[Received]) -> dict[_Part, int]:
    """In a transaction, the next position that is new of each part of what was received."""
    cache = session.cache
    parts = {(received.source, received.source_name) for received in batch}
    found: dict[_Part, int] = {}
    if cache:
        # After a failure from here on, only the ledger knows whether this was committed.
        found = {part: cache.positions.pop(part) for part in parts & cache.positions.keys()}
    unknown: dict[str, list[str]] = {}
    for source, source_name in parts - found.keys():
        unknown.setdefault(source, []).append(source_name)
    return found | {
        (source, part): position
        for source, names in unknown.items()
        for part, position in offsets.next_positions(session.connection, source, names).items()
    }


def _advance(
    known: dict[_Part, int], batch: Sequence[Received], events: EventBatch
) -> dict[_Part, offsets.Offset]:
    """Move the offsets past what was received; lines that they were past already are left out."""
    import numpy as np

    positions: dict[_Part, list[int]] = {}
    for received in batch:
        positions.setdefault((received.source, received.source_name), []).extend(received.positions)
    entries: dict[_Part, offsets.Offset] = {}
    for part, found in positions.items():
        next_one = known.get(part, 0)
        ahead = int(np.count_nonzero(np.asarray(found, np.int64) >= next_one))
        if ahead < len(found):
            events.leave_out_before(*part, next_one)
        if ahead:
            entries[part] = offsets.Offset(*part, max(found) + 1, ahead)
    return entries


def _arrow(batch: Sequence[Received]) -> "tuple[pa.Table, pa.Table]":
    """Lines and sources as `event_batch` takes them."""
    import numpy as np
    import pyarrow as pa

    # One column at once: there may be thousands of requests of one event each.
    lines = pa.concat_tables(
        payloads_to_arrow([payload for received in alike for payload in received.payloads], defect)
        for defect, alike in groupby(batch, attrgetter("defect"))
    ).combine_chunks()
    positions = [np.asarray(received.positions, np.int64) for received in batch]
    numbers = np.repeat(
        np.arange(len(batch), dtype=np.int32), [len(received.payloads) for received in batch]
    )
    lines = lines.append_column("position", pa.array(np.concatenate(positions)))
    lines = lines.append_column("received_us", pa.array(_receipt_times(batch)))
    lines = lines.append_column("source_no", pa.array(numbers))
    lines = pa.Table.from_batches(lines.to_batches(max_chunksize=LINES_PER_CORE))
    sources = pa.table(
        {
            "source_no": pa.array(range(len(batch)), pa.int32()),
            "received_date": pa.array([item.received_date for item in batch], pa.date32()),
            "source": pa.array([item.source for item in batch], pa.string()),
            "source_name": pa.array([item.source_name for item in batch], pa.string()),
            "version": pa.array([1] * len(batch), pa.int64()),
        }
    )
    return lines, sources


def _receipt_times(batch: Sequence[Received]) -> "npt.NDArray[np.int64]":
    import numpy as np

    return np.concatenate(
        [
            np.asarray(item.recorded_us, np.int64)
            if item.recorded_us
            else np.full(len(item.payloads), item.offered_at * 1e6, np.int64)
            for item in batch
        ]
    )
