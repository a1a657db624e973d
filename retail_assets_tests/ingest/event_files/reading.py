"""Reading event files piece by piece."""

import hashlib
import io

from hypothesis import strategies as st

from retail_assets.ingest.event_files.reader import LIMITS, Chunk, ReadLimits, read_new
from retail_assets.ingest.events.lines import BOM, to_arrow
from retail_assets.ingest.ledgers.event_files import WHOLE, Progress

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


def small(block: int, chunk: int, lines: int = LIMITS.chunk_lines) -> ReadLimits:
    return ReadLimits(block_bytes=block, chunk_bytes=chunk, chunk_lines=lines)


def table(found: list[Chunk]) -> list[tuple[str, str | None]]:
    """The lines of portions, and what is wrong with them."""
    return [
        (row["payload"], row["defect"])
        for chunk in found
        for row in to_arrow(chunk.data, chunk.cut).to_pylist()
    ]


hostile = (
    st.lists(
        st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"abc", "é".encode(), b"\0", b"\xff", BOM])
        | st.binary(max_size=3),
        max_size=30,
    )
    .map(b"".join)
    .filter(lambda content: not content.startswith((b"\xff\xfe", b"\xfe\xff")))
)
"""What is no text in UTF-16 by its mark, and no JSON document."""
