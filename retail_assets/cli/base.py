"""Shared by the groups of sub-commands: printing, and opening a lake."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from rich.console import Console

from retail_assets.cli.printing import (
    cell,
    print_message,
    print_rows,
    print_table,
    write_csv,
    write_json,
)
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.explain import explain_text
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

out = Console()
err = Console(stderr=True)


class Format(str, Enum):
    """How `query` prints."""

    table = "table"
    csv = "csv"
    json = "json"


def tell(*lines: str, style: str = "") -> None:
    """Print a message on standard error."""
    print_message(err, *lines, style=style)


@contextmanager
def standard_error() -> Iterator[Console]:
    """A copy of standard error: while a step runs, Dagster captures the original."""
    if not err.is_terminal:
        yield err
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        yield Console(file=stream)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a library's error on wrong arguments into a usage error."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (OSError, ModuleNotFoundError) as error:
        reason = explain_text(f"{type(error).__name__}: {error}") or str(error)
        raise RetailAssetsError(reason) from error


def progress_bar(*, of_bytes: bool = False) -> "Progress":
    """A progress bar on standard error, if that is a terminal; it counts items, or bytes."""
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if of_bytes else MofNCompleteColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def connect_to_read(settings: Settings, at: int | datetime | None = None) -> Any:
    """Connect to the lake, read-only, perhaps as it was at a snapshot or a time."""
    from retail_assets.lake.connection import Lake

    return Lake.from_settings(settings).connect(read_only=True, at=at)


def snapshot_of(settings: Settings, text: str | None) -> int | datetime | None:
    """A snapshot id, or a time; one without an offset is in the business time zone."""
    from zoneinfo import ZoneInfo

    if text is None:
        return None
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise UsageError(
            f"--at {text!r} is neither a snapshot id nor a time such as 2026-11-01T08:00."
        ) from error
    return when if when.tzinfo else when.replace(tzinfo=ZoneInfo(settings.timezone))


def print_summary(title: str, counts: dict[str, Any]) -> None:
    """Print counts by name; those of a mapping with their sum and one by one."""
    rows: list[tuple[str, str]] = []
    for name, value in counts.items():
        if isinstance(value, dict):
            rows.append((name.replace("_", " "), cell(sum(value.values()))))
            rows += [(f"  {key.replace('_', ' ')}", cell(count)) for key, count in value.items()]
        else:
            rows.append((name.replace("_", " "), cell(value)))
    print_table(out, ("what", "how many"), rows, numbers=(False, False), title=title)


PRINTERS: dict[Format, Callable[[Sequence[str], Iterable[Sequence[Any]]], None]] = {
    Format.table: lambda columns, rows: print_rows(out, columns, rows),
    Format.csv: lambda columns, rows: write_csv(sys.stdout, columns, rows),
    Format.json: lambda columns, rows: write_json(sys.stdout, columns, rows),
}
