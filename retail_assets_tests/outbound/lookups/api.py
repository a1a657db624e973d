"""An API of this machine that answers as a test wants it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

Answer = tuple[int, dict[str, str], bytes]


def json_answer(value: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def tier_of(value: str) -> Answer:
    return json_answer({"tier": f"tier of {value}", "more": [1]})


@dataclass
class Api:
    """`answer` says what is answered about a value; `asked` has the values in order."""

    url: str = ""
    answer: Callable[[str], Answer] = tier_of
    slow_seconds: float = 0.0
    drip_seconds: float = 0.0
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        value = unquote(handler.path.rpartition("/")[2])
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.asked.append(value)
            self.headers.append(dict(handler.headers))
        try:
            time.sleep(self.slow_seconds)
            status, headers, body = self.answer(value)
            handler.send_response(status)
            for name, text in headers.items():
                handler.send_header(name, text)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            if self.drip_seconds:
                for number in range(len(body)):
                    handler.wfile.write(body[number : number + 1])
                    time.sleep(self.drip_seconds)
            else:
                handler.wfile.write(body)
        except OSError:
            return  # the client has left
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def running_api() -> Iterator[Api]:
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.respond(self)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        api.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
