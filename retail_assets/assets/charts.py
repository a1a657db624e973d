"""Charts for the metadata of assets."""

import base64
import io
from collections.abc import Mapping

import dagster as dg
import duckdb

DAYS = 60


def recent_revenue(connection: duckdb.DuckDBPyConnection) -> Mapping[str, dg.MarkdownMetadataValue]:
    """Draw the revenue of the last 60 published days, stacked by region, as a PNG in Markdown."""
    rows = connection.execute(
        "SELECT order_date, region, total_revenue::DOUBLE FROM lake.daily_revenue WHERE order_date"
        f" > (SELECT max(order_date) FROM lake.daily_revenue) - INTERVAL {DAYS} DAY"
        " ORDER BY order_date, region"
    ).fetchall()
    if not rows:
        return {}
    return {"recent_revenue": dg.MetadataValue.md(f"![Revenue]({_png(rows)})")}


def _png(rows: list[tuple[object, str, float]]) -> str:
    from matplotlib.figure import Figure

    days = sorted({str(day) for day, _, _ in rows})
    bottom = dict.fromkeys(days, 0.0)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for region in sorted({region for _, region, _ in rows}):
        heights = {str(day): value for day, found, value in rows if found == region}
        values = [heights.get(day, 0.0) for day in days]
        axes.bar(days, values, bottom=list(bottom.values()), label=region, width=0.9)
        bottom = {day: bottom[day] + heights.get(day, 0.0) for day in days}
    step = max(1, len(days) // 8)
    axes.set_xticks(range(0, len(days), step), days[::step], rotation=30, ha="right")
    axes.set_ylabel("Revenue, GBP")
    figure.legend(loc="outside upper center", ncols=6, fontsize="small", frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
