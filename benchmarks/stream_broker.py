"""The topic that all cases of the worker's throughput read: events in a real broker."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer

from tools.broker import Broker, running_broker

TOPIC = "events"
PARTITIONS = 4  # more than one for each core, so that two readers share them evenly

# Events of an order keep their sequence; so does an event that is sent twice.
KEY = re.compile(rb'"order_id": ?"([^"]+)"')


@contextmanager
def filled_broker(events: Path, partitions: int = PARTITIONS) -> Iterator[tuple[Broker, int]]:
    """A broker whose topic holds the lines of a file, and the number of lines."""
    with running_broker() as broker:
        # This broker tells no defaults, and Quix Streams asks for these.
        config = {"retention.ms": "604800000", "retention.bytes": "-1"}
        broker.create_topic(TOPIC, partitions, **config)
        yield broker, produce(broker.bootstrap, TOPIC, events)


def produce(bootstrap: str, topic: str, events: Path) -> int:
    """Send every line of a file as a message, its key the order; returns how many.

    Raises:
        RuntimeError: The broker did not take a message.
    """
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 500_000}
    )
    refused: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(str(error))

    lines = 0
    with events.open("rb") as file:
        for line in file:
            found = KEY.search(line)
            key = found.group(1) if found else b"%d" % lines
            while True:
                try:
                    producer.produce(topic, line.rstrip(b"\n"), key, on_delivery=delivered)
                except BufferError:
                    producer.poll(0.1)
                else:
                    break
            lines += 1
            if lines % 1000 == 0:
                producer.poll(0)
    if producer.flush(60) or refused:
        raise RuntimeError(
            f"The broker did not take {len(refused) or 'all'} messages: {refused[:1]}"
        )
    return lines
