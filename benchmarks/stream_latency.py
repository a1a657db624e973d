"""From an event offered to its row seen by another process: files, Kafka, webhook, worker warm."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from benchmarks.events import write_reference
from benchmarks.stream_platform import take_reference_in
from retail_assets.lake.connection import Lake, NoLakeError, current_snapshot
from retail_assets.settings import Settings
from tools.broker import running_broker

TOKEN = "of-the-benchmark"  # noqa: S105
PORT = 18_089
TOGETHER = 10
"""Events of a file, or of a request."""

POLL_SECONDS = 0.02
OPTIONS = os.environ.get("BENCH_WORKER_OPTIONS", "").split()
"""More options of the worker."""

TOPIC = "orders"
CUSTOMERS = 499_979
"""A shop with hundreds of orders a second has as many at least: of a thousand customers nearly all
orders would be alerts. A prime, so that sources that take turns have all of them."""


def event(number: int) -> str:
    """A valid event: an order of one of the customers."""
    return json.dumps(
        {
            "event_id": f"E{number}",
            "order_id": f"O{number}",
            "customer_id": f"{number % CUSTOMERS + 1:06}",
            "product_id": f"P{number % 97 + 1:04}",
            "order_value_gbp": 10 + number % 400,
            "region": "North",
            "quantity": 1,
            "status": "completed",
        }
    )


def latencies(
    folder: Path, source: str, *, per_second: int = 200, seconds: int = 60
) -> list[float]:
    """Offer events evenly for a while; returns how long each took to be seen, in seconds."""
    settings = Settings(data_dir=folder)
    write_reference(folder)
    take_reference_in(settings)
    with _worker(folder, source) as bootstrap:
        offer = {"files": _files, "kafka": _kafka, "webhook": _webhook}[source](settings, bootstrap)
        seen: dict[str, float] = {}
        ready, stop = threading.Event(), threading.Event()
        reader = threading.Thread(target=_read, args=(settings, seen, ready, stop))
        reader.start()
        ready.wait()
        warm = 5 * per_second
        offered = _offer(offer, range(-warm, seconds * per_second), per_second)
        deadline = time.monotonic() + 60
        while len(seen) < len(offered) and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        reader.join()
    lost = len(offered) - len(seen)
    if lost:
        raise SystemExit(f"{lost} of {len(offered)} events were not seen")
    return sorted(seen[name] - when for name, when in offered.items() if not name.startswith("E-"))


def _offer(
    offer: Callable[[list[tuple[str, str]]], None], numbers: range, per_second: int
) -> dict[str, float]:
    """Offer events at a steady rate, some together."""
    offered: dict[str, float] = {}
    start = time.monotonic()
    for first in range(0, len(numbers), TOGETHER):
        time.sleep(max(0.0, start + first / per_second - time.monotonic()))
        some = [(f"E{number}", event(number)) for number in numbers[first : first + TOGETHER]]
        now = time.time()
        offered |= dict.fromkeys((name for name, _ in some), now)
        offer(some)
    return offered


def _files(settings: Settings, _: str) -> Callable[[list[tuple[str, str]]], None]:
    folder = Path(settings.events_location, str(_today(settings)))
    folder.mkdir(parents=True, exist_ok=True)

    def offer(some: list[tuple[str, str]]) -> None:
        path = folder / f"{some[0][0]}.jsonl"
        hidden = folder / f".{some[0][0]}"
        hidden.write_text("".join(f"{text}\n" for _, text in some))
        hidden.rename(path)

    return offer


def _kafka(_: Settings, bootstrap: str) -> Callable[[list[tuple[str, str]]], None]:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})

    def offer(some: list[tuple[str, str]]) -> None:
        for name, text in some:
            producer.produce(TOPIC, text.encode(), key=name)
        producer.poll(0)

    return offer


def _webhook(_: Settings, __: str) -> Callable[[list[tuple[str, str]]], None]:
    from concurrent.futures import ThreadPoolExecutor

    import httpx

    client = httpx.Client(
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-ndjson"},
        timeout=30,
        limits=httpx.Limits(max_connections=50),
    )
    pool = ThreadPoolExecutor(50)

    def post(body: str) -> None:
        client.post(f"http://127.0.0.1:{PORT}/events", content=body).raise_for_status()

    def offer(some: list[tuple[str, str]]) -> None:
        pool.submit(post, "".join(f"{text}\n" for _, text in some))

    return offer


@contextmanager
def _worker(folder: Path, source: str) -> Iterator[str]:
    """A worker that takes one source; yields the broker's address, if there is one."""
    environment = os.environ | {"RETAIL_DATA_DIR": str(folder), "RETAIL_WEBHOOK_TOKEN": TOKEN}
    command = [sys.executable, "-m", "retail_assets", "stream"]
    with running_broker() as broker:
        if source == "kafka":
            broker.create_topic(TOPIC, partitions=2)
        options = {
            "files": [],
            "kafka": ["--no-files", "--kafka", broker.bootstrap, "--topic", TOPIC],
            "webhook": ["--no-files", "--http", f"127.0.0.1:{PORT}"],
        }[source]
        process = subprocess.Popen([*command, *options, *OPTIONS], env=environment)
        try:
            _until_it_runs(Settings(data_dir=folder))
            yield broker.bootstrap
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def _until_it_runs(settings: Settings) -> None:
    for _ in range(600):
        try:
            with Lake.from_settings(settings).connect(read_only=True) as connection:
                beats = "SELECT 1 FROM stream_workers WHERE state = 'running'"
                if connection.execute(beats).fetchone():
                    time.sleep(3)
                    return
        except NoLakeError:
            pass
        time.sleep(0.2)
    raise SystemExit("the worker did not start")


def _read(
    settings: Settings, seen: dict[str, float], ready: threading.Event, stop: threading.Event
) -> None:
    """Look again and again which events are in the table, as a reader with a connection would."""
    # The machine is the worker's as well: a second thread would take its core to save nothing here.
    lake = replace(Lake.from_settings(settings), threads=1)
    with lake.connect(read_only=True) as connection:
        last = current_snapshot(connection)
        ready.set()
        while not stop.is_set():
            newest = current_snapshot(connection)
            if newest > last:
                rows = connection.execute(
                    f"SELECT event_id FROM lake.table_insertions('enriched_events', {last + 1},"
                    f" {newest})"
                ).fetchall()
                now = time.time()
                for (name,) in rows:
                    seen.setdefault(name, now)
                last = newest
            time.sleep(POLL_SECONDS)


def _today(settings: Settings) -> date:
    return datetime.now(ZoneInfo(settings.timezone)).date()


def summary(found: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {
        f"p{share}_ms": round(found[min(len(found) - 1, int(len(found) * share / 100))] * 1000, 1)
        for share in (50, 95, 99)
    }


def additions() -> float:
    """How fast the machine is: how long ten million additions take, in seconds."""
    began = time.perf_counter()
    total = 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - began


if __name__ == "__main__":
    import shutil

    target = Path(sys.argv[1])
    for each in sys.argv[3:] or ("files", "kafka", "webhook"):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        print(each, summary(latencies(target, each, seconds=int(sys.argv[2]))), flush=True)
