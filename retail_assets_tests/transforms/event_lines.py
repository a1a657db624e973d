"""Lines of events, and what is said of each by the rules."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from retail_assets.engines import duckdb_events
from retail_assets.transforms import events

VALUE, TIME = "order_value_gbp", "event_timestamp"


Outcome: TypeAlias = tuple[str, str | None] | None
DEEP = ("too_complex", None)


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
