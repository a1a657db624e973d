"""How bytes are split into event lines, whatever the bytes are."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.ingest.events import lines as event_lines
from retail_assets.ingest.events.lines import KEPT_BYTES, MAX_LINE_BYTES, to_arrow
from retail_assets.transforms import events

LONG, NOT_UTF8, NUL = "line_too_long", "not_utf8", "nul_byte"


def split(data: bytes, cut: tuple[int, ...] = ()) -> list[tuple[str, str | None]]:
    table = to_arrow(data, cut)
    table.validate(full=True)
    assert table.column_names == ["payload", "defect"]
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def sound(*lines: str) -> list[tuple[str, str | None]]:
    return [(line, None) for line in lines]


def test_a_line_ends_with_a_newline_and_the_last_one_need_not() -> None:
    assert split(b"a\nb\n") == split(b"a\nb") == sound("a", "b")


def test_no_bytes_are_no_lines() -> None:
    assert split(b"") == []


def test_empty_lines_are_lines() -> None:
    assert split(b"\n") == sound("")
    assert split(b"\n\na\n\n") == sound("", "", "a", "")


def test_a_carriage_return_before_the_newline_belongs_to_the_end_of_the_line() -> None:
    assert split(b"a\r\nb\n\r\nc\r\n") == sound("a", "b", "", "c")


def test_a_carriage_return_elsewhere_stays() -> None:
    assert split(b"a\rb\n\r\r\nc\r") == sound("a\rb", "\r", "c\r")


def test_characters_that_other_readers_take_for_newlines_are_none() -> None:
    line = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
    assert split(f"{line}\n{line}".encode()) == sound(line, line)


def test_text_of_any_language_stays_as_it_is() -> None:
    lines = ["ä", "日本語", "🎁🏴‍☠️", "e\u0301", "\ufeff", "\U0010ffff", "\x01\x7f"]
    assert split("\n".join(lines).encode()) == sound(*lines)


def test_a_line_with_a_nul_byte_is_one_and_only_that_line() -> None:
    assert split(b"a\n\0\nb\0c\0\nd\n") == [
        ("a", None), ("\\x00", NUL), ("b\\x00c\\x00", NUL), ("d", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"caf\xe9", r"caf\xe9"),
        (b"\xff\xfe{", r"\xff\xfe{"),
        (b"\xc3", r"\xc3"),
        (b"\xc0\xaf", r"\xc0\xaf"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        (b"\xf4\x90\x80\x80", r"\xf4\x90\x80\x80"),
        ("ä".encode() + b"\x80", "ä\\x80"),
    ],
)
def test_bytes_that_are_no_utf8_are_shown_and_the_lines_around_them_are_sound(
    line: bytes, shown: str
) -> None:
    around = "ü".encode()
    assert split(b"\n".join([around, line, around])) == [
        ("ü", None), (shown, NOT_UTF8), ("ü", None),
    ]  # fmt: skip


def test_a_character_that_a_newline_tears_apart_spoils_both_lines() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert split(first + b"\n" + second + b"\nok\n") == [
        (r"\xc3", NOT_UTF8), (r"\xa9", NOT_UTF8), ("ok", None),
    ]  # fmt: skip


def test_a_line_at_the_limit_is_sound_and_one_beyond_it_is_cut() -> None:
    at, beyond = "é" * (MAX_LINE_BYTES // 2), "x" * (MAX_LINE_BYTES + 1)
    assert split(f"{at}\r\n{beyond}\na".encode()) == [
        (at, None), ("x" * KEPT_BYTES, LONG), ("a", None),
    ]  # fmt: skip


def test_a_line_that_was_cut_before_is_named_as_such() -> None:
    assert split(b"a\nbcd\ne\n", cut=(1,)) == [("a", None), ("bcd", LONG), ("e", None)]


def test_where_a_long_line_is_cut_through_a_character_its_first_bytes_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_lines, "MAX_LINE_BYTES", 5)
    monkeypatch.setattr(event_lines, "KEPT_BYTES", 4)
    assert split("aéébc\né\0é\n".encode()) == [("aé\\xc3", LONG), ("é\\x00é", NUL)]


def test_of_several_defects_the_first_reason_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_lines, "MAX_LINE_BYTES", 5)
    assert split(b"\0\xff\n\xff\0abcd\n\0abcdefg\n") == [
        (r"\x00\xff", NUL), (r"\xff\x00abcd", LONG), (r"\x00abcdefg", LONG),
    ]  # fmt: skip
    order = list(events.REASONS)
    assert order.index(LONG) < order.index(NUL) < order.index(NOT_UTF8)


def test_many_lines_with_few_that_are_not_utf8_are_told_apart() -> None:
    """They are looked at in windows: faulty lines stand at the borders of these, too."""
    faulty = {0, 255, 256, 511, 1000, 1023, 1024, 1299}
    lines = [b"\xff" if n in faulty else f"ü{n}".encode() for n in range(1300)]
    assert {n for n, (_, defect) in enumerate(split(b"\n".join(lines))) if defect} == faulty


hostile = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3", "é".encode(), b"ab", b"{"])
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)


@settings(max_examples=300)
@given(data=hostile, limit=st.integers(1, 6))
@example(data=b"\r\n", limit=1)
@example(data=b"\r", limit=1)
def test_lines_are_what_an_independent_reader_finds(data: bytes, limit: int) -> None:
    expected = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        if last and not line:
            continue
        whole = line if last else line.removesuffix(b"\r")
        if len(whole) > limit:
            expected.append((shown(whole[:3]), LONG))
        elif b"\0" in whole:
            expected.append((shown(whole), NUL))
        elif shown(whole).encode() != whole:
            expected.append((shown(whole), NOT_UTF8))
        else:
            expected.append((whole.decode(), None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_lines, "MAX_LINE_BYTES", limit)
        patch.setattr(event_lines, "KEPT_BYTES", 3)
        assert split(data) == expected


def shown(line: bytes) -> str:
    return line.decode(errors="backslashreplace").replace("\0", r"\x00")
