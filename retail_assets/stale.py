"""Which days are behind: their published numbers are older than what is in the lake."""

from datetime import date

from retail_assets import partitions, tables
from retail_assets.lake import days as ledger
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings

RESTATED = (tables.COMPLETED_ORDERS, tables.DAILY_REVENUE, tables.DAILY_REVENUE_BY_CATEGORY)
"""The tables that follow from raw orders and are recomputed when those change."""


def stale_days(settings: Settings) -> dict[date, int]:
    """The partitions that some restated table lacks or has from older orders.

    Returns:
        The days in order, each with the version of its orders that is the newest.
    """
    newest = partitions.last_partition(settings)
    stale: set[date] = set()
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            for table in RESTATED:
                stale.update(ledger.stale_days(connection, table, tables.RAW_ORDERS))
            known = ledger.versions(connection, "orders", stale)
    except NoLakeError:
        return {}
    return {day: known[day] for day in sorted(stale) if settings.start_date <= day <= newest}
