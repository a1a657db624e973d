"""The lines for which a transaction fails: found by halving, each is then refused alone.

No line is at fault for what happens to a made-up event, too.
"""

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from retail_assets.ingest.events.batch import AbortError, abort, event_batch
from retail_assets.ingest.events.lines import NOT_TAKEN, OUT_OF_MEMORY
from retail_assets.ingest.events.session import FreshSessions
from retail_assets.ingest.messages.load import can_ingest
from retail_assets.lake.failures import bisect, is_of_the_data, is_of_the_size

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a line that fails all alone is tried: memory may be short for a moment."""

MAX_LINES = 100
"""Where more lines fail, the file is the cause."""


def failing_lines(
    sessions: FreshSessions, lines: "pa.Table", sources: "pa.Table"
) -> dict[int, str]:
    """Find the lines that fail a transaction all alone; nothing is committed.

    Args:
        sessions: of the lake where they should go.
        lines: lines of which a transaction has failed, as `event_batch` takes them.
        sources: their sources.

    Returns:
        The defect of each, by row; none if there are more than `MAX_LINES`, or if none fails alone.

    Raises:
        Exception: whatever is no fault of a line.
    """
    found: dict[int, str] = {}
    rows = range(lines.num_rows)
    for row, error in bisect(
        rows, lambda some: _error(sessions, lines.slice(some[0], len(some)), sources)
    ):
        if len(found) == MAX_LINES:
            return {}
        with sessions.attempt() as session:
            if not can_ingest(session):
                raise error
        found[row] = OUT_OF_MEMORY if is_of_the_size(error) else NOT_TAKEN
        logger.error(
            "Line %d of %s becomes a dead letter (%s): %s",
            *(lines["position"][row].as_py(), sources["source_name"][0], found[row], error),
        )
    return found


def _error(sessions: FreshSessions, lines: "pa.Table", sources: "pa.Table") -> Exception | None:
    """The error of a transaction of some lines; None if these lines do not cause it."""
    for _ in range(ATTEMPTS if lines.num_rows == 1 else 1):
        try:
            _try(sessions, lines, sources)
        except Exception as error:
            if not (is_of_the_data(error) or is_of_the_size(error)):
                raise
            failed = error
        else:
            return None
    return failed


def _try(sessions: FreshSessions, lines: "pa.Table", sources: "pa.Table") -> None:
    with (
        sessions.attempt() as session,
        suppress(AbortError),
        event_batch(session, "try event lines", (lines, sources)) as batch,
    ):
        batch.apply()
        abort()
