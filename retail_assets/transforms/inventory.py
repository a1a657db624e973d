"""Rules of the stock: how much each product has, and when it fell below the threshold."""

import narwhals as nw


def stock_changes(orders: nw.LazyFrame, lines: nw.LazyFrame) -> nw.LazyFrame:
    """Return what orders did to the stock of products, each product of an order once.

    Args:
        orders: rows of `live_orders`, with `sold_day` and `returned_day`, the days of `sold_at` and
            `returned_at` in any type that has an order.
        lines: rows of `live_order_lines` with the same.

    Returns:
        `product_id`, `order_id`, `line_number` (of a product's first line; null for an order
        without lines), `sold`, `returned`, `sold_at`, `sold_event_id`, `returned_at`, `sold_day`
        and `returned_day`.
    """
    col, columns = nw.col, ("sold_at", "sold_event_id", "returned_at", "sold_day", "returned_day")
    kept = ("product_id", "order_id", "line_number", "sold", "returned", *columns)
    has_product = ~col("product_id").is_null()
    # Null: pandas has no literal null of a number.
    whole = orders.filter(has_product).with_columns(
        line_number=nw.when(~has_product).then(col("sold"))
    )
    by_product = (
        lines.group_by("product_id", "order_id")
        .agg(
            *(col(name).max() for name in columns),
            col("line_number").min(),
            *(col(name).sum() for name in ("sold", "returned")),
        )
        .with_columns(col("sold", "returned").cast(nw.Int64))
    )
    return nw.concat([rows.select(*kept) for rows in (whole, by_product)])


def inventory_levels(
    changes: nw.LazyFrame, products: nw.LazyFrame, *, low_stock_units: int
) -> nw.LazyFrame:
    """Return `inventory_levels`: opening stock - sold + returned.

    Args:
        changes: the result of `stock_changes` since the day of the opening stock.
        products: rows of `products`.
        low_stock_units: a stock of less is low.

    Returns:
        The columns of `inventory_levels`, except `updated_at`, for each product that is listed or
        was ordered. Without an opening stock, the stock is null.
    """
    col = nw.col
    moved = changes.group_by("product_id").agg(
        sold=col("sold").sum(), returned=col("returned").sum()
    )
    both = products.select("product_id", "stock_on_hand").join(moved, on="product_id", how="full")
    counted = both.select(
        "stock_on_hand",
        product_id=nw.coalesce(col("product_id"), col("product_id_right")),
        sold=nw.coalesce(col("sold"), nw.lit(0)).cast(nw.Int64),
        returned=nw.coalesce(col("returned"), nw.lit(0)).cast(nw.Int64),
    )
    stock = col("stock_on_hand") - col("sold") + col("returned")
    return counted.with_columns(stock=stock).with_columns(
        below=nw.when(col("stock") < low_stock_units).then(nw.lit(True)).otherwise(nw.lit(False))  # noqa: FBT003
    )


def stock_days(changes: nw.LazyFrame) -> nw.LazyFrame:
    """Sum up what moved the stock of each product on each day.

    Args:
        changes: the result of `stock_changes` since the day of the opening stock.

    Returns:
        `product_id`, `day`, and the units that were `taken` (zero or less) and came `back`. The
        sums of some orders and of others add up to those of all.
    """
    return (
        _movements(changes)
        .group_by("product_id", "day")
        .agg(nw.col("taken").sum(), nw.col("back").sum())
        .with_columns(nw.col("taken", "back").cast(nw.Int64))
    )


def days_around(
    days: nw.LazyFrame, products: nw.LazyFrame, *, low_stock_units: int
) -> nw.LazyFrame:
    """Find the days on which the stock may have been on both sides of the threshold.

    To follow all sales takes many times longer than to add them up: only those days are followed.

    Args:
        days: the result of `stock_days`.
        products: rows of `products`; one without opening stock has no such days.
        low_stock_units: a stock of less is low.

    Returns:
        `product_id`, `day`, and the stock with which it `opened`.
    """
    col = nw.col
    change = col("taken") + col("back")
    return (
        days.with_columns(closed=change.cum_sum().over("product_id", order_by="day"))
        .join(products.select("product_id", "stock_on_hand"), on="product_id")
        .with_columns(opened=col("stock_on_hand") + col("closed") - change)
        .filter(
            col("opened") + col("taken") < low_stock_units,
            col("opened") + col("back") >= low_stock_units,
        )
        .select("product_id", "day", "opened")
    )


def stock_alerts(
    changes: nw.LazyFrame, days: nw.LazyFrame, *, low_stock_units: int
) -> nw.LazyFrame:
    """Return `stock_alerts`: each sale that took a product's stock below the threshold.

    The stock follows all sales and returns by the time of their events, not of their arrival. At
    the same time, returns come first, then the sales by order id. A product that opened below the
    threshold has to rise above it first.

    Args:
        changes: the result of `stock_changes`: all of the products and days of `days` at least.
        days: the result of `days_around`.
        low_stock_units: a stock of less is low.

    Returns:
        The columns of `stock_alerts`, except `updated_at`, of these days; others have none.
    """
    col = nw.col
    moved = _movements(changes)
    stock = col("opened") + col("moved")
    followed = (
        moved.join(days, on=["product_id", "day"])
        .with_columns(
            moved=col("change")
            .cum_sum()
            .over("product_id", "day", order_by=("crossed_at", "is_sale", "order_id"))
        )
        .with_columns(stock=stock)
    )
    fell = (col("stock") < low_stock_units) & (col("stock") - col("change") >= low_stock_units)
    return followed.filter(fell).select(
        "product_id", "event_id", "line_number", "order_id", "crossed_at", "stock"
    )


def _movements(changes: nw.LazyFrame) -> nw.LazyFrame:
    """Each sale and return as a change of a product's stock."""
    col = nw.col
    sold = changes.filter(col("sold") > 0).select(
        "product_id",
        "order_id",
        "line_number",
        event_id="sold_event_id",
        crossed_at="sold_at",
        day="sold_day",
        change=-col("sold"),
        taken=-col("sold"),
        back=nw.lit(0, dtype=nw.Int64),
        is_sale=nw.lit(1),
    )
    returned = changes.filter(col("returned") > 0).select(
        "product_id",
        "order_id",
        "line_number",
        event_id=nw.lit(None, dtype=nw.String),
        crossed_at="returned_at",
        day="returned_day",
        change=col("returned"),
        taken=nw.lit(0, dtype=nw.Int64),
        back=col("returned"),
        is_sale=nw.lit(0),
    )
    return nw.concat([sold, returned])
