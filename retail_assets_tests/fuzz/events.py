"""Fuzzes the reader of events: nothing is lost of a file, and each line has one outcome.

`python -m retail_assets_tests.fuzz.events FOLDER` with options of libFuzzer. The first bytes of an
input say how it is read, the rest is what a file, a message or a request holds.
"""

import gzip
import io
import json
import sys
from collections.abc import Iterator
from datetime import date

import atheris

from retail_assets_tests.fuzz.fuzzing import folder_for, fuzz

with atheris.instrument_imports(
    include=[
        "retail_assets.engines.event_content",
        "retail_assets.ingest.event_files.content_hash",
        "retail_assets.ingest.event_files.decoding",
        "retail_assets.ingest.events.lines",
        "retail_assets.ingest.event_files.reader",
        "retail_assets.ingest.event_files.json_documents",
        "retail_assets.ingest.messages.payloads",
        "retail_assets.ingest.messages.bodies",
    ]
):
    import duckdb
    import narwhals as nw
    import pyarrow as pa

    from retail_assets.engines import duckdb_events
    from retail_assets.engines.event_content import content_id
    from retail_assets.errors import RetailAssetsError
    from retail_assets.ingest.event_files import content_hash, json_documents
    from retail_assets.ingest.event_files import decoding as event_content
    from retail_assets.ingest.event_files import reader as event_reader
    from retail_assets.ingest.event_files.reader import Chunk, ReadLimits
    from retail_assets.ingest.events import lines as event_lines
    from retail_assets.ingest.events.lines import BOM
    from retail_assets.ingest.ledgers.event_files import DOCUMENTS, OPEN, VALUES, Progress
    from retail_assets.ingest.messages import bodies as webhook_body
    from retail_assets.ingest.messages import payloads
    from retail_assets.transforms import events

DAY = date(2026, 10, 20)
INPUTS = 5_000
"""How many go through one connection."""

VALIDATED_BELOW = 128
"""To validate takes longer than all else: so it is done to half of the inputs."""

BLOCKS = (1, 2, 3, 5, 16, 61, 256, 4096)
PORTION_LINES = (1, 2, 3, 1000)
MOST_LINE_BYTES, KEPT_BYTES, CHUNK_BYTES, HEAD_BYTES = 700, 50, 48, 100

EVENT = {
    "event_id": "E1",
    "order_id": "A1",
    "customer_id": "C1",
    "product_id": "P1",
    "region": "North",
    "order_value_gbp": 10.5,
    "quantity": 2,
    "event_timestamp": "2026-10-20T09:30:00+01:00",
    "status": "completed",
}
LINE = json.dumps(EVENT)
SHORT = '{"order_id": "A2", "customer_id": "C1", "order_value_gbp": "1e1", "region": "S\u00fcd"}'
NESTED = '{"order_id": "A3", "customer_id": "C1", "order_value_gbp": 7, "region": "N", "a": [{"b.c'
NESTED += '": [1.0, 1e400, -0.0, null]}, "\\u00e4\\n", {"b": 1, "b": 2}], "t": true}'
TEXTS = (
    *("", "\n", LINE, LINE + "\n", f"{LINE}\n{SHORT}\r\n\n{NESTED}\n", f"\ufeff{SHORT}\n"),
    *(f"{SHORT}\n\ufeff{SHORT}\n{LINE[:40]}\n", f"[{SHORT}, {NESTED}]", f"[\n{LINE},\n{SHORT}\n]"),
    *(json.dumps(EVENT, indent=1), json.dumps(EVENT, indent=1) * 2, f"{SHORT}{SHORT}{NESTED}\n"),
    *("[1]\n{}\nnull\nNaN\n", "[" * 120 + "]" * 120, SHORT.replace("A2", "\\u0000"), "x" * 900),
    SHORT[:-1] + ', "a": "' + "x" * 900 + '"}\n' + SHORT,
    '{"a": "\\x41"}\0\n{"order_id": "\\xe4"',
    '[{"a": 1}, "a,b", [1, {"b": "}"}], 10, null, {"c": "\\\\"}]',
    '[{"a": 1}], ' + "x" * 900,
    '[{"a": 1}, 10' + " " * 900 + ", 3]  ",
)
WORDS = (
    *(name.encode() for name in (LINE, SHORT, NESTED, *EVENT)),
    *(
        b'": ',
        b'", "',
        b'"}',
        b"{}",
        b"[]",
        b"[{",
        b"}]",
        b"},{",
        b"}\n{",
        b"\\",
        b'\\"',
        b"\\u0000",
    ),
    *(b"\\ud800", b"\r\n", b"\n", b"\r", b"\0", b"\0\0\0\0\1{", b"\xff", b"\xff\xfe", b"\xc3\xa4"),
    *(BOM, b"\x1f\x8b", b"NaN", b"Infinity", b"1e400", b"-0.0", b"1e1", b"null", b"2026-10-20"),
)


