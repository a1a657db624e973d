"""Writers and readers at the same time: no error, nothing lost, nothing half."""

from datetime import date
from pathlib import Path

import pytest

from retail_assets.ingest.exports.stale_days import stale_days
from retail_assets.settings import Settings
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.faults.batch import contents, run_batch
from retail_assets_tests.faults.concurrency import (
    REGIONS,
    publish_again_and_again,
    read_until,
    run_day,
)
from retail_assets_tests.platform import write_reference
from retail_assets_tests.processes import finish, start

DAYS = [date(2026, 10, day) for day in range(5, 9)]
TIMES = 6


@pytest.mark.processes
@pytest.mark.slow
def test_four_processes_write_different_days_and_two_read_all_the_time(lake, settings):
    values = settings.model_dump() | {"threads": 1}
    writers = [start(publish_again_and_again, values, day, TIMES) for day in DAYS]
    readers = [start(read_until, values, DAYS, TIMES, keep_open=keep) for keep in (True, False)]
    assert finish([*writers, *readers]) == [0] * 6
    found = contents(settings)
    assert [row[:3] for row in found["daily_revenue"]] == [
        (day, region, TIMES) for day in DAYS for region in REGIONS
    ]
    assert found["failed_days"] == []


def write_exports(settings: Settings) -> None:
    """Four days, each with orders of its own, a late one and newer versions of earlier ones."""
    write_reference(settings)
    for number, day in enumerate(DAYS):
        before = DAYS[max(0, number - 1)]
        rows = [order_row(f"{number}-{n}", day, region="North") for n in range(12)]
        rows.append(order_row(f"late {number}", before, order_value_gbp=f"{number}.99"))
        rows.append(order_row("moving", day, region="South"))
        rows.append(order_row(f"{max(0, number - 1)}-1", before, status="returned"))
        write_export_to(settings.exports_dir, day, rows)


def without_versions(settings: Settings) -> dict[str, list[tuple[object, ...]]]:
    """All tables; how often a day was changed depends on the order in which exports came."""
    found: dict[str, list[tuple[object, ...]]] = dict(contents(settings))
    found["changed_days"] = [row[:2] for row in found["changed_days"]]
    found["published_days"] = [(row[0], row[1], row[3]) for row in found["published_days"]]
    files = found["export_files"]
    found["export_files"] = [(*row[:3], *row[4:]) for row in files]  # modification times
    return found


@pytest.mark.processes
@pytest.mark.slow
def test_exports_of_different_days_ingested_at_once_give_the_tables_of_one_after_the_other(
    tmp_path, new_lake
):
    calm, busy = (Settings(data_dir=tmp_path / name, threads=1) for name in ("calm", "busy"))
    for settings in (calm, busy):
        new_lake(settings.data_dir)
        write_exports(settings)
        run_batch(settings, [])
    for day in DAYS:
        run_batch(calm, [day])
    started = Path(tmp_path / "started")
    started.mkdir()
    values = busy.model_dump()
    assert finish([start(run_day, values, day, str(started)) for day in DAYS]) == [0] * 4
    assert stale_days(busy) == {}
    assert without_versions(busy) == without_versions(calm)


def test_days_ingested_together_give_the_tables_of_one_after_the_other(tmp_path, new_lake):
    days = DAYS[:3]
    together, alone, backwards = (
        Settings(data_dir=tmp_path / name, threads=1) for name in ("together", "alone", "backwards")
    )
    for settings, batches in (
        (together, [days]),
        (alone, [[day] for day in days]),
        (backwards, [[day] for day in reversed(days)]),
    ):
        new_lake(settings.data_dir)
        write_exports(settings)
        for batch in batches:
            run_batch(settings, batch)
        assert stale_days(settings) == {}
    assert without_versions(together) == without_versions(alone)
    assert without_versions(backwards) == without_versions(alone)
