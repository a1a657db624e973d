"""The webhook: a source of the worker that receives events by HTTP."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from retail_assets.errors import UsageError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from retail_assets.settings import Settings
    from retail_assets.worker.inbox import Inbox
    from retail_assets.worker.sources.webhook.app import EventsEndpoint
    from retail_assets.worker.sources.webhook.senders import Proof
    from retail_assets.worker.sources.webhook.server import Server

_VISIBLE = re.compile(r"[!-~]+")


class WebhookSource:
    """Answers `POST /events` with 202 once the events are durable; see `EventsEndpoint`.

    A named sender has a path of its own, `/events/NAME`. `worker` names this start of a worker
    alone: positions count from 1, for each sender.
    """

    name = "webhook"

    def __init__(
        self,
        settings: "Settings",
        *,
        host: str,
        port: int,
        worker: str,
        health: Callable[[], tuple[bool, Mapping[str, Any]]],
        metrics_text: Callable[[], bytes],
    ) -> None:
        self._settings = settings
        self._host = host
        self.port = port
        self._worker = worker
        self._health = health
        self._metrics_text = metrics_text
        self._events: Sequence[EventsEndpoint] = ()
        self._server: Server | None = None

    def start(self, inbox: "Inbox") -> None:
        """Listen; `port` is the one in use, even if it was 0 before.

        Raises:
            UsageError: if nobody could send, or it cannot listen there.
        """
        from retail_assets.worker.sources.webhook.app import (
            EventsEndpoint,
            TokenBucket,
            build_app,
        )
        from retail_assets.worker.sources.webhook.server import Server

        settings = self._settings
        bucket = TokenBucket(settings.webhook_events_per_second, settings.webhook_burst)
        events = {
            path: EventsEndpoint(
                inbox,
                source_name,
                proof=proof,
                max_bytes=settings.webhook_max_bytes,
                body_seconds=settings.webhook_body_seconds,
                bucket=bucket,
                today=self._today,
            )
            for path, source_name, proof in self._senders()
        }

        def release() -> None:
            for each in events.values():
                each.release()

        server = Server(
            build_app(events, health=self._health, metrics_text=self._metrics_text),
            connections=settings.webhook_connections,
            head_seconds=settings.webhook_body_seconds,
            on_close=release,
        )
        self.port = server.start(self._host, self.port)
        self._events, self._server = tuple(events.values()), server

    def stop(self) -> None:
        """Refuse new requests with 503; those that wait for the ingest are answered."""
        for events in self._events:
            events.stop()

    def close(self) -> None:
        """Answer the requests under way and end; those that still wait for the ingest get 503."""
        self.stop()
        if self._server:
            self._server.close()

    def metrics(self) -> Mapping[str, float]:
        """Metrics: connections, requests that wait, events and requests answered so far."""
        if self._server is None:
            return {}
        # Copies: the thread of the server goes on counting.
        answers = sum((each.answers.copy() for each in self._events), Counter[int]())
        return {
            "webhook_connections": self._server.connections,
            "webhook_requests_waiting": sum(each.waiting for each in self._events),
            "webhook_events_accepted_total": sum(each.accepted_events for each in self._events),
            "webhook_requests_accepted_total": answers[202],
            "webhook_requests_refused_total": sum(answers.values()) - answers[202] - answers[503],
            "webhook_requests_unavailable_total": answers[503],
        }

    def problem(self) -> str | None:
        """Say why the webhook serves no more, unless it was closed."""
        return self._server.problem() if self._server else None

    def _senders(self) -> "Iterator[tuple[str, str, Proof]]":
        """The path, source name and proof of each sender."""
        from retail_assets.worker.sources.webhook.senders import BearerToken, Signature

        senders = self._settings.webhook_senders
        if self._settings.webhook_token is not None or not senders:
            token = _token(self._settings.webhook_token, "RETAIL_WEBHOOK_TOKEN")
            yield "/events", self._worker, BearerToken(token)
        for name, sender in senders.items():
            if sender.token is None:
                proof: Proof = Signature(name, sender)
            else:
                proof = BearerToken(_token(sender.token, f"the token of {name}"))
            yield f"/events/{name}", f"{name}:{self._worker}", proof

    def _today(self) -> date:
        return datetime.now(ZoneInfo(self._settings.timezone)).date()


def _token(token: "SecretStr | None", name: str) -> bytes:
    if token is None or not _VISIBLE.fullmatch(token.get_secret_value()):
        raise UsageError(
            f"The webhook needs a token: set {name} to a long random text of visible ASCII"
            " characters without blanks."
        )
    return token.get_secret_value().encode()
