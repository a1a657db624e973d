"""Work that is killed at a commit boundary, done again, and compared with undisturbed work."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from retail_assets.settings import Settings
from retail_assets_tests.faults.batch import contents
from retail_assets_tests.faults.boundaries import run_undisturbed, run_watched
from retail_assets_tests.processes import CONTEXT, finish, start

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
class Walk:
    """Some work, undisturbed: its commit boundaries and the tables that it gives.

    `states` has a data folder for each boundary, copied while the work stood there: the bytes that
    SIGKILL at this boundary leaves, since the kernel keeps what a process has written. `calm` is
    the data folder after the work.
    """

    work: Callable[..., None]
    arguments: Sequence[Any]
    settings: Settings
    calm: Settings
    boundaries: Sequence[str]
    states: Sequence[Path]
    expected: Rows

    @classmethod
    def of(
        cls,
        work: Callable[..., None],
        arguments: Sequence[Any],
        settings: Settings,
        folder: Path,
    ) -> "Walk":
        """Do some work on a copy of a data folder; all copies lie in `folder`."""
        calm = copy(settings, folder / "calm")
        values, report, kept = calm.model_dump(), folder / "boundaries", folder / "states"
        walking = start(run_watched, work, values, arguments, str(report), keep=str(kept))
        assert finish([walking]) == [0]
        boundaries = report.read_text().splitlines()
        states = [kept / str(number) for number in range(len(boundaries))]
        return cls(work, arguments, settings, calm, boundaries, states, contents(calm))

    def commits(self) -> list[str]:
        """What the commits are for, in their order."""
        found = [name.partition("after COMMIT of ")[2] for name in self.boundaries]
        return [name for name in found if name]

    def wrong_after_a_kill_at_a_boundary(self) -> dict[str, list[str]]:
        """The tables that differ when the work is done again from the state at a boundary.

        A state whose files are all in another one, such as that before BEGIN in that before COMMIT,
        is not tried: what the other has besides is what the transaction has left.
        """
        different = {_fingerprint(state): state for state in self.states}
        wrong = self._wrong_after_doing_again(
            state
            for files, state in different.items()
            if not any(files < others for others in different)
        )
        return {self.boundaries[int(state.name)]: tables for state, tables in wrong.items()}

    def wrong_after_a_kill_in_a_commit(self, folder: Path) -> dict[str, list[str]]:
        """The tables in which what is left by a kill within a COMMIT differs from before it, unless
        all are as they are after that COMMIT, or after a later one if the kill came late.

        From these states the work is done again at the boundaries; here only from what was killed
        within the first COMMIT, and the tables compared at the end.
        """
        states = [
            state
            for state, name in zip(self.states, self.boundaries, strict=True)
            if name.startswith("before BEGIN")
        ]
        killed = [folder / state.name for state in states]
        delays = cycle(INTO_COMMIT_SECONDS)
        for before, data_dir, message, delay in zip(
            states, killed, self.commits(), delays, strict=False
        ):
            shutil.copytree(before, data_dir)
            process = start(
                run_watched,
                self.work,
                self._values(data_dir),
                self.arguments,
                # By name: what fails again is noted again, in a transaction that comes first.
                kill_at=f"during COMMIT of {message}",
                delay=delay,
            )
            assert finish([process]) == [-signal.SIGKILL]
        found = self._wrong_after_doing_again(killed[:1])
        rows = [self._contents(state) for state in (*states, self.states[-1])]
        for number, data_dir in enumerate(killed):
            left = self._contents(data_dir)
            if left not in rows[number:]:
                found[data_dir] = [name for name in left if left[name] != rows[number][name]]
        return {self.boundaries[int(state.name)]: tables for state, tables in found.items()}

    def _wrong_after_doing_again(self, states: Iterable[Path]) -> dict[Path, list[str]]:
        again = partial(_do_again, self.work, self.arguments)
        states = list(states)
        with ProcessPoolExecutor(SIDE_BY_SIDE, mp_context=CONTEXT) as pool:
            found = list(pool.map(again, map(self._values, states)))
        wrong = {
            state: [name for name, rows in self.expected.items() if tables[name] != rows]
            for state, tables in zip(states, found, strict=True)
        }
        return {state: tables for state, tables in wrong.items() if tables}

    def _contents(self, data_dir: Path) -> Rows:
        return contents(Settings(**self._values(data_dir)))

    def _values(self, data_dir: Path) -> dict[str, Any]:
        return self.settings.model_dump() | {"data_dir": data_dir}


def _do_again(
    work: Callable[..., None], arguments: Sequence[Any], values: dict[str, Any]
) -> dict[str, list[tuple[Any, ...]]]:
    """Do the work on a copy of a state, which others may need as it is; returns all tables."""
    before = Path(values["data_dir"])
    copied = copy(Settings(**values), before.with_name(f"{before.name}-again"))
    work(copied, *arguments)
    found = contents(copied)
    shutil.rmtree(copied.data_dir)
    return found


def _fingerprint(folder: Path) -> frozenset[tuple[str, bytes]]:
    """All files with their content.

    Left out are SQLite's index of its log, which is made again, and the name of the last writer,
    which only a message about a lock that is held reads.
    """
    return frozenset(
        (str(path.relative_to(folder)), path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", ".lock.holder"))
    )
