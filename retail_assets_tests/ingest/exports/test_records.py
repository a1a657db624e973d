"""No row of an export is lost between the file and the lake, whatever stands in it."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import islice, pairwise, product
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from retail_assets.ingest.exports import csv_records
from retail_assets.ingest.exports.csv_file import survey
from retail_assets.ingest.exports.files import ExportFolder
from retail_assets.ingest.exports.load import ingest
from retail_assets.ingest.exports.record_count import RecordCount
from retail_assets_tests.conftest import (
    HEADER,
    NewLake,
    WriteExport,
    examples,
    order_row,
    write_export_to,
)
from retail_assets_tests.ingest.exports.conftest import ExportLoader
from retail_assets_tests.ingest.exports.test_properties import NO_SHRINKING, fresh

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)
NOTED = f"{HEADER},note"


def row(order_id: str, note: str = "x", **changed: str) -> str:
    return f"{order_row(order_id, DAY, **changed)},{note}"


def text_of(*rows: str, end: str = "\n") -> str:
    return "".join(f"{line}{end}" for line in (NOTED, *rows))


# A quote that takes other rows into its field

SWALLOWED = {
    "never closed": ([row("A"), row("B", '"open'), row("C"), row("D")], 3, 4),
    "never closed, one row after it": ([row("B", '"open'), row("C")], 2, 3),
    "closed by a stray quote": ([row("B", '"open'), row("C"), row("D", 'shut"'), row("E")], 2, 3),
    "closed in the next row": ([row("B", '"open'), row("C", 'shut"'), row("D")], 2, 3),
    "closed in a field in between": (
        ['B,"C1,P1,North,completed,1.00,2026-10-20,x', row("C", customer_id='C1"'), row("D")], 2, 3
    ),
    "a row with quotes after it": (
        [row("B", '"open'), row("C", '"fine"'), row("D"), row("E")], 2, 3
    ),
    "every field in quotes": (
        [",".join(f'"{cell}"' for cell in row(name).split(","))[: None if name != "B" else -1]
         for name in "ABCD"], 3, 4
    ),
    "a row that breaks off within quotes": (['B,C1,"P1', row("C", product_id='"P1"')], 2, 3),
    "closed twice": ([row("B", '"a""'), row("C"), row("D", 'b"')], 2, 3),
    "after a field of several lines": (
        [row("A", '"12 Lamp St\nFlat 3"'), row("B", '"open'), row("C")], 4, 5
    ),
    "within a record of several lines": (
        ['"two\nlines"' + row("B", '"open')[1:], row("C"), row("D")], 3, 4
    ),
    "after a blank line": ([row("A"), "", row("B", '"open'), "", row("C")], 4, 6),
    "a value that is none": ([row("B", '"open'), row("C", order_value_gbp="x"), row("D")], 2, 3),
}  # fmt: skip
"""Rows, the line on which the quote opens, and the first that it takes."""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_a_quote_that_takes_other_rows_fails_the_day_and_names_the_lines(
    loader: ExportLoader, write_export: WriteExport, end: str
) -> None:
    days = [DAY + n * A_DAY for n in range(len(SWALLOWED))]
    for n, (day, (rows, _, _)) in enumerate(zip(days, SWALLOWED.values(), strict=True)):
        lines = "\n".join([NOTED, *rows, ""])
        write_export(day, lines.replace("\n", end), compressed=n % 2 == 1)
    failed = loader.ingest(*days, late_days=60).raw.failed
    for day, (name, (_, opened, taken)) in zip(days, SWALLOWED.items(), strict=True):
        assert f"line {opened}: a quote opens there" in failed[day], name
        assert f"such as line {taken}," in failed[day], name
    assert loader.orders() == loader.rejected() == []


def test_an_open_quote_in_one_of_many_files_fails_that_day_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    """Of more than two files a thread, DuckDB reads as far as the quote and notes nothing."""
    days = [DAY + n * A_DAY for n in range(9)]
    for day in days[1:]:
        write_export(day, [row(f"G{day:%d}-{n}") for n in range(5)], header=NOTED)
    rows = (
        [row(f"D{n}") for n in range(50)] + [row("O", '"open')] + [row(f"E{n}") for n in range(99)]
    )
    write_export(DAY, rows, header=NOTED)
    ingested = loader.ingest(*days, late_days=30)
    assert ingested.raw.failed.keys() == {DAY}
    assert "line 52: a quote opens there" in ingested.raw.failed[DAY]
    assert ingested.raw.rows == dict.fromkeys(days[1:], 5)


SOUND = {
    "an address": '"12 Lamp St\nFlat 3\r\nLondon"',
    "an address with commas": '"Flat 3, 12 Lamp St, Soho\nLondon, W1, UK"',
    "a list": '"eggs, milk, bread, ham, jam, tea, salt, oil, flour\nand 2, 3, 4, 5, 6, 7, 8, 9"',
    "a date": '"called 2026-10-01\nand 2026-10-02"',
    "blank lines": '"\n\n\n"',
    "doubled quotes": '"say ""hi""\nor """""',
    "blanks around quotes": ' "two\nlines"',
    "two stray quotes": '5" pipe',
    "other separators": '"a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\nh"',
}  # fmt: skip


