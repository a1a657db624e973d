"""The body of a request to the webhook: the events in it, each in the characters it was sent in."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.events.lines import BOM

_BLANKS = re.compile(r"[ \t\n\r]*")


class BodyError(RetailAssetsError):
    """A body that is not made of events; nothing of it can be ingested."""


def ndjson_events(body: bytes) -> list[bytes]:
    """Split a body of lines: each is an event, as it is, valid or not; blank ones are left out.

    A body that is JSON only as a whole, such as a pretty-printed object, is read as `json_events`
    does.

    Raises:
        BodyError: if it is not made of lines.
    """
    _refuse_utf16(body)
    lines = body.removeprefix(BOM).split(b"\n")
    events = [line.removesuffix(b"\r") for line in lines if line.strip()]
    if len(events) > 1 and not _is_json(events[0]):
        with suppress(BodyError):
            return json_events(body)
    return events


def json_events(body: bytes) -> list[bytes]:
    """Cut the events out of a body: a JSON object, several after each other, or an array of them.

    The text of an event stays as it was sent, so that no number changes; only line breaks between
    its parts become blanks: an event is one line wherever it is kept.

    Raises:
        BodyError: saying where the body is something else.
    """
    _refuse_utf16(body)
    try:
        text = body.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise BodyError(f"The body is not UTF-8 at byte {error.start}.") from error
    try:
        return [_one_line(text[start:end]).encode() for start, end in event_places(text)]
    except RecursionError as error:
        raise BodyError("The body is nested too deeply.") from error
    except ValueError as error:
        raise BodyError(f"The body is not JSON: {error}.") from error


def is_utf16(text: bytes) -> bool:
    """Whether a text is UTF-16 or UTF-32, by its mark or by how JSON looks in it."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return True
    pairs, odd = divmod(len(text), 2)
    return pairs > 1 and not odd and (text[0] == 0) != (text[1] == 0) and text.count(0) > pairs / 2


def _refuse_utf16(body: bytes) -> None:
    if is_utf16(body):
        raise BodyError("The body is UTF-16 or UTF-32: send it in UTF-8.")


def _is_json(line: bytes) -> bool:
    try:
        _decode(line.decode().lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _one_line(text: str) -> str:
    # Within a JSON text a line break can only stand where a blank can.
    return text.replace("\r", " ").replace("\n", " ")


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no value of JSON")


# Numbers stay texts: none is too long to be read.
_decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_not_json).raw_decode


def event_places(text: str) -> Iterator[tuple[int, int]]:
    """Find where each object starts and ends: those of an array, or those that are there.

    Raises:
        BodyError: where something else is.
        ValueError: where the text is no JSON.
    """
    start = _skip_blanks(text, 0)
    if not text.startswith("[", start):
        end = _object_end(text, start, "The body")
        yield start, end
        while text.startswith("{", start := _skip_blanks(text, end)):
            end = _object_end(text, start, "The body")
            yield start, end
        _expect_end(text, end)
        return
    start = _skip_blanks(text, start + 1)
    if text.startswith("]", start):
        _expect_end(text, start + 1)
        return
    number = 1
    while True:
        end = _object_end(text, start, f"Element {number} of the body's array")
        yield start, end
        separator = _skip_blanks(text, end)
        if text.startswith("]", separator):
            _expect_end(text, separator + 1)
            return
        if not text.startswith(",", separator):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, separator)
        start = _skip_blanks(text, separator + 1)
        number += 1


def _object_end(text: str, start: int, what: str) -> int:
    value, end = _decode(text, start)
    if not isinstance(value, dict):
        raise BodyError(f"{what} is not an object: an event is one.")
    return end


def _skip_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    assert match is not None
    return match.end()


def _expect_end(text: str, end: int) -> None:
    end = _skip_blanks(text, end)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
