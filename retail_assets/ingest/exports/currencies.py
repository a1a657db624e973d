"""Amounts of exports in other currencies: converted, and entered into `export_currencies`.

An export whose rates have changed since, or have come at last, is ingested again like one whose
file has changed. So the order in which exports and rates arrive makes no difference.
"""

from collections.abc import Collection
from datetime import date

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.ingest.rates import PAIR, RATES, applicable, differing
from retail_assets.transforms import currency, orders

LEDGER = f"lake.{tables.EXPORT_CURRENCIES.name}"
STAGED = "staged_currencies"
COLUMNS = ", ".join(f"{name} {type_}" for name, type_ in tables.EXPORT_CURRENCIES.types.items())

SHOWN_CURRENCIES = 5


def convert(connection: duckdb.DuckDBPyConnection, rows: str, days: str) -> None:
    """Convert typed export rows by the rates that the lake has, and note each currency and day.

    Args:
        connection: with the table of rows and `staged_currencies` (`COLUMNS`).
        rows: the temporary table; values and charges that have a rate are in GBP there from now
            on, and `extra` has the `currency` and the amount in it as `order_value`.
        days: the export dates to convert, as SQL.
    """
    found = connection.sql(
        "SELECT rowid AS row_number, export_date, order_date, currency, order_value_gbp, charges"
        f" FROM {rows} WHERE export_date IN ({days}) AND currency IS NOT NULL"
    )
    foreign = nw.from_native(found).filter(orders.is_foreign("currency")).to_native()
    connection.execute(f"CREATE OR REPLACE TEMP TABLE foreign_rows AS {foreign.sql_query()}")
    amounts = connection.table("temp.main.foreign_rows")
    if not amounts.limit(1).fetchone():
        return
    rates = nw.from_native(connection.sql(applicable(RATES, "temp.main.foreign_rows")))
    pairs = connection.sql(f"SELECT DISTINCT {PAIR} FROM temp.main.foreign_rows")
    known = currency.rates_on(nw.from_native(pairs), rates).to_native().sql_query()
    connection.execute(
        f"INSERT INTO {STAGED} BY NAME SELECT export_date, order_date, currency,"
        " count(*) AS row_count, any_value(rate) AS rate FROM temp.main.foreign_rows"
        f" LEFT JOIN ({known}) USING ({PAIR}) WHERE order_date IS NOT NULL GROUP BY ALL"
    )
    charges = connection.sql(
        "SELECT row_number, order_date, currency, e.key AS charge,"
        f" TRY_CAST(e.value AS {tables.MONEY}) AS order_value_gbp"
        " FROM temp.main.foreign_rows, json_each(charges) AS e"
        " WHERE charges IS NOT NULL AND e.type <> 'NULL'"
    )
    in_gbp = currency.in_gbp(nw.from_native(charges), rates).to_native().sql_query()
    # A charge that is too large in GBP is as unreadable as one that is no number.
    connection.execute(
        f"UPDATE {rows} SET charges = c.charges, unreadable_charge = coalesce(unreadable_charge,"
        " c.too_large) FROM (SELECT row_number, to_json(map_from_entries("
        "list((charge, order_value_gbp) ORDER BY charge)))::VARCHAR AS charges,"
        " min(charge) FILTER (order_value_gbp IS NULL) AS too_large"
        f" FROM ({in_gbp}) GROUP BY row_number) AS c WHERE {rows}.rowid = c.row_number"
    )
    converted = currency.in_gbp(nw.from_native(amounts), rates).to_native().sql_query()
    connection.execute(
        f"UPDATE {rows} SET order_value_gbp = c.order_value_gbp, currency = '{orders.CURRENCY}',"
        " extra = json_merge_patch(coalesce(extra, '{}'), json_object('currency', c.currency,"
        f" 'order_value', c.order_value::VARCHAR)) FROM ({converted}) AS c"
        f" WHERE {rows}.rowid = c.row_number"
    )


