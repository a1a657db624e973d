"""What is new of an event file: only whole lines, once, however the file came to be as it is."""

import gzip
import hashlib
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import IO

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files import content_hash
from retail_assets.ingest.event_files import decoding as event_content
from retail_assets.ingest.event_files import reader as event_reader
from retail_assets.ingest.event_files.content_hash import ContentHash
from retail_assets.ingest.event_files.reader import LIMITS, Chunk, ReadLimits, read_new
from retail_assets.ingest.events import lines as event_lines
from retail_assets.ingest.events.lines import BOM, KEPT_BYTES, to_arrow
from retail_assets.ingest.ledgers.event_files import OPEN, TAKEN, WHOLE, Progress

NOTHING = Progress()


def chunks(
    content: bytes,
    known: Progress = NOTHING,
    *,
    settled: bool = True,
    compressed: bool = False,
    limits: ReadLimits = LIMITS,
) -> list[Chunk]:
    new = read_new(
        lambda: io.BytesIO(content),
        compressed=compressed,
        known=known,
        settled=settled,
        limits=limits,
    )
    return list(new)


def read(
    content: bytes, known: Progress = NOTHING, *, settled: bool = True, compressed: bool = False
) -> Chunk:
    """The one portion of a small file."""
    (chunk,) = chunks(content, known, settled=settled, compressed=compressed)
    assert chunk.last
    assert chunk.lines == to_arrow(chunk.data, chunk.cut).num_rows
    assert chunk.cut == ()
    return chunk


def progress(content: bytes, lines: int, last_line: str = WHOLE) -> Progress:
    return Progress(len(content), hashlib.sha256(content).hexdigest(), lines, last_line)


def known(content: bytes, *, settled: bool = True) -> Progress:
    return read(content, settled=settled).progress


def test_all_lines_of_a_new_file_are_new() -> None:
    chunk = read(b"a\nb\n")
    assert (chunk.data, chunk.lines, chunk.restarted) == (b"a\nb\n", 2, False)
    assert chunk.progress == progress(b"a\nb\n", 2)


def test_nothing_is_new_of_an_empty_file() -> None:
    chunk = read(b"")
    assert (chunk.data, chunk.lines, chunk.progress) == (b"", 0, NOTHING)


def test_nothing_is_new_of_an_unchanged_file() -> None:
    for content in (b"a\nb\n", b"a\nb", b"", b"\n"):
        before = known(content)
        chunk = read(content, before)
        assert (chunk.data, chunk.lines, chunk.restarted) == (b"", 0, False)
        assert chunk.progress == before


def test_of_a_file_that_grew_the_new_lines_are_new() -> None:
    chunk = read(b"a\nb\nc\n", known(b"a\nb\n"))
    assert (chunk.data, chunk.lines, chunk.restarted) == (b"c\n", 1, False)
    assert chunk.progress == progress(b"a\nb\nc\n", 3)


@pytest.mark.parametrize(
    "content",
    [b"a\nB\n", b"a\nB\nc\n", b"a\n", b"", b"\na\nb\n", b"a\n\nb"],
    ids=["same size", "larger", "shorter", "emptied", "shifted", "other newlines"],
)
def test_a_file_whose_beginning_is_another_starts_again(content: bytes) -> None:
    chunk = read(content, known(b"a\nb\n"))
    assert chunk.restarted
    assert chunk.data.removesuffix(b"\n") == content.removesuffix(b"\n")
    assert chunk.progress.bytes_taken == len(content)
    assert chunk.progress.lines == chunk.lines


def test_the_last_line_without_newline_is_left_while_somebody_may_write() -> None:
    chunk = read(b"a\nb", settled=False)
    assert (chunk.data, chunk.progress) == (b"a\n", progress(b"a\n", 1, OPEN))


def test_the_line_that_was_left_is_taken_when_it_has_ended() -> None:
    chunk = read(b"a\nbc\nd", known(b"a\nb", settled=False), settled=False)
    assert (chunk.data, chunk.restarted) == (b"bc\n", False)
    assert chunk.progress == progress(b"a\nbc\n", 2, OPEN)


def test_the_last_line_without_newline_is_taken_when_the_file_is_settled() -> None:
    chunk = read(b"a\nb", known(b"a\nb", settled=False))
    assert (chunk.data, chunk.restarted) == (b"b\n", False)
    assert chunk.progress == progress(b"a\nb", 2, TAKEN)


