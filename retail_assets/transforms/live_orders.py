"""Rules of live orders: the state of an order by its events, and its effect on the stock."""

import narwhals as nw

from retail_assets.transforms.orders import COMPLETED

RETURNED = "returned"

UNITS = 1
"""Units of an order that does not name a quantity."""

EVENT_ORDER = ("effective_at", "received_at", "position", "event_id")
"""The order of an order's events; names of files, topics or sources never decide."""


def with_effective_time(events: nw.LazyFrame) -> nw.LazyFrame:
    """Add `effective_at`: the event's own time, else the receipt that its source recorded.

    Args:
        events: events with `event_timestamp` and `received_at`, which is never null.
    """
    own = nw.col("event_timestamp")
    return events.with_columns(
        effective_at=nw.when(own.is_null()).then(nw.col("received_at")).otherwise(own)
    )


def live_orders(enriched: nw.LazyFrame) -> nw.LazyFrame:
    """Return the state of each order by its events, whatever the order of their arrival.

    The latest event decides, on the day of the first one; product and quantity come from the latest
    event that has one. A completed order sells its quantity: that of its latest completed event, at
    the time of its first. A returned order gives back what it sold, or its own quantity if no event
    says that it was sold. An order with any other status does neither.

    Args:
        enriched: rows of `enriched_events`: all events of the orders of interest, with
            `happened_at` (the time of the event, or the start of its day if it has none) and
            `received_at` never null.

    Returns:
        The columns of `live_orders`, except `minute` and `updated_at`.
    """
    col, none = nw.col, nw.lit(0)
    sells = col("status") == COMPLETED
    units = nw.when(col("quantity").is_null()).then(nw.lit(UNITS)).otherwise(col("quantity"))
    # On pandas, cum_count() would count over all orders.
    events = with_effective_time(enriched).with_columns(
        one=nw.lit(1), sale=nw.when(sells).then(nw.lit(1)).otherwise(none)
    )
    events = events.with_columns(
        _latest_known("product_id"),
        _latest_known("quantity"),
        number=col("one").cum_sum().over("order_id", order_by=EVENT_ORDER),
        sale_number=col("sale").cum_sum().over("order_id", order_by=EVENT_ORDER),
        events=nw.len().over("order_id"),
        first_date=col("order_date").min().over("order_id"),
        ordered_at=col("happened_at").min().over("order_id"),
    ).with_columns(quantity=units)
    first_sale = sells & (col("sale_number") == 1)
    events = events.with_columns(
        sold_units=nw.when(sells).then(col("quantity")),
        sold_product=nw.when(sells).then(col("product_id")),
        sold_at=nw.when(first_sale).then(col("happened_at")),
        sold_event_id=nw.when(first_sale).then(col("event_id")),
    ).with_columns(*map(_latest_known, ("sold_units", "sold_product", "sold_at", "sold_event_id")))
    return _with_stock(events.filter(col("number") == col("events")))


def _latest_known(column: str) -> nw.Expr:
    return nw.col(column).fill_null(strategy="forward").over("order_id", order_by=EVENT_ORDER)


def _with_stock(latest: nw.LazyFrame) -> nw.LazyFrame:
    col, none = nw.col, nw.lit(0)
    returned = col("status") == RETURNED
    was_sold = ~col("sold_units").is_null() & ((col("status") == COMPLETED) | returned)
    given_back = nw.when(was_sold).then(col("sold_units")).otherwise(col("quantity"))
    return latest.select(
        "order_id",
        "ordered_at",
        "region",
        "status",
        "order_value_gbp",
        order_date=col("first_date"),
        product_id=nw.when(was_sold).then(col("sold_product")).otherwise(col("product_id")),
        sold=nw.when(was_sold).then(col("sold_units")).otherwise(none).cast(nw.Int64),
        sold_at=nw.when(was_sold).then(col("sold_at")),
        sold_event_id=nw.when(was_sold).then(col("sold_event_id")),
        returned=nw.when(returned).then(given_back).otherwise(none).cast(nw.Int64),
        returned_at=nw.when(returned).then(col("happened_at")),
    )


def completed(orders: nw.LazyFrame) -> nw.LazyFrame:
    """The orders of `live_orders` that count."""
    return orders.filter(nw.col("status") == COMPLETED)
