"""A lake to ingest event files into, over one connection."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from retail_assets.ingest.event_files.load import IngestResult, ingest
from retail_assets.ingest.event_files.pending import Pending, pending_event_files
from retail_assets.ingest.event_files.reader import LIMITS, ReadLimits
from retail_assets.ingest.events.session import EventSession
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import OverSession, write_events

BAD = "{"


@dataclass(frozen=True)
class Events(OverSession):
    """A lake to take event files into, over one connection."""

    limits: ReadLimits = LIMITS

    @property
    def folder(self) -> Path:
        return Path(self.settings.events_location)

    def write(self, path: str, *lines: str) -> Path:
        return write_events(self.settings, path, lines)

    @property
    def replacing(self) -> "Events":
        """The same, where a corrected file is delivered under the same name."""
        settings = self.settings.model_copy(update={"changed_event_files": "replace"})
        return replace(self, settings=settings)

    def limited(self, **limits: int) -> "Events":
        """The same, with other limits of what is read and committed at once."""
        return replace(self, limits=ReadLimits(**limits))

    def pending(self) -> Pending:
        return pending_event_files(self.settings, self.connection)

    def ingest(self, *paths: str) -> IngestResult:
        """Ingest these files, or all that are pending; the ledger must balance after it."""
        files = paths or tuple(self.pending().files)
        came = ingest(self.session, self.settings, files, limits=self.limits)
        self.must_balance()
        return came

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()

    def accepted(self) -> list[tuple[str, str, int]]:
        """Event, file and line of the enriched events."""
        return self.rows(
            "SELECT event_id, source_name, position FROM lake.enriched_events ORDER BY ALL"
        )

    def dead(self) -> list[tuple[str, int, str]]:
        return self.rows(
            "SELECT source_name, position, reason FROM lake.dead_letter_events ORDER BY ALL"
        )

    def ledger(self) -> dict[str, tuple[Any, ...]]:
        """Lines, accepted, dead-lettered, duplicate and copy of each file."""
        found = self.rows(
            "SELECT path, lines, accepted, dead_lettered, duplicate, copy_of FROM lake.event_files"
            " WHERE superseded_at IS NULL ORDER BY path"
        )
        return {path: tuple(rest) for path, *rest in found}

    def tables(self) -> list[list[tuple[Any, ...]]]:
        """Everything that follows from what was received."""
        return [
            self.rows(f"SELECT * EXCLUDE ({without}) FROM lake.{table} ORDER BY ALL")
            for table, without in (
                ("raw_events", "payload"),
                ("enriched_events", "processed_at"),
                ("dead_letter_events", "processed_at"),
                ("live_revenue", "order_date"),
            )
        ]

    def must_balance(self) -> None:
        """Each version of each file, also one that is not the current one."""
        found = self.rows(
            "SELECT 'raw', (source_name, version), event_id FROM lake.raw_events UNION ALL"
            " SELECT 'enriched', (source_name, version), event_id FROM lake.enriched_events"
            " UNION ALL SELECT 'dead', (source_name, version), NULL FROM lake.dead_letter_events"
        )
        raw, enriched, dead = (
            [row for table, *row in found if table == name] for name in ("raw", "enriched", "dead")
        )
        ledger = self.rows(
            "SELECT (path, version), lines, accepted, dead_lettered, duplicate, copy_of IS NULL,"
            " retracted_at IS NULL FROM lake.event_files"
        )
        held = [Counter(key for key, _ in rows) for rows in (raw, enriched, dead)]
        assert set().union(*held) <= {key for key, *_ in ledger}
        retracted = set()
        for key, lines, accepted, dead_lettered, duplicate, is_owner, counts in ledger:
            assert lines == accepted + dead_lettered + duplicate
            here = lines if is_owner else 0
            right = (here, accepted, dead_lettered) if counts else (here, 0, 0)
            # Of versions below 1 earlier releases have kept no lines.
            assert tuple(rows[key] for rows in held) == (right if key[1] > 0 else (0, 0, 0)), key
            if not counts:
                retracted.add(key)
        valid = {identity for key, identity in raw if key not in retracted} - {None}
        assert sorted(identity for _, identity in enriched) == sorted(valid), "each is there once"


@pytest.fixture
def events(lake: Lake, settings: Settings) -> Iterator[Events]:
    # Tables this small take longer with more threads.
    lake = Lake.from_settings(settings.model_copy(update={"threads": 1}))
    with lake.connect() as connection:
        yield Events(EventSession(lake, connection), settings)


def outcomes(came: IngestResult) -> dict[str, tuple[Any, ...]]:
    """Outcome, accepted, dead-lettered and duplicate lines of each file."""
    assert came.failed == {}
    return {
        path: (file.outcome, file.accepted, file.dead_lettered, file.duplicate)
        for path, file in came.files.items()
    }


def grow(file: Path, more: str) -> None:
    """Append, as a second later."""
    modified = file.stat().st_mtime_ns + 10**9
    file.write_bytes(file.read_bytes() + more.encode())
    os.utime(file, ns=(modified, modified))