@pytest.mark.parametrize("settled", [True, False])
def test_a_line_that_was_taken_without_newline_is_not_taken_again(settled: bool) -> None:
    before = known(b"a\nb")
    chunk = read(b"a\nb", before, settled=settled)
    assert (chunk.data, chunk.lines, chunk.restarted) == (b"", 0, False)
    assert chunk.progress == before


@pytest.mark.parametrize("more", [b"c\n", b"\n", b"\nc\n", b"c"])
def test_a_file_whose_taken_last_line_went_on_starts_again(more: bytes) -> None:
    chunk = read(b"a\nb" + more, known(b"a\nb"))
    assert chunk.restarted
    assert chunk.progress.bytes_taken == len(b"a\nb" + more)


def test_a_byte_order_mark_at_the_beginning_of_a_line_is_no_content_but_counts_as_bytes() -> None:
    chunk = read(BOM + b"a\n")
    assert (chunk.data, chunk.progress) == (b"a\n", progress(BOM + b"a\n", 1))
    assert read(BOM, settled=True).data == b"\n"
    grown = read(BOM + b"a\n" + BOM + b"b\n", chunk.progress)
    assert (grown.data, grown.restarted) == (b"b\n", False)


def test_files_put_end_to_end_may_each_begin_with_a_byte_order_mark() -> None:
    content = BOM + b"a\n" + BOM + b"b\n" + b"c" + BOM + b"\n"
    chunk = read(content)
    assert (chunk.data, chunk.progress) == (b"a\nb\nc" + BOM + b"\n", progress(content, 3))


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


def test_a_compressed_file_is_read_as_its_content() -> None:
    compressed = gzip.compress(b"a\nb\n")
    chunk = read(compressed, compressed=True)
    assert (chunk.data, chunk.progress) == (b"a\nb\n", known(b"a\nb\n"))


def test_a_compressed_file_may_grow_by_another_compressed_part_or_be_compressed_otherwise() -> None:
    before = known(b"a\nb\n")
    appended = gzip.compress(b"a\nb\n") + gzip.compress(b"c\n")
    assert read(appended, before, compressed=True).data == b"c\n"
    assert read(gzip.compress(b"a\nb\nc\n", 1), before, compressed=True).data == b"c\n"


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"a\nb\n" * 1000)[:-9],
        gzip.compress(b"a\nb\n" * 1000)[:15],
        gzip.compress(b"a\nb\n")[:-8] + b"\0" * 8,
        gzip.compress(b"a\n") + b"a\n",
        b"a\nb\n",
        b"\x1f\x8b",
        gzip.compress(b"a\n")[:10] + b"\xff\xff\xff\xff",
    ],
    ids=["cut", "cut early", "checksum", "rubbish after", "no gzip", "header", "rubbish"],
)
def test_of_a_compressed_file_that_is_not_whole_nothing_is_taken(content: bytes) -> None:
    with pytest.raises(RetailAssetsError, match="no whole gzip "):
        chunks(content, compressed=True)


def test_a_compressed_file_that_breaks_off_between_two_readings_is_named_as_such() -> None:
    whole = gzip.compress(b"a\nb\n" * 1000)
    contents = iter([whole, whole[:-9]])
    with pytest.raises(RetailAssetsError, match="no whole gzip file"):
        list(
            read_new(
                lambda: io.BytesIO(next(contents)), compressed=True, known=NOTHING, settled=True
            )
        )


def test_every_file_that_is_opened_is_closed() -> None:
    opened: list[io.BytesIO] = []

    def open_file(content: bytes) -> IO[bytes]:
        opened.append(io.BytesIO(content))
        return opened[-1]

    before = known(b"a\nb")
    for content, compressed in (
        (b"a\nb", False),
        (b"a\nb\nc", False),
        (gzip.compress(b"a\nb"), True),
        (gzip.compress(b"a\nb\nc"), True),
    ):
        list(
            read_new(
                lambda c=content: open_file(c), compressed=compressed, known=before, settled=True
            )  # type: ignore[misc]
        )
    broken = gzip.compress(b"a\nb")[:-1]
    with pytest.raises(RetailAssetsError):
        list(read_new(lambda: open_file(broken), compressed=True, known=before, settled=True))
    abandoned = read_new(lambda: open_file(b"a"), compressed=False, known=NOTHING, settled=True)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert [file.closed for file in opened] == [True] * len(opened)


