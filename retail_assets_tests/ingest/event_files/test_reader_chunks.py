"""Large files and long lines: read in chunks, in bounded memory."""

import gzip
import hashlib
import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.ingest.event_files import reader as event_reader
from retail_assets.ingest.event_files.reader import Chunk, ReadLimits, read_new
from retail_assets.ingest.events import lines as event_lines
from retail_assets.ingest.events.lines import BOM, KEPT_BYTES, to_arrow
from retail_assets.ingest.ledgers.event_files import OPEN, TAKEN, WHOLE
from retail_assets_tests.ingest.event_files.reading import (
    NOTHING,
    chunks,
    hostile,
    known,
    progress,
    read,
    small,
    table,
)


def shorten(patch: pytest.MonkeyPatch, line: int) -> None:
    """Have no event be longer than so many bytes."""
    for module in (event_reader, event_lines):
        patch.setattr(module, "MAX_LINE_BYTES", line)
        patch.setattr(module, "KEPT_BYTES", min(line, KEPT_BYTES))


def test_a_large_file_comes_in_chunks_and_the_next_may_go_on_from_any() -> None:
    limits = small(block=4, chunk=8)
    content = b"".join(b"%d\n" % n for n in range(40))
    found = chunks(content, limits=limits)
    assert len(found) > 5
    assert [chunk.last for chunk in found] == [False] * (len(found) - 1) + [True]
    assert not any(chunk.restarted for chunk in found)
    again = chunks(content, known(b"0\n2\n"), limits=limits)
    assert [chunk.restarted for chunk in again] == [True] + [False] * (len(again) - 1)
    assert b"".join(chunk.data for chunk in found) == content
    for number, chunk in enumerate(found):
        so_far = content[: chunk.progress.bytes_taken]
        assert chunk.progress == progress(so_far, so_far.count(b"\n"), chunk.progress.last_line)
        rest = chunks(content, chunk.progress, limits=limits)
        assert not rest[0].restarted
        assert b"".join(part.data for part in rest) == content[chunk.progress.bytes_taken :]
        assert rest[-1].progress == found[-1].progress, number


