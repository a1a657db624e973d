"""Which orders go into which day's file.

`day` says when an order was placed, `changed` when it was last changed; both are business days
here. A run writes the files of the days from A to B from one snapshot, and an order in it stands

1. in the file of its day, if that is one of A to B;
2. in the file of the day that it changed on, if that is later, one of A to B, and the platform
   accepts it there: no more than RETAIL_LATE_DAYS after its day;
3. if its day is before A and it changed later than that, in the last of these files that accepts
   it. It may have been in one of them before, and without it there an older version of the order,
   in the file of its day, would count again;
4. if nothing else is left, because it was placed too long before A or has no day at all, in the
   file of the day that it changed on, where it is rejected and counted.

Files are ingested in any order, and the latest that accepts an order has the version that counts.
So a file that is extracted again never brings an older version back: let W be the file whose
version counted, and one of A to B. The order was placed on W, or changed on W or later, and not
later again than now. Its new files are at or after W by 1, 2 or 3, and all files of a run have the
same version, the newest. Files before A and after B stay as they are. That holds while `changed`
only grows, which is what makes it a watermark.

An order is all rows with its id: all stand in the same files, whichever of them has changed,
because a later export of an order replaces all its lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

from retail_assets.errors import UsageError
from retail_assets.extract.source import Column, Part
from retail_assets.lake.sql import literal
from retail_assets.mapping.database import SourceOrders, SourceTable

MARGIN = timedelta(hours=3)
"""Rows that the server picks beyond a day's ends where zones are converted: DuckDB decides."""

FIRST, LAST = date(1900, 1, 1), date(9999, 1, 1)
"""Orders of other days have none, such as MySQL's 0000-00-00 and PostgreSQL's infinity."""


@dataclass(frozen=True)
class Window:
    """The days of a run, and the limits on late orders."""

    first: date
    last: date
    late_days: int
    timezone: str


@dataclass(frozen=True)
class OrderColumns:
    """The columns of orders that decide on their files."""

    day: Column
    changed: Column | None
    order_id: Column
    timezone: str | None


def order_columns(declared: SourceOrders, columns: Sequence[Column]) -> OrderColumns:
    """Find the columns that the mapping names.

    Raises:
        UsageError: if there is no such column, or it is no time.
    """
    key = declared.order_id or declared.columns.get("order_id", "order_id")
    day = find(columns, declared.day, "database.orders.day")
    changed = declared.changed and find(columns, declared.changed, "database.orders.changed")
    for column, name in ((day, "day"), (changed, "changed")):
        if column and column.kind == "text":
            raise UsageError(
                f"database.orders.{name}: the column {column.name!r} is of the type"
                f" {column.type}, not a date or timestamp: make it one in a `query`."
            )
    return OrderColumns(
        day, changed or None, find(columns, key, "database.orders.order_id"), declared.timezone
    )


def find(columns: Sequence[Column], name: str, where: str) -> Column:
    """The column of a name, in its letter case or else in another.

    Raises:
        UsageError: if there is none, or more than one.
    """
    exact = [column for column in columns if column.name == name]
    found = exact or [c for c in columns if c.name.lower() == name.lower()]
    if len(found) != 1:
        names = ", ".join(column.name for column in columns)
        raise UsageError(f"{where}: there is no column {name!r}; there are {names}.")
    return found[0]


def written_columns(
    declared: SourceTable, columns: Sequence[Column], where: str
) -> dict[str, Column]:
    """The columns of the file, by their names there.

    Raises:
        UsageError: if a column is not there, or two have the same name in the file.
    """
    if declared.columns:
        written = {
            name: find(columns, source, f"{where}.columns.{name}")
            for name, source in declared.columns.items()
        }
    else:
        written = {column.name: column for column in columns}
    folded = [name.strip().lower() for name in written]
    twice = sorted({name for name in folded if folded.count(name) > 1 or not name})
    if twice or len(written) < (len(declared.columns) or len(columns)):
        raise UsageError(
            f"{where}: columns of the file have the same name, or none: {twice or list(written)}."
            " Give each a name of its own in `columns`."
        )
    return written


