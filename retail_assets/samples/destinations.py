"""Where simulated events are sent: files in the events folder, the webhook, a Kafka topic."""

import itertools
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.samples.simulate import Send

TIMEOUT_SECONDS = 10


def to_files(location: str, zone: ZoneInfo) -> Send:
    """A file for each call, in a folder for each day; none is seen before it is whole."""
    if "://" in location:
        raise UsageError(f"{location} is a bucket: simulate into a folder, or --to webhook.")
    numbers = itertools.count()
    run = f"{time.time_ns() // 1_000_000:x}"

    def send(lines: Sequence[str]) -> None:
        folder = Path(location, str(datetime.now(zone).date()))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"simulated-{run}-{next(numbers):06}.jsonl"
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(_joined(lines))
        part.replace(path)

    return send


def to_webhook(url: str, token: str | None) -> Send:
    """A request for each call; one that is refused ends the simulation with its reason."""
    if token is None:
        raise UsageError("The webhook needs RETAIL_WEBHOOK_TOKEN, the same as the worker's.")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is no address such as http://127.0.0.1:8080/events.")

    def send(lines: Sequence[str]) -> None:
        request = urllib.request.Request(  # noqa: S310  # checked above
            url,
            data=_joined(lines),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/x-ndjson",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
                pass
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace").strip()
            raise RetailAssetsError(f"{url} answers {error.code}: {said}") from error
        except OSError as error:
            raise RetailAssetsError(
                f"{url} cannot be reached: {error}. `retail-assets stream --http 127.0.0.1:8080`"
                " listens."
            ) from error

    return send


def to_kafka(brokers: str, topic: str) -> Send:
    """A message for each line; waits until the brokers have them."""
    from confluent_kafka import KafkaException, Producer

    producer = Producer({"bootstrap.servers": brokers, "message.timeout.ms": 10_000})

    def send(lines: Sequence[str]) -> None:
        try:
            for line in lines:
                producer.produce(topic, _joined([line]).rstrip(b"\n"))
            left = producer.flush(TIMEOUT_SECONDS)
        except (BufferError, KafkaException) as error:
            raise RetailAssetsError(f"{brokers} cannot be written to: {error}") from error
        if left:
            raise RetailAssetsError(f"{brokers} did not take {left} messages of {topic} in time.")

    return send


def _joined(lines: Sequence[str]) -> bytes:
    # Some bad lines have bytes that are no UTF-8, on purpose.
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
