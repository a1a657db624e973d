"""What a mart has: its tables, the watermark, and what a place for marts can do."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import duckdb

from retail_assets import tables
from retail_assets.errors import RetailAssetsError
from retail_assets.tables import Column, Table

if TYPE_CHECKING:
    import pyarrow as pa

WATERMARK = "retail_assets_watermark"

HERE, THERE, DAYS = (f"temp.main.mart_{name}" for name in ("here", "there", "days"))
"""Temporary tables: the rows of some days in the lake and in the mart, and the days that differ."""


class MartError(RetailAssetsError):
    """A mart that could not be published: it has the rows that it had."""


@dataclass(frozen=True)
class MartTable:
    """A table of the mart.

    `day` is the column of the business day, the first of `key`. `rows` gives the SELECT of the
    rows of some days, by a condition on that column. `sources` are the tables of the lake whose
    changes change rows, each with its column of the day and a condition on its rows.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rows: Callable[[str], str]
    sources: Mapping[Table, tuple[str, str]]
    day: str = "order_date"

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def schema(self) -> "pa.Schema":
        """The columns as Arrow has them."""
        import pyarrow as pa

        kinds = {
            "DATE": pa.date32(),
            "VARCHAR": pa.string(),
            "BIGINT": pa.int64(),
            tables.MONEY: pa.decimal128(12, 2),
            tables.TOTAL: pa.decimal128(18, 2),
        }
        return pa.schema({column.name: kinds[column.type] for column in self.columns})

    @cached_property
    def definition(self) -> str:
        """A text that differs if the same lake would give other columns or rows."""
        columns = [(column.name, column.type) for column in self.columns]
        return hashlib.sha256(f"{columns} {self.key} {self.rows('true')}".encode()).hexdigest()[:16]


def _of_table(table: Table) -> MartTable:
    columns = ", ".join(table.column_names)
    return MartTable(
        table.name,
        table.description,
        table.columns,
        table.key,
        lambda days: f"SELECT {columns} FROM {table.name} WHERE {days}",
        {table: (table.day_column, "true")},
    )


_OWN_EXPORT = f"table_name IN ('{tables.RAW_ORDERS.name}', '{tables.DAILY_REVENUE.name}')"

MART_TABLES = (
    _of_table(tables.DAILY_REVENUE),
    _of_table(tables.DAILY_REVENUE_BY_CATEGORY),
    MartTable(
        tables.REVENUE_NOW.name,
        tables.REVENUE_NOW.description,
        tables.REVENUE_NOW.columns,
        tables.DAILY_REVENUE.key,
        lambda days: tables.best_revenue(tables.DAILY_REVENUE, tables.LIVE_REVENUE, days),
        {
            tables.DAILY_REVENUE: ("order_date", "true"),
            tables.LIVE_REVENUE: ("order_date", "true"),
            tables.PUBLISHED_DAYS: ("day", _OWN_EXPORT),
        },
    ),
)

SOURCES = tuple(dict.fromkeys(source for mart in MART_TABLES for source in mart.sources))


@dataclass(frozen=True)
class Watermark:
    """Which state of which lake a table of the mart has.

    `lake_id` identifies the lake, `snapshot_id` and `snapshot_us` (its commit, in µs since 1970)
    the snapshot, `definition` the columns and the query of the table. `left_out` are days whose
    rows in the lake the mart cannot hold.
    """

    lake_id: str
    snapshot_id: int
    snapshot_us: int
    definition: str
    left_out: tuple[date, ...] = ()


@dataclass(frozen=True)
class PublishedTable:
    """The outcome for a table.

    `days` are those that were written, `rows` the number of rows that they have now, `left_out` the
    problem of each day that kept its rows, and `reason` why all days were compared, if they were.
    """

    days: tuple[date, ...]
    rows: int
    from_snapshot: int | None
    left_out: Mapping[date, str] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Published:
    """The outcome of a round: the `snapshot` that the mart has now, and each table's part."""

    mart: str
    snapshot: int
    seconds: float
    tables: Mapping[str, PublishedTable]

    @property
    def days(self) -> int:
        """How many days of all tables were written."""
        return sum(len(table.days) for table in self.tables.values())

    @property
    def rows(self) -> int:
        """How many rows these days have."""
        return sum(table.rows for table in self.tables.values())

    @property
    def problem(self) -> str | None:
        """The first days that were left out, if there are any."""
        found = [
            f"{name} {day}: {text}"
            for name, table in self.tables.items()
            for day, text in sorted(table.left_out.items())
        ]
        return f"{len(found)} days were left out, first of all {found[0]}" if found else None


class MartSession(Protocol):
    """A round on a place for marts, in which nobody else publishes to it."""

    def watermark(self, table: MartTable) -> Watermark | None:
        """The watermark of a table, if it was published."""
        ...

    def prepare(self, table: MartTable, *, ours: bool) -> str | None:
        """Make a table, or repair it, where that is needed.

        Args:
            table: which.
            ours: whether it is known to be the platform's.

        Returns:
            A sentence if the table is new, or was changed by somebody else; then all its days have
            to be compared.

        Raises:
            MartError: if there is a table of that name that cannot be the platform's.
        """
        ...

    def load(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: MartTable,
        days: Collection[date] | None,
    ) -> set[date]:
        """Fill `THERE` with the rows of some days (None: of all).

        Returns:
            Days that have to be written whatever these rows are.
        """
        ...

    def unfit(self, table: MartTable) -> str | None:
        """An SQL expression over `HERE`: why a row does not fit into the mart, or null."""
        ...

    def write(self, connection: duckdb.DuckDBPyConnection, table: MartTable) -> int:
        """Replace the rows of `DAYS` by those in `HERE`; returns how many these are."""
        ...

    def set_watermark(self, table: MartTable, watermark: Watermark) -> None:
        """Enter which state the table has, together with its rows or after them."""
        ...


class MartTarget(Protocol):
    """A place for marts.

    `name` is that of the asset, `kind` what it is, `shown` where it is, without a password.
    """

    name: str
    kind: str
    shown: str

    def session(self) -> AbstractContextManager[MartSession]:
        """Begin a round; what it wrote counts once it ends without an error.

        Raises:
            MartError: if the place cannot be reached or written to.
        """
        ...

    def watermarks(self) -> Mapping[str, Watermark]:
        """The watermarks, by table, without waiting for a round that is under way.

        Raises:
            MartError: if the place cannot be reached.
        """
        ...


def to_duckdb(
    connection: duckdb.DuckDBPyConnection,
    table: MartTable,
    batches: Iterator[list[tuple[Any, ...]]],
) -> set[date]:
    """Add rows to `THERE`; returns the days of rows that have other types than the table."""
    import pyarrow as pa

    odd: set[date] = set()
    for rows in batches:
        try:
            columns = list(zip(*rows, strict=True))
            arrays = [
                pa.array(column, kind)
                for column, kind in zip(columns, table.schema.types, strict=True)
            ]
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            odd.update(row[0] for row in rows)
            continue
        insert(connection, pa.table(arrays, schema=table.schema))
    return odd


def insert(connection: duckdb.DuckDBPyConnection, rows: "pa.Table") -> None:
    """Add rows to `THERE`."""
    connection.register("mart_rows", rows)
    connection.execute(f"INSERT INTO {THERE} SELECT * FROM mart_rows")
    connection.unregister("mart_rows")
