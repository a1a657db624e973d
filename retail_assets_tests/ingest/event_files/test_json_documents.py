"""Files that are JSON, but not a value on each line: what they hold, whatever their blocks are."""

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files import json_documents
from retail_assets.ingest.event_files import reader as event_reader
from retail_assets.ingest.event_files.reader import LIMITS, Chunk, ReadLimits, read_new
from retail_assets.ingest.events import lines as event_lines
from retail_assets.ingest.events.lines import BOM, MAX_LINE_BYTES, to_arrow
from retail_assets.ingest.ledgers.event_files import OPEN, TAKEN, WHOLE, Progress

NOTHING = Progress()

OBJECTS = [
    {"id": 1, "text": 'a "quoted" [brace}, \\'},
    {"id": 2, "lines": [{"product": "P1"}, {"product": "é\u2028"}]},
    {"id": 3, "text": "\\\\", "nothing": None, "deep": [[], {}, [{"a": [1, 2]}]]},
]


def chunks(
    content: bytes, known: Progress = NOTHING, *, settled: bool = True, limits: ReadLimits = LIMITS
) -> list[Chunk]:
    new = read_new(
        lambda: io.BytesIO(content), compressed=False, known=known, settled=settled, limits=limits
    )
    return list(new)


def payloads(found: list[Chunk]) -> list[str]:
    return [text for part in found for text in to_arrow(part.data, part.cut)["payload"].to_pylist()]


def values(content: bytes) -> list[Any]:
    return [json.loads(text) for text in payloads(chunks(content))]


def encode(values: Any, indent: int | None = None) -> bytes:
    return json.dumps(values, indent=indent).encode()


