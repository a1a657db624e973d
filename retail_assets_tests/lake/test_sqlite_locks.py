"""A process that stays connected keeps the WAL in place, and nobody from anything."""

import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from retail_assets.lake import sqlite_locks as guard
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

pytestmark = pytest.mark.skipif(
    not hasattr(fcntl, "F_OFD_SETLK"), reason="locks of open files are not everywhere"
)

HOLD = """
import sys
from retail_assets.lake.connection import Lake
from retail_assets.lake.sqlite_locks import stay_connected
from retail_assets.settings import Settings
lake = Lake.from_settings(Settings())
with lake.connect() as connection:
    print(stay_connected(lake, connection), stay_connected(lake, connection), flush=True)
sys.stdin.read()
"""


@contextmanager
def somebody_connected(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A process that has closed all of its connections, and stays connected all the same."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"RETAIL_DATA_DIR": str(settings.data_dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True True\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def can_be_had(path: str, byte: int) -> bool:
    """Whether a process could lock a byte for itself."""
    code = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR);"
        "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(byte)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0 or "BlockingIOError" in done.stderr
    return done.returncode == 0


@pytest.mark.processes
def test_nobody_can_have_the_catalog_for_himself_while_somebody_stays_connected(settings, lake):
    assert can_be_had(lake.catalog, guard.PENDING_BYTE)
    with somebody_connected(settings):
        assert not can_be_had(lake.catalog, guard.PENDING_BYTE)
        assert not can_be_had(f"{lake.catalog}-shm", guard.DEAD_MAN_SWITCH)
    assert can_be_had(lake.catalog, guard.PENDING_BYTE)


@pytest.mark.processes
def test_reading_writing_and_checkpoints_go_on(settings, lake: Lake):
    with somebody_connected(settings):
        with lake.connect() as connection, lake.transaction(connection, "a test"):
            connection.execute("INSERT INTO products VALUES ('P1', 'Kettle', 'Kitchen', 20, 5)")
        with lake.connect(read_only=True) as connection:
            assert connection.execute("SELECT product_id FROM products").fetchall() == [("P1",)]
        # In this process no connection to the lake is open any more.
        with closing(sqlite3.connect(lake.catalog)) as catalog:
            busy, pages, moved = catalog.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert (busy, pages) == (0, moved)
    with lake.connect(read_only=True) as connection:
        assert connection.execute("SELECT product_id FROM products").fetchall() == [("P1",)]


LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def had_by_another(path: Path, byte: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has a byte for itself until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path), str(byte)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.communicate()


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Two files that nobody is connected to."""
    for name in ("catalog", "catalog-shm"):
        (tmp_path / name).touch()
    return tmp_path / "catalog"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "byte"),
    [("catalog", guard.PENDING_BYTE), ("catalog-shm", guard.DEAD_MAN_SWITCH)],
)
def test_who_closes_the_catalog_at_that_moment_is_waited_for(
    name: str, byte: int, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with had_by_another(catalog.with_name(name), byte) as closing_one:
        # It gives the byte back once it was asked for in vain.
        monkeypatch.setattr(guard.time, "sleep", lambda _: closing_one.communicate())

        assert guard._hold(str(catalog))

    assert not can_be_had(str(catalog.with_name(name)), byte)


@pytest.mark.parametrize("reason", [errno.EAGAIN, errno.EACCES, errno.EINVAL, errno.ENOLCK])
def test_where_the_locks_cannot_be_had_the_worker_goes_on_and_may_ask_again(
    reason: int, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    with lake.connect() as connection:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "fcntl", refuse)
            assert not guard.stay_connected(lake, connection)
        assert guard.stay_connected(lake, connection)


def test_postgresql_needs_no_such_thing(settings):
    lake = Lake("postgres:dbname=nowhere", settings.data_path, str(settings.lake_dir / "spill"))
    assert not guard.stay_connected(lake, connection=None)  # type: ignore[arg-type]
