"""The worker, measured: `docs/benchmarks-latency.md` and `docs/benchmarks-throughput.md`."""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import events
from benchmarks.stream_broker import PARTITIONS, TOPIC, filled_broker
from benchmarks.stream_latency import CUSTOMERS, TOGETHER, additions, latencies, summary
from benchmarks.stream_rivals import TITLES, environment, turn
from benchmarks.stream_sensor import measure_part

TRUST = "Trust the ratios, not the seconds, which are of one machine on one day."

SOURCES = ("files", "kafka", "webhook")


def latency_report(work: Path, options: Any, machine: str) -> str:
    """Measure from an event offered to its row, and return the report as Markdown."""
    latency = {}
    for source in SOURCES:
        folder = work / f"latency-{source}"
        folder.mkdir()
        before = additions()
        latency[source] = summary(latencies(folder, source, seconds=options.seconds))
        latency[source]["additions"] = (before + additions()) / 2
        print(source, latency[source])
        shutil.rmtree(folder)
    stock = measure_part(work / "stock", "stock", options.drops, every_second=False)
    return (
        "\n\n".join(
            [
                "# Benchmarks of the worker: latency",
                f"Written by {machine}. {TRUST}",
                "## From an event offered to its row, as another process sees it",
                (
                    f"200 events/s for {options.seconds} s from each source, {TOGETHER} at a time,"
                    f" orders of {CUSTOMERS:,} customers, the worker warm and with all its"
                    " consumers and upkeep; a reader polls the lake. The stock sensor ingests"
                    f" {options.drops} files of 10 events, one by one: its p95 and p99 are the"
                    " slowest ones. The aim for the worker is a p99 of 250 ms on a quiet machine,"
                    " and a fortieth of the stock sensor's time. Ten million"
                    " additions in Python, just before and after, show how fast the machine was."
                ),
                _latency_table(latency, stock["seconds"]),
            ]
        )
        + "\n"
    )


def throughput_report(work: Path, repeats: int, options: Any, machine: str) -> str:
    """Measure a topic into tables, beside rivals, and return the report as Markdown."""
    python = environment(work / "env-stream", "requirements-stream.txt")
    results = _throughput(work, python, options.events, repeats)
    return (
        "\n\n".join(
            [
                "# Benchmarks of the worker: throughput",
                f"Written by {machine}, {_versions(python)}. {TRUST}",
                f"## {options.events:,} events from Kafka to tables, {PARTITIONS} partitions",
                (
                    f"Medians of {repeats} runs that took turns, each in a fresh process; imports,"
                    " set-up and the wait for the group are not counted. All apply the same rules"
                    " and write raw, enriched and dead events durably, and offsets."
                ),
                _throughput_table(results),
            ]
        )
        + "\n"
    )


def _latency_table(latency: dict[str, dict[str, float]], stock: list[float]) -> str:
    rows = {f"worker, {source}": found for source, found in latency.items()}
    rows["stock Dagster sensor, default executor"] = summary(stock)
    slow = rows["stock Dagster sensor, default executor"]
    lines = [
        "| | p50 ms | p95 ms | p99 ms | stock sensor's p50 is | its p99 | ten million additions |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in rows.items():
        median, tail = (slow[name] / found[name] for name in ("p50_ms", "p99_ms"))
        additions = f"{found['additions']:.1f} s" if "additions" in found else ""
        lines.append(
            f"| {name} | {found['p50_ms']:,.0f} | {found['p95_ms']:,.0f} | {found['p99_ms']:,.0f}"
            f" | {median:.0f} times that | {tail:.0f} times that | {additions} |"
        )
    return "\n".join(lines)


def _throughput(
    work: Path, python: str, lines: int, repeats: int
) -> dict[str, list[dict[str, float]]]:
    million = events.million(work / "million", lines)
    results: dict[str, list[dict[str, float]]] = {}
    with filled_broker(next((million / "events").glob("*/*.jsonl"))) as (broker, count):
        for _ in range(repeats):
            for case in TITLES:
                runs_in = sys.executable if case == "platform" else python
                found = turn(runs_in, case, broker.bootstrap, TOPIC, count, million, work)
                results.setdefault(case, []).append(found)
    return results


def _throughput_table(results: dict[str, list[dict[str, float]]]) -> str:
    median = {
        case: statistics.median(run["seconds"] for run in runs) for case, runs in results.items()
    }
    lines = [
        "| what | median s | events/s | times this platform's | peak MB | accepted | dead |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, runs in results.items():
        last = runs[-1]
        peak = max(run["peak_mb"] for run in runs)
        lines.append(
            f"| {TITLES[case]} | {median[case]:.1f} | {last['lines'] / median[case]:,.0f} |"
            f" {median[case] / median['platform']:.1f} | {peak:,.0f} | {last['accepted']:,.0f} |"
            f" {last['dead']:,.0f} |"
        )
    return "\n".join(lines)


def _versions(python: str) -> str:
    code = (
        "from importlib.metadata import version;"
        "print(', '.join(f'{n} {version(n)}' for n in ('quixstreams', 'pyspark')))"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()
