"""Which lines of events are valid, and what their fields become."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias

import duckdb
import narwhals as nw
import pytest

from retail_assets.engines import duckdb_events
from retail_assets.ingest.events.lines import to_arrow
from retail_assets.transforms import events
from retail_assets_tests.transforms.event_lines import (
    OF_LINES,
    OUTCOMES,
    TIME,
    VALUE,
    event,
    in_time,
    line,
    outcome,
    raw,
)

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)
Validate: TypeAlias = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def validate() -> Iterator[Validate]:
    """Validates lines that landed on a day; returns the typed rows in order."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Europe/London'")
        rules = ""

        def validated(
            data: bytes, received: date = DAY, landed: str | None = None
        ) -> list[dict[str, Any]]:
            nonlocal rules
            lines = to_arrow(data)
            connection.register("lines", lines.append_column("n", [range(lines.num_rows)]))
            connection.execute(
                "CREATE OR REPLACE TABLE landed AS"
                " SELECT ?::DATE AS received_date, ?::TIMESTAMPTZ AS received_at",
                [received, landed],
            )
            if not rules:  # once: making the SQL takes three times as long as running it
                query = "(SELECT landed.*, lines.* FROM lines, landed)"
                parsed = nw.from_native(connection.sql(duckdb_events.parsed(query)))
                typed = events.validate(parsed).to_native().order("n").project(in_time())
                rules = typed.sql_query()
            rows: list[dict[str, Any]] = connection.execute(rules).to_arrow_table().to_pylist()
            assert len(rows) == lines.num_rows
            return rows

        yield validated


def test_a_line_is_validated_by_the_first_rule_that_it_breaks(validate: Validate) -> None:
    assert {said[0] for _, said in OUTCOMES if said} == OF_LINES
    cases = [(text if isinstance(text, bytes) else text.encode(), said) for text, said in OUTCOMES]
    rows = validate(b"".join(text + b"\n" for text, _ in cases))
    found = [(text[:200], outcome(row)) for (text, _), row in zip(cases, rows, strict=True)]
    assert found == [(text[:200], said) for text, said in cases]


def test_the_rules_are_tried_in_the_order_of_the_reasons(validate: Validate) -> None:
    """A line that breaks two rules has the reason that stands first."""
    changes: list[tuple[dict[str, Any], str]] = [
        ({"note": "\0"}, "control_character"),
        ({"region": None}, "missing_field"),
        ({"product_id": 1}, "wrong_type"),
        ({"customer_id": ""}, "blank_value"),
        ({"order_value_gbp": float("nan")}, "not_finite"),
        ({"order_value_gbp": 0}, "not_positive"),
        ({"order_value_gbp": 1e11}, "out_of_range"),
        ({"order_value_gbp": 0.001}, "fraction_of_penny"),
        ({"status": "x"}, "unknown_status"),
        ({"event_timestamp": "x"}, "invalid_timestamp"),
        ({"currency": "USD"}, "unknown_currency"),
    ]
    order = list(events.REASONS)
    pairs = [
        (event(**{**other, **one}), reason)
        for number, (one, reason) in enumerate(changes)
        for other, _ in changes[number:]
    ]
    rows = validate("\n".join(line for line, _ in pairs).encode())
    assert [row["reason"] for row in rows] == [reason for _, reason in pairs]
    assert [order.index(reason) for _, reason in changes] == sorted(
        order.index(reason) for _, reason in changes
    )


def values(validate: Validate, name: str, texts: Mapping[str, Any], received: date = DAY) -> None:
    """Assert what valid events with these JSON texts have in a column."""
    rows = validate("\n".join(raw(name, text) for text in texts).encode(), received)
    found = {text: outcome(row) or row[name] for text, row in zip(texts, rows, strict=True)}
    assert found == texts


def test_amounts_are_exact_whether_they_are_numbers_or_texts(validate: Validate) -> None:
    texts = {
        "1": "1", "1.5": "1.5", "10.10": "10.1", "1e3": "1000", "1E+2": "100", "1.5e1": "15",
        "0.01": "0.01", "9999999999.99": "9999999999.99", "1.000": "1", "123e-2": "1.23",
        '"1"': "1", '" 1.50 "': "1.5", '"+1"': "1", '"007"': "7", '"1."': "1", '"1e3"': "1000",
        '"\\u0031.5"': "1.5", '"9999999999.99"': "9999999999.99",
        # What binary numbers add.
        "0.30000000000000004": "0.3", "1.1500000000000001": "1.15", "4.3499999999999996": "4.35",
    }  # fmt: skip
    values(validate, VALUE, {text: Decimal(value) for text, value in texts.items()})


