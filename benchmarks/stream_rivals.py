"""Other ways to do the live lane's work, each run in a process of its own.

`python -m benchmarks.stream_rivals CASE BOOTSTRAP TOPIC LINES DATA_DIR WORK_DIR` reads the topic
from its start, does the work once and prints JSON: seconds (imports, set-up and the wait for the
group not counted), peak memory in MB, lines, accepted and dead-lettered events. It runs where the
platform is not installed.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

Case = Callable[[str, str, int, Path, Path], dict[str, float]]


def quix(bootstrap: str, topic: str, lines: int, data: Path, out: Path) -> dict[str, float]:
    """(q) Quix Streams, duplicates dropped by its state."""
    from benchmarks import stream_quix

    return stream_quix.run(bootstrap, topic, lines, data, out, unique=True)


def quix_plain(bootstrap: str, topic: str, lines: int, data: Path, out: Path) -> dict[str, float]:
    """(q-) Quix Streams without state: duplicates are kept."""
    from benchmarks import stream_quix

    return stream_quix.run(bootstrap, topic, lines, data, out, unique=False)


CASES: dict[str, Case] = {"quix": quix, "quix-plain": quix_plain}


def main() -> None:
    """Do one case once."""
    case, bootstrap, topic, lines, data, out = sys.argv[1:]
    found = CASES[case](bootstrap, topic, int(lines), Path(data).resolve(), Path(out).resolve())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
