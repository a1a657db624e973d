"""The page Any period: its address has all of the view, so that a link reproduces it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import duckdb
from fastapi import Request
from nicegui import ui

from retail_assets.dashboard import charts
from retail_assets.dashboard.board import Board
from retail_assets.dashboard.pages.frame import chart, failure, frame, page, section
from retail_assets.dashboard.reading.period import (
    COMPARISONS,
    Period,
    Question,
    choices,
    newest_days,
    read_period,
)
from retail_assets.dashboard.watch import utc_now
from retail_assets.errors import RetailAssetsError


def values_of(request: Request) -> dict[str, list[str]]:
    """All values of each name in the query of a request."""
    found: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        found.setdefault(name, []).append(value)
    return found


def question_of(
    board: Board, connection: duckdb.DuckDBPyConnection, values: Mapping[str, Sequence[str]]
) -> Question:
    """The question of an address; without days it is of the newest ones.

    Raises:
        UsageError: if it has a day or comparison that is none.
    """
    today = utc_now().astimezone(ZoneInfo(board.settings.timezone)).date()
    return Question.from_link(values, newest_days(connection, today))


def build(board: Board) -> None:
    """Add the page."""

    @page("/period", "Any period")
    async def period(request: Request) -> None:
        values = values_of(request)

        def read(connection: duckdb.DuckDBPyConnection) -> tuple[Period, dict[str, list[str]]]:
            question = question_of(board, connection, values)
            return read_period(connection, question), choices(connection, question)

        try:
            found, known = await board.readers.read(read)
        except RetailAssetsError as error:
            with frame(board, "/period"):
                failure(board, "Any period", error)
            return
        with frame(board, "/period"):
            _show(board, found, known)


def _show(board: Board, period: Period, known: dict[str, list[str]]) -> None:
    question = period.question

    def narrowed(region: str, category: str) -> str:
        chosen = replace(question, regions=(region,), categories=(category,))
        return f"/period?{chosen.link}"

    def of_day(day: date) -> str:
        chosen = {"day": str(day)}
        for name, values in (("region", question.regions), ("category", question.categories)):
            if len(values) == 1:
                chosen[name] = values[0]
        return f"/orders?{urlencode(chosen)}"

    def html(macro: str, **values: object) -> str:
        return board.render.macro("period", macro, values)

    ui.html(
        html(
            "filters",
            question=question,
            choices=known,
            csv=f"/download/period.csv?{question.link}",
            excel=f"/download/period.xlsx?{question.link}",
        ),
        sanitize=False,
    )
    ui.html(html("tiles", period=period), sanitize=False)
    with ui.element("div").classes("grid"):
        with ui.element("section").classes("card span-12") as drawn:
            drawn.props["aria-label"] = "Revenue by day"
            ui.html("<header><h2>Revenue by day</h2></header>", sanitize=False)
            entries = [("bars", "revenue")]
            if period.total.before is not None:
                entries.append(("week", COMPARISONS[question.compare]))
            ui.html(board.render.macro("frame", "legend", {"entries": entries}), sanitize=False)
            chart(charts.days(period), "Revenue of each day; the table below has the same")
        section("Region by category", html("cells", period=period, links=narrowed), "card span-12")
        section("Day by day", html("days", period=period, links=of_day), "card span-12")
