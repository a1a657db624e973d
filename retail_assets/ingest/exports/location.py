"""Where the order exports lie: a folder of this machine, or a prefix of a bucket (`s3://…`).

What reads exports reads files of this machine. Those of a bucket are copied for it, a few at a
time, into the folder for spilled data, and named in every problem by where they really lie.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.bucket import Bucket
from retail_assets.ingest.ledgers.event_files import FoundFile

MAX_ENTRIES = 50_000
"""Limit on the names that are looked at, so that a huge folder does not stop the command."""

COPIES = 8
"""How many files are copied at the same time: most of the time of a small one is waiting."""


class ExportsLocation:
    """The files in a folder or below a prefix.

    Args:
        location: a path, or a URL such as `s3://bucket/exports`.
    """

    def __init__(self, location: Path | str) -> None:
        self.location = str(location).rstrip("/") if "://" in str(location) else str(location)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.location

    def files(self, wanted: Callable[[str], bool]) -> list[FoundFile]:
        """The files with certain names, those in sub-folders left out; none where there is nothing.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        if not self.is_local:
            listed = self.bucket.list().items()
            return [file for name, file in listed if "/" not in name and wanted(name)]
        try:
            entries = os.scandir(self.location)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        with entries:
            for entry in entries:
                if wanted(entry.name) and entry.is_file():
                    stat = entry.stat()
                    found.append(FoundFile(entry.name, stat.st_size, stat.st_mtime_ns))
        return found

    def names(self) -> Iterator[str]:
        """The paths of all files, sub-folders included, at most `MAX_ENTRIES`; none that is hidden.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        if not self.is_local:
            paths = list(self.bucket.list())[:MAX_ENTRIES]
            visible = [p for p in paths if not any(part[:1] == "." for part in p.split("/"))]
            yield from sorted(visible, key=lambda path: path.count("/"))
            return
        folders, left = [""], MAX_ENTRIES
        for folder in folders:
            try:
                entries = os.scandir(Path(self.location, folder))
            except OSError:
                continue
            with entries:
                for entry in entries:
                    if left == 0:
                        return
                    left -= 1
                    name = f"{folder}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{name}/")
                    elif entry.is_file():
                        yield name

    @contextmanager
    def copies(self, names: Iterable[str], spill_dir: str) -> Iterator[tuple[Path, dict[str, str]]]:
        """Have some files on this machine for a while.

        Args:
            names: the files.
            spill_dir: the folder that those of a bucket are copied into.

        Yields:
            The folder that they are in, and the problem of each that cannot be read. One that is
            gone is not in the folder.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        if self.is_local:
            yield Path(self.location), {}
            return
        Path(spill_dir).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=spill_dir, prefix="exports-") as folder:
            yield Path(folder), self.fetch(names, Path(folder))

    def fetch(self, names: Iterable[str], folder: Path) -> dict[str, str]:
        """Copy files of a bucket into a folder; returns the problem of each that cannot be read."""

        def copy(name: str) -> tuple[str, str | None]:
            return name, self._copy(name, folder / name)

        with ThreadPoolExecutor(COPIES) as threads:
            found = list(threads.map(copy, names))
        return {name: problem for name, problem in found if problem is not None}

    def _copy(self, name: str, target: Path) -> str | None:
        try:
            self.bucket.fetch(name, target)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return None
        except RetailAssetsError as error:
            return str(error)
        except PermissionError as error:
            return f"{self.location}/{name} cannot be read: {error}."
        except Exception as error:
            raise RetailAssetsError(
                f"The order exports at {self.location} cannot be read: {error}"
            ) from error
        return None

    def put(self, path: Path) -> None:
        """Put a file of this machine into the bucket, in place of what is there, as a whole.

        Raises:
            RetailAssetsError: if it cannot be written.
        """
        try:
            self.bucket.put(path, path.name)
        except Exception as error:
            raise RetailAssetsError(
                f"{self.location}/{path.name} cannot be written: {error}"
            ) from error

    def shown(self, text: str, folder: Path) -> str:
        """A text that names files where they lie, not their copies in a folder."""
        return text if self.is_local else text.replace(f"{folder}/", f"{self.location}/")

    @cached_property
    def bucket(self) -> Bucket:
        """The bucket, where it is one."""
        return Bucket(self.location, "The order exports")
