"""Rules of revenue: the sums of a day's completed orders."""

from collections.abc import Collection, Sequence
from datetime import date

import narwhals as nw

from retail_assets.transforms import orders
from retail_assets.transforms.orders import in_pence

MONEY = nw.Decimal(12, 2)
TOTAL = nw.Decimal(18, 2)
"""Wider than the rows: the sum of two orders of the largest value would not fit."""

VALUE = "order_value_gbp"
KEYS = ("order_date", "region", "product_category")
"""The columns that revenue is grouped by: all of them, or the first two."""

_TOTALS = {"total_revenue": nw.col(VALUE).sum(), "pence": nw.col("pence").sum()}


def revenue_by(orders: nw.LazyFrame, *keys: str) -> nw.LazyFrame:
    """Sum up orders.

    Args:
        orders: a row for each order, with the keys and `order_value_gbp` (Decimal, in GBP).
        keys: the columns to group by.

    Returns:
        The keys, `total_revenue` (Decimal(18,2), GBP), `order_count` (Int64) and
        `avg_order_value` (Decimal(12,2), GBP; half a penny is rounded up).
    """
    totals = orders.with_columns(pence=in_pence(VALUE))
    return _measures(totals.group_by(*keys).agg(order_count=nw.len(), **_TOTALS), keys)


def add_up(revenue: nw.LazyFrame, *keys: str) -> nw.LazyFrame:
    """Add up revenues of different orders.

    Args:
        revenue: the keys, `total_revenue` (Decimal, in GBP), the same as whole `pence` (Int64) and
            `order_count`; negative where orders do not count any more.
        keys: the columns to group by.

    Returns:
        The columns of `revenue_by`, for the groups that have orders.
    """
    sums = {name: nw.col(name).sum() for name in ("total_revenue", "pence", "order_count")}
    totals = revenue.group_by(*keys).agg(**sums).filter(nw.col("order_count") != 0)
    return _measures(totals, keys)


