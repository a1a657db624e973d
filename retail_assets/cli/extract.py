"""The sub-command `extract`: order exports and reference files from the shop's database."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets import business_days
from retail_assets.cli.base import out, progress_bar, tell
from retail_assets.cli.printing import cell, print_table
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import load_settings

if TYPE_CHECKING:
    from retail_assets.extract.run import ExtractResult


def extract(
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last day.")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace files that somebody else wrote or changed, too."),
    ] = False,
) -> None:
    """Write the order exports of some days, and the reference files, from the shop's database."""
    from retail_assets.extract.run import extract as run_extraction

    settings = load_settings()
    days = business_days.check_range(settings, start.date(), end.date())
    with progress_bar() as bar:
        task = bar.add_task("connecting", total=len(days))
        result = run_extraction(
            settings,
            days,
            may_replace=replace,
            say=lambda text: bar.update(task, description=text),
            progress=lambda done: bar.update(task, description="writing files", completed=done),
        )
    _print(result)
    for note in result.notes:
        tell(note, style="yellow")
    problems = [*result.problems, *(f"{day}: {text}" for day, text in result.failed.items())]
    if problems:
        raise RetailAssetsError(
            f"{len(problems)} files were not written; all others are in their places:", *problems
        )


def _print(result: "ExtractResult") -> None:
    files = [*result.reference, *result.orders]
    rows = [
        [cell(file.day), file.path.name, cell(file.rows), cell(file.late_rows), file.result]
        for file in files
    ]
    sums = [sum(file.rows for file in result.orders), sum(f.late_rows for f in result.orders)]
    print_table(
        out,
        ("day", "file", "rows", "of earlier days", "result"),
        rows,
        numbers=(False, False, True, True, False),
        title=result.origin["database"],
        footer=["orders", "", *map(cell, sums), ""],
    )
    origin = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in result.origin.items()
        if name != "database"
    )
    tell(f"From one snapshot: {origin}.")
