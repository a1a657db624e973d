"""Tens of thousands of hostile event lines: no exception, always a reason or a sound event."""

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import duckdb
import narwhals as nw
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from retail_assets.engines import duckdb_events
from retail_assets.engines.event_content import content_id
from retail_assets.ingest.events.lines import to_arrow
from retail_assets.transforms import events, orders
from retail_assets_tests.conftest import examples

DAY = date(2026, 10, 20)
BLANKS = " \t\r\n\u00a0"
FIELDS = set(duckdb_events.FIELDS)
BATCH = 5_000


class Tally:
    """What was said of the lines so far."""

    def __init__(self) -> None:
        self.reasons: Counter[str | None] = Counter()
        self.tolerated = self.flat = 0

    @property
    def lines(self) -> int:
        return self.reasons.total()


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    limit = sys.getrecursionlimit()
    # Python's json is recursive, and events may be a thousand objects deep.
    sys.setrecursionlimit(5_000)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Europe/London'")
        yield connection
    sys.setrecursionlimit(limit)


def validate_all(connection: duckdb.DuckDBPyConnection, tally: Tally, lines: list[bytes]) -> None:
    """Validate lines together, and check what is said of each."""
    data = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
    table = to_arrow(data)
    assert table.num_rows == len(lines)
    connection.register("lines", table.append_column("n", [range(len(lines))]))
    parsed = duckdb_events.parsed(
        f"(SELECT DATE '{DAY}' AS received_date, NULL::TIMESTAMPTZ AS received_at, * FROM lines)"
    )
    validated = events.validate(nw.from_native(connection.sql(parsed))).to_native()
    columns = ", ".join((*duckdb_events.TEXTS, "order_value_gbp", "quantity", "extra"))
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE validated AS"
        f" SELECT n, payload, reason, field, {columns} FROM ({validated.sql_query()})"
    )
    found = connection.execute(
        "SELECT n, payload, reason, field FROM validated ORDER BY n"
    ).fetchall()
    assert [row[0] for row in found] == list(range(len(lines)))
    for _, payload, reason, field in found:
        assert reason is None or reason in events.REASONS, payload
        assert field is None or reason is not None, payload
        tally.reasons[reason] += 1
    sound = connection.execute(f"SELECT payload, {columns} FROM validated WHERE reason IS NULL")
    names = [column[0] for column in sound.description or ()]
    for row in sound.fetchall():
        check_sound(dict(zip(names, row, strict=True)), tally)
    # What is valid has an identity, whatever it holds, and all ways to find it agree.
    events_ = "(SELECT n AS line_no, payload FROM validated WHERE reason IS NULL)"
    flat = dict(connection.execute(duckdb_events.flat_content_ids(events_)).fetchall())
    tally.flat += len(flat)
    valid = {n: payload for n, payload, reason, _ in found if reason is None}
    ids = {n: content_id(payload) for n, payload in valid.items()}
    assert {n: valid[n] for n in flat if flat[n] != ids[n]} == {}


def check_sound(row: dict[str, Any], tally: Tally) -> None:
    """An independent reading of a valid event agrees that it is one, and on its values."""
    payload = row["payload"]
    try:
        pairs = json.loads(payload, object_pairs_hook=list, parse_float=Decimal, parse_int=Decimal)
    except json.JSONDecodeError:
        # Known: DuckDB tolerates a comma before a closing bracket, and other letters for NaN.
        tally.tolerated += 1
        assert (
            ",}" in "".join(payload.split())
            or ",]" in "".join(payload.split())
            or ("nan" in payload.lower() or "inf" in payload.lower())
        ), payload
        return
    fields = dict(pairs)
    assert len(fields) == len(pairs), payload
    for name in ("order_id", "customer_id", "region"):
        assert isinstance(fields[name], str), payload
        assert fields[name].strip(BLANKS), payload
        assert row[name] == fields[name].strip(BLANKS), payload
    for name in ("event_id", "product_id"):
        text = fields.get(name)
        assert text is None or isinstance(text, str), payload
        assert row[name] == (None if text is None else text.strip(BLANKS)), payload
    assert str(fields.get("currency") or "").strip(BLANKS).upper() in ("", "GBP"), payload
    assert (fields.get("status") or "").strip(BLANKS).lower() in ("", *orders.STATUSES), payload
    value = fields["order_value_gbp"]
    amount = Decimal(value.strip(BLANKS)) if isinstance(value, str) else value
    assert isinstance(amount, Decimal), payload
    assert math.isfinite(amount), payload
    assert row["order_value_gbp"] > 0, payload
    assert abs(row["order_value_gbp"] - amount) < Decimal("0.000001"), payload
    assert row["order_value_gbp"] == round(row["order_value_gbp"], 2), payload
    quantity = fields.get("quantity")
    assert row["quantity"] == quantity, payload
    assert quantity is None or quantity > 0, payload
    extra = {name for name in fields if name not in FIELDS}
    assert (set(json.loads(row["extra"], parse_int=Decimal)) if row["extra"] else set()) == extra, (
        payload
    )


