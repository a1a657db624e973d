r"""Payloads of messages and requests as event lines: each kept whole, whatever its bytes are.

A file can be read again; what came through a door cannot. So the text of a payload with a defect
says all of its bytes: those that are no text stand as `\xNN`, and so does the backslash of a `\x`
that was there. `original_bytes` is the way back.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import Self

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.events.lines import LINE_TOO_LONG, MAX_LINE_BYTES, NOT_UTF8, NUL_BYTE
from retail_assets.ingest.messages.bodies import event_places, is_utf16

if TYPE_CHECKING:
    import pyarrow as pa

BINARY_FRAME = "binary_frame"
SEVERAL_EVENTS = "several_events"
TOMBSTONE = "tombstone"
UTF16 = "utf16"

FRAME_BYTES = 5
"""Bytes that a schema registry's clients write before the value: zero, and the schema's number."""

_MAY_BE_SEVERAL = r"^\s*\[|\}\s*\{"
"""An event has this only within a text."""

_several = re.compile(_MAY_BE_SEVERAL.encode()).search
_escaped = re.compile(rb"\\x([0-9a-f]{2})")


class Tombstone(bytes):
    """The payload in place of a message without a value: its key, as JSON."""

    @classmethod
    def of(cls, key: bytes | None) -> Self:
        """Make one of the key of a message."""
        name = None if key is None else _all_of(key)
        return cls(json.dumps({"key": name, "value": None}, ensure_ascii=False).encode())


def payloads_to_arrow(payloads: Sequence[bytes], defect: str | None = None) -> "pa.Table":
    """Make a row of each payload; a newline in one is part of it.

    JSON in the frame of a schema registry is read without the frame.

    Args:
        payloads: an event each.
        defect: what is wrong with all of them, if that is known already.

    Returns:
        A row for each payload: `payload` (string) and `defect` (string, null for sound ones).
    """
    import pyarrow as pa

    if not defect and max(map(len, payloads), default=0) <= MAX_LINE_BYTES:
        # Nearly always all of them are sound, which is quickly seen of all at once.
        events = payloads
        if payloads and _is_framed(payloads[0]):
            events = list(map(_unframed, payloads))
        with suppress(pa.ArrowInvalid):
            texts = pa.array(events, pa.string())
            if not _has_odd(texts) and Tombstone not in set(map(type, events)):
                return pa.table({"payload": texts, "defect": pa.nulls(len(texts), pa.string())})
    rows = [_row(payload) for payload in payloads]
    if defect:
        rows = [(text, found or defect) for text, found in rows]
    return pa.table(
        {
            "payload": pa.array([text for text, _ in rows], pa.string()),
            "defect": pa.array([defect for _, defect in rows], pa.string()),
        }
    )


def original_bytes(text: str) -> bytes:
    """Return the bytes that the payload of a line with a defect came as."""
    return _escaped.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())


def _has_odd(texts: "pa.Array") -> bool:
    """Whether one of the texts has a NUL byte, or may be several events."""
    import pyarrow.compute as pc

    characters = texts.buffers()[2]
    if characters is not None and not np.frombuffer(characters, np.uint8).all():
        return True
    return bool(pc.any(pc.match_substring_regex(texts, _MAY_BE_SEVERAL)).as_py())


def _row(payload: bytes) -> tuple[str, str | None]:
    if isinstance(payload, Tombstone):
        return payload.decode(), TOMBSTONE
    event = _unframed(payload)
    if len(event) > MAX_LINE_BYTES:
        defect: str | None = LINE_TOO_LONG
    elif event.startswith(b"\0") and not is_utf16(event):
        defect = BINARY_FRAME
    else:
        defect = _defect(event)
    return (_all_of(payload), defect) if defect else (event.decode(), None)


def _is_framed(payload: bytes) -> bool:
    """Whether it is JSON in the frame of a schema registry."""
    return (
        payload[:1] == b"\0"
        and payload[FRAME_BYTES : FRAME_BYTES + 1] == b"{"
        and payload[-1:] == b"}"
    )


def _unframed(payload: bytes) -> bytes:
    return payload[FRAME_BYTES:] if _is_framed(payload) else payload


def _defect(event: bytes) -> str | None:
    if is_utf16(event):
        return UTF16
    if b"\0" in event:
        return NUL_BYTE
    try:
        text = event.decode()
    except UnicodeDecodeError:
        return NOT_UTF8
    return SEVERAL_EVENTS if _several(event) and _are_several(text) else None


def _are_several(text: str) -> bool:
    """Whether a text is an array of objects, or objects that follow each other."""
    try:
        return sum(1 for _ in event_places(text)) > 1 or text.lstrip().startswith("[{")
    except (ValueError, RecursionError, RetailAssetsError):
        return False


def _all_of(payload: bytes) -> str:
    r"""A text that says all bytes: `\xNN` stands for one byte, and can stand for nothing else."""
    unambiguous = payload.replace(rb"\x", rb"\x5cx")
    return unambiguous.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
