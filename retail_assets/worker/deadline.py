"""A worker ends within a time after it was stopped, whatever hangs: disk, broker or server."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def ends_in_time(stop: threading.Event, seconds: float) -> Iterator[None]:
    """End this process with exit code 1 if the block is not over `seconds` after `stop` was set.

    That is as safe as any crash: events that were not committed are read, or sent, again.
    """
    ended = threading.Event()

    def watch() -> None:
        stop.wait()
        if ended.wait(seconds):
            return
        busy = sorted(
            thread.name
            for thread in threading.enumerate()
            if thread.is_alive() and not thread.daemon
        )
        logger.error(
            "The worker did not end within %g s of being told to, it ends now; what was not"
            " committed is read again (still at work: %s)",
            *(seconds, ", ".join(busy)),
        )
        os._exit(1)

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        stop.set()
