"""A mapping says how the data of other programs become ours; `RETAIL_MAPPING` names its file."""

from retail_assets.mapping.exports import ExportMapping
from retail_assets.mapping.model import Mapping, load

__all__ = ["ExportMapping", "Mapping", "load"]
