"""The webhook's HTTP interface: the answer to each request, and why."""

import asyncio
import logging
import math
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from typing import Any

import anyio
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from retail_assets.ingest.events.lines import MAX_LINE_BYTES
from retail_assets.ingest.messages.bodies import BodyError, json_events, ndjson_events
from retail_assets.ingest.messages.load import Received
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.webhook.senders import Proof

COMMIT_SECONDS = 30.0
"""How long a request waits until its events are durable."""

RETRY_SECONDS = 1

GZIP = 16 + zlib.MAX_WBITS
"""What zlib calls a gzip member."""

READERS: Mapping[str, Callable[[bytes], list[bytes]]] = {
    "application/json": json_events,
    "application/x-ndjson": ndjson_events,
    "application/ndjson": ndjson_events,
    "application/jsonl": ndjson_events,
}
"""The function that finds the events of a body, by its media type."""

_logger = logging.getLogger(__name__)


class TokenBucket:
    """A limit to events: a rate per second, and a `burst` after a quiet time."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self.burst = burst
        self._left = float(burst)
        self._filled_at = time.monotonic()

    def seconds_until(self, count: int) -> float:
        """How long to wait until `count` events, at most the burst, are allowed."""
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        return max(0.0, (count - self._left) / self._per_second)

    def take(self, count: int) -> None:
        """Count accepted events."""
        self._left -= count


class EventsEndpoint:
    """The events of a sender's requests into the inbox, and 202 once they are durable.

    After a 503 the events may still be durable: to send them again is harmless, because an event
    counts once by its identity.
    """

    def __init__(
        self,
        inbox: Inbox,
        source_name: str,
        *,
        proof: Proof,
        max_bytes: int,
        body_seconds: float,
        bucket: TokenBucket,
        today: Callable[[], date],
    ) -> None:
        self._inbox = inbox
        self._source_name = source_name
        self._proof = proof
        self._max_bytes = max_bytes
        self._body_seconds = body_seconds
        self._today = today
        self._bucket = bucket
        self._next_position = 1
        self._offering = threading.Lock()
        self._stopped = False
        self._reading: set[anyio.CancelScope] = set()
        self._waiting: set[asyncio.Future[bool]] = set()
        self.accepted_events = 0
        self.answers: Counter[int] = Counter()

    @property
    def waiting(self) -> int:
        """How many requests wait until their events are durable."""
        return len(self._waiting)

    def stop(self) -> None:
        """Offer nothing to the inbox any more; callable from any thread."""
        with self._offering:
            self._stopped = True

    def release(self) -> None:
        """Answer the requests under way with 503; to be called in the event loop."""
        for scope in self._reading:
            scope.cancel()
        for stored in self._waiting:
            _resolve(stored, result=False)

    async def answer(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            HTTPException: 400, 401, 408, 413, 415, 422, 429 or 503: nothing of it was accepted.
        """
        try:
            accepted = await self._accept(request)
        except HTTPException as error:
            self.answers[error.status_code] += 1
            raise
        self.answers[202] += 1
        self.accepted_events += accepted
        return JSONResponse({"accepted": accepted}, 202)

    async def _accept(self, request: Request) -> int:
        self._proof.expect(request.headers)
        self._expect_room()
        events_of, compressed = _reader(request), _is_compressed(request)
        self._expect_rate(1)
        body = await self._body(request)
        offered_at = time.time()
        self._proof.check(request.headers, body, offered_at)
        try:
            events = events_of(self._decompressed(body) if compressed else body)
        except BodyError as error:
            raise HTTPException(422, str(error)) from error
        _expect_size(events)
        if len(events) > self._bucket.burst:
            raise HTTPException(
                413,
                f"{len(events)} events came at once, {self._bucket.burst} may: send fewer at once.",
            )
        if events:
            self._expect_rate(len(events))
            await self._store(events, offered_at)
        return len(events)

    def _expect_room(self) -> None:
        self._expect_running()
        if self._inbox.is_full:
            raise _unavailable("Too many events wait to be stored")

    def _expect_running(self) -> None:
        if self._stopped or self._inbox.closed:
            raise _unavailable("The worker is stopping")

    def _expect_rate(self, count: int) -> None:
        seconds = self._bucket.seconds_until(count)
        if seconds:
            raise HTTPException(
                429, "There are too many events.", {"Retry-After": str(math.ceil(seconds))}
            )

    async def _body(self, request: Request) -> bytes:
        """Read the body, within the limits of size and time."""
        headers = request.headers
        if "content-length" in headers and "transfer-encoding" in headers:
            # Proxies may disagree about where such a request ends.
            raise HTTPException(400, "A body has a length or is sent in chunks, not both.")
        if int(headers.get("content-length", 0)) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        with anyio.move_on_after(self._body_seconds) as scope:
            self._reading.add(scope)
            try:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large()
            except ClientDisconnect as error:
                raise HTTPException(400, "The body broke off.") from error
            finally:
                self._reading.discard(scope)
        if scope.cancelled_caught:
            self._expect_running()
            raise HTTPException(408, f"The body did not come within {self._body_seconds:g} s.")
        return bytes(body)

    def _decompressed(self, body: bytes) -> bytes:
        """A gzip body, within the limit of size."""
        content = bytearray()
        while body:
            member = zlib.decompressobj(wbits=GZIP)
            try:
                content += member.decompress(body, self._max_bytes + 1 - len(content))
            except zlib.error as error:
                raise HTTPException(400, f"The body is no gzip: {error}.") from error
            if len(content) > self._max_bytes:
                raise self._too_large()
            if not member.eof:
                raise HTTPException(400, "The gzip of the body breaks off.")
            body = member.unused_data
        return bytes(content)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"The body is larger than {self._max_bytes} bytes: send fewer events at once."
        )

    async def _store(self, events: list[bytes], offered_at: float) -> None:
        """Offer events to the ingest; returns once they are durable."""
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[bool] = loop.create_future()
        positions = range(self._next_position, self._next_position + len(events))
        received = Received(
            source="webhook",
            source_name=self._source_name,
            received_date=self._today(),
            positions=positions,
            payloads=events,
            offered_at=offered_at,
            done=partial(_resolve_in, loop, stored, result=True),
            failed=partial(_failed, loop, stored),
        )
        with self._offering:
            self._expect_room()
            if not self._inbox.offer(received):
                raise _unavailable("Too many events wait to be stored")
        self._next_position = positions.stop
        self._bucket.take(len(events))
        self._waiting.add(stored)
        try:
            with anyio.move_on_after(COMMIT_SECONDS):
                if await stored:
                    return
        finally:
            self._waiting.discard(stored)
        raise _unavailable("The events may not have been stored")


