"""Ingesting exports, and looking at what became of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retail_assets.ingest.exports.load import ExportResult, ingest
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings


@dataclass(frozen=True)
class ExportLoader:
    """A lake to ingest exports into, over one connection."""

    lake: Lake
    connection: duckdb.DuckDBPyConnection
    exports_dir: Path

    def ingest(self, *days: date, late_days: int = 7) -> ExportResult:
        return ingest(self.lake, self.connection, self.exports_dir, days, late_days=late_days)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()

    def orders(self, columns: str = "order_id") -> list[tuple[Any, ...]]:
        """These columns of the raw orders, by export and position."""
        return self.rows(f"SELECT {columns} FROM raw_orders ORDER BY export_date, row_number")

    def rejected(self, columns: str = "row_number, reason, field") -> list[tuple[Any, ...]]:
        """These columns of the rejected rows, by export and record."""
        return self.rows(f"SELECT {columns} FROM rejected_orders ORDER BY export_date, row_number")

    def versions(self) -> dict[date, int]:
        """How often each business day was changed."""
        return dict(self.rows("SELECT day, version FROM changed_days ORDER BY day"))


@pytest.fixture
def loader(lake: Lake, settings: Settings) -> Iterator[ExportLoader]:
    """An empty lake, connected, and the exports folder of `settings`."""
    # Tables this small take longer with more threads.
    lake = replace(lake, threads=1)
    with lake.connect() as connection:
        yield ExportLoader(lake, connection, settings.exports_dir)
