"""The transforms give equal results on pandas (pyarrow types) and DuckDB, whatever the frames."""

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import duckdb
import narwhals as nw
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.tables import (
    COMPLETED_ORDERS,
    CUSTOMERS,
    DAILY_REVENUE,
    DEAD_LETTER_EVENTS,
    ENRICHED_EVENTS,
    PRODUCTS,
    RAW_ORDERS,
)
from retail_assets.transforms import events, live_orders, orders, revenue
from retail_assets_tests.conftest import examples
from retail_assets_tests.transforms.conftest import (
    HAPPENED,
    Engine,
    Rows,
    arrow,
    on_duckdb,
    on_pandas,
    result,
)

EXAMPLES, MOST_ROWS = examples(6), 60
"""An engine takes as long to plan few rows as many: rather few examples of many rows."""

# Both days on which the clocks change lie within.
DAYS = [date(2026, 3, 28) + timedelta(days=n) for n in range(3)] + [
    date(2026, 10, 24) + timedelta(days=n) for n in range(3)
]
CLOCK_TIMES = [(0, 0, 0), (0, 59, 59), (1, 30, 0), (2, 30, 0), (23, 59, 59)]

texts = st.sampled_from(["A", "B", "C", "ä", "日本", "🎁", "", " ", "'", '"', "NULL", "unknown"])
ids = st.sampled_from(["A", "B", "C", "ä", "日本", "x' y\""])
money = st.decimals(Decimal("0.01"), Decimal("9999.99"), places=2)


@st.composite
def moments(draw: st.DrawFn) -> tuple[date, datetime]:
    day = draw(st.sampled_from(DAYS))
    hour, minute, second = draw(st.sampled_from(CLOCK_TIMES))
    return day, datetime(day.year, day.month, day.day, hour, minute, second)  # noqa: DTZ001


@st.composite
def raw_order(draw: st.DrawFn) -> dict[str, Any]:
    order_date, when = draw(moments())
    return {
        "export_date": order_date + timedelta(days=draw(st.integers(0, 2))),
        "order_date": order_date,
        "order_id": draw(ids),
        "line_number": draw(st.integers(1, 3)),
        "customer_id": draw(ids),
        "product_id": draw(ids),
        "region": draw(texts),
        "status": draw(st.sampled_from(orders.STATUSES)),
        "order_value_gbp": draw(money),
        "order_timestamp": when,
        "extra": draw(st.none() | texts),
        "source_file": "x.csv",
        "row_number": 1,
    }


raw_orders = st.lists(
    raw_order(),
    max_size=MOST_ROWS,
    unique_by=lambda row: (row["export_date"], row["order_id"], row["line_number"]),
)
products = st.lists(
    st.fixed_dictionaries(
        {
            "product_id": ids,
            "product_name": texts,
            "product_category": texts,
            "unit_price_gbp": st.none() | money,
            "stock_on_hand": st.none() | st.integers(0, 9),
        }
    ),
    max_size=4,
    unique_by=lambda row: row["product_id"],
)
customers = st.lists(
    st.fixed_dictionaries(
        {"customer_id": ids, "customer_segment": texts, "home_region": texts},
        optional={"joined_on": st.sampled_from(DAYS)},
    ),
    max_size=4,
    unique_by=lambda row: row["customer_id"],
)


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    with duckdb.connect() as connection:
        yield on_pandas, on_duckdb(connection)


def same(
    engines: tuple[Engine, Engine], transform: Callable[[Engine], nw.LazyFrame[Any]]
) -> list[dict[str, Any]]:
    """The result of a transform, which must be the same on all engines."""
    first, *others = (result(transform(engine)) for engine in engines)
    for other in others:
        assert other == first
    return first


VERSION = {
    "export_date": date(2026, 3, 29), "order_date": date(2026, 3, 29), "order_id": "A",
    "line_number": 1, "customer_id": "A", "product_id": "A", "region": "ä", "status": "completed",
    "order_value_gbp": Decimal("0.01"), "order_timestamp": datetime(2026, 3, 29, 1, 30),  # noqa: DTZ001
    "extra": None, "source_file": "x.csv", "row_number": 1,
}  # fmt: skip
LATER = {**VERSION, "export_date": date(2026, 3, 30), "order_value_gbp": Decimal("0.02")}
OTHER = {**VERSION, "order_id": "B", "order_value_gbp": Decimal("9999999999.99")}
SECOND_LINE = {**VERSION, "line_number": 2, "product_id": "B", "region": "A"}


