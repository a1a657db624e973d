"""Make `before_the_rooms.tar.xz`: what a release of before the rooms left behind, lake and all.

That release is commit d9b8029. This was run in a worktree of it, by its own interpreter, and only
uses its command line:

    unshare --uts sh -c 'hostname shop; .venv/bin/python MAKE.PY /srv/retail'

In the archive are a data folder, whose catalog names no place (its `data_path` is empty), and a
DAGSTER_HOME with that commit's dagster.yaml and the history of its backfill. All files are as of
14 October 2026. A file of deletions names the place where it was made; DuckLake reads no such name.
"""

import gzip
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

NAME = "before_the_rooms.tar.xz"
MODIFIED = 1_791_936_000
HEADER = "order_id,customer_id,product_id,region,status,order_value_gbp,order_timestamp\n"


def order(name: str, day: int, status: str = "completed", value: str = "10.00") -> str:
    """A row of an export."""
    return f"{name},C1,P1,North,{status},{value},2026-10-{day} 09:30:00\n"


def event(number: int, **changed: Any) -> str:
    """A line of an event file: E1 is of the order O1, and of ten pounds."""
    fields = {
        "event_id": f"E{number}",
        "order_id": f"O{number}",
        "customer_id": "C1",
        "product_id": "P1",
        "quantity": 1,
        "order_value_gbp": 10,
        "region": "North",
    }
    return json.dumps(fields | changed) + "\n"


FILES = {
    "reference/products.csv": "product_id,product_name,product_category,unit_price_gbp,"
    "stock_on_hand\nP1,Kettle,Kitchen,20.00,5\nP2,Lamp,Lighting,30.00,7\n",
    "reference/customers.csv": "customer_id,customer_segment,home_region,joined_on\n"
    "C1,loyal,North,2020-01-01\nC2,new,South,2026-09-30\n",
    "exports/orders_2026_10_12.csv": HEADER
    + order("O1", 12)
    + order("O2", 12, "pending")
    + order("O3", 12, "lost")
    + order("O4", 12, value="-1"),
    # An order of the day before, late.
    "exports/orders_2026_10_13.csv": HEADER + order("O5", 13) + order("O6", 12, value="2.50"),
    "exports/orders_2026_10_14.csv.gz": HEADER + order("O7", 14, value="30.00"),
    "events/2026-10-12/a.jsonl": event(1) + event(2, product_id="P2") + "no event\n",
    # The first is a conflict, the second the same again.
    "events/2026-10-13/b.jsonl": event(1, order_value_gbp=11)
    + event(2, product_id="P2")
    + event(3, event_timestamp="2026-10-13T10:00:00Z"),
    "events/2026-10-13/c.jsonl.gz": event(4, quantity=4)
    + event(3, event_id="E5", status="returned", event_timestamp="2026-10-13T12:00:00Z"),
}


def run(*arguments: str) -> str:
    """Run the command of that release; returns what it prints."""
    command = [sys.executable, "-m", "retail_assets", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def follow() -> None:
    """Have a worker bring all that follows the events up to date."""
    worker = subprocess.Popen([sys.executable, "-m", "retail_assets", "stream"])
    while any(
        row["commits_behind"] for row in json.loads(run("consumers", "list", "--format", "json"))
    ):
        pass
    worker.send_signal(signal.SIGTERM)
    worker.wait()


def main(folder: Path) -> None:
    """Make the data folder, the DAGSTER_HOME, and an archive of both."""
    data, home = folder / "data", folder / "dagster"
    for name, text in FILES.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        os.utime(path, (MODIFIED, MODIFIED))
    home.mkdir()
    shutil.copy("deploy/dagster/dagster.yaml", home)
    os.environ |= {"RETAIL_DATA_DIR": str(data), "DAGSTER_HOME": str(home)}
    run("ingest-events")
    run("backfill", "--start", "2026-10-12", "--end", "2026-10-14")
    run("maintain")
    # The catalog keeps what these few rows change.
    follow()
    for database in folder.rglob("*"):
        if database.suffix in (".db", ".sqlite") and database.stat().st_size:
            with closing(sqlite3.connect(database)) as opened, opened:
                opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with closing(sqlite3.connect(data / "lake" / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE ducklake_metadata SET value = '' WHERE key = 'data_path'")

    def nobody_s(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name.endswith((".lock", ".holder", "/spill", "/storage")):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = MODIFIED
        return member

    with tarfile.open(folder / NAME, "w:xz") as archive:
        for part in (data, home):
            archive.add(part, part.name, filter=nobody_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
