"""The sub-command that simulates a shop that is open now."""

from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from retail_assets.cli.base import err, out
from retail_assets.errors import UsageError
from retail_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from retail_assets.samples.simulate import Send


class To(str, Enum):
    """Where simulated events are sent."""

    files = "files"
    webhook = "webhook"
    kafka = "kafka"


def simulate(
    rate: Annotated[float, typer.Option(min=0.01, max=100_000, help="Events a second.")] = 5,
    to: Annotated[To, typer.Option(help="Where they are sent.")] = To.files,
    seconds: Annotated[
        float | None, typer.Option("--for", min=0.5, help="Seconds; default: until Ctrl-C.")
    ] = None,
    steady: Annotated[
        bool, typer.Option(help="The same rate at all hours, not that of a shop's day.")
    ] = False,
    url: Annotated[str, typer.Option(help="The webhook.")] = "http://127.0.0.1:8080/events",
    kafka: Annotated[str | None, typer.Option(help="The brokers of --to kafka.")] = None,
    topic: Annotated[str, typer.Option(help="The topic of --to kafka.")] = "orders",
    seed: Annotated[int, typer.Option(help="The same seed draws the same orders.")] = 2026,
) -> None:
    """Simulate a shop that is open now: events as they happen, some late, some bad, some fraud."""
    from retail_assets.samples import simulate as work

    settings = load_settings()
    zone = ZoneInfo(settings.timezone)
    shop = work.Shop(settings.reference_dir, zone, seed)
    send = _destination(settings, to, url, kafka, topic)
    with err.status("Simulating") as status:
        started = datetime.now(zone)

        def said(count: int) -> None:
            passed = (datetime.now(zone) - started).total_seconds()
            status.update(f"{count:,} events sent, {count / max(passed, 1):,.1f} a second")

        count = work.simulate(
            shop, send, rate=rate, zone=zone, seconds=seconds, steady=steady, said=said
        )
    out.print(f"{count} events were sent.")


def _destination(settings: Settings, to: To, url: str, kafka: str | None, topic: str) -> "Send":
    from retail_assets.samples import destinations

    if to is To.files:
        return destinations.to_files(settings.events_location, ZoneInfo(settings.timezone))
    if to is To.webhook:
        token = settings.webhook_token
        return destinations.to_webhook(url, token.get_secret_value() if token else None)
    if kafka is None:
        raise UsageError("--to kafka needs --kafka: the brokers, such as localhost:9092.")
    return destinations.to_kafka(kafka, topic)
