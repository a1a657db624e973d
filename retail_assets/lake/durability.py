"""Files are on the disk before the commit that names them: one sync of the file system.

DuckDB writes Parquet files without syncing them or their folders, while SQLite and PostgreSQL sync
the catalog with each commit: a power cut left a catalog that named empty files. One sync for all
files of a transaction costs less than one for each. Object storage has kept what it acknowledged.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any


def bytes_written() -> int | None:
    """Count what this process has written since it started, to files of any kind.

    Where the count stands still, no file of the lake was written. None where the operating system
    does not tell.
    """
    try:
        with open("/proc/self/io", "rb", buffering=0) as counters:  # noqa: PTH123  # 10 µs, not 30
            return int(counters.read().split(b"wchar: ")[1].split()[0]) or None
    except (OSError, IndexError, ValueError):
        return None


def sync_files(folder: str) -> None:
    """Wait until all files of the file system that a folder lies on are on the disk, and folders.

    Does nothing for a folder that is not there yet, and on an operating system that has neither
    `syncfs` nor `sync`.

    Raises:
        OSError: if the disk could not keep what was written: it must not be committed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        syncfs = _syncfs()
        if syncfs is None:
            getattr(os, "sync", lambda: None)()
        elif syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), folder)
    finally:
        os.close(descriptor)


@cache
def _syncfs() -> Any:
    return (
        getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name == "posix" else None
    )


def local_folder(data_path: str) -> Path | None:
    """The folder of the lake's files, or None where they lie in object storage."""
    path = data_path.removeprefix("file://")
    return None if "://" in path else Path(path)
