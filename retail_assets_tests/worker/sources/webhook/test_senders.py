"""Senders of the webhook: signed requests are accepted as their services sign them, others not."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from retail_assets import secrets
from retail_assets.settings import Settings
from retail_assets.worker.sources.webhook.senders import Signature
from retail_assets_tests.worker.sources.webhook.webhooks import TOKEN, running_webhook

pytestmark = pytest.mark.usefixtures("settings")

SECRET = "secret-of-the-tests"  # noqa: S105  # it opens nothing
NOW = 1_800_000_000
BODY = b'{"order_id": "\xc3\xa4"}'


def digest(signed: bytes, secret: bytes = SECRET.encode()) -> bytes:
    return hmac.new(secret, signed, hashlib.sha256).digest()


def in_base64(signed: bytes, secret: bytes = SECRET.encode()) -> str:
    return base64.b64encode(digest(signed, secret)).decode()


def stripe(seconds: int = NOW, *, body: bytes = BODY) -> dict[str, str]:
    wrong, right = "00" * 32, digest(f"{seconds}.".encode() + body).hex()
    return {"Stripe-Signature": f"t={seconds},v1={wrong},v1={right},v0={wrong}"}


def standard(seconds: int = NOW) -> dict[str, str]:
    signed = f"msg_1.{seconds}.".encode() + BODY
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1a,AAAA v1,{in_base64(signed)}",
    }


STANDARD = {"scheme": "standard", "secret": "whsec_" + base64.b64encode(SECRET.encode()).decode()}
GITHUB = {"scheme": "hmac", "header": "X-Hub-Signature-256", "prefix": "sha256="}

SIGNED: Mapping[str, tuple[dict[str, Any], Callable[[], dict[str, str]]]] = {
    "shopify": ({"scheme": "shopify"}, lambda: {"X-Shopify-Hmac-Sha256": in_base64(BODY)}),
    "woocommerce": ({"scheme": "woocommerce"}, lambda: {"X-WC-Webhook-Signature": in_base64(BODY)}),
    "stripe": ({"scheme": "stripe"}, stripe),
    "standard": (STANDARD, standard),
    "hex": (GITHUB, lambda: {"X-Hub-Signature-256": f"sha256={digest(BODY).hex()}"}),
    "base64": (
        {"scheme": "hmac", "header": "X-Sign", "encoding": "base64"},
        lambda: {"X-Sign": in_base64(BODY)},
    ),
}


def proof(sender: dict[str, Any]) -> Signature:
    settings = Settings(webhook_senders={"shop": {"secret": SECRET, **sender}})
    return Signature("shop", settings.webhook_senders["shop"])


def refusal(
    sender: dict[str, Any], headers: Mapping[str, str], body: bytes = BODY, now: float = NOW
) -> str | None:
    """Why a request is refused, or None."""
    try:
        proof(sender).expect(Headers(headers))
        proof(sender).check(Headers(headers), body, now)
    except HTTPException as error:
        return f"{error.status_code}: {error.detail}"
    return None


@pytest.mark.parametrize("name", SIGNED)
def test_a_request_that_is_signed_is_accepted_and_another_is_not(name: str) -> None:
    sender, sign = SIGNED[name]
    headers = sign()
    assert refusal(sender, headers) is None
    assert "wrong signature" in str(refusal(sender, headers, BODY + b" "))
    other = "whsec_QUFBQQ==" if name == "standard" else "another"
    assert "wrong signature" in str(refusal({**sender, "secret": other}, headers))
    assert (
        refusal({**sender, "secret": other, "old_secret": sender.get("secret", SECRET)}, headers)
        is None
    )
    signature = list(headers)[-1]
    assert f"needs one header {signature}" in str(
        refusal(sender, {key: value for key, value in headers.items() if key != signature})
    )
    for text in ("", "=", "t=1", "v1", "sha256=0", "ä", "%", headers[signature][:20]):
        assert str(refusal(sender, {**headers, signature: text})).startswith("401: "), text


def test_two_signatures_in_headers_of_their_own_are_none() -> None:
    raw = [(b"x-shopify-hmac-sha256", in_base64(BODY).encode())] * 2
    with pytest.raises(HTTPException, match="needs one header X-Shopify-Hmac-Sha256"):
        proof({"scheme": "shopify"}).expect(Headers(raw=raw))


def test_the_example_of_the_standard_is_accepted() -> None:
    """Of its reference implementations: a secret, a message and its signature."""
    sender = {"scheme": "standard", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body = b'{"test": 2432232314}'
    assert refusal(sender, headers, body, 1614265330 + 299) is None
    assert "was signed 301 s ago" in str(refusal(sender, headers, body, 1614265330 + 301))


@pytest.mark.parametrize("sign", [stripe, standard])
def test_a_request_that_was_signed_too_long_ago_or_later_than_now_is_refused(
    sign: Callable[[int], dict[str, str]],
) -> None:
    sender = {"scheme": "stripe"} if sign is stripe else STANDARD
    for seconds, said in ((-300, None), (300, None), (-301, "301 s ago"), (301, "-301 s ago")):
        found = refusal(sender, sign(NOW + seconds))
        assert found is None if said is None else said in str(found)
    assert refusal({**sender, "tolerance_seconds": 600}, sign(NOW - 600)) is None


@pytest.mark.parametrize(
    "senders",
    [
        "no json",
        "[]",
        {"Shop": {"token": "abcd"}},
        {"a/b": {"token": "abcd"}},
        {"shop": {}},
        {"shop": {"token": "a", "secret": "b", "scheme": "shopify"}},
        {"shop": {"secret": "b"}},
        {"shop": {"secret": "", "scheme": "shopify"}},
        {"shop": {"secret": "b", "scheme": "hmac"}},
        {"shop": {"secret": "b", "scheme": "shopify", "header": "X"}},
        {"shop": {"secret": "whsec_ä", "scheme": "standard"}},
        {"shop": {"secret": "b", "scheme": "shopify", "secrets": "typo"}},
    ],
)
def test_senders_that_cannot_work_are_refused_without_their_secrets(senders: Any) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(webhook_senders=senders)
    assert "b'" not in str(error.value.errors(include_input=False))


def test_the_secrets_of_senders_are_masked() -> None:
    senders = {"shop": {"secret": "hidden-one", "scheme": "shopify"}, "till": {"token": "hidden-2"}}
    settings = Settings(webhook_senders=json.dumps(senders))
    try:
        secrets.protect(settings)
        assert secrets.mask("of hidden-one and hidden-2") == "of ••• and •••"
        assert "hidden" not in repr(settings)
    finally:
        secrets.protect(Settings())


@pytest.mark.processes
def test_each_sender_has_a_path_a_name_and_positions_of_its_own() -> None:
    senders = {
        "pay": {"secret": SECRET, "scheme": "stripe"},
        "till": {"token": "token-of-the-till"},
    }
    with running_webhook(webhook_senders=senders) as webhook, ThreadPoolExecutor() as pool:
        requests: list[tuple[str, dict[str, str]]] = [
            ("/events/pay", stripe(int(time.time()))),
            ("/events/till", {"Authorization": "Bearer token-of-the-till"}),
            ("/events/pay", stripe(int(time.time()))),
            ("/events", {}),
        ]
        found = []
        for path, headers in requests:
            answer = pool.submit(webhook.post, BODY, path=path, **headers)
            (item,) = webhook.take()
            item.done()
            assert answer.result().status_code == 202
            found.append((item.source_name, list(item.positions)))
        assert found == [
            ("pay:worker-1", [1]),
            ("till:worker-1", [1]),
            ("pay:worker-1", [2]),
            ("worker-1", [1]),
        ]
        for path, headers, code in (
            ("/events/pay", {}, 401),
            ("/events/pay", stripe(int(time.time()), body=b"{}"), 401),
            ("/events/till", {"Authorization": f"Bearer {TOKEN}"}, 401),
            ("/events", {"Authorization": "Bearer token-of-the-till"}, 401),
            ("/events/other", {}, 404),
        ):
            assert webhook.post(BODY, path=path, **headers).status_code == code, path
        assert webhook.inbox.events == 0
        metrics = webhook.source.metrics()
        assert metrics["webhook_events_accepted_total"] == 4
        assert metrics["webhook_requests_refused_total"] == 4


@pytest.mark.processes
def test_with_named_senders_alone_no_token_is_needed() -> None:
    senders = {"pay": {"secret": SECRET, "scheme": "stripe"}}
    with running_webhook(webhook_senders=senders, webhook_token=None) as webhook:
        assert webhook.post(BODY).status_code == 404
        assert webhook.post(BODY, path="/events/pay").status_code == 401
