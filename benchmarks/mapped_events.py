"""What a mapping costs: event files of the same orders in our own shape and in an envelope.

`python -m benchmarks.mapped_events [EVENTS] [ROUNDS]` ingests them in turns, each time into a lake
of its own in a process of its own, and prints the median CPU seconds and their ratios. An envelope
has more characters, which are read and kept; so our own shape is also ingested with as many.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAPPING = {
    "events": {
        "when": {"path": "$.type", "is": "order.created"},
        "root": "$.data",
        "fields": {
            "event_id": "$$.id",
            "order_id": "$.number",
            "customer_id": "$.customer.id",
            "product_id": "$.sku",
            "region": {"from": "$.province", "default": "unknown"},
            "status": {"from": "$.state", "values": {"paid": "completed"}},
            "order_value_gbp": {"from": "$.total", "scale": "0.01"},
            "quantity": "$.units",
            "event_timestamp": "$.created_at",
        },
    }
}


def orders(shape: str, count: int) -> str:
    """Event lines of one shape: `own`, `mapped` (CloudEvents), `long` (own, of its length)."""
    return "".join(f"{_line(shape, number)}\n" for number in range(count))


def _line(shape: str, number: int) -> str:
    pence = 100 + number % 90_000
    at = f"2026-10-12T{number % 24:02}:{number % 60:02}:00+01:00"
    region = ("North", "South", "East", "West")[number % 4]
    if shape == "mapped":
        data = {
            "number": f"ORD-{number}",
            "customer": {"id": f"C{number % 5_000}"},
            "sku": f"P{number % 200}",
            "total": pence,
            "province": region,
            "state": "paid",
            "units": 1 + number % 3,
            "created_at": at,
            "channel": "web",
        }
        envelope = {"specversion": "1.0", "type": "order.created", "source": "/shop"}
        return json.dumps({**envelope, "id": f"E{number}", "data": data})
    event = {
        "event_id": f"E{number}",
        "order_id": f"ORD-{number}",
        "customer_id": f"C{number % 5_000}",
        "product_id": f"P{number % 200}",
        "order_value_gbp": pence / 100,
        "region": region,
        "status": "completed",
        "quantity": 1 + number % 3,
        "event_timestamp": at,
        "channel": "web",
    }
    if shape == "long":
        lacking = len(_line("mapped", number)) - len(_line("own", number))
        event["note"] = "-" * (lacking - len(', "note": ""'))
    return json.dumps(event)


def ingest(folder: Path, shape: str) -> float:
    """Ingest a file once; returns CPU seconds, without imports and set-up."""
    from retail_assets.ingest.event_files import load as event_files
    from retail_assets.ingest.event_files.pending import pending_event_files
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.lake.connection import Lake
    from retail_assets.settings import Settings

    mapping = folder / "mapping.yaml" if shape == "mapped" else None
    with tempfile.TemporaryDirectory() as lake_folder:
        settings = Settings(
            data_dir=Path(lake_folder),
            events=str(folder / shape),
            mapping=mapping,
            event_settle_seconds=0,
        )
        lake = Lake.from_settings(settings)
        with lake.connect() as connection:
            session = EventSession(lake, connection, settings.source_mapping.events)
            session.open(small=False)
            pending = pending_event_files(settings)
            began = time.process_time()
            found = event_files.ingest(session, settings, pending.files)
            seconds = time.process_time() - began
    (file,) = found.files.values()
    assert (file.accepted, file.dead_lettered) == (file.lines, 0)
    return seconds


def main() -> None:
    """Measure in turns, or do one ingest if called for that."""
    if sys.argv[1] == "once":
        print(ingest(Path(sys.argv[2]), sys.argv[3]))
        return
    count, rounds = map(int, sys.argv[1:] or ("200000", "3"))
    seconds: dict[str, list[float]] = {"own": [], "long": [], "mapped": []}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "mapping.yaml").write_text(json.dumps(MAPPING))
        for shape in seconds:
            file = folder / shape / "2026-10-12" / "orders.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text(orders(shape, count))
            os.utime(file, (time.time() - 60,) * 2)
        for _ in range(rounds):
            for shape, found in seconds.items():
                command = [sys.executable, "-m", "benchmarks.mapped_events", "once", work, shape]
                found.append(float(subprocess.check_output(command)))
    own, long = (statistics.median(seconds[shape]) for shape in ("own", "long"))
    print(f"{count:,} events\n| shape | bytes | CPU s | times own | times long |")
    print("|---|--:|--:|--:|--:|")
    for shape, found in seconds.items():
        spent, size = statistics.median(found), len(orders(shape, 1))
        print(f"| {shape} | {size} | {spent:.2f} | {spent / own:.2f} | {spent / long:.2f} |")


if __name__ == "__main__":
    main()
