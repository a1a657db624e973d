"""Compaction with the catalog in PostgreSQL, where readers show in the server's activity."""

from dataclasses import replace
from datetime import timedelta

import pytest

from retail_assets.lake.compaction import reliable_since
from retail_assets_tests.lake.test_compaction import (
    DAY,
    EAGER,
    ROWS,
    begin,
    begin_a_long_result,
    commit_events,
    compact,
    files,
    rows_of,
    snapshots,
)
from retail_assets_tests.lake.test_postgres import lake, model, server, settings

pytestmark = pytest.mark.processes

__all__ = ["lake", "model", "server", "settings"]


@pytest.mark.parametrize("read", [begin, begin_a_long_result])
def test_an_open_reader_keeps_its_files_and_history_is_thinned(lake, read):
    limits = replace(
        EAGER, expired_snapshots=3, merged_grace=timedelta(0), full_history=timedelta(0)
    )
    with lake.connect() as connection, lake.connect(read_only=True) as reader:
        connection.execute("INSERT INTO changed_days VALUES ('events', ?, 0, now())", [DAY])
        for number in range(6):
            commit_events(lake, connection, number * ROWS)
        now = rows_of(connection)
        before, end = read(reader)
        assert compact(lake, connection, limits)["merge"] == 6
        kept = files(lake)
        assert compact(lake, connection, limits)["delete"] == 0
        if before is not None:
            assert rows_of(reader) == before == now
        end()
        assert compact(lake, connection, limits)["delete"] == 6
        assert len(files(lake)) == len(kept) - 6
        assert compact(lake, connection, replace(limits, max_snapshots=3))["expire"] >= 3
        assert reliable_since(connection) in snapshots(connection)
        assert rows_of(reader) == rows_of(connection) == now
