"""The command as a user meets it: exit codes, one sentence for an error, what it prints."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from retail_assets.cli import app as cli
from retail_assets.cli import base
from retail_assets.defs.automation import batch as automation
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, WriteExport, order_row
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    DAYS,
    FIRST,
    Platform,
    leave_out_checks,
)
from retail_assets_tests.rates import write_rates

pytestmark = DAGSTER_CALLS_ITSELF

NOBODY = 65_534

COMMANDS = [
    "generate",
    "import-complete-journey",
    "backfill",
    "query",
    "status",
    "maintain",
    "verify",
]


class Command:
    """Runs the command in this process, as its entry point does."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.patch = patch
        self.capture = capture

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, standard output and standard error."""
        self.patch.setattr(sys, "argv", ["retail-assets", *arguments])
        # Not by the variable COLUMNS, which pytest-xdist has set when the module was imported.
        for console in (base.out, base.err):
            self.patch.setattr(console, "width", 200)
        with pytest.raises(SystemExit) as exit_:
            cli.run()
        out, err = self.capture.readouterr()
        return int(exit_.value.code or 0), out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def test_the_command_shows_all_that_there_is(command: Command) -> None:
    code, out, _ = command("--help")
    assert (code, [name for name in COMMANDS if name in out]) == (0, COMMANDS)


@pytest.mark.processes
def test_an_error_of_the_installed_command_is_one_sentence_without_a_traceback(
    settings: Settings,
) -> None:
    executable = Path(sys.executable).with_name("retail-assets")
    done = subprocess.run(
        [executable, "query", "SELECT 1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: There is no lake at {settings.catalog} yet: run `retail-assets backfill` first.\n"
    )


@pytest.mark.processes
def test_debug_shows_the_traceback(settings: Settings) -> None:
    executable = Path(sys.executable).with_name("retail-assets")
    done = subprocess.run(
        [executable, "--debug", "query", "SELECT 1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "There is no lake at" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, name: str) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"Usage: retail-assets {name} [OPTIONS]" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["backfill", "--start", "2026-10-12"], "Missing option '--end'"),
        (["backfill", "--start", "yesterday", "--end", "2026-10-12"], "'yesterday' does not match"),
        (["backfill", "--start", "2026-10-13", "--end", "2026-10-12"], "lies after the end"),
        (["backfill", "--start", "2020-01-01", "--end", "2026-10-12"], "set RETAIL_START_DATE"),
        (["query", "SELECT 1", "--at", "noon"], "--at 'noon' is neither a snapshot id nor a time"),
        (["query", "SELECT 1", "--format", "xml"], "'xml' is not one of"),
    ],
)
def test_wrong_usage_exits_with_two(
    settings: Settings, command: Command, arguments: list[str], message: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_setting_that_cannot_be_used_is_named(
    settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_TIMEZONE", "Mars/Olympus")
    code, out, err = command("status")
    assert (code, out) == (2, "")
    assert err.startswith("Error: RETAIL_TIMEZONE='Mars/Olympus' cannot be used")
    assert err.count("\n") == 1


@pytest.fixture
def unusable(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A data folder that cannot be one, while the test runs."""
    if request.param == "below a file":
        place = settings.data_dir / "file"
        place.touch()
        yield place / "data"
        return
    place = settings.data_dir / "locked"
    place.mkdir(mode=0o500)
    # Nothing is forbidden to root.
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        yield place / "data"
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("unusable", "reason"),
    [("below a file", "Not a directory"), ("not writable", "Permission denied")],
    indirect=["unusable"],
)
@pytest.mark.parametrize("name", ["ingest-events", "stream"])
def test_a_data_folder_that_cannot_be_used_is_named_with_its_setting(
    settings: Settings,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    unusable: Path,
    reason: str,
    name: str,
) -> None:
    monkeypatch.setenv("RETAIL_DATA_DIR", str(unusable))
    code, out, err = command(name)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: The folder {unusable / 'lake'}")
    assert f"cannot be used: {reason}. Set RETAIL_DATA_DIR " in err
    assert err.count("\n") == 1


