"""What a message is: events in any of the ways people send them, or the names of event files."""

import json
from urllib.parse import quote_plus

import pytest

from retail_assets.worker.sources.queues.bodies import (
    NO_ENVELOPE,
    NO_NOTIFICATION,
    OUTSIDE_EVENTS,
    open_events,
    open_notifications,
    open_sns_events,
)

ONE, TWO = b'{"a": 1}', b'{"a": 2.50}'

found_in = open_notifications("shop", "landing zone")


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (ONE, [ONE]),
        (b'\xef\xbb\xbf {"a": 1} \n', [ONE]),
        (b"[%b, %b]" % (ONE, TWO), [ONE, TWO]),
        (b"%b\n%b\n" % (ONE, TWO), [ONE, TWO]),
        (b"%b%b" % (ONE, TWO), [ONE, TWO]),
        (b'{\n "a": 1\n}', [b'{  "a": 1 }']),
        (b"%b\nnonsense\n\n%b" % (ONE, TWO), [ONE, b"nonsense", TWO]),
        # What is no event at all is kept whole, as one.
        (b"[%b, nonsense]" % ONE, [b"[%b, nonsense]" % ONE]),
        (b"[\n%b,\n" % ONE, [b"[\n%b,\n" % ONE]),
        (b"nonsense\nof two lines", [b"nonsense\nof two lines"]),
        (b"[]", [b"[]"]),
        (b" ", [b" "]),
        (b"null", [b"null"]),
        (b"[" * 100_000, [b"[" * 100_000]),
        (b"H4sIAAAAAAAA", [b"H4sIAAAAAAAA"]),
    ],
)
def test_a_body_is_events_or_one_that_is_not_valid_and_nothing_of_it_is_lost(body, events):
    assert open_events(body).events == tuple((event, None) for event in events)


def sns(message: object, **changed: object) -> bytes:
    text = message if isinstance(message, str) else json.dumps(message)
    return json.dumps({"Type": "Notification", "TopicArn": "t", "Message": text} | changed).encode()


def test_the_envelope_of_sns_is_opened_where_it_is_declared():
    body = sns(f"[{ONE.decode()}]")
    assert open_sns_events(body).events == ((ONE, None),)
    assert open_events(body).events == ((body, None),)
    for other in (ONE, b"nonsense", sns("x", Type="SubscriptionConfirmation"), sns("x", Message=1)):
        assert open_sns_events(other).events == ((other, NO_ENVELOPE),)


def record(key: str, *, bucket: str = "shop", event: str = "ObjectCreated:Put") -> dict:
    where = {"bucket": {"name": bucket}, "object": {"key": key, "size": 3}}
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": event, "s3": where}


def notification(key: str, **changed: str) -> dict:
    """What S3 sends of an object, whose key it encodes as forms do."""
    return {"Records": [record(quote_plus(key, safe="/"), **changed)]}


def bridge(key: str, event: str = "Object Created") -> dict:
    detail = {"bucket": {"name": "shop"}, "object": {"key": key}}
    return {"version": "0", "detail-type": event, "source": "aws.s3", "detail": detail}


@pytest.mark.parametrize("envelope", ["none", "sns"])
def test_notifications_name_event_files_in_each_of_their_forms(envelope):
    def paths(body: object) -> tuple[str, ...]:
        found = found_in(sns(body) if envelope == "sns" else json.dumps(body).encode())
        assert (found.events, found.ignored) == ((), ())
        return found.paths

    # S3 writes keys as forms do; some servers also write a slash so.
    key = "landing+zone/2026-10-12/a%2Bb+%C3%A4.jsonl"
    assert paths({"Records": [record(key)]}) == ("2026-10-12/a+b ä.jsonl",)
    assert paths({"Records": [record("landing+zone%2Fa.jsonl")]}) == ("a.jsonl",)
    # EventBridge writes them as they are.
    assert paths(bridge("landing zone/a+b%20.json.gz")) == ("a+b%20.json.gz",)
    several = [record("landing+zone/a.jsonl"), record("landing+zone/b.jsonl"), bridge("x")]
    assert paths({"Records": [*several[:2], several[0]]}) == ("a.jsonl", "b.jsonl")


def test_what_asks_for_nothing_is_counted():
    test = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "shop"}
    for body, what in (
        (test, "s3:TestEvent"),
        ({"Records": [record("landing+zone/a.jsonl", event="ObjectRemoved:Delete")]}, "Removed"),
        (bridge("landing zone/a.jsonl", "Object Deleted"), "Object Deleted"),
        ({"Records": [record("landing+zone/a.csv")]}, "a.csv is no event file"),
        ({"Records": [record("landing+zone/.tmp/a.jsonl")]}, "is no event file"),
    ):
        found = found_in(json.dumps(body).encode())
        assert (found.events, found.paths, len(found.ignored)) == ((), (), 1)
        assert what in found.ignored[0]


@pytest.mark.parametrize(
    ("key", "bucket"),
    [
        ("elsewhere/a.jsonl", "shop"),
        ("landing+zone/a.jsonl", "other"),
        ("landing+zones/a.jsonl", "shop"),
        ("landing+zone/../secret/a.jsonl", "shop"),
        ("landing+zone//etc/a.jsonl", "shop"),
        ("landing+zone/", "shop"),
    ],
)
def test_an_object_outside_the_events_folder_is_a_dead_letter(key, bucket):
    found = found_in(json.dumps({"Records": [record(key, bucket=bucket)]}).encode())
    assert [defect for _, defect in found.events] == [OUTSIDE_EVENTS]
    assert json.loads(found.events[0][0]) == record(key, bucket=bucket)
    assert found.paths == ()


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[" * 100_000,
        b"null",
        b'"Records"',
        b'{"Records": []}',
        json.dumps({"Records": ["detail-type"]}).encode(),
        json.dumps({"Records": [record("")]}).encode(),
        json.dumps({"Records": [record("a%00b.jsonl")]}).encode(),
        json.dumps({"Records": [record("%ff.jsonl")]}).encode(),
        json.dumps({"Records": [{"eventName": "ObjectCreated:Put"}]}).encode(),
        json.dumps(bridge("\ud800.jsonl")).encode(),
        json.dumps(bridge("a.jsonl") | {"detail-type": 1}).encode(),
        json.dumps({"detail-type": "Object Created", "detail": {"object": {"key": 1}}}).encode(),
    ],
)
def test_what_is_no_notification_is_a_dead_letter(body):
    found = found_in(body)
    assert [defect for _, defect in found.events] == [NO_NOTIFICATION]
    assert (found.paths, found.ignored) == ((), ())


def test_of_several_in_one_message_each_has_its_own_outcome():
    records = [record("landing+zone/a.jsonl"), {"bad": 1}, record("elsewhere/b.jsonl")]
    found = found_in(json.dumps({"Records": records}).encode())
    assert found.paths == ("a.jsonl",)
    assert found.events == (
        (b'{"bad": 1}', NO_NOTIFICATION),
        (json.dumps(records[2]).encode(), OUTSIDE_EVENTS),
    )


def test_a_bucket_without_a_prefix():
    found = open_notifications("shop", "")(json.dumps({"Records": [record("a/b.jsonl")]}).encode())
    assert found.paths == ("a/b.jsonl",)
