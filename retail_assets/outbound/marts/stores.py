"""Where the files of a mart lie: a folder of this machine, or a bucket by fsspec."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from retail_assets.lake.durability import sync_files
from retail_assets.lake.replacement import Draft, replace_files

ASIDE = "_retail_assets_aside"
"""The folder for files that are being written, on the same file system as the others."""


class Store(Protocol):
    """Files by their paths below the root of the mart."""

    def clear_aside(self) -> None:
        """Delete what a killed round has left aside."""
        ...

    def has_any(self, folder: str) -> bool:
        """Whether a folder has files."""
        ...

    def find(self, folder: str) -> list[str]:
        """All files below a folder."""
        ...

    def read(self, paths: Collection[str]) -> dict[str, bytes]:
        """The contents of the files that there are."""
        ...

    def write(self, contents: Mapping[str, bytes], *, sync_before: bool = False) -> None:
        """Replace files, each as a whole; after a power cut each is the old or the new one.

        With `sync_before` whatever was written and deleted before is on the disk before them.
        """
        ...

    def delete(self, paths: Collection[str]) -> None:
        """Delete files; those that are not there are left out."""
        ...


def open_store(root: str, umask: int) -> Store:
    """The store at a folder or a URL."""
    return BucketStore(root) if "://" in root else FolderStore(Path(root), umask)


class FolderStore:
    """A folder."""

    def __init__(self, root: Path, umask: int) -> None:
        self._root = root
        self._umask = umask

    def clear_aside(self) -> None:
        """See `Store`."""
        for path in (self._root / ASIDE).glob("*"):
            path.unlink()

    def has_any(self, folder: str) -> bool:
        """See `Store`."""
        return next((self._root / folder).glob("*/*/*"), None) is not None

    def find(self, folder: str) -> list[str]:
        """See `Store`."""
        found = (self._root / folder).rglob("*")
        return [path.relative_to(self._root).as_posix() for path in found if path.is_file()]

    def read(self, paths: Collection[str]) -> dict[str, bytes]:
        """See `Store`."""
        found = {}
        for path in paths:
            try:
                found[path] = (self._root / path).read_bytes()
            except FileNotFoundError:
                continue
        return found

    def write(self, contents: Mapping[str, bytes], *, sync_before: bool = False) -> None:
        """See `Store`."""
        if not contents:
            return
        self._make(self._root / ASIDE)
        drafts = []
        for path, content in contents.items():
            place = self._root / path
            self._make(place.parent)
            drafts.append(Draft(self._root / ASIDE / uuid4().hex, place))
            descriptor = os.open(
                drafts[-1].path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 & ~self._umask
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        if sync_before:
            sync_files(str(self._root))
        replace_files(drafts)

    def delete(self, paths: Collection[str]) -> None:
        """See `Store`."""
        for path in paths:
            (self._root / path).unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(mode=0o777 & ~self._umask, exist_ok=True)


class BucketStore:
    """A prefix of a bucket."""

    def __init__(self, root: str) -> None:
        import fsspec

        protocol, _, self._root = root.partition("://")
        # A cached instance would have the endpoint and the keys of an earlier environment.
        self._files: Any = fsspec.filesystem(
            protocol, use_listings_cache=False, skip_instance_cache=True
        )

    def clear_aside(self) -> None:
        """See `Store`: a put leaves nothing aside."""

    def has_any(self, folder: str) -> bool:
        """See `Store`."""
        return bool(self._files.exists(f"{self._root}/{folder}"))

    def find(self, folder: str) -> list[str]:
        """See `Store`."""
        found = self._files.find(f"{self._root}/{folder}")
        return [path.removeprefix(f"{self._root}/") for path in found]

    def read(self, paths: Collection[str]) -> dict[str, bytes]:
        """See `Store`."""
        wanted = {f"{self._root}/{path}": path for path in paths}
        found: dict[str, bytes] = {}
        for place, content in self._files.cat(list(wanted), on_error="return").items():
            if isinstance(content, FileNotFoundError):
                continue
            if isinstance(content, Exception):
                raise content
            found[wanted[place]] = content
        return found

    def write(self, contents: Mapping[str, bytes], *, sync_before: bool = False) -> None:  # noqa: ARG002
        """See `Store`."""
        if contents:
            self._files.pipe(
                {f"{self._root}/{path}": content for path, content in contents.items()}
            )

    def delete(self, paths: Collection[str]) -> None:
        """See `Store`."""
        wanted = [f"{self._root}/{path}" for path in paths]
        # One that was deleted already is no error.
        if wanted:
            self._files.rm(wanted)
