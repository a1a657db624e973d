"""The folder or bucket in which event files land: what lies there, and how to read it."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from zoneinfo import ZoneInfo

from retail_assets.errors import UsageError
from retail_assets.ingest.bucket import Bucket
from retail_assets.ingest.event_files.regular_files import (
    LINK,
    NOT_ORDINARY,
    open_regular,
    stat_regular,
)
from retail_assets.ingest.ledgers.event_files import FoundFile

if TYPE_CHECKING:
    from retail_assets.settings import Settings

COMPRESSED = (".gz", ".zst")
"""How the names of compressed files end, in any case."""

ENDINGS = tuple(
    f"{kind}{compressed}"
    for kind in (".jsonl", ".ndjson", ".json")
    for compressed in ("", *COMPRESSED)
)
"""How the names of event files end, in any case; others are counted, named and not read."""

_DATE = re.compile(r"(?<!\d)(\d{4})[-_](\d{2})[-_](\d{2})(?!\d)")


@dataclass(frozen=True)
class Listing:
    r"""The content of the folder.

    `files` has event files by path. `left_alone` has the reason for links, pipes and devices, files
    whose path is no text (with bytes that are not UTF-8 as `\xNN`), and folders and files that
    cannot be read (the folder itself: `.`). `not_read` has files with none of `ENDINGS`, in order.
    """

    files: dict[str, FoundFile] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    not_read: tuple[str, ...] = ()


class EventFolder:
    """Event files below a folder or a bucket's prefix (`s3://…`), sub-folders included."""

    def __init__(self, location: str) -> None:
        self.location = location

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.location

    def list(self, below: str = "") -> Listing:
        """List all event files; of a local folder, or all below one of its folders.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        found = _Found()
        if self.is_local:
            found.scan(self.location, below)
        else:
            self._find(found)
        # No database takes Python's surrogates for bytes in a name that are not UTF-8.
        for path in [path for path in found.files if not _is_text(path)]:
            del found.files[path]
            found.left_alone[path] = "has a name that is not UTF-8 text: rename it"
        return Listing(
            dict(sorted(found.files.items())),
            {_printable(path) or ".": why for path, why in sorted(found.left_alone.items())},
            tuple(map(_printable, sorted(found.not_read))),
        )

    def look_at(self, paths: Iterable[str]) -> Listing:
        """Look at some files alone, as `list` would show them; those that are gone are left out."""
        found = _Found()
        for path in paths:
            try:
                found.files[path] = self.stat(path)
            except FileNotFoundError:
                continue
            except (OSError, UsageError) as error:
                found.left_alone[path] = f"cannot be looked at: {error}"
        return Listing(found.files, found.left_alone)

    def stat(self, path: str) -> FoundFile:
        """Look at one file.

        Raises:
            UsageError: if the path leaves the folder, or is a link or no ordinary file.
            OSError: if it cannot be looked at.
        """
        self._check(path)
        if self.is_local:
            found = stat_regular(self.location, path)
            return FoundFile(path, found.st_size, found.st_mtime_ns)
        return self._bucket.stat(path)

    def is_folder(self, path: str) -> bool:
        """Whether a path is one of its folders, neither hidden nor a link, of this machine."""
        there = Path(self.location, path)
        return not _is_hidden(path) and there.is_dir() and not there.is_symlink()

    def has(self, path: str) -> bool:
        """Whether an ordinary file is there, readable or not."""
        try:
            self.stat(path)
        except (FileNotFoundError, UsageError):
            return False
        except OSError:
            return True
        return True

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading its bytes, compressed ones as they are.

        Raises:
            UsageError: if the path leaves the folder, or is a link or no ordinary file.
            OSError: if it cannot be opened.
        """
        self._check(path)
        if self.is_local:
            return open_regular(self.location, path)
        return self._bucket.open(path)

    @cached_property
    def _bucket(self) -> Bucket:
        return Bucket(self.location, "The event files")

    def _find(self, found: "_Found") -> None:
        for path, file in self._bucket.list().items():
            if is_event_file(path):
                found.files[path] = file
            elif not _is_hidden(path):
                found.not_read.append(path)

    def _check(self, path: str) -> None:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise UsageError(f"{path!r} leaves the events folder {self.location}.")


def landing_day(file: FoundFile, timezone_name: str, first: date, today: date) -> date:
    """The partition that a file's lines belong to.

    The last date in its path, if that is a partition, else the day on which it was last written
    to, else today.
    """
    for year, month, day in reversed(_DATE.findall(file.path)):
        try:
            named = date(int(year), int(month), int(day))
        except ValueError:
            continue
        if first <= named <= today:
            return named
    zone = ZoneInfo(timezone_name)
    written = datetime.fromtimestamp(file.modified_ns / 1e9, zone).date()
    return written if first <= written <= today else today


@dataclass
class _Found:
    files: dict[str, FoundFile] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    not_read: list[str] = field(default_factory=list)

    def scan(self, root: str, below: str = "") -> None:
        """Look at a folder of this machine."""
        try:
            entries = os.scandir(os.path.join(root, below))  # noqa: PTH118  # it is what is fast
        except OSError as error:
            self._note(below, "listed", error)
            return
        with entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    self.left_alone[path] = LINK
                elif entry.is_dir():
                    self.scan(root, path)
                elif is_event_file(path):
                    self._look(path, entry)
                else:
                    self.not_read.append(path)

    def _look(self, path: str, entry: "os.DirEntry[str]") -> None:
        try:
            found = entry.stat()
        except OSError as error:
            self._note(path, "looked at", error)
            return
        if entry.is_file():
            self.files[path] = FoundFile(path, found.st_size, found.st_mtime_ns)
        else:
            self.left_alone[path] = NOT_ORDINARY

    def _note(self, path: str, what: str, error: OSError) -> None:
        # Else it is not there yet, or gone in this moment.
        if not isinstance(error, FileNotFoundError):
            self.left_alone[path] = f"cannot be {what}: {error.strerror}"


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_event_file(path: str) -> bool:
    """Whether a path in the folder names an event file; hidden ones are none."""
    return path.lower().endswith(ENDINGS) and not _is_hidden(path)


def is_compressed(path: str) -> bool:
    """Whether a path names a compressed file."""
    return path.lower().endswith(COMPRESSED)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def event_folder(settings: "Settings") -> EventFolder:
    """The folder or bucket of the settings."""
    return EventFolder(settings.events_location)
