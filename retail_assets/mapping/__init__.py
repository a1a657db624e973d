"""A mapping says how the data of other programs become ours; `RETAIL_MAPPING` names its file."""

from retail_assets.mapping.exports import NATIVE_EXPORTS, ExportMapping
from retail_assets.mapping.model import Mapping, load

__all__ = ["NATIVE_EXPORTS", "ExportMapping", "Mapping", "load"]