def test_fields_of_several_lines_are_read_as_they_are(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    rows = [row(name, note) for name, note in SOUND.items()]
    first = [f"{note},{row(f'first, {name}'.replace(',', ''))}" for name, note in SOUND.items()]
    write_export(DAY, [*rows, *rows[::-1]], header=NOTED)
    write_export(DAY + A_DAY, first, header=f"comment,{NOTED}")
    ingested = loader.ingest(DAY, DAY + A_DAY)
    assert ingested.raw.failed == {}
    assert {order_id for (order_id,) in loader.orders()} >= SOUND.keys()
    assert ingested.raw.rows == dict.fromkeys((DAY, DAY + A_DAY), len(SOUND))
    assert set(loader.rejected("reason")) == {("duplicate_order",)}


def test_stray_quotes_reject_their_own_row_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(
        DAY,
        [
            row("A"),
            row("B", '"12" TV"'),
            row("C"),
            row("D", '5" pipe'),
            row("E", '"12 "Lamp" St\nFlat 3\nLondon"'),
            row("F", '"open at the end'),
        ],
        header=NOTED,
    )
    assert loader.ingest(DAY).raw.failed == {}
    assert loader.orders() == [("A",), ("C",), ("D",)]
    assert loader.rejected("row_number, reason") == [(n, "malformed_row") for n in (3, 6, 7, 8, 9)]


def test_quotes_that_are_read_in_two_ways_do_not_make_up_for_a_row_that_was_taken(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    """Where quotes only open and close in turn, this file has as many records as it was read."""
    write_export(DAY, [row("A", '5" pipe'), '.00,2026-10-20,"cut', row("B")], header=NOTED)
    assert "line 3: a quote opens there" in loader.ingest(DAY).raw.failed[DAY]


UNREADABLE = (
    '"a"0,"b"c',
    '"a"0,"b"c,"d"e,"f"g',
    '"x"y\udce9, "z"w',
    "Orl\udce9ans",
    "\udcff\udcfe,\udce9",
    'a,b,"c"d',
    '"long' + "er" * 10_000 + '"s',
)


ENDS = ("\n", "\r\n", "\r")


def test_the_text_of_a_row_that_cannot_be_read_is_kept_whole(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    """DuckDB gives none where quotes are stray, cuts long ones, and loses what follows a byte."""
    rows = [[row(f"O{n}", note), row(f"G{n}")] for n, note in enumerate(UNREADABLE)]
    good = [row(f"T{n}") for n in range(len(UNREADABLE))]
    days = []
    for end, blank in product(ENDS, ("", "same end", "\n\r\n")):
        after = end if blank == "same end" else blank
        lines = [line + after for line in (end.join(two) for two in rows)]
        content = text_of(*lines, *good, end=end)
        for start, compressed in (("", False), ("\ufeff", True)):
            days.append(DAY + len(days) * A_DAY)
            whole = f"{start}{content}".encode(errors="surrogateescape")
            write_export(days[-1], whole, compressed=compressed)
    assert loader.ingest(*days, late_days=60).raw.failed == {}
    kept = [(2 * n + 2, decoded(row(f"O{n}", note))) for n, note in enumerate(UNREADABLE)]
    found = loader.rejected("export_date, row_number, raw_text")
    assert found == [(day, *one) for day in days for one in kept]


MALFORMED = (
    *UNREADABLE,
    "x,more",
    '"two{end}lines"x',
    '"three{end}{end}lines"" ""y"z',
)
"""Notes of rows that are malformed; `{end}` is the end of a line."""


@settings(max_examples=examples(2), phases=NO_SHRINKING)
@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from(MALFORMED) | st.sampled_from(["x", ""]),
            st.sampled_from(ENDS),
            st.sampled_from(ENDS),
        ),
        min_size=20,
    )
)
@example(lines=[("x", "", "\n"), ("", "", "\r\n"), ("x,more", "", "\n"), ("x", "", "\n")])
def test_the_text_of_a_malformed_row_is_its_own_whatever_ends_lines(
    new_lake: NewLake, lines: list[tuple[str, str, str]]
) -> None:
    """In a file of LF, DuckDB counts an empty field before CR LF as a record of its own."""
    rows = [row(f"O{n}", note.format(end=inner)) for n, (note, inner, _) in enumerate(lines)]
    content = f"{NOTED}\n" + "".join(
        line + end for line, (_, _, end) in zip(rows, lines, strict=True)
    )
    with fresh(new_lake) as (lake, connection, folder):
        write_export_to(folder, DAY, content.encode(errors="surrogateescape"))
        assert ingest(lake, connection, folder, [DAY], late_days=7).raw.failed == {}
        found = connection.execute(
            "SELECT row_number, raw_text FROM rejected_orders ORDER BY row_number"
        ).fetchall()
    assert found == [
        (number, decoded(line))
        for number, (line, (note, _, _)) in enumerate(zip(rows, lines, strict=True), start=2)
        if note in MALFORMED
    ]


