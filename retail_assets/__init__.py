"""A data platform for retailers: batch and streaming from one set of rules, built on Dagster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from retail_assets.lake.reader import LakeReader


def connect(at: "int | datetime | None" = None) -> "LakeReader":
    """Open a DuckDB connection on the lake that executes queries and nothing else, for notebooks.

    Args:
        at: a snapshot id or a time with a zone, to read the lake as it was then.

    Returns:
        A connection whose default database is the lake: `connect().sql("FROM daily_revenue")`.
        `register(name, frame)` lets queries join a pandas or Arrow frame.

    Raises:
        RetailAssetsError: if there is no lake yet. So do statements that do not read the lake.
    """
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.reader import open_reader
    from retail_assets.settings import load_settings

    return open_reader(Lake.from_settings(load_settings()), at)
