"""`python -m benchmarks.profile CASE …`: a case once more, and where its time in DuckDB goes.

Prints JSON: seconds by the function of the platform that asked for it, the largest first. Calls
are timed by Python's own hook; what DuckDB does inside one is not told apart.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import cases

ASKS = {"execute", "sql", "fetchone", "fetchall"}


class StatementClock:
    """Counts the seconds in calls of DuckDB, by the function that calls."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._began = 0.0

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        """The callback of `sys.setprofile`."""
        if getattr(function, "__name__", "") not in ASKS:
            return
        if event == "c_call":
            self._began = time.perf_counter()
        elif event in {"c_return", "c_exception"}:
            code = frame.f_code
            name = f"{Path(code.co_filename).stem}.{code.co_name}"
            self.seconds[name] += time.perf_counter() - self._began


def main() -> None:
    """Do one case once under the clock."""
    case, data, out, first, last = sys.argv[1:]
    work = cases.Work(
        Path(data), Path(out), cases.date.fromisoformat(first), cases.date.fromisoformat(last)
    )
    run, set_up = cases.CASES[case](work)
    set_up()
    clock = StatementClock()
    began = time.perf_counter()
    sys.setprofile(clock)
    try:
        run()
    finally:
        sys.setprofile(None)
    total = time.perf_counter() - began
    print(json.dumps({"total": total, "functions": clock.seconds.most_common()}))


if __name__ == "__main__":
    main()
