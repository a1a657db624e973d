"""Builds a worker from its options: its sources, and the loops that follow the events."""

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from retail_assets.errors import UsageError
from retail_assets.ingest.ledgers.workers import LAG
from retail_assets.lake.checksums import note_new_files
from retail_assets.worker.prometheus import metrics_text
from retail_assets.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from retail_assets.consumers.framework import Consumer
    from retail_assets.consumers.keyed.follower import Follower
    from retail_assets.outbound.kafka import TopicProducer
    from retail_assets.outbound.lookups.follow import LookupFollower
    from retail_assets.settings import Settings
    from retail_assets.worker.background import Iteration
    from retail_assets.worker.sources.queues.source import QueueSource

logger = logging.getLogger(__name__)

CONSUMER_SECONDS = 1.0
CONSUMER_PAUSE_SECONDS = 0.05
NOTIFY_SECONDS = 5.0

CHECKSUM_SECONDS = 30.0
"""How often checksums of new files are noted: by then, small files were merged."""

QUEUE_SECONDS = 30.0
"""How often the ledger of queues is told which messages are deleted."""

LAG_SECONDS = 5.0
"""How often the lag of consumers is measured."""


@dataclass(frozen=True)
class Options:
    """The options of a worker: `http` is host and port, `kafka` the brokers.

    `sqs` and `sqs_files` are the URLs of queues with events, and with names of event files.
    """

    files: bool = True
    kafka: str | None = None
    topic: str | None = None
    group: str = "retail-assets"
    http: str | None = None
    sqs: str | None = None
    sqs_files: str | None = None
    consumers: bool = True


def build_worker(settings: "Settings", options: Options) -> Worker:
    """Put a worker together.

    Raises:
        UsageError: if the options do not go together, or a setting cannot be used.
    """
    worker = Worker(settings, files=options.files)
    if options.kafka:
        from retail_assets.worker.sources.kafka.source import KafkaSource

        if not options.topic:
            raise UsageError("--kafka needs a --topic to read.")
        worker.sources.append(
            KafkaSource(
                settings,
                worker.lake,
                bootstrap=options.kafka,
                topic=options.topic,
                group=options.group,
            )
        )
    elif options.topic:
        raise UsageError("--topic needs --kafka: the brokers, such as localhost:9092.")
    if options.http:
        from retail_assets.worker.sources.webhook.source import WebhookSource

        host, port = _address(options.http)
        worker.sources.append(
            WebhookSource(
                settings,
                host=host,
                port=port,
                worker=worker.name,
                health=worker.health,
                metrics_text=lambda: _metrics(worker),
            )
        )
    if options.sqs or options.sqs_files:
        _add_queues(worker, settings, options)
    if not options.files and not worker.sources:
        raise UsageError(
            "A worker needs a source: event files, --kafka, --http, --sqs or --sqs-files."
        )
    if options.consumers:
        _add_consumers(worker, settings)
    worker.add_loop(
        "checksums",
        lambda connection, _: note_new_files(worker.lake, connection),
        seconds=CHECKSUM_SECONDS,
        on_wake=False,
    )
    return worker


def _add_queues(worker: Worker, settings: "Settings", options: Options) -> None:
    from retail_assets.worker.sources.queues import bodies
    from retail_assets.worker.sources.queues.named_files import NamedFiles
    from retail_assets.worker.sources.queues.source import QueueSource
    from retail_assets.worker.sources.queues.sqs import SqsQueue

    if options.sqs == options.sqs_files:
        raise UsageError("--sqs and --sqs-files need a queue each: its messages are one or other.")
    if options.sqs:
        in_sns = settings.sqs_envelope == "sns"
        source = QueueSource(
            SqsQueue(options.sqs),
            "sqs",
            settings=settings,
            worker=worker.name,
            open_body=bodies.open_sns_events if in_sns else bodies.open_events,
        )
        _add_queue(worker, source)
    if options.sqs_files:
        bucket, _, prefix = settings.events_location.removeprefix("s3://").partition("/")
        if not settings.events_location.startswith("s3://"):
            raise UsageError(
                "--sqs-files reads event files from a bucket: set RETAIL_EVENTS=s3://BUCKET/PREFIX."
            )
        source = QueueSource(
            SqsQueue(options.sqs_files),
            "sqs_files",
            settings=settings,
            worker=worker.name,
            open_body=bodies.open_notifications(bucket, prefix.rstrip("/")),
            files=NamedFiles(settings, worker.lake, worker.metrics, on_commit=worker.note_ingest),
        )
        _add_queue(worker, source)


def _add_queue(worker: Worker, source: "QueueSource") -> None:
    worker.sources.append(source)
    worker.add_loop(
        f"ledger of {source.name}",
        lambda connection, _: source.note_deleted(worker.lake, connection),
        seconds=QUEUE_SECONDS,
        on_wake=False,
    )


