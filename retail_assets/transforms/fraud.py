"""Rules of fraud: which orders of a customer look wrong, by that customer's own history.

Orders are checked, not events: the latest event of an order counts, as for revenue, and its moment
is that of its earliest event. Its status does not matter; stolen cards are tried on orders that are
cancelled. Every rule uses only the customer's orders up to the one that it checks, so the result
does not depend on the order in which events arrive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import narwhals as nw

from retail_assets.transforms.live_orders import EVENT_ORDER, with_effective_time
from retail_assets.transforms.orders import UNKNOWN

MINUTE = 60_000_000
"""A minute, in the microseconds that moments are counted in."""

REASONS: Mapping[str, str] = {
    "many_orders": "More orders of the customer within the window than is usual.",
    "value_above_history": "A value far above the mean of the customer's earlier orders.",
    "many_cards": "More different payment cards of the customer within the window than is usual.",
    "many_addresses": "More different addresses of the customer within the window than is usual.",
    "away_from_home": "Ordered in another region than the customer's home: a weak sign.",
    "unusual_order": "The model finds it more unusual than nearly all orders that it was trained"
    " on.",
}
"""Why an order is suspicious, in the order of an alert's list."""

MODEL = "unusual_order"

# Events with one order id and two customers are two orders.
_ORDER = ("customer_id", "order_id")
_VALUES = ("card", "address")
_STEPS = 1_000_000
"""A score has six decimals."""


@dataclass(frozen=True)
class Rules:
    """The thresholds of the rules, and how much each reason weighs.

    `weights` has a weight from 0 to 1 for each of `REASONS`: the chance that the reason is right.
    If reasons are independent, the chance that at least one is right is
    1 - (1 - weight) * (1 - weight) * …: that is the score of an order.
    """

    window_minutes: int
    orders_in_window: int
    values_in_window: int
    value_ratio: float
    value_gbp: float
    earlier_orders: int
    model_share: float
    alert_score: float
    weights: Mapping[str, float]


def orders(events: nw.LazyFrame) -> nw.LazyFrame:
    """Combine the events of customers to orders.

    Args:
        events: all events of the customers of interest: columns of `enriched_events`
            (`received_at` never null) and `moment`
            (Int64: when it happened, in microseconds since 1970; the start of `order_date` where
            the event does not say), `hour` (Int64: its hour in the business time zone, null if it
            does not say), `card` and `address` (String, null where it has none) and `is_fraud`
            (Int64: 1, 0, or null where it does not say).

    Returns:
        A row for each order: `customer_id`, `order_id`; `event_id`, `event_timestamp` and `hour`
        of its first event; `region`, `home_region` and `order_value_gbp` of its latest; the
        earliest `moment`, `order_date` and `received_date`; the greatest `card`, `address` and
        `is_fraud`. All numbers are Int64.
    """
    col = nw.col
    numbered = with_effective_time(events.with_columns(one=nw.lit(1))).with_columns(
        *(col(name).min().over(*_ORDER) for name in ("moment", "order_date", "received_date")),
        *(col(name).max().over(*_ORDER) for name in ("card", "address", "is_fraud")),
        number=col("one").cum_sum().over(*_ORDER, order_by=EVENT_ORDER),
        events=nw.len().over(*_ORDER),
    )
    of_first = ("event_id", "event_timestamp", "hour")
    return (
        numbered.with_columns(
            nw.when(col("number") == 1).then(col(name)).alias(name) for name in of_first
        )
        .with_columns(col(name).max().over(*_ORDER) for name in of_first)
        .filter(col("number") == col("events"))
        .select(
            *_ORDER,
            *of_first,
            *("moment", "order_date", "received_date"),
            *("region", "home_region", "order_value_gbp"),
            *_VALUES,
            "is_fraud",
        )
    )


