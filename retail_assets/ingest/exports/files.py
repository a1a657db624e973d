"""An order export as a file: where it lies, and what its rows look like."""

import re
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_file import CsvFile, RowFormat
from retail_assets.mapping.exports import CURRENCY, NATIVE_EXPORTS, OPTIONAL, ExportMapping
from retail_assets.transforms.orders import STATUSES

DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"

GZIP_RATIO = 8
"""Bytes that a byte of a compressed export is assumed to hold."""


@dataclass(frozen=True, kw_only=True)
class ExportFile(CsvFile):
    """A day's export as it lies in the exports folder."""

    day: date
    mapping: ExportMapping = NATIVE_EXPORTS

    @property
    def weight(self) -> int:
        """About how many bytes it holds when it is not compressed."""
        return weight_of(self.path.name, self.size_bytes)


def weight_of(name: str, size_bytes: int) -> int:
    """About how many bytes a file of this name holds when it is not compressed."""
    return size_bytes * (GZIP_RATIO if name.endswith(".gz") else 1)


class MissingExportError(RetailAssetsError):
    """There is no export of a day."""


def row_format(mapping: ExportMapping) -> RowFormat:
    """What the rows of exports look like: each has a status or a date."""
    statuses = "|".join(map(re.escape, (*STATUSES, *map(str.lower, mapping.fields.status.values))))
    optional: tuple[str, ...] = () if mapping.fields.says_currency else (CURRENCY,)
    if mapping == NATIVE_EXPORTS:
        optional = OPTIONAL
    required = tuple(name for name in mapping.sources if name not in optional)
    return RowFormat(required, re.compile(rf"({statuses})\Z|{DATE}"), optional, mapping)


class ExportFolder:
    """The exports in a folder, by day.

    Args:
        folder: where they lie.
        mapping: what they are called and how they are written.
    """

    def __init__(self, folder: Path, mapping: ExportMapping = NATIVE_EXPORTS) -> None:
        self._folder, self._mapping, self.file_name = folder, mapping, mapping.file_name
        self._rows = row_format(mapping)

    def locate(self, day: date) -> ExportFile:
        """Find the export of a day.

        Raises:
            MissingExportError: if there is none.
            RetailAssetsError: if there are several, such as a plain and a compressed one.
        """
        found = self.paths(day)
        plain = self._folder / self.file_name.of_day(day)
        if not found:
            raise MissingExportError(
                f"There is no export for {day}: neither {plain} nor {plain.name}.gz exists."
                " Put the file there and run the day again."
            )
        if len(found) > 1:
            raise RetailAssetsError(
                f"There are {_COUNTS.get(len(found), len(found))} exports for {day},"
                f" {found[0]} and {found[1].name}: remove one of them."
            )
        stat = found[0].stat()
        return ExportFile(
            found[0], self._rows, stat.st_size, stat.st_mtime_ns, day=day, mapping=self._mapping
        )

    def paths(self, day: date) -> list[Path]:
        """The files of a day, the plain one first."""
        if "*" in self.file_name.pattern:
            return self._listed.get(day, [])
        plain = self._folder / self.file_name.of_day(day)
        both = (plain, plain.with_name(plain.name + ".gz"))
        return [path for path in both if path.is_file()]

    def days(self) -> list[date]:
        """The days that have files, in order."""
        return sorted(self._listed)

    @cached_property
    def _listed(self) -> dict[date, list[Path]]:
        found: dict[date, list[Path]] = {}
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            day = self.file_name.day(path.name)
            if day is not None and path.is_file():
                found.setdefault(day, []).append(path)
        return found


_COUNTS = {2: "two"}
