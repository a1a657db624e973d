"""The rules of fraud, by hand and against a slow second opinion, on pandas and DuckDB."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.consumers.fraud import consumer as fraud_consumer
from retail_assets.settings import Settings
from retail_assets.tables import FRAUD_ALERTS
from retail_assets.transforms import fraud
from retail_assets.transforms.fraud import MINUTE, MODEL, REASONS, Rules
from retail_assets_tests.transforms.conftest import Engine, Rows, on_duckdb, on_pandas, result

RULES = Rules(
    window_minutes=30,
    orders_in_window=2,
    values_in_window=1,
    value_ratio=3,
    value_gbp=20,
    earlier_orders=2,
    model_share=0.9,
    alert_score=0.3,
    weights={
        "many_orders": 0.6,
        "value_above_history": 0.5,
        "many_cards": 0.4,
        "many_addresses": 0.3,
        "away_from_home": 0.2,
        "unusual_order": 0.4,
    },
)

DAY = date(2026, 10, 12)
NINE = datetime(2026, 10, 12, 9, tzinfo=timezone.utc)
NO_SCORES: Rows = []

_TYPES = pa.schema(
    {
        **dict.fromkeys(("event_id", "order_id", "customer_id"), pa.string()),
        "received_date": pa.date32(),
        "received_at": pa.timestamp("us", "UTC"),
        "position": pa.int64(),
        "order_date": pa.date32(),
        "event_timestamp": pa.timestamp("us", "UTC"),
        **dict.fromkeys(("region", "home_region"), pa.string()),
        "order_value_gbp": pa.decimal128(12, 2),
        **dict.fromkeys(("moment", "hour"), pa.int64()),
        **dict.fromkeys(("card", "address"), pa.string()),
        "is_fraud": pa.int64(),
    }
)
_VALIDATED = pa.schema(
    [
        *(_TYPES.field(name) for name in ("event_id", *_TYPES.names[1:4], *_TYPES.names[6:12])),
        *(pa.field(name, pa.int64()) for name in ("is_fraud", "pence", "earlier_orders")),
        *(pa.field(name, pa.int64()) for name in ("earlier_pence", "previous_moment")),
        *(pa.field(f"{name}_in_window", pa.int64()) for name in ("orders", "cards", "addresses")),
        *(pa.field(name, pa.bool_()) for name in REASONS if name != MODEL),
        pa.field("rule_score", pa.float64()),
    ]
)
_SCORE_TYPES = pa.schema(
    {"event_id": pa.string(), "model_score": pa.float64(), "model_version": pa.string()}
)


def event(order: int, minute: float | None, **changed: Any) -> dict[str, Any]:
    """An event of an order of ten pounds, so many minutes after nine; None: at no known time."""
    when = None if minute is None else NINE + timedelta(minutes=minute)
    start = datetime(DAY.year, DAY.month, DAY.day, tzinfo=timezone.utc)
    return {
        "event_id": f"E{order}",
        "order_id": f"O{order}",
        "customer_id": "C1",
        "received_date": DAY,
        "received_at": NINE,
        "position": order,
        "order_date": DAY,
        "event_timestamp": when,
        "region": "North",
        "home_region": "North",
        "order_value_gbp": Decimal("10.00"),
        "moment": int((when or start).timestamp() * 1_000_000),
        "hour": None if when is None else when.hour,
        "card": None,
        "address": None,
        "is_fraud": None,
        **changed,
    }


def validated(engine: Engine, rows: Rows, rules: Rules = RULES) -> list[dict[str, Any]]:
    frame = engine(pa.Table.from_pylist(list(rows), _TYPES))
    found = fraud.check(fraud.with_history(fraud.orders(frame), rules), rules)
    return sorted(
        result(found), key=lambda row: (row["customer_id"], row["moment"], row["order_id"])
    )


def alerts(
    engine: Engine, rows: Rows, scores: Rows = NO_SCORES, rules: Rules = RULES
) -> list[dict[str, Any]]:
    frame = engine(pa.Table.from_pylist(list(rows), _TYPES))
    of_model = engine(pa.Table.from_pylist(list(scores), _SCORE_TYPES))
    found = fraud.check(fraud.with_history(fraud.orders(frame), rules), rules)
    return result(fraud.alerts(found, of_model, rules))


def reasons(engine: Engine, rows: Rows, rules: Rules = RULES) -> dict[str, str]:
    return {row["order_id"]: row["reasons"] for row in alerts(engine, rows, rules=rules)}


# Orders


def test_the_events_of_an_order_are_one_order_as_its_latest_says(engine: Engine) -> None:
    late = {"received_date": DAY + timedelta(days=1), "order_date": DAY + timedelta(days=1)}
    (row,) = validated(
        engine,
        [
            event(1, 30, event_id="E3", position=1, order_value_gbp=Decimal("12.00"), **late),
            event(
                *(1, 0),
                event_id="E1",
                received_date=DAY + timedelta(days=2),
                region="South",
                card="a",
                is_fraud=0,
            ),
            event(1, 20, event_id="E2", home_region="East", is_fraud=1),
        ],
    )
    assert (row["event_id"], row["event_timestamp"], row["hour"]) == ("E1", NINE, 9)
    assert (row["order_date"], row["received_date"]) == (DAY, DAY)
    assert (row["pence"], row["region"], row["home_region"]) == (1200, "North", "North")
    assert (row["moment"], row["is_fraud"]) == (NINE.timestamp() * 1_000_000, 1)
    assert (row["orders_in_window"], row["cards_in_window"], row["earlier_orders"]) == (1, 1, 0)


def test_many_events_of_one_order_are_not_many_orders(engine: Engine) -> None:
    assert reasons(engine, [event(1, n, event_id=f"E{n}") for n in range(9)]) == {}


def test_an_event_without_a_time_counts_at_the_start_of_its_day(engine: Engine) -> None:
    first, second = validated(engine, [event(1, -60), event(2, None)])
    assert (first["order_id"], second["order_id"]) == ("O2", "O1")
    assert (first["event_timestamp"], first["hour"], second["earlier_orders"]) == (None, None, 1)


def test_an_order_of_two_customers_is_an_order_of_each(engine: Engine) -> None:
    rows = validated(engine, [event(1, 0), event(1, 1, event_id="E2", customer_id="C2")])
    assert [(row["customer_id"], row["event_id"]) for row in rows] == [("C1", "E1"), ("C2", "E2")]


# Rules


def test_more_orders_than_usual_within_the_window_are_suspicious(engine: Engine) -> None:
    three = [event(1, 0), event(2, 10), event(3, 29.99)]
    assert reasons(engine, three) == {"O3": "many_orders"}
    # The window is open at its start, whatever the orders are called.
    assert reasons(engine, [*three[:2], event(3, 30)]) == {}
    assert reasons(engine, [*three[:2], event(0, 30)]) == {}
    assert reasons(engine, [*three[:2], {**three[2], "customer_id": "C2"}]) == {}


def test_orders_at_the_same_moment_count_one_after_the_other(engine: Engine) -> None:
    rows = validated(engine, [event(number, 0) for number in (3, 1, 2)])
    assert [(row["order_id"], row["orders_in_window"]) for row in rows] == [
        ("O1", 1), ("O2", 2), ("O3", 3),
    ]  # fmt: skip


def of_customers(*cases: Rows) -> list[dict[str, Any]]:
    """The orders of each case, in a frame together, those of a customer of their own."""
    return [
        {**row, "customer_id": f"C{k}"}
        | {name: f"{row[name]} of {k}" for name in ("event_id", "order_id")}
        for k, rows in enumerate(cases)
        for row in rows
    ]


def test_a_value_far_above_the_mean_of_earlier_orders_is_suspicious(engine: Engine) -> None:
    cases = [
        (["10", "10", "30"], True),
        (["10", "10", "29.99"], False),
        (["10", "20", "45"], True),
        (["10", "20", "44.99"], False),
        (["10", "90"], False),  # too few to compare with
        (["1", "1", "19.99"], False),  # too little
        (["1", "1", "20"], True),
        (["90", "10", "10"], False),
    ]
    rows = of_customers(
        *(
            [event(n, 60 * n, order_value_gbp=Decimal(value)) for n, value in enumerate(values)]
            for values, _ in cases
        )
    )
    assert reasons(engine, rows) == {
        f"O2 of {k}": "value_above_history" for k, (_, suspicious) in enumerate(cases) if suspicious
    }


def test_more_different_cards_or_addresses_than_usual_within_the_window_are_suspicious(
    engine: Engine,
) -> None:
    cases: list[tuple[list[tuple[float, str | None]], list[str]]] = [
        ([(0, "a"), (10, "b")], ["O1"]),
        ([(0, "a"), (10, "a"), (20, None)], []),
        ([(0, "a"), (30, "b")], []),
        ([(0, "a"), (10, "a"), (35, "b")], ["O2"]),  # a was used again
        ([(0, "a"), (30, "a"), (59, "b")], ["O2"]),
        ([(0, "a"), (10, "b"), (20, None), (39.9, "b"), (40, "b")], ["O1", "O2"]),
    ]
    kinds = [
        (field, reason, *case)
        for field, reason in (("card", "many_cards"), ("address", "many_addresses"))
        for case in cases
    ]
    rows = of_customers(
        *(
            [event(n, minute, **{field: value}) for n, (minute, value) in enumerate(found)]
            for field, _, found, _ in kinds
        )
    )
    assert reasons(engine, rows, replace(RULES, orders_in_window=99)) == {
        f"{order} of {k}": reason
        for k, (_, reason, _, suspicious) in enumerate(kinds)
        for order in suspicious
    }


def test_a_region_away_from_a_known_home_is_a_weak_sign(engine: Engine) -> None:
    homes = ("South", "North", "unknown", "")
    rows = of_customers(*([event(1, 0, home_region=home)] for home in homes))
    assert reasons(engine, rows) == {}
    found = reasons(engine, rows, replace(RULES, alert_score=0.2))
    assert found == {"O1 of 0": "away_from_home"}


# Scores


def test_the_score_is_the_chance_that_one_reason_is_right(engine: Engine) -> None:
    rows = [event(1, 0, card="a"), event(2, 1, card="b"), event(3, 2, card="c", region="South")]
    found = {row["order_id"]: row for row in alerts(engine, rows)}
    assert {order: row["score"] for order, row in found.items()} == {"O2": 0.4, "O3": 0.808}
    assert found["O3"]["reasons"] == "many_orders,many_cards,away_from_home"
    assert found["O3"]["explanation"] == (
        "3 orders within 30 minutes; 3 cards within 30 minutes; in South, home is North"
    )


def test_a_score_that_is_the_threshold_in_decimals_is_an_alert(engine: Engine) -> None:
    # 1 - 0.75 * 0.8 is less than 0.4 in binary numbers.
    weights = {**RULES.weights, "value_above_history": 0.25}
    rows = [event(n, 60 * n) for n in range(2)]
    rows.append(event(2, 120, order_value_gbp=Decimal(70), region="South"))
    (row,) = alerts(engine, rows, rules=replace(RULES, weights=weights, alert_score=0.4))
    assert row["score"] == row["rule_score"] == 0.4
    assert row["explanation"] == "7 times the mean of 2 earlier orders; in South, home is North"


def test_the_model_is_one_more_reason(engine: Engine) -> None:
    cases = [
        (0.8999, 0.4, "many_cards"),
        (0.9, 0.64, "many_cards,unusual_order"),
        (1.0, 0.64, "many_cards,unusual_order"),
        (None, 0.4, "many_cards"),
    ]
    rows = of_customers(*([event(1, 0, card="a"), event(2, 1, card="b")] for _ in cases))
    scores = [
        {"event_id": f"E2 of {k}", "model_score": share, "model_version": "v"}
        for k, (share, *_) in enumerate(cases)
        if share is not None
    ]
    found = {row["event_id"]: row for row in alerts(engine, rows, scores)}
    for k, (share, score, why) in enumerate(cases):
        row = found.pop(f"E2 of {k}")
        version = None if share is None else "v"
        assert (row["model_score"], row["model_version"]) == (share, version)
        assert (row["rule_score"], row["score"], row["reasons"]) == (0.4, score, why)
        if MODEL in why:
            said = "more unusual than 90.0 % of orders" if share == 0.9 else "100.0 %"
            assert said in row["explanation"]
    assert found == {}


def test_orders_are_scored_by_the_model_if_that_can_make_them_alerts(engine: Engine) -> None:
    rows = [event(1, 0, card="a"), event(2, 1, card="b"), event(3, 99, region="South")]
    found = fraud.check(
        fraud.with_history(fraud.orders(engine(pa.Table.from_pylist(rows, _TYPES))), RULES), RULES
    )
    for threshold, expected in ((0.41, {"E2", "E3"}), (0.64, {"E2"}), (0.65, set())):
        rules = replace(RULES, alert_score=threshold)
        scored = {row["event_id"] for row in result(fraud.to_be_scored(found, rules))}
        assert scored == expected


def test_alerts_have_the_columns_of_their_table(engine: Engine) -> None:
    (row,) = alerts(engine, [event(1, 0, card="a"), event(2, 1, card="b")])
    assert set(row) == set(FRAUD_ALERTS.column_names)


def test_every_reason_has_a_weight_and_the_settings_name_it(settings: Settings) -> None:
    assert set(fraud_consumer.rules(settings).weights) == set(REASONS)


def test_a_customers_first_order_is_no_reason(engine: Engine) -> None:
    assert reasons(engine, [event(1, 0, order_value_gbp=Decimal("9999999999.99"))]) == {}


# A second opinion

minutes_of_events = st.none() | st.integers(0, 24).map(lambda fives: 5 * fives)


@st.composite
def an_event(draw: st.DrawFn) -> dict[str, Any]:
    return event(
        draw(st.integers(0, 7)),
        draw(minutes_of_events),
        customer_id=draw(st.sampled_from(["C1", "C1", "C2"])),
        order_value_gbp=draw(
            st.sampled_from(["0.01", "5", "20", "30", "33.33", "60", "9999999999.99"]).map(Decimal)
        ),
        region=draw(st.sampled_from(["North", "South"])),
        home_region=draw(st.sampled_from(["North", "unknown", ""])),
        card=draw(st.sampled_from([None, "a", "b", "c"])),
        address=draw(st.sampled_from([None, "x", "y"])),
        received_date=DAY + timedelta(days=draw(st.integers(0, 1))),
    )


def apart(groups: Sequence[Rows]) -> Rows:
    """Several lists of events at once, each with customers of its own."""
    rows = [
        {**row, "customer_id": f"{number} {row['customer_id']}"}
        for number, group in enumerate(groups)
        for row in group
    ]
    return [{**row, "event_id": f"E{n}", "position": n} for n, row in enumerate(rows)]


# An example takes the time to plan its queries, not that of its rows.
events_lists = st.lists(st.lists(an_event(), max_size=14), max_size=6).map(apart)


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    with duckdb.connect() as connection:
        yield on_pandas, on_duckdb(connection)


@settings(max_examples=8)
@given(rows=events_lists, random=st.randoms(use_true_random=False))
def test_a_slow_second_opinion_agrees_in_any_order_on_every_engine(
    engines: tuple[Engine, Engine], rows: Rows, random: Any
) -> None:
    expected = by_hand(rows)
    shuffled = random.sample(list(rows), len(rows))
    scores = [
        {"event_id": row["event_id"], "model_score": n % 15 / 14, "model_version": "v"}
        for n, row in enumerate(rows)
        if n % 3
    ]
    found = [validated(engine, shuffled) for engine in engines]
    for of_engine in found:
        assert [{name: row[name] for name in expected[0]} for row in of_engine] == expected
    orders = pa.Table.from_pylist(found[0], _VALIDATED)
    of_model = pa.Table.from_pylist(scores, _SCORE_TYPES)
    first, second = (
        result(fraud.alerts(engine(orders), engine(of_model), RULES)) for engine in engines
    )
    assert first == second


def by_hand(rows: Rows) -> list[dict[str, Any]]:
    orders = []
    for key in {(row["customer_id"], row["order_id"]) for row in rows}:
        mine = sorted(
            (row for row in rows if (row["customer_id"], row["order_id"]) == key),
            key=lambda row: (
                row["event_timestamp"] or row["received_at"],
                row["received_at"],
                row["position"],
                row["event_id"],
            ),
        )
        orders.append(
            {
                **mine[-1],
                "event_id": mine[0]["event_id"],
                "moment": min(row["moment"] for row in mine),
                "cards": {row["card"] for row in mine} - {None},
                "addresses": {row["address"] for row in mine} - {None},
            }
        )
    orders.sort(key=lambda row: (row["customer_id"], row["moment"], row["order_id"]))
    return [_validated_by_hand(order, orders[:n]) for n, order in enumerate(orders)]


def _validated_by_hand(order: dict[str, Any], before: Rows) -> dict[str, Any]:
    mine = [row for row in before if row["customer_id"] == order["customer_id"]]
    start = order["moment"] - RULES.window_minutes * MINUTE
    window = [row for row in mine if row["moment"] > start] + [order]
    cards = {max(row["cards"]) for row in window if row["cards"]}
    addresses = {max(row["addresses"]) for row in window if row["addresses"]}
    earlier = sum(row["order_value_gbp"] for row in mine)
    value = order["order_value_gbp"]
    found = {
        "many_orders": len(window) > RULES.orders_in_window,
        "value_above_history": len(mine) >= RULES.earlier_orders
        and value >= RULES.value_gbp
        and value * len(mine) >= earlier * int(RULES.value_ratio),
        "many_cards": len(cards) > RULES.values_in_window,
        "many_addresses": len(addresses) > RULES.values_in_window,
        "away_from_home": order["home_region"] not in ("unknown", "", order["region"]),
    }
    innocent = math.prod(1 - RULES.weights[reason] for reason, is_so in found.items() if is_so)
    return {
        "event_id": order["event_id"],
        "earlier_orders": len(mine),
        "earlier_pence": earlier * 100,
        "previous_moment": mine[-1]["moment"] if mine else None,
        "orders_in_window": len(window),
        "cards_in_window": len(cards),
        "addresses_in_window": len(addresses),
        **found,
        "rule_score": round(1 - innocent, 6),
    }
