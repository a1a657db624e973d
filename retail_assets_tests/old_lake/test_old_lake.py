"""A lake and a DAGSTER_HOME that an earlier release left behind go on under today's code.

`make.py` says what is in them.
"""

import sqlite3
import tarfile
from contextlib import closing
from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.consumers.framework import consume
from retail_assets.consumers.registry import all_consumers
from retail_assets.defs import partitions
from retail_assets.defs.instance.event_log import PooledSqliteEventLogStorage
from retail_assets.defs.instance.run_launcher import WatchfulRunLauncher
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.settings import Settings
from retail_assets_tests.cli.test_cli import Command
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.event_files import event, write_events
from retail_assets_tests.old_lake.make import MODIFIED, NAME
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF

pytestmark = [DAGSTER_CALLS_ITSELF, pytest.mark.processes]  # Dagster keeps what steps print

DAYS = [date(2026, 10, day) for day in (12, 13, 14)]
RANGE = ("--start", str(DAYS[0]), "--end", str(DAYS[-1]))
ROWS = {
    "SELECT order_date, total_revenue, order_count FROM daily_revenue": [
        "2026-10-12,12.50,2",
        "2026-10-13,10.00,1",
        "2026-10-14,30.00,1",
    ],
    "SELECT order_date, total_revenue, order_count FROM live_revenue": [
        "2026-10-12,20.00,2",
        "2026-10-13,10.00,1",
    ],
    "SELECT product_id, sold, returned, stock FROM inventory_levels": ["P1,6,1,0", "P2,1,0,6"],
    "SELECT reason, dead_letters FROM dead_letter_counts": ["conflicting_event,1", "not_json,1"],
    "SELECT reason, source_file FROM rejected_orders": [
        "not_positive,orders_2026_10_12.csv",
        "unknown_status,orders_2026_10_12.csv",
    ],
}
"""What some queries gave under the release that made the lake."""

BY_CATEGORY = (
    "order_date, sum(total_revenue)::DECIMAL(18,2), sum(order_count) FROM live_revenue_by_category"
    " GROUP BY order_date"
)

WHEN = (
    "SELECT path, ingested_at FROM event_files",
    "SELECT * FROM published_days",
    "SELECT order_id, updated_at FROM live_orders",
)
"""Queries whose rows would be others if the work of that release were done again."""


class OldLake:
    """The command on the data folder and the DAGSTER_HOME of the archive."""

    def __init__(self, folder: Path, command: Command) -> None:
        with tarfile.open(Path(__file__).with_name(NAME)) as archive:
            archive.extractall(folder, filter="data")
        self.settings = Settings(data_dir=folder / "data")
        with closing(sqlite3.connect(self.settings.catalog)) as catalog, catalog:
            catalog.execute(
                "UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'",
                [self.settings.data_path + "/"],
            )
        self.lake = Lake.from_settings(self.settings)
        self._command = command

    def run(self, *arguments: str) -> str:
        """Run a sub-command, which must go well; returns what it prints."""
        code, out, err = self._command(*arguments)
        assert code == 0, err
        return out

    def rows(self, *queries: str, at: int | None = None) -> list[list[str]]:
        """The rows of each query, in order, as CSV."""
        with self.lake.connect(read_only=True, at=at) as connection:
            return [
                [
                    ",".join(map(str, row))
                    for row in connection.execute(sql + " ORDER BY ALL").fetchall()
                ]
                for sql in queries
            ]

    def follow(self) -> None:
        """Have each consumer follow the events to the newest snapshot."""
        with self.lake.connect() as connection:
            for consumer in all_consumers(self.settings):
                consume(self.lake, connection, consumer)

    def is_in_order(self) -> bool:
        """Whether a replay changes nothing; `verify` fails where a file is not whole."""
        self.run("verify", "--deep")
        return "would not change" in self.run("replay", *RANGE, "--check")


