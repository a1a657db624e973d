"""Event lines out of bytes: complete lines into Arrow, whatever the bytes are."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LINE_BYTES = 1_000_000
"""A longer line is no event; what is kept of it are its first `KEPT_BYTES`."""

KEPT_BYTES = 1_000

LINE_TOO_LONG = "line_too_long"
NOT_UTF8 = "not_utf8"
NUL_BYTE = "nul_byte"
NOT_TAKEN = "not_taken"
OUT_OF_MEMORY = "out_of_memory"
REFUSED = (NOT_TAKEN, OUT_OF_MEMORY)
"""The defects of lines that are whole, and could be events at another time."""

BOM = b"\xef\xbb\xbf"

_NEWLINE = ord("\n")
_WINDOW = 256


def to_arrow(data: bytes, cut: Collection[int] = ()) -> "pa.Table":
    r"""Split bytes into lines, all at once.

    Lines end with a newline, the last one perhaps with none; a carriage return before it belongs to
    the line's end.

    Args:
        data: whole lines.
        cut: which lines (from 0) are too long and have been cut already.

    Returns:
        A row for each line: `payload` (string) and `defect` (string, null for sound lines). Of a
        line that is not UTF-8 or has a NUL byte, the wrong bytes stand as `\xNN`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    characters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(characters == _NEWLINE)
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    defects = dict.fromkeys(
        [*np.flatnonzero(ends - starts > MAX_LINE_BYTES).tolist(), *cut], LINE_TOO_LONG
    )
    if b"\0" in data:
        for line in np.unique(np.searchsorted(ends, np.flatnonzero(characters == 0))).tolist():
            defects.setdefault(line, NUL_BYTE)
    # Without the newlines the lines lie end to end, as Arrow keeps texts.
    text = data.replace(b"\n", b"")
    offsets = np.concatenate([[0], ends - np.arange(len(ends))]).astype(np.int32)
    payload = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(text))
    for line in _not_utf8(payload):
        defects.setdefault(line, NOT_UTF8)
    defect = pa.nulls(len(ends), pa.string())
    if defects:
        faulty = sorted(defects)
        shown = [
            _shown(data[starts[line] : ends[line]], cut=defects[line] == LINE_TOO_LONG)
            for line in faulty
        ]
        mask = np.zeros(len(ends), bool)
        mask[faulty] = True
        payload = pc.replace_with_mask(payload, mask, pa.array(shown, pa.string()))
        codes = pa.array([defects[line] for line in faulty], pa.string())
        defect = pc.replace_with_mask(defect, mask, codes)
    return pa.table({"payload": payload, "defect": defect})


def _not_utf8(payload: "pa.StringArray") -> Iterator[int]:
    """The lines that are not UTF-8; only around such a line is each looked at by itself."""
    if _is_utf8(payload):
        return
    for first in range(0, len(payload), _WINDOW):
        window = payload.slice(first, _WINDOW)
        if not _is_utf8(window):
            for line in range(len(window)):
                if not _is_utf8(window.slice(line, 1)):
                    yield first + line


def _is_utf8(payload: "pa.StringArray") -> bool:
    import pyarrow as pa

    try:
        payload.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _shown(line: bytes, *, cut: bool) -> str:
    if cut:
        line = line[:KEPT_BYTES]
    return line.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
