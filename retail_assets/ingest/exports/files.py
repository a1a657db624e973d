"""An order export as a file: where it lies, and what its rows look like."""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from retail_assets import business_days
from retail_assets.engines.duckdb import OPTIONAL, REQUIRED
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import CsvFile, RowFormat
from retail_assets.transforms.orders import STATUSES

DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"

ROWS = RowFormat(REQUIRED, re.compile(rf"({'|'.join(STATUSES)})\Z|{DATE}"), OPTIONAL)
"""A row of an export has a status or a date."""

GZIP_RATIO = 8
"""Bytes that a byte of a compressed export is assumed to hold."""


@dataclass(frozen=True, kw_only=True)
class ExportFile(CsvFile):
    """A day's export as it lies in the exports folder."""

    day: date

    @property
    def weight(self) -> int:
        """About how many bytes it holds when it is not compressed."""
        return self.size_bytes * (GZIP_RATIO if self.path.suffix == ".gz" else 1)


class MissingExportError(RetailAssetsError):
    """There is no export of a day."""


def locate(exports_dir: Path, day: date) -> ExportFile:
    """Find the export of a day.

    Raises:
        MissingExportError: if there is none.
        RetailAssetsError: if there are both a plain and a compressed one.
    """
    plain, compressed = business_days.export_paths(exports_dir, day)
    found = [path for path in (plain, compressed) if path.is_file()]
    if not found:
        raise MissingExportError(
            f"There is no export for {day}: neither {plain} nor {compressed.name} exists."
            " Put the file there and run the day again."
        )
    if len(found) > 1:
        raise RetailAssetsError(
            f"There are two exports for {day}, {plain} and {compressed.name}: remove one of them."
        )
    stat = found[0].stat()
    return ExportFile(found[0], ROWS, stat.st_size, stat.st_mtime_ns, day=day)
