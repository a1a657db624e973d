"""The HTTP server of the webhook: uvicorn in a thread of its own, with limits to what clients hold.

A reverse proxy does all of this too. Without one, clients without the token cannot hold connections
for long, or more of them than the limit.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import h11
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from retail_assets.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_SECONDS = 1.0
LINGER_BYTES = 4 << 20
"""How much of a refused body is read and dropped: closed earlier, the client loses the answer."""

SHUTDOWN_SECONDS = 5

LAST_PORT = 65_535


class Server:
    """Serves an ASGI application from a thread, from `start` to `close`.

    `on_close` is called in the event loop before the last requests are waited for.
    """

    def __init__(
        self,
        app: "ASGIApp",
        *,
        connections: int,
        head_seconds: float,
        on_close: Callable[[], None],
    ) -> None:
        class Connection(_Connection):
            max_connections = connections
            max_head_seconds = head_seconds

        config = uvicorn.Config(
            CloseUnread(app),
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            # Not warnings: anyone can cause them, by invalid requests.
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._socket: socket.socket | None = None
        self._failure: BaseException | None = None
        self._on_close = on_close
        self._looping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, host: str, port: int) -> int:
        """Listen, and serve from a thread.

        Returns:
            The port, which the system chooses if it was 0.

        Raises:
            UsageError: if it cannot listen there.
        """
        self._socket = _listen(host, port)
        bound: int = self._socket.getsockname()[1]
        self._thread.start()
        return bound

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def problem(self) -> str | None:
        """Why it stopped serving, unless it was closed."""
        if self._server.should_exit or self._thread.is_alive():
            return None
        return f"the webhook's server has ended ({self._failure!r}): restart the worker"

    def close(self) -> None:
        """Answer the requests under way, and end."""
        self._looping.wait()
        if self._loop and self._thread.is_alive() and not self._server.should_exit:
            self._loop.call_soon_threadsafe(self._end)
        # A request of a monitor that hangs must not delay the end of the worker.
        self._thread.join(2 * SHUTDOWN_SECONDS)

    def _end(self) -> None:
        self._on_close()
        self._server.should_exit = True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # the worker reports it, whatever it is
            self._failure = error
        finally:
            self._looping.set()

    async def _serve(self) -> None:
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._looping.set()
        await self._server.serve(sockets=[self._socket])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= LAST_PORT:
        raise _cannot_listen(host, port, f"the last port is {LAST_PORT}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, reason: object) -> UsageError:
    return UsageError(
        f"The webhook cannot listen on {host}:{port} ({reason}):"
        " choose an address of this machine and a free port."
    )


class _Connection(H11Protocol):
    """A connection that is closed if no whole head of a request comes in time.

    By itself, uvicorn waits forever for the rest of a head, and has no limit to idle connections.
    """

    max_connections: int
    max_head_seconds: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this only for sockets that name their protocol. Without it, the end of an
        # answer waits 40 ms for the client's acknowledgement of its beginning.
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > 2 * self.max_connections:
            transport.abort()
            return
        if len(self.connections) > self.max_connections:
            self.app = CloseUnread(too_many_connections)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        self._expect_head()
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # uvicorn answers invalid HTTP with 400, even if the request was answered already.
            self.transport.abort()
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._deadline is None and self.conn.their_state is h11.IDLE:
            self._deadline = self.loop.call_later(self.max_head_seconds, self.transport.abort)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def too_many_connections(scope: "Scope", receive: "Receive", send: "Send") -> None:
    """Answer any request with 503."""
    response = JSONResponse(
        {"error": "There are too many connections: try again."},
        503,
        {"Retry-After": "1", "Connection": "close"},
    )
    await response(scope, receive, send)


class CloseUnread:
    """Closes the connection after an answer to a request whose body was not read whole.

    The answer goes out at once. Then a little more is read, so that the client gets the answer.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Serve one request."""
        headers = dict(scope["headers"])
        unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers

        async def watched_receive() -> "Message":
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body", False))
            return message

        async def closing_send(message: "Message") -> None:
            if not unread:
                await send(message)
            elif message["type"] == "http.response.start":
                closing = [*message["headers"], (b"connection", b"close")]
                await send({**message, "headers": closing})
            elif message.get("more_body"):
                await send(message)
            else:
                await send({**message, "more_body": True})
                await _drop(receive)
                await send({"type": "http.response.body", "body": b""})

        await self._app(scope, watched_receive, closing_send)


async def _drop(receive: "Receive") -> None:
    dropped = 0
    with anyio.move_on_after(LINGER_SECONDS):
        while dropped < LINGER_BYTES:
            message: Any = await receive()
            dropped += len(message.get("body", b""))
            if not message.get("more_body"):
                return
