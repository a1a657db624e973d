"""Prints rows for people and programs: tables, CSV and JSON.

Text from outside (ids, file names, payloads) is never read as markup, and control characters, which
could steer a terminal, are made visible. Numbers are never cut.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retail_assets.lake.sql import numbered
from retail_assets.visible_text import visible

NARROWEST = 8
"""The width to which a column of texts is folded before a table exceeds the terminal."""


_TEXT_FOR_FLOATS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def print_message(console: Console, *lines: str, style: str = "") -> None:
    """Print a message; newlines within a line, from a path or text, are made visible."""
    console.print(Text("\n".join(map(visible, lines)), style), soft_wrap=True)


def cell(value: Any) -> str:
    """A value as a cell: numbers with commas, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return ", ".join(map(cell, value)) or "none"
    return f"{value:,}" if isinstance(value, int | float | Decimal) else visible(str(value))


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[bool],
    title: str | None = None,
    footer: Sequence[str] | None = None,
) -> None:
    """Print a table; lines may exceed the terminal, so that numbers are whole.

    Args:
        console: where to print.
        columns: the heads.
        rows: the cells.
        numbers: whether a column has numbers: these are aligned to the right and never folded.
        title: the line above the table.
        footer: a last row, of sums.
    """
    table = Table(title=title, show_footer=footer is not None)
    width = 1
    for n, (name, numeric) in enumerate(zip(columns, numbers, strict=True)):
        cells = [row[n] for row in rows] + ([footer[n]] if footer is not None else [])
        widest = max((Text(text).cell_len for text in cells), default=0)
        least = widest if numeric else min(max(widest, Text(visible(name)).cell_len), NARROWEST)
        width += least + 3
        table.add_column(
            Text(visible(name)),
            Text(footer[n]) if footer is not None else "",
            justify="right" if numeric else "left",
            # People copy ids: these must not be cut.
            overflow="fold",
            no_wrap=numeric,
            min_width=least,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    if width > console.width:
        console = Console(file=console.file, width=width)
    console.print(table)


def print_rows(console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print the rows of a query as a table; None is blank."""
    found = list(rows)
    numbers = [
        any(row[n] is not None for row in found)
        and all(row[n] is None or _is_number(row[n]) for row in found)
        for n in range(len(columns))
    ]
    texts = [["" if value is None else visible(str(value)) for value in row] for row in found]
    print_table(console, columns, texts, numbers=numbers)


def write_csv(file: IO[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV; on a terminal, control characters are made visible."""
    writer = csv.writer(file, lineterminator="\n")
    on_terminal = file.isatty()

    def shown(values: Iterable[Any]) -> list[Any]:
        if not on_terminal:
            return list(values)
        return [
            visible(str(value)) if isinstance(value, str | list | dict) else value
            for value in values
        ]

    writer.writerow(shown(columns))
    writer.writerows(map(shown, rows))


def write_json(file: IO[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as a strict JSON list of objects.

    Decimals, times, NaN and infinities are texts, bytes are hexadecimal. Columns of one name are
    numbered.
    """
    names = numbered(columns)
    separator = "[\n  "
    for row in rows:
        record = {name: _plain(value) for name, value in zip(names, row, strict=True)}
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=2)
        file.write(separator + visible(text, keep="\n").replace("\n", "\n  "))
        separator = ",\n  "
    file.write("\n]\n" if separator.startswith(",") else "[]\n")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A value as strict JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _TEXT_FOR_FLOATS[str(value)]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else str(value)