def seeds() -> Iterator[bytes]:
    for number, text in enumerate(TEXTS):
        ways = bytes([number % 256, 7 * number % 256, 40])
        yield ways + text.encode()
        yield ways + text.encode("utf-16")
        yield ways + text.encode("utf-16-be")
        yield ways + gzip.compress(text.encode(), mtime=0)
        yield ways + pa.compress(text.encode(), "zstd", asbytes=True)


def lower_limits() -> None:
    """Let small inputs reach what large files do: several chunks, lines that are too long."""
    for module in (event_lines, event_reader, json_documents, payloads):
        module.MAX_LINE_BYTES = MOST_LINE_BYTES
    for module in (event_lines, event_reader, json_documents):
        module.KEPT_BYTES = KEPT_BYTES
    content_hash.CHUNK_BYTES = CHUNK_BYTES
    json_documents.HEAD_BYTES = HEAD_BYTES


class Checker:
    """The connection that lines are validated with."""

    def __init__(self) -> None:
        self.inputs = 0
        self._connect()

    def _connect(self) -> None:
        self.connection = duckdb.connect(config={"threads": 1})
        execute = self.connection.execute
        execute("SET TimeZone = 'Europe/London'")
        # A statement that is prepared over an empty table would find it empty for ever.
        execute("SET disabled_optimizers = 'statistics_propagation'")
        execute(
            "CREATE TABLE lines (line_no BIGINT, received_date DATE, received_at TIMESTAMPTZ,"
            " payload VARCHAR, defect VARCHAR)"
        )
        validated = events.validate(
            nw.from_native(self.connection.sql(duckdb_events.parsed("lines")))
        ).to_native()
        execute(f"PREPARE validate AS SELECT line_no, reason, field FROM ({validated.sql_query()})")
        execute("CREATE TABLE valid (line_no BIGINT, payload VARCHAR)")
        execute(f"PREPARE identify AS {duckdb_events.flat_content_ids('valid')}")

    def check(self, data: bytes) -> None:
        """Read one input in all ways in which it could come."""
        self.inputs += 1
        if self.inputs % INPUTS == 0:
            self.connection.close()
            self._connect()
        ways, content = data[:3].ljust(3, b"\0"), data[3:]
        lines = pa.concat_tables([check_file(content, ways), check_payloads(content)])
        if ways[0] < VALIDATED_BELOW:
            self._validate(lines)
        check_body(content)

    def _validate(self, lines: pa.Table) -> None:
        """Each line is an event or has one reason; each event has an identity."""
        texts, defects = lines["payload"].to_pylist(), lines["defect"].to_pylist()
        if not texts:
            return
        execute = self.connection.execute
        try:
            execute(
                f"INSERT INTO lines SELECT unnest(range(?)), DATE '{DAY}', NULL,"
                " unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
                [len(texts), texts, defects],
            )
            found = execute("EXECUTE validate").fetchall()
            assert sorted(number for number, _, _ in found) == list(range(len(texts)))
            for number, reason, field in found:
                assert reason is None or reason in events.REASONS, reason
                assert field is None or reason is not None, field
                if defects[number]:
                    assert reason == defects[number]
            valid = {number: texts[number] for number, reason, _ in found if reason is None}
            if valid:
                self._identify(valid)
        finally:
            execute("TRUNCATE lines")
            execute("TRUNCATE valid")

    def _identify(self, valid: dict[int, str]) -> None:
        execute = self.connection.execute
        execute(
            "INSERT INTO valid SELECT unnest(?::BIGINT[]), unnest(?::VARCHAR[])",
            [list(valid), list(valid.values())],
        )
        ids = {number: content_id(text) for number, text in valid.items()}
        flat = dict(execute("EXECUTE identify").fetchall())
        assert flat == {number: ids[number] for number in flat}
        for number, text in valid.items():
            if (other := respelled(text)) is not None:
                assert content_id(other) == ids[number], (text, other)


