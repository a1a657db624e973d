"""The body of a request to the webhook: the events in it, each in the characters it was sent in."""

import json
import re
from collections.abc import Iterator

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_lines import BOM

_BLANKS = re.compile(r"[ \t\n\r]*")


class BodyError(RetailAssetsError):
    """A body that is not made of events; nothing of it can be taken in."""


def ndjson_events(body: bytes) -> list[bytes]:
    """Split a body of lines: each is an event, as it is, valid or not; blank ones are left out."""
    lines = body.removeprefix(BOM).split(b"\n")
    return [line.removesuffix(b"\r") for line in lines if line.strip()]


def json_events(body: bytes) -> list[bytes]:
    """Cut the events out of a body that is a JSON object or an array of objects.

    The text of an event stays as it was sent, so that no number changes; only line breaks between
    its parts become blanks: an event is one line wherever it is kept.

    Raises:
        BodyError: saying where the body is something else.
    """
    try:
        text = body.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise BodyError(f"The body is not UTF-8 at byte {error.start}.") from error
    try:
        return [_one_line(text[start:end]).encode() for start, end in _objects(text)]
    except RecursionError as error:
        raise BodyError("The body is nested too deeply.") from error
    except ValueError as error:
        raise BodyError(f"The body is not JSON: {error}.") from error


def _one_line(text: str) -> str:
    # Within a JSON text a line break can only stand where a blank can.
    return text.replace("\r", " ").replace("\n", " ")


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no value of JSON")


# Numbers stay texts: none is too long to be read.
_decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_not_json).raw_decode


def _objects(text: str) -> Iterator[tuple[int, int]]:
    """Find where the only object, or each object of an array, starts and ends."""
    start = _skip_blanks(text, 0)
    if not text.startswith("[", start):
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