@pytest.fixture
def old(
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> OldLake:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("RETAIL_DATA_DIR", str(tmp_path / "data"))
    # Tables this small take longer with more threads.
    monkeypatch.setenv("RETAIL_THREADS", "1")
    return OldLake(tmp_path, Command(monkeypatch, capfd))


def test_a_lake_of_an_earlier_release_has_the_same_rows_and_nothing_to_do(old: OldLake) -> None:
    assert old.rows(*ROWS) == list(ROWS.values())
    assert old.run("query", "SELECT sum(total_revenue) FROM daily_revenue", "--format", "csv") == (
        "sum(total_revenue)\n52.50\n"
    )
    before = old.rows(*WHEN)
    assert "│ 0 files │" in old.run("ingest-events")
    assert "2026-10-12 │       4 │        2 │        2 │" in old.run("backfill", *RANGE)
    old.follow()
    assert old.rows(*WHEN) == before
    # A table that the lake did not have follows from the others.
    assert old.rows(f"SELECT {BY_CATEGORY}")[0] == ["2026-10-12,20.00,2", "2026-10-13,10.00,1"]
    assert old.is_in_order()


def test_a_lake_of_an_earlier_release_ingests_publishes_and_follows(old: OldLake) -> None:
    with old.lake.connect(read_only=True) as connection:
        before = current_snapshot(connection)
    known = Path(old.settings.events_location, f"{DAYS[0]}/a.jsonl").read_text().splitlines()
    later = (MODIFIED + 60) * 10**9
    lines = [{"product_id": "P2", "quantity": 2, "order_value_gbp": 5}] * 2
    basket = event(9, product_id=None, lines=lines)
    grown, new = [*known, event(8)], [basket, event(1, quantity=1), "["]
    write_events(old.settings, f"{DAYS[0]}/a.jsonl", grown, modified_ns=later)
    write_events(old.settings, f"{DAYS[2]}/d.jsonl", new, modified_ns=later)
    out = old.run("ingest-events")
    assert f"{DAYS[0]}/a.jsonl │ grown" in out

    next_day = date(2026, 10, 15)
    rows = [
        order_row("O8", next_day, order_value_gbp="5.00"),
        # Of a day that is published already: a late order, and one that was pending.
        order_row("O9", DAYS[1], order_value_gbp="1.50"),
        order_row("O2", DAYS[0]),
    ]
    write_export_to(old.settings.exports_dir, next_day, rows)
    old.run("backfill", "--start", str(next_day), "--end", str(next_day))
    old.follow()
    files = "SELECT path, lines, accepted, dead_lettered, duplicate FROM event_files"
    assert old.rows(*list(ROWS)[:4], files) == [
        ["2026-10-12,22.50,3", "2026-10-13,11.50,2", "2026-10-14,30.00,1", "2026-10-15,5.00,1"],
        ["2026-10-12,30.00,3", "2026-10-13,10.00,1", "2026-10-14,10.00,1"],
        ["P1,7,1,-1", "P2,5,0,2"],
        ["conflicting_event,1", "not_json,1", "not_json,1"],
        [
            "2026-10-12/a.jsonl,4,3,1,0",
            "2026-10-13/b.jsonl,3,1,1,1",
            "2026-10-13/c.jsonl.gz,2,2,0,0",
            "2026-10-14/d.jsonl,3,1,1,1",
        ],
    ]
    assert old.rows(*ROWS, at=before) == list(ROWS.values())
    assert old.is_in_order()


def test_a_dagster_home_of_an_earlier_release_opens_with_its_history(old: OldLake) -> None:
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, PooledSqliteEventLogStorage)
        assert isinstance(instance.run_launcher, WatchfulRunLauncher)
        (run,) = instance.get_runs(dg.RunsFilter(job_name="batch"))
        assert run.is_success
        assert partitions.run_days(run.tags) == (DAYS[0], DAYS[-1])
        days = {str(day) for day in DAYS}
        assert instance.get_materialized_partitions(dg.AssetKey("daily_revenue")) == days
        assert instance.all_logs(run.run_id)