@pytest.mark.parametrize("block", [1, 4, 7, 16, 1000])
@pytest.mark.parametrize(
    "content",
    [b"\n" * 20, b"a\n" * 12, b"a\n" * 12 + b"b", b"\n\n\nabcdefghijklmnopqrstuvwxyz\n\n\n\n\n\nz"],
    ids=["blank", "whole portions", "open", "uneven"],
)
def test_a_chunk_has_so_many_lines_at_most_wherever_they_lie(content: bytes, block: int) -> None:
    found = chunks(content, settled=False, limits=small(block, 1000, 4))
    whole = content[: content.rfind(b"\n") + 1]
    assert b"".join(chunk.data for chunk in found) == whole
    lines = whole.count(b"\n")
    assert [chunk.lines for chunk in found] == [4] * (lines // 4) + [lines % 4]
    assert [chunk.last for chunk in found] == [False] * (len(found) - 1) + [True]
    for chunk in found:
        so_far = content[: chunk.progress.bytes_taken]
        assert chunk.progress == progress(so_far, so_far.count(b"\n"), chunk.progress.last_line)


@pytest.mark.parametrize(
    "content",
    [
        b'[\n 1,\n "a,]",\n null\n]\n',
        b"[1,\n2]",
        b"[[1,\n2],\n{}]\n",
        BOM + b"\n\n[true,\r\n false]\r\n",
    ],
)
@pytest.mark.parametrize("block", [3, 1000])
def test_an_array_of_values_over_several_lines_is_one_fault(content: bytes, block: int) -> None:
    limits = ReadLimits(document_block_bytes=block)
    [(payload, defect)] = whole = table(chunks(content, limits=limits))
    assert defect is None
    assert json.loads(payload) == json.loads(content.removeprefix(BOM))
    assert table(chunks(content, settled=False, limits=limits)) == whole
    before = known(content)
    assert read(content, before).lines == 0
    grown = chunks(content + b'\n{"a":\n1}\n', before)
    # What was ingested without a newline may have gone on.
    restarted = before.last_line == TAKEN
    assert grown[0].restarted == restarted
    assert table(grown) == [*(whole if restarted else []), ('{"a": 1}', None)]


def test_a_large_array_of_values_is_one_fault() -> None:
    content = b"[\n" + b"12345,\n" * 300_000 + b"1]\n"
    [(payload, defect)] = table(chunks(content))
    assert content.replace(b"\n", b" ").startswith(payload.encode())
    assert defect == "line_too_long"


@pytest.mark.parametrize(
    "content",
    [
        b"[1]\n[2,\n3]\n",
        b"[2026-10-05 INFO] started\n[2026-10-05 INFO] ended\n",
        b"[1,\nx\n]\n",
        b'["a\nb"]\n',
        b"[1, 2] and more\n[3\n",
    ],
)
def test_lines_that_begin_like_an_array_of_values_stay_lines(content: bytes) -> None:
    assert read(content).data == content


@pytest.mark.parametrize(
    ("line", "events"),
    [
        (b'[{"a": 1}, {"b": [{}]}]', [b'{"a": 1}', b'{"b": [{}]}']),
        (b'[ {"a":1} ]\r', [b'{"a":1}']),
        (b'{"a":1}{"b":2} {"c":"}{"}', [b'{"a":1}', b'{"b":2}', b'{"c":"}{"}']),
        # These are one fault each, or an event as it was.
        (b"[1, 2, 3]", None),
        (b"[]", None),
        (b'[{"a": 1}, 2]', None),
        (b'[{"a": 1}', None),
        (b'[{"a": NaN}]', None),
        (b'{"a":1}{"b"', None),
        (b' {"a": "}{"} ', None),
        (b'[{"a": "\xff"}]', None),
        (b"[" * 200_000 + b"{}" + b"]" * 200_000, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_line_that_is_a_batch_gives_each_of_its_events(
    line: bytes, events: list[bytes] | None
) -> None:
    first, last = b'{"first": 1}', b'{"last": 1}'
    chunk = read(b"\n".join([first, line, last, b""]))
    assert chunk.data.split(b"\n") == [first, *(events or [line]), last, b""]
    assert chunk.progress.lines == chunk.lines
    grown = read(b"\n".join([first, line, b""]), known(first + b"\n"))
    assert grown.data.split(b"\n") == [*(events or [line]), b""]
    assert read(first + b"\n" + line).data.split(b"\n")[1:-1] == (events or [line])


batches = st.lists(
    st.lists(st.sampled_from([b"{}", b'{"a":"}{"}', b"1", b"x"]), min_size=1, max_size=4),
    max_size=5,
)


@given(
    lines=batches,
    block=st.integers(1, 30),
    chunk=st.integers(1, 60),
    chunk_lines=st.integers(1, 4),
    line=st.sampled_from([12, 1000]),
)
def test_batches_are_split_alike_however_their_file_is_read(
    lines: list[list[bytes]], block: int, chunk: int, chunk_lines: int, line: int
) -> None:
    content = b"{}\n" + b"".join(
        b"[%s]\n%s\n" % (b",".join(values), b"".join(values)) for values in lines
    )
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, line)
        [whole] = chunks(content)
        expected = table([whole])
        limits = small(block, chunk, chunk_lines)
        found = chunks(content, limits=limits)
        assert table(found) == expected
        assert found[-1].progress == whole.progress
        assert sum(part.lines for part in found) == len(expected)
        stopped = found[len(found) // 2]
        rest = chunks(content, stopped.progress, limits=limits)
        assert table(found[: len(found) // 2 + 1]) + table(rest) == expected


@settings(max_examples=400)
@given(
    content=hostile,
    block=st.integers(1, 9),
    chunk=st.integers(1, 12),
    lines=st.integers(1, 5),
    line=st.sampled_from([3, 5, 8, 100]),
    settled=st.booleans(),
    compressed=st.booleans(),
)
@example(content=b"abcde\r\n", block=6, chunk=1, lines=9, line=5, settled=True, compressed=False)
@example(content=BOM + b"abc\n", block=1, chunk=1, lines=9, line=3, settled=True, compressed=False)
@example(
    content=BOM + b"ab\rcdefg\n", block=2, chunk=1, lines=9, line=3, settled=True, compressed=False
)
def test_chunks_hold_the_lines_that_one_large_chunk_holds(
    content: bytes, block: int, chunk: int, lines: int, line: int, settled: bool, compressed: bool
) -> None:
    file = gzip.compress(content) if compressed else content
    settled = settled or compressed
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, line)
        whole = chunks(file, settled=settled, compressed=compressed)
        assert len(whole) == 1
        expected = table(whole)
        limits = small(block, chunk, lines)
        found = chunks(file, settled=settled, compressed=compressed, limits=limits)
        assert table(found) == expected
        assert found[-1].progress == whole[-1].progress
        for part in found:
            assert part.lines == to_arrow(part.data, part.cut).num_rows <= lines
        # Whoever stops after any of them, goes on with what is left.
        stopped = found[len(found) // 2]
        rest = chunks(file, stopped.progress, settled=settled, compressed=compressed, limits=limits)
        assert table(found[: len(found) // 2 + 1]) + table(rest) == expected
        assert rest[-1].progress.lines == whole[-1].progress.lines


@settings(max_examples=200)
@given(
    versions=st.lists(st.tuples(hostile, st.booleans(), st.booleans()), min_size=1, max_size=5),
    block=st.integers(1, 9),
    chunk=st.integers(1, 12),
    lines=st.integers(1, 5),
)
def test_whatever_a_file_was_before_its_lines_are_those_of_its_content(
    versions: list[tuple[bytes, bool, bool]], block: int, chunk: int, lines: int
) -> None:
    """Versions follow each other, or each goes on where the one before ended."""
    state, content, held = NOTHING, b"", []
    limits = small(block, chunk, lines)
    for more, goes_on, settled in versions:
        content = content + more if goes_on else more
        for part in chunks(content, state, settled=settled, limits=limits):
            held = table([part]) if part.restarted else held + table([part])
            state = part.progress
        fresh = chunks(content, settled=settled, limits=limits)
        if settled or state.last_line != TAKEN:
            assert held == table(fresh)
            assert state.bytes_taken == fresh[-1].progress.bytes_taken
        assert state.content_hash == hashlib.sha256(content[: state.bytes_taken]).hexdigest()
        assert state.lines == len(held)


PARTS = [b"[", b"]", b"{", b"}", b"\n", b"\r\n", b",", b"x", b'{"a":1}', b'[{"a":1},{"b":2}]']


@settings(max_examples=300)
@given(data=st.lists(st.sampled_from(PARTS), max_size=14).map(b"".join))
@example(data=b'{"a":1}{"b":2}{"c":3}\n[{"a":1}]\n[{"a":1},{"b":2}]')
def test_lines_of_several_events_are_split_whatever_stands_around_them(data: bytes) -> None:
    expected = []
    for line in data.split(b"\n"):
        several = line.startswith(b"[") or b"}{" in line
        expected += event_reader._events(line) if several else [line]
    assert event_reader._event_a_line(data) == b"\n".join(expected)


# Long lines


class Endless(io.RawIOBase):
    """A line of many bytes that are nowhere."""

    def __init__(self, size: int, end: bytes) -> None:
        self.left, self.end = size, end

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        count = min(size, self.left)
        self.left -= count
        if count:
            return b"x" * count
        rest, self.end = self.end, b""
        return rest


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("end", [b"", b"\nshort\n"])
def test_an_endless_line_is_read_in_bounded_memory(end: bytes, settled: bool) -> None:
    size = 200_000_000

    def found() -> Iterator[Chunk]:
        return read_new(
            lambda: Endless(size, end), compressed=False, known=NOTHING, settled=settled
        )  # type: ignore[arg-type,return-value]

    tracemalloc.start()
    try:
        (chunk,) = found()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000
    taken = bool(end) or settled
    assert chunk.cut == ((0,) if taken else ())
    assert chunk.progress.bytes_taken == (size + len(end) if taken else 0)
    assert chunk.progress.last_line == (WHOLE if end else TAKEN if settled else OPEN)
    lines = table([chunk])
    assert lines[:1] == ([("x" * KEPT_BYTES, "line_too_long")] if taken else [])
    assert lines[1:] == ([("short", None)] if end else [])
