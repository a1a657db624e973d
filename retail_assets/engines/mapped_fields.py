"""Values of other programs as SQL: each becomes the text that our own files would have.

So all that follows, typed reads and rules, is the same with a mapping and without. What cannot be
read as the mapping says is marked, so that no later step reads it in another way.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from retail_assets.engines.timestamps import LOCAL_TIME, OFFSET_TIME, wall_clock
from retail_assets.lake.sql import literal
from retail_assets.mapping.fields import EPOCHS, NumberField, Numbers, TextField, TimeField

UNREADABLE = "? "
"""What the text of a value begins with that is not written as its mapping says."""

_PLAIN_NUMBER = r"[+-]?[0-9]{1,10}(\.[0-9]{1,6}0*)?"
_AMOUNT = "DECIMAL(26,6)"
_BLANKS = " \u00a0\u202f"
_ONE_ZONE = r"\b(UTC|GMT|Z)\b|[A-Za-z]+/[A-Za-z_]+"


@dataclass(frozen=True)
class Spelling:
    """How numbers and times are written in a source, where a field says nothing else."""

    decimal: str = "."
    thousands: str = ""
    timezone: str | None = None
    signs: tuple[str, ...] = ()
    negative: str = "before"

    @classmethod
    def of(cls, numbers: Numbers, timezone: str | None) -> "Spelling":
        """As a mapping has it."""
        return cls(numbers.decimal, numbers.thousands, timezone, numbers.signs, numbers.negative)


def text_of(field: TextField, source: Callable[[str], str], spelling: Spelling) -> str:
    """Return SQL for the text of a field as our own files would have it, null where there is none.

    Args:
        field: where its values stand, and how.
        source: gives SQL for the text of a column or path, null where it is blank.
        spelling: how numbers and times are written.
    """
    text = _found(field, source)
    if field.source is None:
        return text
    if isinstance(field, NumberField):
        text = _number(field, text, source, spelling)
    elif isinstance(field, TimeField):
        text = _time(field, text, field.timezone or spelling.timezone)
    return text if field.default is None else f"coalesce({text}, {literal(field.default)})"


def text_to_read(field: TextField, source: Callable[[str], str], spelling: Spelling) -> str:
    """Return SQL for the text of a field as `number_of` or `time_of` reads it: null where none is.

    Args: as for `text_of`. Most texts are as the source has them, which saves a step.
    """
    if _is_read_as_found(field, spelling):
        return _found(field, source)
    return text_of(field, source, spelling)


def number_of(
    field: TextField | None, text: str, spelling: Spelling, form: str, data_type: str
) -> str:
    """Return SQL for a number, null where its text is none.

    Args:
        field: the field as mapped, null if the source lacks it.
        text: an expression for the text of `text_to_read`.
        spelling: as for `text_of`.
        form: a regular expression of the number; the decimal point stands in it as `[.]`.
        data_type: the number's SQL type.
    """
    plain = text
    if field is not None and _is_read_as_found(field, spelling) and spelling.decimal != ".":
        form = form.replace("[.]", re.escape(spelling.decimal))
        plain = f"replace({text}, {literal(spelling.decimal)}, '.')"
    return (
        f"CASE WHEN regexp_full_match({text}, {literal(form)})"
        f" THEN TRY_CAST({plain} AS {data_type}) END"
    )


def time_of(field: TimeField, text: str, spelling: Spelling) -> str:
    """Return SQL for a time, a TIMESTAMP in the session's time zone, null where its text is none.

    Args: as for `number_of`.
    """
    if not _is_read_as_found(field, spelling):
        return wall_clock(text)
    times = _times(field, text, field.timezone or spelling.timezone)
    here = "AT TIME ZONE current_setting('TimeZone')"
    clocks = [f"({time}) {here}" if is_instant else time for time, is_instant in times]
    return f"coalesce({', '.join(clocks)})"


def _is_read_as_found(field: TextField, spelling: Spelling) -> bool:
    """Whether a value can be typed from the source's own text."""
    if field.source is None or field.default is not None:
        return False
    if isinstance(field, NumberField):
        others = (spelling.thousands, *spelling.signs)
        return not (field.computed or any(others)) and spelling.negative == "before"
    if isinstance(field, TimeField):
        return bool(field.format) or (field.timezone or spelling.timezone) is not None
    return False


