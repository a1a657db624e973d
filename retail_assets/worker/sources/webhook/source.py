"""The webhook: a source of the worker that receives events by HTTP."""

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from retail_assets.errors import UsageError

if TYPE_CHECKING:
    from retail_assets.settings import Settings
    from retail_assets.worker.inbox import Inbox
    from retail_assets.worker.sources.webhook.app import EventsEndpoint
    from retail_assets.worker.sources.webhook.server import Server

_VISIBLE = re.compile(r"[!-~]+")


class WebhookSource:
    """Answers `POST /events` with 202 once the events are durable; see `EventsEndpoint`.

    `worker` names this start of a worker alone: its positions count from 1.
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
        self._events: EventsEndpoint | None = None
        self._server: Server | None = None

    def start(self, inbox: "Inbox") -> None:
        """Listen; `port` is the one in use, even if it was 0 before.

        Raises:
            UsageError: if there is no token, or it cannot listen there.
        """
        from retail_assets.worker.sources.webhook.app import EventsEndpoint, build_app
        from retail_assets.worker.sources.webhook.server import Server

        settings = self._settings
        events = EventsEndpoint(
            inbox,
            self._worker,
            token=self._token(),
            max_bytes=settings.webhook_max_bytes,
            body_seconds=settings.webhook_body_seconds,
            per_second=settings.webhook_events_per_second,
            burst=settings.webhook_burst,
            today=self._today,
        )
        server = Server(
            build_app(events, health=self._health, metrics_text=self._metrics_text),
            connections=settings.webhook_connections,
            head_seconds=settings.webhook_body_seconds,
            on_close=events.release,
        )
        self.port = server.start(self._host, self.port)
        self._events, self._server = events, server

    def stop(self) -> None:
        """Refuse new requests with 503; those that wait for the ingest are answered."""
        if self._events:
            self._events.stop()

    def close(self) -> None:
        """Answer the requests under way and end; those that still wait for the ingest get 503."""
        self.stop()
        if self._server:
            self._server.close()

    def metrics(self) -> Mapping[str, float]:
        """Metrics: connections, requests that wait, events and requests answered so far."""
        if self._events is None or self._server is None:
            return {}
        answers = self._events.answers.copy()
        return {
            "webhook_connections": self._server.connections,
            "webhook_requests_waiting": self._events.waiting,
            "webhook_events_accepted_total": self._events.accepted_events,
            "webhook_requests_accepted_total": answers[202],
            "webhook_requests_refused_total": sum(answers.values()) - answers[202] - answers[503],
            "webhook_requests_unavailable_total": answers[503],
        }

    def problem(self) -> str | None:
        """Say why the webhook serves no more, unless it was closed."""
        return self._server.problem() if self._server else None

    def _token(self) -> bytes:
        token = self._settings.webhook_token
        if token is None or not _VISIBLE.fullmatch(token.get_secret_value()):
            raise UsageError(
                "The webhook needs a token: set RETAIL_WEBHOOK_TOKEN to a long random text"
                " of visible ASCII characters without blanks."
            )
        return token.get_secret_value().encode()

    def _today(self) -> date:
        return datetime.now(ZoneInfo(self._settings.timezone)).date()
