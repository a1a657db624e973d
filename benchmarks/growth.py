"""What each batch, file, day and question costs as the lake grows.

    python -m benchmarks.growth FOLDER [--events 0,1,10,50] [--years 1,5,20]

One lake grows by event files, in millions of events over five years, another by order exports, in
years of days. At each size everything that is done again and again is measured, each in a process
of its own, in processor seconds: these hardly depend on what else the machine does.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import duckdb

from benchmarks.events import write_reference
from benchmarks.stream_latency import CUSTOMERS, event
from benchmarks.stream_platform import take_reference_in
from retail_assets.ingest.messages.load import Received
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.settings import Settings

MILLION = 1_000_000
FIRST_DAY, LAST_DAY = date(2021, 11, 1), date(2026, 10, 30)
TODAY = date(2026, 11, 2)
ORDERS_A_DAY = 200
BATCH, WARM_UP, BATCHES = 200, 5, 20
MOST_GROWTH = 1.3

EVENTS = """
    SELECT 'H' || i AS event_id, 'HO' || i AS order_id,
        lpad((i * 7919 % {customers} + 1)::VARCHAR, 6, '0') AS customer_id,
        printf('P%04d', i % 97 + 1) AS product_id, 5 + i % 900 + (i % 4) * 0.25 AS order_value_gbp,
        ['London', 'North', 'Wales'][1 + i % 3] AS region, 'completed' AS status, 1 AS quantity,
        strftime(TIMESTAMP '{day} 00:00:00' + INTERVAL 1 SECOND * (i % 86400),
            '%Y-%m-%dT%H:%M:%SZ') AS event_timestamp
    FROM range({first}, {last}) AS t(i)
"""

ORDERS = """
    SELECT 'O' || i AS order_id, printf('C%05d', i * 7919 % 50000) AS customer_id,
        printf('P%04d', i % 97 + 1) AS product_id,
        ['London', 'North', 'Wales'][1 + i % 3] AS region, 'completed' AS status,
        printf('%d.%02d', 5 + i % 900, i % 100) AS order_value_gbp,
        strftime(TIMESTAMP '{day} 00:00:00' + INTERVAL 1 SECOND * (i * 61 % 86400),
            '%Y-%m-%d %H:%M:%S') AS order_timestamp
    FROM range({first}, {last}) AS t(i)
"""


def _settings(folder: Path) -> Settings:
    return Settings(data_dir=folder, event_settle_seconds=0, start_date=date(2000, 1, 1))


def add_events(folder: Path, first: int, last: int) -> float:
    """Ingest files of so many events, each of one day of five years; returns seconds."""
    days = (LAST_DAY - FIRST_DAY).days
    each = 250_000
    for begin in range(first, last, each):
        day = FIRST_DAY + timedelta(days=begin // each * 37 % days)
        target = folder / "events" / str(day) / f"history-{begin:09}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        query = EVENTS.format(
            day=day, customers=CUSTOMERS, first=begin, last=min(last, begin + each)
        )
        duckdb.execute(f"COPY ({query}) TO '{target}' (FORMAT json)")
    return _command(folder, "ingest-events")


def add_days(folder: Path, first: date, last: date) -> float:
    """Ingest and publish exports of some days; returns seconds."""
    exports = folder / "exports"
    exports.mkdir(parents=True, exist_ok=True)
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        begin = day.toordinal() * ORDERS_A_DAY
        query = ORDERS.format(day=day, first=begin, last=begin + ORDERS_A_DAY)
        duckdb.execute(f"COPY ({query}) TO '{exports}/orders_{day:%Y_%m_%d}.csv' (HEADER)")
    return _command(folder, "backfill", "--start", str(first), "--end", str(last), "--all")


def _command(folder: Path, *arguments: str) -> float:
    """Processor seconds of a command of `retail-assets` and of all processes that it starts."""
    began = _of_children()
    subprocess.run(
        [sys.executable, "-m", "retail_assets", *arguments],
        env=os.environ
        | {
            "RETAIL_DATA_DIR": str(folder),
            "RETAIL_EVENT_SETTLE_SECONDS": "0",
            "RETAIL_START_DATE": "2000-01-01",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return _of_children() - began


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


Figures = dict[str, float]


def _batch() -> Received:
    """New events of a source of their own."""
    base = time.time_ns()
    payloads = [event(number).encode() for number in range(base, base + BATCH)]
    return Received("webhook", str(base), TODAY, range(BATCH), payloads, offered_at=time.time())


def micro_batch(folder: Path) -> Figures:
    """Processor seconds of a worker's start and of a batch of 200 events, and MB after them."""
    from retail_assets.ingest.messages.load import ingest, warm_session

    began = time.process_time()
    lake = Lake.from_settings(_settings(folder))
    with lake.connect() as connection:
        session = warm_session(lake, connection, ())
        started = time.process_time() - began
        seconds = []
        for _ in range(WARM_UP + BATCHES):
            batch = _batch()
            began = time.process_time()
            session.open(small=True)
            ingest(session, [batch])
            seconds.append(time.process_time() - began)
    return {
        "worker ready, s": started,
        "batch of 200 events, s": statistics.median(seconds[WARM_UP:]),
        "memory of the worker's session, MB": _memory(),
    }


