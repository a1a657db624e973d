"""Charts for the metadata of assets."""

import base64
import io
from collections.abc import Mapping
from datetime import date

import dagster as dg
import duckdb

DAYS = 60
REGIONS = 5
"""How many regions or reasons, the largest, a chart shows by name; the others are one bar."""


def recent_revenue(connection: duckdb.DuckDBPyConnection) -> Mapping[str, dg.MarkdownMetadataValue]:
    """Draw the revenue of the last 60 published days, stacked by region, as a PNG in Markdown."""
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
    chart = _png(rows, "Revenue, GBP")
    return {"recent_revenue": dg.MetadataValue.md(f"![Revenue]({chart})")}


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
    return {"by_reason": dg.MetadataValue.md(f"![Dead letters]({_png(rows, 'Dead letters')})")}


def _png(rows: list[tuple[date, str, float]], label: str) -> str:
    from matplotlib.figure import Figure

    days = sorted({day for day, _, _ in rows})
    names = sorted({name for _, name, _ in rows}, key=lambda name: (name == "others", name))
    values = dict.fromkeys(((name, day) for name in names for day in days), 0.0)
    values |= {(name, day): value for day, name, value in rows}
    # Fixed margins and an area for each name: a layout engine draws all twice, and a bar for each
    # day and name takes twice as long.
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.11, right=0.99, bottom=0.25, top=0.88)
    ends = [*days, days[-1]]
    axes.stackplot(
        [n - 0.5 for n in range(len(ends))],
        [[values[name, day] for day in ends] for name in names],
        labels=names,
        step="post",
    )
    axes.margins(x=0)
    step = max(1, len(days) // 8)
    axes.set_xticks(
        range(0, len(days), step), [str(day) for day in days[::step]], rotation=30, ha="right"
    )
    axes.set_ylabel(label)
    figure.legend(loc="upper center", ncols=6, fontsize="small", frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