# Lines


def valid_lines(chance: random.Random) -> list[bytes]:
    base = {
        "event_id": "E1", "order_id": "O1", "customer_id": "C1", "product_id": "P1",
        "region": "North", "status": "completed", "order_value_gbp": 12.5, "quantity": 2,
        "event_timestamp": "2026-10-20T09:30:00+01:00", "note": {"a": [1, None, "é🎁"]},
    }  # fmt: skip
    fewer = {name: base[name] for name in events.REQUIRED}
    texts = [
        json.dumps(base), json.dumps(base, ensure_ascii=False), json.dumps(fewer),
        json.dumps({**base, "order_value_gbp": "12.50"}), json.dumps(fewer, separators=(",", ":")),
        json.dumps({**fewer, "event_timestamp": "2026-10-20 09:30"}),
        json.dumps({**fewer, "currency": "GBP"}),
    ]  # fmt: skip
    chance.shuffle(texts)
    return [text.encode() for text in texts]


TOKENS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\u0000", b"\\ud800", b"\\udc00",
    b"null", b"true", b"NaN", b"Infinity", b"-", b"0", b"1e400", b"-1e-400", b"9" * 40, b"e", b".",
    b" ", b"\t", b"\r", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\xa0",
    "\u2028".encode(), "é".encode(), b'"order_id":', b'"":1,', b'"region":1,', b"//", b"/*", b"*/",
    *(bytes([code]) for code in range(32)), b"\x7f", b"$", b"%", b"'", b"''", b"--", b";", b"{}",
]  # fmt: skip


def mutated(chance: random.Random, line: bytes) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(line) + 1)
        to = min(len(line), at + chance.randint(0, 8))
        match chance.randrange(6):
            case 0:
                line = line[:at] + line[to:]
            case 1:
                line = line[:at] + chance.choice(TOKENS) + line[at:]
            case 2:
                line = line[:at] + chance.choice(TOKENS) + line[to:]
            case 3:
                line = line[:at] + line[at:to] * chance.randint(1, 9) + line[to:]
            case 4:
                line = line[:at] + bytes([chance.randrange(256)]) + line[at + 1 :]
            case _:
                line = line[:at]
    return line


def number(chance: random.Random) -> str:
    match chance.randrange(5):
        case 0:
            return str(chance.randint(-(10 ** chance.randint(1, 40)), 10 ** chance.randint(1, 40)))
        case 1:
            return f"{chance.randint(-999, 9999)}e{chance.randint(-330, 330)}"
        case 2:
            return repr(chance.uniform(-10, 10000))
        case 3:
            return f"{chance.randint(0, 10**9)}.{chance.randint(0, 10 ** chance.randint(1, 30))}"
        case _:
            return f"{chance.randint(-5, 20_000) / 100:.2f}"


def value(chance: random.Random, depth: int = 3) -> str:
    """JSON-like text."""
    match chance.randrange(12 if depth else 8):
        case 0 | 1:
            return number(chance)
        case 2:
            return chance.choice(["null", "true", "false", "NaN", "-Infinity", "nan", "inf", ""])
        case 3:
            return json.dumps(number(chance))
        case 4:
            return chance.choice(
                [
                    '"2026-10-20T09:30:00"', '"2026-10-25T01:30"', '"0000-00-00T00:00"', '"9999-"',
                    '"completed"', '" Returned "', '""', '" "', '"\\""', '"\\\\"', '"\\',
                ],
            )  # fmt: skip
        case 5 | 6 | 7:
            text = "".join(chr(chance.choice([34, 92, 9, 32, 65, 97, 160, 233, 8232, 128512]))
                           for _ in range(chance.randrange(6)))  # fmt: skip
            return json.dumps(text, ensure_ascii=chance.random() < 0.5)
        case 8 | 9:
            return f"[{','.join(value(chance, depth - 1) for _ in range(chance.randrange(4)))}]"
        case _:
            keys = [chance.choice(["a", "a.b", "", "é", "$", "[0]"]) for _ in range(3)]
            inner = (f"{json.dumps(key)}:{value(chance, depth - 1)}" for key in keys)
            return "{" + ",".join(inner) + "}"


