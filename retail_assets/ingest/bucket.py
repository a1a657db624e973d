"""Files in a bucket, or whatever else fsspec reaches by a URL."""

import errno
import os
import shutil
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.ledgers.event_files import FoundFile

CHUNK_BYTES = 4 << 20

ATTEMPTS = 3
"""How often a file that is replaced while it is copied is copied again."""


class Bucket:
    """The files below a prefix, by their paths there.

    Args:
        location: `s3://bucket/prefix`; a slash at its end makes no difference.
        what: the files in a sentence, such as `The event files`.
    """

    def __init__(self, location: str, what: str) -> None:
        self.location, self._what = location, what

    def list(self) -> dict[str, FoundFile]:
        """List all files; none where there is no such prefix yet.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        try:
            there = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        except RetailAssetsError:
            raise
        except Exception as error:
            raise RetailAssetsError(
                f"{self._what} at {self.location} cannot be listed: {error}"
            ) from error
        prefix = f"{self._root}/"
        found = ((key.removeprefix(prefix), info) for key, info in there.items())
        return {path: _found(path, info) for path, info in found}

    def stat(self, path: str) -> FoundFile:
        """Look at one file.

        Raises:
            OSError: if it cannot be looked at.
        """
        return _found(path, self._files.info(f"{self._root}/{path}"))

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading its bytes.

        Raises:
            OSError: if it cannot be opened.
        """
        stream: IO[bytes] = self._files.open(f"{self._root}/{path}", "rb")
        return stream

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to this machine, with its time: as one version of it, never parts of two.

        Raises:
            OSError: if it cannot be read.
            RetailAssetsError: if it is replaced again and again.
        """
        for _ in range(ATTEMPTS):
            try:
                if self._copy(path, target):
                    return
            except OSError as error:
                # What s3fs says of an object that was replaced since it was opened.
                if error.errno != errno.EBUSY:
                    raise
        raise RetailAssetsError(
            f"{self.location.rstrip('/')}/{path} is replaced again and again while it is read: put"
            " it there once, as a whole."
        )

    def _copy(self, path: str, target: Path) -> bool:
        """Copy a file; returns whether it is the same version before and after."""
        key = f"{self._root}/{path}"
        before = self._files.info(key)
        with self.open(path) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)
        found = _found(path, before)
        os.utime(target, ns=(found.modified_ns, found.modified_ns))
        same = _version(self._files.info(key)) == _version(before)
        return same and target.stat().st_size == found.size_bytes

    def put(self, source: Path, path: str) -> None:
        """Put a file of this machine there: it appears as a whole, in place of what is there.

        Raises:
            OSError: if it cannot be written.
        """
        self._files.put_file(str(source), f"{self._root}/{path}")

    @cached_property
    def _files(self) -> Any:
        import fsspec

        try:
            # The content of the bucket changes all the time.
            return fsspec.filesystem(self.location.partition("://")[0], use_listings_cache=False)
        except ImportError as error:
            raise RetailAssetsError(
                f"{self._what} at {self.location} need a package that is not installed: {error}"
            ) from error

    @cached_property
    def _root(self) -> str:
        return self.location.partition("://")[2].rstrip("/")


def _found(path: str, info: dict[str, Any]) -> FoundFile:
    modified = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or 0
    if isinstance(modified, datetime):
        modified = modified.astimezone(timezone.utc).timestamp()
    return FoundFile(path, int(info["size"]), int(float(modified) * 1e9))


def _version(info: dict[str, Any]) -> tuple[object, ...]:
    """What tells versions of a file apart; times have seconds."""
    return _found("", info), info.get("ETag"), info.get("VersionId")
