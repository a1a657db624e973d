"""Publishing on: what comes into some tables, or changes there, becomes messages of a Kafka topic.

A message is a row as it is now. Its key is the row's identity and its value a strict JSON object of
the columns, or null once the row is gone (a tombstone), so that a compacted topic is the table. The
headers say what happened: `table`, `change` (`insert`, `update`, `delete`, or `snapshot` where the
whole table is sent) and `snapshot`, the commit of the lake up to which it was looked at.

At least once: the offset, a snapshot of the lake, moves when the broker has every message. A row
that changed several times since then is sent once, as it is in the end.
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
"""How many commits of the lake a round looks at; the next one goes on from there."""

QUEUE_KILOBYTES = 64 << 10
"""Memory that the client may hold; a gigabyte by default."""

ROWS = 2_000
"""How many rows are fetched from the lake at a time."""

PERSIST_AFTER = 100
"""By how many snapshots an offset falls behind while nothing changes: moving it is a commit."""

PERSIST_MINUTES = 10
"""The same in minutes: the lake forgets single snapshots after some hours."""

ALERT_TABLES = ("fraud_alerts", "stock_alerts")

CONNECT_SECONDS = 5.0
MESSAGE_SECONDS = 30
POLL_SECONDS = 0.1

MESSAGE_BYTES = 16 << 20
"""More than any event has: so the broker's own limit is the one that counts."""

