"""Which event lines are valid, what they are enriched with, and which of them say what is so."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias

import duckdb
import narwhals as nw
import pytest

from retail_assets.engines import duckdb_events
from retail_assets.engines.event_content import content_id
from retail_assets.ingest.events.lines import to_arrow
from retail_assets.tables import CUSTOMERS, DEAD_LETTER_EVENTS, PRODUCTS
from retail_assets.transforms import events, live_orders
from retail_assets_tests.transforms.conftest import HAPPENED, Engine, Rows, arrow, result

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)

Outcome: TypeAlias = tuple[str, str | None] | None
Validate: TypeAlias = Callable[..., list[dict[str, Any]]]

VALUE, TIME = "order_value_gbp", "event_timestamp"
DEEP = ("too_complex", None)


@pytest.fixture(scope="module")
def validate() -> Iterator[Validate]:
    """Validates lines that landed on a day; returns the typed rows in order."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Europe/London'")

        def validated(
            data: bytes, received: date = DAY, landed: str | None = None
        ) -> list[dict[str, Any]]:
            lines = to_arrow(data)
            connection.register("lines", lines.append_column("n", [range(lines.num_rows)]))
            at = f"'{landed}'" if landed else "NULL"
            query = (
                f"(SELECT DATE '{received}' AS received_date, {at}::TIMESTAMPTZ AS received_at, *"
                " FROM lines)"
            )
            parsed = nw.from_native(connection.sql(duckdb_events.parsed(query)))
            found = events.validate(parsed).to_native().order("n").project(in_time())
            rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
            assert len(rows) == lines.num_rows
            return rows

        yield validated


def in_time() -> str:
    """Typed lines without the dates of the year 0, which Python does not have."""
    in_time = "CASE WHEN year(event_date) > 0 THEN {0} END AS {0}"
    return f"* REPLACE ({in_time.format('event_date')}, {in_time.format('event_timestamp')})"


