"""The board as a process: its pages, downloads and headers, and the task that reads the lake."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from nicegui import app, background_tasks, ui
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware

from retail_assets.dashboard import downloads
from retail_assets.dashboard.board import Board
from retail_assets.dashboard.pages import health, history, orders, period, today
from retail_assets.dashboard.pages.period import question_of, values_of
from retail_assets.dashboard.reading.courses import sources
from retail_assets.dashboard.reading.orders import orders_query
from retail_assets.dashboard.reading.period import day_of
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.settings import Settings

HEADERS = {
    # The browser itself refuses whatever would come from, or go to, another host.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'"
    " 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " font-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'self';"
    " form-action 'self'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

READY_SECONDS = 0.05

HEAD = """
<link rel="stylesheet" href="/static/board.css">
<script>
  document.documentElement.dataset.theme = (() => {
    try { const chosen = localStorage.getItem("board-theme"); if (chosen) return chosen; } catch {}
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  })();
</script>
<script defer src="/static/board.js"></script>
"""

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 22 22"><rect x="1" y="11" width="5"'
    ' height="10" fill="#0072b2"/><rect x="8.5" y="6" width="5" height="15" fill="#56b4e9"/><rect'
    ' x="16" y="1" width="5" height="20" fill="#e69f00"/></svg>'
)


def run(settings: Settings, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the board until SIGINT or SIGTERM.

    Args:
        settings: the lake, and the settings of the board.
        host: the address to listen on.
        port: the port.
        say: gets a line once the board is ready.
    """
    # NiceGUI keeps nothing for the board; were it to, not in the folder it is started in.
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(settings.lake_dir / "board"))
    board = Board.of(settings)
    build(board)
    shown = _shown(host)

    async def ready() -> None:
        # NiceGUI calls its start-up handlers before it listens.
        while not await _answers(shown.strip("[]"), port):  # noqa: ASYNC110
            await asyncio.sleep(READY_SECONDS)
        await board.poller.warm.wait()
        say(f"The board is ready: http://{shown}:{port}")

    app.on_startup(lambda: background_tasks.create(ready(), name="say that it is ready"))
    ui.run(
        host=host,
        port=port,
        title="The shop's board",
        favicon=FAVICON,
        dark=None,
        language="en-GB",
        reload=False,
        show=False,
        show_welcome_message=False,
        tailwind=False,
        uvicorn_logging_level="warning",
        timeout_graceful_shutdown=2,
    )


def build(board: Board) -> None:
    """Add pages, downloads and headers to NiceGUI's application, and the task that reads."""
    app.add_static_files("/static", str(files("retail_assets.dashboard").joinpath("static")))
    ui.add_head_html(HEAD, shared=True)
    # Pages are pushed: a bar for requests under way says nothing.
    app.config.quasar_config["loadingBar"]["skipHijack"] = True
    app.add_middleware(BaseHTTPMiddleware, dispatch=_with_headers)
    for module in (today, period, orders, history, health):
        module.build(board)
    _add_downloads(board)
    app.get("/healthz")(lambda: PlainTextResponse("ok"))

    async def start() -> None:
        tasks.append(background_tasks.create(board.poller.run(), name="read the lake"))

    async def stop() -> None:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    tasks: list[asyncio.Task[Any]] = []
    app.on_startup(start)
    app.on_shutdown(stop)


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def _with_headers(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _add_downloads(board: Board) -> None:
    async def send(query: str, name: str, ending: str) -> Response:
        written = await board.readers.run(
            lambda: downloads.write_download(board.settings, query, name, ending)
        )
        return FileResponse(
            written.path,
            media_type=written.media_type,
            filename=written.name,
            background=BackgroundTask(downloads.discard, Path(written.path)),
        )

    @app.get("/download/period.{ending}")
    async def period_file(request: Request, ending: str) -> Response:
        try:
            values = values_of(request)
            question = await board.readers.read(lambda c: question_of(board, c, values))
            name = f"revenue_{question.first}_{question.last}"
            return await send(downloads.period_rows(question), name, ending)
        except RetailAssetsError as error:
            return _refused(error)

    @app.get("/download/orders.{ending}")
    async def orders_file(request: Request, ending: str) -> Response:
        query = request.query_params
        try:
            day = day_of(query.get("day", ""))
            source = await board.readers.read(lambda c: sources(c, [day]).get(day))
            rows = orders_query(source, day, query.get("region"), query.get("category"))
            return await send(rows, f"orders_{day}", ending)
        except RetailAssetsError as error:
            return _refused(error)


def _refused(error: RetailAssetsError) -> Response:
    status = 400 if isinstance(error, UsageError) else 503
    return PlainTextResponse(str(error), status_code=status)


def _shown(host: str) -> str:
    """The host as a browser on this machine can open it."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
