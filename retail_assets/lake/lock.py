"""One writer at a time, over all processes.

DuckLake does not notice that two transactions inserted the same ledger row, and under contention
retries for a long time: so a writer holds this lock for its whole transaction. Readers never do.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from retail_assets.errors import RetailAssetsError

TIMEOUT_SECONDS = 600
POLL_SECONDS = 0.005

_held = threading.local()


@contextmanager
def write_lock(catalog: str) -> Iterator[None]:
    """Hold the lake's write lock: a file lock, or an advisory lock of PostgreSQL.

    The operating system or the server frees it when its holder dies.

    Raises:
        RetailAssetsError: if another process holds it for longer than ten minutes.
        RuntimeError: if this thread holds it: it would wait for itself.
    """
    held: set[str] = _held.__dict__.setdefault("catalogs", set())
    if catalog in held:
        raise RuntimeError("Transactions of the lake cannot be nested: end the first one.")
    lock = (
        _advisory_lock(catalog.removeprefix("postgres:"))
        if catalog.startswith("postgres:")
        else _file_lock(Path(catalog + ".lock"))
    )
    with lock:
        held.add(catalog)
        try:
            yield
        finally:
            held.remove(catalog)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=TIMEOUT_SECONDS, poll_interval=POLL_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise RetailAssetsError(
            f"Another process has held the write lock {path} for {TIMEOUT_SECONDS} s:"
            " look for a hanging run, or end the process that holds it."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory_lock(connection_string: str) -> Iterator[None]:
    import psycopg

    key = int.from_bytes(hashlib.sha256(b"retail_assets").digest()[:8], "big", signed=True)
    with psycopg.connect(connection_string, autocommit=True) as connection:
        connection.execute(f"SET lock_timeout = '{TIMEOUT_SECONDS}s'")
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [key])
        except psycopg.errors.LockNotAvailable as error:
            raise RetailAssetsError(
                f"Another process has held the lake's write lock for {TIMEOUT_SECONDS} s:"
                " look for a hanging run, or end the session that holds the advisory lock."
            ) from error
        yield
