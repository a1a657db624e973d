"""A soak: events from all sources for a while, the worker killed at random, readers all the time.

    python -m benchmarks --only soak --minutes 15

The sensor and the daemon run beside the worker, upkeep runs in it, and a reader polls. At the end
every event must be in the lake once, no reader may have met an error, and neither the worker's
memory nor the number of files may have grown with time; `docs/soak.md` has the figures.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from benchmarks.events import write_reference
from benchmarks.stream_latency import CUSTOMERS, PORT, TOKEN, event
from benchmarks.stream_platform import take_reference_in
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings
from tools.broker import running_broker

ROOT = Path(__file__).parents[1]
TOPIC = "orders"
KAFKA, WEBHOOK, FILES = 500, 300, 200
"""Events a second of each source."""

CLIENTS, TOGETHER = 10, 30
"""Clients of the webhook, and events in each request; the next one follows an accepted one."""

UPTIME_SECONDS = (20, 150)
"""How long a worker runs before it is killed: some long enough for upkeep, and to see it grow."""

YOUNG_SECONDS, OLD_SECONDS = 45, 90

SAMPLE_SECONDS = 5

MOST_GROWTH = 1.5
"""How many times the most of the first third of the time the most of the last third may be."""


@dataclass
class Soak:
    """The state of the soak; all threads end with `stop`."""

    settings: Settings
    bootstrap: str
    stop: threading.Event = field(default_factory=threading.Event)
    offered: dict[str, int] = field(default_factory=dict)
    reader_errors: list[str] = field(default_factory=list)
    reads: int = 0
    kills: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    def steadily(self, per_second: int, together: int, offer: Callable[[int], None]) -> None:
        """Call something at a steady rate, with the number of the first event."""
        start, number = time.monotonic(), 0
        while not self.stop.is_set():
            pause = start + number / per_second - time.monotonic()
            if pause > 0:
                self.stop.wait(pause)
            offer(number)
            number += together

    def produce(self) -> None:
        """Offer events to Kafka."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5})

        def offer(number: int) -> None:
            for each in range(number, number + 50):
                producer.produce(TOPIC, _event(0, each).encode(), key=str(each))
            producer.poll(0)
            self.offered["kafka"] = number + 50

        self.steadily(KAFKA, 50, offer)
        producer.flush(60)

    def post(self, client: int) -> None:
        """Offer events to the webhook, again and again until it says that it has them."""
        import httpx

        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-ndjson"}
        with httpx.Client(headers=headers, timeout=30) as session:

            def offer(number: int) -> None:
                body = "".join(
                    _event(2 + client, each) + "\n" for each in range(number, number + TOGETHER)
                )
                while True:
                    try:
                        answer = session.post(f"http://127.0.0.1:{PORT}/events", content=body)
                        if answer.status_code == httpx.codes.ACCEPTED:
                            break
                    except httpx.TransportError:
                        pass
                    time.sleep(0.2)
                self.offered[f"webhook {client}"] = number + TOGETHER

            self.steadily(WEBHOOK // CLIENTS, TOGETHER, offer)

    def write(self) -> None:
        """Offer events as files."""
        today = datetime.now(ZoneInfo(self.settings.timezone)).date()
        folder = Path(self.settings.events_location, str(today))
        folder.mkdir(parents=True, exist_ok=True)

        def offer(number: int) -> None:
            hidden = folder / f".{number}"
            hidden.write_text(
                "".join(_event(1, each) + "\n" for each in range(number, number + 50))
            )
            hidden.rename(folder / f"{number:09}.jsonl")
            self.offered["files"] = number + 50

        self.steadily(FILES, 50, offer)

    def read(self) -> None:
        """Read as an analyst would, with a connection a minute and in transactions."""
        # The worker is to have the other core.
        lake = replace(Lake.from_settings(self.settings), threads=1)
        while not self.stop.is_set():
            try:
                with lake.connect(read_only=True) as connection:
                    until = time.monotonic() + 60
                    while time.monotonic() < until and not self.stop.is_set():
                        connection.execute("BEGIN")
                        first, second = (
                            connection.execute(
                                "SELECT count(*), count(DISTINCT event_id) FROM enriched_events"
                            ).fetchone()
                            for _ in range(2)
                        )
                        connection.execute("COMMIT")
                        if first != second or first[0] != first[1]:
                            self.reader_errors.append(f"{first} then {second}")
                        self.reads += 1
                        self.stop.wait(0.5)
            except NoLakeError:
                self.stop.wait(0.5)
            except Exception as error:  # noqa: BLE001  # that is what is counted
                self.reader_errors.append(str(error))

    def work(self) -> None:
        """Keep a worker running; kill it at random and start another."""
        environment = os.environ | {"RETAIL_WEBHOOK_TOKEN": TOKEN}
        command = [sys.executable, "-m", "retail_assets", "stream"]
        options = ["--kafka", self.bootstrap, "--topic", TOPIC, "--http", f"127.0.0.1:{PORT}"]
        while not self.stop.is_set():
            self.started = time.monotonic()
            self.process = subprocess.Popen([*command, *options], env=environment)
            if not self.stop.wait(random.uniform(*UPTIME_SECONDS)):  # noqa: S311
                self.process.kill()
                self.kills += 1
                self.process.wait()

    def sample(self) -> None:
        """Note memory, files and rows every few seconds."""
        while not self.stop.wait(SAMPLE_SECONDS):
            try:
                self._sample()
            except NoLakeError:
                continue
            except Exception as error:  # noqa: BLE001  # it is a reader, too
                self.reader_errors.append(str(error))

    def _sample(self) -> None:
        process = self.process
        if process is None:
            return
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        except (OSError, StopIteration):
            # It has just been killed.
            return
        files = sum(1 for _ in Path(self.settings.data_path).rglob("*.parquet"))
        with Lake.from_settings(self.settings).connect(read_only=True) as connection:
            live, snapshots = connection.execute(
                "SELECT (SELECT sum(file_count) FROM ducklake_table_info('lake')),"
                " (SELECT count(*) FROM lake.snapshots())"
            ).fetchone()
        self.samples.append(
            {
                "age": time.monotonic() - self.started,
                "rss_mb": int(rss.split()[1]) / 1024,
                "files": files,
                "live_files": float(live or 0),
                "snapshots": float(snapshots),
            }
        )

    def thirds(self, name: str) -> list[float]:
        """The most that there was of something in each third of the time."""
        third = max(1, len(self.samples) // 3)
        parts = [self.samples[first : first + third] for first in (0, third, 2 * third)]
        return [max(sample[name] for sample in part) for part in parts if part]


def _event(source: int, number: int) -> str:
    """An event of a source that no other source has."""
    return event(number * (2 + CLIENTS) + source)


def report(folder: Path, minutes: float, machine: str) -> str:
    """Soak for some minutes in a new folder; returns what was seen, as Markdown.

    Raises:
        RuntimeError: An event is missing or double, a reader met an error, or something grew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["RETAIL_DATA_DIR"] = str(folder)
    home = folder / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "deploy/dagster/dagster.yaml", home)
    settings = Settings(data_dir=folder)
    write_reference(folder)
    take_reference_in(settings)
    environment = os.environ | {"DAGSTER_HOME": str(home)}
    with running_broker() as broker:
        broker.create_topic(TOPIC, partitions=4)
        soak = Soak(settings, broker.bootstrap)
        services = subprocess.Popen(
            [sys.executable, "-m", "retail_assets.cli.services", "--no-worker", "--port", "3998"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        threads = [
            threading.Thread(target=target)
            for target in (
                *(soak.work, soak.produce, soak.write, soak.read, soak.sample),
                *(partial(soak.post, client) for client in range(CLIENTS)),
            )
        ]
        for thread in threads:
            thread.start()
        time.sleep(minutes * 60)
        soak.stop.set()
        for thread in threads:
            thread.join()
        rows, distinct = _wait_for_all(soak)
        services.send_signal(signal.SIGINT)
        services.wait(120)
    expected = sum(soak.offered.values())
    if soak.reader_errors or not expected == rows == distinct:
        raise RuntimeError(
            f"{expected} events were offered, {rows} rows are there, {distinct} different ones;"
            f" {len(soak.reader_errors)} reads failed: {soak.reader_errors[:5]}"
        )
    text = _text(soak, minutes, machine, _sensor_runs(home))
    for name in ("rss_mb", "live_files"):
        first, *_, last = soak.thirds(name)
        if last > MOST_GROWTH * first:
            raise RuntimeError(f"{name} grew from {first:,.0f} to {last:,.0f}:\n{text}")
    return text


def _wait_for_all(soak: Soak) -> tuple[int, int]:
    """Wait until all is in, then stop the worker; returns rows and different events."""
    expected = sum(soak.offered.values())
    count = (0, 0)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and count[0] < expected:
        time.sleep(1)
        with Lake.from_settings(soak.settings).connect(read_only=True) as connection:
            count = connection.execute(
                "SELECT count(*), count(DISTINCT event_id) FROM enriched_events"
            ).fetchone()
    if soak.process is not None:
        soak.process.terminate()
        soak.process.wait(120)
    return count


def _sensor_runs(home: Path) -> int:
    """How many runs Dagster has had: those of the sensors, for nobody else asked for any."""
    from dagster import DagsterInstance

    os.environ["DAGSTER_HOME"] = str(home)
    with DagsterInstance.get() as instance:
        return instance.get_runs_count()


def _text(soak: Soak, minutes: float, machine: str, runs: int) -> str:
    lines = [
        "| the most in | first third | second third | last third |",
        "|---|---:|---:|---:|",
    ]
    for name, what in (
        ("rss_mb", "memory of the worker, MB"),
        ("live_files", "data files of the newest snapshot"),
        ("files", "data files on disk, with those that readers may still need"),
        ("snapshots", "snapshots"),
    ):
        cells = [f"{most:,.0f}" for most in soak.thirds(name)]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    young = [s["rss_mb"] for s in soak.samples if s["age"] < YOUNG_SECONDS]
    old = [s["rss_mb"] for s in soak.samples if s["age"] > OLD_SECONDS]
    ages = (
        f" A worker had at most {max(young):,.0f} MB in its first {YOUNG_SECONDS} s, and"
        f" {max(old):,.0f} MB when it was older than {OLD_SECONDS} s."
        if young and old
        else ""
    )
    total = sum(soak.offered.values())
    by_source: dict[str, int] = {}
    for name, count in soak.offered.items():
        source = name.split()[0]
        by_source[source] = by_source.get(source, 0) + count
    offered = ", ".join(f"{count:,} by {source}" for source, count in by_source.items())
    rate = total / minutes / 60
    return (
        "\n\n".join(
            [
                "# A soak of the worker",
                f"Written by {machine}.",
                (
                    f"{minutes:g} minutes, {rate:,.0f} events/s: {offered}, orders of"
                    f" {CUSTOMERS:,} customers. The worker was killed"
                    f" {soak.kills} times at random; Dagster ran beside it with its sensors ({runs}"
                    " runs); a reader of one thread read the whole table twice in a transaction,"
                    f" {soak.reads:,} times."
                ),
                (
                    f"**Each of the {total:,} events was there exactly once, and no read failed**"
                    " or saw two different states in one transaction."
                ),
                "\n".join(lines),
                (
                    "Files that were merged stay on disk for ten minutes, and for as long as a"
                    " reader is open that began before: the number of files on disk levels off"
                    f" after that time only.{ages}"
                ),
            ]
        )
        + "\n"
    )
