"""Instants as the business's clock shows them, for whole arrays at once."""

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]

DAY_SECONDS = 86_400
# every change of clocks since 1970 happened on a quarter of an hour
_QUARTER_SECONDS = 900


def business_zone(name: str) -> ZoneInfo:
    """The time zone of that name; raises ValueError if there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not a known time zone, such as Europe/London") from error


def day_bounds(day: date, zone: ZoneInfo) -> tuple[int, int]:
    """First second of a business day and of the next, since 1970; 23 to 25 hours apart."""
    first = datetime.combine(day, time.min, zone)
    after = datetime.combine(day + timedelta(days=1), time.min, zone)
    return int(first.timestamp()), int(after.timestamp())


def utc_offsets(instants: Integers, zone: ZoneInfo) -> Integers:
    """Seconds the business's clock is ahead of UTC at each instant (seconds since 1970)."""
    quarters, where = np.unique(instants // _QUARTER_SECONDS, return_inverse=True)
    offsets = [_utc_offset(int(quarter) * _QUARTER_SECONDS, zone) for quarter in quarters]
    return np.array(offsets, dtype=np.int64)[where]


def offset_suffix(seconds: int) -> str:
    """An offset as ISO 8601 writes it: 3600 is `+01:00`."""
    sign = "-" if seconds < 0 else "+"
    return f"{sign}{abs(seconds) // 3600:02d}:{abs(seconds) % 3600 // 60:02d}"


def clock_texts(seconds: Integers) -> list[str]:
    """`YYYY-MM-DDTHH:MM:SS` of seconds since 1970 that already carry their offset."""
    texts: list[str] = np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()
    return texts


def _utc_offset(instant: int, zone: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(instant, zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())
