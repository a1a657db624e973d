"""Staging: the rows of a frame in a temporary table, with the columns and types of their table."""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import Any

import duckdb
import narwhals as nw

from retail_assets.errors import AuditError
from retail_assets.lake.failures import bisect
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.tables import Table


def stage_days(
    read: SnapshotRead,
    table: Table,
    frame: Any,
    days: Sequence[date],
    *,
    only_days: bool,
) -> dict[date, str]:
    """Stage the rows of a frame; returns the problem of each day whose values cannot be computed.

    A value that does not fit its type fails a whole statement, and the transaction that keeps the
    reads on one snapshot. So the failing days are found first, and the others staged afterwards.
    """
    connection = read.connection
    try:
        stage(connection, table, frame, days if only_days else None)
    except duckdb.DataError as error:
        read.abort()
        failed = _failing_days(connection, table, frame, days)
        if not failed:
            raise unpublished(table, error) from error
    else:
        return {}
    read.begin()
    try:
        good = [day for day in days if day not in failed]
        stage(connection, table, frame, good if only_days else None, without=list(failed))
    except duckdb.DataError as error:
        raise unpublished(table, error) from error
    return {day: not_published(table, day, text) for day, text in failed.items()}


def _failing_days(
    connection: duckdb.DuckDBPyConnection, table: Table, frame: Any, days: Sequence[date]
) -> dict[date, str]:
    """The days whose rows alone cannot be computed, and why; in no transaction."""

    def attempt(some: Sequence[date]) -> duckdb.DataError | None:
        try:
            stage(connection, table, frame, some)
        except duckdb.DataError as error:
            return error
        connection.execute(f"DROP TABLE temp.main.staged_{table.name}")
        return None

    return {day: _reason(error) for day, error in bisect(days, attempt)}


def stage(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    frame: Any,
    only_days: Collection[date] | None,
    *,
    without: Collection[date] = (),
) -> None:
    """Write the rows of a frame to a temporary table.

    Raises:
        AuditError: for columns or types that are not the table's.
        duckdb.DataError: for a value that cannot be computed, or does not fit.
    """
    source = f"unstaged_{table.name}"
    connection.register(source, nw.to_native(frame, pass_through=True))
    try:
        _stage_rows(connection, table, source, only_days, without)
    finally:
        connection.unregister(source)


def _stage_rows(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    source: str,
    only_days: Collection[date] | None,
    without: Collection[date],
) -> None:
    found = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    types = {name: type_ for name, type_, *_ in found}
    for name in _misfits(table, types):
        # pandas and Arrow cannot tell the type of a column without a value.
        (empty,) = one_row(connection, f"SELECT count({name}) = 0 FROM {source}")
        if empty:
            types[name] = table.types[name]
    _check_schema(table, types)
    select = ", ".join(f"CAST({name} AS {type_}) AS {name}" for name, type_ in table.types.items())
    conditions: list[str] = []
    parameters: list[object] = []
    if only_days is not None:
        conditions += [
            f"{table.day_column} BETWEEN ? AND ?",
            f"{table.day_column} IN (SELECT unnest(?::DATE[]))",
        ]
        nothing = date(1, 1, 1)
        parameters += [
            min(only_days, default=nothing),
            max(only_days, default=nothing),
            list(only_days),
        ]
    # Compared with constants DuckDB filters before it computes. Rows without a day stay: they fail
    # the audit.
    conditions += [
        f"({table.day_column} IS NULL OR {table.day_column} <> DATE '{day}')" for day in without
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    connection.execute(
        f"CREATE TEMP TABLE staged_{table.name} AS SELECT {select} FROM {source}{where}", parameters
    )


def _reason(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def unpublished(table: Table, error: duckdb.Error) -> AuditError:
    """The error for rows that cannot be computed, none of whose days can be told apart."""
    return AuditError(f"{table.name} was not published: {_reason(error)}.")


def not_published(table: Table, day: date, problem: str) -> str:
    """The sentence for a day that fails."""
    return f"{table.name} of {day} was not published, the previous rows stay: {problem}."


def _check_schema(table: Table, types: Mapping[str, str]) -> None:
    missing = [name for name in table.column_names if name not in types]
    unknown = [name for name in types if name not in table.types]
    wrong = [
        f"{name} is {types[name]} and not {table.types[name]}" for name in _misfits(table, types)
    ]
    problems = [
        f"columns {', '.join(missing)} are missing" if missing else "",
        f"columns {', '.join(unknown)} are not in tables/" if unknown else "",
        *wrong,
    ]
    if any(problems):
        raise AuditError(
            f"{table.name} was not published: {'; '.join(filter(None, problems))}."
            f" Return exactly {', '.join(table.column_names)}."
        )


def _misfits(table: Table, types: Mapping[str, str]) -> list[str]:
    """The columns whose type cannot be cast to the table's without losing something silently."""
    return [
        name
        for name, type_ in table.types.items()
        if name in types and not _fits(types[name], type_)
    ]


def _fits(found: str, type_: str) -> bool:
    """Whether a cast between two types keeps every value or fails."""
    scale, wanted_scale = _DECIMAL.fullmatch(found), _DECIMAL.fullmatch(type_)
    if scale and wanted_scale:
        return int(scale[1]) <= int(wanted_scale[1])
    if found.startswith("ENUM("):
        return type_ == "VARCHAR"
    if _INTEGER.fullmatch(found):
        return _INTEGER.fullmatch(type_) is not None
    # Not TIMESTAMP_NS: a cast cuts its last three digits off.
    return found == type_ or (type_ == "TIMESTAMP" and found in ("TIMESTAMP_S", "TIMESTAMP_MS"))


_DECIMAL = re.compile(r"DECIMAL\(\d+,(\d+)\)")


_INTEGER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")


def one_row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The row of a query that has one."""
    row = connection.execute(sql).fetchone()
    assert row is not None
    return row
