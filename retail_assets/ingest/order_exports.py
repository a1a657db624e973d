"""The old path of `retail_assets.ingest.exports.load`, which scripts of users may name."""

from retail_assets.ingest.exports.load import ExportResult as Ingested
from retail_assets.ingest.exports.load import ingest

__all__ = ["Ingested", "ingest"]
