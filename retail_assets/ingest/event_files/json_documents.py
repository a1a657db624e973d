"""JSON that is not a value on each line: arrays of objects, objects over many lines or end to end.

Such a text is split into its elements: the values that stand by themselves, and those of arrays
that do. It is not parsed for that: brackets outside of strings are counted, a block at a time.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retail_assets.ingest.events.lines import BOM, KEPT_BYTES, MAX_LINE_BYTES

HEAD_BYTES = 64 << 10
"""How much of a file is looked at to tell what it is, unless its first line is longer."""

_BLANKS = b" \t\r\n"
_AROUND = len(b"\r")
"""Bytes that may follow an element and are no part of it."""

_NEARBY_LINES = 8

_MARKS = np.zeros(256, np.bool_)
_MARKS[list(b'"{}[],\n')] = True
_QUOTE, _COMMA, _NEWLINE, _BACKSLASH = b'",\n\\'
_OPEN_ARRAY, _CLOSE_ARRAY, _OPEN, _CLOSE = b"[]{}"

_ARRAY = re.compile(rb"\[\s*[{\]]")
_OPEN_OBJECT = re.compile(rb'\{[^\n]*\n\s*"')


def are_documents(peek: Callable[[int], bytes], *, settled: bool) -> bool | None:
    """Whether a content is split into elements, not into lines.

    Only where it is plain: it begins with an array of objects, or with a valid object that ends on
    another line, or on whose line another one begins. Where nearby lines are objects it is not.

    Args:
        peek: gives the first so many bytes of the content, or all that there are.
        settled: whether nobody writes to it any more.

    Returns:
        None if what there is does not tell, and somebody may be writing more.
    """
    text = _bare(peek(HEAD_BYTES))
    if not text.startswith((b"[", b"{")) or _is_object(text.partition(b"\n")[0]):
        return False
    head = peek(MAX_LINE_BYTES + HEAD_BYTES)
    text = _bare(head)
    waiting = len(head) < MAX_LINE_BYTES + HEAD_BYTES and not settled
    if text.startswith(b"{"):
        return _are_objects(text, waiting=waiting)
    if waiting and not text[1:].strip(_BLANKS):
        return None
    return bool(_ARRAY.match(text))


def _are_objects(text: bytes, *, waiting: bool) -> bool | None:
    splitter = DocumentSplitter()
    splitter.feed(text)
    value, rest = text[: splitter.first], text[splitter.first :]
    if b"\n" in value:
        return _is_object(value)
    if any(map(_is_object, text.split(b"\n", _NEARBY_LINES)[:_NEARBY_LINES])):
        return False
    if value and not (_is_object(value) and rest.lstrip(_BLANKS).startswith(b"{")):
        return False
    if value and not waiting:
        return True
    return None if waiting else bool(_OPEN_OBJECT.match(text))


def is_array_of_values(peek: Callable[[int], bytes], *, settled: bool) -> bool | None:
    """Whether a content begins with an array over several lines that holds no object first.

    It is one fault, not one on each line. For the rest like `are_documents`.
    """
    text = _bare(peek(HEAD_BYTES))
    first_line = text.partition(b"\n")[0]
    if not text.startswith(b"[") or _ARRAY.match(text) or _is_json(first_line):
        return False
    head = peek(MAX_LINE_BYTES + HEAD_BYTES)
    splitter = DocumentSplitter(whole_arrays=True)
    for value in splitter.feed(_bare(head)):
        return not first_line.startswith(value) and _is_json(value)
    if len(head) < MAX_LINE_BYTES + HEAD_BYTES and not settled:
        return None
    return _is_json(splitter.rest.rpartition(b",")[0] + b"]")


def _bare(text: bytes) -> bytes:
    """A text from where it begins to say something, however many files were put end to end."""
    while (rest := text.lstrip(_BLANKS).removeprefix(BOM)) != text:
        text = rest
    return text


def _is_object(text: bytes) -> bool:
    return _is_json(text, dict)


def _is_json(text: bytes, kind: type = object) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


@dataclass
class DocumentSplitter:
    """Splits a text that comes in blocks.

    `rest` is the element that is not complete, and `depth` how many brackets are open there (one of
    an array aside whose elements stand by themselves). `first` is where the first object ended, if
    that was in the first block. With `whole_arrays`, arrays are elements themselves.
    """

    whole_arrays: bool = False
    rest: bytes = b""
    depth: int = 0
    first: int = 0
    complete: int = 0
    cut: tuple[int, ...] = ()
    _in_array: bool = False
    _quoted: bool = False
    _escaping: bool = False

    def feed(self, block: bytes) -> list[bytes]:
        r"""Add a block; returns the elements that are complete now, without newlines.

        These became blanks (within a string, where none may be, `\r`). `complete` is how much of
        the block they take, and `cut` are those (from 0) of which only the beginning is there,
        because they are too long.
        """
        text = self._mark(block)
        end = text.rfind(b"\n") + 1
        self.cut = ()
        whole, rest = text[:end], text[end:]
        elements: list[bytes] = []
        if end:
            if len(self.rest) > MAX_LINE_BYTES + _AROUND:
                self.cut = (0,)
                whole = self.rest[: KEPT_BYTES + _AROUND] + whole[whole.index(b"\n") :]
            else:
                whole = self.rest + whole
            elements = [kept for line in whole.split(b"\n") if (kept := line.lstrip(_BLANKS))]
            if BOM in whole:
                elements = [kept for one in elements if (kept := _bare(one))]
            self.rest = b""
        if len(self.rest) <= MAX_LINE_BYTES + _AROUND:
            self.rest = _bare(self.rest + rest)
        return elements

    def _mark(self, block: bytes) -> bytes:
        """The block with a newline after each element, and no other."""
        self.complete = 0
        data = np.frombuffer(block, np.uint8)
        at = np.flatnonzero(_MARKS[data])
        escaped = self._escaped(block, data)
        if not len(at):
            return block
        kind = data[at]
        newline = kind == _NEWLINE
        # A newline ends a string: none may have one.
        quotes = np.cumsum((kind == _QUOTE) & ~escaped[at]) + self._quoted
        quoted = (quotes - np.maximum.accumulate(np.where(newline, quotes, 0))) & 1 == 1
        outside = ~_before(quoted, self._quoted)
        opens = outside & ((kind == _OPEN) | (kind == _OPEN_ARRAY))
        closes = outside & ((kind == _CLOSE) | (kind == _CLOSE_ARRAY))
        depth = self.depth + np.cumsum(opens.astype(np.int64) - closes)
        # A bracket that closes nothing counts for nothing.
        depth -= np.minimum(np.minimum.accumulate(depth), 0)
        before = _before(depth, self.depth)
        top = opens & (before == 0)
        opener = np.maximum.accumulate(np.where(top, np.arange(len(at)), -1))
        in_array = np.where(opener >= 0, kind[opener] == _OPEN_ARRAY, self._in_array)
        in_array &= not self.whole_arrays
        between = depth <= in_array
        closes_array = closes & in_array & (before == 1) & (kind == _CLOSE_ARRAY)
        separates = (outside & between & (kind == _COMMA)) | (top & in_array) | closes_array
        ends = closes & between & ~closes_array
        marked = data.copy()
        marked[at[separates]] = _NEWLINE
        inner = newline & ~between
        marked[at[inner]] = np.where(outside[inner], ord(" "), ord("\r"))
        objects = at[ends & (depth == 0) & (kind == _CLOSE)]
        self.first = int(objects[0]) + 1 if len(objects) else 0
        last = at[separates | ends | (newline & between)][-1:]
        self.complete = int(last[0]) + 1 if len(last) else 0
        self.depth, self._quoted = int(depth[-1]), bool(quoted[-1])
        self._in_array = bool(in_array[-1])
        return np.insert(marked, at[ends] + 1, _NEWLINE).tobytes()

    def _escaped(self, block: bytes, data: np.ndarray) -> np.ndarray:
        """Which bytes follow an odd number of backslashes."""
        escaped = np.zeros(len(data) + 1, np.bool_)
        escaped[0] = self._escaping
        if b"\\" in block:
            slashes = np.flatnonzero(data == _BACKSLASH)
            apart = np.diff(slashes) != 1
            starts = slashes[np.concatenate([[True], apart])]
            lasts = slashes[np.concatenate([apart, [True]])]
            odd = (lasts - starts) & 1 == 0
            if self._escaping and starts[0] == 0:
                escaped[0], odd[0] = False, not odd[0]
            escaped[lasts[odd] + 1] = True
        self._escaping = bool(escaped[-1])
        return escaped


def _before(values: np.ndarray, first: bool | int) -> np.ndarray:
    """The value before each of some values."""
    return np.concatenate([[first], values[:-1]])
