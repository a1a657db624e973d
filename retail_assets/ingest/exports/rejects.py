"""Rejected rows of order exports, for people: how many of each day, why, and an example."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_records import find_records
from retail_assets.lake.sql import literal
from retail_assets.mapping import NATIVE_EXPORTS, ExportMapping
from retail_assets.mapping.fields import TextField
from retail_assets.transforms import orders

SHOWN_REASONS = 3
"""How many reasons are shown of a day, the most frequent first."""

SHOWN_DAYS = 20
"""How many days are shown with their reasons, the newest ones: finding a line reads the file."""

SHOWN_LENGTH = 80
"""Characters of an example."""


@dataclass(frozen=True)
class Reason:
    """Rows rejected for one reason; `example` is what the first of them has in `field`, or is."""

    reason: str
    field: str | None
    rows: int
    record: int
    example: str


@dataclass(frozen=True)
class RejectedDay:
    """A day of whose export a large share was rejected, with the most frequent reasons."""

    day: date
    source_file: str
    rows_in: int
    rejected: int
    reasons: tuple[Reason, ...]
    mapping: ExportMapping = NATIVE_EXPORTS

    def summary(self) -> str:
        """One line: how much was rejected, and why."""
        why = ", ".join(f"{each.rows:,} {each.reason}" for each in self.reasons)
        return (
            f"{self.day}: {self.rejected:,} of {self.rows_in:,} rows"
            f" ({self.rejected / self.rows_in:.0%}) were rejected, most of all {why}"
        )

    def details(self, exports_dir: Path) -> list[str]:
        """A line for each reason: the field, an example with its line, and the rule."""
        lines = self._lines(exports_dir / self.source_file)
        return [
            f"{each.rows:,} {each.reason}"
            + (f" in {self.mapping.shown(each.field)}" if each.field else "")
            + f", for example {each.example!r}, {lines.get(each.record, f'record {each.record}')}"
            f" of {self.source_file}:"
            f" {orders.REASONS.get(each.reason, '')}"
            for each in self.reasons
        ]

    def _lines(self, path: Path) -> Mapping[int, str]:
        """Where the examples stand, by record; nothing if the file does not tell any more.

        They differ where fields have line ends in them, and after blank lines.
        """
        numbers = [each.record for each in self.reasons]
        records = find_records(path, numbers, self.mapping)
        try:
            return {record.number: f"line {record.line}" for record in records}
        except RetailAssetsError:
            return {}


def days_above(
    connection: duckdb.DuckDBPyConnection,
    share: float,
    first: date | None = None,
    last: date | None = None,
    *,
    mapping: ExportMapping = NATIVE_EXPORTS,
) -> list[RejectedDay]:
    """The days that rejected more than a share of their export's rows.

    Args:
        connection: a connection to the lake.
        share: from 0 to 1.
        first: the first export date to look at; None: all.
        last: the last one, included.
        mapping: how the exports are written.
    """
    value = value_of_field(mapping, "raw_text")
    found = connection.execute(
        "SELECT export_date, source_file, rows_in, rejected_rows FROM lake.export_files"
        " WHERE rejected_rows > ? * rows_in AND (?::DATE IS NULL OR export_date BETWEEN ? AND ?)"
        " ORDER BY export_date",
        [share, first, first, last],
    ).fetchall()
    reasons: dict[date, list[Reason]] = {day: [] for day, *_ in found}
    for day, *values in connection.execute(
        "SELECT export_date, reason, field, count(*) AS n, min(row_number),"
        " left(arg_min(coalesce(CASE WHEN field IS NOT NULL AND json_valid(raw_text)"
        f" THEN {value} END, raw_text), row_number), ?)"
        " FROM lake.rejected_orders WHERE export_date IN (SELECT unnest(?::DATE[]))"
        " GROUP BY export_date, reason, field"
        " QUALIFY row_number() OVER (PARTITION BY export_date ORDER BY n DESC, reason, field) <= ?"
        " ORDER BY export_date, n DESC, reason, field",
        [SHOWN_LENGTH, list(reasons), SHOWN_REASONS],
    ).fetchall():
        reasons[day].append(Reason(*values))
    return [
        RejectedDay(day, source_file, rows_in, rejected, tuple(reasons[day]), mapping)
        for day, source_file, rows_in, rejected in found
    ]


def value_of_field(mapping: ExportMapping, row: str) -> str:
    """Return SQL for what a rejected row has in the column `field`, null for no field of a mapping.

    Args:
        mapping: how the export is written.
        row: an expression for the row as a JSON object of its original fields.
    """
    fields: dict[str, TextField] = {**mapping.charges, **mapping.mapped}
    values = " ".join(
        f"WHEN {literal(name)} THEN {_value(field, row)}" for name, field in fields.items()
    )
    return f"CASE field {values} END"


def _value(field: TextField, row: str) -> str:
    """SQL for what a row has in the columns of a field, by name if there are several."""
    texts = {name: f"{row} ->> {literal(f'$.{json.dumps(name)}')}" for name in field.sources}
    if not texts:
        return literal(str(field.constant))
    if len(texts) == 1:
        return next(iter(texts.values()))
    named = (f"{literal(f'{name}: ')} || nullif({text}, '')" for name, text in texts.items())
    return f"coalesce(nullif(concat_ws(', ', {', '.join(named)}), ''), '')"


def counts(
    connection: duckdb.DuckDBPyConnection, first: date | None = None, last: date | None = None
) -> Mapping[str, int]:
    """How many rows were rejected for each reason, the most frequent first."""
    return dict(
        connection.execute(
            "SELECT reason, count(*) AS n FROM lake.rejected_orders WHERE ?::DATE IS NULL"
            " OR export_date BETWEEN ? AND ? GROUP BY reason ORDER BY n DESC, reason",
            [first, first, last],
        ).fetchall()
    )


def too_late(
    connection: duckdb.DuckDBPyConnection,
    late_days: int,
    first: date | None = None,
    last: date | None = None,
) -> str | None:
    """Advice on rows that were rejected as too late, if there are any.

    Args:
        connection: a connection to the lake.
        late_days: the setting RETAIL_LATE_DAYS.
        first: the first export date to look at; None: all.
        last: the last one, included.
    """
    rows, oldest, earliest, latest = connection.execute(
        # A time with an offset may lie a day off: the next run then says so again.
        "SELECT count(*), max(export_date - try_cast(left(trim(CASE WHEN json_valid(raw_text)"
        " THEN raw_text ->> 'order_timestamp' END), 10) AS DATE)), min(export_date),"
        " max(export_date) FROM lake.rejected_orders WHERE reason = 'too_late'"
        " AND (?::DATE IS NULL OR export_date BETWEEN ? AND ?)",
        [first, first, last],
    ).fetchone() or (0, None, None, None)
    if not rows:
        return None
    value = "a larger RETAIL_LATE_DAYS" if oldest is None else f"RETAIL_LATE_DAYS={oldest}"
    change = f"set {value} and " if oldest is None or oldest > late_days else ""
    return (
        f"Rows in no revenue because they were too_late: {rows:,}; their day lay more than"
        f" RETAIL_LATE_DAYS (now {late_days}) days before their export's"
        f"{f', up to {oldest}' if oldest else ''}."
        f" To count them {change}run"
        f" `retail-assets backfill --start {earliest} --end {latest} --all`."
    )
