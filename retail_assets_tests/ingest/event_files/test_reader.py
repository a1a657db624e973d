"""What is new of an event file: only whole lines, once, however the file came to be as it is."""

import gzip
import io
from typing import IO

import pytest

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files.reader import read_new
from retail_assets.ingest.events.lines import BOM
from retail_assets.ingest.ledgers.event_files import OPEN, TAKEN
from retail_assets_tests.ingest.event_files.reading import (
    NOTHING,
    chunks,
    known,
    progress,
    read,
)


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
