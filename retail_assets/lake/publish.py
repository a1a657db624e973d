"""Stage, audit, publish: a table's new days are written aside, checked, and swapped in.

The swap is one short transaction. A day that fails its audit keeps the rows that it had; the other
days are published.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import narwhals as nw

from retail_assets.errors import AuditError
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import ROW_GROUP, Lake, committed_snapshot, current_snapshot
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.lake.staging import not_published, one_row, stage, stage_days, unpublished
from retail_assets.tables import Table

Audit = Callable[[nw.LazyFrame], nw.LazyFrame]
"""Takes the staged rows; returns one row, with the table's day column, for each failing day."""

SHOWN_ROWS = 3
"""How many failing rows an error shows."""

SAMPLE_ROWS = 5
"""How many rows of the newest day a publication shows."""


@dataclass(frozen=True)
class Publication:
    """The outcome of publishing days of a table.

    `rows` has the row count of each published day, `measures` the sums of the table's measures,
    `failed` the problem of each day that was not published, and `snapshot` the id of the commit
    (None if nothing was to commit). `sample` has some rows of the newest day, if they were at hand.
    """

    table: Table
    rows: Mapping[date, int] = field(default_factory=dict)
    failed: Mapping[date, str] = field(default_factory=dict)
    snapshot: int | None = None
    measures: Mapping[date, Mapping[str, Decimal | int]] = field(default_factory=dict)
    sample: Sequence[Sequence[Any]] | None = None


def publish_days(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    frame: Any,
    days: Collection[date],
    *,
    audit: Audit | None = None,
    not_ready: Mapping[date, str] | None = None,
    only_days: bool = False,
    sources: Collection[Table] = (),
    read: SnapshotRead | None = None,
    known: ledger.Entries | None = None,
) -> Publication:
    """Replace the rows of some days of a table.

    Args:
        lake: the lake that the connection is to.
        connection: where the frame lives.
        table: what to publish.
        frame: a narwhals frame, DuckDB relation, pandas or Arrow table with the table's columns, in
            any order.
        days: the days to replace; a day without rows becomes empty.
        audit: checks beyond schema, key and nulls.
        not_ready: days that must not be published, and why.
        only_days: leave rows of other days out, instead of failing on them.
        sources: the tables of days that the frame was computed from, day by day. A day computed
            from a day that is behind is behind as well.
        read: the snapshot that the frame reads, if it has begun; it ends with the audit.
        known: what the ledgers have of the days in that snapshot, if it was read already.

    Raises:
        AuditError: if the rows as a whole cannot be published: wrong columns or types, rows of
            other days.
    """
    # The frame, the versions and the inputs of the audit must be of one snapshot.
    read = read or SnapshotRead(connection)
    failed = dict(not_ready or {})
    wanted = [day for day in days if day not in failed]
    staged = f"staged_{table.name}"
    try:
        read.begin()
        failed |= stage_days(read, table, frame, wanted, only_days=only_days)
        wanted = [day for day in wanted if day not in failed]
        known = ledger.entries(connection, days, known)
        versions = _versions(known, table, wanted, sources)
        problems = _problems(connection, table, staged, days, audit)
        read.end()
        failed |= {day: text for day, text in problems.items() if day not in failed}
        good = [day for day in wanted if day not in problems]
        rows, measures = day_facts(connection, table, f"temp.main.{staged}", good)
        sample = _sample(connection, table, staged, good)
        snapshot = _swap(lake, connection, table, rows, versions, failed, known)
    finally:
        read.abort()
        connection.execute(f"DROP TABLE IF EXISTS temp.main.{staged}")
    return Publication(table, rows, dict(sorted(failed.items())), snapshot, measures, sample)


def publish_table(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    frame: Any,
    *,
    before_swap: Callable[[duckdb.DuckDBPyConnection, str], None] | None = None,
    read: SnapshotRead | None = None,
) -> tuple[int, int]:
    """Replace all rows of a table without days, if they differ from what it has.

    Args:
        lake: the lake that the connection is to.
        connection: where the frame lives.
        table: what to publish.
        frame: as for `publish_days`.
        before_swap: called in the transaction with the connection and the name of the staged
            table, while the table still has its old rows.
        read: the snapshot that the frame reads, if it has begun; it ends when the frame is staged.

    Returns:
        The number of rows and the id of the snapshot that has them.

    Raises:
        AuditError: naming the rows that must not be published.
    """
    read = read or SnapshotRead(connection)
    try:
        try:
            stage(connection, table, frame, None)
        except duckdb.DataError as error:
            raise unpublished(table, error) from error
        read.end()
        problem = next(iter(_row_problems(connection, table, f"staged_{table.name}")), None)
        if problem is not None:
            raise AuditError(f"{table.name} was not published: {problem[1]}")
        _swap_table(lake, connection, table, before_swap)
        (count,) = one_row(connection, f"SELECT count(*) FROM temp.main.staged_{table.name}")
        return count, current_snapshot(connection)
    finally:
        read.abort()
        connection.execute(f"DROP TABLE IF EXISTS temp.main.staged_{table.name}")


