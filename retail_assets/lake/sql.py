"""Text within SQL, where a value cannot be bound: ATTACH, LOAD, COMMENT, table functions."""

from collections.abc import Sequence


def literal(text: str) -> str:
    """Quote text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Quote a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def numbered(columns: Sequence[str]) -> list[str]:
    """Unique names of columns: `a`, `a` becomes `a`, `a_1`."""
    found: list[str] = []
    for name in columns:
        candidate, n = name, 0
        while candidate in found or (n and candidate in columns):
            n += 1
            candidate = f"{name}_{n}"
        found.append(candidate)
    return found