# Any bytes

notes = st.sampled_from(["x", "", *SOUND.values(), '"a, b"', "it's", "Zoë 日本"])
faults = st.lists(
    st.sampled_from(
        (
            *('"', '""', '"""', "\n", "\r", "\r\n", ",", ' "', '",', ',"', "\n\n", "\0"),
            *('"b"c', '"a"0,"b"c', "\udce9", "\udcff\udcfe"),
        )
    ),
    min_size=1,
    max_size=3,
)
"""What is inserted into a row, each at some place; the bytes of the last ones are not UTF-8."""


@dataclass(frozen=True)
class Spoiled:
    """An export with faults; `intact` are the ids of the rows that nobody has touched."""

    content: bytes
    intact: frozenset[str]
    compressed: bool


@st.composite
def spoiled_exports(draw: st.DrawFn) -> Spoiled:
    rows, intact = [], set()
    for n in range(draw(st.integers(0, 6))):
        line = row(f"O{n}", draw(notes))
        if draw(st.integers(0, 2)) == 0:
            at = draw(st.integers(0, len(line)))
            spoiled = line
            for fault in draw(faults):
                place = draw(st.integers(0, len(spoiled)))
                spoiled = spoiled[:place] + fault + spoiled[place:]
            line = draw(st.sampled_from([spoiled, spoiled, line[:at], line[at:]]))
        else:
            intact.add(f"O{n}")
        rows += [line, ""] if draw(st.integers(0, 3)) == 0 else [line]
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = text_of(*rows, end=end)
    if draw(st.booleans()):
        text = text.removesuffix(end)
    text = draw(st.sampled_from(["", "\ufeff"])) + text
    return Spoiled(text.encode(errors="surrogateescape"), frozenset(intact), draw(st.booleans()))


def records(content: bytes) -> dict[int, str]:
    """The text of each record without the end of its last line, from 2: the header is left out."""
    lines = io.StringIO(content.decode("utf-8-sig", errors="surrogateescape"), newline="")
    reader = csv.reader(lines, skipinitialspace=True)
    ends = [(reader.line_num, bool(fields)) for fields in reader]
    lines.seek(0)
    found = [
        (list(islice(lines, end - start)), filled)
        for (start, _), (end, filled) in pairwise([(0, True), *ends])
    ]
    texts = ["".join((*head, tail.rstrip("\r\n"))) for (*head, tail), filled in found if filled]
    return dict(enumerate(map(decoded, texts[1:]), start=2))


