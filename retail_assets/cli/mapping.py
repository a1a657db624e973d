"""Sub-commands of the mapping: what becomes of a sample by it."""

from pathlib import Path
from typing import Annotated

import typer

from retail_assets.cli.base import out, tell
from retail_assets.cli.printing import print_message, print_rows
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import load_settings


def check(
    file: Annotated[Path, typer.Argument(help="The mapping, a YAML file.")],
    sample: Annotated[
        Path | None, typer.Option(help="A file of the source, to see what becomes of its rows.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The source of a sample of events, as the mapping has it."),
    ] = None,
) -> None:
    """Check a mapping, and show what becomes of the first rows of a sample; nothing is stored."""
    from retail_assets.ingest.event_files.sample import EventSample, check_events, is_of_events
    from retail_assets.ingest.exports.sample import SampleResult, check_sample
    from retail_assets.mapping import load

    mapping = load(file)
    if sample is None:
        print_message(out, f"{file} can be used.")
        return
    settings = load_settings().model_copy(update={"mapping": file.absolute()})
    rows = "row"
    found: SampleResult | EventSample
    if is_of_events(sample):
        rows = "event"
        found = check_events(settings, sample, mapping.events, source)
    else:
        found = check_sample(settings, sample)
    heads = ["field", "from"]
    for number in range(1, len(found.rows) + 1):
        heads += [f"{rows} {number} has", "becomes"]
    print_rows(
        out,
        heads,
        [[field, found.columns.get(field, ""), *found.cells(field)] for field in found.fields],
    )
    rejected = sum(fault.rows for fault in found.faults)
    print_message(out, f"{found.usable:,} {rows}s can be used, {rejected:,} are rejected.")
    for fault in found.faults:
        tell(fault.sentence, style="yellow")
    if not found.usable:
        raise RetailAssetsError(f"No {rows} of {sample} can be used: correct the mapping {file}.")
