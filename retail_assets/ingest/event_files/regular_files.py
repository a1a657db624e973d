"""Ordinary files below a folder, opened through no link, and never a pipe or a device.

Whoever may write to the folder may put a link there to anything that this process can read, at any
moment; and to open a pipe waits until somebody writes to it. So each part of a path is opened by
itself, following no link, and what was opened is looked at again.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO

from retail_assets.errors import UsageError

_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

LINK = "is a link, which is not followed"
NOT_ORDINARY = "is no ordinary file but a pipe, a socket or a device"


def open_regular(folder: str, path: str) -> IO[bytes]:
    """Open a file for reading its bytes.

    Args:
        folder: where to begin; it may be a link itself.
        path: relative to it.

    Raises:
        UsageError: if the path leaves the folder, leads through a link, or to no ordinary file.
        OSError: if it cannot be opened.
    """
    with _parent(folder, path) as (parent, name):
        _regular(os.stat(name, dir_fd=parent, follow_symlinks=False), folder, path)
        file = os.fdopen(os.open(name, _FILE, dir_fd=parent), "rb")
    try:
        # It may be another by now.
        _regular(os.fstat(file.fileno()), folder, path)
    except UsageError:
        file.close()
        raise
    return file


def stat_regular(folder: str, path: str) -> os.stat_result:
    """Look at a file as `open_regular` would open it.

    Raises:
        UsageError: if the path leaves the folder, leads through a link, or to no ordinary file.
        OSError: if it cannot be looked at.
    """
    with _parent(folder, path) as (parent, name):
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    _regular(found, folder, path)
    return found


@contextmanager
def _parent(folder: str, path: str) -> Iterator[tuple[int, str]]:
    """The open folder that a file lies in, and the file's name there."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise UsageError(f"{path!r} leaves the folder {folder}.")
    parent = os.open(folder, _FOLDER)
    try:
        for depth, part in enumerate(parts[:-1], 1):
            try:
                child = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
            except NotADirectoryError:
                _not_link(
                    os.stat(part, dir_fd=parent, follow_symlinks=False),
                    folder,
                    "/".join(parts[:depth]),
                )
                raise
            os.close(parent)
            parent = child
        yield parent, parts[-1]
    finally:
        os.close(parent)


def _regular(found: os.stat_result, folder: str, path: str) -> None:
    _not_link(found, folder, path)
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(_problem(folder, path, "is a folder"))
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(_problem(folder, path, NOT_ORDINARY))


def _not_link(found: os.stat_result, folder: str, path: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise UsageError(_problem(folder, path, LINK))


def _problem(folder: str, path: str, what: str) -> str:
    return f"{os.path.join(folder, path)} {what}."  # noqa: PTH118
