"""Event files of tests: lines, and files that nobody writes to any more."""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from retail_assets.ingest.event_files.load import IngestResult, ingest
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages.load import warm_session
from retail_assets.ingest.repair import dead_letters
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

STILL_NS = 1_791_800_000 * 10**9
"""When files of tests were last written to, unless told otherwise: 12 October 2026."""

_WRITTEN: dict[tuple[Path, bytes], int] = {}


def event(number: int, **changed: Any) -> str:
    """A line: a valid event of ten pounds, save what is changed; None leaves a field out."""
    fields = {
        "event_id": f"E{number}",
        "order_id": f"O{number}",
        "customer_id": "C1",
        "product_id": "P1",
        "order_value_gbp": 10,
        "region": "North",
    } | changed
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def write_events(
    settings: Settings, path: str, lines: Sequence[str] | bytes, *, modified_ns: int | None = None
) -> Path:
    """Write an event file in place of what lies there, as of long ago: lines, or a whole file.

    Lines are packed if the file is so named. By default each content is a second later than those
    that were written before it.
    """
    if isinstance(lines, bytes):
        content = lines
    else:
        content = "".join(f"{line}\n" for line in lines).encode()
        if path.endswith(".gz"):
            content = gzip.compress(content, mtime=0)
    file = Path(settings.events_location, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    seconds = _WRITTEN.setdefault((file, content), len(_WRITTEN))
    time = STILL_NS + seconds * 10**9 if modified_ns is None else modified_ns
    os.utime(file, ns=(time, time))
    return file


@dataclass(frozen=True)
class OverSession:
    """A lake, as a session of ingest is connected to it."""

    session: EventSession
    settings: Settings

    @property
    def lake(self) -> Lake:
        return self.session.lake

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        return self.session.connection


@dataclass(frozen=True)
class EventLoader(OverSession):
    """A lake to take event files into, over one connection."""

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, *, cached: bool = False) -> Iterator["EventLoader"]:
        """Connect to the lake of these settings, where files are replaced by corrected ones."""
        # Tables this small take longer with more threads.
        settings = settings.model_copy(update={"threads": 1, "changed_event_files": "replace"})
        lake = Lake.from_settings(settings)
        with lake.connect() as connection:
            session = (warm_session if cached else EventSession)(
                lake, connection, settings.source_mapping.events
            )
            yield cls(session, settings)

    def write(self, path: str, lines: Sequence[str] | bytes, **options: Any) -> None:
        """Write an event file; see `write_events`."""
        write_events(self.settings, path, lines, **options)

    def ingest(self, paths: Sequence[str] | None = None, **options: Any) -> IngestResult:
        """Ingest some files, by default all that are pending."""
        if paths is None:
            paths = list(pending_event_files(self.settings, self.connection).files)
        return ingest(self.session, self.settings, paths, **options)

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of the event tables and their ledger, without what tells when."""
        return {
            table: self.rows(f"SELECT {columns} FROM {table} ORDER BY ALL")
            for table, columns in (
                ("raw_events", "*"),
                ("enriched_events", "* EXCLUDE (processed_at)"),
                ("dead_letter_events", "* EXCLUDE (processed_at)"),
                ("event_files", "* EXCLUDE (ingested_at)"),
            )
        }

    def events(self, columns: str = "event_id") -> list[tuple[Any, ...]]:
        """These columns of the enriched events, by identity."""
        return self.rows(f"SELECT {columns} FROM enriched_events ORDER BY event_id")

    def letters(self) -> list[str]:
        """The ids of all dead letters."""
        return sorted(letter["id"] for letter in dead_letters.find(self.connection))
