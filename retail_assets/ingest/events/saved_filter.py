"""The filter of known events as a file, so that a session need not read all events of the lake.

It is true of the snapshot that it names: whoever loads it adds what was committed since. Nothing
depends on the file: where it is missing, damaged or of another lake, the events are read.
"""

import json
import logging
import operator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock, Timeout
from rbloom import Bloom

VERSION = 1

IDENTITY = operator.index
"""Items are hashes already; a filter with Python's own hash cannot be saved."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedFilter:
    """A filter of `count` identities with room for some, true as of a snapshot of a lake.

    `committed_us` is when the snapshot was committed, in microseconds since 1970: a lake that was
    restored from a backup may have another snapshot of that number.
    """

    bloom: Bloom
    count: int
    room: int
    lake: str
    snapshot: int
    committed_us: int | None


def save(path: Path, saved: SavedFilter) -> None:
    """Put a file in place of the one before; what keeps it from being written is logged.

    It is not synced: what a power cut leaves half written is not loaded.
    """
    data = saved.bloom.save_bytes()
    about = {**vars(saved), "bloom": VERSION, "digest": _digest(data)}
    draft = path.with_name(f"{path.name}.new")
    try:
        with FileLock(f"{path}.lock", timeout=0), draft.open("wb") as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(data)
            file.flush()
            draft.replace(path)
    except Timeout:
        logger.debug("Another session is saving the filter of known events.")
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the next worker reads all events as it starts.",
            path,
            error.strerror,
        )
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def load(path: Path) -> SavedFilter | None:
    """The filter of a file; None if there is none that is whole."""
    try:
        first, _, data = path.read_bytes().partition(b"\n")
        about = json.loads(first)
        if about.pop("bloom") != VERSION or about.pop("digest") != _digest(data):
            return None
        return SavedFilter(Bloom.load_bytes(data, IDENTITY), **about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