def daily_revenue(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Return `daily_revenue` of the days in `completed_orders`."""
    return _revenue_of_lines(completed_orders, *KEYS[:2])


def daily_revenue_by_category(completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Return `daily_revenue_by_category` of the days in `completed_orders`."""
    return _revenue_of_lines(completed_orders, *KEYS)


def _revenue_of_lines(completed_orders: nw.LazyFrame, *keys: str) -> nw.LazyFrame:
    totals = completed_orders.with_columns(pence=in_pence(VALUE))
    return _measures(_count_orders(totals, *keys, **_TOTALS), keys)


def _measures(totals: nw.LazyFrame, keys: Sequence[str]) -> nw.LazyFrame:
    # In whole pence: a mean of decimals is a decimal on one engine and a double on another.
    totals = totals.with_columns(
        nw.col("total_revenue").cast(TOTAL), nw.col("pence").cast(nw.Int64)
    )
    # A group of refunds alone has no orders, and the average 0.
    none = nw.col("order_count") == 0
    count = nw.when(none).then(nw.lit(1)).otherwise(nw.col("order_count"))
    pence = nw.when(none).then(nw.lit(0)).otherwise(nw.col("pence"))
    average = (2 * pence + count) // (2 * count)
    return totals.select(
        *keys,
        "total_revenue",
        nw.col("order_count").cast(nw.Int64),
        avg_order_value=(average.cast(nw.Float64) / 100).cast(MONEY),
    )


def _count_orders(lines: nw.LazyFrame, *keys: str, **sums: nw.Expr) -> nw.LazyFrame:
    """Group lines of orders: the keys, `order_count`, and the sums; an order counts once in each.

    Where it has refunds alone, it does not count.

    Only the ids of orders with several lines are compared: to compare all takes ten times longer
    than to count rows.
    """
    several = lines.filter(nw.col("line_number") > 1).select("order_id").unique()
    marked = lines.join(several.with_columns(shared=nw.lit(1)), on="order_id", how="left")
    alone = nw.col("shared").is_null()
    bought = nw.col(VALUE) > 0
    groups = (
        marked.with_columns(
            alone=nw.when(alone & bought).then(nw.lit(1)).otherwise(nw.lit(0)),
            shared=nw.when(~alone & bought).then(nw.col("order_id")),
            none=nw.when(alone | ~bought).then(nw.lit(1)).otherwise(nw.lit(0)),
        )
        .group_by(*keys)
        .agg(nw.col("alone").sum(), nw.col("shared").n_unique(), nw.col("none").max(), **sums)
    )
    # Null, which stands for orders of one line and for refunds, is counted as an id.
    none = nw.col("none")
    return groups.with_columns(order_count=nw.col("alone") + nw.col("shared") - none)


def unreconciled_days(revenue: nw.LazyFrame, completed_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Find the days whose revenue is not the sum of their completed orders.

    Args:
        revenue: rows of `daily_revenue` or `daily_revenue_by_category`; its columns say what it is
            grouped by, and an order counts once in each group.
        completed_orders: the completed orders of the same days.

    Returns:
        `order_date`, `completed_value_gbp`, `revenue_gbp`, `completed_count` and `revenue_count`
        of each such day.
    """
    published = revenue.group_by("order_date").agg(
        revenue_gbp=nw.col("total_revenue").sum(), revenue_count=nw.col("order_count").sum()
    )
    columns = revenue.collect_schema().names()
    groups = [name for name in KEYS if name in columns]
    completed = _by_day(completed_orders, *groups).select(
        "order_date", completed_value_gbp="value_gbp", completed_count="orders"
    )
    both = completed.join(published, on="order_date", how="full").with_columns(
        order_date=nw.coalesce("order_date", "order_date_right")
    )
    return both.filter(
        nw.col("completed_count").is_null()
        | nw.col("revenue_count").is_null()
        | (nw.col("completed_count") != nw.col("revenue_count"))
        | (nw.col("completed_value_gbp") != nw.col("revenue_gbp"))
    ).select("order_date", "completed_value_gbp", "revenue_gbp", "completed_count", "revenue_count")


def waiting(
    raw_orders: nw.LazyFrame, revenue: nw.LazyFrame, days: Collection[date] | None = None
) -> nw.LazyFrame:
    """Find the accepted orders that count and are not in the published revenue.

    Args:
        raw_orders: rows of `raw_orders`: all versions of the orders that have one on these days.
        revenue: rows of `daily_revenue`, of these days at least.
        days: the days to compare; None: all.

    Returns:
        `order_date`, `orders` (Int64) and `value_gbp` (Decimal) of each day that differs. Published
        + waiting = all that count: where a day has published an order too many, or an earlier
        version, numbers or values are negative.
    """
    counted = orders.counted(raw_orders)
    if days is not None:
        counted = counted.filter(nw.col("order_date").is_in(list(days)))
        revenue = revenue.filter(nw.col("order_date").is_in(list(days)))
    accepted = _by_day(counted, "order_date", "region").select(
        "order_date", accepted="orders", accepted_gbp="value_gbp"
    )
    published = revenue.group_by("order_date").agg(
        published=nw.col("order_count").sum(), published_gbp=nw.col("total_revenue").sum()
    )
    # Wide enough for any Int64: pandas has nothing but the zeros where no day has a partner.
    money = nw.Decimal(21, 2)
    types = {"accepted": nw.Int64, "published": nw.Int64}
    both = accepted.join(published, on="order_date", how="full").select(
        nw.coalesce("order_date", "order_date_right").alias("order_date"),
        *(
            nw.when(nw.col(name).is_null())
            .then(nw.lit(0))
            .otherwise(nw.col(name))
            .cast(types.get(name, money))
            .alias(name)
            for name in ("accepted", "accepted_gbp", "published", "published_gbp")
        ),
    )
    return both.select(
        "order_date",
        orders=nw.col("accepted") - nw.col("published"),
        value_gbp=nw.col("accepted_gbp") - nw.col("published_gbp"),
    ).filter((nw.col("orders") != 0) | (nw.col("value_gbp") != 0))


def _by_day(counted: nw.LazyFrame, *keys: str) -> nw.LazyFrame:
    """`orders` and `value_gbp` of each day; an order counts once in each group of the keys."""
    groups = _count_orders(counted, *keys, value_gbp=nw.col(VALUE).sum())
    return groups.group_by("order_date").agg(
        nw.col("value_gbp").sum(), orders=nw.col("order_count").sum()
    )
