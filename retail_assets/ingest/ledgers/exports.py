"""The ledger of exports: which file each day's raw orders come from, and by which rules.

A file is ingested again when its bytes have changed, or when the settings or rules that it was
validated with have, as far as these concern it.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

import duckdb

from retail_assets.mapping import NATIVE_EXPORTS, ExportMapping
from retail_assets.mapping.model import fingerprint
from retail_assets.transforms.orders import RULES_VERSION

UNRECORDED_LATE_DAYS = 7
"""The default of RETAIL_LATE_DAYS while the ledger did not record it."""


@dataclass(frozen=True)
class ExportEntry:
    """The ledger's entry of an export; the last five are None in entries of older versions.

    `mapping_hash` is that of the mapping, None without one; `max_days_late` is how many days before
    its export the earliest of its orders lies, rejected ones included.
    """

    source_file: str
    size_bytes: int
    modified_ns: int
    content_hash: str
    raw_rows: int
    rejected_rows: int
    rules_version: int | None
    timezone: str | None
    late_days: int | None
    max_days_late: int | None
    mapping_hash: str | None

    def up_to_date(self, *, late_days: int, timezone: str, mapping_hash: str | None) -> bool:
        """Whether the rules, the mapping and the settings of today would give the same rows."""
        if self.mapping_hash != mapping_hash:
            return False
        if self.rules_version is None:
            # Which setting it was is unknown; rows that were rejected may be accepted now.
            return late_days == UNRECORDED_LATE_DAYS and not self.rejected_rows
        if self.rules_version != RULES_VERSION or self.timezone != timezone:
            return False
        if self.late_days is None or self.max_days_late is None or self.late_days == late_days:
            return True
        return self.max_days_late <= min(self.late_days, late_days)


def mapping_hash(mapping: ExportMapping) -> str | None:
    """The hash of a mapping as the ledger has it; None without a mapping."""
    return None if mapping == NATIVE_EXPORTS else fingerprint(mapping)


def export_entries(
    connection: duckdb.DuckDBPyConnection, days: Collection[date]
) -> dict[date, ExportEntry]:
    """The entries of some export dates, where there are any."""
    if not days:
        return {}
    # All columns: a lake that nobody has written to since has not all of them.
    found = connection.execute(
        "FROM lake.export_files WHERE export_date BETWEEN ? AND ?", [min(days), max(days)]
    )
    names = [name for name, *_ in found.description or ()]
    wanted = set(days)
    entries: dict[date, ExportEntry] = {}
    for values in found.fetchall():
        row = dict(zip(names, values, strict=True))
        if row["export_date"] not in wanted:
            continue
        columns: dict[str, Any] = {each.name: row.get(each.name) for each in fields(ExportEntry)}
        entries[row["export_date"]] = ExportEntry(**columns)
    return entries
