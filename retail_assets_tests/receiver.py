"""A web server that notifications of tests go to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """A web server that keeps what it gets, and answers as it is told by path (200 otherwise)."""

    port: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    got: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    before_answer: Callable[[], None] | None = None

    def url(self, path: str = "/hook") -> str:
        return f"json://127.0.0.1:{self.port}{path}"

    def titles(self, path: str = "/hook") -> list[str]:
        return [payload["title"] for where, payload, _ in self.got if where == path]

    def texts(self) -> list[str]:
        return [payload["message"] for _, payload, _ in self.got]

    def keys(self) -> list[str]:
        return [payload["idempotency_key"] for _, payload, _ in self.got]


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.got.append((self.path, payload, self.headers["Idempotency-Key"]))
            if receiver.before_answer is not None:
                receiver.before_answer()
            self.send_response(receiver.answers.get(self.path, 200))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
