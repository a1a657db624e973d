"""The board's HTML from what was read: templates that escape every text, and formats of numbers."""

import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from retail_assets.settings import Settings
from retail_assets.visible_text import visible

MINUS = "−"  # noqa: RUF001  # the sign of a number, as wide as the plus
NONE = "–"  # noqa: RUF001
SMALLEST_CHANGE = 0.0005

_CODE = re.compile(r"`([^`]+)`")

_DURATIONS = (
    (10, 1, "s", 1),
    (120, 0, "s", 1),
    (7200, 0, "min", 60),
    (172_800, 0, "h", 3600),
)
"""Below how many seconds a duration has so many decimals of a unit of so many seconds."""


def money(value: Decimal | None) -> str:
    """GBP with commas and pence, such as £1,234.50; a dash for None."""
    if value is None:
        return NONE
    return f"{MINUS if value < 0 else ''}£{abs(value):,.2f}"


def number(value: float | None) -> str:
    """A count with commas; a dash for None."""
    if value is None:
        return NONE
    return f"{value:,}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for None."""
    return NONE if value is None else f"{value * 100:,.1f} %".replace("-", MINUS)


def delta(value: float | None, beside: str = "") -> Markup:
    """A change, told apart by its sign and an arrow and not by its colour alone."""
    if value is None:
        return Markup('<span class="delta same">{}</span> {}').format(NONE, beside)
    if abs(value) < SMALLEST_CHANGE:
        return Markup('<span class="delta same">= 0.0 %</span> {}').format(beside)
    kind, sign, arrow = ("up", "+", "▲") if value > 0 else ("down", MINUS, "▼")
    text = f"{arrow} {sign}{abs(value) * 100:,.1f} %"
    return Markup('<span class="delta {}">{}</span> {}').format(kind, text, beside)


def day(value: date) -> str:
    """A day with its weekday: Mon 30 Nov 2026."""
    return f"{value:%a} {value.day} {value:%b %Y}"


def prose(value: str) -> Markup:
    """A sentence whose `commands` are set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(visible(value)))))  # noqa: S704


def minute(value: int) -> str:
    """A minute of the day as the clock shows it: 14:05."""
    return f"{value // 60:02}:{value % 60:02}"


def seconds(value: float | None) -> str:
    """A duration as people say it."""
    if value is None:
        return NONE
    for limit, decimals, unit, size in _DURATIONS:
        if value < limit:
            return f"{value / size:.{decimals}f} {unit}"
    return f"{value / 86_400:.0f} days"


def size(value: int) -> str:
    """Bytes as people say them."""
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if value < limit:
            return f"{value / (limit / 1e3):.0f} {unit}"
    return f"{value / 1e9:.1f} GB"


class Renderer:
    """Renders templates; times are shown in the business time zone."""

    def __init__(self, settings: Settings) -> None:
        self._zone = ZoneInfo(settings.timezone)

    @cached_property
    def _environment(self) -> Environment:
        found = Environment(
            loader=PackageLoader("retail_assets.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            # Control characters of outside data, which could hide or turn text around.
            finalize=lambda value: visible(value, keep="\n") if type(value) is str else value,
        )
        found.filters |= {
            "money": money,
            "number": number,
            "percent": percent,
            "delta": delta,
            "day": day,
            "minute": minute,
            "prose": prose,
            "seconds": seconds,
            "size": size,
            "clock": self.clock,
            "moment": self.moment,
            "ago": self.ago,
        }
        return found

    def __call__(self, template: str, **values: Any) -> str:
        """Render a template of the folder templates/, without its ending."""
        return self._environment.get_template(f"{template}.html").render(values)

    def macro(self, template: str, name: str, values: Mapping[str, Any]) -> str:
        """Render one macro of a template."""
        module = self._environment.get_template(f"{template}.html").module
        return str(getattr(module, name)(**values))

    def clock(self, value: datetime | None) -> str:
        """The time of the day: 14:05:09."""
        return NONE if value is None else f"{self._local(value):%H:%M:%S}"

    def moment(self, value: datetime | None) -> str:
        """Day and time: Mon 30 Nov 2026 14:05:09."""
        if value is None:
            return NONE
        local = self._local(value)
        return f"{day(local.date())} {local:%H:%M:%S}"

    def ago(self, value: datetime | None) -> Markup:
        """A time that the page counts on by itself: 3 s ago."""
        if value is None:
            return Markup("never")
        return Markup('<time data-ago datetime="{}" title="{}">{}</time>').format(
            value.isoformat(), self.moment(value), escape(self.clock(value))
        )

    def _local(self, value: datetime) -> datetime:
        # Times of the stream and the batch that have no zone are the wall clock's already.
        return value if value.tzinfo is None else value.astimezone(self._zone)