def _found(field: TextField, source: Callable[[str], str]) -> str:
    """SQL for the text in the source, with the meaning of a value that the mapping lists."""
    if field.source is None:
        return literal(field.constant or "")
    text = source(field.source)
    if field.alternatives:
        text = f"coalesce({', '.join(map(source, (field.source, *field.alternatives)))})"
    text = _looked_up(field, text)
    if isinstance(field, TimeField) and field.time is not None:
        both = f"concat_ws(' ', {text}, {source(field.time)})"
        text = f"CASE WHEN {text} IS NOT NULL THEN {both} END"
    return text


def _looked_up(field: TextField, text: str) -> str:
    if not field.values:
        return text
    cases = " ".join(
        f"WHEN {literal(value.strip().lower())} THEN {literal(meaning)}"
        for value, meaning in field.values.items()
    )
    other = text
    if field.other is not None:
        other = f"CASE WHEN {text} IS NOT NULL THEN {literal(field.other)} END"
    return f"CASE lower({text}) {cases} ELSE {other} END"


def _number(field: NumberField, text: str, source: Callable[[str], str], spelling: Spelling) -> str:
    number = _plain(text, spelling)
    if not field.computed:
        return number
    # Each part at most ten digits before the point, so that no product overflows.
    amount = _part(number)
    if field.times is not None:
        amount = f"({amount} * {_part(_plain(source(field.times), spelling))})"
    amount = f"{amount}::{_AMOUNT}"
    for sign, names in (("+", field.plus), ("-", field.minus)):
        for name in names:
            part = source(name)
            amount += (
                f" {sign} CASE WHEN {part} IS NULL THEN 0 ELSE {_part(_plain(part, spelling))} END"
            )
    amount = f"({amount})::{_AMOUNT} * {field.scale:f}::DECIMAL(10,6)"
    if field.times is not None:
        # A price of more than two decimals, times a quantity: half a penny is rounded up.
        amount = f"round({amount}, 2)"
    unreadable = f"{literal(UNREADABLE)} || {text}"
    return f"CASE WHEN {text} IS NOT NULL THEN coalesce(({amount})::VARCHAR, {unreadable}) END"


def _part(text: str) -> str:
    # Of eighteen digits: a text becomes more of them a hundred times more slowly. Then of nineteen:
    # numbers of eighteen would be multiplied in 64 bits.
    return (
        f"CASE WHEN regexp_full_match({text}, {literal(_PLAIN_NUMBER)})"
        f" THEN TRY_CAST({text} AS DECIMAL(18,6))::DECIMAL(19,6) END"
    )


def _plain(text: str, spelling: Spelling) -> str:
    """A number with a decimal point and nothing between thousands."""
    decimal, thousands = spelling.decimal, spelling.thousands
    bare = _bare(text, spelling)
    if (decimal, thousands) == (".", "") and bare == text:
        return text
    plain = bare
    # The typed read sees what else is no number. Here a regular expression costs as much again.
    is_other = f"contains({bare}, '.')" if decimal != "." else "false"
    if thousands:
        # A blank may be a narrow one that does not break, an apostrophe a typographic one.
        one = {" ": f"[{_BLANKS}]", "'": "['\u2019]"}.get(thousands, rf"\{thousands}")
        form = rf"[+-]?([0-9]+|[0-9]{{1,3}}({one}[0-9]{{3}})+)(\{decimal}[0-9]+)?"
        is_other = f"NOT regexp_full_match({bare}, {literal(form)})"
        plain = f"regexp_replace({plain}, {literal(one)}, '', 'g')"
    if decimal != ".":
        plain = f"replace({plain}, {literal(decimal)}, '.')"
    return f"CASE WHEN {is_other} THEN {literal(UNREADABLE)} || {text} ELSE {plain} END"


