"""What the processes of this folder's tests do. Light to import; arguments are plain values."""

from datetime import date
from pathlib import Path

from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings


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