WRITTEN = {
    "compact array": encode(OBJECTS),
    "pretty array": encode(OBJECTS, 2),
    "array of a line each": b"[\n" + b",\n".join(map(encode, OBJECTS)) + b"\n]\n",
    "array without commas": b"[\n" + b"\n".join(map(encode, OBJECTS)) + b"\n]\n",
    "arrays end to end": b"\n".join(encode([one]) for one in OBJECTS),
    "pretty objects": b"\n".join(encode(one, 4) for one in OBJECTS),
    "pretty objects with commas": b",\n".join(encode(one, 4) for one in OBJECTS),
    "objects end to end": b"".join(map(encode, OBJECTS)),
    "objects end to end, blanks": b" ".join(map(encode, OBJECTS)) + b"\n",
    "Windows": encode(OBJECTS, 2).replace(b"\n", b"\r\n"),
    "byte order mark": BOM + encode(OBJECTS, 2),
    "files end to end": BOM + encode(OBJECTS[:2], 2) + b"\n" + BOM + encode(OBJECTS[2:], 2),
    "lines of objects end to end": (
        encode(OBJECTS[0]) + encode(OBJECTS[1]) + b"\n" + encode(OBJECTS[2]) + b"{}\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_each_object_is_an_element_however_they_are_written(name: str, encoding: str) -> None:
    content = WRITTEN[name].decode().encode(encoding)
    expected = [*OBJECTS, {}] if name.startswith("lines") else OBJECTS
    if encoding in {"utf-16-le", "utf-16-be"} and WRITTEN[name].startswith(BOM):
        content = WRITTEN[name].decode().encode(encoding)
    assert values(content) == expected


def test_an_array_of_nothing_has_no_elements() -> None:
    for content in (b"[]", b"[\n]\n", b" [ ] [ ]"):
        (chunk,) = chunks(content)
        assert (chunk.lines, chunk.progress.last_line) == (0, WHOLE)


def test_every_line_stands_for_itself_where_it_is_not_plain_what_is_meant() -> None:
    good = encode(OBJECTS[0])
    for content in (
        b"{\n" + good,
        good + b"\n{\n" + good,
        b'{"a": 1, \n' + good,
        b"[2026-10-05 12:00] started\n" + good,
        b"[\n" * 3,
        b"[1, 2]\n[3]",
        b"null\n" + good,
        b'"[{"\n' + good,
        b"{",
        b"}\n{",
    ):
        assert (
            payloads(chunks(content))
            == content.decode().split("\n")[: content.rstrip(b"\n").count(b"\n") + 1]
        )


def test_what_is_wrong_between_elements_is_an_element_of_its_own() -> None:
    content = b'[{"a":1}}, {"b":2}, 7, "x", nonsense {"c":3}]\njunk "q\n{"d":4}'
    assert payloads(chunks(content)) == [
        '{"a":1}', "}", '{"b":2}', "7", '"x"', 'nonsense {"c":3}', "]", 'junk "q', '{"d":4}',
    ]  # fmt: skip


def test_a_newline_within_a_string_stays_an_error() -> None:
    with pytest.raises(RetailAssetsError, match="breaks off after element 0"):
        chunks(b'[{"a": "x\ny"}]')
    (text,) = payloads(chunks(b'[{"a": "x\ny"\n}]'))
    with pytest.raises(ValueError, match="control character"):
        json.loads(text)


@pytest.mark.parametrize(
    "content", [encode(OBJECTS), encode(OBJECTS, 2), WRITTEN["pretty objects"]]
)
def test_a_document_that_breaks_off_gives_what_is_whole_and_is_named(content: bytes) -> None:
    for length in range(2, len(content) - 1):
        cut = content[:length]
        waiting = chunks(cut, settled=False)
        whole = [json.loads(text) for text in payloads(waiting)]
        assert whole == OBJECTS[: len(whole)]
        # Once it is whole, the rest follows.
        rest = chunks(content, waiting[-1].progress)
        assert not rest[0].restarted
        assert whole + [json.loads(text) for text in payloads(rest)] == OBJECTS
        assert waiting[-1].progress.last_line == OPEN or content[:1] == b"{"


def test_a_document_that_breaks_off_fails_once_nobody_writes_to_it() -> None:
    content = encode(OBJECTS, 2)
    reading = read_new(
        lambda: io.BytesIO(content[:-10]), compressed=False, known=NOTHING, settled=True
    )
    found = [next(reading)]
    with pytest.raises(RetailAssetsError, match="its JSON breaks off after element 2"):
        next(reading)
    assert [json.loads(text) for text in payloads(found)] == OBJECTS[:2]
    assert [chunk.last for chunk in found] == [False]
    with pytest.raises(RetailAssetsError, match="after element 2"):
        chunks(content[:-10], found[-1].progress)
    with pytest.raises(RetailAssetsError, match="after element 0"):
        chunks(b'{\n  "id": 1,\n  "text": "a')


def test_an_array_that_is_written_again_starts_again_unless_it_is_the_same() -> None:
    (before,) = chunks(encode(OBJECTS[:2]))
    (again,) = chunks(encode(OBJECTS[:2]) + b"\n", before.progress)
    assert (again.lines, again.restarted) == (0, False)
    (longer,) = chunks(encode(OBJECTS), before.progress)
    assert (longer.lines, longer.restarted) == (3, True)
    (appended,) = chunks(encode(OBJECTS[:2]) + encode(OBJECTS[2:]), before.progress)
    assert (appended.lines, appended.restarted, appended.progress.lines) == (1, False, 3)


def test_what_is_new_of_a_large_array_waits_until_nobody_writes_to_it() -> None:
    limits = ReadLimits(reread_bytes=10)
    content = encode(OBJECTS)
    (before,) = chunks(content[:-10], settled=False)
    (waiting,) = chunks(content, before.progress, settled=False, limits=limits)
    assert (waiting.lines, waiting.restarted, waiting.progress) == (0, False, before.progress)
    (chunk,) = chunks(content, before.progress, limits=limits)
    assert (chunk.lines, chunk.restarted) == (1, False)


def test_an_array_that_was_once_read_by_lines_starts_again() -> None:
    content = encode(OBJECTS, 2)
    by_line = Progress(
        len(content),
        event_reader.hashlib.sha256(content).hexdigest(),
        content.count(b"\n") + 1,
        TAKEN,
    )
    (chunk,) = chunks(content, by_line)
    assert (chunk.lines, chunk.restarted) == (3, True)


texts = st.text(st.sampled_from('a"\\{}[],\né'), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, json_values, max_size=4)


@given(
    found=st.lists(objects, min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    block=st.integers(1, 40),
    chunk=st.integers(1, 40),
    stop=st.integers(0, 5),
)
@example(found=[{"\\": "\\\\"}], indent=None, ascii_only=True, block=1, chunk=1, stop=0)
def test_an_array_gives_its_elements_whatever_the_blocks_are(
    found: list[Any], indent: int | None, ascii_only: bool, block: int, chunk: int, stop: int
) -> None:
    content = json.dumps(found, indent=indent, ensure_ascii=ascii_only).encode()
    limits = ReadLimits(document_block_bytes=block, chunk_bytes=chunk)
    parts = chunks(content, limits=limits)
    assert [json.loads(text) for text in payloads(parts)] == found
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    stopped = parts[min(stop, len(parts) - 1)]
    rest = chunks(content, stopped.progress, limits=limits)
    assert not rest[0].restarted
    assert [json.loads(text) for text in payloads(rest)] == found[stopped.progress.lines :]
    assert rest[-1].progress == parts[-1].progress


@given(content=st.lists(st.sampled_from(list('{}[],:"\\\n a1')), max_size=40).map("".join))
def test_whatever_comes_in_nothing_but_blanks_and_brackets_between_is_lost(content: str) -> None:
    """Every byte is in an element, or separates some."""
    splitter = json_documents.DocumentSplitter()
    elements = splitter.feed(content.encode())
    held = b"".join([*elements, splitter.rest])
    left_out = str.maketrans("", "", " \n\r[],")
    assert held.decode().translate(left_out) == content.translate(left_out)


anything = st.lists(
    st.sampled_from(
        [
            *(bytes([byte]) for byte in b'[]{},"\\\n 7\0'),
            *(b"\r\n", b"\xff\xfe", BOM, b'{"a":1}', b'{\n"a":1}', b'[{"a":'),
            *(b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"),
        ]
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=300)
@example(content=b'{"a":1}{', more=b'\n{"a":1}', compressed=False, block=9, chunk=9)
@given(
    content=anything,
    more=anything,
    compressed=st.booleans(),
    block=st.integers(1, 40),
    chunk=st.integers(1, 40),
)
def test_whatever_a_file_is_it_is_read_or_named_and_may_go_on(
    content: bytes, more: bytes, compressed: bool, block: int, chunk: int
) -> None:
    """What one look after the other finds of a growing file is what one look finds of all of it."""

    def look(content: bytes, known: Progress, *, settled: bool) -> tuple[list[Chunk], bool]:
        found: list[Chunk] = []
        try:
            for part in read_new(
                lambda: io.BytesIO(content),
                compressed=compressed,
                known=known,
                settled=settled,
                limits=limits,
            ):
                found.append(part)  # noqa: PERF402  # what came before an error counts
        except RetailAssetsError:
            return found, True
        return found, False

    limits = ReadLimits(block_bytes=block, document_block_bytes=block, chunk_bytes=chunk)
    state, held = NOTHING, []
    for now, settled in ((content, False), (content + more, False), (content + more, True)):
        found, failed = look(now, state, settled=settled)
        for part in found:
            held = payloads([part]) if part.restarted else held + payloads([part])
            state = part.progress
    whole, failed_at_once = look(content + more, NOTHING, settled=True)
    assert failed == failed_at_once
    if not failed:
        assert held == payloads(whole)
        assert state.lines == len(held)


def test_an_element_that_is_too_long_is_cut_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (event_lines, json_documents):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
        monkeypatch.setattr(module, "KEPT_BYTES", 10)
    long = {"id": "x" * 200}
    for block in (7, 64, 1000):
        content = encode([{"a": 1}, long, {"b": 2}, long])
        (chunk,) = chunks(content, limits=ReadLimits(document_block_bytes=block))
        assert to_arrow(chunk.data, chunk.cut).to_pylist() == [
            {"payload": '{"a": 1}', "defect": None},
            {"payload": '{"id": "xx', "defect": "line_too_long"},
            {"payload": '{"b": 2}', "defect": None},
            {"payload": '{"id": "xx', "defect": "line_too_long"},
        ]


def test_of_an_element_that_does_not_end_no_more_is_kept_than_of_one_that_is_too_long() -> None:
    splitter = json_documents.DocumentSplitter()
    splitter.feed(b'[{"a": "')
    sizes = []
    for _ in range(6):
        splitter.feed(b"x" * MAX_LINE_BYTES)
        sizes.append(len(splitter.rest))
    assert max(sizes) == sizes[-1] < 3 * MAX_LINE_BYTES


pieces = st.lists(
    st.sampled_from(
        [
            *(b'{"a":1}', b"[", b"]", b",", b"10", b'"', b"\\", b"\n", b"\r\n", b"\r", b"  ", BOM),
            *(b" " * 40, b"x" * 30, b"\xff\xfe"),
        ]
    ),
    max_size=10,
).map(b"".join)


@settings(max_examples=300)
@example(beginning=b"[", rest=b"]," + b"x" * 60, block=5)
@example(beginning=b"[", rest=b"]  ", block=5)
@example(beginning=b"[", rest=b"]\n" + BOM, block=5)
@example(beginning=b"[", rest=b"]" + BOM + b" " * 40 + b"10,3", block=5)
@example(beginning=b"[", rest=b",10" + b" " * 40 + b",3]", block=5)
@example(beginning=b"[", rest=b",xxxxxx" + b" " * 9 + b"x" * 60 + b"]", block=5)
@given(beginning=st.sampled_from([b"", b"["]), rest=pieces, block=st.integers(1, 40))
def test_where_its_blocks_end_changes_nothing_of_a_file(
    beginning: bytes, rest: bytes, block: int
) -> None:
    content = beginning + b'{"a":1}' + rest

    def read(block: int) -> tuple[list[Any], Progress] | str:
        try:
            found = chunks(content, limits=ReadLimits(document_block_bytes=block))
        except RetailAssetsError as error:
            return str(error)
        lines = [row for part in found for row in to_arrow(part.data, part.cut).to_pylist()]
        return lines, found[-1].progress

    with pytest.MonkeyPatch.context() as patch:
        for module in (event_lines, json_documents):
            patch.setattr(module, "MAX_LINE_BYTES", 20)
            patch.setattr(module, "KEPT_BYTES", 10)
        # Lines are read by another, which has limits of its own.
        patch.setattr(event_reader, "are_documents", lambda *_, **__: True)
        whole = read(1000)
        assert read(block) == whole
        if isinstance(whole, str):
            assert "breaks off" in whole
        else:
            lines, progress = whole
            assert (progress.lines, progress.bytes_taken) == (len(lines), len(content))
            assert all(row["payload"] != BOM.decode() for row in lines)


class Repeated(io.RawIOBase):
    """An array of many objects that is nowhere."""

    def __init__(self, count: int) -> None:
        self.item = b"\n  " + encode({"id": 1, "text": "x" * 1000}, 2) + b","
        self.left = count
        self.buffer = b"["

    def read(self, size: int = -1) -> bytes:
        while len(self.buffer) < size and self.left:
            self.left -= 1
            self.buffer += self.item
        block, self.buffer = self.buffer[:size], self.buffer[size:]
        return block


def test_a_large_array_is_read_in_bounded_memory() -> None:
    limits = ReadLimits(chunk_bytes=4 << 20)
    tracemalloc.start()
    try:
        lines = sum(
            chunk.lines
            for chunk in read_new(
                lambda: Repeated(30_000),  # type: ignore[arg-type,return-value]
                compressed=False,
                known=NOTHING,
                settled=False,
                limits=limits,
            )
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == 30_000
    assert peak < 4 * limits.chunk_bytes
