"""The ingest of event files in one process, in chunks so small that a few files have several."""

import time
from collections.abc import Sequence
from pathlib import Path

from retail_assets.consumers import live_revenue
from retail_assets.ingest.event_files import load as event_files
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.event_files.reader import ReadLimits
from retail_assets.ingest.events.session import EventSession
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

SMALL = ReadLimits(block_bytes=400, chunk_bytes=1200, line_bytes=0)
"""Bytes: three lines, and nine."""


def ingest_events(settings: Settings, *files: str) -> None:
    """Ingest some event files, by default all that are pending, and bring live revenue up."""
    _ingest(settings, [files or list(pending_event_files(settings).files)])


def one_by_one(settings: Settings, *files: str) -> None:
    """Ingest event files each by itself, and bring live revenue up."""
    _ingest(settings, [[file] for file in files])


def _ingest(settings: Settings, batches: Sequence[Sequence[str]]) -> None:
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        for files in batches:
            event_files.ingest(EventSession(lake, connection), settings, files, limits=SMALL)
        live_revenue.refresh(lake, connection)


def race(settings: Settings, started: str, name: int, racers: int) -> None:
    """Ingest what is pending at the same time as others do."""
    pending = list(pending_event_files(settings).files)
    barrier = Path(started)
    (barrier / str(name)).touch()
    while len(list(barrier.iterdir())) < racers:
        time.sleep(0.001)
    # From different ends: what one has just ingested, another comes to.
    ingest_events(settings, *(pending if name % 2 else reversed(pending)))
