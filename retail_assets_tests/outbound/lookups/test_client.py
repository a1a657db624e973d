"""The client of a lookup: whatever an API does, it is an answer or one sentence, and in time."""

import gzip
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from retail_assets.errors import UsageError
from retail_assets.mapping.lookups import Lookup
from retail_assets.outbound.lookups import client as client_module
from retail_assets.outbound.lookups.client import (
    FAILURES,
    FIRST_REST_SECONDS,
    LONGEST_REST_SECONDS,
    Answer,
    Breaker,
    LookupClient,
    NoAnswerError,
    Pace,
)
from retail_assets.secrets import mask, protect
from retail_assets.settings import Settings
from retail_assets_tests.outbound.lookups.api import Api, json_answer, running_api, tier_of

pytestmark = pytest.mark.processes

BOMB = gzip.compress(b" " * 10_000_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    with running_api() as api:
        yield api


@pytest.fixture
def api(server: Api) -> Iterator[Api]:
    server.answer, server.slow_seconds, server.drip_seconds = tier_of, 0.0, 0.0
    server.asked.clear()
    server.headers.clear()
    return server


def client(api: Api, settings: Settings | None = None, **changed: object) -> LookupClient:
    fields = {"field": "customer_id", "url": api.url + "/c/{value}", "keep": {"tier": "$.tier"}}
    return LookupClient("crm", Lookup(**fields | changed), settings or Settings())


def test_what_the_mapping_keeps_of_an_answer_is_kept(api, settings):
    asked = client(api, keep={"tier": "$.tier", "first": "$.more[0]", "none": "$.more[5].x"})
    expected = '{"tier": "tier of ä/b ?", "first": 1, "none": null}'
    assert asked.ask("ä/b ?") == Answer("answered", expected)
    assert api.asked == ["ä/b ?"]
    asked.close()


def test_headers_carry_secrets_that_are_masked_everywhere(api, settings, monkeypatch):
    monkeypatch.setenv("RETAIL_LOOKUP_SECRETS", '{"crm": "hush-hush"}')
    settings = Settings()
    asked = client(api, settings, headers={"Authorization": "Bearer {crm}"})
    asked.ask("C1")
    asked.close()
    assert api.headers[0]["Authorization"] == "Bearer hush-hush"
    protect(settings)
    assert "hush" not in mask("it said hush-hush") + repr(settings)
    protect(Settings.model_construct())
    with pytest.raises(UsageError, match="needs the secret other: set RETAIL_LOOKUP_SECRETS"):
        client(api, settings, headers={"Authorization": "{other}"})


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((500, {}, b"broken"), "answered 500 Internal Server Error"),
        ((401, {}, b""), "answered 401 Unauthorized"),
        ((429, {"Retry-After": "9"}, b""), "answered 429 Too Many Requests"),
        ((200, {"Content-Type": "text/html"}, b"<html>down</html>"), "answered no JSON"),
        ((200, {}, b""), "answered no JSON"),
        ((200, {}, b'{"tier": NaN}'), "answered no JSON"),
        ((200, {}, b"[" * 100_000), "answered no JSON"),
        ((200, {}, b'{"tier": "\xff"}'), "answered no JSON"),
        (json_answer({"other": 1}), r"answered nothing at \$\.tier: correct `keep`"),
        (json_answer([1]), r"answered nothing at \$\.tier"),
        (json_answer({"tier": "x" * 300_000}), "answered more than 256,000 bytes"),
        (json_answer({"tier": "x" * 20_000}), "answered more than 10,000 characters to keep"),
        ((302, {"Location": "http://elsewhere.example/"}, b""), "redirects elsewhere"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip"), "answered no JSON"),
        ((200, {"Content-Encoding": "gzip"}, BOMB), "answered more than 256,000 bytes"),
    ],
)
def test_a_wrong_answer_is_one_sentence(api, settings, answer, sentence):
    api.answer = lambda _: answer
    asked = client(api)
    with pytest.raises(
        NoAnswerError, match=f"^The API of the lookup crm at 127.0.0.1:.* {sentence}"
    ):
        asked.ask("C1")
    assert len(api.asked) == 1, "nothing else was asked"
    asked.close()


