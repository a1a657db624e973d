"""What the lake itself does not know: files that wait, and what its last verification found."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.health.verdict import Issue, Level, Verdict, verdict
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.lake.checksums import Verification, last_verification
from retail_assets.lake.connection import Lake
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from retail_assets.ingest.exports.pending import PendingFile
    from retail_assets.ingest.ledgers.event_files import FoundFile

WAITING_SECONDS = 600
"""A file that has waited so long is a warning: a sensor or a worker would have ingested it."""


@dataclass(frozen=True)
class Pending:
    """Files that wait: how many, their bytes, and seconds since the oldest was written."""

    kind: str
    files: int
    bytes: int
    oldest_seconds: float


@dataclass(frozen=True)
class Outside:
    """Files that wait by their kind, the last verification, and what of both is not well."""

    pending: Sequence[Pending]
    verified: Verification | None
    issues: Sequence[Issue]


def look_outside(
    connection: duckdb.DuckDBPyConnection, lake: Lake, settings: Settings, now: datetime
) -> Outside:
    """Look at the folders, and at the notes of verifications.

    Args:
        connection: a connection to the lake.
        lake: the lake.
        settings: the folders.
        now: the time, with a time zone.
    """
    pending, unread = _waiting(connection, settings, now)
    verified, damage = _verified(lake)
    return Outside(pending, verified, [*unread, *_late(pending), *damage])


def current_verdict(settings: Settings) -> Verdict:
    """The verdict on the lake of the settings, as of now.

    Raises:
        RetailAssetsError: if there is no lake, or it cannot be read.
    """
    lake = Lake.from_settings(settings)
    now = datetime.now(timezone.utc)
    with lake.connect(read_only=True) as connection, SnapshotRead(connection):
        outside = look_outside(connection, lake, settings, now)
        return verdict(connection, settings, now, outside.issues)


def _waiting(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> tuple[list[Pending], list[Issue]]:
    found: list[Pending] = []
    issues: list[Issue] = []
    try:
        exports = pending_exports(settings, connection)
        found.append(_summary("exports", exports.values(), now))
        if settings.events_listed:
            events = pending_event_files(settings, connection)
            found.append(_summary("event files", events.files.values(), now))
            issues += [
                Issue(Level.warning, "left_alone", f"{path} {reason}.")
                for path, reason in events.left_alone.items()
            ]
            if text := events.about_not_read():
                issues.append(Issue(Level.warning, "not_read", text))
    except (RetailAssetsError, OSError) as error:
        issues.append(Issue(Level.warning, "folder", f"Files cannot be listed: {error}"))
    return found, issues


def _summary(
    kind: str, files: "Collection[PendingFile] | Collection[FoundFile]", now: datetime
) -> Pending:
    oldest = min((file.modified_ns for file in files), default=None)
    waited = 0.0 if oldest is None else max(now.timestamp() - oldest / 1e9, 0.0)
    return Pending(kind, len(files), sum(file.size_bytes for file in files), waited)


def _late(pending: Sequence[Pending]) -> list[Issue]:
    return [
        Issue(
            Level.warning,
            "waiting",
            f"{each.files:,} {each.kind} have not been ingested, the oldest for"
            f" {each.oldest_seconds / 60:,.0f} minutes: start `make ui`, whose sensors ingest them,"
            f" or run `retail-assets {_COMMANDS[each.kind]}`.",
        )
        for each in pending
        if each.files and each.oldest_seconds > WAITING_SECONDS
    ]


_COMMANDS = {"exports": "backfill", "event files": "ingest-events"}


def _verified(lake: Lake) -> tuple[Verification | None, list[Issue]]:
    try:
        last = last_verification(lake)
    except RetailAssetsError as error:
        return None, [Issue(Level.warning, "verification", str(error))]
    if last is None or not last.damaged:
        return last, []
    text = (
        f"{last.damaged:,} files of the lake are damaged: {last.found}. `retail-assets verify`"
        " names all of them and what brings their rows back."
    )
    return last, [Issue(Level.failure, "damage", text)]
