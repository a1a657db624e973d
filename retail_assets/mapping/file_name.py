"""Names of files with a date in them, such as `sales-%d.%m.%Y.csv`."""

import re
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property

_DIRECTIVES = {"%Y": r"\d{4}", "%y": r"\d{2}", "%m": r"\d{2}", "%d": r"\d{2}"}
_TOKEN = re.compile(r"%.|\*|[^%*]+")


@dataclass(frozen=True)
class FileName:
    """What the export files of a folder are called; each may end with `.gz` as well.

    Args:
        pattern: the name, where `%Y` (or `%y`), `%m` and `%d` are the date and `*` is any text; or
            a name without a date.

    Raises:
        ValueError: if the pattern cannot be used.
    """

    pattern: str

    def __post_init__(self) -> None:
        if "/" in self.pattern or "\\" in self.pattern:
            raise ValueError("a file's name has no folder: its files lie in exports/ itself")
        found = [each for each in _TOKEN.findall(self.pattern) if each.startswith("%")]
        unknown = [each for each in found if each not in _DIRECTIVES]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of %Y, %y, %m and %d")
        if found and sorted(each.lower() for each in found) != ["%d", "%m", "%y"]:
            raise ValueError("a date needs the year, the month and the day, each once")
        if found and "*" in self._dated:
            raise ValueError("between the parts of the date there is no *")

    @property
    def has_date(self) -> bool:
        """Whether the name tells the day of its rows."""
        return "%" in self.pattern

    @cached_property
    def _dated(self) -> str:
        """The part of the pattern with the date."""
        first, last = self.pattern.find("%"), self.pattern.rfind("%")
        return self.pattern[first : last + 2] if first >= 0 else ""

    @cached_property
    def regex(self) -> str:
        """A regular expression for the whole name, with the date as its group 1."""
        before, _, after = self.pattern.partition(self._dated) if self._dated else ("", "", "")
        if not self._dated:
            return rf"^{_regex(self.pattern)}(?:\.gz)?$"
        return rf"^{_regex(before)}({_regex(self._dated)}){_regex(after)}(?:\.gz)?$"

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex)

    @property
    def format(self) -> str:
        """The date within the name, as `strptime` reads it."""
        return self._dated

    @property
    def shown(self) -> str:
        """The pattern for people."""
        parts = {"%Y": "YYYY", "%y": "YY", "%m": "MM", "%d": "DD"}
        return "".join(parts.get(each, each) for each in _TOKEN.findall(self.pattern))

    def matches(self, name: str) -> bool:
        """Whether a file is called so, whatever its date."""
        return self._compiled.match(name) is not None

    def day(self, name: str) -> date | None:
        """The date in a file's name; None for any other file."""
        match = self._compiled.match(name) if self.has_date else None
        if match is None:
            return None
        try:
            return datetime.strptime(match[1], self.format).date()  # noqa: DTZ007
        except ValueError:
            return None

    def of_day(self, day: date) -> str:
        """The name of a day's file, with `*` where there is any text."""
        return day.strftime(self.pattern)


def _regex(pattern: str) -> str:
    return "".join(
        _DIRECTIVES.get(each) or (".*" if each == "*" else re.escape(each))
        for each in _TOKEN.findall(pattern)
    )


NATIVE = FileName("orders_%Y_%m_%d.csv")
"""What exports are called without a mapping."""
