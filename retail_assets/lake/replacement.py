"""Files outside of the lake that take the places of others, each whole, also after a power cut.

They are written aside first, all of them, then synced together, noted where something is to be
noted, renamed in an order that the caller gives, and their folders synced. After a crash a place
has the old file or the new one, and what is left aside is for the next run to remove.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retail_assets.lake.durability import sync_files

FEW = 2
"""So many syncs of files cost less than one of their file system."""


@dataclass(frozen=True)
class Draft:
    """A file that was written aside, at `path`, and its place, on the same file system.

    `others` are names that the place has as well: what lies there is removed.
    """

    path: Path
    place: Path
    others: Sequence[Path] = ()


def replace_files(drafts: Sequence[Draft], *, note: Callable[[], None] = lambda: None) -> None:
    """Put files in their places, one after the other.

    Args:
        drafts: the files, in the order in which they get their names.
        note: called when all are on the disk and none has its name; if it fails, none gets it.

    Raises:
        OSError: if the disk could not keep them. Those that were renamed are in their places.
    """
    sync_paths([draft.path for draft in drafts])
    note()
    for draft in drafts:
        draft.path.replace(draft.place)
        for other in draft.others:
            other.unlink(missing_ok=True)
    folders = {draft.place.parent for draft in drafts}
    # A folder may be new itself.
    sync_paths(folders | {folder.parent for folder in folders})


def sync_paths(paths: Iterable[Path]) -> None:
    """Sync files and folders to the disk.

    Raises:
        OSError: if the disk could not keep them.
    """
    all_of_them = list(paths)
    if len(all_of_them) > FEW:
        systems = {path.stat().st_dev: path for path in all_of_them}
        for path in systems.values():
            sync_files(str(path))
        return
    for path in all_of_them:
        if path.is_dir() and os.name != "posix":
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
