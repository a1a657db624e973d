"""Produces rows of some tables to Kafka topics: new ones, changed ones and deleted ones.

A message is a row as it is now. Its key is the row's identity. Its value is a strict JSON object of
the columns, or null once the row is deleted (a tombstone), so that a compacted topic is the table.
The headers say what happened: `table`, `change` (`insert`, `update`, `delete`, or `snapshot` where
the whole table is sent) and `snapshot`, the commit of the lake that the row was read at.

Messages are sent at least once: the offset, a snapshot of the lake, moves when the broker has every
message. A row that changed several times since the offset is sent once, in its last state.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
from filelock import FileLock, Timeout

from retail_assets import tables
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.ledgers.offsets import consumer_offset, move_consumer
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.sql import literal
from retail_assets.outbound.strict_json import strict
from retail_assets.settings import Settings
from retail_assets.tables import INSTANT, Table

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

MOST_SNAPSHOTS = 1_000
"""How many commits of the lake a round reads at most; the next one goes on from there."""

QUEUE_KILOBYTES = 64 << 10
"""Memory of the client; its default is a gigabyte."""

ROWS = 2_000
"""How many rows are fetched from the lake at a time."""

PERSIST_AFTER = 100
"""Snapshots that an offset falls behind while nothing changes: moving it is a commit."""

PERSIST_MINUTES = 10
"""The same in minutes: the lake forgets single snapshots after some hours."""

ALERT_TABLES = ("fraud_alerts", "stock_alerts")

CONNECT_SECONDS = 5.0
MESSAGE_SECONDS = 30
POLL_SECONDS = 0.1

MESSAGE_BYTES = 16 << 20
"""More than any event has: so the broker's own limit counts."""

