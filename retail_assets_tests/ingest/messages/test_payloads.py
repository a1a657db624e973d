"""Payloads of messages: each is a line with all of it, and what is no event says why."""

import json
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retail_assets.ingest.events.lines import MAX_LINE_BYTES
from retail_assets.ingest.messages.payloads import Tombstone, original_bytes, payloads_to_arrow
from retail_assets.transforms.events import DEFECTS
from retail_assets_tests.event_files import event

EVENT = event(1).encode()
SOUND = (EVENT, None)


def read(*payloads: bytes) -> list[tuple[str, str | None]]:
    """Text and defect of each."""
    found = payloads_to_arrow(payloads)
    return list(zip(found["payload"].to_pylist(), found["defect"].to_pylist(), strict=True))


def frame(value: bytes, schema: int = 7) -> bytes:
    """What the serializers of a schema registry write."""
    return struct.pack(">bI", 0, schema) + value


@pytest.mark.parametrize(
    ("payload", "defect"),
    [
        (b"[" + EVENT + b"]", "several_events"),
        (b" [ " + EVENT + b",\n" + EVENT + b"]", "several_events"),
        (EVENT + EVENT, "several_events"),
        (EVENT + b"\r\n" + EVENT + b"\n", "several_events"),
        (frame(b"\x02\x06abc"), "binary_frame"),
        (frame(b""), "binary_frame"),
        (frame(b'{"a":\xff}'), "not_utf8"),
        (b"\0", "binary_frame"),
        (event(1).encode("utf-16"), "utf16"),
        (event(1).encode("utf-16-le"), "utf16"),
        (event(1).encode("utf-16-be"), "utf16"),
        (event(1, region="Łódź").encode("utf-32"), "utf16"),
        (b'{"a":"\xff"}', "not_utf8"),
        (b'{"a":"\0"}', "nul_byte"),
        (b'{"a":"' + b"x" * MAX_LINE_BYTES + b'"}', "line_too_long"),
        (b"\xff" * (MAX_LINE_BYTES + 1), "line_too_long"),
        (Tombstone.of(b"O1"), "tombstone"),
    ],
)
def test_what_is_no_event_as_a_whole_is_one_dead_letter_with_a_reason_of_its_own(payload, defect):
    assert defect in DEFECTS
    found = read(EVENT, payload, EVENT)
    assert [found[0], found[2]] == [(event(1), None)] * 2
    assert found[1][1] == defect
    assert original_bytes(found[1][0]) == payload


@pytest.mark.parametrize(
    "payload",
    [
        EVENT,
        event(1, note="[{}] and } {").encode(),
        event(1, lines=[{"a": 1}, {"b": 2}]).encode(),
        b"",
        b"[1, 2]",
        b"[]",
        b"{} nothing",
        b'{"a":1',
    ],
)
def test_what_the_rules_read_is_left_to_them(payload):
    assert read(payload) == [(payload.decode(), None)]


def test_json_in_the_frame_of_a_schema_registry_is_read():
    assert read(frame(EVENT), frame(EVENT, 1 << 30)) == [(event(1), None)] * 2


@pytest.mark.parametrize(
    ("key", "shown"), [(None, None), (b"O1", "O1"), (b"\xff\\x41", r"\xff\x5cx41"), (b"", "")]
)
def test_a_tombstone_keeps_its_key(key, shown):
    [(text, defect)] = read(Tombstone.of(key))
    assert (json.loads(text), defect) == ({"key": shown, "value": None}, "tombstone")


@given(st.binary() | st.text().map(str.encode))
@example(rb"\x41" + b"\x41\xff")
@example(b"\\\\x\\x5cx\0")
def test_whatever_comes_can_be_given_back(payload):
    [(text, defect)] = read(payload)
    assert payload in ((original_bytes(text),) if defect else (text.encode(), frame(text.encode())))
    [(text, defect)] = zip(
        *payloads_to_arrow([payload], "not_taken").to_pydict().values(), strict=True
    )
    assert defect == "not_taken" or original_bytes(text) == payload