def decoded(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def letters(text: str) -> "Counter[str]":
    return Counter(one for one in text if one.isalnum())


def taken(
    new_lake: NewLake, exports: Sequence[Spoiled], groups: Sequence[Sequence[int]]
) -> dict[date, Any]:
    """What became of some exports, ingested in groups: the problem, or raw and rejected rows."""
    days = [DAY + n * A_DAY for n in range(len(exports))]
    with fresh(new_lake) as (lake, connection, folder):
        for day, export in zip(days, exports, strict=True):
            write_export_to(folder, day, export.content, compressed=export.compressed)
        failed: dict[date, str] = {}
        for group in groups:
            wanted = [days[n] for n in group]
            failed |= ingest(lake, connection, folder, wanted, late_days=60).raw.failed
        outcomes: dict[date, Any] = {day: failed.get(day) or ([], []) for day in days}
        for kind, columns in enumerate(
            ("order_id, row_number, extra FROM raw_orders",
             "row_number, reason, raw_text FROM rejected_orders")
        ):  # fmt: skip
            for day, *found in connection.execute(
                f"SELECT export_date, {columns} ORDER BY ALL"
            ).fetchall():
                outcomes[day][kind].append(tuple(found))
        return outcomes


@settings(max_examples=examples(3), phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(exports=st.lists(spoiled_exports(), min_size=10, max_size=10))
def test_every_record_is_accounted_for_or_the_day_fails_by_name(
    new_lake: NewLake, exports: list[Spoiled]
) -> None:
    together = taken(new_lake, exports, [range(len(exports))])
    for (day, outcome), export in zip(together.items(), exports, strict=True):
        if isinstance(outcome, str):
            assert f"orders_{day:%Y_%m_%d}.csv" in outcome
            continue
        raw, rejected = outcome
        texts = records(export.content)
        assert len(raw) + len(rejected) == len(texts), export
        for record, reason, raw_text in rejected:
            if reason in {"malformed_row", "not_utf8"}:
                assert raw_text == texts[record], export
            else:
                fields = json.loads(raw_text).values()
                assert letters("".join(map(str, filter(None, fields)))) == letters(texts[record])
        assert {order_id for order_id, *_ in raw} >= export.intact, (export, rejected)


@settings(max_examples=examples(2), phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(exports=st.lists(spoiled_exports(), min_size=6, max_size=6))
def test_reading_together_equals_reading_alone(new_lake: NewLake, exports: list[Spoiled]) -> None:
    def named(outcomes: dict[date, Any]) -> list[Any]:
        # The folder is another one.
        return [
            outcome.rsplit("/", 1)[-1] if isinstance(outcome, str) else outcome
            for outcome in outcomes.values()
        ]

    together = taken(new_lake, exports, [range(len(exports))])
    alone = taken(new_lake, exports, [[n] for n in range(len(exports))])
    assert named(together) == named(alone)


pieces = st.sampled_from(
    ["a", " ", "\n", "\r", "\r\n", '"q\nq"', '"\r\n"', '""', ",", ",,,,,,", '"\n,,,', ',,,"', '"']
)


@settings(max_examples=300)
@given(text=st.lists(pieces, max_size=14).map("".join), sizes=st.lists(st.integers(1, 5)))
@example(text='a"\n"', sizes=[1])
@example(text='"q\nq"x\n', sizes=[5])
@example(text="abc\r\nd\r\n", sizes=[4])
def test_lines_are_counted_wherever_a_chunk_ends(text: str, sizes: list[int]) -> None:
    count, whole, content = RecordCount(6), RecordCount(6), text.encode()
    if content:
        whole.add(content)
    for size in [*sizes, len(content)]:
        if content:
            count.add(content[:size])
        content = content[size:]
    lines = re.split(r"\r\n|\r|\n", re.sub(r'"[^"]*("|$)', "q", text))
    assert count.records == sum(1 for line in lines if line)
    assert (count.suspicious, count.uneven) == (whole.suspicious, whole.uneven)
    ends = set(re.findall(r"\r\n|\r|\n", text))
    assert count.uneven == ("" in lines[:-1] or len(ends) > 1)
    starts = [0, *(match.end() for match in re.finditer("[\r\n]", text))]
    inside = [re.split("[\r\n]", text[at:])[0] for at in starts if text.count('"', 0, at) % 2 == 1]
    if text.count('"') % 2 == 1 or any(line.count(",") >= 6 for line in inside):
        assert count.suspicious
    elif count.suspicious:
        assert any(end in quoted for quoted in text.split('"')[1::2] for end in "\r\n")
    elif any(end in quoted for quoted in text.split('"')[1::2] for end in "\r\n"):
        records = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        assert count.records == sum(1 for fields in records if fields)


@pytest.mark.parametrize(
    ("first", "last", "uneven"),
    [("\n", "\n", False), ("\r\n", "\n", True), ("\r", "\r\n", True), ("\n\n", "\n", True)],
)
def test_the_exact_count_sees_blank_lines_and_line_ends_of_two_kinds(
    write_export: WriteExport, first: str, last: str, uneven: bool
) -> None:
    path = write_export(DAY, f"{HEADER}{first}{order_row('A', DAY)}{last}".encode())
    file = ExportFolder(path.parent).locate(DAY)
    assert survey(file).uneven is uneven
    assert survey(file).records == 1


@settings(max_examples=300)
@given(text=st.lists(pieces, max_size=14).map("".join))
@example('a",\n"q\nq"\n')
def test_records_are_found_in_a_file_as_pythons_reader_ends_them(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    content = f"header\n{text}".encode()
    path = tmp_path_factory.getbasetemp() / "records.csv"
    path.write_bytes(content)
    found = {record.number: record.text for record in csv_records.records(path)}
    assert found == {1: "header"} | records(content)
