"""Ways to do the event pipeline's work that are compared, each run in a process of its own.

`python -m benchmarks.event_cases CASE DATA_DIR WORK_DIR` takes the one event file in the data
folder, does the work once and prints JSON: seconds (imports and set-up not counted), peak memory in
MB, accepted and dead-lettered events, and revenue in GBP where the case knows it. Cases (b) to (e)
run where the platform is not installed.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.event_rules import Rules

Counts = dict[str, int]
Work = Callable[[], Counts]


def event_file(data: Path) -> Path:
    """The file of all events."""
    (found,) = (data / "events").glob("*/*.jsonl")
    return found


def python_loop(data: Path, _: Path) -> Work:
    """(a) A Python loop: json.loads, validate, enrich; no output."""
    rules = Rules(data / "reference")

    def run() -> Counts:
        accepted = dead = 0
        with event_file(data).open(encoding="utf-8") as lines:
            for line in lines:
                event, _ = rules.validate(line)
                if event is None:
                    dead += 1
                else:
                    accepted += 1
        return {"accepted": accepted, "dead": dead}

    return run


def bytewax(data: Path, out: Path) -> Work:
    """(b) Bytewax: from the file to a file of events and one of dead letters."""
    import bytewax.operators as op
    from bytewax.connectors.files import FileSink, FileSource
    from bytewax.dataflow import Dataflow
    from bytewax.testing import run_main

    rules = Rules(data / "reference")
    flow = Dataflow("events")
    lines = op.input("lines", flow, FileSource(event_file(data), batch_size=1000))
    validated = op.map("validate", lines, lambda line: (line, *rules.validate(line)))
    routes = op.branch("route", validated, lambda item: item[1] is not None)
    events = op.map("event", routes.trues, lambda item: ("", json.dumps(item[1])))
    dead = op.map(
        "dead_letter",
        routes.falses,
        lambda item: ("", json.dumps({"line": item[0], "why": item[2]})),
    )
    op.output("events", events, FileSink(out / "events.jsonl"))
    op.output("dead", dead, FileSink(out / "dead.jsonl"))

    def run() -> Counts:
        run_main(flow)
        return _lines(out)

    return run


def pathway(data: Path, out: Path) -> Work:
    """(c) Pathway: from the file to a file of events and one of dead letters."""
    import pathway as pw

    rules = Rules(data / "reference")

    def validated(line: str) -> str:
        event, reason = rules.validate(line)
        return f"+{json.dumps(event)}" if event is not None else f"-{reason}"

    lines = pw.io.plaintext.read(str(event_file(data)), mode="static")
    result = lines.select(
        pw.this.data, validated_line=pw.apply_with_type(validated, str, pw.this.data)
    )
    good = result.filter(pw.this.validated_line.str.startswith("+")).select(pw.this.validated_line)
    bad = result.filter(pw.this.validated_line.str.startswith("-"))
    pw.io.jsonlines.write(good, str(out / "events.jsonl"))
    pw.io.jsonlines.write(bad, str(out / "dead.jsonl"))

    def run() -> Counts:
        pw.run(monitoring_level=pw.MonitoringLevel.NONE)
        return _lines(out)

    return run


def chdb(data: Path, out: Path) -> Work:
    """(d) chDB: SQL, from the file to three tables."""
    from benchmarks.event_sql import chdb_sql

    return chdb_sql(event_file(data), data / "reference", out)


def plain_duckdb(data: Path, out: Path) -> Work:
    """(e) Plain DuckDB: SQL, from the file to three Parquet files."""
    from benchmarks.event_sql import duckdb_sql

    return duckdb_sql(event_file(data), data / "reference", out)


def platform(data: Path, out: Path) -> Work:
    """(f) This platform: all of its event tables and ledgers, durable."""
    from retail_assets import tables
    from retail_assets.ingest.event_files import load as event_files
    from retail_assets.ingest.event_files.pending import pending_event_files
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.ingest.exports import reference
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.publish import publish_table
    from retail_assets.settings import Settings

    settings = Settings(
        data_dir=data,
        lake_catalog=str(out / "catalog.sqlite"),
        lake_data=str(out / "files"),
        event_settle_seconds=0,
    )
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        for table in (tables.PRODUCTS, tables.CUSTOMERS):
            frame = reference.read_reference(data / "reference", table)
            publish_table(lake, connection, table, frame)

    def run() -> Counts:
        pending = pending_event_files(settings)
        with lake.connect() as connection:
            found = event_files.ingest(EventSession(lake, connection), settings, pending.files)
            (revenue,) = connection.execute(
                "SELECT sum(order_value_gbp) FROM lake.enriched_events"
            ).fetchone() or (0,)
        taken = found.files.values()
        return {
            "files": len(taken),
            "lines": sum(file.lines for file in taken),
            "accepted": sum(file.accepted for file in taken),
            "dead": sum(file.dead_lettered for file in taken),
            "revenue": float(revenue),
        }

    return run


def _lines(out: Path) -> Counts:
    def count(name: str) -> int:
        with (out / name).open("rb") as file:
            return sum(1 for _ in file)

    return {"accepted": count("events.jsonl"), "dead": count("dead.jsonl")}


CASES: dict[str, Callable[[Path, Path], Work]] = {
    "a": python_loop,
    "b": bytewax,
    "c": pathway,
    "d": chdb,
    "e": plain_duckdb,
    "f": platform,
}


def main() -> None:
    """Do one case once."""
    case, data, out = sys.argv[1:]
    run = CASES[case](Path(data), Path(out))
    began = time.perf_counter()
    counts: dict[str, Any] = run()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, **counts}))


if __name__ == "__main__":
    main()
