"""Asks for the board's token before something is changed, or personal values are shown."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import ui

from retail_assets.dashboard.actions import may_write
from retail_assets.dashboard.board import Board

ATTEMPT_SECONDS = 1.0
"""How long a wrong token takes; one attempt at a time, of all pages together."""

_attempts = asyncio.Lock()


def unlock(board: Board, what: str, then: Callable[[], Awaitable[None]]) -> None:
    """Add a field for the token, and call a function once it is right.

    Args:
        board: the board.
        what: what the token is for, on the button.
        then: called in the page's context.
    """
    if board.settings.dashboard_token is None:
        ui.html(
            "The board only reads, and masks personal values. A token in"
            " <code>RETAIL_DASHBOARD_TOKEN</code> lets people who know it do more.",
            sanitize=False,
            tag="p",
        ).classes("small muted")
        return
    with ui.row().classes("filters items-end") as row:
        token = ui.input("Token", password=True).props("dense outlined autocomplete=off")

        async def attempt() -> None:
            async with _attempts:
                if may_write(board.settings, token.value or ""):
                    row.set_visibility(False)
                    await then()
                    return
                await asyncio.sleep(ATTEMPT_SECONDS)
            ui.notify("That is not the token of this board.", type="negative")

        token.on("keydown.enter", attempt)
        ui.button(what, on_click=attempt, color=None).props("no-caps flat").classes("primary")