def check_file(content: bytes, ways: bytes) -> pa.Table:
    """Read a file at once and in other ways; all come to the same lines, which hold all of it."""
    compressed = bool(ways[0] & 1)
    limits = sized(4096, 1000)
    whole = lines_of(content, Progress(), limits, compressed=compressed)
    limits = sized(BLOCKS[ways[0] >> 1 & 7], PORTION_LINES[ways[0] >> 4 & 3])
    assert same(whole, lines_of(content, Progress(), limits, compressed=compressed))
    if whole is None:
        return to_arrow([])
    lines, chunks = whole
    check_complete(content, lines, chunks, compressed=compressed)
    twice = lines_of(content, chunks[-1].progress, limits, compressed=compressed)
    assert twice is not None
    assert twice[0].num_rows == 0, "reading twice gives nothing more"
    # What is there at first may be any part of it, and somebody is writing to it.
    first_size = int.from_bytes(ways[1:3], "big") % (len(content) + 1)
    before = lines_of(
        content[:first_size], Progress(), limits, compressed=compressed, settled=False
    )
    if before is not None:
        after = lines_of(content, before[1][-1].progress, limits, compressed=compressed)
        assert after is not None
        if any(chunk.restarted for chunk in after[1]):
            assert same(after, whole)
        else:
            together = pa.concat_tables([before[0], after[0]])
            assert together.equals(lines), (together.to_pylist(), lines.to_pylist())
    return lines


def sized(block: int, lines: int) -> ReadLimits:
    """Limits of the reader; sets those of what unpacks a file."""
    event_content.BLOCK_BYTES = max(block, 16)
    return ReadLimits(block_bytes=block, document_block_bytes=block, chunk_lines=lines)


Read = tuple[pa.Table, list[Chunk]]


def lines_of(
    content: bytes, known: Progress, limits: ReadLimits, *, compressed: bool, settled: bool = True
) -> Read | None:
    """The lines that are read of a file; None if it is refused."""
    try:
        chunks = list(
            event_reader.read_new(
                lambda: io.BytesIO(content),
                compressed=compressed,
                known=known,
                settled=settled,
                limits=limits,
            )
        )
    except RetailAssetsError:
        return None
    assert chunks[-1].last
    assert not any(chunk.last for chunk in chunks[:-1])
    assert not settled or chunks[-1].progress.last_line != OPEN
    return to_arrow(chunks), chunks


def to_arrow(chunks: list[Chunk]) -> pa.Table:
    tables = [event_lines.to_arrow(chunk.data, chunk.cut) for chunk in chunks]
    assert [table.num_rows for table in tables] == [chunk.lines for chunk in chunks]
    return pa.concat_tables(tables or [event_lines.to_arrow(b"")])


