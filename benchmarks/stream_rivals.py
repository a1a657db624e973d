"""Ways to do the worker's work that are compared, each run in a process of its own.

`python -m benchmarks.stream_rivals CASE BOOTSTRAP TOPIC LINES DATA_DIR WORK_DIR` reads the topic
from its start, does the work once and prints JSON: seconds (imports, set-up and the wait for the
group not counted), peak memory in MB, lines, accepted and dead-lettered events. All but one run
where the platform is not installed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

Case = Callable[[str, str, int, Path, Path], dict[str, float]]

ROOT = Path(__file__).parents[1]

TITLES = {
    "platform": "**this platform**: raw, enriched and dead-letter tables, each event once",
    "quix": "Quix Streams, two processes, to Parquet files",
    "quix-plain": "Quix Streams, the same without looking for duplicates",
    "spark": "Spark Structured Streaming, rules in SQL, to Parquet files",
    "spark-plain": "Spark Structured Streaming, the same without looking for duplicates",
}


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


def platform(bootstrap: str, topic: str, lines: int, data: Path, out: Path) -> dict[str, float]:
    """(d) This platform: all of its event tables and ledgers, durable."""
    from benchmarks import stream_platform

    return stream_platform.run(bootstrap, topic, lines, data, out)


CASES: dict[str, Case] = {
    "platform": platform,
    "quix": quix,
    "quix-plain": quix_plain,
    "spark": spark,
    "spark-plain": spark_plain,
}


def environment(folder: Path, requirements: str) -> str:
    """Make an environment for rivals from a file of this folder, if needed; returns its Python."""
    python = str(folder / "bin/python")
    if folder.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    index = os.environ.get("PIP_INDEX_URL")
    subprocess.run(
        [
            *(str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet"),
            *(("--default-index", index) if index else ()),
            *("--python", python, "-r", str(ROOT / "benchmarks" / requirements)),
        ],
        check=True,
    )
    return python


def turn(
    python: str, case: str, bootstrap: str, topic: str, lines: int, data: Path, work: Path
) -> dict[str, float]:
    """Do a case once, in a fresh process and folder.

    The data folder holds `reference/` and one file `events/*/*.jsonl`, whose lines are the topic's.

    Raises:
        RuntimeError: The case failed, or did not take every line.
    """
    out = Path(tempfile.mkdtemp(dir=work))
    try:
        done = subprocess.run(
            [
                *(python, "-W", "ignore", "-m", "benchmarks.stream_rivals", case),
                *(bootstrap, topic, str(lines), str(data), str(out)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(out)
    if done.returncode != 0:
        raise RuntimeError(f"Case {case} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result["lines"] != lines:
        raise RuntimeError(f"Case {case} took {result['lines']} lines of {lines}.")
    print(f"{data.name}: ({case}) {result['seconds']:.2f} s, {result['peak_mb']:.0f} MB")
    return result


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
    print(json.dumps({**counts, **found}))


if __name__ == "__main__":
    main()
