"""`make bench`: runs all cases side by side and writes `docs/benchmarks.md`.

The event pipeline and the worker have reports of their own, `docs/benchmarks-events.md`,
`docs/benchmarks-latency.md` and `docs/benchmarks-throughput.md`, and the event sensor has
`docs/benchmarks-sensor.md`; `--only` measures for one of them.
`--only soak` writes `docs/soak.md`.

Every figure of a table comes from the same run: the cases take turns, each time in a fresh process
and a fresh folder, so that a slow spell of the machine falls on all of them.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

from benchmarks import events, stream, stream_sensor, stream_soak
from benchmarks.stream_rivals import environment

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "docs"
FEW_DAYS = 3
SHOWN_FUNCTIONS = 8

WORK_OF = {
    "duckdb.read_order_exports": "reads and types the CSV into a temporary table",
    "publish.replace_days": "writes Parquet: raw, completed and revenue rows",
    "publish._stage_rows": "completed orders and revenue: joins and sums, staged",
    "load._read_group": "validates rows, finds orders that stand twice",
    "publish._problems": "audit: reconciles raw and completed orders",
    "publish._row_problems": "audit: nulls and keys",
    "publish._one": "audit: keys, by hash",
    "day_ledger._forget": "ledger of days",
    "load._changed_days": "finds which days the orders change",
    "load._counts": "counts rows for the ledger",
    "publish.day_facts": "counts rows and sums for the ledger",
    "connection.transaction": "begins and commits",
    "connection.commit": "commits to the catalog",
    "connection._load_extensions": "loads DuckLake",
    "reference.read_reference": "reads products and customers",
}
"""The work of the functions that take the most time."""

SAME = ("rows", "rejected", "revenue")
"""The answers that (b), (p) and (c) all have to give."""

TITLES = {
    "a": "pandas script, tutorial kind: result only",
    "a+": "pandas script that validates and keeps raw, rejected and completed rows as Parquet",
    "b": "plain DuckDB SQL: raw, rejected, completed, revenue tables in a DuckDB file, synced",
    "p": "Polars: raw, rejected, completed, revenue rows as Parquet, synced",
    "c": "**this platform without Dagster**: ingest, audits, publishing",
    "d": "**this platform in Dagster**: single-run backfill with its asset checks",
    "e": "Dagster as it comes, single-run backfill of as many assets that do nothing",
}


@dataclass
class Scenario:
    """Some days of exports, and the cases that are compared on them."""

    name: str
    data: Path
    first: date
    days: int
    cases: tuple[str, ...]
    others: str = sys.executable
    """The Python of (p), which has Polars."""
    results: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def run(self, case: str, work: Path, days: int | None = None) -> dict[str, float]:
        """Do a case once, in a fresh process and folder."""
        last = self.first + timedelta(days=(days or self.days) - 1)
        out = Path(tempfile.mkdtemp(dir=work))
        try:
            done = subprocess.run(
                [
                    self.others if case == "p" else sys.executable,
                    *("-m", "benchmarks.cases", case, str(self.data), str(out)),
                    *(self.first.isoformat(), last.isoformat()),
                ],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            shutil.rmtree(out)
        if done.returncode != 0:
            raise RuntimeError(f"Case {case} of {self.name} failed:\n{done.stderr[-3000:]}")
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        print(f"{self.name}: ({case}) {result['seconds']:.2f} s, {result['peak_mb']:.0f} MB")
        return result

    def profile(self, case: str, work: Path) -> str:
        """A Markdown table of where the time of a case goes, from one more run."""
        out = Path(tempfile.mkdtemp(dir=work))
        last = self.first + timedelta(days=self.days - 1)
        done = subprocess.run(
            [
                sys.executable,
                *("-m", "benchmarks.profile", case, str(self.data), str(out)),
                *(self.first.isoformat(), last.isoformat()),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        shutil.rmtree(out)
        found = json.loads(done.stdout)
        lines = ["| function | what it does | seconds | share |", "|---|---|---:|---:|"]
        for name, seconds in found["functions"][:SHOWN_FUNCTIONS]:
            what = WORK_OF.get(name, "")
            lines.append(f"| `{name}` | {what} | {seconds:.2f} | {seconds / found['total']:.0%} |")
        return "\n".join(lines)

    def measure(self, repeats: int, work: Path) -> None:
        """Let the cases take turns."""
        for _ in range(repeats):
            for case in self.cases:
                self.results.setdefault(case, []).append(self.run(case, work))
        for case in {"b", "p"} & self.results.keys():
            for name in SAME:
                found, expected = self.results[case][0][name], self.results["c"][0][name]
                if found != expected:
                    raise RuntimeError(f"{name} of {case} is {found}, of c {expected}.")

    def seconds(self, case: str) -> float:
        """The median of a case."""
        return statistics.median(result["seconds"] for result in self.results[case])

    def ratio(self, case: str, to: str) -> str:
        """How many times as long as another a case takes."""
        return f"{self.seconds(case) / self.seconds(to):.1f}"

    def peak_mb(self, case: str) -> float:
        """The largest memory use of a case."""
        return max(result["peak_mb"] for result in self.results[case])

    def table(self) -> str:
        """A Markdown table of medians, spread, ratios and memory."""
        lines = [
            "| | what | median s | fastest–slowest s | times (c) | peak MB |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for case in self.cases:
            seconds = [result["seconds"] for result in self.results[case]]
            lines.append(
                f"| {case} | {TITLES[case]} | {self.seconds(case):.2f} |"
                f" {min(seconds):.2f}–{max(seconds):.2f} |"
                f" {self.seconds(case) / self.seconds('c'):.2f} | {self.peak_mb(case):.0f} |"
            )
        return "\n".join(lines)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--orders", type=int, default=1_000_000, help="orders of each large file")
    parser.add_argument("--days", type=int, default=730, help="days of the long history")
    parser.add_argument("--orders-per-day", type=int, default=2000, help="orders of each such day")
    parser.add_argument("--big-gb", type=float, default=5.0, help="size of the one big file")
    parser.add_argument(
        "--only",
        choices=("batch", "events", "sensor", "latency", "throughput", "soak"),
        help="one of them",
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the one file")
    parser.add_argument("--files", type=int, default=100_000, help="number of small event files")
    parser.add_argument("--drops", type=int, default=25, help="files that come one by one")
    parser.add_argument("--seconds", type=int, default=60, help="of a source's latency")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long to soak")
    parser.add_argument("--folder", type=Path, default=REPORTS, help="where reports are written")
    options = parser.parse_args()
    work = ROOT / "benchmarks/work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        if options.only in (None, "batch"):
            (options.folder / "benchmarks.md").write_text(_report(options, work))
        if options.only in (None, "events"):
            text = events.report(work, options.repeats, options, _machine())
            (options.folder / "benchmarks-events.md").write_text(text)
        if options.only in (None, "sensor"):
            text = stream_sensor.report(work, options.drops, options.seconds, _machine())
            (options.folder / "benchmarks-sensor.md").write_text(text)
        if options.only in (None, "latency"):
            text = stream.latency_report(work, options, _machine())
            (options.folder / "benchmarks-latency.md").write_text(text)
        if options.only in (None, "throughput"):
            text = stream.throughput_report(work, options.repeats, options, _machine())
            (options.folder / "benchmarks-throughput.md").write_text(text)
        if options.only == "soak":
            text = stream_soak.report(work / "soak", options.minutes, _machine())
            (options.folder / "soak.md").write_text(text)
    finally:
        # A server that has just ended may still write to it.
        shutil.rmtree(work, ignore_errors=True)
    print(f"Written: {options.folder}")


def _report(options: argparse.Namespace, work: Path) -> str:
    python = environment(work / "env", "requirements.txt")
    large = Scenario(
        "large",
        _generate(work / "large", 2, options.orders),
        date(2026, 1, 1),
        2,
        ("a", "a+", "b", "p", "c"),
        python,
    )
    long = Scenario(
        "long",
        _generate(work / "long", options.days, options.orders_per_day),
        date(2024, 1, 1),
        options.days,
        ("a", "a+", "b", "p", "c", "d", "e"),
        python,
    )
    large.first = long.first = date(2024, 1, 1)
    large.measure(options.repeats, work)
    long.measure(options.repeats, work)
    per_day = long.run("f", work, FEW_DAYS)["seconds"] / FEW_DAYS
    big = Scenario("big", work / "big", date(2024, 1, 1), 1, ("c",))
    size, rows = _one_big_file(big, options.big_gb)
    big_result = big.run("c", work)
    paragraphs = [
        "# Benchmarks",
        (
            f"Written by {_machine()}."
            f" Medians of {options.repeats} runs that took turns, each in a fresh process."
            " Trust the ratios, not the seconds, which are of one machine on one day. Imports and"
            " the set-up of an empty lake are not counted."
        ),
        f"## {2 * options.orders:,} orders in two files",
        large.table(),
        (
            f"(a+) takes {large.ratio('a+', 'c')} times as long as (c); (c) takes"
            f" {large.ratio('c', 'b')} times as long as (b) and {large.ratio('c', 'p')} times as"
            " long as (p). These find the same orders, rejected rows and revenue; they audit"
            " nothing, have to read everything again when a day changes, and readers see tables"
            " come one after the other."
        ),
        (
            "Where the time of (c) goes, in one more run under a profiler. Both cores are busy"
            " throughout; compared with (a+) it also states each row's reason and source position,"
            " and stages and audits everything before it is published."
        ),
        large.profile("c", work),
        f"## {options.days:,} days of {options.orders_per_day:,} orders",
        long.table(),
        (
            f"(a) takes {long.ratio('a', 'c')} times as long as (c), (c)"
            f" {long.ratio('c', 'b')} times as long as (b) and {long.ratio('c', 'p')} times as long"
            f" as (p); (e) takes {long.ratio('e', 'd')} times as long as (d). Dagster's SQLite"
            " event log as it comes opens a connection for every event, and a backfill writes two"
            " events for each day and asset; `retail_assets/defs/instance/event_log.py` keeps"
            " connections open and writes in batches."
        ),
        (
            f"(f) One run for each day with Dagster's default executor takes {per_day:.1f} s a day"
            f" (over {FEW_DAYS} days), so about {per_day * options.days / 3600:.1f} h for"
            f" {options.days} days (extrapolated), against {long.seconds('d'):.0f} s in one run."
        ),
        "## One file larger than the memory that it may use",
        (
            f"(c) ingests one export of {size / 1e9:.1f} GB ({rows:,} orders) in"
            f" {big_result['seconds']:.0f} s with a peak of {big_result['peak_mb']:.0f} MB"
            " (`RETAIL_MEMORY_LIMIT` as it comes); what does not fit is spilled to disk."
        ),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _generate(folder: Path, days: int, orders_per_day: int) -> Path:
    from retail_assets.samples.generate import generate

    generate(
        folder,
        days=days,
        orders_per_day=orders_per_day,
        events=0,
        start=date(2024, 1, 1),
        seed=1,
    )
    return folder


def _one_big_file(big: Scenario, gigabytes: float) -> tuple[int, int]:
    """Write an export of about that size, and the reference data of a small history."""
    import duckdb

    _generate(big.data, 1, 100)
    for path in (big.data / "exports").iterdir():
        path.unlink()
    rows = int(gigabytes * 1e9 / 76)
    path = big.data / f"exports/orders_{big.first:%Y_%m_%d}.csv"
    with duckdb.connect(config={"memory_limit": "1GB"}) as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(
            "COPY (SELECT 'ORD-20240101-' || i AS order_id, lpad((hash(i) % 50000)::VARCHAR, 6,"
            " '0') AS customer_id, 'P' || lpad((hash(i * 7) % 200)::VARCHAR, 4, '0') AS"
            " product_id, ['London', 'Scotland', 'Wales'][1 + (hash(i * 3) % 3)::INT] AS region,"
            " ['completed', 'completed', 'pending', 'returned'][1 + (hash(i * 11) % 4)::INT] AS"
            " status, ((hash(i * 13) % 100000) / 100 + 0.01)::DECIMAL(12,2) AS order_value_gbp,"
            " TIMESTAMP '2024-01-01' + to_seconds(i % 86400) AS order_timestamp"
            f" FROM range({rows}) AS t(i)) TO '{path}' (HEADER)"
        )
    return path.stat().st_size, rows


def _machine() -> str:
    """The origin of a report: the command, the machine and the packages."""
    packages = ("dagster", "duckdb", "duckdb-extension-ducklake", "narwhals", "pandas", "pyarrow")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    options = shlex.join(sys.argv[1:])
    command = f"python -m benchmarks {options}" if options else "make bench"
    return (
        f"`{command}`; {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB,"
        f" {platform.system()},"
        f" Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )


if __name__ == "__main__":
    main()
