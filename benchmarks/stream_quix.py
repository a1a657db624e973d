"""The worker's work in Quix Streams: topic to Parquet files, offsets committed after.

Two processes share the topic as members of one group, as its documentation has it for more than
one core; each writes what it has taken every five seconds, and only then commits its offsets.
"""

import hashlib
import json
import resource
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from quixstreams import Application, State
from quixstreams.sinks import BatchingSink, SinkBatch

from benchmarks.event_rules import Rules

WORKERS = 2

RAW = pa.schema([("payload", pa.string())])
DEAD = pa.schema([("payload", pa.string()), ("reason", pa.string())])
EVENTS = pa.schema(
    [
        *((name, pa.string()) for name in ("event_id", "order_id", "customer_id", "product_id")),
        *((name, pa.string()) for name in ("region", "status", "event_timestamp", "order_date")),
        ("order_value_gbp", pa.float64()),
        ("quantity", pa.int64()),
        *((name, pa.string()) for name in ("value_tier", "product_name", "product_category")),
        *((name, pa.string()) for name in ("customer_segment", "home_region", "extra")),
    ]
)


class ParquetSink(BatchingSink):  # type: ignore[misc]
    """Writes each batch as Parquet files of raw, enriched and dead-lettered events.

    One sink for all three: each further branch of a stream has its values copied.
    """

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out = out
        for name in ("raw", "events", "dead"):
            (out / name).mkdir(exist_ok=True)

    def write(self, batch: SinkBatch) -> None:
        """Write the rows of one partition."""
        items = [item.value for item in batch]
        name = f"{batch.partition}-{batch.start_offset:019}.parquet"
        pq.write_table(pa.Table.from_pylist(items, RAW), self._out / "raw" / name)
        dead = [item for item in items if item["event"] is None]
        pq.write_table(pa.Table.from_pylist(dead, DEAD), self._out / "dead" / name)
        events = [item["event"] for item in items if item["event"] and not item["duplicate"]]
        pq.write_table(pa.Table.from_pylist(events, EVENTS), self._out / "events" / name)


def identity(event: dict[str, Any]) -> str:
    """The event's id, or where it has none the hash of its content."""
    found = event.get("event_id")
    if isinstance(found, str) and found:
        return found
    content = json.dumps(event, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def marked(item: dict[str, Any], state: State) -> dict[str, Any]:
    """The item, and whether an event of the same order and identity came before."""
    if item["event"] is not None:
        name = identity(item["event"])
        item["duplicate"] = state.exists(name)
        state.set(name, 1)
    return item


def work(
    number: int,
    progress: Any,
    results: Any,
    bootstrap: str,
    topic: str,
    group: str,
    rules: Rules,
    out: Path,
    unique: bool,
) -> None:
    """Run one member of the group until `stop` is set."""
    began: list[float] = []

    def taken(payload: bytes) -> dict[str, Any]:
        if not began:
            began.append(time.perf_counter())
        progress[number] += 1
        line = payload.decode(errors="replace")
        event, reason = rules.validate(line)
        if event is not None:
            event["extra"] = json.dumps(event["extra"])
        return {"payload": line, "event": event, "reason": reason, "duplicate": False}

    app = Application(
        broker_address=bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        consumer_extra_config={"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000},
        consumer_poll_timeout=0.05,
        use_changelog_topics=False,
        state_dir=out / f"state-{number}",
        loglevel="ERROR",
    )
    source = app.topic(topic, key_deserializer="bytes", value_deserializer="bytes")
    items = app.dataframe(source).apply(taken)
    if unique:
        items = items.apply(marked, stateful=True)
    items.sink(ParquetSink(out))
    app.run()
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((began[0] if began else ended, ended, peak))


def run(
    bootstrap: str, topic: str, lines: int, data: Path, out: Path, *, unique: bool
) -> dict[str, float]:
    """Take the whole topic; seconds are from the first message to the last commit."""
    context = get_context("fork")
    progress = context.RawArray("q", WORKERS)
    results = context.Queue()
    rules = Rules(data / "reference")
    group = f"quix-{uuid4()}"
    workers = [
        context.Process(
            target=work,
            args=(number, progress, results, bootstrap, topic, group, rules, out, unique),
        )
        for number in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    try:
        while sum(progress) < lines:
            if not all(worker.is_alive() for worker in workers):
                raise RuntimeError("A Quix process ended before it had read the topic.")
            time.sleep(0.01)
    finally:
        for worker in workers:
            worker.terminate()  # its documented way to end, after a last commit
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    return {
        "seconds": max(ended for _, ended, _ in found) - min(began for began, _, _ in found),
        "peak_mb": sum(peak for _, _, peak in found),
    }
