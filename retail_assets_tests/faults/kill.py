"""Work that is killed at a commit boundary, done again, and compared with work left in peace."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retail_assets.settings import Settings
from retail_assets_tests.faults.batch import contents
from retail_assets_tests.faults.boundaries import run_undisturbed, run_watched
from retail_assets_tests.processes import finish, start

SIDE_BY_SIDE = min(4, os.cpu_count() or 1)
INTO_COMMIT_SECONDS = (0.002, 0.005, 0.010)

Rows = dict[str, list[tuple[Any, ...]]]


def copy(settings: Settings, data_dir: Path) -> Settings:
    """The settings of a copy of a data folder."""
    shutil.copytree(settings.data_dir, data_dir)
    return Settings(**settings.model_dump() | {"data_dir": data_dir})


def do(work: Callable[..., None], settings: Settings, *arguments: Any) -> None:
    """Do some work in a process of its own."""
    assert finish([start(run_undisturbed, work, settings.model_dump(), arguments)]) == [0]


@dataclass(frozen=True)
class Harness:
    """Kills some work on copies of a data folder; all copies lie in `folder`."""

    work: Callable[..., None]
    arguments: Sequence[Any]
    settings: Settings
    folder: Path

    def undisturbed(self) -> tuple[list[str], Rows]:
        """The boundaries of an undisturbed run, and the tables that it gives."""
        calm = copy(self.settings, self.folder / "calm")
        report = self.folder / "boundaries"
        values = calm.model_dump()
        assert finish([start(run_watched, self.work, values, self.arguments, str(report))]) == [0]
        return report.read_text().splitlines(), contents(calm)

    def kill_everywhere(
        self, kills: Iterable[Sequence[float]], expected: Rows
    ) -> dict[Sequence[float], list[str]]:
        """Kill a run for each of `kills`, run again; what differs in the end, where any does."""

        def attempt(kill: Sequence[float]) -> tuple[Sequence[float], list[str]]:
            return kill, self._differences(kill, expected)

        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            return {kill: wrong for kill, wrong in pool.map(attempt, kills) if wrong}

    def _differences(self, kill: Sequence[float], expected: Rows) -> list[str]:
        killed = copy(self.settings, self.folder / f"killed {kill}")
        values = killed.model_dump()
        first = finish([start(run_watched, self.work, values, self.arguments, None, *kill)])
        second = finish([start(run_undisturbed, self.work, values, self.arguments)])
        if (first, second) != ([-signal.SIGKILL], [0]):
            return [f"exit codes {first} and {second}"]
        found = contents(killed)
        shutil.rmtree(killed.data_dir)
        return [name for name in expected if found[name] != expected[name]]
