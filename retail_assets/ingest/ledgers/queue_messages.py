"""The ledger of queues: which messages were ingested and may be delivered again.

A queue has no offsets. It delivers a message again and again until it is deleted, and it can only
be deleted after the commit: so every message may come twice, whenever a worker dies in between. The
ledger knows a message by the id that the queue gave it. The id is committed with the events, and is
looked up in the transaction of each batch, under the write lock. A message that comes again
changes nothing then; it is counted, and deleted from the queue.

The ledger has to know a message only as long as it may come again. A worker notes which messages
are deleted, and some minutes later their entries leave (`KEEP`). By then no worker can commit an
earlier copy, since that is done only while the queue holds the message back for it. The entry of a
message that nobody knows to be deleted, because a worker died, leaves once the queue cannot have it
any more (`RETENTION`). So the ledger has what came in some minutes, and the few messages of each
crash, whatever the length of history; a session keeps it in its cache, and a batch costs no query.

A queue may, very rarely, deliver a message that it has deleted long ago. Its events are duplicates
then, by their identity; a line that is no event would be a second dead letter.

Every function that writes works in the caller's transaction.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, TypeAlias

from retail_assets.lake.rows import insert_columns

if TYPE_CHECKING:
    import duckdb

    from retail_assets.ingest.events.session import EventSession

KEEP = timedelta(minutes=5)
"""How long the ledger knows a message that was deleted: many times as long as a queue holds a
message back for a worker that does not extend this."""

RETENTION = timedelta(days=15)
"""How long it knows a message that may not be deleted: Amazon SQS keeps none for longer than 14."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Part: TypeAlias = tuple[str, str]
"""A source and the queue that it reads."""


def _always() -> bool:
    return True


def _nothing() -> None:
    return


@dataclass(frozen=True)
class QueueMessage:
    """A message of a queue, or a part of it: its events from number `first` (from 0) on.

    `sent_us` is when it was sent, in microseconds since 1970. Within the transaction `is_held` says
    whether the queue still holds it back for this worker: otherwise it may be another's by now, and
    is left to that. Once a message that was ingested before was met again, `on_repeat` is called.
    """

    source: str
    queue: str
    message_id: str
    sent_us: int
    first: int = 0
    is_held: Callable[[], bool] = field(default=_always, compare=False)
    on_repeat: Callable[[], None] = field(default=_nothing, compare=False)

    def event(self, number: int) -> "QueueMessage":
        """The part of it that begins with one of its events, counted from its first."""
        return replace(self, first=self.first + number)

    @property
    def part(self) -> Part:
        """The source and the queue."""
        return self.source, self.queue


def ingested(session: "EventSession", parts: Collection[Part]) -> dict[Part, dict[str, int]]:
    """In a transaction, how many events were ingested of each message of some queues.

    The caller owns the result; the cache, if there is one, has these no longer: after a failure
    only the ledger knows what was committed.
    """
    cache = session.cache
    found = {part: cache.messages.pop(part) for part in parts if cache and part in cache.messages}
    for source, queue in set(parts) - found.keys():
        found[source, queue] = dict(
            session.connection.execute(
                "SELECT message_id, max(events) FROM lake.queue_messages"
                " WHERE concat(source) = ? AND concat(queue) = ? GROUP BY message_id",
                [source, queue],
            ).fetchall()
        )
    return found


def enter(
    connection: "duckdb.DuckDBPyConnection", messages: Sequence[QueueMessage], events: Sequence[int]
) -> None:
    """Enter how many events, from the first, of each message are ingested now."""
    if not messages:
        return
    columns: dict[str, Sequence[object]] = {
        "source VARCHAR": [message.source for message in messages],
        "queue VARCHAR": [message.queue for message in messages],
        "message_id VARCHAR": [message.message_id for message in messages],
        "events BIGINT": events,
        "sent_at TIMESTAMPTZ": [
            _EPOCH + timedelta(microseconds=message.sent_us) for message in messages
        ],
    }
    insert_columns(connection, "queue_messages", columns, "now() AS ingested_at")


def note_deleted(
    connection: "duckdb.DuckDBPyConnection", part: Part, message_ids: Collection[str]
) -> None:
    """Note that messages were deleted from their queue."""
    if message_ids:
        connection.execute(
            "UPDATE lake.queue_messages SET deleted_at = now() WHERE source = ? AND queue = ?"
            " AND message_id IN (SELECT unnest(?::VARCHAR[])) AND deleted_at IS NULL",
            [*part, list(message_ids)],
        )


def has_expired(connection: "duckdb.DuckDBPyConnection") -> bool:
    """Whether there is something to `forget`."""
    found = connection.execute(
        f"SELECT 1 FROM lake.queue_messages WHERE {_EXPIRED} LIMIT 1", [KEEP, RETENTION]
    ).fetchone()
    return found is not None


def forget(connection: "duckdb.DuckDBPyConnection") -> None:
    """Delete the entries of messages that cannot come again."""
    connection.execute(f"DELETE FROM lake.queue_messages WHERE {_EXPIRED}", [KEEP, RETENTION])


_EXPIRED = "(deleted_at < now() - ?::INTERVAL OR sent_at < now() - ?::INTERVAL)"
