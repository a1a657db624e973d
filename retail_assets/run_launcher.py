"""The old path of `retail_assets.defs.instance.run_launcher`, which a dagster.yaml may name."""

from retail_assets.defs.instance.run_launcher import WatchfulRunLauncher

__all__ = ["WatchfulRunLauncher"]
