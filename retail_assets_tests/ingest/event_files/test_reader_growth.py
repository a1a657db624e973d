"""What reading a file that grew costs, and what files are wrapped in."""

import gzip
import hashlib
import io
import random
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files import content_hash
from retail_assets.ingest.event_files import decoding as event_content
from retail_assets.ingest.event_files.content_hash import ContentHash
from retail_assets.ingest.event_files.reader import read_new
from retail_assets.ingest.ledgers.event_files import OPEN, Progress
from retail_assets_tests.ingest.event_files.reading import (
    NOTHING,
    chunks,
    known,
    progress,
    read,
    small,
    table,
)

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
