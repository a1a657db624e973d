"""Sub-commands of the worker: running it, and its consumers."""

import logging
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets.cli.base import PRINTERS, Format, connect_to_read, err, out, tell
from retail_assets.explain import SentenceFormatter
from retail_assets.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator


def stream(
    files: Annotated[bool, typer.Option(help="Ingest event files as they land.")] = True,
    kafka: Annotated[
        str | None, typer.Option(help="Brokers to read from, such as localhost:9092.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="The topic to read.")] = None,
    group: Annotated[
        str, typer.Option(help="Workers of one group share the topic's partitions.")
    ] = "retail-assets",
    http: Annotated[str | None, typer.Option(help="Where the webhook listens: HOST:PORT.")] = None,
    sqs: Annotated[
        str | None, typer.Option(help="URL of an Amazon SQS queue whose messages are events.")
    ] = None,
    sqs_files: Annotated[
        str | None,
        typer.Option(help="URL of an Amazon SQS queue whose messages name new event files."),
    ] = None,
    consumers: Annotated[
        bool, typer.Option(help="Run fraud, inventory, live revenue and notifications.")
    ] = True,
) -> None:
    """Ingest events as they arrive, from files, Kafka, a webhook and queues, until stopped."""
    from retail_assets.worker.build import Options, build_worker
    from retail_assets.worker.deadline import ends_in_time

    settings = load_settings()
    worker = build_worker(
        settings,
        Options(
            files=files,
            kafka=kafka,
            topic=topic,
            group=group,
            http=http,
            sqs=sqs,
            sqs_files=sqs_files,
            consumers=consumers,
        ),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(SentenceFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    # At INFO it logs each file that lands.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    with _until_signal() as stop, ends_in_time(stop, settings.stop_seconds):
        worker.run(stop, say=tell)


@contextmanager
def _until_signal() -> "Iterator[threading.Event]":
    """An event that SIGINT and SIGTERM set; a second one ends the process."""
    stop = threading.Event()

    def tell(number: int, _: object) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def list_consumers(
    format: Annotated[Format, typer.Option(help="How to print them.")] = Format.table,
) -> None:
    """List the consumers with their offset, their lag and their quarantined keys."""
    from retail_assets.consumers.framework import lag
    from retail_assets.consumers.registry import all_consumers
    from retail_assets.ingest.ledgers.offsets import consumer_offset

    settings = load_settings()
    with connect_to_read(settings) as connection:
        quarantined = dict(
            connection.execute(
                "SELECT consumer, count(*) FROM consumer_dead_letters GROUP BY 1"
            ).fetchall()
        )
        rows = []
        for consumer in all_consumers(settings):
            behind = lag(connection, consumer)
            offset = consumer_offset(connection, consumer.name)
            rows.append(
                [
                    consumer.name,
                    ", ".join(table.name for table in consumer.tables),
                    None if offset is None or offset < 0 else offset,
                    behind.snapshots,
                    round(behind.seconds, 1),
                    quarantined.get(consumer.name, 0),
                ]
            )
    columns = ("consumer", "tables", "snapshot", "commits_behind", "seconds_behind", "set_aside")
    PRINTERS[format](columns, rows)


def rewind_consumer(
    name: Annotated[str, typer.Argument(help="The consumer, as `list` shows it.")],
) -> None:
    """Recompute all tables of a consumer from the events."""
    from retail_assets.consumers.registry import recompute
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    lake.must_exist()
    with err.status(f"Recomputing {name}"), lake.connect() as connection:
        done = recompute(lake, connection, settings, name)
    for key, problem in done.failed.items():
        tell(f"{name} quarantined {key}: {problem}", style="yellow")
    out.print(f"{name} is recomputed: {done.rows} rows were inserted or deleted.")
