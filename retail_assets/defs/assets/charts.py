"""Charts for the metadata of assets, which have no background: for light and dark pages.

The Dagster UI shows Markdown on an asset's page where it is short, and a link to it where it is
not: so each chart is there as a small picture, and with its parts behind a link.
"""

import base64
from collections.abc import Mapping
from datetime import date
from html import escape
from math import floor, log10
from urllib.parse import quote

import dagster as dg
import duckdb

DAYS = 60
REGIONS = 5
"""How many regions or reasons, the largest, a chart shows by name; the others are one area."""

WIDTH, HEIGHT = 580, 170
"""Of the areas, in pixels; texts stand around them."""

COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
"""One for each region or reason, and one for the others."""

TEXT = "#767676"
"""Legible on white and on near black."""

SHORT_MARKDOWN = 1000
"""The Dagster UI shows Markdown at once that has fewer characters."""

SMALL_HEIGHT, DAY_WIDTH = 80, 9
"""Of the small picture and of a day in it, in pixels."""


def recent_revenue(connection: duckdb.DuckDBPyConnection) -> Mapping[str, dg.MarkdownMetadataValue]:
    """Draw the revenue of the last 60 published days, stacked by region."""
    rows = connection.execute(
        "WITH recent AS (SELECT order_date, region, total_revenue::DOUBLE AS revenue"
        " FROM lake.daily_revenue WHERE order_date > (SELECT max(order_date)"
        f" FROM lake.daily_revenue) - INTERVAL {DAYS} DAY), largest AS (SELECT region FROM recent"
        f" GROUP BY region ORDER BY sum(revenue) DESC, region LIMIT {REGIONS})"
        " SELECT order_date, CASE WHEN region IN (FROM largest) THEN region ELSE 'others' END,"
        " sum(revenue) FROM recent GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    if not rows:
        return {}
    return _charts("recent_revenue", "region", rows, "Revenue, GBP")


def dead_letters_by_reason(
    connection: duckdb.DuckDBPyConnection,
) -> Mapping[str, dg.MarkdownMetadataValue]:
    """Draw the dead letters of the last 60 days that had some, stacked by reason."""
    rows = connection.execute(
        "WITH recent AS (SELECT received_date, reason, dead_letters::DOUBLE AS letters"
        " FROM lake.dead_letter_counts WHERE received_date > (SELECT max(received_date)"
        f" FROM lake.dead_letter_counts) - INTERVAL {DAYS} DAY), largest AS (SELECT reason"
        f" FROM recent GROUP BY reason ORDER BY sum(letters) DESC, reason LIMIT {REGIONS})"
        " SELECT received_date, CASE WHEN reason IN (FROM largest) THEN reason ELSE 'others' END,"
        " sum(letters) FROM recent GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    if not rows:
        return {}
    return _charts("recent_dead_letters", "reason", rows, "Dead letters")


def _charts(
    name: str, part: str, rows: list[tuple[date, str, float]], label: str
) -> Mapping[str, dg.MarkdownMetadataValue]:
    """The small picture of the sums of days, and the chart with its parts."""
    return {
        name: dg.MetadataValue.md(f"![{label}](<{_small_svg(rows, label)}>)"),
        f"{name}_by_{part}": dg.MetadataValue.md(f"![{label}]({_svg(rows, label)})"),
    }


def _small_svg(rows: list[tuple[date, str, float]], label: str) -> str:
    """The address of an image: a step for each day, few enough characters to be shown at once."""
    sums: dict[date, float] = {}
    for day, _, value in rows:
        sums[day] = sums.get(day, 0) + value
    days = sorted(sums)
    highest = max(*sums.values(), 0) or 1.0
    steps = "".join(
        f"V{round(SMALL_HEIGHT * (1 - max(sums[day], 0) / highest))}h{DAY_WIDTH}" for day in days
    )
    width = DAY_WIDTH * DAYS
    image = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 -16 {width} {SMALL_HEIGHT + 32}'"
        f" width='{width}'><path fill='{COLORS[0]}' d='M0 {SMALL_HEIGHT}{steps}V{SMALL_HEIGHT}'/>"
        f"<g fill='{TEXT}' font-family='sans-serif' font-size='11'>"
        f"<text y='-5'>{label}: at most {highest:,.0f} a day</text>"
        f"<text y='{SMALL_HEIGHT + 14}'>{days[0]} to {days[-1]}</text></g></svg>"
    )
    return "data:image/svg+xml," + quote(image, safe=" ='/:;,.-+()")


def _svg(rows: list[tuple[date, str, float]], label: str) -> str:
    """The address of an image: an area for each name, one on the other, with a step for each day.

    Text, because a library for plots takes as long to load as a small day takes to compute.
    """
    days = sorted({day for day, _, _ in rows})
    names = sorted({name for _, name, _ in rows}, key=lambda name: (name == "others", name))
    values = {(name, day): value for day, name, value in rows}
    highest = max(sum(values.get((name, day), 0) for name in names) for day in days) or 1.0
    unit = 10 ** floor(log10(highest)) / 2
    edges = [
        (round(WIDTH * (n + side) / len(days)), n) for n in range(len(days)) for side in (0, 1)
    ]

    def y(value: float) -> int:
        return round(HEIGHT * (1 - value / highest))

    legend = "".join(
        f'\u2003<tspan fill="{color}">■</tspan> {escape(name)}'
        for name, color in zip(names, COLORS, strict=False)
    )
    parts = [f'<text y="-10">{escape(label)}{legend}</text>']
    below = [0.0] * len(days)
    for n, name in enumerate(names):
        level = [old + values.get((name, day), 0) for old, day in zip(below, days, strict=True)]
        outline = [(x, y(level[day])) for x, day in edges]
        outline += [(x, y(below[day])) for x, day in reversed(edges)]
        points = " ".join(f"{x},{height}" for x, height in outline)
        parts.append(f'<polygon fill="{COLORS[n]}" points="{points}"/>')
        below = level
    for n in range(floor(highest / unit) + 1):
        parts.append(f'<path d="M-4 {y(n * unit)}H{WIDTH}" stroke="{TEXT}" opacity=".3"/>')
        parts.append(_text(-8, y(n * unit) + 4, f"{n * unit:,.12g}", 'text-anchor="end"'))
    for n in range(0, len(days), max(1, len(days) // 8)):
        x = (edges[2 * n][0] + edges[2 * n + 1][0]) // 2
        turned = f'text-anchor="end" transform="rotate(-30 {x} {HEIGHT + 14})"'
        parts.append(_text(x, HEIGHT + 14, str(days[n]), turned))
    image = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-70 -30 {WIDTH + 80} {HEIGHT + 80}"'
        f' width="{WIDTH + 80}" font-family="sans-serif" font-size="11" fill="{TEXT}">'
        f"{''.join(parts)}</svg>"
    )
    return "data:image/svg+xml;base64," + base64.b64encode(image.encode()).decode()


def _text(x: int, y: int, text: str, attributes: str = "") -> str:
    return f'<text x="{x}" y="{y}" {attributes}>{escape(text)}</text>'
