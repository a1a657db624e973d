"""The client of a lookup: one question to an API, within limits, whatever it answers."""

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from retail_assets.errors import RetailAssetsError, UsageError

if TYPE_CHECKING:
    from retail_assets.mapping.lookups import Lookup
    from retail_assets.settings import Settings

ANSWERED, NOBODY, REFUSED = "answered", "nobody", "refused"

MAX_BYTES = 256_000
"""A larger answer is refused."""

GZIP = "gzip"

MAX_KEPT = 10_000
"""What is kept of an answer has at most so many characters."""

STOP_SECONDS = 0.1
"""How soon somebody who waits for a turn notices that all is to end."""

FAILURES = 5
"""After so many failures in a row the breaker opens: the API has rest."""

FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 10.0, 600.0
"""How long the breaker is open, first and at most; each time twice as long as before."""


class NoAnswerError(RetailAssetsError):
    """An API that gave no answer, for a reason that may pass.

    `rest_seconds` is for how long it asks to be left alone, if it does.
    """

    rest_seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """What an API says of a value: `answer` is a JSON object, null unless the state is answered."""

    state: str
    answer: str | None = None


class Breaker:
    """Says whether to ask: not for a while after several failures in a row; for several threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures = 0
        self._rest = FIRST_REST_SECONDS
        self._closed_at = 0.0
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether nobody is to ask now."""
        return self._now() < self._closed_at

    @property
    def is_trying(self) -> bool:
        """Whether one question shows if the API works again."""
        return self._failures >= FAILURES and not self.is_open

    def succeeded(self) -> None:
        """Note an answer."""
        with self._lock:
            self._failures, self._rest, self._closed_at = 0, FIRST_REST_SECONDS, 0.0

    def failed(self, rest_seconds: float | None = None) -> None:
        """Note that there was none, and for how long the API asks to be left alone."""
        with self._lock:
            self._failures += 1
            if rest_seconds is not None:
                rest = min(rest_seconds, LONGEST_REST_SECONDS)
                self._closed_at = max(self._closed_at, self._now() + rest)
            elif self._failures >= FAILURES and not self.is_open:
                self._closed_at = self._now() + self._rest
                self._rest = min(2 * self._rest, LONGEST_REST_SECONDS)


class Pace:
    """Lets so many through in a second; for several threads."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: Callable[[], bool]) -> bool:
        """Wait for one's turn; returns False if it was stopped before."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._interval
        while (left := turn - time.monotonic()) > 0 and not stop():
            time.sleep(min(left, STOP_SECONDS))
        return not stop()


class LookupClient:
    """Asks the API of one lookup; for several threads.

    Redirects are not followed: they may lead to any host, with the headers.
    """

    def __init__(self, name: str, lookup: "Lookup", settings: "Settings") -> None:
        """Make a client; nothing is asked yet.

        Raises:
            UsageError: if a secret is missing, or a package.
        """
        try:
            import httpx
        except ImportError as error:
            raise UsageError(
                f"The lookup {name} needs a package that is not installed ({error}): install the"
                " extra `stream`."
            ) from error
        secrets = {key: text.get_secret_value() for key, text in settings.lookup_secrets.items()}
        missing = sorted(lookup.secrets - secrets.keys())
        if missing:
            raise UsageError(
                f"The lookup {name} needs the secret {missing[0]}: set RETAIL_LOOKUP_SECRETS to"
                f' {{"{missing[0]}": "…"}}.'
            )
        self.name = name
        self.lookup = lookup
        self._client = httpx.Client(
            headers={
                "Accept": "application/json",
                "Accept-Encoding": GZIP,
                **lookup.header_values(secrets),
            },
            timeout=lookup.timeout_seconds,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=lookup.concurrency),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, value: str) -> Answer:
        """Ask about a value.

        Raises:
            NoAnswerError: if there is no answer, with the reason; the value is asked again later.
        """
        url = self.lookup.url_of(value)
        if url is None:
            return Answer(REFUSED)
        import httpx

        try:
            status, body = self._fetch(url)
        except httpx.TimeoutException:
            raise self._error(
                f"gave no answer within {self.lookup.timeout_seconds:g} seconds"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._error(f"cannot be reached: {str(error) or type(error).__name__}") from None
        if status in self.lookup.nobody:
            return Answer(NOBODY)
        return Answer(ANSWERED, self._kept(_parsed(body)))

    def _fetch(self, url: str) -> tuple[int, bytes]:
        """The status and the body of an answer, bounded in time and size."""
        import httpx

        deadline = time.monotonic() + self.lookup.timeout_seconds
        with self._client.stream("GET", url) as response:
            status = response.status_code
            if status in self.lookup.nobody:
                return status, b""
            if response.is_redirect:
                raise self._error(f"redirects elsewhere ({status}), which is not followed")
            if not response.is_success:
                error = self._error(f"answered {status} {response.reason_phrase}".rstrip())
                error.rest_seconds = _rest_seconds(response.headers.get("Retry-After", ""))
                raise error
            body = b""
            for part in response.iter_raw():
                body += part
                self._check_size(body)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer took too long")
            if response.headers.get("Content-Encoding", "").lower() == GZIP:
                body = _unpacked(body)
                self._check_size(body)
        return status, body

    def _check_size(self, body: bytes) -> None:
        if len(body) > MAX_BYTES:
            raise self._error(f"answered more than {MAX_BYTES:,} bytes")

    def _kept(self, found: Any) -> str:
        if found is _NO_JSON:
            raise self._error("answered no JSON")
        kept = {name: _at(found, path) for name, path in self.lookup.keep.items()}
        if all(value is None for value in kept.values()):
            paths = ", ".join(self.lookup.keep.values())
            raise self._error(f"answered nothing at {paths}: correct `keep`")
        text = json.dumps(kept, ensure_ascii=False, allow_nan=False)
        if len(text) > MAX_KEPT:
            raise self._error(f"answered more than {MAX_KEPT:,} characters to keep")
        return text

    def _error(self, what: str) -> NoAnswerError:
        return NoAnswerError(
            f"The API of the lookup {self.name} at {urlsplit(self.lookup.url).netloc} {what}."
        )


_NO_JSON = object()


def _rest_seconds(retry_after: str) -> float | None:
    """The seconds of a header Retry-After, which has these or a time; None if it has neither."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())


def _unpacked(body: bytes) -> bytes:
    """What gzip has packed, as far as it may be an answer; nothing if it is no gzip."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, MAX_BYTES + 1)
    except zlib.error:
        return b""


def _not_json(_: str) -> None:
    raise ValueError


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return _NO_JSON


def _at(found: Any, path: str) -> Any:
    """The value at a JSON path of names and numbers; None if there is none."""
    for name, number in re.findall(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]", path):
        if name:
            found = found.get(name) if isinstance(found, Mapping) else None
        else:
            is_there = isinstance(found, list) and int(number) < len(found)
            found = found[int(number)] if is_there else None
    return found