# Portions


def small(block: int, chunk: int, lines: int = LIMITS.chunk_lines) -> ReadLimits:
    return ReadLimits(block_bytes=block, chunk_bytes=chunk, chunk_lines=lines)


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


def table(found: list[Chunk]) -> list[tuple[str, str | None]]:
    """The lines of portions, and what is wrong with them."""
    return [
        (row["payload"], row["defect"])
        for chunk in found
        for row in to_arrow(chunk.data, chunk.cut).to_pylist()
    ]


hostile = st.lists(
    st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"abc", "é".encode(), b"\0", b"\xff", BOM])
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)
hostile = hostile.filter(lambda content: not content.startswith((b"\xff\xfe", b"\xfe\xff")))
"""What is no text in UTF-16 by its mark, and no JSON document."""


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


# What a file that grew costs


CHUNK = 8


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "CHUNK_BYTES", CHUNK)


class Counting(io.BytesIO):
    """Counts the bytes that are read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        Counting.count += len(block)
        return block


NUMBERS = b"".join(b"%03d\n" % number for number in range(100))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [4, 8, 12, 16, 20, 100, 396])
def test_a_file_that_grew_is_read_at_its_ends_alone(length: int) -> None:
    before = known(NUMBERS[:length])
    Counting.count = 0
    (chunk,) = read_new(lambda: Counting(NUMBERS), compressed=False, known=before, settled=False)
    assert (chunk.data, chunk.restarted) == (NUMBERS[length:], False)
    assert chunk.progress == known(NUMBERS)
    assert Counting.count <= event_content.HEAD_BYTES + 3 * CHUNK + len(NUMBERS) - length


@pytest.mark.usefixtures("small_chunks")
@given(
    lengths=st.lists(st.integers(0, 100), max_size=5).map(sorted),
    edit=st.none() | st.integers(0, 399),
    block=st.integers(1, 50),
    chunk=st.integers(1, 50),
)
def test_a_file_that_grew_has_the_lines_of_one_that_was_there_at_once(
    lengths: list[int], edit: int | None, block: int, chunk: int
) -> None:
    """Unless it was changed where it is not read again, which is neither its beginning nor end."""
    state, held, content = NOTHING, [], b""
    limits = small(block, chunk)
    for length in lengths:
        content = NUMBERS[: length * 4]
        for part in chunks(content, state, settled=False, limits=limits):
            held = table([part]) if part.restarted else held + table([part])
            state = part.progress
    assert held == table(chunks(content, limits=limits))
    assert state == chunks(content, limits=limits)[-1].progress
    if edit is None:
        return
    taken = len(content)
    edited = bytearray(NUMBERS)
    edited[edit] ^= 1
    found = chunks(bytes(edited), state, settled=False, limits=limits)
    seen = edit < CHUNK or edit >= taken - CHUNK or taken == len(NUMBERS)
    if edit < taken and seen:
        assert found[0].restarted


@pytest.mark.usefixtures("small_chunks")
def test_a_file_that_was_emptied_and_grew_beyond_what_it_was_starts_again() -> None:
    before = known(NUMBERS[:100])
    first, last = (NUMBERS[:at] + b"x" + NUMBERS[at + 1 :] for at in (0, 99))
    for other in (NUMBERS[4:], NUMBERS[::-1], NUMBERS[:50] + NUMBERS, first, last):
        found = chunks(other, before)
        assert found[0].restarted
        assert table(found) == table(chunks(other))


@pytest.mark.usefixtures("small_chunks")
def test_of_a_file_to_which_nothing_was_added_all_is_compared() -> None:
    before = known(NUMBERS)
    assert not read(NUMBERS, before).restarted
    edited = NUMBERS.replace(b"050", b"x50")
    assert read(edited, before).restarted


@pytest.mark.usefixtures("small_chunks")
def test_what_an_earlier_release_entered_goes_on_and_is_brought_up_to_date() -> None:
    old = progress(NUMBERS[:100], 25)
    chunk = read(NUMBERS, old)
    assert (chunk.data, chunk.restarted) == (NUMBERS[100:], False)
    assert chunk.progress == known(NUMBERS)
    assert chunk.progress.checkpoint
    assert read(b"x" + NUMBERS, old).restarted


@pytest.mark.usefixtures("small_chunks")
@given(parts=st.lists(st.binary(max_size=30), max_size=6), stop=st.integers(0, 6))
def test_the_hash_of_a_content_does_not_depend_on_how_it_was_read(
    parts: list[bytes], stop: int
) -> None:
    whole = ContentHash()
    whole.update(b"".join(parts))
    digest = ContentHash()
    for number, part in enumerate(parts):
        if number == stop and digest.checkpoint:
            size, content = digest.size, b"".join(parts)
            digest = ContentHash.resume(digest.checkpoint)
            assert size - 2 * CHUNK <= digest.size < size - CHUNK
            digest.update(content[digest.size : size])
        digest.update(part)
    assert digest.hexdigest() == whole.hexdigest()
    assert digest.checkpoint == whole.checkpoint
    if whole.size <= CHUNK:
        assert whole.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


# What a file is wrapped in


def zstd(content: bytes) -> bytes:
    compressed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return compressed


@pytest.mark.parametrize("compressed", [True, False], ids=["named so", "not named so"])
@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_compressed_file_is_known_by_its_first_bytes(
    pack: Callable[[bytes], bytes], compressed: bool
) -> None:
    content = b"a\nb\n"
    assert read(pack(content), compressed=compressed).progress == known(content)
    assert read(pack(content) + pack(b"c\n"), known(content), compressed=compressed).data == b"c\n"
    utf16 = pack(content.decode().encode("utf-16"))
    assert read(utf16, compressed=compressed).data == content
    # Somebody may be writing to it: it is looked at again.
    waiting = read(pack(content), settled=False, compressed=compressed)
    assert (waiting.lines, waiting.progress) == (0, Progress(last_line=OPEN))


@pytest.mark.parametrize("cut", [4, 10, -3])
def test_of_a_zstd_file_that_is_not_whole_nothing_is_taken(cut: int) -> None:
    # Its first portions could be read.
    limits = small(1000, 1000)
    for content in (zstd(b"a\nb\n" * 100_000)[:cut], zstd(b"a\n" * 1000) + b"rubbish"):
        new = read_new(
            lambda of=content: io.BytesIO(of),
            compressed=True,
            known=NOTHING,
            settled=True,
            limits=limits,
        )
        with pytest.raises(RetailAssetsError, match="no whole zstd file"):
            next(new)


def test_a_file_that_is_compressed_by_name_alone_is_read_if_it_is_json() -> None:
    assert read(b'{"a": 1}\n', compressed=True).lines == 1
    assert read(b"", compressed=True).lines == 0


def test_that_the_disk_fails_is_no_fault_of_a_compressed_file() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 20, 20))

    for pack in (gzip.compress, zstd):
        content = pack(random.Random(1).randbytes(1000))  # noqa: S311  # what does not compress
        with pytest.raises(OSError, match="Input/output error"):
            list(
                read_new(lambda c=content: Failing(c), compressed=True, known=NOTHING, settled=True)
            )  # type: ignore[misc]


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04\x14\0\0\0", b"PAR1\x15\x04", b"Obj\x01\x04", b"BZh91AY&SY", b"\xfd7zXZ\0\0",
        b"\x04\x22\x4d\x18@", b"SQLite format 3\0\x10",
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named_once(content: bytes) -> None:
    with pytest.raises(RetailAssetsError, match="no lines of JSON: unpack or convert it"):
        chunks(content + b"\n" * 100)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_text_that_is_not_utf_8_is_converted_and_may_grow(encoding: str) -> None:
    text = '{"a": "é€😀"}\n' * 3
    mark = "" if encoding in {"utf-16", "utf-32"} else "\ufeff"
    content = (mark + text).encode(encoding)
    whole = chunks(content)[-1].progress
    for length in range(4, len(content)):
        before = read(content[:length], settled=False)
        after = read(content, before.progress)
        assert (after.restarted, before.lines + after.lines) == (False, 3)
        assert after.progress == whole


def test_a_text_that_is_no_whole_utf_16_is_named_once() -> None:
    for content in ("a\n" * 100).encode("utf-16")[:-1], "a\n".encode("utf-16") + b"\0\xd8\n\0":
        with pytest.raises(RetailAssetsError, match="no whole UTF-16 text"):
            chunks(content)
