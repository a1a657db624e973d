"""The services that notifications go to: apprise, by URL.

A URL is a secret as a whole: elsewhere a service is known by its scheme and the start of a hash.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from retail_assets.errors import UsageError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from apprise import Apprise

Severity = Literal["warning", "failure", "success"]

HEADER = "Idempotency-Key"
FIELD = "idempotency_key"

TAKES_FIELDS = frozenset({"json", "jsons", "xml", "xmls", "form", "forms"})
"""The schemes of plain web servers: they get the key as a field."""

SECRET_LENGTH = 4
PROBLEM_LENGTH = 500


@dataclass(frozen=True)
class Message:
    """A message: one line of title, a body of plain text, and a key that identifies it."""

    key: str
    severity: Severity
    title: str
    body: str


@dataclass(frozen=True)
class Service:
    """Where a message goes."""

    url: str = field(repr=False)

    @property
    def scheme(self) -> str:
        """The scheme, in lower case."""
        return self.url.partition("://")[0].lower() if "://" in self.url else "none"

    @property
    def name(self) -> str:
        """Its name, which does not reveal the URL."""
        return f"{self.scheme}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"


def services(settings: Settings) -> list[Service]:
    """The services of the settings, each once."""
    return [Service(url) for url in dict.fromkeys(settings.notify_urls)]


def check_services(settings: Settings) -> None:
    """Make sure that apprise can use each URL.

    Raises:
        UsageError: naming the first that apprise cannot use, without its secrets.
    """
    for number, service in enumerate(services(settings), start=1):
        if _load(service) is None:
            raise UsageError(
                f"URL {number} of RETAIL_NOTIFY_URLS ({service.name}) cannot be used: compare it"
                " with the URLs in apprise's documentation of that service."
            )


def deliver(service: Service, message: Message) -> str | None:
    """Send a message to its service; waits some seconds for an answer.

    Returns:
        None if the service accepted it, otherwise why not.
    """
    apprise = _load(service, message.key)
    if apprise is None:
        return "The URL cannot be used."
    result = apprise.notify(
        # Not every service has a field for the key, but people can read it.
        body=f"{message.body}\n\nReference: {message.key}",
        title=message.title,
        notify_type=message.severity,
        body_format="text",
    )
    if result:
        return None
    said = " ".join(entry.message for entry in result.logs())
    return _without_secrets(said, service.url)[:PROBLEM_LENGTH] or "It was not accepted."


def _load(service: Service, key: str = "") -> "Apprise | None":
    """An apprise object with this service alone; None if its URL cannot be used."""
    try:
        import apprise
    except ImportError as error:
        raise UsageError(
            "RETAIL_NOTIFY_URLS needs the package apprise: install retail-assets[stream]."
        ) from error
    # Services may store something between messages: not on this machine's disk.
    asset = apprise.AppriseAsset(
        app_id="retail_assets", storage_mode=apprise.PersistentStoreMode.MEMORY
    )
    plugin = apprise.Apprise.instantiate(service.url, asset=asset)
    if plugin is None:
        return None
    if service.scheme in TAKES_FIELDS:
        own: Any = plugin
        own.headers[HEADER] = key
        own.payload_extras[FIELD] = key
    loaded = apprise.Apprise(asset=asset)
    loaded.add(plugin)
    return loaded


def _without_secrets(text: str, url: str) -> str:
    """Mask all parts of the URL, after its scheme, in a text."""
    parts = {unquote(part) for part in re.split(r"[/:@?&=#+,]", url.partition("://")[2])}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SECRET_LENGTH:
            text = text.replace(part, "•••")
    return text
