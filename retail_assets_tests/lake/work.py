"""What the processes of this folder's tests do. Light to import; arguments are plain values."""

import os
import signal
import time
from datetime import date
from pathlib import Path
from typing import Any

from retail_assets.lake.connection import Lake
from retail_assets.lake.maintenance import maintain
from retail_assets.settings import Settings
from retail_assets_tests.lake.revenue import publish


def lake_in(data_dir: str) -> Lake:
    """The lake of a data folder."""
    return Lake.from_settings(Settings(data_dir=Path(data_dir), threads=1))


def open_and_write(data_dir: str, name: str) -> None:
    """Open a lake that may not be there yet, and enter a name."""
    lake = lake_in(data_dir)
    with lake.connect() as connection, lake.transaction(connection, name):
        connection.execute(
            "INSERT INTO failed_days VALUES (?, ?, ?, now())", [name, date(2026, 10, 5), name]
        )


def count_up(data_dir: str, times: int) -> None:
    """Raise the one version by one, in a transaction and a connection of its own each time."""
    lake = lake_in(data_dir)
    for _ in range(times):
        with lake.connect() as connection, lake.transaction(connection, "count"):
            row = connection.execute("SELECT version FROM changed_days").fetchone()
            assert row is not None
            connection.execute("UPDATE changed_days SET version = ?", [row[0] + 1])


def read_while_counting(data_dir: str, until: int) -> None:
    """Read in connections of one's own until the version is there; it never goes back."""
    lake = lake_in(data_dir)
    version = 0
    while version < until:
        with lake.connect(read_only=True) as connection:
            [(found,)] = connection.execute("SELECT version FROM changed_days").fetchall()
        assert found >= version
        version = found


def publish_values(data_dir: str, day: date, times: int) -> None:
    """Publish a day of `daily_revenue` with 1, 2, 3 ... in each of 30 regions."""
    lake = lake_in(data_dir)
    for value in range(1, times + 1):
        publish(lake, [(day, f"r{n:02}", str(value)) for n in range(30)], [day])


def maintain_in_zone(data_dir: str, zone: str) -> None:
    """Maintain a lake on a machine in a time zone; nothing must be deleted."""
    os.environ["TZ"] = zone
    time.tzset()
    assert maintain(lake_in(data_dir), keep_days=0).files_deleted == 0


def open_and_count(values: dict[str, Any], times: int) -> None:
    """Open a lake that may not be there yet, and count up in it."""
    lake = Lake.from_settings(Settings(**values))
    for _ in range(times):
        with lake.connect() as connection, lake.transaction(connection, "count"):
            found = connection.execute("SELECT version FROM changed_days").fetchall()
            if found:
                connection.execute("UPDATE changed_days SET version = ?", [found[0][0] + 1])
            else:
                connection.execute(
                    "INSERT INTO changed_days VALUES ('orders', ?, 1, now())", [date(2026, 10, 5)]
                )


def die_in_a_transaction(values: dict[str, Any]) -> None:
    """Get SIGKILL with the lock held and a row inserted."""
    lake = Lake.from_settings(Settings(**values))
    with lake.connect() as connection, lake.transaction(connection, "half"):
        connection.execute(
            "INSERT INTO failed_days VALUES ('t', ?, 'half', now())", [date(2026, 10, 5)]
        )
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_stay_there(data_dir: str) -> None:
    """Write files on every path, and end without a chance to tidy up."""
    from retail_assets_tests.lake.test_durability import write_on_every_path

    write_on_every_path(lake_in(data_dir))
    os._exit(0)
