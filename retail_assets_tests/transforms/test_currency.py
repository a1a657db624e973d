"""The rules of currencies give equal results on each engine, and those of exact arithmetic."""

from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import duckdb
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.tables import MONEY, RATE, Column, Table
from retail_assets.transforms.currency import MAX_RATE_AGE_DAYS, OUT_OF_RANGE_GBP, in_gbp
from retail_assets_tests.transforms.conftest import Engine, arrow, on_duckdb, on_pandas, result

AMOUNTS = Table(
    "amounts",
    "",
    (
        Column("row_number", "BIGINT", ""),
        Column("order_date", "DATE", ""),
        Column("currency", "VARCHAR", ""),
        Column("order_value_gbp", MONEY, ""),
    ),
)
APPLICABLE = Table(
    "applicable",
    "",
    (
        Column("day", "DATE", ""),
        Column("currency", "VARCHAR", ""),
        Column("rate", RATE, ""),
        Column("order_date", "DATE", ""),
    ),
)
DAYS = [date(2026, 10, 24) + timedelta(days=n) for n in range(12)]

days, codes = st.sampled_from(DAYS), st.sampled_from(["EUR", "JPY", "USD"])
amounts = st.lists(
    st.tuples(days, codes, st.decimals("-9999999999.99", "9999999999.99", places=2)), max_size=20
)
rates = st.dictionaries(
    st.tuples(days, codes),
    st.decimals("0.0000000001", "999999.9999999999", places=10)
    | st.sampled_from([Decimal("0.5"), Decimal("0.005"), Decimal("0.01")]),
    max_size=12,
)


def expected(
    value: Decimal, currency: str, day: date, known: dict[tuple[date, str], Decimal]
) -> tuple[Decimal | None, Decimal] | None:
    for age in range(MAX_RATE_AGE_DAYS + 1):
        rate = known.get((day - timedelta(days=age), currency))
        if rate is not None:
            pounds = (value * rate).quantize(Decimal("0.01"), ROUND_HALF_UP)
            return (pounds if abs(pounds) < OUT_OF_RANGE_GBP else None, rate)
    return None


HALF_PENNIES = [(DAYS[0], "EUR", Decimal(n) / 2) for n in range(-5, 6)]


@example(HALF_PENNIES, {(DAYS[0], "EUR"): Decimal("0.01")})
@settings(max_examples=16)
@given(amounts, rates)
def test_engines_convert_alike_and_exactly(
    found: list[tuple[date, str, Decimal]], known: dict[tuple[date, str], Decimal]
) -> None:
    rows = [
        {"row_number": n, "order_date": day, "currency": currency, "order_value_gbp": value}
        for n, (day, currency, value) in enumerate(found)
    ]
    applicable = [
        {"day": day, "currency": code, "rate": rate, "order_date": day + timedelta(days=age)}
        for (day, code), rate in known.items()
        for age in range(MAX_RATE_AGE_DAYS + 1)
    ]

    def converted(engine: Engine) -> dict[int, Any]:
        frame = in_gbp(engine(arrow(AMOUNTS, rows)), engine(arrow(APPLICABLE, applicable)))
        return {
            row["row_number"]: (row["order_value_gbp"], row["rate"], row["order_value"])
            for row in result(frame)
        }

    wanted = {
        n: (*pounds, value)
        for n, (day, currency, value) in enumerate(found)
        if (pounds := expected(value, currency, day, known)) is not None
    }
    with duckdb.connect() as connection:
        assert converted(on_duckdb(connection)) == wanted
    assert converted(on_pandas) == wanted