def _metrics(worker: Worker) -> bytes:
    worker.measure()
    return metrics_text(worker.metrics)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004  # the last port
        raise UsageError(f"--http {text!r} is no HOST:PORT, such as 127.0.0.1:8080.")
    return host.strip("[]"), int(port)


def _add_consumers(worker: Worker, settings: "Settings") -> None:
    from retail_assets.consumers.keyed.follower import ROUND, Follower, state_path
    from retail_assets.consumers.registry import all_consumers
    from retail_assets.outbound.kafka import TopicProducer, outbound_topics

    consumers = all_consumers(settings)
    follower = Follower(
        replace(worker.lake, threads=1),
        consumers,
        state_path(settings),
        str(settings.opening_date),
    )
    worker.add_loop(
        ROUND,
        _consume(worker, consumers, follower),
        seconds=CONSUMER_SECONDS,
        pause=CONSUMER_PAUSE_SECONDS,
        backoff=(CONSUMER_SECONDS,),
        at_end=follower.close,
    )
    for topic in outbound_topics(settings):
        producer = TopicProducer(settings, topic)
        worker.add_loop(
            topic.name,
            _produce(worker, producer),
            seconds=CONSUMER_SECONDS,
            shares_lock=False,
            at_end=producer.close,
        )
    _add_lookups(worker, settings)
    if settings.notify_urls:
        from retail_assets.outbound.notifications.services import check_services

        check_services(settings)
        worker.add_loop(
            "notifications",
            _notify(worker, settings),
            seconds=NOTIFY_SECONDS,
            on_wake=False,
            shares_lock=False,
        )


def _add_lookups(worker: Worker, settings: "Settings") -> None:
    from retail_assets.outbound.lookups.client import LookupClient
    from retail_assets.outbound.lookups.follow import LookupFollower

    for name, lookup in settings.source_mapping.lookups.items():
        follower = LookupFollower(worker.lake, LookupClient(name, lookup, settings))
        worker.add_loop(
            f"lookup {name}",
            _look_up(worker, follower),
            seconds=CONSUMER_SECONDS,
            shares_lock=False,
            at_end=follower.close,
        )


def _look_up(worker: Worker, follower: "LookupFollower") -> "Iteration":
    def iterate(connection: "duckdb.DuckDBPyConnection", _: int) -> None:
        worker.metrics.gauge(follower.iterate(connection, stop=lambda: worker.stopping))

    return iterate


def _consume(worker: Worker, consumers: "Sequence[Consumer]", follower: "Follower") -> "Iteration":
    from retail_assets.consumers.framework import lag, quarantined_keys
    from retail_assets.consumers.keyed.follower import ROUND

    measured = -LAG_SECONDS

    def measure(connection: "duckdb.DuckDBPyConnection") -> None:
        for consumer in consumers:
            worker.metrics.gauge(
                {
                    f"{consumer.name}{LAG}": round(lag(connection, consumer).seconds, 1),
                    f"{consumer.name}_keys_set_aside": quarantined_keys(connection, consumer),
                }
            )
        worker.metrics.gauge(follower.metrics)

    def say(consumer: str, failed: "Mapping[str, str]") -> None:
        for key, problem in failed.items():
            logger.warning("%s quarantined %s: %s", consumer, key, problem)

    def iterate(connection: "duckdb.DuckDBPyConnection", _: int) -> None:
        nonlocal measured
        if time.monotonic() >= measured + LAG_SECONDS:
            measured = time.monotonic()
            # Before the round, which may fail again and again.
            measure(connection)
        try:
            while follower.iterate(connection, worker.yield_to_others, say):
                # Others may follow these tables.
                worker.wake()
                if not worker.stopping:
                    return
        finally:
            for name in (*(consumer.name for consumer in consumers), ROUND):
                worker.metrics.problem(name, follower.problems.get(name))

    return iterate


def _produce(worker: Worker, producer: "TopicProducer") -> "Iteration":
    def iterate(connection: "duckdb.DuckDBPyConnection", _: int) -> None:
        while True:
            done = producer.produce(worker.lake, connection, stop=lambda: worker.stopping)
            if done is None or done.complete or worker.stopping:
                return

    return iterate


def _notify(worker: Worker, settings: "Settings") -> "Iteration":
    from retail_assets.outbound.notifications.outbox import collect
    from retail_assets.outbound.notifications.sending import send

    def iterate(connection: "duckdb.DuckDBPyConnection", _: int) -> None:
        collect(worker.lake, connection, settings)
        sent = send(worker.lake, connection, settings, stop=lambda: worker.stopping)
        worker.metrics.gauge({"notifications_waiting": sent.waiting})
        if sent.problem:
            # A failing service does not make the worker lag.
            logger.warning("A notification could not be sent: %s", sent.problem)
        if sent.abandoned:
            logger.error(
                "%s notifications are abandoned: see the table notifications", sent.abandoned
            )

    return iterate