def _expect_size(events: list[bytes]) -> None:
    """Refuse bodies with an event that is too large to be one."""
    for number, event in enumerate(events, start=1):
        if len(event) > MAX_LINE_BYTES:
            raise HTTPException(
                413,
                f"Event {number} of the body's {len(events)} has {len(event)} bytes, an event may"
                f" have {MAX_LINE_BYTES}: make it smaller, none of them was accepted.",
            )


def _unavailable(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}: send them again.", {"Retry-After": str(RETRY_SECONDS)})


def _resolve(stored: "asyncio.Future[bool]", *, result: bool) -> None:
    if not stored.done():
        stored.set_result(result)


def _resolve_in(
    loop: asyncio.AbstractEventLoop, stored: "asyncio.Future[bool]", *, result: bool
) -> None:
    try:
        loop.call_soon_threadsafe(partial(_resolve, stored, result=result))
    except RuntimeError:
        # The loop has ended, and with it whoever waited.
        _logger.debug("The events of a request were committed after the webhook had closed.")


def _failed(loop: asyncio.AbstractEventLoop, stored: "asyncio.Future[bool]", reason: str) -> None:
    _logger.warning("Events of the webhook could not be stored, the answer is 503: %s", reason)
    _resolve_in(loop, stored, result=False)


def _reader(request: Request) -> Callable[[bytes], list[bytes]]:
    """The function that finds the events in a body of this type."""
    headers = request.headers
    media_type, _, parameters = headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "')
    reader = READERS.get(media_type.strip())
    if reader is None or charset not in {"", "utf-8", "utf8"}:
        raise HTTPException(415, f"The body's type must be one of {', '.join(READERS)}, in UTF-8.")
    return reader


def _is_compressed(request: Request) -> bool:
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise HTTPException(
            415, "The body may be plain or gzip.", {"Accept-Encoding": "gzip, identity"}
        )
    return encoding != "identity"


def build_app(
    events: Mapping[str, EventsEndpoint],
    *,
    health: Callable[[], tuple[bool, Mapping[str, Any]]],
    metrics_text: Callable[[], bytes],
) -> Starlette:
    """Build the application: endpoints by path, and for monitors, open, `/healthz`, `/metrics`.

    The answer to an error is a JSON object with one sentence, `error`.
    """

    def answer_health(_: Request) -> Response:
        healthy, report = health()
        return JSONResponse(dict(report), 200 if healthy else 503)

    def answer_metrics(_: Request) -> Response:
        return Response(metrics_text(), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(
        routes=[
            *(Route(path, each.answer, methods=["POST"]) for path, each in events.items()),
            Route("/healthz", answer_health, methods=["GET"]),
            Route("/metrics", answer_metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _show_error},
    )
    app.router.redirect_slashes = False
    return app


async def _show_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
