"""What is cut out of the body of a request to the webhook."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.ingest.messages.bodies import BodyError, json_events, ndjson_events

OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


def test_the_text_of_each_event_in_an_array_stays_as_it_was_sent():
    events = [
        b'{"order_value_gbp":10.10,"big":123456789012345678901234567890,"huge":1e999}',
        b'{ "order_value_gbp" : 1.0E+2 , "nested": [ {"a": [1.50]} ,{} ], "b": "\\u00e9, ]}" }',
        '{"é":"£","é":"twice"}'.encode(),
        b"{}",
    ]
    assert json_events(b" [" + b" ,\t".join(events) + b"] \r\n") == events


def test_a_single_object_is_one_event():
    assert json_events(b'\n{"a": -0.0} ') == [b'{"a": -0.0}']


def test_an_empty_array_has_no_events():
    assert json_events(b" [ ] ") == []


def test_line_breaks_between_the_parts_of_an_event_become_blanks():
    pretty = b'[{\r\n"a": 1,\n"b": "x\\ny"\n},\n{"c":\r2}]'
    assert json_events(pretty) == [b'{  "a": 1, "b": "x\\ny" }', b'{"c": 2}']


def test_objects_that_follow_each_other_are_an_event_each():
    body = b'{"a":"}{"}{"b":{}}\n\n {"c":[{}, {}]} \n'
    assert json_events(body) == [b'{"a":"}{"}', b'{"b":{}}', b'{"c":[{}, {}]}']


@pytest.mark.parametrize("indent", [1, "\t"])
def test_lines_that_are_json_only_together_are_read_together(indent: Any):
    events: list[Any] = [{"a": 1, "b": [1, 2]}, {"c": {"d": None}}]
    for body in (json.dumps(events, indent=indent), json.dumps(events[0], indent=indent)):
        found = ndjson_events(body.encode())
        assert [json.loads(event) for event in found] == events[: len(found)]
    assert ndjson_events(b'{"a":1,\n"b":2}\n{"c":3}\n{') == [
        b'{"a":1,',
        b'"b":2}',
        b'{"c":3}',
        b"{",
    ]


def test_a_number_of_any_length_is_kept():
    event = b'{"a":' + b"7" * 100_000 + b"}"
    assert json_events(b"[" + event + b"]") == [event]


def test_a_byte_order_mark_is_no_part_of_an_event():
    assert json_events(b'\xef\xbb\xbf{"a":1}') == [b'{"a":1}']
    assert ndjson_events(b'\xef\xbb\xbf{"a":1}\n') == [b'{"a":1}']


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "The body is not JSON: Expecting value"),
        (b"   ", "The body is not JSON: Expecting value"),
        (b"hello", "The body is not JSON: Expecting value"),
        (b'{"a":1', "The body is not JSON: Expecting ',' delimiter"),
        (b'{"a":1} {"a":2} x', "The body is not JSON: Extra data"),
        (b'{"a":1},{"a":2}', "The body is not JSON: Extra data"),
        (b'{"a":1}{"a":2', "The body is not JSON: Expecting ',' delimiter"),
        (b'[{"a":1}', "The body is not JSON: Expecting ',' delimiter"),
        (b'[{"a":1}] x', "The body is not JSON: Extra data"),
        (b'[{"a":1},]', "The body is not JSON: Expecting value"),
        (b'[,{"a":1}]', "The body is not JSON: Expecting value"),
        (b'[{"a":1} {"a":2}]', "The body is not JSON: Expecting ',' delimiter"),
        (b'{"a":NaN}', "NaN is no value of JSON"),
        (b'[{"a":-Infinity}]', "-Infinity is no value of JSON"),
        (b"{'a':1}", "The body is not JSON: Expecting property name"),
        (b'{"a":"x\0y"}', "Invalid control character"),
        (b'{"a":1}\0', "The body is not JSON: Extra data"),
        (b'{"a":"x\ny"}', "Invalid control character"),
        (b'{"a":"\xff"}', "The body is not UTF-8 at byte 6."),
        ('{"a":1}'.encode("utf-16"), "The body is UTF-16 or UTF-32: send it in UTF-8."),
        ('{"a":1}'.encode("utf-16-be"), "The body is UTF-16 or UTF-32: send it in UTF-8."),
        (b"1", "The body is not an object: an event is one."),
        (b"null", "The body is not an object: an event is one."),
        (b'"text"', "The body is not an object: an event is one."),
        (b'[{"a":1},[{"a":2}]]', "Element 2 of the body's array is not an object"),
        (b"[[]]", "Element 1 of the body's array is not an object"),
        (b"[" * 100_000, "The body is nested too deeply."),
        (b'{"a":' * 100_000, "The body is nested too deeply."),
        (b'[{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "The body is nested too deeply."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_object_or_array_of_objects_is_refused(body: bytes, reason: str):
    with pytest.raises(BodyError) as raised:
        json_events(body)
    assert reason in str(raised.value)


def test_lines_go_on_as_they_are_and_blank_ones_are_left_out():
    body = b'{"a":1}\r\n\n \t\r\n not json\n{"b":"\xff\0"}\r\r\n[1]'
    assert ndjson_events(body) == [b'{"a":1}', b" not json", b'{"b":"\xff\0"}\r', b"[1]"]
    assert ndjson_events(b"") == []


@given(
    objects=st.lists(OBJECTS, max_size=5),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (" , ", " : ")]),
)
def test_any_array_gives_its_elements(
    objects: list[Any], *, ascii_only: bool, separators: tuple[str, str]
):
    texts = [
        json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()
        for value in objects
    ]
    assert json_events(b"[" + b",\n".join(texts) + b"]") == texts


@given(st.text(alphabet='[]{}:,"\\ \n019.eE+-atrue\0ÿ', max_size=25) | st.text(max_size=20))
def test_just_what_json_says_is_accepted(text: str):
    _same_as_json(text.encode(errors="replace"))


@given(st.binary(max_size=40))
def test_no_bytes_make_it_fail_otherwise(body: bytes):
    _same_as_json(body)
    with suppress(BodyError):
        for line in ndjson_events(body):
            assert b"\n" not in line
            assert line in body or line in body.replace(b"\r", b" ").replace(b"\n", b" ")


def _same_as_json(body: bytes) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    decoder = json.JSONDecoder(parse_constant=refuse)
    objects: list[Any] = []
    try:
        text = body.decode("utf-8-sig").strip(" \t\r\n")
        if text.startswith("["):
            objects = decoder.decode(text)
        while not text.startswith("[") and (text or not objects):
            value, end = decoder.raw_decode(text)
            objects.append(value)
            text = text[end:].lstrip(" \t\r\n")
    except ValueError:
        objects = [None]
    if not all(isinstance(value, dict) for value in objects):
        with pytest.raises(BodyError):
            json_events(body)
    else:
        events = json_events(body)
        assert [json.loads(event) for event in events] == objects
        assert not any(b"\n" in event or b"\r" in event for event in events)
