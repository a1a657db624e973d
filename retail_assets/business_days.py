"""Business days: complete days, ranges of days, and the names of export files."""

from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from retail_assets.errors import UsageError

if TYPE_CHECKING:
    from retail_assets.settings import Settings


def days_between(first: date, last: date) -> list[date]:
    """All days from the first to the last, both included."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def last_complete_day(settings: "Settings") -> date:
    """The newest day that is complete: yesterday in the business time zone."""
    return datetime.now(ZoneInfo(settings.timezone)).date() - timedelta(days=1)


def check_range(settings: "Settings", first: date, last: date) -> list[date]:
    """The days of a range, as a user gave it.

    Raises:
        UsageError: if the range is empty or has days that are no partitions.
    """
    newest = last_complete_day(settings)
    if first > last:
        raise UsageError(f"The start {first} lies after the end {last}: swap them.")
    if first < settings.start_date:
        raise UsageError(
            f"{first} lies before the first partition {settings.start_date}:"
            " set RETAIL_START_DATE to the first day of your history."
        )
    if last > newest:
        raise UsageError(
            f"{last} lies after {newest}, the last complete day in {settings.timezone}:"
            " choose an earlier end."
        )
    return days_between(first, last)


def export_paths(folder: Path, day: date) -> tuple[Path, Path]:
    """The two names under which a day's export may lie: plain and compressed."""
    plain = folder / f"orders_{day:%Y_%m_%d}.csv"
    return plain, plain.with_name(plain.name + ".gz")


def ranges(days: Iterable[date], at_most: int | None = None) -> Iterator[tuple[date, date]]:
    """The contiguous ranges of some days, earliest first: the first and last day of each.

    Args:
        days: the days, in any order.
        at_most: how many days a range may have; None: any number.
    """
    first = previous = None
    for day in sorted(set(days)):
        if first is None or previous is None:
            first = day
        elif day != previous + timedelta(days=1) or (day - first).days == at_most:
            yield first, previous
            first = day
        previous = day
    if first is not None and previous is not None:
        yield first, previous
