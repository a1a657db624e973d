"""Commit boundaries: before BEGIN, before COMMIT, during COMMIT, after COMMIT of each transaction.

A process counts the ones that it passes, and kills itself at one of them with SIGKILL, which leaves
no time for any tidying up; or copies its data folder at each.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Boundaries:
    """The boundaries passed so far; the process ends at the number or the name `kill_at`.

    With `delay` it ends that many seconds into that COMMIT instead. With `keep` the
    data folder `data_dir` is copied at each of them to a folder of that number in `keep`.
    """

    kill_at: int | str | None = None
    delay: float | None = None
    data_dir: Path | None = None
    keep: Path | None = None
    passed: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Watch this process, for good."""
        transaction, commit = Lake.transaction, lake_connection.commit
        message = ""

        @contextmanager
        def watched_transaction(
            lake: Lake, connection: duckdb.DuckDBPyConnection, text: str
        ) -> Iterator[None]:
            nonlocal message
            message = text
            if self.delay is None:
                self._pass(f"before BEGIN of {text}")
            with transaction(lake, connection, text):
                yield

        def watched_commit(connection: duckdb.DuckDBPyConnection) -> None:
            if self.delay is None:
                self._pass(f"before COMMIT of {message}")
                commit(connection)
                self._pass(f"after COMMIT of {message}")
            else:
                self._pass(f"during COMMIT of {message}")
                commit(connection)

        Lake.transaction = watched_transaction  # type: ignore[method-assign]
        lake_connection.commit = watched_commit

    def _pass(self, name: str) -> None:
        if self.kill_at in (len(self.passed), name):
            if self.delay is None:
                _kill()
            else:
                threading.Thread(target=self._kill_later, daemon=True).start()
        if self.data_dir is not None and self.keep is not None:
            shutil.copytree(self.data_dir, self.keep / str(len(self.passed)))
        self.passed.append(name)

    def _kill_later(self) -> None:
        assert self.delay is not None
        time.sleep(self.delay)
        _kill()


def run_watched(
    work: Callable[..., None],
    values: dict[str, Any],
    arguments: Sequence[Any] = (),
    report: str | None = None,
    kill_at: int | str | None = None,
    delay: float | None = None,
    keep: str | None = None,
) -> None:
    """Do some work with these settings; write the names of the boundaries to a file, or die."""
    settings = Settings(**values)
    boundaries = Boundaries(kill_at, delay, settings.data_dir, Path(keep) if keep else None)
    boundaries.watch()
    work(settings, *arguments)
    if report is not None:
        Path(report).write_text("\n".join(boundaries.passed))
    if kill_at is not None:
        # The last COMMIT was over sooner than the delay.
        _kill()


def run_undisturbed(
    work: Callable[..., None], values: dict[str, Any], arguments: Sequence[Any] = ()
) -> None:
    """Do the same work in this process."""
    work(Settings(**values), *arguments)


def run_backfill(settings: Settings, first: date, last: date) -> None:
    """Run a backfill of Dagster's."""
    from retail_assets.cli import backfill

    backfill.run_backfill(settings, first, last)


def make_lake(settings: Settings) -> None:
    """Make a lake."""
    with Lake.from_settings(settings).connect():
        pass
