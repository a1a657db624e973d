"""Checks that the folder of DAGSTER_HOME can be used, without starting Dagster to find out."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from retail_assets.errors import UsageError

_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")


def check_dagster_home(home: str) -> None:
    """Make sure that Dagster can keep its history there.

    Raises:
        UsageError: naming the file or folder that cannot be used, and what to do.
    """
    folder = Path(home)
    try:
        is_folder = folder.is_dir()
    except PermissionError:
        # A parent folder may not be entered.
        is_folder = True
    if not folder.is_absolute() or not is_folder:
        raise UsageError(
            f"DAGSTER_HOME={home!r} must be the absolute path of a folder that exists:"
            " create it, or unset the variable."
        )
    if not _may(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(
            f"DAGSTER_HOME={home!r} may not be written to: change its owner or mode, or set"
            " DAGSTER_HOME to another folder."
        )
    for name in _DATABASES:
        _check_database(folder / name)


def _check_database(path: Path) -> None:
    try:
        # Dagster fills an empty one.
        if not path.exists() or path.stat().st_size == 0:
            return
        if not _may(path, os.R_OK | os.W_OK):
            raise UsageError(
                f"{path}, Dagster's history, may not be written to: change its owner or mode, or"
                " set DAGSTER_HOME to another folder."
            )
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (OSError, sqlite3.DatabaseError) as error:
        if "locked" in str(error):
            return
        raise UsageError(
            f"{path}, Dagster's history, is damaged ({error}): move it away, Dagster makes a new"
            " one, or set DAGSTER_HOME to another folder. The lake is not affected."
        ) from error


def _may(path: Path, how: int) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)
