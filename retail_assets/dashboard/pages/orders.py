"""From a number to its orders, and from an order to the rows and events that brought it."""

from collections.abc import Awaitable
from datetime import date
from typing import Protocol
from urllib.parse import urlencode

from fastapi import Request
from nicegui import ui

from retail_assets.dashboard.board import Board
from retail_assets.dashboard.pages.frame import failure, frame, page
from retail_assets.dashboard.pages.unlock import unlock
from retail_assets.dashboard.reading.orders import read_lineage, read_orders
from retail_assets.dashboard.reading.period import day_of
from retail_assets.errors import RetailAssetsError, UsageError


class _Content(Protocol):
    """Reads and renders the content of a page, with personal values masked or not."""

    def __call__(self, *, unmasked: bool) -> Awaitable[str]: ...


def build(board: Board) -> None:
    """Add the pages."""

    @page("/orders", "Orders")
    async def orders(request: Request) -> None:
        query = request.query_params
        try:
            day, number = _day(query.get("day")), _page(query.get("page"))
            await _orders(board, day, query.get("region"), query.get("category"), number)
        except RetailAssetsError as error:
            with frame(board, "/period"):
                failure(board, "Orders", error)

    @page("/order", "Order")
    async def order(request: Request) -> None:
        order_id = request.query_params.get("id", "")
        try:
            await _order(board, order_id, _day(request.query_params.get("day")))
        except RetailAssetsError as error:
            with frame(board, "/period"):
                failure(board, f"Order {order_id}", error)


def _day(text: str | None) -> date:
    if text is None:
        raise UsageError("The link names no day, such as day=2026-11-01.")
    return day_of(text)


def _page(text: str | None) -> int:
    return int(text) if text and text.isdigit() and len(text) < 7 else 0  # noqa: PLR2004


async def _orders(
    board: Board, day: date, region: str | None, category: str | None, number: int
) -> None:
    chosen = {
        name: value
        for name, value in (("day", str(day)), ("region", region), ("category", category))
        if value is not None
    }

    async def content(*, unmasked: bool) -> str:
        found = await board.readers.read(
            lambda connection: read_orders(
                connection,
                board.settings,
                day,
                region,
                category,
                page=number,
                unmasked=unmasked,
            )
        )
        return board.render.macro(
            "orders",
            "orders",
            {
                "found": found,
                "day": day,
                "region": region,
                "category": category,
                "page": number,
                "link": lambda other: f"/orders?{urlencode({**chosen, 'page': other})}",
                "csv": lambda ending: f"/download/orders.{ending}?{urlencode(chosen)}",
            },
        )

    await _with_personal_values(board, content)


async def _order(board: Board, order_id: str, day: date) -> None:
    async def content(*, unmasked: bool) -> str:
        found = await board.readers.read(
            lambda connection: read_lineage(
                connection, board.settings, order_id, day, unmasked=unmasked
            )
        )
        return board.render.macro("orders", "order", {"found": found, "day": day})

    await _with_personal_values(board, content)


async def _with_personal_values(board: Board, content: _Content) -> None:
    """Show content whose personal values are masked until somebody enters the token."""
    first = await content(unmasked=False)
    with frame(board, "/period"):
        shown = ui.html(first, sanitize=False)

        async def reveal() -> None:
            shown.set_content(await content(unmasked=True))

        unlock(board, "Show personal values", reveal)