@settings(max_examples=EXAMPLES)
@given(raw_rows=raw_orders, product_rows=products, customer_rows=customers)
@example(raw_rows=[], product_rows=[], customer_rows=[])
@example(raw_rows=[VERSION], product_rows=[], customer_rows=[])
@example(raw_rows=[VERSION, LATER, OTHER], product_rows=[], customer_rows=[])
@example(raw_rows=[VERSION, {**LATER, "status": "returned"}], product_rows=[], customer_rows=[])
@example(raw_rows=[VERSION, SECOND_LINE, OTHER], product_rows=[], customer_rows=[])
def test_from_raw_orders_to_revenue(
    engines: tuple[Engine, Engine], raw_rows: Rows, product_rows: Rows, customer_rows: Rows
) -> None:
    raw, known, people = (
        arrow(RAW_ORDERS, raw_rows),
        arrow(PRODUCTS, product_rows),
        arrow(CUSTOMERS, customer_rows),
    )
    completed_rows = same(
        engines,
        lambda engine: orders.completed_orders(engine(raw), engine(known), engine(people)),
    )
    excluded = same(engines, lambda engine: orders.exclusions(engine(raw)))
    assert sum(row["lines"] for row in excluded) == len(raw_rows)
    assert len(completed_rows) == sum(row["lines"] for row in excluded if not row["exclusion"])
    completed = arrow(COMPLETED_ORDERS, completed_rows)
    by_region = same(engines, lambda engine: revenue.daily_revenue(engine(completed)))
    by_category = same(engines, lambda engine: revenue.daily_revenue_by_category(engine(completed)))
    for rows in (by_region, by_category):
        assert sum(row["total_revenue"] for row in rows) == sum(
            row["order_value_gbp"] for row in completed_rows
        )
    # The audits find nothing in what is right, and the same in what is not.
    assert (
        same(engines, lambda engine: orders.unreconciled_days(engine(completed), engine(raw))) == []
    )
    spoiled = arrow(COMPLETED_ORDERS, completed_rows[1:])
    wrong = same(engines, lambda engine: orders.unreconciled_days(engine(spoiled), engine(raw)))
    assert [row["order_date"] for row in wrong] == [row["order_date"] for row in completed_rows[:1]]
    found = same(
        engines,
        lambda engine: revenue.unreconciled_days(
            revenue.daily_revenue(engine(spoiled)), engine(completed)
        ),
    )
    assert [row["order_date"] for row in found] == [row["order_date"] for row in wrong]
    # What waits and what is published is what counts, whichever days are looked at.
    published = arrow(DAILY_REVENUE, by_region[1:])
    days = DAYS[:3]
    for only, expected in (
        (None, by_region[:1]),
        (days, [row for row in by_region[:1] if row["order_date"] in days]),
    ):
        lacking = same(
            engines, lambda engine, only=only: revenue.waiting(engine(raw), engine(published), only)
        )
        assert [tuple(row.values()) for row in lacking] == [
            (row["order_date"], row["order_count"], row["total_revenue"]) for row in expected
        ]


def test_every_validation_is_the_same(engines: tuple[Engine, Engine]) -> None:
    """By hand: every field null or at the edge of its rule, in all pairs."""
    import pyarrow as pa

    from retail_assets_tests.transforms.test_orders import LATE_DAYS, OUTCOMES, TYPED, typed_row

    changes = [change for change, _ in OUTCOMES]
    rows = [typed_row(**{**one, **other}) for one in changes for other in changes]
    table = pa.Table.from_pylist(rows, TYPED).append_column(
        "row_number", pa.array(range(len(rows)))
    )
    validated = same(engines, lambda engine: orders.validate(engine(table), late_days=LATE_DAYS))
    assert {row["reason"] for row in validated} == {reason for _, (reason, _) in OUTCOMES}


# Events

instants = st.builds(
    lambda minutes: datetime(2026, 10, 24, 22, tzinfo=timezone.utc) + timedelta(minutes=minutes),
    st.integers(0, 8).map(lambda quarters: 15 * quarters),
)


@st.composite
def valid_event(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "received_date": draw(st.sampled_from(DAYS)),
        "event_date": draw(st.none() | st.sampled_from(DAYS)),
        "event_timestamp": draw(st.none() | instants),
        "order_id": draw(ids),
        "customer_id": draw(ids),
        "product_id": draw(st.none() | st.just("") | ids),
        "region": draw(texts),
        "status": draw(st.none() | st.sampled_from(["", *orders.STATUSES])),
        "order_value_gbp": draw(
            money | st.sampled_from(["0.01", "99.99", "100", "499.99", "500"]).map(Decimal)
        ),
        "source": draw(st.sampled_from(["file", "redrive"])),
        "source_name": draw(st.sampled_from(["a.jsonl", "b.jsonl", "ä/a.jsonl"])),
        "received_at": draw(instants),
        "position": draw(st.integers(1, 3)),
        "lines": draw(st.sampled_from([None, None, "[]"])),
    }


valid_events = st.lists(valid_event(), max_size=MOST_ROWS).map(
    lambda rows: [{**row, "event_id": f"E{number}"} for number, row in enumerate(rows)]
)

EVENT = {
    "received_date": date(2026, 10, 25), "event_date": date(2026, 10, 25), "order_id": "A",
    "event_timestamp": datetime(2026, 10, 25, 0, 30, tzinfo=timezone.utc), "customer_id": "A",
    "product_id": "A", "region": "ä", "status": "completed", "order_value_gbp": Decimal("0.01"),
    "source": "file", "source_name": "a.jsonl", "position": 1, "event_id": "E1", "lines": None,
    "received_at": datetime(2026, 10, 25, 1, tzinfo=timezone.utc),
}  # fmt: skip
UNTIMED = {**EVENT, "event_timestamp": None, "event_date": None}
RETURNED = {**EVENT, "status": "returned", "position": 2}


