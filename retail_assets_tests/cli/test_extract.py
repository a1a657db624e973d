"""`retail-assets extract`, as it is typed."""

import re
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retail_assets import business_days
from retail_assets.cli import app as cli
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.cli.test_cli import Command
from retail_assets_tests.extract.shops import ORDERS, declare, postgres_shop
from retail_assets_tests.platform import leave_out_checks, write_reference

DAY = date(2026, 10, 12)
RANGE = ["extract", "--start", str(DAY), "--end", "2026-10-13"]


def run(capture: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command in this process; returns its exit code and all that it printed."""
    with pytest.MonkeyPatch.context() as patch:
        code, out, err = Command(patch, capture)(*arguments)
    return code, out + err


@pytest.fixture
def declared(
    settings: Settings, lake: Lake, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    shop = postgres_shop(postgres)
    shop.create()
    shop.order("1", f"{DAY} 10:00:00")
    shop.order("2", f"{DAY} 10:00:00", "2026-10-13 10:00:00")
    declared = declare(settings, shop, {"orders": ORDERS})
    monkeypatch.setenv("RETAIL_MAPPING", str(declared.mapping))
    monkeypatch.setenv("RETAIL_DATABASE_URL", shop.url)
    return declared


@pytest.mark.processes
def test_it_prints_days_rows_and_the_snapshot(
    declared: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = run(capfd, *RANGE)
    assert code == 0, printed
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    assert [str(DAY), "orders_2026_10_12.csv", "2", "0", "written"] in lines
    assert ["2026-10-13", "orders_2026_10_13.csv", "1", "1", "written"] in lines
    assert ["orders", "", "3", "1", ""] in lines
    assert "From one snapshot: server PostgreSQL" in printed
    assert re.search(r"last extracted day +│ 2026-10-13", run(capfd, "status")[1])
    assert "secret" not in printed


@pytest.mark.processes
def test_a_file_of_somebody_else_is_named_and_replaced_if_asked(
    declared: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    path = business_days.export_paths(declared.exports_dir, DAY)[0]
    path.parent.mkdir()
    path.write_text("by hand")
    code, printed = run(capfd, *RANGE)
    assert code == 1
    assert f"{DAY}: {path} was not written by" in printed
    code, printed = run(capfd, *RANGE, "--replace")
    assert code == 0
    assert path.read_text().startswith("order_id,")


def test_nothing_declared_and_wrong_days_are_wrong_usage(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = run(capfd, *RANGE)
    assert (code, "No database is declared" in printed) == (2, True)
    code, printed = run(capfd, "extract", "--start", "2026-10-13", "--end", "2026-10-12")
    assert (code, "lies after the end" in printed) == (2, True)


def test_help_says_what_it_does() -> None:
    assert "--replace" in CliRunner().invoke(cli.app, ["extract", "--help"]).output


@pytest.mark.processes
def test_the_readme_takes_a_table_to_revenue_in_three_commands(
    settings: Settings,
    postgres: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("**From a PostgreSQL table.**")[2]
    mapping, commands = re.findall(r"```(?:yaml|sh)\n(.*?)```", section, re.DOTALL)[:2]
    shop = postgres_shop(postgres)
    shop.execute(
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.orders (id int PRIMARY KEY, customer text, sku text, region text,"
        " status text, total numeric, placed_at timestamptz, updated_at timestamptz)",
        "INSERT INTO shop.orders SELECT n, 'C' || n, 'P1', 'North', 'completed', n + 0.50,"
        " '2026-10-05 12:00+00'::timestamptz + n * interval '1 day', now()"
        " FROM generate_series(0, 9) AS n",
    )
    (settings.data_dir / "mapping.yaml").write_text(mapping)
    monkeypatch.chdir(settings.data_dir)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    first, *others = commands.strip().splitlines()
    for name, value in re.findall(r"(RETAIL_\w+)=(\S+)", first):
        monkeypatch.setenv(name, shop.url if name == "RETAIL_DATABASE_URL" else value)
    leave_out_checks(monkeypatch)
    write_reference(settings)
    for line in others:
        code, printed = run(capfd, *line.split()[1:])
        assert code == 0, printed
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        found = connection.execute("SELECT sum(total_revenue) FROM daily_revenue").fetchone()
    assert found == (Decimal("50.00"),)