JSON_COLUMNS = frozenset({"extra"})
"""Columns of text that are JSON: part of the value as such."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """The tables that go to a topic. `name` is that of the offset."""

    name: str
    topic: str
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Published:
    """The outcome of a round.

    `snapshot` is the new offset, `rows` and `tombstones` the messages that the broker has, `whole`
    whether all rows were sent, and `complete` whether the round came as far as the lake had come
    when it began.
    """

    publication: str
    snapshot: int
    rows: int
    tombstones: int
    whole: bool
    complete: bool


class PublishError(RetailAssetsError):
    """A round that failed; the offset is as it was, and the next round sends the same again."""


def publications(settings: Settings) -> list[Publication]:
    """The topics that the settings name; there may be none.

    Raises:
        UsageError: if there is a topic but no broker.
    """
    alerts = [tables.BY_NAME[name] for name in ALERT_TABLES if name in tables.BY_NAME]
    found = [
        Publication(name, topic, tuple(sources))
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


class Publisher:
    """Publishes on to one topic, round by round, from one thread."""

    def __init__(self, settings: Settings, publication: Publication) -> None:
        self.settings = settings
        self.publication = publication
        self._producer: Producer | None = None
        self._looked: tuple[int | None, int] | None = None
        self._moved_at = time.monotonic()

    def publish(
        self,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        stop: Callable[[], bool] = lambda: False,
    ) -> Published | None:
        """Send what is new since the offset, and move it once the broker has everything.

        Args:
            lake: the lake that the connection is to.
            connection: a connection that can write, in no transaction.
            stop: asked now and then whether to leave the round to another time.

        Returns:
            What was sent; None if nothing was new, if another process of this machine is at it, or
            if it was stopped.

        Raises:
            PublishError: if the broker is away or did not take a message.
        """
        self.settings.lake_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.settings.lake_dir / f"{self.publication.name}.lock", timeout=0)
        try:
            # Two at once would send everything twice, and perhaps the older last.
            with lock:
                return self._round(lake, connection, stop)
        except Timeout:
            return None

    def close(self) -> None:
        """Let go of the broker, and of what it does not have yet: the next round sends it."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(POLL_SECONDS)
            self._producer = None

    def _round(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, stop: Callable[[], bool]
    ) -> Published | None:
        offset = consumer_offset(connection, self.publication.name)
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
            portion = Portion(after, _portion_end(connection, after, seen), seen)
            try:
                if history.is_kept(connection, after):
                    return self._send(lake, connection, offset, portion, stop)
            except duckdb.Error as error:
                if "No snapshot found" not in str(error):
                    raise
            logger.warning(
                "The lake no longer has the changes since snapshot %s: %s sends all rows.",
                *(after, self.publication.name),
            )
        return self._send(lake, connection, offset, Portion(None, seen, seen), stop)

    def _send(
        self,
        lake: Lake,
        connection: duckdb.DuckDBPyConnection,
        offset: int | None,
        portion: "Portion",
        stop: Callable[[], bool],
    ) -> Published | None:
        delivery = Delivery()
        try:
            for row in _rows(connection, self.publication, portion):
                self._produce(row, portion, delivery, stop)
            while delivery.open:
                self._wait(delivery, stop)
        except _StoppedError:
            self.close()
            return None
        except BaseException:
            # What is still under way must not arrive after what the next round sends.
            self.close()
            raise
        whole = portion.after is None
        if not delivery.rows and not delivery.tombstones and not whole:
            self._nothing(lake, connection, offset, portion.seen)
            return None
        self._move(lake, connection, offset, portion.seen)
        name, complete = self.publication.name, portion.seen == portion.newest
        return Published(name, portion.seen, delivery.rows, delivery.tombstones, whole, complete)

    def _produce(
        self, row: "Row", portion: "Portion", delivery: "Delivery", stop: Callable[[], bool]
    ) -> None:
        headers: list[tuple[str, str | bytes | None]] = [
            ("table", row.table.encode()),
            ("change", row.change.encode()),
            ("snapshot", str(portion.seen).encode()),
        ]
        from confluent_kafka import KafkaException

        producer = self._connect()
        while True:
            try:
                producer.produce(
                    self.publication.topic,
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
        """Let the broker's answers come in.

        Raises:
            PublishError: if one of them says that a message was not taken.
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
            # All of them: to ask for one by name may create it.
            topics = producer.list_topics(timeout=CONNECT_SECONDS).topics
        except KafkaException as error:
            raise self._error(str(error.args[0].str())) from None
        if self.publication.topic not in topics:
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
            # The broker drops what the client sends again, and keeps the order.
            "enable.idempotence": True,
            "acks": "all",
        }

    def _error(self, problem: str) -> PublishError:
        for value in self.settings.kafka_options.values():
            if isinstance(value, str) and value:
                problem = problem.replace(value, "•••")
        return PublishError(
            f"{self.publication.name} could not send to the topic {self.publication.topic} at"
            f" {self.settings.publish_bootstrap}: {problem.rstrip('.')}. It goes on from there once"
            " this is corrected."
        )

    def _nothing(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, offset: int | None, seen: int
    ) -> None:
        """Note the snapshot up to which nothing was to send; now and then in the lake, too."""
        self._looked = (offset, seen)
        minutes = (time.monotonic() - self._moved_at) / 60
        behind = seen - (offset or 0)
        if behind >= PERSIST_AFTER or (minutes >= PERSIST_MINUTES and behind > 1):
            self._move(lake, connection, offset, seen)

    def _move(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, offset: int | None, seen: int
    ) -> None:
        name = self.publication.name
        with lake.transaction(connection, f"move the offset of {name}"):
            # Somebody may have set it meanwhile: then the next round goes on from there.
            if consumer_offset(connection, name) == offset:
                move_consumer(connection, name, seen)
        self._looked = None
        self._moved_at = time.monotonic()


@dataclass(frozen=True)
class Portion:
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
    """The messages that the client got in a round, and the broker's answers."""

    rows: int = 0
    tombstones: int = 0
    open: int = 0
    problem: str | None = None

    def count(self, row: Row) -> None:
        """Enter a message that was handed to the client."""
        self.open += 1
        if row.value is None:
            self.tombstones += 1
        else:
            self.rows += 1

    def report(self, error: "KafkaError | None", message: "Message") -> None:
        """Enter what the broker said of a message."""
        self.open -= 1
        if error is not None and self.problem is None:
            key = (message.key() or b"").decode()
            self.problem = f"{error.str()} (first at the key {key})"


class _StoppedError(Exception):
    """The round is to be left to another time."""


def _portion_end(connection: duckdb.DuckDBPyConnection, after: int, seen: int) -> int:
    """The snapshot up to which a round looks; changes can be read between two that exist."""
    if seen - after <= MOST_SNAPSHOTS:
        return seen
    found = history.last_kept(connection, after, after + MOST_SNAPSHOTS)
    return seen if found is None else found


def _rows(
    connection: duckdb.DuckDBPyConnection, publication: Publication, portion: Portion
) -> Iterator[Row]:
    for table in publication.tables:
        name = table.name if len(publication.tables) > 1 else None
        result = connection.execute(_query(table, name, portion))
        while rows := result.fetchmany(ROWS):
            for key, change, value, is_odd in rows:
                yield Row(table.name, key, change, strict(value) if value and is_odd else value)


def _query(table: Table, prefix: str | None, portion: Portion) -> str:
    """The messages of a table: key, what happened, the value, and whether it may not be strict."""
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
    if portion.after is None:
        order = ", ".join(places or table.key)
        return (
            f"SELECT {text}, 'snapshot', {value}, {is_odd}"
            f" FROM lake.{table.name} AT (VERSION => {portion.seen}) ORDER BY {order}"
        )
    changes = f"lake.table_changes('{table.name}', {portion.after + 1}, {portion.seen})"
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
