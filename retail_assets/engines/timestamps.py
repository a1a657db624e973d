"""Reads times in unambiguous spellings.

These are ISO 8601 with `T` or a blank, optional seconds and fractions, an optional offset from UTC
(also after a blank, also `UTC`, `GMT` or `Z`), and hours from 1 to 12 with AM or PM. Ambiguous
times (05/10/2026), and texts that are no time (24:00, 2026-13-05, an epoch), are null.
"""

from retail_assets.lake.sql import literal

DAY = r"\d{4}-\d{2}-\d{2}"
MINUTE = r"([01]\d|2[0-3]):[0-5]\d"
CLOCK = rf"{MINUTE}:[0-5]\d(\.\d{{1,9}})?"
OFFSET = r"([Zz]|[+-](0\d|1[0-4])(:?[0-5]\d)?)"

LOCAL_TIME = rf"{DAY}([T ]({CLOCK}|{MINUTE}))?"
"""Texts that DuckDB casts to TIMESTAMP as they are."""

OFFSET_TIME = rf"{DAY}[T ]{CLOCK}{OFFSET}"
"""Texts that DuckDB casts to TIMESTAMPTZ as they are, except a small z."""

_OTHER_TIME = (
    rf"^(?i)({DAY})[T ](\d\d?)(:[0-5]\d)(:[0-5]\d(?:[.,]\d{{1,9}})?)?(?: ?([AP])\.?M\.?)?"
    r"(?: ?(UTC|GMT|Z|[+-](?:0\d|1[0-4])(?::?[0-5]\d)?))?$"
)
_PARTS = "['day', 'hour', 'minute', 'second', 'half', 'zone']"


def wall_clock(text: str) -> str:
    """Return SQL for a time as a TIMESTAMP in the session's time zone, null if it is none.

    A time without an offset stays as it is, even if no clock showed it.

    Args:
        text: an expression for the text, without blanks around it.
    """
    return (
        f"CASE WHEN regexp_full_match({text}, {literal(LOCAL_TIME)})"
        f" THEN TRY_CAST({text} AS TIMESTAMP)"
        f" WHEN regexp_full_match({text}, {literal(OFFSET_TIME)}) THEN {_local(f'upper({text})')}"
        f" ELSE list_transform([{_parts(text)}], lambda part: CASE WHEN part.zone = ''"
        f" THEN TRY_CAST({_PLAIN} AS TIMESTAMP) ELSE {_local(_PLAIN)} END)[1] END"
    )


def instant(text: str) -> str:
    """Return SQL for a time as a TIMESTAMPTZ, null if it is none.

    A time without an offset is in the session's time zone.

    Args:
        text: as for `wall_clock`.
    """
    simple = rf"({LOCAL_TIME})|({OFFSET_TIME})"
    return (
        f"TRY_CAST(CASE WHEN regexp_full_match({text}, {literal(simple)}) THEN upper({text})"
        f" ELSE list_transform([{_parts(text)}], lambda part: {_PLAIN})[1] END AS TIMESTAMPTZ)"
    )


def _local(text: str) -> str:
    return f"TRY_CAST({text} AS TIMESTAMPTZ) AT TIME ZONE current_setting('TimeZone')"


def _parts(text: str) -> str:
    return f"regexp_extract({text}, {literal(_OTHER_TIME)}, {_PARTS})"


_PLAIN = (
    "CASE WHEN part.half = '' AND part.hour BETWEEN '00' AND '23' AND length(part.hour) = 2"
    " OR part.half <> '' AND TRY_CAST(part.hour AS INTEGER) BETWEEN 1 AND 12"
    " THEN concat(part.day, ' ', CASE WHEN part.half = '' THEN part.hour ELSE lpad(("
    "part.hour::INTEGER % 12 + CASE upper(part.half) WHEN 'P' THEN 12 ELSE 0 END)::VARCHAR, 2, '0')"
    " END, part.minute, CASE part.second WHEN '' THEN ':00' ELSE replace(part.second, ',', '.')"
    " END, CASE WHEN upper(part.zone) IN ('UTC', 'GMT') THEN 'Z' ELSE upper(part.zone) END) END"
)
"""SQL for a time of `_parts` as DuckDB reads it, null if it is none."""
