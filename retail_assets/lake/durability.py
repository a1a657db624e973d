"""Syncs files to the disk before the commit that names them.

DuckDB writes Parquet files without syncing them or their folders, while SQLite and PostgreSQL sync
the catalog with each commit: a power cut left a catalog that named empty files. One sync of the
file system costs less than one for each file. Object storage needs none.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any


def bytes_written() -> int | None:
    """Count the bytes that this process has written since it started, to any file.

    If the count does not change, no file of the lake was written. None if the operating system does
    not tell.
    """
    try:
        with open("/proc/self/io", "rb", buffering=0) as counters:  # noqa: PTH123  # 10 µs, not 30
            return int(counters.read().split(b"wchar: ")[1].split()[0]) or None
    except (OSError, IndexError, ValueError):
        return None


def sync_files(folder: str) -> None:
    """Sync all files and folders of the file system of a folder to the disk.

    Does nothing if the folder does not exist, and on an operating system without `syncfs` and
    `sync`.

    Raises:
        OSError: if the disk failed: the transaction must not be committed.
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
