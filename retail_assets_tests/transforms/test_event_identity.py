"""The identity of an event that names none: its content, however it is written."""

import duckdb

from retail_assets.engines import duckdb_events
from retail_assets.engines.event_content import content_id


def content_ids(*payloads: str) -> list[str]:
    """The identities, half of them from SQL if their content is plain."""
    import pyarrow as pa

    with duckdb.connect() as connection:
        lines = pa.table({"line_no": range(len(payloads)), "payload": list(payloads)})
        connection.register("lines", lines)
        flat = dict(connection.execute(duckdb_events.flat_content_ids("lines")).fetchall())
    found = [content_id(payload) for payload in payloads]
    assert flat == {line: found[line] for line in flat}
    return found


def test_the_same_content_has_one_identity_however_it_is_written() -> None:
    same = ['{"a": 1, "b": {"c": [1, "x"], "d": null}}', '{"b":{"d":null,"c":[1,"\\u0078"]},"a":1}']
    first, second = content_ids(*same)
    assert first == second
    assert first.startswith("content:")
    assert len(first) == len("content:") + 64


def test_other_content_has_another_identity() -> None:
    others = [
        '{"a": 1}', '{"a": 2}', '{"a": "1"}', '{"a": 1.5}', '{"a": true}', '{"a": null}', "{}",
        '{"a": [1]}', '{"a": {"b": 1}}', '{"a.b": 1}', '{"a.b": 1, "a": {}}', '{"a": [1, 2]}',
        '{"a": [2, 1]}', '{"a": {"b": 1}, "b": 1}', '{"A": 1}', '{"a ": 1}', '{"a[0]": 1}',
        '{"a[0]": 1, "a": []}', '{"a": "x\\ny"}', '{"a": "x\\\\ny"}', '{"b": "1", "a": "2"}',
        '{"a": "1", "b": "2"}', '{"a UBIGINT 1\\n$.b": 2}', '{"a": 1, "b": 2}',
        '{"x": {"b": 1, "b": 2}}', '{"x": {"b": 2, "b": 1}}',
        '{"x": {"b": {"c": 1}, "b": {"d": 2}}}', '{"x": {"b": {"c": 1, "d": 2}, "b": {}}}',
        '{"a": {"b.c": 1}}', '{"a.b": {"c": 1}}', '{"a": {"b": {"c": 1}}}', '{"a": ""}',
        '{"a": []}', '{"a": {}}', '{"": 1}', '{"a": "\\"b\\""}', '{"a": 10.1}',
        '{"a": 1e2}', '{"a": -1}',
    ]  # fmt: skip
    found = content_ids(*others)
    shared = {id_: [] for id_ in found}
    for text, id_ in zip(others, found, strict=True):
        shared[id_].append(text)
    assert [texts for texts in shared.values() if len(texts) > 1] == []


def test_a_number_is_the_same_however_it_is_spelled() -> None:
    for spellings in (
        ["10", "10.0", "1e1", "1E+1", "100e-1", "10.00000000000000000000", "0.1e2"],
        ["0", "-0", "0.0", "-0.0", "0e9", "-0e-9", "0.00000000000000000000"],
        ["-5", "-5.0", "-50e-1"],
        ["12.5", "12.50", "125e-1", "0.125E2"],
        ["0.0000001", "1e-7", "0.1e-6"],
        ["100000000000000000000000", "1e23", "1E23", "100000000000000000000000.0"],
        ["12345678901234567890123", "12345678901234567890123.0", "1.2345678901234567890123e22"],
        ["1e400", "10e399"], ["NaN", "nan", "-nan"], ["Infinity", "inf"],
    ):  # fmt: skip
        for form in ('{{"a": {}}}', '{{"a": [1, {{"b": {}}}]}}'):
            assert len(set(content_ids(*(form.format(text) for text in spellings)))) == 1


def test_other_numbers_have_other_identities_however_close_they_are() -> None:
    others = [
        "10", '"10"', '"10.0"', "-10", "1", "100", "10.000000000000001", "10.00000000000000001",
        "12345678901234567890123", "12345678901234567890124", "9007199254740993",
        "9007199254740992", "0.1", "0.10000000000000000555", "1e400", "1e401", "1e-400", "0",
        "Infinity", "-Infinity", "NaN", '"NaN"', "18446744073709551616", "18446744073709551615",
    ]  # fmt: skip
    for form in ('{{"a": {}}}', '{{"a": [{}]}}'):
        assert len(set(content_ids(*(form.format(text) for text in others)))) == len(others)


def test_identities_stay_what_they_were_before_spellings_of_numbers_were_the_same() -> None:
    """Lakes have them; those alone changed whose whole numbers have a point or an exponent."""
    assert content_ids(
        '{"order_id": "O1", "n": 2, "v": 12.5, "t": "a\\"\\u00e9\\u001f/\\n", "z": null, "b": true,'
        ' "i": -3}',
        '{"order_id": "O1", "v": 30.000000000000004, "big": 12345678901234567}',
        '{"order_id": "O1", "note": {"a": [1, null, {"b": "\\u00e9\\u001f\\u007f"}], "c": 0.25,'
        ' "e": [], "o": {}, "n": -7, "f": false}}',
    ) == [
        "content:8948799a3b359e97d2ee25897ba4b85dac30dad06abe6d05c83c846e6166b8dc",
        "content:125fb834bb697c46eb22596104f100b4087b8bd1324153c26b02e7be384b1d45",
        "content:aabca78aa47f2f4f91d989128ded9cc72503c68182d0653589b74704e8de81d4",
    ]
