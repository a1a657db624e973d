"""The command `retail-assets verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets.cli.base import out, progress_bar
from retail_assets.cli.printing import print_message
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retail_assets.lake.connection import Lake
    from retail_assets.lake.verify import Damage, Report

MOST_SHOWN = 100
"""How many damaged files are listed one by one."""


def verify(
    deep: Annotated[
        bool, typer.Option(help="Read every file whole, and compare it with its checksum.")
    ] = False,
    quarantine: Annotated[
        bool,
        typer.Option(
            help="Take damaged files that can be recomputed out of the lake, so that the commands"
            " that it prints can write their rows again."
        ),
    ] = False,
) -> None:
    """Verify that every file of the lake is there and whole; exits with 1 if one is not."""
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    report = _verified(lake, deep=deep)
    summary = report.summary
    print_message(
        out,
        f"{summary.files:,} files of {summary.bytes:,} bytes are verified,"
        f" {summary.compared:,} of them had a checksum"
        f"{' that was compared' if deep else ''}; {report.noted:,} more have one now.",
    )
    if not report.damages:
        return
    _print_damages(settings, report.damages)
    raise RetailAssetsError(*_what_to_do(settings, lake, report, deep=deep, quarantine=quarantine))


def _verified(lake: "Lake", *, deep: bool) -> "Report":
    from retail_assets.lake import verify as work

    with progress_bar(of_bytes=True) as progress:
        task = progress.add_task("Verify", total=None)
        return work.verify(
            lake,
            deep=deep,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _print_damages(settings: Settings, damages: "Sequence[Damage]") -> None:
    from retail_assets.cli.recovery import way_back

    for damage in damages[:MOST_SHOWN]:
        days = "" if damage.first is None else f", {damage.first} to {damage.last}"
        print_message(
            out,
            f"{damage.table}{days}: {damage.location} {damage.problem}"
            f" (comes back by: {way_back(settings, damage)})",
        )
    if len(damages) > MOST_SHOWN:
        print_message(out, f"… and {len(damages) - MOST_SHOWN:,} more")


def _what_to_do(
    settings: Settings, lake: "Lake", report: "Report", *, deep: bool, quarantine: bool
) -> list[str]:
    from retail_assets.cli import recovery

    text = f"{len(report.damages)} of {report.summary.files} files are damaged."
    commands = recovery.commands(settings, report.damages)
    if quarantine:
        with lake.connect() as connection:
            count = recovery.quarantine(settings, lake, connection, report.damages)
        steps = [f"{count} of them are taken out of the lake. Their rows come back by:", *commands]
    elif commands:
        option = " --deep" if deep else ""
        steps = [
            "Put them back from a backup, under the same names; or, without one, run:",
            f"retail-assets verify{option} --quarantine",
            *commands,
        ]
    elif any(damage.newest for damage in report.damages):
        steps = ["Put them back from a backup, under the same names: see docs/operations.md."]
    else:
        steps = ["The newest snapshot does not need them: they go when older snapshots expire."]
    return [text, *steps]
