"""The page Health: the verdict, lags, and what may be repaired with the token."""

from collections.abc import Awaitable, Callable
from datetime import date
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
from fastapi import Request
from nicegui import ui

from retail_assets.dashboard import actions, charts
from retail_assets.dashboard.board import Board
from retail_assets.dashboard.pages.frame import chart, follow, frame, page, redraw, section, show
from retail_assets.dashboard.pages.unlock import unlock
from retail_assets.dashboard.reading.events import newest_dead_letters
from retail_assets.dashboard.reading.period import day_of
from retail_assets.dashboard.watch import View, utc_now
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.repair import dead_letters
from retail_assets.tables import MASKED
from retail_assets.transforms.events import REASONS

WAITING = '<div class="head"><h1>Health</h1></div>'

SHOWN_LETTERS = 20


def build(board: Board) -> None:
    """Add the page."""

    @page("/health", "Health")
    async def health(request: Request) -> None:
        reason, day = request.query_params.get("reason"), request.query_params.get("day")
        with frame(board, "/health"):
            shown = _Health(board)
            ui.html('<span id="letters"></span>', sanitize=False)
            letters = ui.element("section").classes("card")
            letters.props["aria-label"] = "Open dead letters"
            with letters:
                ui.html("<h2>Open dead letters</h2>", sanitize=False)
        await ui.context.client.connected()
        await _Letters(board, letters, reason, day).fill()
        shown.ready()


class _Health:
    """The live sections of one open page."""

    def __init__(self, board: Board) -> None:
        self._board = board
        ui.html(WAITING, sanitize=False)
        self._verdict = ui.html("", sanitize=False)
        self._body = ui.element("div")
        with self._body:
            self._tiles = ui.html("", sanitize=False)
            with ui.element("div").classes("grid"):
                with ui.element("section").classes("card span-12") as drawn:
                    drawn.props["aria-label"] = "Events of the last hour"
                    ui.html("<h2>Events of the last hour</h2>", sanitize=False)
                    self._hour = chart({}, "Events of each minute of the last hour", "chart low")
                self._workers = section("Workers", classes="card span-6")
                self._sources = section("Sources of events", classes="card span-6")
                self._consumers = section("Consumers", classes="card span-6")
                self._upkeep = section("Upkeep", classes="card span-6")
        self._show(board.watch.view)
        follow(board, self._show)

    def ready(self) -> None:
        """Show what came while the rest of the page was read for."""
        self._show(self._board.watch.view)

    def _show(self, view: View) -> None:
        parts = self._board.once("health", view, lambda each: _parts(self._board, each))
        self._body.set_visibility(bool(parts))
        for name in ("verdict", "tiles", "workers", "sources", "consumers", "upkeep"):
            show(getattr(self, f"_{name}"), parts.get(name, ""))
        if parts:
            redraw(self._hour, parts["hour"])


def _parts(board: Board, view: View) -> dict[str, Any]:
    """The content of each section, made once for all open pages; empty without any."""
    health = view.health
    if health is None:
        return {}

    def html(macro: str, **values: Any) -> str:
        return board.render.macro("health", macro, {"health": health, **values})

    return {
        "verdict": html("verdict"),
        "tiles": html("tiles"),
        "workers": html("workers", dagster=board.dagster_url),
        "sources": html("sources"),
        "consumers": html("consumers"),
        "upkeep": html("upkeep", dagster=board.dagster_url),
        "hour": charts.last_hour(health.last_hour),
    }


class _Letters:
    """The open dead letters of a day, and, for those who know the token, their repair."""

    def __init__(
        self, board: Board, place: ui.element, reason: str | None, day: str | None
    ) -> None:
        self._board = board
        self._place = place
        self._reason = reason
        self._day = day
        self._unlocked = False

    async def fill(self) -> None:
        """Read the dead letters, and show them in place of what is there."""

        def read(connection: duckdb.DuckDBPyConnection) -> tuple[list[dict[str, Any]], date]:
            day = day_of(self._day) if self._day else newest_dead_letters(connection, today)
            found = dead_letters.find(
                connection, reason=self._reason, day=day, open_only=True, limit=SHOWN_LETTERS
            )
            return found, day

        today = utc_now().astimezone(ZoneInfo(self._board.settings.timezone)).date()
        try:
            found, day = await self._board.readers.read(read)
        except RetailAssetsError as error:
            self._place.clear()
            with self._place:
                ui.label(str(error))
            return
        self._place.clear()
        with self._place:
            self._list(found, day)

    def _list(self, found: list[dict[str, Any]], day: date) -> None:
        render = self._board.render
        values = {"found": found, "reason": self._reason, "day": day}
        ui.html(render.macro("health", "letters", values), sanitize=False)
        for letter in found:
            with ui.element("div").classes("letter"):
                payload = letter["payload"] if self._unlocked else MASKED
                shown = {
                    "found": letter,
                    "rule": REASONS.get(letter["reason"], ""),
                    "payload": payload,
                }
                ui.html(render.macro("health", "letter", shown), sanitize=False)
                if self._unlocked:
                    self._repair(letter)
        if self._unlocked:
            self._rewind()
        else:
            unlock(self._board, "Repair, and show payloads", self._unlock)

    async def _unlock(self) -> None:
        self._unlocked = True
        await self.fill()

    def _repair(self, letter: dict[str, Any]) -> None:
        corrected = ui.textarea(
            f"Corrected payload of {letter['id']}", value=letter["payload"]
        ).props("outlined autogrow")
        corrected.classes("w-full")

        async def redrive() -> None:
            text = corrected.value if corrected.value != letter["payload"] else None
            await self._act(
                f"Redrive {letter['id']}?",
                "It is validated again, and if it is valid its event counts from then on.",
                partial(actions.redrive, self._board.settings, letter["id"], text),
            )

        ui.button("Redrive", on_click=redrive, color=None).props("no-caps flat").classes(
            "small-button"
        )

    def _rewind(self) -> None:
        view = self._board.watch.view
        names = [each.name for each in view.health.consumers] if view.health else []
        with ui.row().classes("items-end"):
            chosen = ui.select(names, label="Consumer", value=names[0] if names else None)
            chosen.props("outlined dense")

            async def rewind() -> None:
                await self._act(
                    f"Recompute all tables of {chosen.value}?",
                    "Its tables are made again from all events; the worker goes on meanwhile, but"
                    " waits while they are written.",
                    partial(actions.rewind, self._board.settings, str(chosen.value)),
                )

            ui.button("Rewind the consumer", on_click=rewind, color=None).props(
                "no-caps flat"
            ).classes("small-button")

    async def _act(
        self, question: str, consequence: str, action: Callable[[], actions.Outcome]
    ) -> None:
        if not await _confirmed(question, consequence):
            return
        try:
            outcome: actions.Outcome = await self._board.readers.run(action)
        except RetailAssetsError as error:
            ui.notify(str(error), type="negative", multi_line=True, timeout=15_000)
            return
        ui.notify(
            outcome.sentence,
            type="positive" if outcome.done else "warning",
            multi_line=True,
            timeout=10_000,
        )
        await self.fill()


def _confirmed(question: str, consequence: str) -> Awaitable[Any]:
    """Ask whether to go on; True if so."""
    with ui.dialog() as dialog, ui.card():
        ui.label(question).classes("question")
        ui.label(consequence)
        with ui.row():
            for answer in (True, False):
                button = ui.button(
                    "Go on" if answer else "Leave it",
                    on_click=partial(dialog.submit, answer),
                    color=None,
                )
                button.props("no-caps flat").classes("primary" if answer else "small-button")
    return dialog
