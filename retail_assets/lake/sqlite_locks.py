"""Locks of a resident process that spare others a wait of a second for an SQLite catalog.

DuckDB opens the catalog for each transaction, and closes it afterwards. The first connection
rebuilds the WAL's index. The last one locks the whole file for a moment to remove the WAL. Another
process that opens the catalog then has to wait, and the SQLite within DuckDB's extension waits in
whole seconds. With ten commits a second and a few readers this happens all the time.

A resident process can prevent both, like a connection that stays open. It holds a shared lock on
the byte that marks a connection, and one on the byte that an exclusive lock needs. Neither keeps
others from reading, writing or a checkpoint. The bytes are part of SQLite's file format
(https://sqlite.org/fileformat2.html and https://sqlite.org/walformat.html). The operating system
drops the locks when the process ends.
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
"""The byte that an exclusive lock of the database needs."""

DEAD_MAN_SWITCH = 128
"""The byte in the WAL's index that every connection shares."""

ATTEMPTS, ATTEMPT_SECONDS = 20, 0.01
"""How often, and how far apart, the lock of a byte is tried: a process that closes the catalog
releases it within a few ms."""


def stay_connected(lake: Lake, connection: duckdb.DuckDBPyConnection) -> bool:
    """Hold both locks until the process ends.

    Args:
        lake: the lake.
        connection: a connection to it that is in no transaction.

    Returns:
        Whether they are held: not on PostgreSQL, which needs none, not on an operating or file
        system without locks of open files, and not while another process has a byte locked; a later
        call may succeed then.
    """
    if lake.on_postgres:
        return False
    # During a read, the index of the WAL is there and valid.
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
    """Hold both locks; errors are not cached, so that a later call tries again."""
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
    """Open a file for good: closing it would drop all locks of SQLite on it in this process."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
