"""The command `retail-assets`. Settings come from `RETAIL_*`, so any folder can be its data.

Exits with 0 when all went well, 1 when work failed, 2 for wrong usage.
"""

import logging
import sys
import threading
from collections.abc import Callable
from typing import Annotated

import typer

from retail_assets.cli import batch, events, lake, mapping, marts, worker
from retail_assets.cli.base import tell
from retail_assets.cli.dashboard import dashboard
from retail_assets.cli.extract import extract
from retail_assets.cli.simulate import simulate
from retail_assets.cli.verify import verify
from retail_assets.errors import UsageError
from retail_assets.explain import SentenceFormatter, debugging, explain, tell_of_threads

app = typer.Typer(
    name="retail-assets",
    help="Batch and streaming retail data on one lake. Settings: environment variables RETAIL_*.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Read the global options."""
    context.obj = debug


def run() -> None:
    """Run the command; an error is one sentence on stderr, its traceback only with `--debug`."""
    threading.excepthook = tell_of_threads
    if logging.lastResort is not None:
        # Warnings of commands that set up no log.
        logging.lastResort.setFormatter(SentenceFormatter())
    try:
        app(prog_name="retail-assets")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            tell("Stopped: what was committed stays. Run it again to go on.", style="yellow")
        raise
    except BaseException as error:
        if debugging():
            raise
        first, *more = explain(error)
        tell(f"Error: {first}", *more, style="red")
        sys.exit(2 if isinstance(error, UsageError) else 1)


_COMMANDS: dict[str, Callable[..., None]] = {
    "generate": batch.generate,
    "simulate": simulate,
    "import-complete-journey": batch.import_complete_journey,
    "extract": extract,
    "backfill": batch.backfill,
    "ingest-events": events.ingest_events,
    "stream": worker.stream,
    "replay": events.replay,
    "query": lake.query,
    "status": lake.status,
    "init": lake.init,
    "maintain": lake.maintain,
    "copy-catalog": lake.copy_catalog,
    "publish-marts": marts.publish_marts,
    "verify": verify,
    "dashboard": dashboard,
}

_GROUPS: tuple[tuple[str, str, dict[str, Callable[..., None]]], ...] = (
    (
        "reference",
        "The reference data: products and customers.",
        {"load": batch.load_reference},
    ),
    (
        "consumers",
        "Consumers, which follow the events: list them with their lag, rewind one.",
        {"list": worker.list_consumers, "rewind": worker.rewind_consumer},
    ),
    (
        "mapping",
        "The mapping, which says how other programs write their files: check one.",
        {"check": mapping.check},
    ),
    ("events", "Events that were ingested from files.", {"retract": events.retract_events}),
    (
        "dead-letters",
        "Dead letters, which are events that are not valid: list, show and redrive them.",
        {
            "list": events.list_letters,
            "show": events.show_letter,
            "redrive": events.redrive_letters,
        },
    ),
)

for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
for _name, _help, _commands in _GROUPS:
    _group = typer.Typer(help=_help, no_args_is_help=True)
    for _command_name, _command in _commands.items():
        _group.command(_command_name)(_command)
    app.add_typer(_group, name=_name)
