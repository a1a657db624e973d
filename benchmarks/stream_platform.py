"""The worker's work done by this platform: a topic into the lake, all of it durable."""

import resource
import threading
import time
from pathlib import Path

from retail_assets import tables
from retail_assets.ingest.exports import reference
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_table
from retail_assets.settings import Settings
from retail_assets.worker.build import Options, build_worker


def take_reference_in(settings: Settings) -> None:
    """Take products and customers in."""
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        for table in (tables.PRODUCTS, tables.CUSTOMERS):
            frame = reference.read_reference(settings.reference_dir, table)
            publish_table(lake, connection, table, frame)


def run(bootstrap: str, topic: str, lines: int, data: Path, out: Path) -> dict[str, float]:
    """Take a topic in; seconds from the first message on, peak memory in MB, and the counts."""
    settings = Settings(
        data_dir=data,
        lake_catalog=str(out / "catalog.sqlite"),
        lake_data=str(out / "files"),
    )
    take_reference_in(settings)
    worker = build_worker(
        settings, Options(files=False, kafka=bootstrap, topic=topic, consumers=False)
    )
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    began = 0.0
    (source,) = worker.sources
    while sum(found.lines for found in worker.metrics.sources.values()) < lines:
        has_some = source.metrics()["kafka_waiting_bytes"] > 0
        began = began or (time.perf_counter() if has_some else 0.0)
        time.sleep(0.005)
        if not thread.is_alive():
            raise SystemExit("the worker has ended")
    seconds = time.perf_counter() - began
    stop.set()
    thread.join()
    totals = worker.metrics.sources["kafka"]
    return {
        "seconds": round(seconds, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "lines": totals.lines,
        "accepted": totals.accepted,
        "dead": totals.dead_lettered,
    }
