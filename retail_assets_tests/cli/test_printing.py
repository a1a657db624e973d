"""What is printed: text is only text, JSON is strict, numbers are whole."""

import io
import json
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from retail_assets.cli.printing import print_message, print_rows, write_csv, write_json
from retail_assets.lake.sql import numbered
from retail_assets.visible_text import visible


def printed(columns, rows, width=40):
    console = Console(file=io.StringIO(), width=width)
    print_rows(console, columns, rows)
    return console.file.getvalue()


@pytest.mark.parametrize("text", ["[bold]North", "[/red]", "[link=http://x]here[/link]", ":smile:"])
def test_text_is_never_markup(text):
    assert text in printed([text, "b"], [[text, 1]], width=100)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\u001b[31mred"),
        ("\x9b31m", "\\u009b31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eevil", "\\u202eevil"),
        ("Café £5 日本", "Café £5 日本"),
        ("no\u00a0break", "no\u00a0break"),
    ],
)
def test_characters_that_steer_a_terminal_are_made_visible(text, shown):
    assert visible(text) == shown
    assert shown in printed(["a"], [[text]], width=100)


def test_a_message_is_as_it_is_and_has_the_lines_that_it_is_given():
    console = Console(file=io.StringIO(), width=20, color_system="standard", force_terminal=True)
    print_message(console, "the file a\nb\x1b[31m [red].jsonl :smile:", "is not read")
    assert console.file.getvalue() == (
        "the file a\\nb\\u001b[31m [red].jsonl :smile:\nis not read\n"
    )


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_numbers_are_whole_however_narrow_the_terminal_is(width):
    row = ["a region with a long name", Decimal("219720189.25"), 12345678901234567890, None]
    text = printed(["region", "revenue", "orders", "none"], [row], width)
    assert "219720189.25" in text
    assert "12345678901234567890" in text
    assert "…" not in text


@given(
    st.lists(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(st.characters(codec="utf-8"))
            | st.decimals(allow_nan=False)
            | st.dates()
            | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.dates(), inner),
            max_leaves=5,
        ),
        min_size=2,
        max_size=2,
    )
)
def test_json_is_strict_whatever_the_values(row):
    def refuse(constant):
        raise AssertionError(constant)

    def unique(pairs):
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    file = io.StringIO()
    write_json(file, ["a", "a"], [row, row])
    records = json.loads(file.getvalue(), parse_constant=refuse)
    assert [list(record) for record in records] == [["a", "a_1"]] * 2
    if isinstance(row[0], str | int):
        assert records[0]["a"] == row[0]
    assert json.loads(file.getvalue(), object_pairs_hook=unique)


def test_numbers_that_json_has_no_word_for_and_exact_ones_are_texts():
    file = io.StringIO()
    row = [float("nan"), float("-inf"), Decimal("10.00"), date(2026, 10, 5), b"\x00\xff"]
    write_json(file, list("abcde"), [row])
    assert list(json.loads(file.getvalue())[0].values()) == [
        *("NaN", "-Infinity", "10.00", "2026-10-05", "00ff"),
    ]


def test_no_rows_are_an_empty_list():
    file = io.StringIO()
    write_json(file, ["a"], [])
    assert json.loads(file.getvalue()) == []


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_1", "a_2"]),
        (["a", "a", "a_1"], ["a", "a_2", "a_1"]),
    ],
)
def test_columns_of_one_name_are_numbered(names, unique):
    assert numbered(names) == unique


def test_csv_is_as_it_is_in_a_file_and_visible_on_a_terminal():
    file = io.StringIO()
    write_csv(file, ["a"], [["\x1b[31m"], [1]])
    assert file.getvalue() == "a\n\x1b[31m\n1\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    write_csv(terminal, ["a"], [["\x1b[31m"], [1]])
    assert terminal.getvalue() == "a\n\\u001b[31m\n1\n"
