"""The copied lake of the tests is the one that the platform makes."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import EventLoader, event

STATISTICS = """
    SELECT table_name, t.record_count, t.next_row_id, c.column_id, contains_null, contains_nan,
        min_value IS NULL, max_value IS NULL
    FROM ducklake_table_stats AS t JOIN ducklake_table USING (table_id)
    JOIN ducklake_table_column_stats AS c USING (table_id)
"""


@pytest.mark.slow
def test_a_first_row_leaves_the_same_statistics_in_a_copy_as_in_a_lake_made_from_nothing(
    new_lake: NewLake, tmp_path: Path
) -> None:
    made, copied = (Settings(data_dir=tmp_path / name) for name in ("made", "copied"))
    new_lake(copied.data_dir)
    found: list[set[Any]] = []
    for settings in (made, copied):
        with EventLoader.open(settings) as loader:
            loader.write("2026-10-12/a.jsonl", [event(1), event(2, product_id=None), "{"])
            loader.ingest()
        with closing(sqlite3.connect(settings.catalog)) as catalog:
            found.append(set(catalog.execute(STATISTICS)))
    of_made, of_copied = found
    assert {"raw_events", "enriched_events", "event_files"} <= {row[0] for row in of_made}
    with_rows = {row[0] for row in of_made}
    assert {row for row in of_copied if row[0] in with_rows} == of_made
    assert {row[1:3] for row in of_copied if row[0] not in with_rows} == {(0, 0)}