@settings(max_examples=EXAMPLES)
@given(rows=valid_events, product_rows=products, customer_rows=customers)
@example(rows=[], product_rows=[], customer_rows=[])
@example(rows=[EVENT], product_rows=[], customer_rows=[])
@example(rows=[UNTIMED, RETURNED], product_rows=[], customer_rows=[])
@example(rows=[{**EVENT, "product_id": None}], product_rows=[], customer_rows=[])
@example(rows=[UNTIMED, {**UNTIMED, "order_id": "B"}], product_rows=[], customer_rows=[])
def test_from_valid_events_to_live_orders(
    engines: tuple[Engine, Engine], rows: Rows, product_rows: Rows, customer_rows: Rows
) -> None:
    typed, known, people = (
        arrow(ENRICHED_EVENTS, [{**row, "order_date": row["event_date"]} for row in rows]),
        arrow(PRODUCTS, product_rows),
        arrow(CUSTOMERS, customer_rows),
    )
    columns = [name for name in typed.column_names if name in EVENT or name == "order_date"]
    typed = typed.select(columns).rename_columns(
        ["event_date" if name == "order_date" else name for name in columns]
    )
    enriched_rows = same(
        engines, lambda engine: events.enrich(engine(typed), engine(known), engine(people))
    )
    assert len(enriched_rows) == len(rows)
    enriched = arrow(HAPPENED, enriched_rows)
    live = same(
        engines,
        lambda engine: live_orders.completed(live_orders.live_orders(engine(enriched))).select(
            "order_id", "region", "order_value_gbp", "order_date"
        ),
    )
    assert {row["order_id"]: row for row in live} == live_by_hand(enriched_rows)
    assert len({row["order_id"] for row in live}) == len(live)
    revenues = same(engines, lambda engine: revenue.daily_revenue(engine(arrow_of(live))))
    assert sum(row["total_revenue"] for row in revenues) == sum(
        row["order_value_gbp"] for row in live
    )


def live_by_hand(enriched: Rows) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for order_id in {row["order_id"] for row in enriched}:
        mine = [row for row in enriched if row["order_id"] == order_id]
        latest = max(
            mine,
            key=lambda row: (
                str(row["event_timestamp"] or row["received_at"]),
                *(str(row[name]) for name in ("received_at", "position", "event_id")),
            ),
        )
        if latest["status"] == "completed":
            found[order_id] = {
                "order_id": order_id,
                "region": latest["region"],
                "order_value_gbp": latest["order_value_gbp"],
                "order_date": min(row["order_date"] for row in mine),
            }
    return found


def arrow_of(live: Rows) -> Any:
    return arrow(COMPLETED_ORDERS, live)


@settings(max_examples=EXAMPLES)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "received_date": st.sampled_from(DAYS),
                "reason": st.sampled_from(list(events.REASONS)),
                "field": st.none() | texts,
                "payload": texts,
            }
        ),
        max_size=MOST_ROWS,
    )
)
@example(rows=[])
def test_dead_letters_are_counted_alike(engines: tuple[Engine, Engine], rows: Rows) -> None:
    letters = arrow(DEAD_LETTER_EVENTS, rows)
    counts = same(engines, lambda engine: events.dead_letter_counts(engine(letters)))
    assert sum(row["dead_letters"] for row in counts) == len(rows)
    assert len({(row["received_date"], row["reason"]) for row in counts}) == len(counts)


def test_every_validation_of_an_event_is_the_same(engines: tuple[Engine, Engine]) -> None:
    """The typed fields of all lines whose outcome is tested, and of pairs of changes."""
    from retail_assets.engines import duckdb_events
    from retail_assets.ingest.events.lines import to_arrow
    from retail_assets_tests.transforms.event_lines import OF_LINES, OUTCOMES, in_time

    lines = to_arrow(
        b"".join((t if isinstance(t, bytes) else t.encode()) + b"\n" for t, _ in OUTCOMES)
    )
    lines = lines.append_column("n", [range(len(OUTCOMES))])
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Europe/London'")
        connection.register("lines", lines)
        parsed = duckdb_events.parsed(
            "(SELECT DATE '2026-10-20' AS received_date, NULL::TIMESTAMPTZ AS received_at, *"
            " FROM lines)"
        )
        typed = connection.sql(parsed).project(in_time()).to_arrow_table()
    validated = same(engines, lambda engine: events.validate(engine(typed)))
    found = {row["n"]: (row["reason"], row["field"]) for row in validated}
    for n, (text, said) in enumerate(OUTCOMES):
        if said != ("absurd_timestamp", "event_timestamp"):
            assert found[n] == (said or (None, None)), text[:200]
    assert {reason for reason, _ in found.values()} == {None, *OF_LINES}
