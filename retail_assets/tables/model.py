"""Tables, columns and views of the lake, and the types of money and times."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

MONEY = "DECIMAL(12,2)"
TOTAL = "DECIMAL(18,2)"
"""A sum of money: wider than its rows, so that a day of many or of huge values fits."""
RATE = "DECIMAL(16,10)"
"""GBP for one unit of a currency."""
INSTANT = "TIMESTAMP WITH TIME ZONE"

MASKED = "•••"
"""What people see in place of a personal value."""

Feed = Literal["orders"]


@dataclass(frozen=True)
class Column:
    """A column: its SQL type, what it means, and from which columns it is made.

    `derived_from` has `table.column` names; `personal` marks columns that identify a customer and
    are masked wherever rows are shown outside the lake. `default` is the SQL value of rows that are
    older than the column; without one they have null. `when_added` is a statement to execute after
    an older table was given the column.
    """

    name: str
    type: str
    description: str
    nullable: bool = False
    derived_from: tuple[str, ...] = ()
    personal: bool = False
    default: str | None = None
    when_added: str | None = None


def from_column(
    source: str, type_: str, description: str, *, nullable: bool = False, personal: bool = False
) -> Column:
    """A column that is made from a column of the same name, `table.column`."""
    name = source.partition(".")[2]
    return Column(name, type_, description, nullable, (source,), personal)


@dataclass(frozen=True)
class Table:
    """A table of the lake.

    `day` is the column of the daily partition (physically the table is partitioned by its month).
    No two rows share their `key`. `measures` are the columns whose sums describe a day. A change of
    the outside data `feed` makes a published day stale. If a table is `followed`, others act on
    each of its changes, so its files are never rewritten; see `lake.compaction`.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    day: str | None = None
    measures: tuple[str, ...] = ()
    feed: Feed | None = None
    group: str = "ledger"
    followed: bool = False

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def types(self) -> Mapping[str, str]:
        """The SQL type of each column."""
        return {column.name: column.type for column in self.columns}

    @property
    def day_column(self) -> str:
        """The partition column of a table that has one.

        Raises:
            TypeError: for a table that has none.
        """
        if self.day is None:
            raise TypeError(f"{self.name} is not partitioned by day")
        return self.day


@dataclass(frozen=True)
class View:
    """A view of the lake: its columns, the query that it stands for, and its group in Dagster."""

    name: str
    description: str
    columns: tuple[Column, ...]
    query: str
    group: str = "answers"
