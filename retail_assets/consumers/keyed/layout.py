"""What the keyed state has: rows of which tables of the lake, found by which columns.

SQLite has integers, texts and floating-point numbers: money is kept in whole pence, days since 1970
and microseconds since 1970, so that each value comes back as it was.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from retail_assets import tables
from retail_assets.consumers.own_rows import STAMP
from retail_assets.tables import INSTANT, Table

if TYPE_CHECKING:
    import pyarrow as pa

APPLICATION = 0x7265_7461
"""What the header of the SQLite file says of whose it is."""

_PENCE = "0.01::DECIMAL(3,2)"


@dataclass(frozen=True)
class Kept:
    """A table of the lake that the state has by key: some of its columns, and how to find rows."""

    table: Table
    columns: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    @property
    def selected(self) -> str:
        """The columns, as a list of SQL."""
        return ", ".join(self.columns)

    @cached_property
    def decoded(self) -> str:
        """A SELECT list that takes rows of `arrow` back to the columns."""
        return ", ".join(_decoded(name, self.table.types[name]) for name in self.columns)

    def arrow(self, rows: list[tuple[object, ...]]) -> "pa.Table":
        """Stored rows as an Arrow table, for `decoded`."""
        import pyarrow as pa

        columns = list(zip(*rows, strict=True)) or [()] * len(self.columns)
        types = [_arrow_type(self.table.types[name]) for name in self.columns]
        arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
        return pa.table(arrays, names=list(self.columns))

    def statements(self) -> tuple[str, list[str]]:
        """The statement that makes its table in SQLite, and those for its indexes.

        Indexes are made when the rows are there: to keep them in order meanwhile takes many times
        longer.
        """
        key, *others = (", ".join(index) for index in (self.table.key, *self.indexes))
        columns = ", ".join(
            f"{name} {_stored_type(self.table.types[name])}" for name in self.columns
        )
        return f"CREATE TABLE {self.name} ({columns})", [
            f"CREATE UNIQUE INDEX {self.name}_key ON {self.name} ({key})",
            *(
                f"CREATE INDEX {self.name}_{number} ON {self.name} ({index})"
                for number, index in enumerate(others)
            ),
        ]


def encoded(table: Table, columns: Iterable[str]) -> str:
    """A SELECT list of columns of a table as SQLite stores them."""
    return ", ".join(_encoded(name, table.types[name]) for name in columns)


def _encoded(name: str, type_: str) -> str:
    if type_ in (INSTANT, "TIMESTAMP"):
        return f"epoch_us({name})"
    if type_ == "DATE":
        return f"{name} - DATE '1970-01-01'"
    if type_.startswith("DECIMAL"):
        return f"({name}::DECIMAL(38,2) * 100)::BIGINT"
    return f"{name}::BIGINT" if type_ == "BOOLEAN" else name


def _decoded(name: str, type_: str) -> str:
    if type_.startswith("DECIMAL"):
        return f"({name}::DECIMAL(20,0) * {_PENCE})::{type_} AS {name}"
    return f"{name}::{type_} AS {name}"


def _stored_type(type_: str) -> str:
    return {"VARCHAR": "TEXT", "DOUBLE": "DOUBLE"}.get(type_, "BIGINT")


def _arrow_type(type_: str) -> "pa.DataType":
    import pyarrow as pa

    types: Mapping[str, pa.DataType] = {
        INSTANT: pa.timestamp("us", "UTC"),
        "TIMESTAMP": pa.timestamp("us"),
        "DATE": pa.date32(),
        "VARCHAR": pa.string(),
        "DOUBLE": pa.float64(),
    }
    return types.get(type_, pa.int64())


def _own(table: Table, *indexes: tuple[str, ...]) -> Kept:
    return Kept(table, tuple(name for name in table.column_names if name != STAMP), indexes)


EVENTS = Kept(
    tables.ENRICHED_EVENTS,
    (
        *("event_id", "order_id", "customer_id", "product_id", "region", "status"),
        *("order_value_gbp", "quantity", "event_timestamp", "order_date", "product_category"),
        *("home_region", "lines", "extra", "position", "received_date", "received_at"),
    ),
    (("order_id",), ("customer_id",)),
)
_STOCK = (("product_id", "sold_at"), ("product_id", "returned_at"))
OWN = (
    _own(tables.LIVE_ORDERS, *_STOCK),
    _own(tables.LIVE_ORDER_LINES, *_STOCK),
    _own(tables.LIVE_REVENUE),
    _own(tables.LIVE_REVENUE_BY_CATEGORY),
    _own(tables.LIVE_REVENUE_MINUTES, ("minute",)),
    _own(tables.DEAD_LETTER_COUNTS),
    _own(tables.INVENTORY_LEVELS),
    _own(tables.STOCK_ALERTS, ("product_id",)),
    _own(tables.FRAUD_ALERTS, ("customer_id",)),
)
"""The consumers' own tables: what they have written."""

KEPT: Mapping[str, Kept] = {kept.name: kept for kept in (EVENTS, *OWN)}

STOCK_DAYS = (
    "CREATE TABLE stock_days (product_id TEXT, day BIGINT, taken BIGINT, back BIGINT,"
    " PRIMARY KEY (product_id, day)) WITHOUT ROWID"
)
"""What sales took from the stock of a product on a day (days since 1970, in UTC), and what came
back: nothing of the lake has it, but it follows from the live orders."""

POSITION = (
    "CREATE TABLE position (layout TEXT, lake TEXT, events BIGINT, own BIGINT, own_us BIGINT,"
    " offsets TEXT)"
)
"""One row: where the state is. See `store.Position`."""


def layout_of(since: str) -> str:
    """What a state must have been made for; `since` is the day of the opening stock."""
    texts = [STOCK_DAYS, POSITION, since]
    for kept in KEPT.values():
        table, indexes = kept.statements()
        texts += [table, *indexes, encoded(kept.table, kept.columns)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
