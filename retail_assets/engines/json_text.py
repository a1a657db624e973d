"""Texts out of JSON with DuckDB, and how deep JSON is nested."""

from retail_assets.engines.duckdb import BLANKS
from retail_assets.lake.sql import literal

MAX_DEPTH = 100
"""How deep objects and lists may be nested. DuckDB's functions are recursive: a line of brackets
would end the process."""


def text(json: str, *, other: str = "NULL", unusual: str | None = None) -> str:
    """SQL for the text of a JSON string, trimmed; `other` for other JSON.

    Args:
        json: an expression for JSON.
        other: an expression for what takes its place where it is no string.
        unusual: `is_unusual` of what it is a part of, where that is known.
    """
    found = f"json_extract_string({json}, '$')"
    return (
        f"CASE WHEN {json} LIKE '\"%' THEN CASE"
        f" WHEN {unusual or is_unusual(json)} OR {json} LIKE '\" %' OR {json} LIKE '% \"'"
        f" THEN trim({found}, {BLANKS}) ELSE {found} END ELSE {other} END"
    )


def is_unusual(json: str) -> str:
    """SQL for whether JSON has escapes, or blanks other than the space."""
    return f"(contains({json}, '\\') OR contains({json}, '\u00a0'))"


def too_deep(payload: str) -> str:
    """SQL for whether a text is nested deeper than `MAX_DEPTH`.

    Brackets in texts do not count. The pattern contains itself once for each level, and its
    automaton reads even the longest line once. Other columns say whether the line is JSON.
    """
    # Most lines have too few brackets of either kind, and this check is much faster.
    few = 10
    assert few <= MAX_DEPTH // 2
    level = r'(?:[^"\[\]{}]+|"(?:[^"\\]|\\.)*")*'
    for _ in range(MAX_DEPTH):
        level = rf'(?:[^"\[\]{{}}]+|"(?:[^"\\]|\\.)*"|[\[{{]{level}[\]}}])*'
    has_many = " OR ".join(f"{payload} LIKE {literal(f'%{one}' * few + '%')}" for one in "[{")
    return (
        f"CASE WHEN {has_many} THEN"
        f" NOT regexp_full_match({payload}, {literal(f'(?s){level}')}) ELSE false END"
    )


def may_have(key: str, payload: str = "payload") -> str:
    """SQL for whether an object may have a key of letters; false if it has none of that name.

    Much faster than to look for the key, and false for most. A letter may be escaped in JSON.
    """
    return f"(contains({payload}, '\"{key}\"') OR contains({payload}, '\\u'))"
