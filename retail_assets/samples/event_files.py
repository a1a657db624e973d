"""Event lines into files of bounded size, by the hours in which they were received."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from retail_assets.samples.files import StagedFiles, event_path, write_lines
from retail_assets.samples.local_time import Integers

MAX_LINES = 10_000
# fewer lines a file than this would make more files than data
MIN_LINES = 25
COMPRESSED_EVERY = 5


class EventFileWriter:
    """Writes the event files of one day after the other; every fifth file is compressed."""

    def __init__(self, staged: StagedFiles, data_dir: Path) -> None:
        self.lines = 0
        self._staged = staged
        self._data_dir = data_dir
        self._files = 0

    def write(
        self,
        day: date,
        clock: Integers,
        window: Integers,
        lines_of: Callable[[Integers], list[str]],
    ) -> None:
        """Write one day's events.

        `clock` is the second of the business day at which each event was received, `window` the
        hour with which its file begins, and `lines_of` gives the lines (without newline) of some
        events by position.
        """
        order = np.lexsort((clock, window))
        starts = np.searchsorted(window[order], np.unique(window)).tolist()
        for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
            # a window's files are named by the minute, and sixty names are all an hour has
            size = max(MAX_LINES, -(-(end - begin) // 60))
            for part, first in enumerate(range(begin, end, size)):
                chosen = order[first : min(first + size, end)]
                self._write_file(day, int(window[order[begin]]) * 60 + part, lines_of(chosen))

    def _write_file(self, day: date, minute: int, lines: list[str]) -> None:
        self._files += 1
        compressed = self._files % COMPRESSED_EVERY == 0
        with self._staged.open(
            event_path(self._data_dir, day, minute, compressed=compressed)
        ) as handle:
            write_lines(handle, [f"{line}\n" for line in lines])
        self.lines += len(lines)


def window_hours(events_a_day: float) -> int:
    """How many hours of events go into one file, so that an average file has at least MIN_LINES."""
    return next(
        (hours for hours in (1, 2, 3, 4, 6, 8, 12) if events_a_day * hours / 24 >= MIN_LINES), 24
    )
