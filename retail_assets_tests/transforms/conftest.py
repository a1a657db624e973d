"""Frames of each engine that the transforms must treat alike."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import duckdb
import narwhals as nw
import pandas as pd
import pyarrow as pa
import pytest

from retail_assets.tables import ENRICHED_EVENTS, INSTANT, Column, Table

Engine: TypeAlias = Callable[[pa.Table], nw.LazyFrame[Any]]
Rows: TypeAlias = Sequence[dict[str, Any]]


def on_pandas(table: pa.Table) -> nw.LazyFrame[Any]:
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return nw.from_native(frame).lazy()


def on_duckdb(connection: duckdb.DuckDBPyConnection) -> Engine:
    return lambda table: nw.from_native(connection.from_arrow(table))


@pytest.fixture(params=["duckdb", "pandas"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn: makes a frame of an Arrow table."""
    with duckdb.connect() as connection:
        yield on_pandas if request.param == "pandas" else on_duckdb(connection)


HAPPENED = Table(
    "happened", "", (*ENRICHED_EVENTS.columns, Column("happened_at", INSTANT, "When it happened."))
)
"""Events as `transforms.live_orders` takes them."""


def arrow(table: Table, rows: Rows) -> pa.Table:
    """Rows with the types of a table; columns that a row leaves out are null."""
    return pa.Table.from_pylist(list(rows), schema=_schema(table))


@cache
def _schema(table: Table) -> pa.Schema:
    with duckdb.connect() as connection:
        columns = ", ".join(f"{name} {type_}" for name, type_ in table.types.items())
        connection.execute(f"CREATE TABLE typed ({columns})")
        return connection.table("typed").to_arrow_table().schema


def result(frame: nw.LazyFrame[Any]) -> list[dict[str, Any]]:
    """The rows of a frame, nulls as None, in an order that depends on the values alone."""
    table = frame.collect(backend="pyarrow").to_native()
    # Of a filtered pandas frame its index comes along.
    columns = [name for name in table.column_names if name != "__index_level_0__"]
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in row.values()])
