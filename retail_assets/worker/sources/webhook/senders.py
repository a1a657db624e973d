"""Senders of the webhook: how a request proves who sent it.

A bearer token is checked before the body is read. A signature covers the bytes of the body as they
came, so it is checked after. A replayed request is harmless: an event counts once. Sources:

- Shopify: https://shopify.dev/docs/apps/build/webhooks/subscribe/https
- Stripe: https://docs.stripe.com/webhooks#verify-manually
- WooCommerce: https://developer.woocommerce.com/docs/apis/rest-api/v3/webhooks
- Standard Webhooks: https://www.standardwebhooks.com
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from starlette.exceptions import HTTPException

from retail_assets.webhook_senders import WebhookSender

if TYPE_CHECKING:
    from starlette.datastructures import Headers

MAX_SIGNATURES = 10
"""More in a header are not compared: a sender has one for each of its secrets."""


class Proof(Protocol):
    """What a request needs so that its events are accepted."""

    def expect(self, headers: "Headers") -> None:
        """Check what the head of a request tells.

        Raises:
            HTTPException: 401.
        """
        ...

    def check(self, headers: "Headers", body: bytes, now: float) -> None:
        """Check a body as it came, at a time in seconds since 1970.

        Raises:
            HTTPException: 401.
        """
        ...


@dataclass(frozen=True)
class BearerToken:
    """`Authorization: Bearer TOKEN`."""

    token: bytes

    def expect(self, headers: "Headers") -> None:
        """Compare the token."""
        scheme, _, token = (_only(headers, "authorization") or "").partition(" ")
        # Header values are bytes, which Starlette shows as Latin-1.
        same = hmac.compare_digest(token.strip(" ").encode("latin-1"), self.token)
        if not same or scheme.lower() != "bearer":
            raise HTTPException(
                401, "The right bearer token is needed.", {"WWW-Authenticate": "Bearer"}
            )

    def check(self, headers: "Headers", body: bytes, now: float) -> None:
        """Nothing more: the token was enough."""


@dataclass(frozen=True)
class _Claim:
    """What a request says of itself: the bytes that were signed, when, and the signatures."""

    signed: bytes
    signatures: Sequence[bytes]
    seconds: int | None = None


@dataclass(frozen=True)
class Signature:
    """HMAC-SHA256 of the body, as the scheme of a sender has it."""

    name: str
    sender: WebhookSender

    def expect(self, headers: "Headers") -> None:
        """Refuse a request without a signature before its body is read."""
        if _only(headers, self.sender.signature_header) is None:
            raise self._refused(f"needs one header {self.sender.signature_header}, its signature")

    def check(self, headers: "Headers", body: bytes, now: float) -> None:
        """Compare the signature, and the time that it covers."""
        claim = self._claim(headers, body)
        if claim is None:
            raise self._refused(f"has a header {self.sender.signature_header} that cannot be read")
        expected = [hmac.digest(key, claim.signed, hashlib.sha256) for key in self.sender.keys]
        # Compared in constant time, all of them.
        same = [
            hmac.compare_digest(one, other)
            for one in expected
            for other in claim.signatures[:MAX_SIGNATURES]
        ]
        if not any(same):
            raise self._refused("has a wrong signature: its secret or its body is another")
        if claim.seconds is not None and abs(now - claim.seconds) > self.sender.tolerance_seconds:
            raise self._refused(
                f"was signed {now - claim.seconds:.0f} s ago, more than"
                f" {self.sender.tolerance_seconds:g} s"
            )

    def _claim(self, headers: "Headers", body: bytes) -> _Claim | None:
        given = _only(headers, self.sender.signature_header) or ""
        try:
            if self.sender.scheme == "stripe":
                return _stripe(given, body)
            if self.sender.scheme == "standard":
                return _standard(headers, given, body)
            hexadecimal = self.sender.scheme == "hmac" and self.sender.encoding == "hex"
            decode: Callable[[str], bytes] = bytes.fromhex if hexadecimal else _base64
            if not given.startswith(self.sender.prefix):
                return None
            return _Claim(body, [decode(given.removeprefix(self.sender.prefix))])
        except (ValueError, binascii.Error):
            return None

    def _refused(self, why: str) -> HTTPException:
        return HTTPException(401, f"A request of the sender {self.name} {why}.")


def _stripe(given: str, body: bytes) -> _Claim:
    """`Stripe-Signature: t=SECONDS,v1=HEX,v1=HEX`; signed is `SECONDS.BODY`."""
    parts = [part.strip().partition("=") for part in given.split(",")]
    (seconds,) = [value for key, _, value in parts if key == "t"]
    signatures = [bytes.fromhex(value) for key, _, value in parts if key == "v1"]
    return _Claim(f"{seconds}.".encode("latin-1") + body, signatures, int(seconds))


def _standard(headers: "Headers", given: str, body: bytes) -> _Claim:
    """`webhook-signature: v1,BASE64 v1,BASE64`; signed is `ID.SECONDS.BODY`."""
    number, seconds = _only(headers, "webhook-id"), _only(headers, "webhook-timestamp")
    if number is None or seconds is None:
        raise ValueError("id or timestamp is missing")
    return _Claim(
        f"{number}.{seconds}.".encode("latin-1") + body, list(_versions(given)), int(seconds)
    )


def _versions(given: str) -> Iterator[bytes]:
    for part in given.split(" "):
        version, _, text = part.partition(",")
        if version == "v1":
            yield _base64(text)


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _only(headers: "Headers", name: str) -> str | None:
    """A header that is there once."""
    found = headers.getlist(name)
    return found[0] if len(found) == 1 else None
