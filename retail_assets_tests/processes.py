"""Work in processes of their own, forked from a server that has imported what is slow to import."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HANG_SECONDS = 240  # never reached unless something is broken: a red test instead of a stuck one

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "retail_assets.cli.backfill",
        "pandas",
        "pyarrow.compute",
        "retail_assets.cli.app",
        "retail_assets.consumers.registry",
        "retail_assets.outbound.kafka",
        "retail_assets.worker.build",
        "retail_assets.worker.sources.kafka.source",
        "retail_assets.worker.sources.webhook.server",
        "retail_assets.worker.sources.webhook.source",
        "retail_assets_tests.conftest",
        "retail_assets_tests.warm",
    ]
)


def start(work: Callable[..., None], *arguments: Any, **options: Any) -> Any:
    """Start a function of a module in a process of its own."""
    process = CONTEXT.Process(target=work, args=arguments, kwargs=options, daemon=True)
    process.start()
    return process


def finish(processes: Sequence[Any]) -> list[int | None]:
    """Wait for processes to end; returns their exit codes (negative: the signal that ended it)."""
    for process in processes:
        process.join(HANG_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def run_command(arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
    """Run `retail-assets` in this process as it is run from a shell; `said` becomes its stderr."""
    from retail_assets.cli import app

    os.environ.clear()
    os.environ.update(environment)
    with said.open("wb") as output:
        os.dup2(output.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["retail-assets", *arguments]
    app.run()
