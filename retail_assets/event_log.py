"""The old path of `retail_assets.defs.instance.event_log`, which a dagster.yaml may name."""

from retail_assets.defs.instance.event_log import PooledSqliteEventLogStorage

__all__ = ["PooledSqliteEventLogStorage"]
