"""Webhooks of tests: a running one, what takes from its inbox, and clients that obey no rule."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx
from typing_extensions import Self

from retail_assets.ingest.messages.load import Received
from retail_assets.settings import Settings
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.webhook.source import WebhookSource

TOKEN = "right-token-of-the-tests"  # noqa: S105  # it opens nothing
SECONDS = 60
"""After so long what a test waits for will not come."""


@dataclass(frozen=True)
class Webhook:
    """A running webhook, and a client that knows its token."""

    source: WebhookSource
    inbox: Inbox
    client: httpx.Client

    def post(
        self,
        content: bytes,
        media_type: str = "application/json",
        *,
        path: str = "/events",
        **headers: str,
    ) -> httpx.Response:
        return self.client.post(
            path, content=content, headers={"Content-Type": media_type, **headers}
        )

    def take(self) -> list[Received]:
        """Take what waits in the inbox, as the worker does, and leave it undone."""
        return self.inbox.take(max_events=10**6, linger_seconds=0, timeout_seconds=SECONDS)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.source.port), timeout=SECONDS)

    def send(self, request: bytes) -> bytes:
        """Send bytes over a connection of their own; the answer without what comes after it."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)


@contextmanager
def running_webhook(
    *,
    inbox: Inbox | None = None,
    health: Callable[[], tuple[bool, Mapping[str, Any]]] = lambda: (True, {"state": "running"}),
    **changed: Any,
) -> Iterator[Webhook]:
    """Run a webhook on a free port, with the settings of the environment save what is changed."""
    inbox = inbox or Inbox()
    source = WebhookSource(
        Settings(**({"webhook_token": TOKEN} | changed)),
        host="127.0.0.1",
        port=0,
        worker="worker-1",
        health=health,
        metrics_text=lambda: b"retail_up 1\n",
    )
    source.start(inbox)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{source.port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=SECONDS,
        ) as client:
            yield Webhook(source, inbox, client)
    finally:
        source.close()


class Taker:
    """Takes from an inbox in a thread, until it is closed and empty, and says it is durable."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.durable: list[bytes] = []
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = self._inbox.take(max_events=100, linger_seconds=0, timeout_seconds=0.1)
            if not batch and self._inbox.closed:
                return
            for received in batch:
                with self.changed:
                    self.durable.extend(received.payloads)
                    self.changed.notify_all()
                received.done()


def head(*lines: str | bytes, token: str | None = TOKEN, target: str = "POST /events") -> bytes:
    """The head of a request: its first line, host, token and more header lines."""
    first = [f"{target} HTTP/1.1", "Host: localhost"]
    if token is not None:
        first.append(f"Authorization: Bearer {token}")
    raw = [line.encode() if isinstance(line, str) else line for line in [*first, *lines]]
    return b"\r\n".join([*raw, b"", b""])


def post_of(body: bytes) -> bytes:
    """A whole request with a JSON body."""
    return head("Content-Type: application/json", f"Content-Length: {len(body)}") + body


def read_answer(connection: socket.socket) -> bytes:
    """Read one answer, head and body; what came if the connection ends before."""
    answer = b""
    while True:
        found, _, body = answer.partition(b"\r\n\r\n")
        length = found.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length and len(body) >= int(length):
            return answer
        data = connection.recv(65536)
        if not data:
            return answer
        answer += data


def send_for_ever(connection: socket.socket, data: bytes) -> NoReturn:
    while True:
        connection.sendall(data)


def is_closed(connection: socket.socket) -> bool:
    """Read on until the server closes the connection."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True
