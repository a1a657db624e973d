"""A thread that ingests event files as they land, in a process that is there for other things."""

import json
import logging
import threading
import time
from collections.abc import Collection, Mapping
from datetime import date, datetime
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from retail_assets.ingest.event_files.folder import (
    Listing,
    event_folder,
    is_compressed,
    landing_day,
)
from retail_assets.ingest.event_files.load import IngestResult, ingest
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages.load import warm_session
from retail_assets.lake import history
from retail_assets.lake.connection import Lake

if TYPE_CHECKING:
    from retail_assets.ingest.ledgers.event_files import FoundFile
    from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30
"""How long the thread goes on after it was renewed."""

LOOK_SECONDS = 0.2
LOOK_SHARE = 9
"""A pause is so long, or this many times as long as it took to list the folder: one of a hundred
thousand files takes half a second."""

FILES, BYTES = 500, 4 << 20
"""How much is ingested at once at most; larger arrivals are left to runs."""

PACKED_FACTOR = 10
"""The size of a compressed file counts so many times: that of its content is unknown."""

FILTER = "rbloom"
"""The package, of the extra `stream`, that a session with a cache needs."""


def is_small(files: Mapping[str, "FoundFile"]) -> bool:
    """Whether files are so few and small that the thread ingests them."""
    return (
        len(files) <= FILES
        and sum(
            file.size_bytes * (PACKED_FACTOR if is_compressed(path) else 1)
            for path, file in files.items()
        )
        <= BYTES
    )


class FolderWatch:
    """Watches the events folder in a thread as long as somebody renews it.

    Files at which an ingest has failed as a whole, or at which the process has died, are
    `unfinished`: it leaves them alone. A note beside the lake has them.
    """

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings
        self._lake = Lake.from_settings(settings)
        self._folder = event_folder(settings)
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._until = 0.0
        self._lake_id = ""
        self._opened = ""
        self._session: EventSession | None = None
        self._seen: dict[str, FoundFile] | None = None
        self._offered: dict[str, FoundFile] = {}
        self._leave: Collection[str] = ()
        self._ingesting: set[str] = set()
        self._results: dict[date, IngestResult] = {}
        self._note = Path(self._lake.spill_dir, "ingesting.json")
        self.unfinished = _read(self._note)

    @property
    def busy(self) -> set[str]:
        """The files that it ingests, or is about to."""
        with self._guard:
            return self._ingesting | self._offered.keys()

    def renew(
        self, offered: Mapping[str, "FoundFile"], leave: Collection[str], lake_id: str
    ) -> None:
        """Go on for `LEASE_SECONDS`.

        Args:
            offered: files to ingest now. Those that land later it finds itself.
            leave: files to leave alone, because a run has them.
            lake_id: the lake that is there, if any: somebody may have put another in its place.
        """
        with self._guard:
            self._until = time.monotonic() + LEASE_SECONDS
            self._offered |= offered
            self._leave, self._lake_id = leave, lake_id
            if self._thread is None:
                self._thread = self._start()

    def take(self) -> dict[date, IngestResult]:
        """What was ingested since the last call, by landing day."""
        with self._guard:
            found, self._results = self._results, {}
        return found

    def settle(self, pending: Collection[str]) -> None:
        """Forget unfinished files that are not pending any more."""
        with self._guard:
            if not self.unfinished.issubset(pending):
                self.unfinished.intersection_update(pending)
                self._write_note()

    def _start(self) -> threading.Thread:
        # A process that ends does not wait for it: whatever it does may be killed.
        thread = threading.Thread(target=self._run, name="event_files", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            while time.monotonic() < self._until and threading.main_thread().is_alive():
                time.sleep(max(LOOK_SECONDS, LOOK_SHARE * self.look()))
        except Exception:
            logger.exception("Event files could not be ingested; a run tries it again")
        finally:
            self.close()
            with self._guard:
                self._thread = None

    def close(self) -> None:
        """Close the connection; what lies in the folder at the next look is not new."""
        session, self._session, self._seen = self._session, None, None
        if session is not None:
            session.connection.close()

    def look(self) -> float:
        """Ingest the files that were offered, or have changed since the last look.

        Returns:
            How long it took to list the folder, in seconds.

        Raises:
            Exception: if the lake cannot be written to, or the folder not be listed.
        """
        changed: dict[str, FoundFile] = {}
        began = time.monotonic()
        # A bucket asks money for each listing.
        if self._settings.events_listed and self._folder.is_local:
            listing = self._folder.list().files
            seen = listing if self._seen is None else self._seen
            changed = {
                path: file
                for path, file in listing.items()
                if seen.get(path) != file and path not in self._leave
            }
            self._seen = listing
        listed = time.monotonic() - began
        with self._guard:
            offered, self._offered = self._offered, {}
            # A larger arrival is left to the caller.
            some = offered | changed if is_small(changed) else offered
            self._ingesting = some.keys() - self.unfinished
        try:
            if self._ingesting:
                self._ingest({path: some[path] for path in self._ingesting}, offered)
        except BaseException:
            self.unfinished |= self._ingesting
            raise
        finally:
            self._ingesting = set()
        return listed

    def _ingest(self, some: dict[str, "FoundFile"], offered: Collection[str]) -> None:
        settings, session = self._settings, self._open()
        self._write_note()
        pending = pending_event_files(settings, session.connection, Listing(some))
        # What lands is left to an alive worker, until the caller offers it.
        files = {
            path: file
            for path, file in pending.files.items()
            if path in offered or not pending.lake.workers
        }
        found = ingest(session, settings, files)
        today = datetime.now(ZoneInfo(settings.timezone)).date()

        def day_of(path: str) -> date:
            return landing_day(files[path], settings.timezone, settings.start_date, today)

        with self._guard:
            for day, group in groupby(sorted(files, key=day_of), day_of):
                paths = set(group)
                self._results.setdefault(day, IngestResult()).add(
                    IngestResult(
                        {path: one for path, one in found.files.items() if path in paths},
                        {path: why for path, why in found.failed.items() if path in paths},
                        found.new_fields,
                    )
                )
            self._ingesting = set()
            self._write_note()

    def _open(self) -> EventSession:
        mappings = self._settings.source_mapping.events
        if self._session is not None and (
            self._lake_id not in {"", self._opened} or self._session.mappings != mappings
        ):
            self.close()
        if self._session is None:
            connection = self._lake.open()
            open_session = warm_session if find_spec(FILTER) else EventSession
            self._session = open_session(self._lake, connection, mappings)
            self._opened = history.lake_id(connection)
        return self._session

    def _write_note(self) -> None:
        paths = self.unfinished | self._ingesting
        if paths:
            self._note.write_text(json.dumps(sorted(paths)))
        else:
            self._note.unlink(missing_ok=True)


def _read(note: Path) -> set[str]:
    try:
        return set(json.loads(note.read_text()))
    except (FileNotFoundError, ValueError):
        return set()
