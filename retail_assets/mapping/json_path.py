"""Paths of values in JSON, such as `$.customer.id`, `$.lines[0].sku` or `$['odd name']`."""

import re
from dataclasses import dataclass
from functools import lru_cache

_SEGMENT = re.compile(
    r"""\.(?P<name>[^\s.\[\]'"*]+)"""
    r"""|\[(?P<index>[0-9]{1,4})\]"""
    r"""|\['(?P<single>(?:[^'\\\0]|\\['\\])*)'\]"""
    r"""|\["(?P<double>(?:[^"\\\0]|\\["\\])*)"\]"""
)
_ESCAPED = re.compile(r"\\(.)")

WHOLE = "$$"
"""What paths from the whole event begin with; those that begin with `$` are from its root."""


@dataclass(frozen=True)
class JsonPath:
    """A path of literal names and numbers of elements.

    `is_whole` says whether it begins at the whole event, whatever its root is.
    """

    parts: tuple[str, ...]
    is_whole: bool = False

    @property
    def parent(self) -> "JsonPath":
        """The path of what it is in."""
        return JsonPath(self.parts[:-1], self.is_whole)

    def from_root(self, root: "JsonPath") -> "JsonPath":
        """The path in the whole event, if this is one from its root."""
        return self if self.is_whole else JsonPath((*root.parts, *self.parts), is_whole=True)

    @property
    def pointer(self) -> str:
        """It as DuckDB reads it: a JSON pointer, in which every name stands for itself."""
        if not self.parts:
            return "$"
        escaped = (part.replace("~", "~0").replace("/", "~1") for part in self.parts)
        return "".join(f"/{part}" for part in escaped)

    def __str__(self) -> str:
        """It as the mapping may have it."""
        return "$" + "".join(
            f".{part}"
            if re.fullmatch(r"[^\s.\[\]'\"*]+", part)
            else "['" + part.replace("\\", "\\\\").replace("'", "\\'") + "']"
            for part in self.parts
        )


@lru_cache(maxsize=1_000)
def json_path(text: str) -> JsonPath:
    """Read a path.

    Raises:
        ValueError: if it is none.
    """
    start = 2 if text.startswith(WHOLE) else 1
    parts: list[str] = []
    place = start if text.startswith("$") else -1
    while 0 <= place < len(text):
        found = _SEGMENT.match(text, place)
        if found is None:
            place = -1
            break
        kind, part = next(
            (kind, part) for kind, part in found.groupdict().items() if part is not None
        )
        if kind in ("single", "double"):
            part = _ESCAPED.sub(r"\1", part)
        parts.append(part if kind != "index" else str(int(part)))
        place = found.end()
    if place < 0:
        raise ValueError(
            f"{text!r} is no path such as $.customer.id, $.items[0].sku or $['odd name']"
        )
    return JsonPath(tuple(parts), is_whole=start == len(WHOLE))
