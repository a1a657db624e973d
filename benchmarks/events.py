"""The event pipeline, measured: `docs/benchmarks-events.md`."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.stream_rivals import environment

ROOT = Path(__file__).parents[1]
DAY = date(2026, 11, 20)

TITLES = {
    "a": "Python loop: `json.loads`, validate, enrich; no output",
    "b": "Bytewax, from the file to two files",
    "c": "Pathway, from the file to two files",
    "d": "chDB, SQL: raw, enriched and dead-letter tables, synced",
    "e": "plain DuckDB, SQL: raw, enriched and dead-letter Parquet files, synced",
    "f": "**this platform**: raw, enriched, dead-letter tables and ledgers, all durable",
}
PLATFORM = "f"
OF_OTHERS = "bcd"
"""The cases that run in an environment of their own."""

SAME = ("accepted", "dead", "revenue")
"""The answers of the platform that the SQL cases have to give as well."""


def report(work: Path, repeats: int, options: Any, machine: str) -> str:
    """Measure, and return the report as Markdown."""
    python = environment(work / "env", "requirements.txt")
    events = million(work / "million", options.events)
    results = _turns(events, work, python, repeats)
    size = next((events / "events").glob("*/*.jsonl")).stat().st_size
    bad = results[PLATFORM][0]["dead"]
    many = _many_files(work / "many", options.files)
    ticks = _ticks(many)
    many_result = _run(sys.executable, PLATFORM, many, work)
    shutil.rmtree(many)
    big = _big_file(work / "big", events, options.big_gb)
    big_size = next((big / "events").glob("*/*.jsonl")).stat().st_size
    big_result = _run(sys.executable, PLATFORM, big, work)
    shutil.rmtree(big)
    return (
        "\n\n".join(
            [
                "# Benchmarks of the event pipeline",
                (
                    f"Written by {machine}, {_versions(python)}. Medians of {repeats}"
                    " runs that took turns, each in a fresh process. Trust the ratios, not the"
                    " seconds, which are of one machine on one day. Imports and set-up are not"
                    " counted."
                ),
                (
                    f"## {options.events:,} events in one file of {size / 1e6:.0f} MB,"
                    f" {bad:,} of them bad"
                ),
                _table(results),
                (
                    f"(f) takes {_ratio(results, PLATFORM, 'e')} times as long as (e) and"
                    f" {_ratio(results, PLATFORM, 'd')} times as long as (d); (b) takes"
                    f" {_ratio(results, 'b')} times as long as (f), (c) {_ratio(results, 'c')}"
                    f" times, (a) {_ratio(results, 'a')} times. (d) and (e) accept the same events"
                    " of the same value and find the same dead letters, in one go: what breaks off"
                    " begins again from nothing, and would write everything again if run twice."
                    " (a), (b) and (c) apply the same rules in plain Python, one event at a time;"
                    " they find no duplicates and keep no raw events."
                ),
                f"## {options.files:,} files of 10 events",
                (
                    f"(f) ingests them in {many_result['seconds']:.0f} s:"
                    f" {options.files / many_result['seconds']:,.0f} files/s, peak"
                    f" {many_result['peak_mb']:.0f} MB. A tick of the sensor lists the folder,"
                    " compares it with the ledger and groups what is new, which takes"
                    f" {ticks['full']:.1f} s when all files are new (a tick may take 60 s)."
                ),
                f"## One file of {big_size / 1e9:.1f} GB",
                (
                    f"(f) ingests {big_result['lines']:,} events in"
                    f" {big_result['seconds']:.0f} s with a peak of {big_result['peak_mb']:.0f} MB,"
                    " in chunks of 64 MB, each committed with its ledger entry."
                ),
            ]
        )
        + "\n"
    )


def _versions(python: str) -> str:
    code = (
        "from importlib.metadata import version;"
        "print(', '.join(f'{n} {version(n)}' for n in ('bytewax', 'pathway', 'chdb')))"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def million(folder: Path, events: int) -> Path:
    """All generated events in one file. Bytes that are no text would end (b): they are replaced."""
    import gzip

    from retail_assets.samples.generate import generate

    scratch = folder / "scratch"
    generate(
        scratch,
        days=10,
        orders_per_day=max(1, events * 6 // 100),
        events=events,
        start=date(2026, 11, 11),
        seed=1,
    )
    shutil.move(scratch / "reference", folder / "reference")
    target = folder / "events" / str(DAY)
    target.mkdir(parents=True)
    with (target / "events.jsonl").open("w", encoding="utf-8") as out:
        for path in sorted((scratch / "events").glob("*/*")):
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
                out.write(file.read().decode("utf-8", "replace"))
    shutil.rmtree(scratch)
    return folder


def _many_files(folder: Path, files: int) -> Path:
    write_reference(folder)
    target = folder / "events" / str(DAY)
    target.mkdir(parents=True)
    for number in range(files):
        write_events(target / f"part-{number:06}.jsonl", number)
    return folder


def write_events(path: Path, number: int) -> None:
    """Ten events in a file that is there at once."""
    lines = "".join(
        f'{{"event_id": "E{number}-{n}", "order_id": "O{number}-{n}", "customer_id":'
        f' "{n:06}", "product_id": "P000{n}", "order_value_gbp": {number % 900 + 1}.5, "region":'
        f' "London", "status": "completed", "event_timestamp": "{DAY}T09:30:00+00:00"}}\n'
        for n in range(10)
    )
    aside = path.with_suffix(".part")
    aside.write_text(lines)
    aside.rename(path)


def _big_file(folder: Path, million: Path, gigabytes: float) -> Path:
    """The same events over and over, their ids changed, until the file is large enough."""
    shutil.copytree(million / "reference", folder / "reference")
    target = folder / "events" / str(DAY)
    target.mkdir(parents=True)
    source = next((million / "events").glob("*/*.jsonl")).read_bytes()
    with (target / "events.jsonl").open("wb") as out:
        for number in range(max(1, round(gigabytes * 1e9 / len(source)))):
            out.write(source.replace(b'"EV-', b'"EV-%d-' % number))
    return folder


def write_reference(folder: Path) -> None:
    """Write made-up products and customers into a data folder."""
    from retail_assets.samples.generate import generate

    generate(folder / "scratch", days=1, orders_per_day=1, events=0, start=DAY, seed=1)
    shutil.move(folder / "scratch/reference", folder / "reference")
    shutil.rmtree(folder / "scratch")


def _turns(data: Path, work: Path, python: str, repeats: int) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for case in TITLES:
            found = _run(python if case in OF_OTHERS else sys.executable, case, data, work)
            results.setdefault(case, []).append(found)
    for case in "de":
        for name in SAME:
            if results[case][0][name] != results[PLATFORM][0][name]:
                raise RuntimeError(f"{name} of {case} differs: {results[case][0][name]}")
    return results


def _run(python: str, case: str, data: Path, work: Path) -> dict[str, float]:
    out = Path(tempfile.mkdtemp(dir=work))
    try:
        done = subprocess.run(
            [python, "-W", "ignore", "-m", "benchmarks.event_cases", case, str(data), str(out)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(out)
        shutil.rmtree(data / "lake", ignore_errors=True)
    if done.returncode != 0:
        raise RuntimeError(f"Case {case} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{data.name}: ({case}) {result['seconds']:.2f} s, {result['peak_mb']:.0f} MB")
    return result


def _ticks(data: Path) -> dict[str, float]:
    """Seconds of what the sensor does in a tick."""
    from retail_assets.defs.automation.events import batches
    from retail_assets.ingest.event_files.pending import pending_event_files
    from retail_assets.settings import Settings

    settings = Settings(data_dir=data, event_settle_seconds=0)
    return {
        "full": _seconds(
            lambda: list(batches(settings, list(pending_event_files(settings).files.values())))
        )
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ratio(results: dict[str, list[dict[str, float]]], case: str, of: str = PLATFORM) -> str:
    return f"{_median(results, case) / _median(results, of):.1f}"


def _median(results: dict[str, list[dict[str, float]]], case: str) -> float:
    return statistics.median(result["seconds"] for result in results[case])


def _table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| | what | median s | fastest–slowest s | times (f) | events/s | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for case, title in TITLES.items():
        seconds = [result["seconds"] for result in results[case]]
        events = results[case][0]["accepted"] + results[case][0]["dead"]
        peak = max(result["peak_mb"] for result in results[case])
        median = _median(results, case)
        lines.append(
            f"| {case} | {title} | {median:.2f} | {min(seconds):.2f}–{max(seconds):.2f} |"
            f" {_ratio(results, case)} | {events / median:,.0f} | {peak:.0f} |"
        )
    return "\n".join(lines)
