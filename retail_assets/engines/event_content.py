"""The identity of an event's content, for nested or odd events, where SQL is slow or inexact.

`duckdb_events.flat_content_ids` gives the same identity for all others.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

_NUMBER = re.compile(r"-?([0-9]+)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?")

_MOST_DIGITS = 22
"""Numbers with more digits, zeros included, are written with an exponent."""

_PLAIN_KEY = re.compile(r"[^.\[ \t\n\f\r\"]*")
"""Other keys are quoted in paths, so that different paths stay different."""


_TOLERATED = re.compile(
    r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])|-?(nan)|(inf(?:inity)?)', re.DOTALL | re.IGNORECASE
)
"""Texts, and JSON that only DuckDB accepts: a comma before a bracket, NaN in other letters."""


_ESCAPES = {code: f"\\u{code:04X}" for code in range(32)} | {
    ord(one): f"\\{other}" for one, other in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)
}
"""The escapes of DuckDB."""


class _Number(str):
    __slots__ = ()


def content_id(payload: str) -> str:
    """Return the identity of an event by its content.

    Neither the order of keys, nor blanks between them, nor the spelling of texts and numbers count:
    10, 10.0 and 1e1 are the same, the text "10" is another, and so are 10 and 10.00000000000000001.

    Args:
        payload: JSON for DuckDB, nested no deeper than `json_text.MAX_DEPTH`.
    """
    return f"content:{sha256(_lines(_content(payload)).encode()).hexdigest()}"


def _content(payload: str) -> object:
    try:
        return _read(payload)
    except json.JSONDecodeError:
        return _read(_TOLERATED.sub(_strict, payload))


def _lines(content: object) -> str:
    """A text that is the same for the same content."""
    lines = sorted(_nodes("$", content), key=lambda node: node[0])
    return "\n".join(map(" ".join, lines))


def _part(content: object, names: Sequence[str]) -> object:
    """What stands within some content under these names; None if there is nothing."""
    for name in names:
        if isinstance(content, tuple):
            # The first of several of one name is the one that DuckDB reads.
            content = next((part for key, part in content if key == name), None)
        elif isinstance(content, list) and name.isdecimal():
            content = content[int(name)] if int(name) < len(content) else None
        else:
            return None
    return content


def same_content(one: str, other: str, roots: Iterable[Sequence[str]] = ()) -> bool:
    """Whether two payloads have the same content.

    Args:
        one: JSON, perhaps nested deeper than today's limit.
        other: the same.
        roots: names on the way to the object that is an event, if there is an envelope around it:
            it is enough if they have the same there. An envelope may say how often it was sent.
    """
    try:
        contents = [_content(payload) for payload in (one, other)]
        lines = [_lines(content) for content in contents]
        if lines[0] == lines[1]:
            return True
        for root in roots:
            parts = [_part(content, root) for content in contents]
            if None not in parts and _lines(parts[0]) == _lines(parts[1]):
                return True
    except RecursionError:
        return one == other
    return False


def _read(payload: str) -> object:
    """Read JSON; objects are tuples of names and values, since a name may be repeated."""
    return json.loads(
        payload,
        parse_int=_Number,
        parse_float=_Number,
        parse_constant=_Number,
        object_pairs_hook=tuple,
    )


def _strict(found: re.Match[str]) -> str:
    text, nan, infinity = found.groups()
    return text or (nan and "NaN") or (infinity and "Infinity") or ""


def _nodes(path: str, value: object) -> Iterator[tuple[str, str]]:
    """The path and type of each part of some content, and the value if it is no container."""
    if isinstance(value, tuple):
        yield path, "OBJECT"
        seen: dict[str, int] = {}
        for name, part in value:
            count = seen[name] = seen.get(name, 0) + 1
            key = name if _PLAIN_KEY.fullmatch(name) else json.dumps(name)
            # A name may stand again in a nested object.
            yield from _nodes(f"{path}.{key}" if count == 1 else f'{path}.{key}"{count}', part)
    elif isinstance(value, list):
        yield path, "ARRAY"
        for number, part in enumerate(value):
            yield from _nodes(f"{path}[{number}]", part)
    elif isinstance(value, _Number):
        yield path, _number(value)
    elif isinstance(value, str):
        yield path, f'VARCHAR "{value.translate(_ESCAPES)}"'
    elif value is None:
        yield path, "NULL"
    else:
        yield path, "BOOLEAN true" if value else "BOOLEAN false"


def _number(text: str) -> str:
    """The type and value of a number, the same for all its spellings."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return f"DOUBLE {text}"
    whole, fraction, exponent = found[1], found[2] or "", found[3] or "0"
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return "UBIGINT 0"
    sign = "-" if text.startswith("-") else ""
    if len(exponent) > _MOST_DIGITS:
        return f"DOUBLE {text}"
    power = int(exponent) - len(fraction) + len(digits) - len(significant)
    before = len(significant) + power
    if power >= 0 and before <= _MOST_DIGITS:
        whole_number = int(sign + significant + "0" * power)
        is_short = -(2**63) <= whole_number < 2**64
        type_ = ("BIGINT" if sign else "UBIGINT") if is_short else "DOUBLE"
        return f"{type_} {whole_number}"
    if power < 0 and -_MOST_DIGITS < before <= _MOST_DIGITS:
        padded = significant.rjust(1 - power, "0")
        return f"DOUBLE {sign}{padded[:power]}.{padded[power:]}"
    return f"DOUBLE {sign}{significant}e{power}"
