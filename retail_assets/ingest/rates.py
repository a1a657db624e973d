"""Rates of currencies: those that a batch needs, and which rates a change of the file changes."""

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.transforms.currency import MAX_RATE_AGE_DAYS, rates_on

RATES = f"lake.{tables.CURRENCY_RATES.name}"

PAIR = "currency, order_date"


def applicable(source: str, wanted: str) -> str:
    """Return a query for rates as `transforms.currency` takes them.

    Args:
        source: a table or subquery with the columns of `currency_rates`.
        wanted: one with the `currency` of all amounts; other currencies are left out.
    """
    return (
        "SELECT day, currency, rate, day + age::INTEGER AS order_date"
        f" FROM {source}, range({MAX_RATE_AGE_DAYS + 1}) AS ages(age)"
        f" WHERE currency IN (SELECT currency FROM {wanted})"
    )


def counting(connection: duckdb.DuckDBPyConnection, wanted: str, source: str) -> str:
    """Return a query for the `currency`, `order_date` and `rate` of some amounts, where known.

    Args:
        connection: a connection to the lake.
        wanted: a table or subquery with `currency` and `order_date`.
        source: as for `applicable`.
    """
    pairs = connection.sql(f"SELECT DISTINCT {PAIR} FROM {wanted}")
    rates = connection.sql(applicable(source, wanted))
    found: str = rates_on(nw.from_native(pairs), nw.from_native(rates)).to_native().sql_query()
    return found


def differing(connection: duckdb.DuckDBPyConnection, known: str, source: str) -> str:
    """Return a query for the rows whose rate is not, or not any more, the one that counts.

    Args:
        connection: a connection to the lake.
        known: a table or subquery with `currency`, `order_date` and `rate` (null: none counts).
        source: as for `applicable`.
    """
    return (
        f"SELECT k.* FROM {known} AS k LEFT JOIN ({counting(connection, known, source)}) AS now"
        f" USING ({PAIR}) WHERE k.rate IS DISTINCT FROM now.rate"
    )
