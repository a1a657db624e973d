"""Files in the exports folder that are not ingested: a name is easily almost right."""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, timedelta

from retail_assets import business_days
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.ingest.exports.split import unsplit_exports
from retail_assets.mapping.file_name import FileName
from retail_assets.settings import Settings

_DATES = tuple(
    (re.compile(rf"(?<!\d){pattern}(?!\d)"), places)
    for pattern, places in (
        (r"(\d{4})[^0-9](\d{1,2})[^0-9](\d{1,2})", (1, 2, 3)),
        (r"(\d{4})(\d{2})(\d{2})", (1, 2, 3)),
        # Day and month cannot be told apart; both readings serve as a hint.
        (r"(\d{1,2})[^0-9](\d{1,2})[^0-9](\d{4})", (3, 2, 1)),
        (r"(\d{1,2})[^0-9](\d{1,2})[^0-9](\d{4})", (3, 1, 2)),
    )
)


def other_exports(settings: Settings) -> dict[str, str]:
    """The files that are not ingested, by their path in the exports folder, each with the reason.

    Hidden files, today's export, which waits for the end of the day, and names after the first
    `location.MAX_ENTRIES` are left out.
    """
    newest = business_days.last_complete_day(settings)
    file_name = settings.export_mapping.file_name
    reasons: dict[str, str] = {
        name: f"could not be split into days: {problem}"
        for name, problem in unsplit_exports(settings).items()
    }
    of_many_days = settings.source_mapping.exports.file_name
    for name in ExportsLocation(settings.exports_location).names():
        day = file_name.day(name)
        if day is None and not of_many_days.has_date and of_many_days.matches(name):
            continue
        if day is None:
            called = f"{file_name.shown} or {'.csv' * file_name.shown.endswith('.csv')}.gz"
            reasons[name] = f"is not called {called}, in exports/ itself"
        elif day < settings.start_date:
            reasons[name] = (
                f"lies before the first partition, RETAIL_START_DATE={settings.start_date}"
            )
        elif day > newest + timedelta(days=1):
            reasons[name] = "is dated in the future"
    return dict(sorted(reasons.items()))


def lookalikes(location: ExportsLocation, file_name: FileName) -> Mapping[date, list[str]]:
    """The files with other names than exports have, by the dates in their paths."""
    found: dict[date, list[str]] = {}
    for name in location.names():
        if file_name.day(name) is None:
            for day in _dates(name):
                found.setdefault(day, []).append(name)
    return found


def _dates(name: str) -> set[date]:
    days = set()
    for pattern, places in _DATES:
        for match in pattern.finditer(name):
            with suppress(ValueError):
                days.add(date(*(int(match[place]) for place in places)))
    return days
