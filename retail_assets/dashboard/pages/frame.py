"""The frame of every page: the bar with the verdict, the state of the lake, and live sections."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nicegui import ui

from retail_assets.dashboard.board import Board
from retail_assets.dashboard.watch import View
from retail_assets.errors import RetailAssetsError
from retail_assets.explain import explain

TITLE = "The shop's board"

THEME = '<button id="theme" type="button" title="Light or dark">Dark</button>'


def page(path: str, title: str) -> ui.page:
    """A page of the board: `title` is the window's, slow reads may take their time."""
    return ui.page(path, title=f"{title} – {TITLE}", response_timeout=120)  # noqa: RUF001


@contextmanager
def frame(board: Board, path: str) -> Iterator[None]:
    """Lay out a page, whose content is made within; its bar follows the lake.

    Args:
        board: the board.
        path: which entry of the bar is the current one.
    """

    def chip(view: View) -> str:
        return board.render.macro("frame", "verdict", {"health": view.health, "state": view.state})

    with ui.header(fixed=False, wrap=False), ui.element("div").classes("bar"):
        bar = ui.html(board.render.macro("frame", "bar", {"page": path}), sanitize=False)
        bar.classes("pass")
        with ui.element("div").classes("end"):
            verdict = ui.html(board.once("chip", board.watch.view, chip), sanitize=False)
            ui.html(THEME, sanitize=False)
    main = ui.element("div").classes("board")
    ui.skip_link("Skip to the content", target=main)
    with main:
        state = ui.html(_state(board, board.watch.view), sanitize=False)
        yield

    def update(view: View) -> None:
        show(verdict, board.once("chip", view, chip))
        show(state, _state(board, view))

    follow(board, update)


def _state(board: Board, view: View) -> str:
    made: str = board.once(
        "state", view, lambda v: board.render.macro("frame", "state", {"view": v})
    )
    return made


def follow(board: Board, update: Callable[[View], None]) -> None:
    """Call a function with each new view, as long as the page is open."""
    board.changed.subscribe(update)
    board.poller.opened()
    ui.context.client.on_delete(board.poller.closed)


def show(element: ui.html, content: str) -> None:
    """Put content into an element, unless it is there already."""
    if element.content != content:
        element.set_content(content)


def section(label: str, content: str = "", classes: str = "card") -> ui.html:
    """A section of the page, a landmark with a name."""
    made = ui.html(content, sanitize=False, tag="section").classes(classes)
    made.props["aria-label"] = label
    return made


def chart(options: Mapping[str, Any], label: str, classes: str = "chart") -> ui.echart:
    """A chart, described in words for those who do not see it."""
    made = ui.echart(dict(options), renderer="svg").classes(classes)
    made.props["role"] = "img"
    made.props["aria-label"] = label
    return made


def redraw(element: ui.echart, options: Mapping[str, Any]) -> None:
    """Give a chart other options, unless it has them already."""
    if element.options != options:
        element.options.clear()
        element.options.update(options)
        element.update()


def failure(board: Board, title: str, error: BaseException) -> None:
    """Show an error in the page as a sentence."""
    text = str(error) if isinstance(error, RetailAssetsError) else " ".join(explain(error))
    ui.html(board.render.macro("frame", "error", {"title": title, "text": text}), sanitize=False)
