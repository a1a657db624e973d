"""A data platform for retailers: batch and streaming from one set of rules, built on Dagster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from retail_assets.lake.reader import LakeReader


def connect(at: "int | datetime | None" = None) -> "LakeReader":
    """Open the lake that the `RETAIL_*` settings name, for queries and nothing else.

    `connect().sql("FROM daily_revenue").df()` is a table as a pandas frame, with the columns and
    units of the data dictionary: money is GBP, a date is a day in the business time zone.

    Args:
        at: a snapshot id, or a time with a zone, to read the lake as it was then.

    Returns:
        A DuckDB connection whose default database is the lake, to be closed or used in `with`.

    Raises:
        UsageError: for a setting that cannot be used.
        RetailAssetsError: if there is no lake, or no such snapshot.
    """
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.reader import open_reader
    from retail_assets.settings import load_settings

    return open_reader(Lake.from_settings(load_settings()), at)