def _swap_table(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    before_swap: Callable[[duckdb.DuckDBPyConnection, str], None] | None,
) -> None:
    staged, columns = f"temp.main.staged_{table.name}", ", ".join(table.column_names)
    old, new = f"SELECT {columns} FROM lake.{table.name}", f"SELECT {columns} FROM {staged}"
    (differ,) = one_row(
        connection, f"SELECT EXISTS (({new} EXCEPT {old}) UNION ALL ({old} EXCEPT {new}))"
    )
    if not differ:
        return
    with lake.transaction(connection, f"publish {table.name}"):
        if before_swap is not None:
            before_swap(connection, staged)
        connection.execute(f"DELETE FROM lake.{table.name}")
        connection.execute(f"INSERT INTO lake.{table.name} BY NAME {new}")


def _versions(
    known: ledger.Entries, table: Table, days: Collection[date], sources: Collection[Table]
) -> dict[date, int]:
    """The version of the outside data that each day's rows were computed from."""
    if table.feed is None:
        return {}
    changed = known.changed[table.feed]
    made_from = [known.published[each.name] for each in sources if each.feed == table.feed]
    return {
        day: min([changed[day], *(versions.get(day, 0) for versions in made_from)])
        for day in days
        if day in changed
    }


def _problems(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    staged: str,
    days: Collection[date],
    audit: Audit | None,
) -> dict[date, str]:
    day = table.day_column
    outside = connection.execute(
        f"SELECT {day}, count(*) FROM temp.main.{staged} WHERE {day} IS NULL"
        f" OR {day} NOT IN (SELECT unnest(?::DATE[])) GROUP BY ALL ORDER BY ALL LIMIT {SHOWN_ROWS}",
        [list(days)],
    ).fetchall()
    if outside:
        shown = ", ".join(f"{count} of {found}" for found, count in outside)
        raise AuditError(
            f"{table.name} was not published: rows of days that were not asked for ({shown})."
        )
    problems = {when: text for when, text in _row_problems(connection, table, staged) if when}
    if audit is not None:
        native = nw.to_native(audit(nw.from_native(connection.table(f"temp.main.{staged}"))))
        columns = native.columns
        for row in native.fetchall():
            record = dict(zip(columns, row, strict=True))
            if record[day] not in days:
                continue
            text = ", ".join(f"{key} {value}" for key, value in record.items() if key != day)
            problems.setdefault(record[day], f"it does not add up: {text}")
    return {found: not_published(table, found, text) for found, text in problems.items()}


def _row_problems(
    connection: duckdb.DuckDBPyConnection, table: Table, staged: str
) -> list[tuple[date | None, str]]:
    """The first problem with nulls or keys of each day (of the whole table, where it has none)."""
    day = table.day or "NULL"
    required = [column.name for column in table.columns if not column.nullable]
    some_null = " OR ".join(f"{name} IS NULL" for name in required)
    found: dict[date | None, str] = {}
    for when, text in connection.execute(
        f"SELECT {day}, string_agg(row_text, '; ') FROM (SELECT *, to_json(s)::VARCHAR AS row_text,"
        f" row_number() OVER (PARTITION BY {day}) AS n FROM temp.main.{staged} AS s"
        f" WHERE {some_null}) WHERE n <= {SHOWN_ROWS} GROUP BY {day} HAVING count(*) > 0"
    ).fetchall():
        found[when] = f"rows lack a value that is required, for example {text}"
    if _may_share_keys(connection, table, staged):
        keys = ", ".join(table.key)
        pick = f"any_value({day})" if table.day else "NULL"
        for when, text in connection.execute(
            f"SELECT found_day, string_agg(key_text, '; ') FROM (SELECT {pick} AS found_day,"
            f" concat_ws(' ', {keys}) AS key_text, row_number() OVER (PARTITION BY {pick}) AS n"
            f" FROM temp.main.{staged} GROUP BY {keys} HAVING count(*) > 1)"
            f" WHERE n <= {SHOWN_ROWS} GROUP BY found_day HAVING count(*) > 0"
        ).fetchall():
            found.setdefault(when, f"rows share their key ({keys}), for example {text}")
    return list(found.items())