def same(one: Read | None, other: Read | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[0].equals(other[0]) and one[1][-1].progress == other[1][-1].progress


def check_complete(
    content: bytes, lines: pa.Table, chunks: list[Chunk], *, compressed: bool
) -> None:
    """The lines hold what the file holds, by a count of its bytes."""
    with event_content.opened(
        lambda: io.BytesIO(content), compressed=compressed, settled=True
    ) as opened:
        assert opened is not None
        text = b""
        while block := opened.read(4096):
            text += block
    assert chunks[-1].progress.bytes_taken == len(text)
    assert chunks[-1].progress.lines == lines.num_rows
    if any(chunk.cut for chunk in chunks):
        return
    data = b"".join(chunk.data for chunk in chunks)
    checkpoint = chunks[-1].progress.checkpoint
    expected = [line.removeprefix(BOM) for line in text.split(b"\n")]
    may_be_batches = any(line.startswith(b"[") or b"}{" in line for line in expected)
    if checkpoint in (DOCUMENTS, VALUES) or may_be_batches:
        structure = b" \t\r\n,[]"
        bare = text.replace(BOM, b"").translate(None, structure)
        assert data.replace(BOM, b"").translate(None, structure) == bare
        if checkpoint == DOCUMENTS:
            check_elements(text, lines)
    else:
        assert data.split(b"\n") == expected + ([] if not text or text.endswith(b"\n") else [b""])


def check_elements(text: bytes, lines: pa.Table) -> None:
    """Of an array each element is a line, as another reader of JSON has them."""
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except ValueError:
        return
    if isinstance(document, list) and not lines["defect"].drop_null():
        found = [json.loads(line) for line in lines["payload"].to_pylist()]
        assert json.dumps(found) == json.dumps(document)


def check_payloads(content: bytes) -> pa.Table:
    """A message is kept so that its bytes can be given back."""
    messages = [content, *content.split(b"\n")]
    table = payloads.payloads_to_arrow(messages)
    assert table.num_rows == len(messages)
    for message, row in zip(messages, table.to_pylist(), strict=True):
        if row["defect"]:
            assert payloads.original_bytes(row["payload"]) == message
        else:
            assert row["payload"].encode() in {message, message[payloads.FRAME_BYTES :]}
    return table


def check_body(content: bytes) -> None:
    """A request is refused as a whole, or each of its events is one line of what it holds."""
    for read in (webhook_body.ndjson_events, webhook_body.json_events):
        try:
            found = read(content)
        except webhook_body.BodyError:
            continue
        assert not any(b"\n" in event for event in found)
        outside = b" \t\r\n,[]\x0b\x0c"
        held = content.removeprefix(BOM).translate(None, outside)
        assert b"".join(found).translate(None, outside) == held


class _Number(str):
    """The text of a number."""

    __slots__ = ()


def respelled(payload: str) -> str | None:
    """The same content in other words; None if Python does not take it for JSON."""
    try:
        content = json.loads(
            payload,
            parse_int=with_exponent,
            parse_float=with_exponent,
            object_pairs_hook=turned_round,
        )
    except ValueError:
        return None
    return written(content)


def with_exponent(text: str) -> _Number:
    return _Number(text if "e" in text.lower() else f"{text}{'' if '.' in text else '.'}0e0")


def turned_round(pairs: list[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    # Of a name that stands twice the first one counts as such.
    repeated = len({name for name, _ in pairs}) < len(pairs)
    return tuple(pairs if repeated else reversed(pairs))


def written(value: object) -> str:
    if isinstance(value, tuple):
        return "{ " + ",".join(f"{json.dumps(name)} : {written(it)}" for name, it in value) + "}"
    if isinstance(value, list):
        return "[" + " , ".join(map(written, value)) + "\t]"
    return value if isinstance(value, _Number) else json.dumps(value)


def main() -> None:
    folder = folder_for("events")
    lower_limits()
    # Python's json is recursive, and events may be many objects deep.
    sys.setrecursionlimit(5_000)
    fuzz(Checker().check, folder, seeds(), WORDS)


if __name__ == "__main__":
    main()
