"""The sensor of notifications: collects and sends them, as the stream worker does.

It does so while a worker is alive, too: the worker may run without consumers or without the
services. If both look, each message is written and sent once.
"""

import time

import dagster as dg

from retail_assets.lake.connection import Lake
from retail_assets.outbound.notifications.outbox import collect
from retail_assets.outbound.notifications.sending import send
from retail_assets.settings import Settings

TICK_SECONDS = 20
"""How long a tick may send: Dagster ends a tick after a minute."""


def notification_sensor(settings: Settings) -> dg.SensorDefinition:
    """Notify people of alerts and failures."""

    @dg.sensor(
        name="notifications",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Notifies people of alerts and failures, as the stream worker does.",
    )
    def notifications() -> dg.SkipReason:
        return dg.SkipReason(_tick(settings))

    return notifications


def _tick(settings: Settings) -> str:
    """Collect and send; returns a sentence for the tick."""
    lake = Lake.from_settings(settings)
    if not settings.notify_urls:
        return "RETAIL_NOTIFY_URLS names no service."
    if not lake.exists():
        return "There is no lake yet."
    until = time.monotonic() + TICK_SECONDS
    with lake.connect() as connection:
        collect(lake, connection, settings)
        sent = send(lake, connection, settings, stop=lambda: time.monotonic() > until)
    parts = [f"{sent.sent} notifications sent"]
    for count, text in (
        (sent.failed, f"failed ({sent.problem})"),
        (sent.abandoned, "abandoned"),
        (sent.waiting, "waiting"),
    ):
        if count:
            parts.append(f"{count} {text}")
    return "; ".join(parts) + "."
