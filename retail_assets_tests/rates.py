"""Currency rates of tests."""

from collections.abc import Iterable

import duckdb

from retail_assets import tables
from retail_assets.ingest.exports.reference import before_swap, read_reference
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_table
from retail_assets.settings import Settings

RATES = tables.CURRENCY_RATES


def write_rates(settings: Settings, rows: Iterable[str]) -> None:
    """Write currency_rates.csv: rows such as `2026-10-20,EUR,0.87`."""
    settings.reference_dir.mkdir(parents=True, exist_ok=True)
    lines = ("day,currency,rate", *rows)
    (settings.reference_dir / "currency_rates.csv").write_text("".join(f"{e}\n" for e in lines))


def load_rates(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    *rows: str,
    max_shrink: float = 0.5,
) -> None:
    """Write currency_rates.csv and load it, as `reference load` does."""
    write_rates(settings, rows)
    publish_table(
        lake,
        connection,
        RATES,
        read_reference(settings.reference_dir, RATES),
        before_swap=before_swap(RATES, lake, max_shrink=max_shrink),
    )