def test_texts_lose_the_blanks_around_them_and_nothing_else(validate: Validate) -> None:
    texts = {
        '"A"': "A", '" A"': "A", '"A "': "A", '"\\tA\\r\\n"': "A", '"\u00a0A\u00a0"': "A",
        '"A B"': "A B", '" A\\u0020"': "A", '"\\u00a0A\u00a0 "': "A", '"A\u00a0B"': "A\u00a0B",
        '"a\\"b"': 'a"b', '" a\\"b "': 'a"b', '"\\\\"': "\\", '"\\/"': "/", '"\\u00e9"': "é",
        '"日本"': "日本", '"\\ud83c\\udf81"': "🎁", '"\'"': "'",
        '"a\\nb"': "a\nb", '"{"': "{", '"\u2003A"': "\u2003A", '"\\u0001"': "\x01",
    }  # fmt: skip
    for name in ("order_id", "customer_id", "region", "product_id", "event_id"):
        values(validate, name, texts)


def test_a_status_may_be_written_in_any_case_and_a_blank_one_is_none(validate: Validate) -> None:
    texts = {
        '"completed"': "completed", '" Completed "': "completed", '"RETURNED"': "returned",
        '"Cancelled\\n"': "cancelled", '""': "", '" "': "", "null": None,
    }  # fmt: skip
    values(validate, "status", texts)


def test_quantities_are_whole_numbers_however_written(validate: Validate) -> None:
    texts = {"1": 1, "2.0": 2, "3e0": 3, "1e2": 100, "9223372036854775807": 2**63 - 1, "null": None}
    values(validate, "quantity", texts)


def test_lines_are_numbered_and_keep_their_other_fields(validate: Validate) -> None:
    lines = [
        line(product_id=" P1 ", colour="red", gift=None),
        line(quantity=1.0, order_value_gbp="7.50"),
    ]
    numbered = [{**each, "line_number": number} for number, each in ((7, line()), (5, line()))]
    events_ = [
        event(lines=lines, order_value_gbp=10, note=1),
        event(lines=numbered, order_value_gbp=5, quantity=4),
        event(lines=None),
        event(lines=[line()], order_value_gbp=2.5).replace('"lines"', '"l\\u0069nes"'),
    ]
    found = validate("\n".join(events_).encode())
    assert [outcome(row) for row in found] == [None] * 4
    assert [row["lines"] and json.loads(row["lines"]) for row in found] == [
        [
            {**line(), "line_number": 1, "extra": {"colour": "red", "gift": None}},
            {**line(), "line_number": 2, "quantity": 1, "order_value_gbp": 7.5},
        ],
        numbered,
        None,
        [{**line(), "line_number": 1}],
    ]
    assert [row["quantity"] for row in found] == [3, 4, None, 2]
    assert [row["extra"] for row in found] == ['{"note":1}', None, None, None]


LONDON_TIMES = {
    "2026-10-20T09:30:00": "2026-10-20T08:30:00+00:00",
    "2026-10-20 09:30:00": "2026-10-20T08:30:00+00:00",
    "2026-10-20T09:30": "2026-10-20T08:30:00+00:00",
    " 2026-10-20T09:30Z ": "2026-10-20T09:30:00+00:00",
    "2026-10-20T09:30:15.5Z": "2026-10-20T09:30:15.500000+00:00",
    "2026-10-20T09:30:15.123456789z": "2026-10-20T09:30:15.123456+00:00",
    "2026-10-20T09:30+01:00": "2026-10-20T08:30:00+00:00",
    "2026-10-20T09:30:00+0530": "2026-10-20T04:00:00+00:00",
    "2026-10-20T09:30:00-07": "2026-10-20T16:30:00+00:00",
    "2026-10-20T09:30:00-00:00": "2026-10-20T09:30:00+00:00",
    "2026-10-20 09:30:00 +0200": "2026-10-20T07:30:00+00:00",
    "2026-10-20 09:30:00.5 UTC": "2026-10-20T09:30:00.500000+00:00",
    "2026-10-20T09:30:00 GMT": "2026-10-20T09:30:00+00:00",
    "2026-10-20t09:30:00,25z": "2026-10-20T09:30:00.250000+00:00",
    "2026-10-20 9:30 PM": "2026-10-20T20:30:00+00:00",
    "2000-01-01T00:00:00": "2000-01-01T00:00:00+00:00",
    "2024-02-29T12:00:00": "2024-02-29T12:00:00+00:00",
    # The hour that there is not, and the one that there is twice.
    "2026-03-29T00:59:59": "2026-03-29T00:59:59+00:00",
    "2026-03-29T01:30:00": "2026-03-29T01:30:00+00:00",
    "2026-03-29T02:00:00": "2026-03-29T01:00:00+00:00",
    "2025-10-26T00:59:59": "2025-10-25T23:59:59+00:00",
    "2025-10-26T01:30:00": "2025-10-26T01:30:00+00:00",
    "2025-10-26T01:30:00+01:00": "2025-10-26T00:30:00+00:00",
    "2025-10-26T02:00:00": "2025-10-26T02:00:00+00:00",
}


