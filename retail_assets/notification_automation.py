"""The sensor of notifications: does in its tick what the stream worker does, where none lives."""

import time
from datetime import datetime, timezone

import dagster as dg

from retail_assets.lake.connection import Lake
from retail_assets.notify.findings import alive_worker
from retail_assets.notify.outbox import collect
from retail_assets.notify.sending import send
from retail_assets.settings import Settings

TICK_SECONDS = 20
"""How long a tick goes on sending: Dagster ends one after a minute."""


def notification_sensor(settings: Settings) -> dg.SensorDefinition:
    """Tell people of alerts and failures while no stream worker does."""

    @dg.sensor(
        name="notifications",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells people of alerts and failures, while no stream worker does.",
    )
    def notifications() -> dg.SkipReason:
        return dg.SkipReason(_tick(settings))

    return notifications


def _tick(settings: Settings) -> str:
    """Look and send; returns what was done."""
    lake = Lake.from_settings(settings)
    if not settings.notify_urls:
        return "RETAIL_NOTIFY_URLS names no service."
    if not lake.exists():
        return "There is no lake yet."
    until = time.monotonic() + TICK_SECONDS
    with lake.connect() as connection:
        worker = alive_worker(connection, settings, datetime.now(timezone.utc))
        if worker is not None:
            return f"The stream worker {worker} lives and does it."
        collect(lake, connection, settings)
        sent = send(lake, connection, settings, stop=lambda: time.monotonic() > until)
    parts = [f"{sent.sent} notifications sent"]
    for count, text in (
        (sent.failed, f"failed ({sent.problem})"),
        (sent.given_up, "given up"),
        (sent.waiting, "waiting"),
    ):
        if count:
            parts.append(f"{count} {text}")
    return "; ".join(parts) + "."
