"""The folder or bucket in which event files land: what lies there, and how to read it."""

import os
import re
from dataclasses import dataclass
from datetime import date, datetime, timezone
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, Any
from zoneinfo import ZoneInfo

from retail_assets.errors import RetailAssetsError, UsageError

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
"""How the names of event files end; other files are left alone, and so are hidden ones."""

PACKED = ".gz"
"""How the names of packed ones end."""

_DATE = re.compile(r"(?<!\d)(\d{4})[-_](\d{2})[-_](\d{2})(?!\d)")


@dataclass(frozen=True)
class FoundFile:
    """An event file as it lies there: path relative to the folder, size in bytes, time in ns."""

    path: str
    size_bytes: int
    modified_ns: int

    @property
    def packed(self) -> bool:
        """Whether it is a gzip file: read as a whole, and only when it is still."""
        return self.path.endswith(PACKED)

    def is_still(self, now_ns: int, settle_seconds: float) -> bool:
        """Whether nobody has written to it for a while."""
        return now_ns - self.modified_ns >= settle_seconds * 1e9


@dataclass(frozen=True)
class Listing:
    r"""What lies in the folder: event files by path, and what is not read.

    These are links, files whose path is no text (`unnamed`, with the bytes at fault as `\xNN`), and
    folders and files that cannot be looked at (`unseen`, with the reason; the folder itself: `.`).
    """

    files: dict[str, FoundFile]
    links: tuple[str, ...]
    unnamed: tuple[str, ...]
    unseen: dict[str, str]


class EventFolder:
    """Event files below a folder or a bucket's prefix (`s3://…`), sub-folders included."""

    def __init__(self, location: str) -> None:
        self.location = location

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.location

    def list(self) -> Listing:
        """List all event files.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        files: dict[str, FoundFile] = {}
        links: list[str] = []
        unseen: dict[str, str] = {}
        if self.is_local:
            _scan(self.location, "", files, links, unseen)
        else:
            files = self._remote()
        # What Python makes of bytes in a name that are not UTF-8 no database takes.
        unnamed = [path for path in files if not _is_text(path)]
        for path in unnamed:
            del files[path]
        return Listing(
            dict(sorted(files.items())),
            tuple(sorted(_printable(path) for path in links)),
            tuple(sorted(_printable(path) for path in unnamed)),
            {_printable(path) or ".": reason for path, reason in sorted(unseen.items())},
        )

    def stat(self, path: str) -> FoundFile:
        """Look at one file.

        Raises:
            UsageError: if the path leaves the folder, or is a link.
            OSError: if it cannot be looked at.
        """
        self._check(path)
        if self.is_local:
            found = os.stat(os.path.join(self.location, path))  # noqa: PTH116, PTH118
            return FoundFile(path, found.st_size, found.st_mtime_ns)
        return _remote_file(path, self._files.info(f"{self._root}/{path}"))

    def has(self, path: str) -> bool:
        """Whether a file is there, readable or not."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        except (OSError, UsageError):
            return True
        return True

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading its bytes, packed ones as they are.

        Raises:
            UsageError: if the path leaves the folder, or is a link.
            OSError: if it cannot be opened.
        """
        self._check(path)
        if self.is_local:
            return open(os.path.join(self.location, path), "rb")  # noqa: PTH118, PTH123
        stream: IO[bytes] = self._files.open(f"{self._root}/{path}", "rb")
        return stream

    @cached_property
    def _files(self) -> Any:
        import fsspec

        try:
            # What lies there changes all the time.
            return fsspec.filesystem(self.location.partition("://")[0], use_listings_cache=False)
        except ImportError as error:
            raise RetailAssetsError(
                f"Event files at {self.location} need a package that is not installed: {error}"
            ) from error

    @cached_property
    def _root(self) -> str:
        return self.location.partition("://")[2].rstrip("/")

    def _remote(self) -> dict[str, FoundFile]:
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise RetailAssetsError(
                f"The event files at {self.location} cannot be listed: {error}"
            ) from error
        prefix = f"{self._root}/"
        return {
            path: _remote_file(path, info)
            for path, info in ((key.removeprefix(prefix), info) for key, info in found.items())
            if is_event_file(path)
        }

    def _check(self, path: str) -> None:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise UsageError(f"{path!r} leaves the events folder {self.location}.")
        if self.is_local:
            for n in range(1, len(parts) + 1):
                part = os.path.join(self.location, *parts[:n])  # noqa: PTH118
                if os.path.islink(part):  # noqa: PTH114
                    raise UsageError(f"{part} is a link: event files are not read through links.")


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


def _scan(
    root: str, below: str, files: dict[str, FoundFile], links: list[str], unseen: dict[str, str]
) -> None:
    try:
        entries = os.scandir(os.path.join(root, below))  # noqa: PTH118  # it is what is fast
    except OSError as error:
        _note(unseen, below, "listed", error)
        return
    with entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                links.append(path)
            elif entry.is_dir():
                _scan(root, path, files, links, unseen)
            elif is_event_file(path):
                try:
                    found = entry.stat()
                except OSError as error:
                    _note(unseen, path, "looked at", error)
                    continue
                if entry.is_file():
                    files[path] = FoundFile(path, found.st_size, found.st_mtime_ns)


def _note(unseen: dict[str, str], path: str, what: str, error: OSError) -> None:
    # Else it is not there yet, or gone in this moment.
    if not isinstance(error, FileNotFoundError):
        unseen[path] = f"cannot be {what}: {error.strerror}"


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
    return path.endswith(ENDINGS) and not any(
        part.startswith(".") for part in PurePosixPath(path).parts
    )


def _remote_file(path: str, info: dict[str, Any]) -> FoundFile:
    modified = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or 0
    if isinstance(modified, datetime):
        modified = modified.astimezone(timezone.utc).timestamp()
    return FoundFile(path, int(info["size"]), int(float(modified) * 1e9))