def test_times_with_an_offset_are_converted_and_those_without_are_local(validate: Validate) -> None:
    rows = validate("\n".join(event(event_timestamp=text) for text in LONDON_TIMES).encode())
    assert [outcome(row) for row in rows] == [None] * len(rows)
    found = [row[TIME].astimezone(timezone.utc).isoformat() for row in rows]
    assert dict(zip(LONDON_TIMES, found, strict=True)) == LONDON_TIMES


def test_the_date_of_an_event_is_that_of_the_business_time_zone(validate: Validate) -> None:
    texts = {
        "2026-10-19T23:30:00Z": date(2026, 10, 20), "2026-10-20T00:30:00+02:00": date(2026, 10, 19),
        "2026-10-19T22:59:59Z": date(2026, 10, 19), "2026-10-25T23:30:00Z": date(2026, 10, 25),
        "2026-10-25T00:30:00": date(2026, 10, 25), "2026-10-24T23:00:00Z": date(2026, 10, 25),
        "2026-03-28T23:59:59": date(2026, 3, 28), "2026-03-29T23:00:00Z": date(2026, 3, 30),
    }  # fmt: skip
    rows = validate("\n".join(event(event_timestamp=t) for t in texts).encode(), date(2026, 10, 25))
    assert {t: row["event_date"] for t, row in zip(texts, rows, strict=True)} == texts


def test_an_event_may_be_a_day_ahead_of_when_it_landed(validate: Validate) -> None:
    line = event(event_timestamp="2026-10-20T23:59:59").encode()
    assert [outcome(validate(line, DAY + n * A_DAY)[0]) for n in (-2, -1, 0, 9)] == [
        ("absurd_timestamp", TIME), None, None, None,
    ]  # fmt: skip


def test_when_it_landed_counts_and_not_the_day_that_its_file_is_named_by(
    validate: Validate,
) -> None:
    """A file of a week is named by its first day, and written to until the last."""
    days = [event(event_timestamp=f"2026-10-{20 + n}T10:00:00Z").encode() for n in range(7)]
    landed = validate(b"\n".join(days), landed="2026-10-26T00:30:00+01:00")
    assert [outcome(row) for row in landed] == [None] * 7
    # The lake does not know it of the rows that it has had for long.
    known = [outcome(row) for row in validate(b"\n".join(days))]
    assert known == [None] * 2 + [("absurd_timestamp", TIME)] * 5
    late = event(event_timestamp="2026-10-28T00:00:00").encode()
    assert outcome(validate(late, landed="2026-10-26T22:30:00Z")[0]) == ("absurd_timestamp", TIME)
    assert outcome(validate(late, landed="2026-10-27T00:30:00Z")[0]) is None


def test_other_fields_are_kept_as_json(validate: Validate) -> None:
    texts = {
        event(): None,
        event(event_id=None, status=None): None,
        event(note=None): {"note": None},
        event(note={"a": [1, None, {"b": "é"}]}, Region="x"): {
            "note": {"a": [1, None, {"b": "é"}]},
            "Region": "x",
        },
        event(**{"": 1, "a.b": True, '"': "", " order_id": "x"}): {
            "": 1, "a.b": True, '"': "", " order_id": "x",
        },
        event(note=None, status=None): {"note": None},
    }  # fmt: skip
    rows = validate("\n".join(texts).encode())
    assert [outcome(row) for row in rows] == [None] * len(rows)
    assert [row["extra"] and json.loads(row["extra"]) for row in rows] == list(texts.values())


def test_a_comma_before_a_closing_bracket_is_tolerated_as_duckdb_does(validate: Validate) -> None:
    """Python's json refuses it; what the event says is in no doubt."""
    lines = [event()[:-1] + ",}", raw("note", "[1,]"), raw("note", '{"a":1,}')]
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[0])
    assert [outcome(row) for row in validate("\n".join(lines).encode())] == [None] * 3
    lines = [event()[:-1] + ",,}", raw("note", "[,]"), raw("note", "[,1]"), "{,}"]
    assert {outcome(row) for row in validate("\n".join(lines).encode())} == {("not_json", None)}


def test_nan_is_tolerated_where_no_rule_asks_for_a_number(validate: Validate) -> None:
    (row,) = validate(raw("note", "[NaN, -Infinity]").encode())
    assert outcome(row) is None


def test_keys_and_blanks_between_them_may_stand_in_any_order(validate: Validate) -> None:
    reversed_keys = json.dumps(dict(reversed(json.loads(event()).items())))
    spaced = " \t" + json.dumps(json.loads(event()), indent=1).replace("\n", "\t") + " \r "
    escaped = event().replace("region", "r\\u0065gion")
    rows = validate(f"{event()}\n{reversed_keys}\n{spaced}\n{escaped}".encode())
    typed = [{name: row[name] for name in row if name not in ("payload", "n")} for row in rows]
    assert typed == [typed[0]] * 4
    assert typed[0]["reason"] is None