def with_history(orders: nw.LazyFrame, rules: Rules) -> nw.LazyFrame:
    """Add the earlier orders of the customer, and how many lie within the window.

    Args:
        orders: the result of `orders`: all orders of the customers of interest.
        rules: the window counts from its start, not included, to the order, included.

    Returns:
        The same rows with `pence`, the order's value; the number `earlier_orders` and sum
        `earlier_pence` of the customer's orders before it, and the `previous_moment` (null: none);
        and `orders_in_window`, `cards_in_window` and `addresses_in_window`, with the order's own;
        all Int64.
    """
    col, customer, window = nw.col, "customer_id", rules.window_minutes * MINUTE
    sequence = ("moment", "order_id")
    # In whole pence, which a double holds exactly: sums of doubles depend on their order.
    pence = (col("order_value_gbp").cast(nw.Float64) * 100).round(0).cast(nw.Int64)
    known = orders.with_columns(pence=pence, one=nw.lit(1), at=col("moment")).with_columns(
        earlier_orders=col("one").cum_sum().over(customer, order_by=sequence).cast(nw.Int64) - 1,
        earlier_pence=col("pence").cum_sum().over(customer, order_by=sequence).cast(nw.Int64)
        - col("pence"),
        previous_moment=col("at").shift(1).over(customer, order_by=sequence),
        **{
            f"{when}_{name}": col("at").shift(n).over(customer, name, order_by=sequence)
            for name in _VALUES
            for when, n in (("previous", 1), ("next", -1))
        },
    )
    counts = {
        "orders_in_window": "orders_change",
        "cards_in_window": "card_change",
        "addresses_in_window": "address_change",
    }
    changes = ("at", "entry", "order_id")
    return (
        _window_changes(known, window)
        .with_columns(
            col(change).cum_sum().over(customer, order_by=changes).cast(nw.Int64).alias(count)
            for count, change in counts.items()
        )
        .filter(col("entry") == 1)
        .select(
            *_ORDER,
            *("event_id", "event_timestamp", "hour", "moment", "order_date", "received_date"),
            *("region", "home_region", "order_value_gbp", "is_fraud", "pence"),
            *("earlier_orders", "earlier_pence", "previous_moment"),
            *counts,
        )
    )


def _window_changes(known: nw.LazyFrame, window: int) -> nw.LazyFrame:
    """Each order twice: as it enters the window, at its moment, and leaves it, a window later.

    The running sum of the changes is the number within. A card or address enters with the first of
    its orders that are within, and leaves with the last.
    """
    col = nw.col
    entries = known.with_columns(
        entry=nw.lit(1),
        orders_change=nw.lit(1),
        **{
            f"{name}_change": _one_if(
                ~col(name).is_null()
                & (
                    col(f"previous_{name}").is_null()
                    | (col(f"previous_{name}") <= col("moment") - window)
                )
            )
            for name in _VALUES
        },
    )
    exits = known.with_columns(
        at=col("moment") + window,
        entry=nw.lit(0),
        orders_change=nw.lit(-1),
        **{
            f"{name}_change": -1
            * _one_if(
                ~col(name).is_null()
                & (col(f"next_{name}").is_null() | (col(f"next_{name}") >= col("moment") + window))
            )
            for name in _VALUES
        },
    )
    return nw.concat([entries, exits])


def check(orders: nw.LazyFrame, rules: Rules) -> nw.LazyFrame:
    """Say which rules each order breaks.

    Args:
        orders: the result of `with_history`.
        rules: the thresholds and weights.

    Returns:
        The same rows with a Boolean column for each of `REASONS` except the model's, and
        `rule_score` (Float64, 0 to 1).
    """
    col = nw.col
    known = (col("home_region") != UNKNOWN) & (col("home_region") != "")
    return _with_score(
        orders.with_columns(
            many_orders=col("orders_in_window") > rules.orders_in_window,
            value_above_history=(col("earlier_orders") >= max(1, rules.earlier_orders))
            & (_float("pence") >= rules.value_gbp * 100)
            & (
                _float("pence") * col("earlier_orders")
                >= _float("earlier_pence") * rules.value_ratio
            ),
            many_cards=col("cards_in_window") > rules.values_in_window,
            many_addresses=col("addresses_in_window") > rules.values_in_window,
            away_from_home=known & (col("region") != col("home_region")),
        ),
        "rule_score",
        [reason for reason in REASONS if reason != MODEL],
        rules,
    )


def to_be_scored(checked: nw.LazyFrame, rules: Rules) -> nw.LazyFrame:
    """The checked orders that can become alerts by the model's score."""
    at_most = 1 - (1 - nw.col("rule_score")) * (1 - rules.weights[MODEL])
    return checked.filter(at_most >= rules.alert_score - 1 / _STEPS)


