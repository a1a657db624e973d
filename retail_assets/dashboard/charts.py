"""Options of the board's charts, for ECharts with its SVG renderer.

Colours are CSS variables, so that a chart follows light and dark by itself. Lines differ by their
dashes as well as by their colours.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from retail_assets.dashboard.reading.courses import MINUTES, SLOT
from retail_assets.dashboard.reading.health import LastHour
from retail_assets.dashboard.reading.period import Period
from retail_assets.dashboard.reading.today import Revenue
from retail_assets.dashboard.render import minute

Options = dict[str, Any]

# Said in full: the width of texts is measured with it, and a browser cannot measure `inherit`.
_FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_POUNDS = "value => '£' + Number(value).toLocaleString('en-GB', {maximumFractionDigits: 2})"
_SHORT = (
    "value => Math.abs(value) >= 1e6 ? '£' + value / 1e6 + 'm'"
    " : Math.abs(value) >= 1e3 ? '£' + value / 1e3 + 'k' : '£' + value"
)


def course(revenue: Revenue) -> Options:
    """How the day has grown, beside a week before and the usual course with its band."""
    band = revenue.past.usual.band()
    week, now = revenue.past.week_before, revenue.course
    series = [
        # An area between two lines: the lower one, and what the higher one is above it.
        _line("least of earlier weeks", [low for low, _, _ in band], stack="band", width=0),
        _line(
            _RANGE,
            [high - low for low, _, high in band],
            stack="band",
            width=0,
            areaStyle={"color": "var(--band)", "opacity": 1},
        ),
        _line("usual", [middle for _, middle, _ in band], color="var(--median)", dash="dashed"),
        _line("a week before", week.slots() if week else [], color="var(--week)", dash="dotted"),
        _line(
            "this day",
            now.slots(revenue.minute) if now else [],
            color="var(--accent)",
            width=3,
        ),
    ]
    return {
        **_base(
            [minute(end) for end in range(SLOT, MINUTES + 1, SLOT)],
            every=f"index => (index + 1) % {4 * 60 // SLOT} === 0",
        ),
        "series": series,
    }


def course_points(
    revenue: Revenue,
) -> list[tuple[str, Decimal | None, Decimal | None, Decimal | None]]:
    """The same by the hour: until when, this day, a week before, the median of earlier weeks."""
    every = 60 // SLOT
    week = revenue.past.week_before.slots() if revenue.past.week_before else []
    now = revenue.course.slots(revenue.minute) if revenue.course else []
    usual = [middle for _, middle, _ in revenue.past.usual.band()]

    def at(values: Sequence[Decimal], n: int) -> Decimal | None:
        return values[n] if n < len(values) else None

    return [
        (minute((n + 1) * SLOT), at(now, n), at(week, n), at(usual, n))
        for n in range(every - 1, MINUTES // SLOT, every)
    ]


def last_minutes(revenue: Revenue) -> Options:
    """The revenue of each minute of the last hour."""
    found = revenue.last_minutes
    return {
        **_base([minute(n) for n, _ in found], every="index => index % 15 === 14"),
        "series": [_bars("revenue", [amount.revenue for _, amount in found])],
    }


def last_hour(found: LastHour) -> Options:
    """The events of each minute of the last hour."""
    count = len(found.by_minute)
    options = _base(
        [f"{count - n} min ago" for n in range(count)],
        every="index => index % 15 === 0 && index > 0",
        money=False,
    )
    return {**options, "series": [_bars("events", list(found.by_minute))]}


def days(period: Period) -> Options:
    """The revenue of each day, and of the day that it is compared with."""
    compared = period.total.before is not None
    series = [_bars("revenue", [figure.amount.revenue for _, _, figure in period.days])]
    if compared:
        before = [figure.before.revenue if figure.before else None for _, _, figure in period.days]
        series.append(_line("compared with", before, color="var(--week)", dash="dotted"))
    return {
        **_base([f"{day:%a} {day.day} {day:%b}" for day, _, _ in period.days]),
        "series": series,
    }


def _base(categories: Sequence[str], *, every: str | None = None, money: bool = True) -> Options:
    """What all charts share; `every` says by its index which category has a label."""
    text = {"color": "var(--muted)", "fontSize": 12, "fontFamily": _FONT}
    return {
        "animation": False,
        "aria": {"enabled": True},
        "textStyle": {"fontFamily": _FONT},
        "grid": {"left": 8, "right": 14, "top": 10, "bottom": 4, "containLabel": True},
        "tooltip": {
            "trigger": "axis",
            "backgroundColor": "var(--card)",
            "borderColor": "var(--line)",
            "textStyle": {"color": "var(--text)", "fontSize": 13},
            **({":valueFormatter": _POUNDS} if money else {}),
        },
        "xAxis": {
            "type": "category",
            "data": list(categories),
            "axisLabel": {
                **text,
                "hideOverlap": True,
                "alignMaxLabel": "right",
                **({":interval": every} if every else {}),
            },
            "axisLine": {"lineStyle": {"color": "var(--line)"}},
            "axisTick": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "axisLabel": {**text, **({":formatter": _SHORT} if money else {})},
            "splitLine": {"lineStyle": {"color": "var(--line)"}},
            "splitNumber": 4,
            **({} if money else {"minInterval": 1}),
        },
    }


_RANGE = "range of earlier weeks"


def _line(
    name: str,
    values: Sequence[Decimal | None],
    *,
    color: str = "var(--band)",
    width: int = 2,
    dash: str = "solid",
    **more: Any,
) -> Options:
    return {
        "name": name,
        "type": "line",
        "data": [None if value is None else float(value) for value in values],
        "showSymbol": False,
        "symbol": "none",
        "color": color,
        "lineStyle": {"color": color, "width": width, "type": dash},
        "emphasis": {"disabled": True},
        **more,
    }


def _bars(name: str, values: Sequence[Decimal | int]) -> Options:
    return {
        "name": name,
        "type": "bar",
        "data": [float(value) for value in values],
        "color": "var(--accent)",
        "itemStyle": {"color": "var(--accent)", "borderRadius": [2, 2, 0, 0]},
        "barMaxWidth": 26,
        "emphasis": {"disabled": True},
    }
