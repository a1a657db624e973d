"""What commands or other instances have published is shown as published."""

import shutil

import pytest

from retail_assets import tables
from retail_assets.defs.automation import published
from retail_assets_tests.platform import (
    DAGSTER_CALLS_ITSELF,
    DAYS,
    Platform,
    open_platform,
    published_platform,
)

pytestmark = DAGSTER_CALLS_ITSELF

ALL = {str(day) for day in DAYS}


@pytest.fixture
def platform(settings, tmp_path_factory):
    """Four days are published, and the instance that did it is gone."""
    with published_platform(settings, tmp_path_factory):
        pass
    shutil.rmtree(settings.data_dir / "dagster")
    with open_platform(settings) as found:
        yield found


def test_days_that_another_instance_published_are_materialized_here(platform: Platform):
    assert platform.materialized("daily_revenue") == set()
    platform.tick(published.SENSOR)
    for table in published.TABLES:
        assert platform.materialized(table.name) == ALL
    # A tick after that has nothing to say.
    assert platform.tick(published.SENSOR).asset_events == []


def test_only_what_is_missing_is_reported_and_a_few_days_at_a_time(platform: Platform, monkeypatch):
    monkeypatch.setattr(published, "MOST_DAYS", 3)
    reported = [
        [event.partition for event in platform.tick(published.SENSOR).asset_events]
        for _ in range(3)
    ]
    assert [sorted(set(days)) for days in reported] == [
        [str(day) for day in DAYS[:3]],
        [str(DAYS[3])],
        [],
    ]
    platform.change(
        "INSERT INTO lake.published_days BY NAME SELECT * REPLACE (now() AS published_at)"
        f" FROM lake.published_days WHERE table_name = '{tables.DAILY_REVENUE.name}'"
        f" AND day = DATE '{DAYS[0]}'"
    )
    assert platform.tick(published.SENSOR).asset_events == []