def alerts(checked: nw.LazyFrame, scores: nw.LazyFrame, rules: Rules) -> nw.LazyFrame:
    """Return `fraud_alerts` of checked orders.

    Args:
        checked: the result of `check`.
        scores: `event_id`, `model_score` (Float64: the share of the model's training orders that
            are less unusual) and `model_version` (String); orders without a score are left out.
        rules: the thresholds and weights.
    """
    col = nw.col
    scored = checked.join(
        scores.select("event_id", "model_score", "model_version"), on="event_id", how="left"
    ).with_columns(
        unusual_order=nw.when(col("model_score").is_null())
        .then(nw.lit(value=False))
        .otherwise(col("model_score") >= rules.model_share)
    )
    found = _with_score(scored, "score", list(REASONS), rules).filter(
        col("score") >= rules.alert_score
    )
    return found.select(
        *("event_id", *_ORDER, "order_date", "event_timestamp", "received_date"),
        *("region", "order_value_gbp"),
        reasons=_listed({reason: nw.lit(reason) for reason in REASONS}, ","),
        rule_score=col("rule_score"),
        model_score=col("model_score"),
        score=col("score"),
        model_version=col("model_version"),
        explanation=_listed(_explanations(rules), "; "),
    )


def _explanations(rules: Rules) -> Mapping[str, nw.Expr]:
    col, text = nw.col, nw.lit
    window = text(f" within {rules.window_minutes} minutes")
    tenths = (col("model_score") * 1000 + 0.5).floor().cast(nw.Int64)
    # A first order has no earlier ones: the text is not shown then, but computed.
    earlier = nw.when(col("earlier_orders") > 0).then(col("earlier_pence")).otherwise(text(1))
    times = (_float("pence") * col("earlier_orders") / earlier.cast(nw.Float64)).floor()
    return {
        "many_orders": nw.concat_str(_digits(col("orders_in_window")), text(" orders"), window),
        "value_above_history": nw.concat_str(
            *(_digits(times), text(" times the mean of ")),
            *(_digits(col("earlier_orders")), text(" earlier orders")),
        ),
        "many_cards": nw.concat_str(_digits(col("cards_in_window")), text(" cards"), window),
        "many_addresses": nw.concat_str(
            _digits(col("addresses_in_window")), text(" addresses"), window
        ),
        "away_from_home": nw.concat_str(
            text("in "), col("region"), text(", home is "), col("home_region")
        ),
        MODEL: nw.concat_str(
            *(
                text("more unusual than "),
                _digits(tenths // 10),
                text("."),
                _digits(tenths - tenths // 10 * 10),
            ),
            text(" % of orders"),
        ),
    }


def _listed(texts: Mapping[str, nw.Expr], separator: str) -> nw.Expr:
    """The texts of the reasons that an order has."""
    nothing = nw.lit(None, dtype=nw.String)
    return nw.concat_str(
        [nw.when(nw.col(reason)).then(text).otherwise(nothing) for reason, text in texts.items()],
        separator=separator,
        ignore_nulls=True,
    )


def _with_score(
    orders: nw.LazyFrame, name: str, reasons: Sequence[str], rules: Rules
) -> nw.LazyFrame:
    innocent: nw.Expr = nw.lit(1.0)
    for reason in reasons:
        weight = nw.when(nw.col(reason)).then(nw.lit(1 - rules.weights[reason]))
        innocent = innocent * weight.otherwise(nw.lit(1.0))
    # Rounded: 1 - 0.8 * 0.75 is a little less than 0.4 in binary numbers.
    score = ((1 - innocent) * _STEPS + 0.5).floor() / _STEPS
    return orders.with_columns(score.alias(name))


def _one_if(condition: nw.Expr) -> nw.Expr:
    return nw.when(condition).then(nw.lit(1)).otherwise(nw.lit(0))


def _float(name: str) -> nw.Expr:
    return nw.col(name).cast(nw.Float64)


def _digits(number: nw.Expr) -> nw.Expr:
    return number.cast(nw.Int64).cast(nw.String)
