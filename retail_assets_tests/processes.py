"""Work in processes of their own, forked from a server that has imported what is slow to import."""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

HANG_SECONDS = 240  # never reached unless something is broken: a red test instead of a stuck one

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "retail_assets.cli.backfill",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "pandas",
        "pyarrow.compute",
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