def made_up(chance: random.Random) -> bytes:
    """An object of known and other fields, most of them with values that may be right."""
    fields = [*events.REQUIRED]
    fields += chance.sample(sorted(FIELDS.difference(fields)), chance.randrange(4))
    others = ["note", "", "a.b", "Order_id", "n\\u006fte", "currency"]
    fields += chance.sample(others, chance.randrange(3))
    if chance.random() < 0.05:
        fields.append(chance.choice(fields))
    right = {
        "order_value_gbp": number(chance), "quantity": "3", "status": '"completed"',
        "event_timestamp": f'"{chance.choice([1999, 2026, 2026, 2026])}-10-20T09:30:00Z"',
    }  # fmt: skip
    values = [right.get(name, '"x"') if chance.random() < 0.8 else value(chance) for name in fields]
    pairs = [f'"{name}":{text}' for name, text in zip(fields, values, strict=True)]
    chance.shuffle(pairs)
    end = chance.choice(["}", "}", "}", "}", ",}", "} ", "]"])
    return ("{" + ",".join(pairs) + end).encode(errors="surrogatepass")


def bombs() -> Iterator[bytes]:
    """Lines that are hard on whoever reads by recursion, or by the size of numbers and texts."""
    event = b'{"order_id":"O","customer_id":"C","region":"N","order_value_gbp":1,"x":%b}'
    for depth in (10, 98, 99, 100, 101, 5_000, 100_000, 450_000):
        for one, other in ((b"[", b"]"), (b'{"a":', b"}")):
            if depth * len(one) < 900_000:
                nested = one * depth + b"1" + other * depth
                yield from (
                    nested,
                    event % nested,
                    one * depth,
                    event % (one * depth),
                    other * depth,
                )
    yield event % (b"[" + b"1," * 400_000 + b"1]")
    yield event % (b"9" * 900_000)
    yield event % (b'"' + b"\\\\" * 400_000 + b'"')
    yield event % (b'"' + b"\\u0000" * 100_000 + b'"')
    yield event % (b"0." + b"0" * 900_000 + b"1")
    yield (event % b"1").replace(b":1,", b":1" + b"0" * 900_000 + b",")
    yield (event % b"1").replace(b":1,", b':"' + b"1" * 900_000 + b'",')
    yield b'{"' + b"k" * 900_000 + b'":1}'
    names = b",".join(b'"k%d":1' % n for n in range(60_000))
    yield b"{" + names + b"}"
    yield event % (b"{" + names + b"}")
    yield event % (b"1," + names + b',"l":1')
    yield event % (b"1," + names + b',"k59999":1')
    yield event % (b"1," + b",".join(b'"k":1' for n in range(100_000)) + b',"l":1')
    yield event % (b"[" + b"{}," * 200_000 + b"[]]")
    yield event % b'{"a.b":1,"a":{"b":2}}'
    yield from (bytes([code]) * 3 for code in range(256) if code != ord("\n"))
    yield from (event % (b'"' + bytes([code]) + b'"') for code in range(256) if code != ord("\n"))


ELSEWHERE = {
    *("no_lines", "too_many_lines", "line_numbers", "lines_do_not_add_up", "not_in_lines"),
    "unmapped_event",
}
"""Reasons of the lines of an order and of mappings: these have tests of their own."""


@pytest.mark.slow
def test_tens_of_thousands_of_hostile_lines_are_each_valid_or_have_a_reason(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    chance = random.Random(20261020)  # noqa: S311  # repeatable
    tally = Tally()
    validate_all(connection, tally, list(bombs()))
    valid = valid_lines(chance)
    while tally.lines < 40_000:
        lines = [mutated(chance, chance.choice(valid)) for _ in range(BATCH)]
        lines += [made_up(chance) for _ in range(BATCH)]
        validate_all(connection, tally, lines)
    # The lines are of all kinds: otherwise nothing much was tried.
    of_lines = set(events.REASONS).difference(events.DEFECTS, {"conflicting_event"}, ELSEWHERE)
    of_lines |= {"nul_byte", "not_utf8"}
    assert set(tally.reasons) == {None, *of_lines}
    assert min(tally.reasons.values()) >= 10, tally.reasons
    assert tally.reasons[None] > 2_000
    assert tally.tolerated > 40
    assert tally.flat > 400


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
near_events = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            duckdb_events.TEXTS, st.text(max_size=5) | st.sampled_from(["A", "completed"])
        ),
        "order_value_gbp": st.floats(0, 1e11) | st.decimals(0, 1000, places=2).map(str) | json_like,
        "quantity": st.integers(-1, 9) | st.floats(),
        "event_timestamp": st.datetimes().map(str)
        | st.datetimes(timezones=st.timezones()).map(str),
        "note": json_like,
    },
)