def tick(folder: Path) -> Figures:
    """Processor seconds to find and ingest one new file of one event."""
    from retail_assets.ingest.event_files import load
    from retail_assets.ingest.event_files.pending import pending_event_files
    from retail_assets.ingest.events.session import EventSession

    settings = _settings(folder)
    lake = Lake.from_settings(settings)
    target = folder / "events" / str(TODAY)
    target.mkdir(parents=True, exist_ok=True)
    looked, seconds = [], []
    for _ in range(5):
        number = time.time_ns()
        (target / f"{number}.jsonl").write_text(event(number) + "\n")
        began = time.process_time()
        pending = pending_event_files(settings)
        looked.append(time.process_time() - began)
        with lake.connect() as connection:
            load.ingest(EventSession(lake, connection), settings, pending.files)
        seconds.append(time.process_time() - began)
    return {
        "look for new event files, s": statistics.median(looked),
        "one new event file, s": statistics.median(seconds),
    }


def consumers(folder: Path) -> Figures:
    """Processor seconds of a round of all consumers after 200 events, and of their keyed state."""
    from retail_assets.consumers.keyed.follower import Follower, state_path
    from retail_assets.consumers.registry import all_consumers
    from retail_assets.ingest.ledgers.offsets import move_consumers
    from retail_assets.ingest.messages.load import ingest, warm_session

    settings = _settings(folder)
    lake = replace(Lake.from_settings(settings), threads=1)
    state = state_path(settings)
    state.unlink(missing_ok=True)
    every = all_consumers(settings)

    def started(connection: duckdb.DuckDBPyConnection) -> tuple[Follower, float]:
        began = time.process_time()
        follower = Follower(lake, every, state, str(settings.opening_date))
        while not follower.is_ready(connection):
            time.sleep(0.1)
        return follower, time.process_time() - began

    with lake.connect() as connection:
        with lake.transaction(connection, "place consumers"):
            names = [consumer.name for consumer in every]
            move_consumers(connection, names, current_snapshot(connection))
        session = warm_session(lake, connection, ())
        follower, built = started(connection)
        follower.close()
        follower, opened = started(connection)
        seconds = []
        for _ in range(WARM_UP + BATCHES):
            ingest(session, [_batch()])
            began = time.process_time()
            follower.iterate(connection)
            seconds.append(time.process_time() - began)
        size = follower.metrics["state_bytes"]
        follower.close()
    return {
        "round of all consumers, s": statistics.median(seconds[WARM_UP:]),
        "start of the consumers, s": opened,
        "the same without their state, s": built,
        "the state, MB": size / MILLION,
    }


def questions(folder: Path) -> Figures:
    """Processor seconds of the first answers that a new connection gives about one day."""
    import retail_assets

    day = str(TODAY)
    asked = {
        "revenue_now of a day, s": f"SELECT * FROM revenue_now WHERE order_date = '{day}'",
        "events of a day, s": "SELECT count(DISTINCT order_id), sum(order_value_gbp)"
        f" FROM enriched_events WHERE order_date = '{day}'",
        "orders of a day, s": "SELECT count(*), sum(order_value_gbp) FROM completed_orders"
        f" WHERE order_date = '{day}'",
    }
    os.environ["RETAIL_DATA_DIR"] = str(folder)
    found: Figures = {}
    for name, question in asked.items():
        times = []
        for _ in range(5):
            with retail_assets.connect() as connection:
                began = time.process_time()
                connection.execute(question).fetchall()
                times.append(time.process_time() - began)
        found[name] = statistics.median(times)
    return found