JSON_COLUMNS = frozenset({"extra", "lines"})
"""Columns of text that are JSON, and stand in the value as such."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutboundTopic:
    """A topic, and the tables that are produced to it; `name` is that of the offset."""

    name: str
    topic: str
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Produced:
    """The outcome of a round.

    `snapshot` is the new offset, `rows` and `tombstones` the messages that the broker has, `whole`
    whether all rows were sent, and `complete` whether the round came as far as the lake had come
    when it began.
    """

    target: str
    snapshot: int
    rows: int
    tombstones: int
    whole: bool
    complete: bool


class ProduceError(RetailAssetsError):
    """A round that failed: the offset is as before, and the next round sends the same again."""


def outbound_topics(settings: Settings) -> list[OutboundTopic]:
    """The topics that the settings name; there may be none.

    Raises:
        UsageError: if there is a topic but no broker.
    """
    alerts = [tables.BY_NAME[name] for name in ALERT_TABLES if name in tables.BY_NAME]
    found = [
        OutboundTopic(name, topic, tuple(sources))
        for name, topic, sources in (
            ("publish_events", settings.publish_events_topic, [tables.ENRICHED_EVENTS]),
            ("publish_alerts", settings.publish_alerts_topic, alerts),
        )
        if topic
    ]
    if found and not settings.publish_bootstrap:
        raise UsageError(
            f"There is a topic to publish on to ({found[0].topic}) but no broker: set"
            " RETAIL_PUBLISH_BOOTSTRAP, such as to localhost:9092."
        )
    return found


class TopicProducer:
    """Produces to one topic, round by round, from one thread."""

    def __init__(self, settings: Settings, target: OutboundTopic) -> None:
        self.settings = settings
        self.target = target
        self._producer: Producer | None = None
        self._looked: tuple[int | None, int] | None = None
        self._moved_at = time.monotonic()

    def produce(
        self,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        stop: Callable[[], bool] = lambda: False,
    ) -> Produced | None:
        """Send what is new since the offset, and move it once the broker has everything.

        Args:
            lake: the lake that the connection is to.
            connection: a connection that can write, in no transaction.
            stop: called now and then; True ends the round.

        Returns:
            The outcome; None if nothing was new, if another process of this machine produces to the
            topic, or if the round was stopped.

        Raises:
            ProduceError: if the broker is unavailable or did not accept a message.
        """
        self.settings.lake_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.settings.lake_dir / f"{self.target.name}.lock", timeout=0)
        try:
            # Two processes would send everything twice, and perhaps in the wrong order.
            with lock:
                return self._round(lake, connection, stop)
        except Timeout:
            return None

    def close(self) -> None:
        """Drop the client, and messages that the broker lacks: the next round sends them."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(POLL_SECONDS)
            self._producer = None

    def _round(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, stop: Callable[[], bool]
    ) -> Produced | None:
        offset = consumer_offset(connection, self.target.name)
        seen = current_snapshot(connection)
        if offset is None and self.settings.publish_from == "now":
            self._move(lake, connection, None, seen)
            return None
        after = offset
        if self._looked is not None and self._looked[0] == offset:
            after = self._looked[1]
        if after == seen:
            return None
        if after is not None:
            span = SnapshotRange(after, _range_end(connection, after, seen), seen)
            try:
                if history.is_kept(connection, after):
                    return self._send(lake, connection, offset, span, stop)
            except duckdb.Error as error:
                if "No snapshot found" not in str(error):
                    raise
            logger.warning(
                "The lake no longer has the changes since snapshot %s: %s sends all rows.",
                *(after, self.target.name),
            )
        return self._send(lake, connection, offset, SnapshotRange(None, seen, seen), stop)

    def _send(
        self,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        offset: int | None,
        span: "SnapshotRange",
        stop: Callable[[], bool],
    ) -> Produced | None:
        delivery = Delivery()
        try:
            for row in _rows(connection, self.target, span):
                self._send_row(row, span, delivery, stop)
            while delivery.open:
                self._wait(delivery, stop)
        except _StoppedError:
            self.close()
            return None
        except BaseException:
            # Messages under way must not arrive after those of the next round.
            self.close()
            raise
        whole = span.after is None
        if not delivery.rows and not delivery.tombstones and not whole:
            self._nothing(lake, connection, offset, span.seen)
            return None
        self._move(lake, connection, offset, span.seen)
        name, complete = self.target.name, span.seen == span.newest
        return Produced(name, span.seen, delivery.rows, delivery.tombstones, whole, complete)

    def _send_row(
        self, row: "Row", span: "SnapshotRange", delivery: "Delivery", stop: Callable[[], bool]
    ) -> None:
        headers: list[tuple[str, str | bytes | None]] = [
            ("table", row.table.encode()),
            ("change", row.change.encode()),
            ("snapshot", str(span.seen).encode()),
        ]
        from confluent_kafka import KafkaException

        producer = self._connect()
        while True:
            try:
                producer.produce(
                    self.target.topic,
                    key=row.key.encode(),
                    value=None if row.value is None else row.value.encode(),
                    headers=headers,
                    on_delivery=delivery.report,
                )
            except BufferError:
                self._wait(delivery, stop)
            except KafkaException as error:
                problem = f"{error.args[0].str()} (at the key {row.key})"
                raise self._error(problem) from None
            else:
                break
        delivery.count(row)
        if delivery.open % ROWS == 0:
            self._wait(delivery, stop, 0)

    def _wait(
        self, delivery: "Delivery", stop: Callable[[], bool], seconds: float = POLL_SECONDS
    ) -> None:
        """Wait for acknowledgements of the broker.

        Raises:
            ProduceError: if a message was not accepted.
        """
        self._connect().poll(seconds)
        if delivery.problem is not None:
            raise self._error(delivery.problem)
        if stop():
            raise _StoppedError

    def _connect(self) -> "Producer":
        if self._producer is not None:
            return self._producer
        from confluent_kafka import KafkaException, Producer

        try:
            producer = Producer(self._options(), logger=logger)
            # All topics: to ask for one by name may create it.
            topics = producer.list_topics(timeout=CONNECT_SECONDS).topics
        except KafkaException as error:
            raise self._error(str(error.args[0].str())) from None
        if self.target.topic not in topics:
            raise self._error("there is no such topic; create it, or correct its name")
        self._producer = producer
        return producer

    def _options(self) -> dict[str, Any]:
        return {
            "linger.ms": 5,
            "message.timeout.ms": MESSAGE_SECONDS * 1000,
            "message.max.bytes": MESSAGE_BYTES,
            "queue.buffering.max.kbytes": QUEUE_KILOBYTES,
            **self.settings.kafka_options,
            "bootstrap.servers": self.settings.publish_bootstrap,
            # The broker drops messages that the client repeats, and keeps the order.
            "enable.idempotence": True,
            "acks": "all",
        }

    def _error(self, problem: str) -> ProduceError:
        for value in self.settings.kafka_options.values():
            if isinstance(value, str) and value:
                problem = problem.replace(value, "•••")
        return ProduceError(
            f"{self.target.name} could not send to the topic {self.target.topic} at"
            f" {self.settings.publish_bootstrap}: {problem.rstrip('.')}. It goes on from there once"
            " this is corrected."
        )

    def _nothing(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, offset: int | None, seen: int
    ) -> None:
        """Note the snapshot up to which nothing was new; now and then in the lake, too."""
        self._looked = (offset, seen)
        minutes = (time.monotonic() - self._moved_at) / 60
        behind = seen - (offset or 0)
        if behind >= PERSIST_AFTER or (minutes >= PERSIST_MINUTES and behind > 1):
            self._move(lake, connection, offset, seen)

    def _move(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, offset: int | None, seen: int
    ) -> None:
        name = self.target.name
        with lake.transaction(connection, f"move the offset of {name}"):
            # If somebody has moved it meanwhile, the next round goes on from there.
            if consumer_offset(connection, name) == offset:
                move_consumer(connection, name, seen)
        self._looked = None
        self._moved_at = time.monotonic()