def _bare(text: str, spelling: Spelling) -> str:
    """A number without the signs around it, and with its minus in front."""
    bare = text
    if spelling.signs:
        sign = "|".join(map(re.escape, spelling.signs))
        before, after = rf"^([-+(]?)({sign})[{_BLANKS}]*", rf"[{_BLANKS}]*({sign})([-)]?)$"
        bare = f"regexp_replace({bare}, {literal(before)}, '\\1')"
        bare = f"regexp_replace({bare}, {literal(after)}, '\\2')"
    if spelling.negative != "before":
        form = {"after": r"^([^-+]+)-$", "parentheses": r"^\(([^()+-]+)\)$"}[spelling.negative]
        bare = f"regexp_replace({bare}, {literal(form)}, '-\\1')"
    return bare


def _time(field: TimeField, text: str, timezone: str | None) -> str:
    if not field.format and timezone is None:
        return text
    texts = [
        f"(({time}) AT TIME ZONE 'UTC')::VARCHAR || 'Z'" if is_instant else f"({time})::VARCHAR"
        for time, is_instant in _times(field, text, timezone)
    ]
    return f"coalesce({', '.join(texts)}, {literal(UNREADABLE)} || {text})"


def _times(field: TimeField, text: str, timezone: str | None) -> list[tuple[str, bool]]:
    """SQL for each way to read a time, and whether it is an instant (TIMESTAMPTZ) or a clock's."""
    if not field.format:
        return [(_zoned_iso(text, timezone or "UTC"), True)]
    return [_formatted(_named(field, text, each), each, timezone) for each in field.format]


def _zoned_iso(text: str, timezone: str) -> str:
    """ISO 8601, in a zone where it has no offset."""
    return (
        f"CASE WHEN regexp_full_match({text}, {literal(LOCAL_TIME)})"
        f" THEN TRY_CAST({text} AS TIMESTAMP) AT TIME ZONE {literal(timezone)}"
        f" WHEN regexp_full_match({text}, {literal(OFFSET_TIME)})"
        f" THEN TRY_CAST(upper({text}) AS TIMESTAMPTZ) END"
    )


def _named(field: TimeField, text: str, format_: str) -> str:
    """A text whose time zone has one meaning, null if it may have several: BST is one in Asia."""
    if "%Z" not in format_:
        return text
    named = text
    for short, zone in field.zones.items():
        named = f"regexp_replace({named}, {literal(_word(short))}, {literal(zone)})"
    return f"CASE WHEN regexp_matches({named}, {literal(_ONE_ZONE)}) THEN {named} END"


def _word(text: str) -> str:
    return rf"\b{re.escape(text)}\b"


def _formatted(text: str, format_: str, timezone: str | None) -> tuple[str, bool]:
    if format_ in EPOCHS:
        units = EPOCHS[format_]
        # Up to the year 5138.
        form = rf"[0-9]{{1,{len(str(10**17 // units))}}}(\.[0-9]{{1,6}})?"
        # Few have a fraction, which is slow to read exactly.
        whole = f"CASE WHEN contains({text}, '.') THEN ({text}::DECIMAL(20,6) * {units})::BIGINT"
        read = (
            f"CASE WHEN regexp_full_match({text}, {literal(form)})"
            f" THEN make_timestamp({whole} ELSE {text}::BIGINT * {units} END) END"
        )
        return f"({read}) AT TIME ZONE 'UTC'", True
    if format_.endswith("%z"):
        text = f"CASE WHEN {text} ILIKE '%z' THEN left({text}, -1) || '+00:00' ELSE {text} END"
    read = f"try_strptime({text}, {literal(format_)})"
    if "%z" in format_ or "%Z" in format_:
        return read, True
    if timezone is not None:
        return f"{read} AT TIME ZONE {literal(timezone)}", True
    return read, False
