"""The sub-command that publishes the marts."""

from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets.cli.base import err, out, tell
from retail_assets.cli.printing import cell, print_table
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from retail_assets.outbound.marts.model import Published

_HEADS = ("mart", "table", "days written", "rows", "from snapshot", "to snapshot", "seconds")


def publish_marts(
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Compare all days, repair what somebody changed, and take over tables and files"
            " that have no watermark.",
        ),
    ] = False,
) -> None:
    """Publish the days of revenue that have changed to the database and files of the settings."""
    settings = load_settings()
    published, problems = _publish(settings, everything=everything)
    if not published and not problems:
        raise UsageError(
            "There is no mart: set RETAIL_MART_URL to a database, or RETAIL_MART_FILES to a folder"
            " or an s3:// prefix."
        )
    rows = [
        (
            done.mart,
            name,
            cell(len(table.days)),
            cell(table.rows),
            cell(table.from_snapshot),
            cell(done.snapshot),
            f"{done.seconds:.1f}",
        )
        for done in published
        for name, table in done.tables.items()
    ]
    print_table(out, _HEADS, rows, numbers=(False, False, *[True] * 5), title="Marts")
    for done in published:
        if done.problem:
            problems.append(f"{done.mart}: {done.problem}.")
    if problems:
        raise RetailAssetsError(*problems)


def publish_after_backfill(settings: Settings) -> None:
    """Publish the marts, if there are any; one that cannot be is told, and fails nothing."""
    published, problems = _publish(settings, everything=False)
    for done in published:
        tell(f"{done.mart}: {done.days:,} days and {done.rows:,} rows were published.")
        problems += [f"{done.mart}: {done.problem}."] if done.problem else []
    for problem in problems:
        tell(problem, "`retail-assets publish-marts` tries it again.", style="yellow")


def _publish(settings: Settings, *, everything: bool) -> tuple[list["Published"], list[str]]:
    """Publish to each place; returns the outcomes, and the problems of the others."""
    from retail_assets.lake.connection import Lake
    from retail_assets.outbound.marts.publish import publish
    from retail_assets.outbound.marts.targets import mart_targets

    lake = Lake.from_settings(settings)
    published, problems = [], []
    for target in mart_targets(settings):
        with err.status(f"Publishing {target.name}"):
            try:
                published.append(publish(lake, target, everything=everything))
            except RetailAssetsError as error:
                problems.append(str(error))
    return published, problems