def parts(of: OrderColumns, window: Window, name: Callable[[str], str]) -> list[Part]:
    """The rows that the files of a run may need, a few more, and none twice.

    Args:
        of: the columns that decide.
        window: the days of the run.
        name: quotes an identifier.
    """
    first, too_late = window.first, window.first - timedelta(days=window.late_days)

    def at(column: Column, day: date, margin: timedelta) -> str:
        return _bound(column.kind, day, of.timezone, window.timezone, margin)

    def is_in(
        column: Column, start: date, end: date, end_margin: timedelta
    ) -> Callable[[str], str]:
        low, high = at(column, start, -MARGIN), at(column, end, end_margin)
        quoted = name(column.name)
        return lambda rows: f"{rows}.{quoted} >= {low} AND {rows}.{quoted} < {high}"

    after = window.last + timedelta(days=1)
    own = Part(is_in(of.day, first, after, MARGIN), of.day)
    if of.changed is None:
        return [own]
    day, changed = name(of.day.name), name(of.changed.name)
    since, before = at(of.changed, first, -MARGIN), at(of.day, too_late, -MARGIN)
    late, changed_within = (
        is_in(of.day, too_late, first, -MARGIN),
        is_in(of.changed, first, after, MARGIN),
    )
    return [
        own,
        Part(lambda rows: f"{late(rows)} AND {rows}.{changed} >= {since}", of.day),
        Part(
            lambda rows: (
                f"{changed_within(rows)} AND ({rows}.{day} < {before} OR {rows}.{day} IS NULL)"
            ),
            of.changed,
        ),
    ]


def without_day(of: OrderColumns, name: Callable[[str], str]) -> str:
    """The server's condition for rows of `source` that no file has, whatever the day."""
    day = f"source.{name(of.day.name)}"
    return f"{day} IS NULL OR {day} < '{FIRST}' OR {day} >= '{LAST}'"


def _bound(kind: str, day: date, zone: str | None, business_zone: str, margin: timedelta) -> str:
    """The start of a business day as the server's literal for a column of some kind."""
    if kind == "date":
        return literal(day.isoformat())
    if kind == "local" and zone in (None, business_zone):
        return literal(f"{day} 00:00:00")
    start = datetime.combine(day, time(), ZoneInfo(business_zone)).astimezone(timezone.utc) + margin
    if kind == "instant":
        return literal(f"{start:%Y-%m-%d %H:%M:%S}")
    return literal(f"{start.astimezone(ZoneInfo(str(zone))):%Y-%m-%d %H:%M:%S}")


def business_day(text: str, kind: str, zone: str | None, business_zone: str) -> str:
    """DuckDB's SQL for the business day of a time, null if it has none."""
    if kind == "date":
        return _usable(f"TRY_CAST({text} AS DATE)")
    if kind == "local" and zone is None:
        return _usable(f"TRY_CAST({text} AS TIMESTAMP)::DATE")
    return _usable(f"({moment(text, kind, zone)} AT TIME ZONE {literal(business_zone)})::DATE")


def moment(text: str, kind: str, zone: str | None) -> str:
    """DuckDB's SQL for a time as a TIMESTAMPTZ, where its kind or a zone says which it is."""
    if kind == "instant":
        return f"TRY_CAST({text} AS TIMESTAMPTZ)"
    return f"TRY_CAST({text} AS TIMESTAMP) AT TIME ZONE {literal(str(zone))}"


def _usable(day: str) -> str:
    return f"CASE WHEN {day} >= DATE '{FIRST}' AND {day} < DATE '{LAST}' THEN {day} END"


def files_of_order(day: str, changed: str, window: Window) -> str:
    """DuckDB's SQL for the days of an order's files, as a list; see the module for the rules.

    Args:
        day: an expression for the business day that it was placed on.
        changed: an expression for the one that it was changed on; null: never.
        window: the days of the run.
    """
    first, last = f"DATE '{window.first}'", f"DATE '{window.last}'"
    accepted = f"({day} + {window.late_days})"
    newest = f"least({accepted}, {last})"
    changed_within = f"{changed} BETWEEN {first} AND {last}"
    cases = (
        (f"{day} BETWEEN {first} AND {last}", day),
        (f"{changed_within} AND {changed} > {day} AND {changed} <= {accepted}", changed),
        (f"{day} < {first} AND {newest} >= {first} AND {changed} > {newest}", newest),
        (f"{changed_within} AND ({day} IS NULL OR {accepted} < {first})", changed),
    )
    listed = ", ".join(f"CASE WHEN {condition} THEN {file} END" for condition, file in cases)
    return f"list_filter([{listed}], lambda file: file IS NOT NULL)"