@settings(max_examples=examples(8), phases=(Phase.explicit, Phase.generate))
@given(
    objects=st.lists(near_events | json_like, min_size=30, max_size=60), ascii_only=st.booleans()
)
def test_whatever_json_an_event_is_it_is_valid_or_has_a_reason(
    connection: duckdb.DuckDBPyConnection, objects: list[Any], ascii_only: bool
) -> None:
    lines = [
        json.dumps(some, ensure_ascii=ascii_only, default=str).encode(errors="surrogatepass")
        for some in objects
    ]
    validate_all(connection, Tally(), lines)


numbers = st.one_of(
    st.integers(-100, 100).map(Decimal),
    st.integers(-(10**25), 10**25).map(Decimal),
    st.decimals(-1000, 1000, allow_nan=False, places=2),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30),
    st.floats(allow_nan=False, allow_infinity=False).map(Decimal),
)
keys = st.text(alphabet='ab.[]"\\\n é', max_size=3)
contents = st.dictionaries(
    keys,
    st.recursive(
        numbers | st.none() | st.booleans() | st.text(max_size=3) | st.sampled_from(["10", "1e1"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def spelled(chance: random.Random, content: Any) -> str:
    """JSON of some content: numbers, texts, blanks and the order of keys as chance has it."""
    blank = chance.choice(["", "", " ", "\t "])
    if isinstance(content, dict):
        pairs = chance.sample(sorted(content.items()), len(content))
        inner = (f"{spelled(chance, key)}:{blank}{spelled(chance, value)}" for key, value in pairs)
        return f"{{{blank}{f',{blank}'.join(inner)}}}"
    if isinstance(content, list):
        return f"[{','.join(spelled(chance, value) for value in content)}{blank}]"
    if isinstance(content, Decimal):
        _, digits, exponent = content.as_tuple()
        assert isinstance(exponent, int)
        shift = chance.choice([0, 0, 1, 3])
        sign = "-" if content < 0 else ""
        whole = "".join(map(str, digits)).lstrip("0")
        # JSON has no numbers that begin with two zeros.
        whole = whole + "0" * shift if whole else "0"
        exact = f"{whole}e{exponent - shift}"
        plain = f"{abs(content):f}"
        return sign + chance.choice(
            [exact, plain, plain + ("0" if "." in plain else ".0" * chance.randint(0, 1))]
        )
    return json.dumps(content, ensure_ascii=chance.random() < 0.5)


def canonical(payload: str) -> Any:
    """The content of JSON, by Python's own reader: equal where the content is."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return "object", frozenset((key, plain(part)) for key, part in value.items())
        if isinstance(value, list):
            return "list", tuple(map(plain, value))
        return type(value).__name__, value

    return plain(json.loads(payload, parse_int=Decimal, parse_float=Decimal))


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate))
@given(some=st.lists(contents, min_size=1, max_size=30), seed=st.integers(0, 2**32))
def test_events_have_one_identity_if_and_only_if_they_have_one_content(
    connection: duckdb.DuckDBPyConnection, some: list[dict[str, Any]], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  # repeatable
    payloads = [spelled(chance, content) for content in some for _ in range(2)]
    connection.execute("CREATE OR REPLACE TEMP TABLE spelled (line_no BIGINT, payload VARCHAR)")
    connection.execute(
        "INSERT INTO spelled SELECT unnest(range(?)), unnest(?::VARCHAR[])",
        [len(payloads), payloads],
    )
    ids = dict(connection.execute(duckdb_events.flat_content_ids("spelled")).fetchall())
    by_content: dict[Any, set[str]] = {}
    for number, payload in enumerate(payloads):
        found = ids.get(number) or content_id(payload)
        by_content.setdefault(canonical(payload), set()).add(found)
    assert all(len(found) == 1 for found in by_content.values()), by_content
    assert len(set().union(*by_content.values())) == len(by_content)
