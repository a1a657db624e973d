"""Event files that have something new, by what lies in the folder and what the ledger has."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.ingest.event_files.folder import (
    Listing,
    event_folder,
    is_compressed,
    landing_day,
)
from retail_assets.ingest.ledgers.event_files import OPEN, FoundFile, LakeState

if TYPE_CHECKING:
    from retail_assets.settings import Settings

MAX_ATTEMPTS = 3
"""How often a file that cannot be read, or fails its transaction, is tried as it is."""

AGAIN_SECONDS = 3600
"""After these attempts it is tried so often: a disk or a network may be back by then."""

SHOWN = 5
"""How many of the files that are not read are named."""


@dataclass(frozen=True)
class Pending:
    """The files of the folder: `files` have something new, those of the newest days first.

    `unsettled` files may still be written to; `left_alone` has the reason of each; the names of
    those in `not_read` do not end like event files; `lake` is what the lake has of all files. A
    folder that is not `listed` has only files that could not be read before.
    """

    files: dict[str, FoundFile]
    unsettled: tuple[str, ...]
    left_alone: dict[str, str]
    not_read: tuple[str, ...] = ()
    lake: LakeState = field(default_factory=LakeState, compare=False)
    listed: bool = True

    def names_not_read(self) -> str:
        """The first of the files that are not read."""
        more = ", …" if len(self.not_read) > SHOWN else ""
        return ", ".join(self.not_read[:SHOWN]) + more

    def about_not_read(self) -> str:
        """A sentence about the files that are not read; empty if there are none."""
        if not self.listed:
            return "Event files are not listed (RETAIL_EVENTS_LISTED): a queue names the new ones"
        if not self.not_read:
            return ""
        return (
            f"{len(self.not_read)} files are not read, since their names do not end in .jsonl,"
            f" .ndjson or .json (or these with .gz or .zst): {self.names_not_read()}"
        )


def pending_event_files(
    settings: "Settings",
    connection: duckdb.DuckDBPyConnection | None = None,
    listing: Listing | None = None,
) -> Pending:
    """Compare what lies in the folder with the ledger, by name, size and time alone.

    A folder that is not listed (RETAIL_EVENTS_LISTED) has at most the files that could not be read.

    Args:
        settings: where the files and the lake lie.
        connection: a connection to the lake; by default one is opened for this.
        listing: the files to compare; by default all that lie in the folder. What the ledger has of
            other files is not read.

    Raises:
        RetailAssetsError: if a bucket cannot be reached.
    """
    listed = settings.events_listed
    only = None if listing is None else list(listing.files)
    if connection is None:
        lake = LakeState.of_settings(settings, failed_only=not listed)
    else:
        lake = LakeState.read(connection, failed_only=not listed, only=only)
    if listing is None:
        folder = event_folder(settings)
        listing = folder.list() if listed else folder.look_at(lake.failed)
    left_alone = dict(listing.left_alone)
    now = time.time_ns()
    files: dict[str, FoundFile] = {}
    unsettled: list[str] = []
    for path, file in listing.files.items():
        state = lake.ingested.get(path)
        seen = state is not None and state[:2] == (file.size_bytes, file.modified_ns)
        seen_ns = state[5] if state is not None and seen else None
        settled = file.is_settled(now, settings.event_settle_seconds, seen_ns)
        if state is not None and seen:
            new = state[4] == OPEN and settled
            if state[4] == OPEN and not settled:
                unsettled.append(path)
        else:
            # The ledger then tells how long a file has not changed whose time is in the future.
            new = settled or not is_compressed(file.path) or file.modified_ns > now
            if not new:
                unsettled.append(path)
        if not new:
            continue
        fault = lake.failed.get(path)
        if (
            fault is not None
            and fault[:2] == (file.size_bytes, file.modified_ns)
            and fault[3] >= MAX_ATTEMPTS
            and now - fault[4] < AGAIN_SECONDS * 10**9
        ):
            left_alone[path] = f"failed {fault[3]} times: {fault[2]}"
        else:
            files[path] = file
    return Pending(
        _newest_first(settings, files),
        tuple(unsettled),
        left_alone,
        listing.not_read,
        lake,
        listed,
    )


def _newest_first(settings: "Settings", files: Mapping[str, FoundFile]) -> dict[str, FoundFile]:
    """Files by landing day, the newest before a backlog; those of a day by name."""
    today = datetime.now(ZoneInfo(settings.timezone)).date()

    def key(path: str) -> tuple[int, str]:
        day = landing_day(files[path], settings.timezone, settings.start_date, today)
        return -day.toordinal(), path

    return {path: files[path] for path in sorted(files, key=key)}
