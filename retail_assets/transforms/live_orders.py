"""Rules of live orders: the state of an order by its events, and its effect on the stock."""

import narwhals as nw

from retail_assets.transforms.orders import COMPLETED, UNKNOWN

RETURNED = "returned"

UNITS = 1
"""Units of an order that does not name a quantity."""

NO_LINES = ""
"""The lines of an event that names a product: what earlier events said of lines is over."""

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
    event that has one, and lines from the latest event that has any, unless a later one names a
    product instead. A completed order sells its quantity, or that of each line: as of its latest
    completed event, at the time of its first. A returned order gives back what it sold, or its own
    quantity if no event says that it was sold. An order with any other status does neither.

    Args:
        enriched: rows of `enriched_events`: all events of the orders of interest, with
            `happened_at` (the time of the event, or the start of its day if it has none) and
            `received_at` never null.

    Returns:
        The columns of `live_orders`, except `minute` and `updated_at`, and `lines` (String, as in
        `enriched_events`; null for an order without lines).
    """
    col, none = nw.col, nw.lit(0)
    sells = col("status") == COMPLETED
    # On pandas, cum_count() would count over all orders.
    events = with_effective_time(enriched).with_columns(
        one=nw.lit(1), sale=nw.when(sells).then(nw.lit(1)).otherwise(none)
    )
    events = (
        _with_content(events)
        .with_columns(
            *map(_latest_known, _CONTENT),
            *map(_latest_known, ("line_units", "line_value")),
            number=col("one").cum_sum().over("order_id", order_by=EVENT_ORDER),
            sale_number=col("sale").cum_sum().over("order_id", order_by=EVENT_ORDER),
            events=nw.len().over("order_id"),
            first_date=col("order_date").min().over("order_id"),
            ordered_at=col("happened_at").min().over("order_id"),
        )
        .with_columns(
            quantity=nw.when(col("lines") != NO_LINES)
            .then(col("line_units"))
            .otherwise(nw.coalesce(col("quantity"), nw.lit(UNITS)))
        )
    )
    first_sale = sells & (col("sale_number") == 1)
    sold = {f"sold_{name}": nw.when(sells).then(col(name)) for name in _CONTENT}
    events = events.with_columns(
        **sold,
        sold_at=nw.when(first_sale).then(col("happened_at")),
        sold_event_id=nw.when(first_sale).then(col("event_id")),
    ).with_columns(*map(_latest_known, (*sold, "sold_at", "sold_event_id")))
    return _with_stock(events.filter(col("number") == col("events")))


_CONTENT = ("product_id", "product_category", "quantity", "lines")
"""What was ordered."""


def _with_content(events: nw.LazyFrame) -> nw.LazyFrame:
    """Tell what an event says of lines from what it says of a product."""
    col, nothing = nw.col, nw.lit(None, dtype=nw.String)
    has_lines = ~col("lines").is_null()
    has_product = ~col("product_id").is_null()
    without = nw.when(has_product).then(nw.lit(NO_LINES)).otherwise(nothing)
    return events.with_columns(
        lines=nw.when(has_lines).then(col("lines")).otherwise(without),
        line_units=nw.when(has_lines).then(col("quantity")),
        line_value=nw.when(has_lines).then(col("order_value_gbp")),
        quantity=nw.when(~has_lines).then(col("quantity")),
        product_category=nw.when(has_product).then(col("product_category")).otherwise(nothing),
    )


def _latest_known(column: str) -> nw.Expr:
    return nw.col(column).fill_null(strategy="forward").over("order_id", order_by=EVENT_ORDER)


def _with_stock(latest: nw.LazyFrame) -> nw.LazyFrame:
    col, none, nothing = nw.col, nw.lit(0), nw.lit(None, dtype=nw.String)
    returned = col("status") == RETURNED
    was_sold = ~col("sold_quantity").is_null() & ((col("status") == COMPLETED) | returned)
    content = {
        name: nw.when(was_sold).then(col(f"sold_{name}")).otherwise(col(name)) for name in _CONTENT
    }
    has_lines = nw.when(col("lines") != NO_LINES).then(nw.lit(1)).otherwise(none) == 1
    adds_up = has_lines & (col("line_value") == col("order_value_gbp"))
    unknown = nw.lit(UNKNOWN)
    category = nw.when(has_lines).then(unknown).otherwise(nw.coalesce("product_category", unknown))
    return latest.with_columns(**content).select(
        "order_id",
        "ordered_at",
        "region",
        "status",
        "order_value_gbp",
        order_date=col("first_date"),
        product_id=nw.when(has_lines).then(nothing).otherwise(col("product_id")),
        product_category=nw.when(adds_up).then(nothing).otherwise(category),
        lines=nw.when(has_lines).then(col("lines")).otherwise(nothing),
        sold=nw.when(was_sold).then(col("quantity")).otherwise(none).cast(nw.Int64),
        sold_at=nw.when(was_sold).then(col("sold_at")),
        sold_event_id=nw.when(was_sold).then(col("sold_event_id")),
        returned=nw.when(returned).then(col("quantity")).otherwise(none).cast(nw.Int64),
        returned_at=nw.when(returned).then(col("happened_at")),
    )


def live_order_lines(
    orders: nw.LazyFrame, lines: nw.LazyFrame, products: nw.LazyFrame
) -> nw.LazyFrame:
    """Return the lines of live orders, each with what it does to the stock.

    Args:
        orders: the result of `live_orders`.
        lines: `order_id`, `line_number`, `product_id`, `quantity` (Int64) and `order_value_gbp`
            (Decimal, GBP) of their lines.
        products: rows of `products`: those of the lines at least.

    Returns:
        The columns of `live_order_lines`, except `updated_at`.
    """
    col, none = nw.col, nw.lit(0)
    of_order = ("order_date", "region", "status", "sold_at", "sold_event_id", "returned_at")
    return (
        lines.join(orders.select("order_id", *of_order, "sold", "returned"), on="order_id")
        .join(products.select("product_id", "product_category"), on="product_id", how="left")
        .select(
            *("order_id", "line_number", "product_id", "order_value_gbp"),
            *of_order,
            product_category=nw.coalesce(col("product_category"), nw.lit(UNKNOWN)),
            sold=nw.when(col("sold") > 0).then(col("quantity")).otherwise(none).cast(nw.Int64),
            returned=nw.when(col("returned") > 0)
            .then(col("quantity"))
            .otherwise(none)
            .cast(nw.Int64),
        )
    )


def sold_lines(orders: nw.LazyFrame, lines: nw.LazyFrame) -> nw.LazyFrame:
    """Return what completed orders sold, for revenue by category; one without lines is one line.

    So is one whose latest event names another value than its lines have: which of them is worth
    more or less is not known.

    Args:
        orders: rows of `live_orders`.
        lines: rows of `live_order_lines` of these orders.

    Returns:
        The columns that `revenue.daily_revenue_by_category` groups: a line that cost nothing, such
        as a gift, has no revenue, and is left out.
    """
    col = nw.col
    kept = ("order_id", "order_date", "region", "product_category", "order_value_gbp")
    whole = orders.filter(~col("product_category").is_null()).with_columns(
        line_number=nw.lit(1, dtype=nw.Int64)
    )
    by_line = orders.filter(col("product_category").is_null()).select("order_id")
    paid = lines.filter(col("order_value_gbp") > 0).join(by_line, on="order_id", how="semi")
    return nw.concat([completed(rows).select(*kept, "line_number") for rows in (whole, paid)])


def completed(orders: nw.LazyFrame) -> nw.LazyFrame:
    """The orders of `live_orders`, or lines of `live_order_lines`, that count."""
    return orders.filter(nw.col("status") == COMPLETED)
