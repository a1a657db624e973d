"""The old place of `retail_assets.ingest.exports.load`, which scripts of users may name."""

from retail_assets.ingest.exports.load import Ingested, ingest

__all__ = ["Ingested", "ingest"]
