"""Sparing everybody who opens an SQLite catalog a wait of a whole second.

DuckDB opens the catalog again for each transaction, and closes it after it. Who finds nobody else
connected throws the WAL's index away and rebuilds it; who closes asks for the whole file for a
moment, to remove the WAL. If another one opens the catalog in that moment it has to wait, and the
SQLite within DuckDB's extension can only wait in whole seconds. With ten commits a second and a few
readers that happens all the time.

A process that lives long can prevent both, as a connection that stays open would: it holds a shared
lock on the byte that says that somebody is connected, and one on the byte that whoever wants the
file for himself has to lock. Neither keeps anybody from reading, writing or a checkpoint. Which
bytes these are is part of SQLite's file format (https://sqlite.org/fileformat2.html and
https://sqlite.org/walformat.html). The operating system drops the locks when the process ends.
"""

import errno
import logging
import os
import struct
import time
from functools import cache

import duckdb

from retail_assets.lake.connection import Lake
from retail_assets.lake.snapshot_read import SnapshotRead

logger = logging.getLogger(__name__)

PENDING_BYTE = 0x40000000
"""Locked by who wants the database for himself."""

DEAD_MAN_SWITCH = 128
"""In the WAL's index; shared by everybody who is connected."""

ATTEMPTS, ATTEMPT_SECONDS = 20, 0.01
"""How often and how far apart a byte is asked for that another one has for himself: who closes the
catalog gives it back within a few ms."""


def stay_connected(lake: Lake, connection: duckdb.DuckDBPyConnection) -> bool:
    """Hold both locks until the process ends.

    Args:
        lake: the lake.
        connection: a connection to it that is in no transaction.

    Returns:
        Whether they are held: not on PostgreSQL, which needs no such thing, not on an operating or
        file system that has no locks that belong to an open file, and not if another one keeps a
        byte for himself. Then a later call may have more luck.
    """
    if lake.on_postgres:
        return False
    # While it reads, the index of the WAL is there and valid.
    with SnapshotRead(connection):
        connection.execute("FROM lake.current_snapshot()").fetchall()
        try:
            return _hold(lake.catalog)
        except OSError as error:
            logger.warning(
                "Others may wait a second for the catalog, it cannot be locked: %s", error
            )
            return False


@cache
def _hold(catalog: str) -> bool:
    """Hold both locks; what is raised is not remembered, so that they can be asked for again."""
    try:
        import fcntl

        command = fcntl.F_OFD_SETLK
    except (ImportError, AttributeError):
        return False
    for path, byte in ((catalog, PENDING_BYTE), (f"{catalog}-shm", DEAD_MAN_SWITCH)):
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        for left in reversed(range(ATTEMPTS)):
            try:
                fcntl.fcntl(_descriptor(path), command, lock)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or not left:
                    raise
                time.sleep(ATTEMPT_SECONDS)
    return True


@cache
def _descriptor(path: str) -> int:
    """Open a file for good: to close it would drop all locks that SQLite has on it here."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
