"""A process killed at any commit boundary, and started again, ends with the same tables.

One undisturbed run leaves a copy of its data folder at each boundary: what SIGKILL there leaves.
From each copy the work is done again to the end, and all tables are compared. Within each COMMIT a
process really gets SIGKILL, and leaves the tables of one of these copies.
"""

import os
import signal
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from retail_assets.settings import Settings
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.faults.batch import contents, run_batch
from retail_assets_tests.faults.boundaries import make_lake, run_backfill, run_watched
from retail_assets_tests.faults.kill import Walk, copy, do
from retail_assets_tests.platform import CUSTOMERS, PRODUCTS, write_reference
from retail_assets_tests.processes import finish, start

pytestmark = pytest.mark.processes

DAYS = [date(2026, 10, day) for day in range(5, 10)]


def write(folder: Path, day: date, rows: Sequence[str], **options: str) -> None:
    path = write_export_to(folder, day, rows, **options)
    # The ledger has the time; the same file is to be the same wherever it is copied to.
    os.utime(path, (0, len(rows)))


def basket(order_id: str, day: date, **values: str) -> list[str]:
    """The lines of an order: a product and its value."""
    return [
        order_row(order_id, day, product_id=product, order_value_gbp=value)
        for product, value in values.items()
    ]


def first_exports(settings: Settings) -> None:
    """Three days: orders and baskets, late ones, rejects, and a file of no use."""
    write_reference(settings)
    one, two, three, _, _ = DAYS
    write(
        settings.exports_dir,
        one,
        [
            *(
                order_row(f"A{n}", one, order_value_gbp=f"{n}.10", region="North")
                for n in range(1, 16)
            ),
            order_row("A20", one, status="pending"),
            order_row("A21", one, order_value_gbp="0"),
            *basket("A40", one, P1="3.00", P2="4.00", P9="5.00"),
            *basket("A41", one, P1="6.00", P2="7.00"),
        ],
    )
    write(
        settings.exports_dir,
        two,
        [
            *(order_row(f"B{n}", two, region="South", product_id="P2") for n in range(12)),
            order_row("A1", one, status="returned", order_value_gbp="1.10"),
            order_row("A30", one, order_value_gbp="7.77"),
        ],
    )
    write(settings.exports_dir, three, ["C1,C1"], header="order_id,customer_id")


def corrections(settings: Settings) -> None:
    """The days after: other products and customers, a corrected file with a basket that lacks a
    line, one that is mended, a day with late orders, and one without its file."""
    write_reference(
        settings, PRODUCTS.replace("Kitchen", "Household"), CUSTOMERS.replace("loyal", "gold")
    )
    one, two, three, four, _ = DAYS
    write(
        settings.exports_dir,
        two,
        [
            *(order_row(f"B{n}", two, region="South", order_value_gbp="11.00") for n in range(4)),
            order_row("A1", one, status="completed", order_value_gbp="100.00"),
            *basket("A40", one, P2="4.50", P9="5.00"),
        ],
    )
    write(settings.exports_dir, three, [order_row(f"C{n}", three) for n in range(5)])
    write(
        settings.exports_dir,
        four,
        [
            *(order_row(f"D{n}", four) for n in range(3)),
            order_row("A2", one, status="refunded"),
            *basket("A41", one, P1="6.00", P2="7.00", P9="8.00"),
            order_row("B1", two, order_value_gbp="12.00", region="West"),
            order_row("Z1", date(2026, 9, 1)),
        ],
    )


@pytest.fixture(scope="module")
def first_day(tmp_path_factory, new_lake) -> Settings:
    """A lake without a row, and the first exports."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("first"), threads=1)
    new_lake(settings.data_dir)
    first_exports(settings)
    return settings


@pytest.fixture(scope="module")
def next_day(tmp_path_factory, first_day) -> Settings:
    """The lake with the first exports ingested, and the corrections."""
    settings = copy(first_day, tmp_path_factory.mktemp("next") / "data")
    do(run_batch, settings, DAYS[:3])
    corrections(settings)
    return settings


@pytest.fixture(scope="module")
def walk(tmp_path_factory, next_day) -> Walk:
    return Walk.of(run_batch, (DAYS,), next_day, tmp_path_factory.mktemp("walk"))


@pytest.mark.slow
def test_killed_at_any_commit_boundary_a_second_run_gives_the_same_tables(walk):
    assert walk.commits() == [
        "publish products",
        "publish customers",
        "note exports without new content",
        "ingest order exports",
        "publish completed_orders",
        "publish daily_revenue",
        "publish daily_revenue_by_category",
    ]
    assert len(walk.boundaries) == 3 * len(walk.commits())
    assert walk.wrong_after_a_kill_at_a_boundary() == {}


@pytest.mark.slow
def test_killed_in_the_middle_of_a_commit_all_of_it_is_there_or_nothing(walk, tmp_path):
    assert walk.wrong_after_a_kill_in_a_commit(tmp_path) == {}


@pytest.mark.slow
def test_a_backfill_of_dagsters_that_is_killed_is_completed_by_the_next_one(
    next_day, tmp_path, monkeypatch
):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    days = (DAYS[0], DAYS[-1])
    backfill = Walk.of(run_backfill, days, next_day, tmp_path)
    boundary = backfill.boundaries.index("before COMMIT of publish daily_revenue")
    killed = next_day.model_copy(update={"data_dir": backfill.states[boundary]})
    do(run_backfill, killed, *days)
    assert contents(killed) == backfill.expected


def test_a_second_run_commits_nothing(walk, tmp_path):
    # But for the day without a file, whose failure is noted each time.
    settings, days = copy(walk.calm, tmp_path / "twice"), DAYS[:4]
    expected = contents(settings)
    report = tmp_path / "boundaries"
    values = settings.model_dump()
    assert finish([start(run_watched, run_batch, values, (days,), str(report))]) == [0]
    assert report.read_text() == ""
    assert contents(settings) == expected


def test_killed_while_a_lake_is_made_the_next_one_makes_it_whole(tmp_path):
    report = tmp_path / "boundaries"
    calm = Settings(data_dir=tmp_path / "calm")
    values = calm.model_dump()
    assert finish([start(run_watched, make_lake, values, (), str(report))]) == [0]
    boundaries = report.read_text().splitlines()
    assert boundaries == [
        f"{when} of create tables" for when in ("before BEGIN", "before COMMIT", "after COMMIT")
    ]
    for number in range(len(boundaries)):
        settings = Settings(data_dir=tmp_path / f"killed {number}")
        values = settings.model_dump()
        killed = start(run_watched, make_lake, values, (), None, number)
        assert finish([killed]) == [-signal.SIGKILL]
        do(make_lake, settings)
        assert contents(settings) == contents(calm)