@dataclass(frozen=True)
class SnapshotRange:
    """The rows of a round: the changes after a snapshot (None: all rows) up to another.

    `newest` is the snapshot that the lake was at.
    """

    after: int | None
    seen: int
    newest: int


@dataclass(frozen=True)
class Row:
    """A message: `value` is a JSON object, or None for a tombstone."""

    table: str
    key: str
    change: str
    value: str | None


@dataclass
class Delivery:
    """The messages of a round, and the broker's answers."""

    rows: int = 0
    tombstones: int = 0
    open: int = 0
    problem: str | None = None

    def count(self, row: Row) -> None:
        """Count a message that the client has accepted."""
        self.open += 1
        if row.value is None:
            self.tombstones += 1
        else:
            self.rows += 1

    def report(self, error: "KafkaError | None", message: "Message") -> None:
        """Note the broker's answer to a message."""
        self.open -= 1
        if error is not None and self.problem is None:
            key = (message.key() or b"").decode()
            self.problem = f"{error.str()} (first at the key {key})"


class _StoppedError(Exception):
    """The caller has stopped the round."""


def _range_end(connection: duckdb.DuckDBPyConnection, after: int, seen: int) -> int:
    """The last snapshot of a round; changes can be read between two snapshots that exist."""
    if seen - after <= MOST_SNAPSHOTS:
        return seen
    found = history.last_kept(connection, after, after + MOST_SNAPSHOTS)
    return seen if found is None else found


def _rows(
    connection: duckdb.DuckDBPyConnection, target: OutboundTopic, span: SnapshotRange
) -> Iterator[Row]:
    for table in target.tables:
        name = table.name if len(target.tables) > 1 else None
        result = connection.execute(_query(table, name, span))
        while rows := result.fetchmany(ROWS):
            for key, change, value, is_odd in rows:
                yield Row(table.name, key, change, strict(value) if value and is_odd else value)


def _query(table: Table, prefix: str | None, span: SnapshotRange) -> str:
    """The messages of a table: key, change, value, and whether the value may not be strict JSON."""
    keys = ", ".join(table.key)
    text = f"concat_ws(':', {literal(prefix) + ', ' if prefix else ''}{keys})"
    fields = ", ".join(
        f"{literal(name)}: {_json(name, type_)}" for name, type_ in table.types.items()
    )
    value = f"to_json({{{fields}}})::VARCHAR"
    odd = [
        f"{name} IS NOT NULL"
        for name, kind in table.types.items()
        if name in JSON_COLUMNS or kind == "DOUBLE"
    ]
    is_odd = " OR ".join(odd) or "false"
    ordered = ("received_at", "source", "source_name", "version", "position")
    places = [name for name in ordered if name in table.types]
    if span.after is None:
        order = ", ".join(places or table.key)
        return (
            f"SELECT {text}, 'snapshot', {value}, {is_odd}"
            f" FROM lake.{table.name} AT (VERSION => {span.seen}) ORDER BY {order}"
        )
    changes = f"lake.table_changes('{table.name}', {span.after + 1}, {span.seen})"
    return (
        f"SELECT {text}, CASE WHEN NOT here THEN 'delete' WHEN went THEN 'update' ELSE 'insert'"
        f" END, CASE WHEN here THEN {value} END, {is_odd} FROM"
        " (SELECT *, change_type IN ('insert', 'update_postimage') AS here,"
        " bool_or(change_type IN ('delete', 'update_preimage')) OVER of_key AS went"
        f" FROM {changes} WINDOW of_key AS (PARTITION BY {keys})"
        f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY snapshot_id DESC,"
        " change_type IN ('insert', 'update_postimage') DESC) = 1)"
        f" ORDER BY {', '.join(['snapshot_id', *places])}"
    )


def _json(name: str, type_: str) -> str:
    if type_ == INSTANT:
        return f"strftime({name} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
    return f"{name}::JSON" if name in JSON_COLUMNS else name