def test_a_query_prints_a_table_csv_or_json(published: Platform, command: Command) -> None:
    sql = "SELECT order_date, region, total_revenue FROM daily_revenue ORDER BY 1 LIMIT 1"
    code, out, err = command("query", sql, "--format", "csv")
    assert (code, err) == (0, "")
    assert list(csv.reader(io.StringIO(out))) == [
        ["order_date", "region", "total_revenue"],
        [str(FIRST), "North", "10.00"],
    ]
    code, out, err = command("query", sql, "--format", "json")
    assert json.loads(out) == [
        {"order_date": str(FIRST), "region": "North", "total_revenue": "10.00"}
    ]
    code, out, err = command("query", sql)
    assert [cell in out for cell in ("total_revenue", "North", "10.00")] == [True] * 3


def test_a_query_writes_its_rows_to_a_file(
    published: Platform, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "revenue.csv"
    sql = "SELECT order_date, total_revenue FROM daily_revenue ORDER BY 1 LIMIT 1"
    assert command("query", sql, "--output", str(path)) == (0, f"1 rows are in {path}.\n", "")
    assert path.read_text() == f"order_date,total_revenue\n{FIRST},10.00\n"
    code, _, err = command("query", "SELECT 1; SELECT 2", "--output", str(path))
    assert (code, err) == (2, "Error: One file, or one JSON document, has the rows of one query.\n")


def test_what_came_from_outside_is_shown_as_text(published: Platform, command: Command) -> None:
    code, out, err = command("query", "SELECT '[bold]North' || chr(27) || '[31m' AS region")
    assert (code, err) == (0, "")
    assert "[bold]North\\u001b[31m" in out
    code, out, err = command("query", 'SELECT "[red]' + chr(27) + '[31m"')
    assert code == 1
    assert chr(27) not in err
    assert "[red]\\u001b[31m" in err


def test_a_query_that_fails_says_why(published: Platform, command: Command) -> None:
    code, out, err = command("query", "SELECT nothing FROM daily_revenue")
    assert (code, out) == (1, "")
    assert err.startswith("Error: The query failed:")
    assert "nothing" in err


def test_a_query_cannot_change_the_lake(published: Platform, command: Command) -> None:
    code, _, err = command("query", "DELETE FROM daily_revenue")
    assert code == 1
    assert "read-only" in err
    assert published.query("SELECT count(*) FROM daily_revenue") == [(4,)]


def test_at_gives_the_numbers_as_they_were_published_then(
    published: Platform, command: Command, write_export: WriteExport
) -> None:
    sql = f"SELECT sum(total_revenue) AS total FROM daily_revenue WHERE order_date = '{FIRST}'"
    [(before, when)] = published.query(
        "SELECT snapshot_id, snapshot_time FROM lake.snapshots() ORDER BY 1 DESC LIMIT 1"
    )
    write_export(FIRST, [order_row("O0", FIRST, order_value_gbp="99.00")])
    assert published.run("batch", FIRST).success
    assert command("query", sql, "--format", "csv") == (0, "total\n99.00\n", "")
    assert command("query", sql, "--format", "csv", "--at", str(before)) == (
        0,
        "total\n10.00\n",
        "",
    )
    moment = (when + timedelta(milliseconds=1)).isoformat()
    assert command("query", sql, "--format", "csv", "--at", moment) == (0, "total\n10.00\n", "")


def test_status_counts_what_is_pending_and_published(
    published: Platform, command: Command, write_export: WriteExport
) -> None:
    write_export(DAYS[-1] + timedelta(days=1), [order_row("O9", DAYS[-1])])
    code, out, _ = command("status", "--format", "json")
    assert code == 0
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["pending exports"] == 1
    assert figures["days published"] == 4
    assert figures["last day published"] == str(DAYS[-1])
    assert figures["days failed"] == 0
    assert figures["export rows"] == 4


def test_status_begins_with_the_verdict_and_leaves_out_what_is_zero(
    published: Platform, command: Command
) -> None:
    published.change(
        "INSERT INTO lake.failed_days (table_name, day, problem, failed_at)"
        f" VALUES ('raw_orders', DATE '{DAYS[0]}', 'no region', now())"
    )
    code, out, err = command("status", "--check")
    assert code == 1
    assert out.startswith(f"✕ {DAYS[0]} failed: no region\n")
    assert "days failed" in out
    assert "days published" in out
    assert "keys quarantined" not in out
    assert "--all shows them" in err
    code, out, _ = command("status", "--all")
    assert code == 0
    assert "keys quarantined" in out


def test_status_names_the_files_in_exports_that_are_not_taken(
    settings: Settings, command: Command, write_export: WriteExport
) -> None:
    write_export(settings.start_date - timedelta(days=1), [])
    named = ("orders-2026-10-07.csv", "orders_2999_01_01.csv", "2026/10/orders_2026_10_09.csv")
    for name in (*named, ".hidden"):
        path = settings.exports_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _, out, _ = command("status", "--format", "json")
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["exports not taken"] == 4
    assert figures["not taken: orders_2999_01_01.csv"] == "is dated in the future"
    assert "is not called orders_" in figures["not taken: orders-2026-10-07.csv"]
    assert "in exports/ itself" in figures["not taken: 2026/10/orders_2026_10_09.csv"]
    assert "RETAIL_START_DATE=2026-10-05" in figures["not taken: orders_2026_10_04.csv"]


def test_a_reference_file_that_lacks_most_rows_is_loaded_only_with_leave(
    published: Platform, command: Command
) -> None:
    path = published.settings.reference_dir / "products.csv"
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(header)
    code, _, err = command("reference", "load", "products")
    assert code == 1
    assert f"{len(rows)} of the {len(rows)} products in the lake are not in products.csv" in err
    assert "`retail-assets reference load products --allow-shrink`" in err
    code, out, _ = command("reference", "load", "products", "--allow-shrink")
    assert (code, out) == (0, "0 products are in the lake.\n")


def test_status_works_before_there_is_a_lake(settings: Settings, command: Command) -> None:
    code, out, _ = command("status", "--format", "json")
    assert code == 0
    assert {"figure": "lake", "value": "none yet"} in json.loads(out)


def test_a_backfill_prints_its_days_and_fails_by_name(
    published: Platform, command: Command, write_export: WriteExport
) -> None:
    leave_out_checks(command.patch)
    missing = DAYS[-1] + timedelta(days=1)
    code, out, err = command("backfill", "--start", str(FIRST), "--end", str(missing))
    assert code == 1
    assert f"│ {FIRST}" in out
    assert [cell.strip() for cell in out.splitlines()[-2].strip("│").split("│")] == [
        *("total", "4", "4", "0", "4", "40.00"),
    ]
    assert err.startswith("Error: 1 of 1 days failed:\n")
    assert f"{missing}: There is no export for {missing}" in err
    assert "Traceback" not in err

    write_export(missing, [order_row("O9", missing)])
    code, out, err = command("backfill", "--start", str(FIRST), "--end", str(missing))
    assert (code, err) == (0, "")
    assert "50.00" in out.splitlines()[-2]


def test_a_backfill_and_the_status_tell_what_is_in_no_revenue_and_what_was_rejected(
    published: Platform, command: Command, write_export: WriteExport
) -> None:
    """Mass rejection, orders too late, days without an export, and a start date set too late."""
    leave_out_checks(command.patch)
    day, early = DAYS[-1] + timedelta(days=1), published.settings.start_date - timedelta(days=2)
    late = [order_row(f"L{n}", day - timedelta(days=8 + n)) for n in range(2)]
    rows = [order_row("B", day, status="l[o]st"), *late, order_row("G", FIRST - timedelta(days=1))]
    rows.append(order_row("H", day, order_value_gbp="1000000"))
    write_export(day, rows)
    published.change(
        "INSERT INTO lake.raw_orders BY NAME SELECT * REPLACE ('EARLY' AS order_id,"
        f" DATE '{early}' AS order_date) FROM lake.raw_orders LIMIT 1",
        f"INSERT INTO lake.changed_days VALUES ('orders', DATE '{early}', 1, now())",
    )
    code, out, err = command("backfill", "--start", str(day), "--end", str(day))
    assert (code, "revenue GBP" in out) == (0, True)
    name = f"orders_{day:%Y_%m_%d}.csv"
    for text in (
        "Rejected rows by reason: 2 too_late, 1 unknown_status.",
        f"{day}: 3 of 5 rows (60%) were rejected, most of all 2 too_late, 1 unknown_status",
        f"  1 unknown_status in status, for example 'l[o]st', line 2 of {name}: `status` is none",
        "Rows in no revenue because they were too_late: 2; their day lay more than",
        " days before their export's, up to 9. To count them set RETAIL_LATE_DAYS=9 and run",
        f" `retail-assets backfill --start {day} --end {day} --all`.",
        f"Accepted orders in no revenue (before_start): 1, worth 10.00 GBP, of {early}; their day",
        f" lies before RETAIL_START_DATE: set that to {early} or earlier",
        f"Days without an export of their own: {FIRST - timedelta(days=1)}; completed orders",
    ):
        assert text in err
    code, out, _ = command("status", "--format", "json")
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["orders waiting"] == 1
    assert figures[f"waiting {early}"] == "1 orders, 10.00 GBP: before_start"
    assert figures["days above the rejected share"] == 1
    assert figures[f"rejected {day}"].startswith(f"{day}: 3 of 5 rows (60%) were rejected")
    assert "up to 9" in figures["too late"]


@pytest.mark.slow
def test_a_rate_that_comes_late_is_told_of_and_puts_the_revenue_right(
    published: Platform, command: Command, write_export: WriteExport
) -> None:
    leave_out_checks(command.patch)
    day = DAYS[-1] + timedelta(days=1)
    rows = [f"{order_row('E', day, order_value_gbp='100.00')},EUR", f"{order_row('G', day)},GBP"]
    write_export(day, rows, header=f"{HEADER},currency")
    code, out, err = command("backfill", "--start", str(day), "--end", str(day))
    assert (code, "10.00" in out.splitlines()[-2]) == (0, True)
    told = f"Rows in currencies without a rate: 1 (EUR of {day}); currency_rates.csv lacks"
    assert told in err
    _, out, _ = command("status", "--format", "json")
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["without a rate"].startswith(told)

    write_rates(published.settings, [f"{day},EUR,0.8709"])
    code, out, err = command("backfill", "--start", str(day), "--end", str(day))
    assert (code, "97.09" in out.splitlines()[-2]) == (0, True)
    assert "without a rate" not in err
    # A file that is gone takes nothing with it.
    (published.settings.reference_dir / "currency_rates.csv").unlink()
    assert published.run(automation.REFERENCE).success is False
    assert published.query("SELECT count(*) FROM currency_rates") == [(1,)]


def test_maintenance_keeps_the_numbers(published: Platform, command: Command) -> None:
    code, out, _ = command("maintain", "--keep-days", "0")
    assert code == 0
    assert "snapshots expired" in out
    assert published.query("SELECT sum(total_revenue)::VARCHAR FROM daily_revenue") == [("40.00",)]


def test_samples_are_written_for_the_days_that_were_asked_for(
    settings: Settings, command: Command
) -> None:
    arguments = ["--days", "3", "--orders-per-day", "5", "--events", "0", "--start", str(FIRST)]
    code, out, _ = command("generate", *arguments)
    assert code == 0
    assert "Files in" in out
    assert len(list(settings.exports_dir.iterdir())) == 3
    assert {path.name for path in settings.reference_dir.iterdir()} == {
        "products.csv",
        "customers.csv",
    }
