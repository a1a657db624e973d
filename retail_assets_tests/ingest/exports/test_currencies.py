"""Amounts of exports in other currencies count in GBP, by the rate of their day, or not at all."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retail_assets.errors import AuditError, RetailAssetsError
from retail_assets.ingest.exports import currencies
from retail_assets.ingest.exports.load import ingest
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.exports.reference import read_reference
from retail_assets.lake.connection import Lake
from retail_assets.mapping import ExportMapping
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, NewLake, WriteExport, order_row, write_export_to
from retail_assets_tests.ingest.exports.conftest import ExportLoader
from retail_assets_tests.rates import RATES, load_rates, write_rates

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)

LoadRates = Callable[..., None]
Write = Callable[..., Path]


@pytest.fixture
def load(loader: ExportLoader, settings: Settings) -> LoadRates:
    """Write currency_rates.csv and load it: rows of `2026-10-20,EUR,0.87`."""
    return partial(load_rates, loader.lake, loader.connection, settings)


@pytest.fixture
def write(write_export: WriteExport) -> Write:
    """Write an export of orders O0, O1, …, each of an amount and a currency."""
    return lambda *amounts, **days: write_export(*_export(*amounts, **days), header=WITH_CURRENCY)


WITH_CURRENCY = f"{HEADER},Currency"


def _export(
    *amounts: str, day: date = DAY, order_day: date | None = None
) -> tuple[date, list[str]]:
    pairs = [amount.split() for amount in amounts]
    return day, [
        f"{order_row(f'O{n}', order_day or day, order_value_gbp=value)},{currency}"
        for n, (value, currency) in enumerate(pairs)
    ]


def values(loader: ExportLoader, day: date = DAY) -> dict[str, Any]:
    """The value of each order of an export in GBP, or why its row was rejected."""
    found = loader.rows(
        f"SELECT order_id, order_value_gbp FROM raw_orders WHERE export_date = '{day}'"
        " UNION ALL BY NAME SELECT raw_text ->> 'order_id' AS order_id, reason"
        f" FROM rejected_orders WHERE export_date = '{day}'"
    )
    return {order: reason or Decimal(value) for order, value, reason in found}


def test_an_amount_counts_by_the_rate_of_its_day_to_the_penny(
    loader: ExportLoader, write: Write, load: LoadRates
) -> None:
    load("2026-10-20,eur,0.8675", "2026-10-20,JPY,0.005", "2026-10-20,USD,0.01")
    write("10.00 EUR", "1001 jpy", "0.50 USD", "1.50 USD", "7.00 GBP", "0.10 USD", "5.00 CHF")
    loader.ingest(DAY)
    assert values(loader) == {
        "O0": Decimal("8.68"),
        "O1": Decimal("5.01"),
        "O2": Decimal("0.01"),
        "O3": Decimal("0.02"),
        "O4": Decimal("7.00"),
        "O5": "not_positive",
        "O6": "unknown_currency",
    }
    assert loader.orders("extra ->> 'currency', extra ->> 'order_value'") == [
        ("EUR", "10.00"), ("JPY", "1001.00"), ("USD", "0.50"), ("USD", "1.50"), ("GBP", None),
    ]  # fmt: skip


def test_a_value_that_is_too_large_in_pounds_is_no_number(
    loader: ExportLoader, write: Write, load: LoadRates
) -> None:
    load("2026-10-20,KWD,2.5", "2026-10-20,XAU,999999.9999999999")
    write("9999999999.99 KWD", "3999999999.99 KWD", "9999999999.99 XAU")
    loader.ingest(DAY)
    assert values(loader) == {
        "O0": "invalid_number",
        "O1": Decimal("9999999999.98"),
        "O2": "invalid_number",
    }


def test_a_currency_of_all_rows_is_a_constant_of_the_mapping(
    loader: ExportLoader, settings: Settings, load: LoadRates
) -> None:
    fields = {name: name for name in HEADER.split(",")}
    mapping = ExportMapping.model_validate({"fields": fields | {"currency": {"constant": "eur"}}})
    load("2026-10-20,EUR,0.5")
    write_export_to(settings.exports_dir, DAY, [order_row("O0", DAY, order_value_gbp="7")])
    ingest(loader.lake, loader.connection, loader.exports_dir, [DAY], late_days=7, mapping=mapping)
    assert loader.orders("order_value_gbp, extra") == [
        (Decimal("3.50"), '{"currency":"EUR","order_value":"7.00"}')
    ]


def test_other_columns_of_a_converted_row_stay(
    loader: ExportLoader, write_export: WriteExport, load: LoadRates
) -> None:
    load("2026-10-20,EUR,0.5")
    row = f"{order_row('O0', DAY)},EUR,,blue"
    write_export(DAY, [row], header=f"{HEADER},currency,note,colour")
    loader.ingest(DAY)
    assert loader.orders("extra") == [
        ('{"note":null,"colour":"blue","currency":"EUR","order_value":"10.00"}',)
    ]


def test_the_last_rate_counts_for_seven_days(
    loader: ExportLoader, write: Write, load: LoadRates
) -> None:
    ages = {"AED": 0, "CAD": 2, "EUR": 7, "JPY": 8, "USD": -1}
    load(
        *(f"{DAY - A_DAY * age},{currency},0.5" for currency, age in ages.items()),
        *(f"{DAY - A_DAY * 30},{currency},3" for currency in ages),
    )
    write(*(f"10.00 {currency}" for currency in ages))
    loader.ingest(DAY)
    assert list(values(loader).values()) == [Decimal(5)] * 3 + ["unknown_currency"] * 2


def test_the_newest_rate_up_to_the_orders_own_day_counts(
    loader: ExportLoader, write: Write, load: LoadRates
) -> None:
    load(*(f"{DAY + A_DAY * n},EUR,{rate}" for n, rate in ((-5, 2), (-2, 3), (0, 4), (1, 5))))
    write("10.00 EUR", order_day=DAY - A_DAY)
    loader.ingest(DAY)
    assert values(loader) == {"O0": Decimal("30.00")}


def test_lines_and_the_limit_of_an_order_go_by_the_value_in_pounds(
    loader: ExportLoader, write_export: WriteExport, load: LoadRates
) -> None:
    load("2026-10-20,JPY,0.005", "2026-10-20,EUR,0.5")
    rows = [
        f"{order_row('A', DAY, product_id='P1', order_value_gbp='20.00')},JPY",
        f"{order_row('A', DAY, product_id='P2', order_value_gbp='100000')},JPY",
        f"{order_row('A', DAY, product_id='P1', order_value_gbp='0.10')},GBP",
    ]
    write_export(DAY, rows, header=WITH_CURRENCY)
    result = ingest(
        loader.lake, loader.connection, loader.exports_dir, [DAY], late_days=7, max_order_gbp=600
    )
    assert result.raw.failed == {}
    # The first and the last row are the same product and value: one line.
    assert loader.orders("product_id, line_number, order_value_gbp") == [
        ("P2", 1, Decimal("500.00")),
        ("P1", 2, Decimal("0.10")),
    ]
    write_export(DAY, [f"{order_row('A', DAY, order_value_gbp='1300')},EUR"], header=WITH_CURRENCY)
    result = ingest(
        loader.lake, loader.connection, loader.exports_dir, [DAY], late_days=7, max_order_gbp=600
    )
    assert "order A is worth 650.00 GBP" in result.raw.failed[DAY]


def ingest_pending(loader: ExportLoader, settings: Settings) -> list[date]:
    days = list(pending_exports(settings))
    loader.ingest(*days)
    assert pending_exports(settings) == {}
    return days


def test_a_rate_that_comes_late_ingests_the_exports_again_that_it_concerns(
    loader: ExportLoader, settings: Settings, write: Write, load: LoadRates
) -> None:
    load(f"{DAY},EUR,0.5")
    write("10.00 EUR", "9.00 CHF")
    write("10.00 EUR", day=DAY + A_DAY)
    write("10.00 GBP", day=DAY + 2 * A_DAY)
    assert len(ingest_pending(loader, settings)) == 3
    before = loader.versions()
    rates = [f"{DAY},EUR,0.5", f"{DAY + 2 * A_DAY},EUR,0.7", f"{DAY + A_DAY},CHF,2"]
    load(*rates)
    assert pending_exports(settings) == {}
    load(*rates, f"{DAY - 7 * A_DAY},CHF,3")
    assert ingest_pending(loader, settings) == [DAY]
    assert values(loader) == {"O0": Decimal("5.00"), "O1": Decimal("27.00")}
    assert {day for day, version in loader.versions().items() if version > before[day]} == {DAY}


def test_a_rate_that_changes_or_goes_ingests_the_exports_again(
    loader: ExportLoader, settings: Settings, write: Write, load: LoadRates
) -> None:
    load(f"{DAY},EUR,0.5", f"{DAY},CHF,2")
    write("10.00 EUR")
    write("10.00 EUR", day=DAY + A_DAY)
    write("10.00 CHF", day=DAY + 2 * A_DAY)
    ingest_pending(loader, settings)
    load(f"{DAY},EUR,0.5", f"{DAY + A_DAY},EUR,0.6", f"{DAY},CHF,2")
    assert ingest_pending(loader, settings) == [DAY + A_DAY]
    assert values(loader, DAY + A_DAY) == {"O0": Decimal("6.00")}
    load(f"{DAY},EUR,0.7", f"{DAY + A_DAY},EUR,0.6", f"{DAY},CHF,2")
    assert ingest_pending(loader, settings) == [DAY]
    assert values(loader) == {"O0": Decimal("7.00")}
    load(f"{DAY},EUR,0.7", f"{DAY + A_DAY},EUR,0.6", max_shrink=1)
    assert ingest_pending(loader, settings) == [DAY + 2 * A_DAY]
    assert values(loader, DAY + 2 * A_DAY) == {"O0": "unknown_currency"}


@dataclass(frozen=True)
class LatelyRated(Lake):
    """A lake that gets other rates right before the first transaction."""

    before: list[Callable[[], None]] = field(default_factory=list)

    @contextmanager
    def transaction(self, connection: duckdb.DuckDBPyConnection, message: str) -> Iterator[None]:
        while self.before:
            self.before.pop()()
        with super().transaction(connection, message):
            yield


def test_rates_that_come_while_an_export_is_read_ingest_it_again(
    loader: ExportLoader, settings: Settings, write: Write
) -> None:
    def change() -> None:
        with loader.lake.connect() as connection:
            load_rates(loader.lake, connection, settings, f"{DAY},EUR,0.5")

    own = {name: getattr(loader.lake, name) for name in Lake.__dataclass_fields__}
    lake = LatelyRated(**own, before=[change])
    write("10.00 EUR")
    ingest(lake, loader.connection, loader.exports_dir, [DAY], late_days=7)
    assert values(loader) == {"O0": "unknown_currency"}
    assert ingest_pending(loader, settings) == [DAY]
    assert values(loader) == {"O0": Decimal("5.00")}


def test_rows_that_were_rejected_before_rates_were_known_of_are_ingested_again(
    loader: ExportLoader, settings: Settings, write: Write, load: LoadRates
) -> None:
    write("10.00 EUR")
    loader.ingest(DAY)
    loader.rows("DELETE FROM export_currencies")
    load(f"{DAY},EUR,0.5")
    assert ingest_pending(loader, settings) == [DAY]
    assert values(loader) == {"O0": Decimal("5.00")}


@pytest.mark.slow
def test_the_order_of_arrival_of_exports_and_rates_makes_no_difference(
    tmp_path: Path, new_lake: NewLake
) -> None:
    rates = [[f"{DAY},EUR,0.5"], [f"{DAY},EUR,0.6", f"{DAY - A_DAY},CHF,2", f"{DAY + A_DAY},EUR,1"]]

    def export(settings: Settings, n: int) -> None:
        day, rows = _export("10.00 EUR", "10.00 CHF", "7.00 GBP", "5.00 SEK", day=DAY + A_DAY * n)
        write_export_to(settings.exports_dir, day, rows, header=WITH_CURRENCY)

    def outcome(n: int, steps: tuple[str, ...]) -> list[list[tuple[Any, ...]]]:
        settings = Settings(data_dir=tmp_path / str(n), threads=1)
        lake = new_lake(settings.data_dir)
        with lake.connect() as connection:
            loader, seen = ExportLoader(lake, connection, settings.exports_dir), 0
            for step in steps:
                if step == "rates":
                    load_rates(lake, connection, settings, *rates[seen])
                    seen += 1
                else:
                    export(settings, int(step))
                loader.ingest(*pending_exports(settings))
            assert pending_exports(settings) == {}
            return [
                loader.rows(f"SELECT * FROM {table} ORDER BY ALL")
                for table in ("raw_orders", "rejected_orders", "export_currencies")
            ]

    rates_first = outcome(0, ("rates", "rates", "0", "1"))
    assert [len(rows) for rows in rates_first] == [6, 2, 6]
    # One export before all rates, one between them.
    assert outcome(1, ("1", "rates", "0", "rates")) == rates_first


def test_an_export_that_names_no_currency_any_more_has_no_entries(
    loader: ExportLoader, settings: Settings, write: Write
) -> None:
    write("10.00 EUR")
    loader.ingest(DAY)
    assert "1 (EUR of 2026-10-20)" in (currencies.without_rate(loader.connection) or "")
    write("10.00 GBP")
    loader.ingest(DAY)
    assert loader.rows("FROM export_currencies") == []
    assert currencies.without_rate(loader.connection) is None


def test_advice_names_the_currencies_without_a_rate_and_their_days(
    loader: ExportLoader, write: Write, load: LoadRates
) -> None:
    load(f"{DAY},EUR,0.5")
    write("1.00 CHF", "1.00 CHF", "1.00 EUR")
    write("1.00 CHF", *(f"1.00 A{n}" for n in range(5)), day=DAY + A_DAY)
    loader.ingest(DAY, DAY + A_DAY)
    assert currencies.without_rate(loader.connection) == (
        "Rows in currencies without a rate: 8 (CHF of 2026-10-20 to 2026-10-21, A0 of 2026-10-21,"
        " A1 of 2026-10-21, A2 of 2026-10-21, A3 of 2026-10-21 and 1 more currencies);"
        " currency_rates.csv lacks their rates: add them, and the exports are ingested again by"
        " themselves."
    )
    assert currencies.without_rate(loader.connection, DAY, DAY) is not None
    assert currencies.without_rate(loader.connection, DAY - A_DAY, DAY - A_DAY) is None


def test_rates_are_read_as_they_are_written(settings: Settings) -> None:
    write_rates(settings, [" 2026-10-20 , eur ,00.86333419666753", "2026-10-21,JPY,0.0000000001"])
    found = read_reference(settings.reference_dir, RATES).to_pylist()
    assert [(row["currency"], row["rate"]) for row in found] == [
        ("EUR", Decimal("0.8633341967")),
        ("JPY", Decimal("0.0000000001")),
    ]


@pytest.mark.parametrize(
    "rate", ["0", "0.00", "-1", "1e-3", "cheap", "0,87", "0.00000000001", "1000000", "NaN", "+1"]
)
def test_a_rate_that_is_no_number_above_zero_refuses_the_file(
    settings: Settings, rate: str
) -> None:
    write_rates(settings, ["2026-10-20,EUR,0.5", f'2026-10-20,USD,"{rate}"'])
    told = rf"rate must be a number above zero .* {re.escape(repr(rate))}"
    with pytest.raises(RetailAssetsError, match=told):
        read_reference(settings.reference_dir, RATES)


def test_a_file_with_a_gap_or_two_rates_of_a_day_leaves_the_table_as_it_was(
    loader: ExportLoader, load: LoadRates
) -> None:
    load("2026-10-19,EUR,0.5")
    for row in ("2026-10-20,,1", "2026-10-20,EUR,", ",EUR,1", "2026-10-20,eur,2"):
        with pytest.raises(AuditError, match="currency_rates was not published"):
            load("2026-10-19,EUR,0.5", "2026-10-20,EUR,0.5", row)
    assert loader.rows("SELECT count(*) FROM currency_rates") == [(1,)]


def test_rates_of_earlier_days_may_not_be_missing(loader: ExportLoader, load: LoadRates) -> None:
    kept = [f"{DAY + A_DAY * n},EUR,0.5" for n in range(9)]
    load(f"{DAY - A_DAY},EUR,0.5", *kept)
    with pytest.raises(AuditError, match=r"1 of the 10 rates .* Keep the rates of earlier days"):
        load(*kept)
    assert loader.rows("SELECT count(*) FROM currency_rates") == [(10,)]
    load(*kept, max_shrink=1)
    assert loader.rows("SELECT count(*) FROM currency_rates") == [(9,)]


def test_refunds_and_charges_are_converted_like_values(
    loader: ExportLoader, settings: Settings, load: LoadRates
) -> None:
    fields = {name: name for name in HEADER.split(",")}
    mapping = ExportMapping.model_validate(
        {
            "lines": "rows",
            "refunds": "refund_day",
            "charges": {"shipping": {"from": "Shipping", "spread": True}, "tax": "Tax"},
            "fields": fields | {"currency": "Currency"},
        }
    )
    load("2026-10-20,USD,0.01", "2026-10-20,EUR,0.5", "2026-10-20,XAU,900000")
    rows = [
        f"{order_row('A', DAY, order_value_gbp='1.50')},USD,,",
        f"{order_row('A', DAY, order_value_gbp='-1.50')},USD,,",
        f"{order_row('B', DAY, order_value_gbp='10.00')},EUR,8.00,3.33",
        f"{order_row('C', DAY, order_value_gbp='0.01')},XAU,99999.00,",
    ]
    write_export_to(settings.exports_dir, DAY, rows, header=f"{HEADER},Currency,Shipping,Tax")
    ingest(loader.lake, loader.connection, loader.exports_dir, [DAY], late_days=7, mapping=mapping)
    assert loader.orders("order_id, order_value_gbp") == [
        ("A", Decimal("0.02")), ("A", Decimal("-0.02")), ("B", Decimal("9.00")),
    ]  # fmt: skip
    assert loader.orders("extra -> 'order_charges'")[2] == ('{"shipping":4.0,"tax":1.67}',)
    assert loader.rejected() == [(5, "invalid_number", "shipping")]
