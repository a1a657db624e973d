"""A publisher that is killed leaves a mart that the next one brings to the rows of the lake."""

import signal

import pytest

from retail_assets.outbound.marts.publish import publish as publish_mart
from retail_assets.settings import Settings
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish
from retail_assets_tests.outbound.marts import dying
from retail_assets_tests.outbound.marts.conftest import target_of
from retail_assets_tests.outbound.marts.places import FolderPlace
from retail_assets_tests.outbound.marts.test_publish import (
    NAMES,
    assert_equal,
    days_of,
)
from retail_assets_tests.processes import finish, start

pytestmark = pytest.mark.processes


def values_of(lake, place):
    data_dir = lake.spill_dir.removesuffix("/lake/spill")
    return Settings(data_dir=data_dir, threads=1).model_dump() | place.settings


def test_killed_before_its_commit_a_round_leaves_no_trace_in_a_database(lake, database):
    target = target_of(lake, database)
    values = values_of(lake, database)
    # The first round: tables may be there, without rows.
    assert finish([start(dying.die_at, values, ("write", 2))]) == [-signal.SIGKILL]
    assert target.watermarks() == {}
    publish_mart(lake, target)
    assert_equal(lake, database)
    publish(lake, [(FIRST, "North", "7.00"), (THIRD, "North", "4.00")], [FIRST, SECOND, THIRD])
    before = [database.rows(name) for name in NAMES], target.watermarks()
    for step in (("write", 1), ("set_watermark", 1), ("write", 2), dying.COMMIT):
        assert finish([start(dying.die_at, values, step)]) == [-signal.SIGKILL], step
        assert ([database.rows(name) for name in NAMES], target.watermarks()) == before, step
    published = publish_mart(lake, target)
    assert days_of(published)["daily_revenue"] == [FIRST, SECOND, THIRD]
    assert_equal(lake, database)


def test_killed_after_any_file_the_next_round_writes_the_others(lake, tmp_path):
    place = FolderPlace(tmp_path / "mart", "parquet")
    target = target_of(lake, place)
    values = values_of(lake, place)
    codes = []
    # The first file is the watermark that says whose the files are.
    for renames in range(1, 12):
        n = str(renames)
        publish(lake, [(FIRST, "North", n), (SECOND, "North", n)], [FIRST, SECOND, THIRD])
        codes += finish([start(dying.die_after_renames, values, renames)])
        # Whole files: each day has its rows of before or of now.
        for name in NAMES:
            place.rows(name)
        if codes[-1] != -signal.SIGKILL:
            break
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 6
    assert_equal(lake, place)
    assert days_of(publish_mart(lake, target)) == {}
    assert target.watermarks()["daily_revenue"].snapshot_id == lake_snapshot(lake)


def lake_snapshot(lake):
    from retail_assets.lake.connection import current_snapshot

    with lake.connect(read_only=True) as connection:
        return current_snapshot(connection)
