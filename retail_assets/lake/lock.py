"""One writer at a time, over all processes.

DuckLake does not notice when two transactions insert the same ledger row, and under contention it
retries for a long time. So a writer holds this lock for its whole transaction. Readers never do.
"""

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from retail_assets.errors import RetailAssetsError

TIMEOUT_SECONDS = 600
POLL_SECONDS = 0.005

PATIENCE_SECONDS = 5
"""When a waiting writer logs who holds the lock."""

logger = logging.getLogger(__name__)

_held = threading.local()


@contextmanager
def write_lock(catalog: str, purpose: str = "change the lake") -> Iterator[None]:
    """Hold the lake's write lock: a file lock, or an advisory lock of PostgreSQL.

    The operating system or the server frees it when its holder dies.

    Args:
        catalog: the catalog of the lake.
        purpose: the reason, shown to waiting writers with process, host and time.

    Raises:
        RetailAssetsError: if another process holds it for longer than ten minutes.
        RuntimeError: if this thread holds it already.
    """
    held: set[str] = _held.__dict__.setdefault("catalogs", set())
    if catalog in held:
        raise RuntimeError("Transactions of the lake cannot be nested: end the first one.")
    lock = (
        _advisory_lock(catalog.removeprefix("postgres:"), purpose)
        if catalog.startswith("postgres:")
        else _file_lock(Path(catalog + ".lock"), purpose)
    )
    asked = time.perf_counter()
    with lock:
        got = time.perf_counter()
        held.add(catalog)
        try:
            yield
        finally:
            held.remove(catalog)
            _usage.add(got - asked, time.perf_counter() - got)


class _Usage:
    """How often this process had the write lock, how long it waited for it and held it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._count, self._waited, self._held = 0, 0.0, 0.0

    def add(self, waited: float, held: float) -> None:
        with self._mutex:
            self._count += 1
            self._waited += waited
            self._held += held

    def totals(self) -> dict[str, float]:
        with self._mutex:
            return {
                "lock_acquired_total": self._count,
                "lock_wait_seconds_total": round(self._waited, 3),
                "lock_hold_seconds_total": round(self._held, 3),
            }


_usage = _Usage()


def lock_totals() -> dict[str, float]:
    """How often this process had the write lock, and the seconds that it waited for and held it."""
    return _usage.totals()


@contextmanager
def named_lock(catalog: str, name: str, purpose: str) -> Iterator[None]:
    """Hold another lock of the lake, which nobody who writes to the lake waits for.

    Args:
        catalog: the catalog of the lake.
        name: which lock.
        purpose: as for `write_lock`.

    Raises:
        RetailAssetsError: if another process holds it for longer than ten minutes.
    """
    with (
        _advisory_lock(catalog.removeprefix("postgres:"), purpose, name)
        if catalog.startswith("postgres:")
        else _file_lock(Path(f"{catalog}.{name}.lock"), purpose)
    ):
        yield


@contextmanager
def _file_lock(path: Path, purpose: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, poll_interval=POLL_SECONDS)
    holder = path.with_name(path.name + ".holder")
    try:
        try:
            lock.acquire(timeout=PATIENCE_SECONDS)
        except Timeout:
            _warn(_read_holder(holder))
            lock.acquire(timeout=TIMEOUT_SECONDS - PATIENCE_SECONDS)
    except Timeout as error:
        raise RetailAssetsError(
            f"The write lock {path} was not free for {TIMEOUT_SECONDS} s, {_read_holder(holder)}:"
            " look for a hanging run, or end that process."
        ) from error
    try:
        since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"
        holder.write_text(json.dumps(_myself() | {"since": since, "for": purpose}))
        yield
    finally:
        lock.release()


def _myself() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _read_holder(path: Path) -> str:
    """The last holder of the lock, by its own note: for people, the lock itself decides."""
    try:
        holder = json.loads(path.read_text())
        return (
            f"held by process {holder['pid']} on {holder['host']} since {holder['since']}"
            f" to {holder['for']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "held by a process that has not said which"


def _warn(holder: str) -> None:
    logger.warning("Waiting for the write lock of the lake, %s.", holder)


@contextmanager
def _advisory_lock(connection_string: str, purpose: str, name: str = "") -> Iterator[None]:
    import psycopg

    subject = f"retail_assets {name}".strip().encode()
    key = int.from_bytes(hashlib.sha256(subject).digest()[:8], "big", signed=True)
    name = "process {pid} on {host} to {purpose}".format(**_myself(), purpose=purpose)
    with psycopg.connect(connection_string, autocommit=True) as connection:
        connection.execute("SELECT set_config('application_name', %s, false)", [name])

        def acquire(seconds: float) -> bool:
            connection.execute(f"SET lock_timeout = '{round(seconds * 1000)}ms'")
            try:
                connection.execute("SELECT pg_advisory_lock(%s)", [key])
            except psycopg.errors.LockNotAvailable:
                return False
            return True

        def holder() -> str:
            # The last statement of the holder has acquired the lock.
            found = connection.execute(
                "SELECT application_name, pid, state_change FROM pg_locks"
                " JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND (classid::bigint << 32) | objid::bigint = %s",
                [key],
            ).fetchone()
            if found is None:
                return "held by a session that has just ended"
            return "held by {} (session {}) since {:%Y-%m-%d %H:%M:%S%z}".format(*found)

        if not acquire(PATIENCE_SECONDS):
            _warn(holder())
            if not acquire(TIMEOUT_SECONDS - PATIENCE_SECONDS):
                raise RetailAssetsError(
                    f"The lake's write lock was not free for {TIMEOUT_SECONDS} s, {holder()}:"
                    " look for a hanging run, or end that session."
                )
        yield