def commands(folder: Path) -> Figures:
    """Processor seconds of the commands of every day; the day's export has changed each time."""
    found: Figures = {"`status`, s": _command(folder, "status")}
    times = []
    for number in range(3):
        exports = folder / "exports"
        exports.mkdir(exist_ok=True)
        query = ORDERS.format(day=TODAY, first=0, last=ORDERS_A_DAY + number)
        duckdb.execute(f"COPY ({query}) TO '{exports}/orders_{TODAY:%Y_%m_%d}.csv' (HEADER)")
        times.append(_command(folder, "backfill", "--start", str(TODAY), "--end", str(TODAY)))
    found["`backfill` of one day, s"] = statistics.median(times)
    found["`maintain`, s"] = _command(folder, "maintain")
    found["`maintain` again, s"] = _command(folder, "maintain")
    return found


MEASURES: Mapping[str, Callable[[Path], Figures]] = {
    "micro_batch": micro_batch,
    "tick": tick,
    "consumers": consumers,
    "questions": questions,
    "commands": commands,
}


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path) -> Figures:
    """All figures of a lake, each group in a process of its own."""
    found: Figures = {}
    for name in MEASURES:
        command = [sys.executable, "-m", "benchmarks.growth", str(folder), "--measure", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass
class Lakes:
    """The figures of a lake at each size."""

    sizes: list[str]
    figures: list[Figures]

    def table(self) -> str:
        """As Markdown: a row for each figure, a column for each size, and the growth."""
        lines = [
            f"| | {' | '.join(self.sizes)} | growth |",
            f"|---|{'--:|' * (len(self.sizes) + 1)}",
        ]
        for name in self.figures[0]:
            values = [each[name] for each in self.figures]
            growth = values[-1] / values[0]
            mark = "**" if growth > MOST_GROWTH else ""
            cells = " | ".join(_shown(value) for value in values)
            lines.append(f"| {name} | {cells} | {mark}{growth:.2f}{mark} |")
        return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _prepared(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_reference(folder)
    take_reference_in(_settings(folder))


def events_lake(folder: Path, millions: Sequence[float]) -> Lakes:
    """A lake that grows by events."""
    _prepared(folder)
    lakes, has = Lakes([], []), 0
    for wanted in millions:
        last = round(wanted * MILLION)
        spent = add_events(folder, has, last) if last > has else 0.0
        has = last
        lakes.sizes.append(f"{wanted:g} M")
        lakes.figures.append(measure(folder))
        print(f"{wanted:g} M events, {spent:.0f} s:", json.dumps(lakes.figures[-1]), flush=True)
    return lakes


def days_lake(folder: Path, years: Sequence[int]) -> Lakes:
    """A lake that grows into the past by days."""
    _prepared(folder)
    lakes, first = Lakes([], []), TODAY
    for wanted in years:
        begin = TODAY - timedelta(days=365 * wanted)
        spent = add_days(folder, begin, first - timedelta(days=1))
        first = begin
        lakes.sizes.append(f"{wanted} years" if wanted > 1 else "1 year")
        lakes.figures.append(measure(folder))
        print(f"{wanted} years, {spent:.0f} s:", json.dumps(lakes.figures[-1]), flush=True)
    return lakes


def page(events: Lakes, days: Lakes) -> str:
    """The page `docs/growth.md`, without what a reader has to know about the figures."""
    cores = os.cpu_count()
    machine = f"{cores} cores ({platform.machine()}), Python {platform.python_version()}"
    return "\n\n".join(
        [
            f"Written by `python -m benchmarks.growth`; {machine}, duckdb {duckdb.__version__}.",
            f"## Events\n\n{events.table()}",
            f"## Days\n\n{days.table()}",
        ]
    )


def main() -> None:
    """Measure one group, or grow both lakes and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", default="0,1,10,50", help="millions of events")
    parser.add_argument("--years", default="1,5,20", help="years of days")
    parser.add_argument("--measure", choices=MEASURES, help="only this, of the lake as it is")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.folder)))
        return
    events = events_lake(options.folder / "events", [*map(float, options.events.split(","))])
    days = days_lake(options.folder / "days", [*map(int, options.years.split(","))])
    print(page(events, days))


if __name__ == "__main__":
    main()
