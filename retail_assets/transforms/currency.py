"""Rules of currencies: what an amount is worth in GBP, and by which rate."""

from decimal import Decimal

import narwhals as nw

MAX_RATE_AGE_DAYS = 7
"""So old may a rate be: banks publish none on weekends and holidays."""

OUT_OF_RANGE_GBP = 10_000_000_000

_WIDE = nw.Decimal(19, 2)
"""Wide enough for the product with a rate; a decimal of up to 18 digits would overflow."""

_TIE_BREAK = Decimal("0.0000000000001")
"""Less than a product's last decimal. Engines round half a penny away from zero or to the even one:
with this it is more than half."""


def rates_on(wanted: nw.LazyFrame, rates: nw.LazyFrame) -> nw.LazyFrame:
    """Find the rate that counts for a currency on a day: the newest that is not too old.

    Args:
        wanted: `currency` (String) and `order_date` (Date), each pair once.
        rates: rows of `currency_rates`, each once for every `order_date` from its `day` to
            `MAX_RATE_AGE_DAYS` later.

    Returns:
        `currency`, `order_date` and `rate` (Decimal(16,10), GBP for one unit) where there is one.
    """
    pair = ("currency", "order_date")
    found = wanted.select(*pair).join(rates, on=[*pair], how="inner")
    newest = found.with_columns(newest=nw.col("day").max().over(*pair))
    return newest.filter(nw.col("day") == nw.col("newest")).select(*pair, "rate")


def in_gbp(amounts: nw.LazyFrame, rates: nw.LazyFrame) -> nw.LazyFrame:
    """Convert amounts in other currencies.

    Args:
        amounts: rows with `currency`, `order_date` and `order_value_gbp` (Decimal, two decimals):
            the amount in that currency.
        rates: as for `rates_on`.

    Returns:
        The rows that have a rate, with `rate`, the amount as `order_value` and its value as
        `order_value_gbp` (Decimal(12,2)): `order_value * rate` to the penny, half a penny rounded
        up (of a refund down, so that it gives back what was counted); null where that is too large
        for the type.
    """
    pair = ("currency", "order_date")
    found = amounts.join(rates_on(amounts.select(*pair).unique(), rates), on=[*pair], how="inner")
    amount, value = nw.col("order_value"), nw.col("order_value_gbp")
    more = nw.when(amount < 0).then(nw.lit(-_TIE_BREAK)).otherwise(nw.lit(_TIE_BREAK))
    fits = nw.when((value < OUT_OF_RANGE_GBP) & (value > -OUT_OF_RANGE_GBP)).then(value)
    return (
        found.with_columns(order_value=nw.col("order_value_gbp"))
        .with_columns(order_value_gbp=(amount.cast(_WIDE) * nw.col("rate") + more).round(2))
        .with_columns(order_value_gbp=fits.cast(nw.Decimal(12, 2)))
    )