def _may_share_keys(connection: duckdb.DuckDBPyConnection, table: Table, staged: str) -> bool:
    """Whether rows may share their key: hashes are grouped in a third of the time of keys."""
    if not table.key:
        return False
    (shared,) = one_row(
        connection,
        f"SELECT count(*) FROM (SELECT 1 FROM temp.main.{staged}"
        f" GROUP BY hash({', '.join(table.key)}) HAVING count(*) > 1)",
    )
    return bool(shared)


def day_facts(
    connection: duckdb.DuckDBPyConnection, table: Table, source: str, days: Collection[date]
) -> tuple[dict[date, int], dict[date, dict[str, Decimal | int]]]:
    """Count the rows of each day, and sum up the measures of the table.

    Args:
        connection: a connection to the lake.
        table: the table of days.
        source: a table or subquery with its columns; rows of other days are left out.
        days: the days; one without rows has zeros.

    Returns:
        The number of rows, and the measures by name, of each day.
    """
    sums = "".join(f", sum({name})" for name in table.measures)
    rows = dict.fromkeys(days, 0)
    measures: dict[date, dict[str, Decimal | int]] = {
        day: dict.fromkeys(table.measures, 0) for day in days
    }
    for day, count, *values in connection.execute(
        f"SELECT {table.day_column}, count(*){sums} FROM {source} GROUP BY ALL"
    ).fetchall():
        if day in rows:
            rows[day] = count
            measures[day] = dict(zip(table.measures, values, strict=True))
    return rows, measures


def _sample(
    connection: duckdb.DuckDBPyConnection, table: Table, staged: str, days: Collection[date]
) -> list[tuple[Any, ...]]:
    if not days:
        return []
    return connection.execute(
        f"SELECT {', '.join(table.column_names)} FROM temp.main.{staged}"
        f" WHERE {table.day_column} = ? LIMIT {SAMPLE_ROWS}",
        [max(days)],
    ).fetchall()


def _swap(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    rows: Mapping[date, int],
    versions: Mapping[date, int],
    failed: Mapping[date, str],
    known: ledger.Entries,
) -> int | None:
    if not rows and not failed:
        return None
    with lake.transaction(connection, f"publish {table.name}"):
        known = ledger.entries(connection, {*rows, *failed}, known)
        before = known.published[table.name]
        # Keep days that others have published from newer data meanwhile.
        mine = {day: n for day, n in rows.items() if before.get(day, 0) <= versions.get(day, 0)}
        staged = f"temp.main.staged_{table.name}"
        if len(mine) < len(rows) or failed:
            connection.execute(
                f"DELETE FROM {staged} WHERE {table.day_column} NOT IN (SELECT unnest(?::DATE[]))",
                [list(mine)],
            )
        replace_days(connection, table, staged, mine, before)
        if mine:
            ledger.mark_published(connection, table, mine, versions, known)
        if failed:
            ledger.mark_failed(connection, table, failed, known)
    changed = bool(mine or failed)
    return committed_snapshot(connection) if changed else current_snapshot(connection)


def replace_days(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    source: str,
    rows: Mapping[date, int],
    published: Collection[date],
) -> None:
    """Replace the rows of a table's days, in the caller's transaction.

    Args:
        connection: in a transaction.
        table: whose rows to replace.
        source: a table or view with the same columns, and rows of these days only.
        rows: the days to replace, and how many rows the source has of each.
        published: the days that the table has rows of: only these are deleted.
    """
    day = table.day_column
    old = sorted(set(rows) & set(published))
    if old:
        connection.execute(
            f"DELETE FROM lake.{table.name} WHERE {day} BETWEEN ? AND ?"
            f" AND {day} IN (SELECT unnest(?::DATE[]))",
            [old[0], old[-1], old],
        )
    insert = f"INSERT INTO lake.{table.name} BY NAME SELECT * FROM {source}"
    ranges = _insert_ranges(rows)
    for first, last in ranges:
        if len(ranges) == 1:
            connection.execute(insert)
        else:
            connection.execute(f"{insert} WHERE {day} BETWEEN ? AND ?", [first, last])


def _insert_ranges(rows: Mapping[date, int]) -> list[tuple[date, date]]:
    """Ranges of days to insert one after the other, so that files have them in order.

    Then a query finds a day of a large month without reading all of it. Sorting takes twice the
    time and spills. Where a month fits in a row group, the order gains nothing.
    """
    days = sorted(rows)
    months = len({(day.year, day.month) for day in days})
    if sum(rows.values()) <= months * ROW_GROUP:
        return [(days[0], days[-1])] if days else []
    ranges: list[tuple[date, date]] = []
    first, count = days[0], 0
    for day in days:
        count += rows[day]
        if count >= ROW_GROUP or day == days[-1]:
            ranges.append((first, day))
            first, count = day + timedelta(days=1), 0
    return ranges