def enter(connection: duckdb.DuckDBPyConnection, known: Collection[date]) -> list[date]:
    """In a transaction, replace the entries of exports by what is staged.

    Args:
        connection: with `staged_currencies`.
        known: the exports among those staged that the ledger may have entries of.

    Returns:
        The exports that have other rates than those of now: these came after they were staged.
    """
    if known:
        of_known = f"FROM {LEDGER} WHERE export_date IN (SELECT unnest(?::DATE[]))"
        if connection.execute(f"SELECT 1 {of_known} LIMIT 1", [list(known)]).fetchone():
            connection.execute(f"DELETE {of_known}", [list(known)])
    if not connection.execute(f"SELECT 1 FROM {STAGED} LIMIT 1").fetchone():
        return []
    connection.execute(f"INSERT INTO {LEDGER} BY NAME FROM {STAGED}")
    return _export_dates(connection, STAGED, RATES)


def ingest_again(connection: duckdb.DuckDBPyConnection, days: Collection[date]) -> None:
    """In a transaction, have exports ingested again: they are pending from now on."""
    if days:
        connection.execute(
            "UPDATE lake.export_files SET content_hash = '', modified_ns = 0"
            " WHERE export_date IN (SELECT unnest(?::DATE[]))",
            [sorted(days)],
        )


def restate(connection: duckdb.DuckDBPyConnection, staged: str, changed: str) -> None:
    """In the transaction that replaces the rates, have the exports that it concerns ingested again.

    Args:
        connection: in that transaction.
        staged: the table of the rates to come.
        changed: one with the `currency` and `day` of each rate that is new, gone or different.
    """
    concerned = (
        f"(SELECT * FROM {LEDGER} WHERE currency IN (SELECT currency FROM {changed})"
        f" AND order_date BETWEEN (SELECT min(day) FROM {changed})"
        f" AND (SELECT max(day) + {currency.MAX_RATE_AGE_DAYS} FROM {changed}))"
    )
    days = set(_export_dates(connection, concerned, staged))
    # Earlier releases rejected such rows, and made no entry.
    unnoted = connection.execute(
        "SELECT DISTINCT export_date FROM lake.rejected_orders WHERE reason = 'unknown_currency'"
        f" AND export_date >= (SELECT min(day) FROM {changed})"
        f" AND export_date NOT IN (SELECT export_date FROM {LEDGER})"
    ).fetchall()
    ingest_again(connection, days | {day for (day,) in unnoted})


def _export_dates(connection: duckdb.DuckDBPyConnection, known: str, rates: str) -> list[date]:
    found = connection.execute(
        f"SELECT DISTINCT export_date FROM ({differing(connection, known, rates)})"
    ).fetchall()
    return [day for (day,) in found]


def without_rate(
    connection: duckdb.DuckDBPyConnection, first: date | None = None, last: date | None = None
) -> str | None:
    """Advice on rows of exports whose currency has no rate, if there are any.

    Args:
        connection: a connection to the lake.
        first: the first export date to look at; None: all.
        last: the last one, included.
    """
    try:
        found = connection.execute(
            "SELECT currency, sum(row_count), min(order_date), max(order_date)"
            f" FROM {LEDGER} WHERE rate IS NULL AND (?::DATE IS NULL OR export_date BETWEEN ? AND"
            " ?) GROUP BY currency ORDER BY sum(row_count) DESC, currency",
            [first, first, last],
        ).fetchall()
    except duckdb.CatalogException:
        # A lake that nobody has written to since the table was added.
        return None
    if not found:
        return None
    shown = [
        f"{name} of {start if start == end else f'{start} to {end}'}"
        for name, _, start, end in found[:SHOWN_CURRENCIES]
    ]
    more = len(found) - len(shown)
    return (
        f"Rows in currencies without a rate: {sum(rows for _, rows, *_ in found):,}"
        f" ({', '.join(shown)}{f' and {more} more currencies' if more else ''});"
        f" {tables.CURRENCY_RATES.name}.csv lacks their rates: add them, and the exports are"
        " ingested again by themselves."
    )
