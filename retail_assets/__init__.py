"""A data platform for retailers: batch and streaming from one set of rules, built on Dagster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb


def connect(at: "int | datetime | None" = None) -> "duckdb.DuckDBPyConnection":
    """Open a read-only DuckDB connection on the lake, for notebooks.

    Args:
        at: a snapshot id or a time with a zone, to read the lake as it was then.

    Returns:
        A connection whose default database is the lake: `connect().sql("FROM daily_revenue")`.

    Raises:
        RetailAssetsError: if there is no lake yet.
    """
    from retail_assets.lake.connection import Lake
    from retail_assets.settings import load_settings

    return Lake.from_settings(load_settings()).open(read_only=True, at=at)
