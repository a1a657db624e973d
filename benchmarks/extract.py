"""Two years of orders out of PostgreSQL: this platform, plain COPY, and dlt; and their backfill.

`python -m benchmarks.extract [--orders N] [--dlt PYTHON]` makes the orders on a server of this
machine, lets each way do it in a process of its own, and prints a table of seconds and of the peak
memory of that process. `--dlt` names a Python where `dlt[filesystem,sql_database]`, psycopg2 and
pyarrow are installed; without it dlt is left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

FIRST = date(2024, 1, 1)
DAYS = 730

MAPPING = """
database:
  orders:
    table: orders
    day: placed_at
    changed: updated_at
    columns:
      order_id: id
      customer_id: customer_id
      product_id: product_id
      region: region
      status: status
      order_value_gbp: total
      order_timestamp: placed_at
"""

COLUMNS = (
    "id AS order_id, customer_id, product_id, region, status, total AS order_value_gbp,"
    " placed_at AS order_timestamp"
)

TITLES = {
    "platform": "**this platform**: a file for each day, synced and entered in the ledger",
    "backfill": "**this platform**: the backfill of these files, once they are there",
    "platform-night": "**this platform**: the last two days of these, as each night",
    "copy": "`COPY … TO STDOUT` of the table, one file",
    "copy-days": "`COPY` once for each day, a file for each, by the index on the day",
    "dlt": "dlt, `sql_table` with pyarrow to CSV files of a folder, one table",
    "dlt-days": "dlt, the same, the rows of the last two days by its cursor",
}


def seed(connection: str, orders: int) -> None:
    """Make the orders: evenly over the days, one in ten changed one to five days later."""
    import psycopg

    with psycopg.connect(connection, autocommit=True) as server:
        server.execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id text, product_id text,"
            " region text, status text, total numeric(12,2), note text, placed_at timestamptz,"
            " updated_at timestamptz)"
        )
        server.execute(
            "INSERT INTO orders SELECT n, 'C' || n % 50000, 'P' || n % 900,"
            " (ARRAY['North', 'South', 'East', 'West'])[1 + n % 4], 'completed',"
            " (1 + n % 20000) / 100.0, md5(n::text), at, at + CASE WHEN n % 10 = 0"
            " THEN make_interval(days => (1 + n % 5)::int) ELSE interval '1 minute' END"
            f" FROM (SELECT n, '{FIRST}'::timestamptz + n * (interval '{DAYS} days' / {orders})"
            f" AS at FROM generate_series(0, {orders} - 1) AS n) AS numbered"
        )
        server.execute("CREATE INDEX ON orders (placed_at)")
        server.execute("CREATE INDEX ON orders (updated_at)")
        server.execute("VACUUM ANALYZE orders")


def _platform(url: str, folder: Path, first: date) -> None:
    from pydantic import SecretStr

    from retail_assets.business_days import days_between
    from retail_assets.extract.run import extract
    from retail_assets.settings import Settings

    (folder / "mapping.yaml").write_text(MAPPING)
    settings = Settings(
        data_dir=folder,
        mapping=folder / "mapping.yaml",
        database_url=SecretStr(url),
        start_date=FIRST,
        timezone="UTC",
    )
    extract(settings, days_between(first, FIRST + timedelta(days=DAYS - 1)))


def platform(url: str, folder: Path) -> None:
    """All days."""
    _platform(url, folder, FIRST)


def backfill(url: str, folder: Path) -> None:  # noqa: ARG001 - the files are there
    """What `platform` wrote, into the lake, with Dagster, as the command does it."""
    from retail_assets.cli.backfill import run_backfill
    from retail_assets.settings import Settings

    settings = Settings(data_dir=folder, start_date=FIRST, timezone="UTC")
    done = run_backfill(settings, FIRST, FIRST + timedelta(days=DAYS - 1))
    if done.days != DAYS or done.failed or done.problems:
        sys.exit(f"The backfill of {done.days} days had problems: {done}")


def platform_night(url: str, folder: Path) -> None:
    """The last two days."""
    _platform(url, folder, FIRST + timedelta(days=DAYS - 2))


def _copy(url: str, path: Path, where: str = "") -> None:
    import psycopg

    sql = f"COPY (SELECT {COLUMNS} FROM orders{where}) TO STDOUT (FORMAT csv, HEADER)"
    with (
        psycopg.connect(url) as server,
        server.cursor().copy(sql) as rows,
        path.open("wb") as file,
    ):
        for chunk in rows:
            file.write(chunk)


def copy(url: str, folder: Path) -> None:
    """One file."""
    _copy(url, folder / "orders.csv")


def copy_days(url: str, folder: Path) -> None:
    """A file for each day; a connection for each as well, as a script would have it."""
    for n in range(DAYS):
        day = FIRST + timedelta(days=n)
        where = (
            f" WHERE placed_at >= '{day} 00:00+00'"
            f" AND placed_at < '{day + timedelta(days=1)} 00:00+00'"
        )
        _copy(url, folder / f"orders_{day:%Y_%m_%d}.csv", where)


def _dlt(url: str, folder: Path, first: date | None) -> None:
    import dlt
    from dlt.destinations import filesystem
    from dlt.sources.sql_database import sql_table

    cursor = (
        dlt.sources.incremental(
            "placed_at", initial_value=datetime.combine(first, datetime.min.time(), timezone.utc)
        )
        if first
        else None
    )
    table = sql_table(
        url.replace("postgresql://", "postgresql+psycopg2://"),
        table="orders",
        backend="pyarrow",
        chunk_size=100_000,
        incremental=cursor,
    )
    pipeline = dlt.pipeline(
        "bench", destination=filesystem(str(folder / "out")), pipelines_dir=str(folder / "state")
    )
    pipeline.run(table, table_name="orders", loader_file_format="csv")


def dlt_all(url: str, folder: Path) -> None:
    """The table."""
    _dlt(url, folder, None)


def dlt_days(url: str, folder: Path) -> None:
    """The last two days."""
    _dlt(url, folder, FIRST + timedelta(days=DAYS - 2))


CASES: dict[str, Callable[[str, Path], None]] = {
    "platform": platform,
    "backfill": backfill,
    "platform-night": platform_night,
    "copy": copy,
    "copy-days": copy_days,
    "dlt": dlt_all,
    "dlt-days": dlt_days,
}


def run_case(case: str, url: str, folder: Path) -> None:
    """Do it, and print what it took; memory is that of this process."""
    begun = time.perf_counter()
    CASES[case](url, folder)
    seconds = time.perf_counter() - begun
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "cpu": round(own.ru_utime + own.ru_stime + children.ru_utime, 1),
                "mb": round(max(own.ru_maxrss, children.ru_maxrss) / 1024),
                "files": len([path for path in folder.rglob("*") if ".csv" in path.name]),
            }
        )
    )


def main() -> None:
    """Measure every case, several times in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dlt", help="a Python that has dlt")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        run_case(asked.case, asked.url, asked.folder)
        return
    from retail_assets_tests.extract.shops import postgres_shop
    from retail_assets_tests.servers import postgres_server

    with postgres_server() as connection_string:
        shop = postgres_shop(connection_string)
        seed(shop.url, asked.orders)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(asked.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for case in CASES:
                    python = asked.dlt if case.startswith("dlt") else sys.executable
                    if python:
                        # The backfill is of the files that the case before it wrote.
                        own = Path(folder, "platform" if case == "backfill" else case)
                        own.mkdir(exist_ok=True)
                        found.setdefault(case, []).append(_measure(python, case, shop.url, own))
    print(f"\n{asked.orders:,} orders over {DAYS} days; the best of {asked.rounds} rounds.\n")
    print("| | seconds | CPU seconds | peak MB | files |\n|---|--:|--:|--:|--:|")
    for case, runs in found.items():
        best = min(runs, key=lambda run: run["seconds"])
        cells = (TITLES[case], *(best[name] for name in ("seconds", "cpu", "mb", "files")))
        print("|", " | ".join(map(str, cells)), "|")


def _measure(python: str, case: str, url: str, folder: Path) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RETAIL_")}
    done = subprocess.run(
        [python, str(Path(__file__)), "--case", case, "--url", url, "--folder", str(folder)],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(case, result, file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
