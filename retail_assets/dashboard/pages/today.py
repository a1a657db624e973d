"""The page Today."""

from typing import Any

from nicegui import ui

from retail_assets.dashboard import charts
from retail_assets.dashboard.board import Board
from retail_assets.dashboard.pages.frame import chart, follow, frame, page, redraw, section, show
from retail_assets.dashboard.watch import View

LEGEND = (
    ("now", "this day"),
    ("week", "a week before"),
    ("median", "usual"),
    ("area", "range of earlier weeks"),
)
"""The lines of the day's course: the style of each swatch, and its name."""

WAITING = '<div class="head"><h1>Today</h1></div>'


def build(board: Board) -> None:
    """Add the page."""

    @page("/", "Today")
    def today() -> None:
        with frame(board, "/"):
            _Today(board)


class _Today:
    """The sections of one open page."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._paused = False
        self._headline = ui.html(WAITING, sanitize=False)
        self._body = ui.element("div")
        with self._body:
            self._tiles = ui.html("", sanitize=False)
            with ui.element("div").classes("grid"):
                with ui.element("section").classes("card span-8") as course:
                    course.props["aria-label"] = "The course of the day"
                    ui.html("<header><h2>The course of the day</h2></header>", sanitize=False)
                    ui.html(
                        board.render.macro("frame", "legend", {"entries": LEGEND}), sanitize=False
                    )
                    self._course = chart({}, "Revenue so far, beside a week before and usual days")
                    self._points = ui.html("", sanitize=False)
                self._regions = section("By region", classes="card span-4")
                with ui.element("section").classes("card span-7") as feed:
                    feed.props["aria-label"] = "Live feed"
                    with ui.element("div").classes("title"):
                        ui.html("Newest events", sanitize=False, tag="h2")
                        self._pause = ui.html("Pause", sanitize=False, tag="button")
                        self._pause.classes("small-button").on("click", self._toggle)
                        self._pause.props["type"] = "button"
                    self._minutes = chart(
                        {}, "Revenue of each minute of the last hour", "chart low"
                    )
                    self._feed = ui.html("", sanitize=False)
                self._alerts = section("Fraud alerts", classes="card span-5")
                self._stock = section("Stock running low", classes="card span-6")
                self._letters = section("Dead letters", classes="card span-6")
        self._show(board.watch.view)
        follow(board, self._show)

    def _toggle(self) -> None:
        self._paused = not self._paused
        show(self._pause, "Resume" if self._paused else "Pause")
        self._show(self._board.watch.view)

    def _show(self, view: View) -> None:
        parts = self._board.once("today", view, lambda each: _parts(self._board, each))
        self._body.set_visibility(bool(parts))
        if not parts:
            show(self._headline, WAITING)
            return
        for name in ("headline", "tiles", "regions", "alerts", "stock", "letters", "points"):
            show(getattr(self, f"_{name}"), parts[name])
        redraw(self._course, parts["course"])
        redraw(self._minutes, parts["minutes"])
        if not self._paused:
            show(self._feed, parts["feed"])


def _parts(board: Board, view: View) -> dict[str, Any]:
    """The content of each section, made once for all open pages; empty without numbers."""
    revenue, events = view.revenue, view.events
    if revenue is None or events is None:
        return {}

    def html(macro: str, **values: Any) -> str:
        return board.render.macro("today", macro, values)

    return {
        "headline": html("headline", revenue=revenue),
        "tiles": html("tiles", revenue=revenue, weekday=f"{revenue.day:%A}"),
        "regions": html("regions", revenue=revenue),
        "feed": html("feed", events=events, day=revenue.day),
        "alerts": html("alerts", events=events),
        "stock": html("stock", products=view.low_stock),
        "letters": html("letters", events=events),
        "points": html("course_table", points=charts.course_points(revenue)),
        "course": charts.course(revenue),
        "minutes": charts.last_minutes(revenue),
    }
