"""Strict JSON, which every reader reads alike.

DuckDB reads and writes NaN, infinities and repeated names in an object. Strict JSON has a number
that no double holds as text (`"NaN"`, `"1e400"`), and a repeated name with a number (`b`, `b#2`).
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn


class _NotStrictError(ValueError):
    """The JSON is not strict."""


def strict(text: str) -> str:
    """Return JSON as strict JSON: the same text, if it is strict already."""
    try:
        _check(text)
    except _NotStrictError:
        return _write(_read(text))
    return text


def _refuse(_: str) -> NoReturn:
    raise _NotStrictError


def _finite(number: str) -> None:
    if not math.isfinite(float(number)):
        raise _NotStrictError


def _distinct(pairs: Sequence[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len({name for name, _ in pairs}) < len(pairs):
        raise _NotStrictError


_check = json.JSONDecoder(
    parse_constant=_refuse, parse_float=_finite, parse_int=len, object_pairs_hook=_distinct
).decode


class _Number(str):
    """A number in the characters that it was written in."""

    __slots__ = ()


def _number(text: str) -> str:
    return _Number(text) if math.isfinite(float(text)) else text


def _renamed(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = {name for name, _ in pairs}
    found: dict[str, Any] = {}
    for first, value in pairs:
        name, times = first, 1
        while name in found:
            times += 1
            # Skip a name that the object has already.
            name = f"{first}#{times}" if f"{first}#{times}" not in names else name
        found[name] = value
    return found


_read = json.JSONDecoder(
    parse_constant=str, parse_float=_number, parse_int=_Number, object_pairs_hook=_renamed
).decode


def _write(value: Any) -> str:
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        return (
            f"{{{','.join(f'{json.dumps(name)}:{_write(each)}' for name, each in value.items())}}}"
        )
    if isinstance(value, list):
        return f"[{','.join(map(_write, value))}]"
    return json.dumps(value)
