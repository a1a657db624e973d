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


def spark(bootstrap: str, topic: str, _: int, data: Path, out: Path) -> dict[str, float]:
    """(s) Spark Structured Streaming, duplicates dropped against what was written before."""
    from benchmarks import stream_spark

    return stream_spark.run(bootstrap, topic, data, out, unique=True)


def spark_plain(bootstrap: str, topic: str, _: int, data: Path, out: Path) -> dict[str, float]:
    """(s-) Spark Structured Streaming: duplicates are kept."""
    from benchmarks import stream_spark

    return stream_spark.run(bootstrap, topic, data, out, unique=False)


CASES: dict[str, Case] = {
    "quix": quix,
    "quix-plain": quix_plain,
    "spark": spark,
    "spark-plain": spark_plain,
}


def rows(folder: Path) -> int:
    """Rows of all Parquet files under a folder."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def main() -> None:
    """Do one case once."""
    case, bootstrap, topic, lines, data, out = sys.argv[1:]
    found = CASES[case](bootstrap, topic, int(lines), Path(data).resolve(), Path(out).resolve())
    written = {"lines": "raw", "accepted": "events", "dead": "dead"}
    counts = {name: rows(Path(out) / folder) for name, folder in written.items()}
    print(json.dumps({**found, **counts}))


if __name__ == "__main__":
    main()