def event(**changed: Any) -> str:
    """A valid event, save what is changed; `...` leaves a field out."""
    fields = {
        "event_id": "E1",
        "order_id": "O1",
        "customer_id": "C1",
        "product_id": "P1",
        "order_value_gbp": 10.5,
        "region": "North",
        **changed,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def raw(name: str, text: str) -> str:
    """An event with this JSON text as the value of a field."""
    return event(**{name: ...}).removesuffix("}") + f', "{name}": {text}}}'


def outcome(row: Mapping[str, Any]) -> Outcome:
    assert row["reason"] is not None or row["field"] is None
    return None if row["reason"] is None else (row["reason"], row["field"])


def basket(*lines: Any, **changed: Any) -> str:
    """An event with lines instead of a product; two good ones come first."""
    good = [line(), line(product_id="P2", quantity=1, order_value_gbp="7.5")]
    fields = {"product_id": ..., "order_value_gbp": 10, **changed}
    return event(**fields, lines=[*good, *lines])


def line(**changed: Any) -> dict[str, Any]:
    fields = {"product_id": "P1", "quantity": 2, "order_value_gbp": 2.5, **changed}
    return {name: value for name, value in fields.items() if value is not ...}


FREE = {"order_value_gbp": 0}
"""Of a line that adds nothing to the event's value."""


# Each text of a line with what is said of it.
OUTCOMES: list[tuple[str | bytes, Outcome]] = [
    (event(), None),
    (b"x" * 1_000_001, ("line_too_long", None)),
    (event().encode()[:-1] + b', "x": "' + b"x" * 1_000_000 + b'"}', ("line_too_long", None)),
    (b"\0", ("nul_byte", None)),
    (event(region="N\0S").encode().replace(b"\\u0000", b"\0"), ("nul_byte", None)),
    (b"caf\xe9", ("not_utf8", None)),
    (event(region="?").encode().replace(b"?", b"\xff"), ("not_utf8", None)),
    *((blank, ("empty_line", None)) for blank in ("", " ", "\t", "\r", "\u00a0 \u00a0")),
    *(
        (text, ("not_json", None))
        for text in (
            "{", "}", "x", "{'order_id': 1}", event()[:-1], event() + event(), event() + ",",
            "\ufeff" + event(), raw("note", "01"), raw("note", "+1"), raw("note", ".5"),
            raw("note", "1."), raw("note", "0x1"), raw("note", "1,000"), raw("note", "True"),
            raw("note", "None"), raw("note", '"\\x"'), raw("note", '"\\ud800"'),
            raw("note", '"a\tb"'), raw("note", "/* */ 1"), "// comment", "#", "undefined",
        )
    ),
    *(
        (text, ("not_an_object", None))
        for text in ("null", " null ", "true", "1", "-1.5e3", '"text"', "[]", f"[{event()}]", "NaN")
    ),
    ("[" * 100_000 + "]" * 100_000, ("not_an_object", None)),
    *(
        (raw("note", "[" * levels + "]" * levels), said)
        for levels, said in (
            (99, None), (100, DEEP), (1000, DEEP), (400_000, DEEP),
        )
    ),
    (raw("note", '{"a":' * 99 + "1" + "}" * 99), None),
    (raw("note", '{"a":' * 100 + "1" + "}" * 100), DEEP),
    (raw("note", '{"a":[' * 49 + "[1]" + "]}" * 49), None),
    (raw("note", '{"a":[' * 49 + "[[1]]" + "]}" * 49), DEEP),
    (raw("note", "[" * 98 + "[1],[1],[]" + "]" * 98), None),
    (raw("note", "[[1]," * 98 + "[1]" + "]" * 98), None),
    # Brackets in texts and keys are no brackets.
    (event(note="[{" * 400), None),
    (event(note='["' * 400), None),
    (event(note='\\"[' * 400), None),
    (event(note="\\"), None),
    (event(**{"[" * 400: ["[" * 400, "\\", "]"]}), None),
    (raw("note", "[" * 100 + '"]' + "]" * 99 + '"' + "]" * 100), DEEP),
    # Many, but flat.
    (raw("note", "[" + "[]," * 100_000 + "[]]"), None),
    (raw("note", "[" + '{"a":{}},' * 50_000 + "{}]"), None),
    ("{" * 1001, ("not_json", None)),
    (event()[:-1] + ', "region": "South"}', ("repeated_field", "region")),
    (event()[:-1] + ', "region": null}', ("repeated_field", "region")),
    (event()[:-1] + ', "\\u0072egion": "South"}', ("repeated_field", "region")),
    (event()[:-1] + ', "note": 1, "note": 1}', ("repeated_field", "note")),
    (event()[:-1] + ', "": 1, "": 1}', ("repeated_field", "")),
    (raw("note", '{"a": 1, "a": 2}'), None),
    (event(note="a\0b"), ("control_character", None)),
    (raw("note", '"\\u0000"'), ("control_character", None)),
    (event(note="a\x01\x1f\x7f\n\u2028b"), None),
    *(
        (event(**{name: value}), ("missing_field", name))
        for name in events.REQUIRED
        for value in (..., None)
    ),
    ("{}", ("missing_field", "order_id")),
    (event(Region="North", region=...), ("missing_field", "region")),
    *(
        (event(**{name: value}), ("wrong_type", name))
        for name in duckdb_events.TEXTS
        for value in (1, 1.5, True, [], {}, ["A"])
    ),
    *(
        (event(order_value_gbp=value), ("wrong_type", VALUE))
        for value in (
            True, [], {}, [1], "", " ", "ten", "1,000", "1_000", "£5", "0x10", "1 0", ".5", "1e",
            "--1", "\uff11", "null", "1.5.1", "infinit", "+",
        )
    ),
    *(
        (event(quantity=value), ("wrong_type", "quantity"))
        for value in (1.5, "1", "", True, [], {}, 2**63, -(2**63) - 1)
    ),
    (raw("quantity", "NaN"), ("wrong_type", "quantity")),
    (raw("quantity", "1e400"), ("wrong_type", "quantity")),
    *((event(event_timestamp=value), ("wrong_type", TIME)) for value in (1, 1.5, True, [], {})),
    *(
        (event(**{name: blank}), ("blank_value", name))
        for name in ("order_id", "customer_id", "region")
        for blank in ("", " ", "\t\r\n", "\u00a0")
    ),
    *(
        (event(**{name: text}), ("blank_value", name))
        for name in ("order_id", "customer_id")
        for text in ("NULL", " null ", "None", "nan", "undefined", "#N/A", "\\N")
    ),
    (event(region="Null", product_id="none", order_id="nullable", customer_id="Nona"), None),
    *(
        (raw(VALUE, text), ("not_finite", VALUE))
        for text in (
            "NaN", "nan", "Infinity", "-Infinity", "inf", "1e400", "-1e400", "1E+999999",
            '"NaN"', '"nan"', '"Infinity"', '"-inf"', '"+inf"', '"1e400"', "1" + "0" * 400,
        )
    ),
    *(
        (raw(VALUE, text), ("not_positive", VALUE))
        for text in (
            "0", "-0", "0.00", "-0.01", "-5", "0e9", '"0"', '"-1"', "1e-400", "1e-9", "-1e11",
            "0.0000001",
        )
    ),
    *(
        (raw(VALUE, text), ("out_of_range", VALUE))
        # So far below zero it cannot be read as money either.
        for text in ("1e10", "10000000000", "1e15", "1e300", '"10000000000.00"', "-1e15")
    ),
    *(
        (raw(VALUE, text), ("fraction_of_penny", VALUE))
        for text in ("0.001", "10.555", "1e-3", '"1.005"', "1.000001", "9999999999.995")
    ),
    *((event(quantity=value), ("not_positive", "quantity")) for value in (0, -1, -(2**63))),
    (raw("quantity", "-0"), ("not_positive", "quantity")),
    *(
        (event(currency=value), ("unknown_currency", "currency"))
        for value in ("USD", "eur", " \u20ac", 826, ["GBP"], "GBPX")
    ),
    (
        event(currency="USD").replace("currency", "curr\\u0065ncy"),
        ("unknown_currency", "currency"),
    ),
    *((event(currency=value), None) for value in ("GBP", " gbp", "", None)),
    (event(price={"currency": "USD"}), None),
    *(
        (event(status=value), ("unknown_status", "status"))
        for value in ("shipped", "complete", "completed.", "\uff23ompleted", "null")
    ),
    *(
        (event(event_timestamp=value), ("invalid_timestamp", TIME))
        for value in (
            "", " ", "2026-10-20", "2026-02-30T10:00:00", "2026-13-01T10:00:00", "20/10/2026",
            "2026-10-20T24:00:00", "2026-10-20T09:60:00", "2026-10-20T09:30:60",
            "2026-10-20T9:30:00", "1760952600", "now", "today", "epoch", "infinity", "-infinity",
            "2026-10-20T09:30:00+25:00", "2026-10-20T09:30:00 Europe/Paris",
            "2026-10-20T09:30:00+1", "+12026-10-20T09:30:00", "-0001-10-20T09:30:00",
            "2026-10-20 (BC)", "2025-02-29T09:30:00", "20261020T093000Z", "null", "NaN",
            "\uff12\uff10\uff12\uff16-10-20T09:30:00",
        )
    ),
    *(
        (event(event_timestamp=value), ("absurd_timestamp", TIME))
        for value in (
            "1999-12-31T23:59:59", "0001-01-01T00:00:00", "0000-01-01T00:00:00Z",
            "2026-10-22T00:00:00", "9999-12-31T23:59:59Z", "2026-10-21T23:00:00Z",
            "2000-01-01T00:00:00+00:01",
        )
    ),
    # Lines: two good ones, which alone are valid.
    (basket(), None),
    (basket(quantity=3, product_id="P2"), None),
    (basket(product_id=" "), None),
    (basket(line(**FREE, line_number=...)), None),
    (basket(*[line(**FREE)] * 998), None),
    (event(lines=None), None),
    (event(lines=[]), ("no_lines", "lines")),
    (event(lines=[line(order_value_gbp=10.5)]), None),
    *(
        (event(lines=value), ("wrong_type", "lines"))
        for value in ({}, "", "[]", 1, True, {"0": line()})
    ),
    (event(lines=[line()] * 1001), ("too_many_lines", "lines")),
    (event(lines=[1] * 300_000), ("too_many_lines", "lines")),
    *((basket(value), ("wrong_type", "lines[2]")) for value in (1, "x", None, [], [line()])),
    (raw("lines", '[{"product_id": "P1", "quantity": 1, "quantity": 2, "order_value_gbp": 10.5}]'),
        ("repeated_field", "lines[0]")),
    (event(lines=[line(order_value_gbp=10.5)])[:-1] + ', "lines": []}',
        ("repeated_field", "lines")),
    *(
        (basket(line(**{**FREE, name: value})), ("missing_field", f"lines[2].{name}"))
        for name in ("product_id", "quantity", "order_value_gbp")
        for value in (..., None)
    ),
    *(
        (basket(line(**{**FREE, name: value})), ("wrong_type", f"lines[2].{name}"))
        for name, values in (
            ("product_id", (1, True, [], {})),
            ("quantity", (1.5, "1", "", True, [], {}, 2**63)),
            ("order_value_gbp", (True, [], {}, "", "ten", "1,000", "1e")),
            ("line_number", (1.5, "1", True, [])),
        )
        for value in values
    ),
    *(
        (basket(line(**FREE, product_id=text)), ("blank_value", "lines[2].product_id"))
        for text in ("", " ", "NULL", "undefined", "#N/A")
    ),
    *(
        (basket(line(order_value_gbp=text)), ("not_finite", "lines[2].order_value_gbp"))
        for text in (float("nan"), float("inf"), "1e400", "-Infinity")
    ),
    *((basket(line(**FREE, quantity=n)), ("not_positive", "lines[2].quantity")) for n in (0, -1)),
    *((basket(line(**FREE, line_number=n)), ("not_positive", "lines[2].line_number"))
        for n in (0, -1)),
    *((basket(line(order_value_gbp=value)), ("not_positive", "lines[2].order_value_gbp"))
        for value in (-0.01, "-5")),
    *((basket(line(order_value_gbp=value)), ("out_of_range", "lines[2].order_value_gbp"))
        for value in (1e10, "1e300")),
    *((basket(line(**FREE, quantity=n)), ("out_of_range", "lines[2].quantity"))
        for n in (10**9, 2**63 - 1)),
    (basket(*[line(**FREE, quantity=999_999_999)] * 998), None),
    *((basket(line(order_value_gbp=value)), ("fraction_of_penny", "lines[2].order_value_gbp"))
        for value in (0.001, "1.005")),
    (basket(line(**FREE), line(**FREE, quantity=0), 5), ("not_positive", "lines[3].quantity")),
    (basket(line(**FREE, line_number=1)), ("line_numbers", "lines")),
    (event(lines=[line(line_number=7, order_value_gbp=value) for value in (10, 0.5)]),
        ("line_numbers", "lines")),
    (event(lines=[line(line_number=n, order_value_gbp=n / 2) for n in (7, 14)]), None),
    *((basket(order_value_gbp=value), ("lines_do_not_add_up", VALUE)) for value in (9.99, 10.01)),
    (basket(line(order_value_gbp=0.1), line(order_value_gbp=0.2), order_value_gbp=10.3), None),
    (basket(quantity=2), ("lines_do_not_add_up", "quantity")),
    (basket(product_id="P3"), ("not_in_lines", "product_id")),
    # The rules of the event come first.
    (basket(1, status="x"), ("unknown_status", "status")),
]  # fmt: skip


# Other defects are found in files and messages, conflicts in the lake, the rest by a mapping.
OF_LINES = events.REASONS.keys() - (
    (events.DEFECTS.keys() | {"conflicting_event", "unmapped_event"})
    - {"line_too_long", "nul_byte", "not_utf8"}
)


@pytest.mark.parametrize("reason", [None, *sorted(OF_LINES)])
def test_a_line_is_validated_by_the_first_rule_that_it_breaks(
    validate: Validate, reason: str | None
) -> None:
    cases = [
        (text if isinstance(text, bytes) else text.encode(), said)
        for text, said in OUTCOMES
        if (said[0] if said else None) == reason
    ]
    assert cases, "every reason is given for some line"
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


# The identity of an event that names none


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


# Enrichment


def valid(**changed: Any) -> dict[str, Any]:
    """A valid event as the reader typed it."""
    return {
        "order_id": "O1",
        "customer_id": "C1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal("10.00"),
        "received_date": DAY,
        "event_date": DAY,
        **changed,
    }


def valid_table(rows: Rows) -> Any:
    import pyarrow as pa

    texts = ("order_id", "customer_id", "product_id", "region", "status")
    return pa.Table.from_pylist(
        list(rows),
        pa.schema(
            {
                **dict.fromkeys(texts, pa.string()),
                "order_value_gbp": pa.decimal128(18, 6),
                "received_date": pa.date32(),
                "event_date": pa.date32(),
            }
        ),
    )


PRODUCT = {"product_id": "P1", "product_name": "Tea", "product_category": "Drinks"}
CUSTOMER = {"customer_id": "C1", "customer_segment": "Retail", "home_region": "South"}


def enriched(engine: Engine, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return result(
        events.enrich(
            engine(valid_table(rows)),
            engine(arrow(PRODUCTS, [PRODUCT, {**PRODUCT, "product_id": ""}])),
            engine(arrow(CUSTOMERS, [CUSTOMER])),
        )
    )


def test_what_is_known_of_product_and_customer_is_added(engine: Engine) -> None:
    (row,) = enriched(engine, valid())
    assert (row["product_name"], row["product_category"]) == ("Tea", "Drinks")
    assert (row["customer_segment"], row["home_region"]) == ("Retail", "South")


def test_what_is_not_known_is_said_to_be_unknown(engine: Engine) -> None:
    for change in ({"product_id": None}, {"product_id": "P9"}, {"customer_id": "C9"}):
        (row,) = enriched(engine, valid(**change))
        names = ("customer_segment", "home_region")
        if "product_id" in change:
            names = ("product_name", "product_category")
        assert [row[name] for name in names] == ["unknown", "unknown"]


@pytest.mark.parametrize(
    ("value", "tier"),
    [
        ("0.01", "low"), ("99.99", "low"), ("100.00", "mid"), ("499.99", "mid"),
        ("500.00", "high"), ("9999999999.99", "high"),
    ],
)  # fmt: skip
def test_the_value_tier_changes_at_100_and_500_pounds(
    engine: Engine, value: str, tier: str
) -> None:
    (row,) = enriched(engine, valid(order_value_gbp=Decimal(value)))
    assert row["value_tier"] == tier


def test_an_event_without_a_status_is_of_a_completed_order(engine: Engine) -> None:
    rows = [valid(order_id=str(n), status=status) for n, status in enumerate([None, "", "pending"])]
    found = {row["order_id"]: row["status"] for row in enriched(engine, *rows)}
    assert found == {"0": "completed", "1": "completed", "2": "pending"}


def test_a_blank_product_is_none(engine: Engine) -> None:
    (row,) = enriched(engine, valid(product_id=""))
    assert row["product_id"] is None


def test_the_day_of_an_order_is_that_of_its_event_else_the_day_on_which_it_landed(
    engine: Engine,
) -> None:
    days = [enriched(engine, valid(event_date=day))[0]["order_date"] for day in (DAY - A_DAY, None)]
    assert days == [DAY - A_DAY, DAY]


# Live orders and counts

NINE = datetime(2026, 10, 20, 8, 0, tzinfo=timezone.utc)


def stored(order_id: str = "O1", **changed: Any) -> dict[str, Any]:
    return {
        "received_date": DAY,
        "order_id": order_id,
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal("10.00"),
        "event_timestamp": NINE,
        "order_date": DAY,
        "received_at": NINE,
        "event_id": "E5",
        "source": "file",
        "source_name": "a.jsonl",
        "version": 1,
        "position": 1,
        **changed,
    }


def live(engine: Engine, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    orders = live_orders.completed(live_orders.live_orders(engine(arrow(HAPPENED, rows))))
    return result(orders.select("order_id", "region", "order_value_gbp", "order_date"))


def test_an_order_is_what_its_latest_event_says_on_the_day_of_its_first(engine: Engine) -> None:
    first = stored(position=2)
    later = stored(
        event_timestamp=NINE + A_DAY, order_date=DAY + A_DAY, order_value_gbp=Decimal("8.00"),
        region="South",
    )  # fmt: skip
    expected = [
        {
            "order_id": "O1", "region": "South", "order_value_gbp": Decimal("8.00"),
            "order_date": DAY,
        }
    ]  # fmt: skip
    assert live(engine, first, later) == live(engine, later, first) == expected


@pytest.mark.parametrize("status", ["pending", "cancelled", "returned", "refunded"])
def test_an_order_whose_latest_event_is_not_of_a_completed_one_does_not_count(
    engine: Engine, status: str
) -> None:
    later = stored(event_timestamp=NINE + timedelta(seconds=1), status=status)
    assert live(engine, stored(), later) == []
    assert len(live(engine, stored(), {**later, "order_id": "O2"})) == 1
    assert len(live(engine, {**later, "event_timestamp": NINE - A_DAY}, stored())) == 1


@pytest.mark.parametrize(
    ("received_at", "counts"), [(NINE + A_DAY, 0), (NINE - A_DAY, 1)], ids=["later", "earlier"]
)
def test_an_event_without_a_time_takes_the_time_of_its_receipt(
    engine: Engine, received_at: datetime, counts: int
) -> None:
    none = stored(event_timestamp=None, received_at=received_at, status="returned")
    for rows in ([stored(), none], [none, stored()]):
        assert len(live(engine, *rows)) == counts


@pytest.mark.parametrize(
    "change",
    [
        # Neither the day, which may be a date in a name, nor any name decides.
        {"received_at": NINE + A_DAY, "received_date": DAY - A_DAY, "position": 0},
        {"received_at": NINE + A_DAY, "source": "a", "source_name": "0", "position": 0},
        {"position": 2, "source": "a", "source_name": "a", "event_id": "E1"},
        {"event_id": "E6", "source": "a", "source_name": "a"},
    ],
)
@pytest.mark.parametrize("when", [NINE, None])
def test_of_events_at_the_same_time_the_one_received_last_is_the_latest(
    engine: Engine, change: dict[str, Any], when: datetime | None
) -> None:
    one = stored(event_timestamp=when, order_value_gbp=Decimal("1.00"))
    last = {**one, **change, "order_value_gbp": Decimal("2.00")}
    for rows in ([one, last], [last, one]):
        assert [row["order_value_gbp"] for row in live(engine, *rows)] == [Decimal("2.00")]


def test_dead_letters_are_counted_by_day_and_reason(engine: Engine) -> None:
    rows = [
        {"received_date": day, "reason": reason}
        for day, reason in [(DAY, "a"), (DAY, "a"), (DAY, "b"), (DAY + A_DAY, "a")]
    ]
    assert result(events.dead_letter_counts(engine(arrow(DEAD_LETTER_EVENTS, rows)))) == [
        {"received_date": DAY, "reason": "a", "dead_letters": 2},
        {"received_date": DAY, "reason": "b", "dead_letters": 1},
        {"received_date": DAY + A_DAY, "reason": "a", "dead_letters": 1},
    ]