def test_an_answer_may_be_packed_with_gzip(api, settings):
    packed = gzip.compress(b'{"tier": "gold"}')
    api.answer = lambda _: (200, {"Content-Encoding": "gzip"}, packed)
    asked = client(api)
    assert asked.ask("C1") == Answer("answered", '{"tier": "gold"}')
    asked.close()


def test_an_api_that_does_not_know_the_value_has_answered(api, settings):
    api.answer = lambda _: json_answer({"error": "nobody"}, 404)
    asked = client(api)
    assert asked.ask("C1") == Answer("nobody")
    assert asked.ask("..") == Answer("refused")
    assert api.asked == ["C1"]
    asked.close()
    other = client(api, nobody=[])
    with pytest.raises(NoAnswerError, match="answered 404"):
        other.ask("C1")
    other.close()


@pytest.mark.parametrize("how", ["slow_seconds", "drip_seconds"])
def test_a_slow_answer_is_not_waited_for(api, settings, how):
    setattr(api, how, 0.1)
    asked = client(api, timeout_seconds=0.05)
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.05 seconds"):
        asked.ask("C1")
    asked.close()


def test_an_api_that_is_gone_is_one_sentence(settings):
    asked = client(Api(url="http://127.0.0.1:9"))
    with pytest.raises(NoAnswerError, match=r"at 127\.0\.0\.1:9 cannot be reached: "):
        asked.ask("C1")
    asked.close()


def test_a_huge_answer_is_not_read_to_its_end(api, settings, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_BYTES", 1000)
    api.answer = lambda _: (200, {}, b" " * 50_000_000)
    asked = client(api)
    with pytest.raises(NoAnswerError, match="more than 1,000 bytes"):
        asked.ask("C1")
    asked.close()


def test_a_breaker_gives_a_failing_api_rest_and_tries_it_again():
    now = 100.0
    breaker = Breaker(lambda: now)
    for _ in range(FAILURES - 1):
        breaker.failed()
    assert not breaker.is_open
    breaker.succeeded()
    rest = FIRST_REST_SECONDS
    for number in range(12):
        for _ in range(FAILURES if not number else 1):
            breaker.failed()
        assert breaker.is_open
        now += rest - 0.1
        assert breaker.is_open
        now += 0.2
        assert not breaker.is_open
        assert breaker.is_trying
        rest = min(2 * rest, LONGEST_REST_SECONDS)
    breaker.succeeded()
    assert not breaker.is_trying
    breaker.failed()
    assert not breaker.is_open


@pytest.mark.parametrize(
    ("header", "at_least", "at_most"),
    [
        ("9", 9, 9),
        (format_datetime(datetime.now(timezone.utc) + timedelta(days=9)), 8 * 86400, 9 * 86400),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
    ],
    ids=["seconds", "a time to come", "a time that is over"],
)
def test_an_api_says_how_long_it_is_to_be_left_alone(api, settings, header, at_least, at_most):
    api.answer = lambda _: (429, {"Retry-After": header}, b"")
    asked = client(api)
    with pytest.raises(NoAnswerError) as raised:
        asked.ask("C1")
    asked.close()
    rest = raised.value.rest_seconds
    assert rest is not None
    assert at_least <= rest <= at_most
    now = 100.0
    breaker = Breaker(lambda: now)
    breaker.failed(rest)
    assert breaker.is_open == (rest > 0)
    now += min(rest, LONGEST_REST_SECONDS) + 0.1
    assert not breaker.is_open


@pytest.mark.parametrize("header", ["", "soon", "-1", "1e9", "9" * 30])
def test_what_says_no_time_is_no_wish_to_be_left_alone(api, settings, header):
    api.answer = lambda _: (503, {"Retry-After": header}, b"")
    asked = client(api)
    with pytest.raises(NoAnswerError) as raised:
        asked.ask("C1")
    assert raised.value.rest_seconds is None
    asked.close()


def test_a_pace_is_kept_and_ends_when_it_has_to():
    pace = Pace(100)
    began = time.monotonic()
    for _ in range(6):
        assert pace.wait(lambda: False)
    assert time.monotonic() - began >= 0.05
    assert not Pace(0.001).wait(lambda: True)
