"""Publishers that get SIGKILL. Light to import; arguments are plain values."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

COMMIT = ("commit", 1)


def die_at(values: dict[str, Any], step: tuple[str, int]) -> None:
    """Publish, and die before the n-th call of a method of the session, or before the commit."""
    from retail_assets.outbound.marts.publish import publish
    from retail_assets.outbound.marts.targets import mart_targets

    settings = Settings(**values)
    [target] = mart_targets(settings)
    publish(Lake.from_settings(settings), Dying(target, step))  # type: ignore[arg-type]


def die_after_renames(values: dict[str, Any], count: int) -> None:
    """Publish files, and die after some of them were renamed."""
    rename = Path.replace
    renamed = []

    def replace(path: Path, target: Path) -> Path:
        renamed.append(target)
        rename(path, target)
        if len(renamed) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    Path.replace = replace  # type: ignore[method-assign,assignment]
    die_at(values, ("never", 1))


class Dying:
    """A target whose session dies at a step."""

    def __init__(self, target: Any, step: tuple[str, int]) -> None:
        self._target = target
        self._step = step
        self.name, self.kind, self.shown = target.name, target.kind, target.shown

    @contextmanager
    def session(self) -> Iterator[Any]:
        """The session of the target."""
        with self._target.session() as session:
            yield _DyingSession(session, *self._step)
            if self._step == COMMIT:
                os.kill(os.getpid(), signal.SIGKILL)


class _DyingSession:
    def __init__(self, session: Any, method: str, number: int) -> None:
        self._session, self._method, self._left = session, method, number

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._session, name)
