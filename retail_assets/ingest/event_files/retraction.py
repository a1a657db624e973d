"""Taking the events of versions of an event file back by hand."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.event_files.folder import event_folder
from retail_assets.ingest.event_files.load import apply
from retail_assets.ingest.event_files.plan import Plan, content_of
from retail_assets.ingest.events.batch import event_batch
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers import event_files as event_ledger
from retail_assets.ingest.ledgers.event_files import Entry

if TYPE_CHECKING:
    from retail_assets.settings import Settings


@dataclass(frozen=True)
class Retracted:
    """A version of a file, and how many of its events and dead letters were retracted."""

    path: str
    version: int
    events: int
    dead_letters: int


def retract(
    session: EventSession,
    settings: "Settings",
    path: str,
    version: int | None = None,
) -> list[Retracted]:
    """Retract the events and dead letters of versions of a file; `raw_events` keeps the lines.

    Duplicates of the events that came elsewhere count instead.

    Args:
        session: a session of ingest.
        settings: where the files lie.
        path: the file, relative to the events folder.
        version: the version; by default all before the current one.

    Returns:
        The versions that were retracted.

    Raises:
        RetailAssetsError: if there is no such version, or it still lies in the folder and would be
            ingested again.
    """
    with event_batch(session, f"retract events of {path}") as batch:
        chosen = _chosen(event_ledger.versions(session.connection, [path]), path, version)
        if any(entry.superseded_us is None for entry in chosen) and event_folder(settings).has(
            path
        ):
            raise RetailAssetsError(
                f"{path} still lies in the events folder and would be ingested again: remove it, or"
                " replace it by the right one and ingest that, then retract this version."
            )
        left = {content_of(entry) for entry in chosen if entry.copy_of is None}
        found = event_ledger.related(session, [], contents=[], left=left)
        related = {entry.key: entry for entry in (*chosen, *found)}
        apply(session, batch, Plan([], list(related.values()), retracted=chosen))
    return [Retracted(path, entry.version, entry.accepted, entry.dead_lettered) for entry in chosen]


def _chosen(found: list[Entry], path: str, version: int | None) -> list[Entry]:
    found = sorted(found, key=lambda entry: entry.version)
    if not found:
        raise UsageError(f"The lake has no events of a file {path}: name it as event_files does.")
    if version is None:
        chosen = [entry for entry in found if entry.superseded_us is not None]
    else:
        chosen = [entry for entry in found if entry.version == version]
    if not chosen:
        there = ", ".join(str(entry.version) for entry in found)
        raise UsageError(
            f"{path} has no {'earlier version' if version is None else f'version {version}'} whose"
            f" events count: name one of its versions {there} with --version."
        )
    return chosen
