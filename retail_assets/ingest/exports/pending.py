"""Which files have yet to be ingested: what lies in the folders, compared with the ledger.

Looks at names, sizes and times alone, so that a sensor's tick stays short; the ingest itself
compares contents.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets import business_days
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.ingest.exports.reference import REFERENCE, reference_path
from retail_assets.ingest.ledgers.exports import ExportEntry, export_entries, mapping_hash
from retail_assets.lake.connection import Lake, NoLakeError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class PendingFile:
    """A file that the lake does not have as it is: size in bytes, modification time in ns."""

    path: Path
    size_bytes: int
    modified_ns: int

    @property
    def content(self) -> str:
        """The mark of this state of the file, which an earlier or later one does not share."""
        return f"{self.path.name}:{self.size_bytes}:{self.modified_ns}"


def pending_exports(
    settings: Settings, connection: "duckdb.DuckDBPyConnection | None" = None
) -> dict[date, PendingFile]:
    """The exports of partitions that have landed or were replaced since they were ingested.

    And those that other rules or settings would read differently now. Their paths are names alone.

    Args:
        settings: the folder or bucket, its days and rules.
        connection: a connection to the lake, if the caller has one; default: one is opened.

    Raises:
        RetailAssetsError: if the bucket of the exports cannot be reached.
    """
    newest = business_days.last_complete_day(settings)
    mapping = settings.export_mapping
    file_name, hashed = mapping.file_name, mapping_hash(mapping)
    found: dict[date, PendingFile] = {}

    def wanted(name: str) -> bool:
        day = file_name.day(name)
        return day is not None and settings.start_date <= day <= newest

    for file in ExportsLocation(settings.exports_location).files(wanted):
        if day := file_name.day(file.path):
            found[day] = PendingFile(Path(file.path), file.size_bytes, file.modified_ns)
    known = _ledger(settings, found) if connection is None else export_entries(connection, found)
    return {
        day: file
        for day, file in sorted(found.items())
        if not _is_known(file, known.get(day), settings, hashed)
    }


def _is_known(
    file: PendingFile, entry: ExportEntry | None, settings: Settings, mapping: str | None
) -> bool:
    return (
        entry is not None
        and (entry.source_file, entry.size_bytes, entry.modified_ns)
        == (file.path.name, file.size_bytes, file.modified_ns)
        and entry.up_to_date(
            late_days=settings.late_days, timezone=settings.timezone, mapping_hash=mapping
        )
    )


def _ledger(settings: Settings, days: Collection[date]) -> dict[date, ExportEntry]:
    try:
        with Lake.from_settings(settings).connect(read_only=True) as connection:
            return export_entries(connection, days)
    except NoLakeError:
        return {}


def reference_files(settings: Settings) -> dict[str, PendingFile]:
    """The reference files that are there, by the name of their table."""
    found = {}
    for table in REFERENCE:
        path = reference_path(settings.reference_dir, table)
        if path.is_file():
            stat = path.stat()
            found[table.name] = PendingFile(path, stat.st_size, stat.st_mtime_ns)
    return found
