"""Dead letters: look at them, and redrive them as they are or corrected.

A dead letter is known by its id, `source:source_name:position`, or of a later version of an event
file `source:source_name@version:position`. It stays where it is for ever: a redrive is a raw event
of its own, of the source `redrive`, whose name is that id, and which keeps its time of receipt.
Only what is valid is ingested, and once: a redriven dead letter is not redriven again.
"""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import duckdb

from retail_assets.engines.event_content import content_id
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.events.batch import AbortError, abort, event_batch
from retail_assets.ingest.events.columns import origin_of
from retail_assets.ingest.events.duplicates import CONFLICT
from retail_assets.ingest.events.lines import REFUSED
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers.event_files import apply_deltas
from retail_assets.ingest.messages.payloads import payloads_to_arrow
from retail_assets.lake.sql import literal

if TYPE_CHECKING:
    import pyarrow as pa

REDRIVE = "redrive"

PLACE = f"concat({origin_of('d.source', 'd.source_name', 'd.version')}, ':', d.position)"

_LETTERS = f"""
    SELECT {PLACE} AS id, d.received_date, d.reason, d.field, d.payload, d.processed_at,
        r.source_name IS NOT NULL AS redriven, w.defect, d.position,
        epoch_us(d.received_at) AS received_us
    FROM (FROM lake.dead_letter_events WHERE {{of_days}}) AS d
    JOIN (FROM lake.raw_events WHERE {{of_days}}) AS w
        ON w.received_date = d.received_date AND w.source = d.source
        AND w.source_name = d.source_name AND w.version = d.version AND w.position = d.position
    LEFT JOIN (SELECT DISTINCT received_date, source_name FROM lake.raw_events
        WHERE {{of_days}} AND source = '{REDRIVE}' AND event_id IS NOT NULL) AS r
        ON r.received_date = d.received_date AND r.source_name = {PLACE}
"""

_OF_IDS = "id IN (SELECT unnest(?::VARCHAR[]))"


@dataclass(frozen=True)
class Redriven:
    """The outcome of redriving a dead letter: `accepted`, `duplicate`, or why nothing was done."""

    id: str
    outcome: str


def find(
    connection: duckdb.DuckDBPyConnection,
    *,
    ids: Collection[str] | None = None,
    reason: str | None = None,
    day: date | None = None,
    open_only: bool = False,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Find dead letters, the newest first.

    It reads the days that have some, up to the limit, and of other days at most which dead letters
    there are.

    Args:
        connection: a connection to the lake.
        ids: only these; without any, none.
        reason: only those with this reason code.
        day: only those received on this day.
        open_only: leave those out that were redriven.
        limit: at most so many.

    Returns:
        `id`, `received_date`, `reason`, `field`, `payload`, `processed_at`, `redriven`, `defect`,
        `position` and `received_us` (the recorded time of receipt in microseconds since 1970) of
        each.
    """
    conditions: list[str] = []
    parameters: list[Any] = []
    for condition, value in (
        (_OF_IDS, None if ids is None else list(ids)),
        ("reason = ?", reason),
    ):
        if value is not None:
            conditions.append(condition)
            parameters.append(value)
    wanted = " AND ".join(conditions) or "true"
    days = [day] if day is not None else _days(connection, wanted, parameters)
    if open_only:
        wanted += " AND NOT redriven"
    found: list[dict[str, Any]] = []
    read = 0
    while read < len(days) and (limit is None or len(found) < limit):
        some = days[read:] if limit is None else days[read : 2 * read + 1]
        read += len(some)
        found += _letters(connection, some, wanted, parameters)
    return found[:limit]


def _days(
    connection: duckdb.DuckDBPyConnection, wanted: str, parameters: Sequence[Any]
) -> list[date]:
    """The days on which such dead letters were received, the newest first."""
    rows = connection.execute(
        f"SELECT DISTINCT received_date FROM (SELECT d.*, {PLACE} AS id"
        f" FROM lake.dead_letter_events AS d) WHERE {wanted} ORDER BY received_date DESC",
        parameters,
    ).fetchall()
    return [day for (day,) in rows]


def _letters(
    connection: duckdb.DuckDBPyConnection,
    days: Collection[date],
    wanted: str,
    parameters: Sequence[Any],
) -> list[dict[str, Any]]:
    letters = _LETTERS.format(
        of_days=f"received_date IN ({', '.join(literal(str(day)) for day in days)})"
    )
    found = connection.execute(
        f"SELECT * FROM ({letters}) WHERE {wanted} ORDER BY received_date DESC, id", parameters
    )
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def redrive(
    session: EventSession, ids: Sequence[str], *, payload: str | None = None
) -> list[Redriven]:
    """Validate dead letters again, as they are or with a corrected payload; ingest the valid ones.

    Args:
        session: a session of ingest.
        ids: the dead letters.
        payload: what the one dead letter should have been, a JSON object.

    Returns:
        The outcome of each dead letter, in the order of their ids.

    Raises:
        RetailAssetsError: if there is no such dead letter, or the corrected payload is not valid.
    """
    if payload is not None and len(ids) != 1:
        raise UsageError("A payload corrects one dead letter: name one.")
    letters = {letter["id"]: letter for letter in find(session.connection, ids=ids)}
    missing = [name for name in ids if name not in letters]
    if missing:
        raise RetailAssetsError(
            f"There is no dead letter {', '.join(missing)}: `dead-letters list` shows those there"
            " are."
        )
    outcomes = {name: "redriven before" for name, letter in letters.items() if letter["redriven"]}
    if payload is None:
        outcomes |= {
            name: f"no event as it is ({letter['defect']}): give it a payload"
            for name, letter in letters.items()
            # A line that the lake could not ingest is whole.
            if letter["defect"] not in (None, *REFUSED) and name not in outcomes
        }
    todo = [letter for name, letter in letters.items() if name not in outcomes]
    if todo:
        outcomes |= _ingest(session, todo, payload)
    if payload is not None and outcomes[ids[0]].startswith("still"):
        raise RetailAssetsError(f"The payload is not valid: {outcomes[ids[0]]}.")
    return [Redriven(name, outcomes[name]) for name in sorted(outcomes)]


def _ingest(
    session: EventSession, letters: Sequence[dict[str, Any]], payload: str | None
) -> dict[str, str]:
    connection = session.connection
    names = [letter["id"] for letter in letters]
    outcomes: dict[str, str] = {}
    conflicts: dict[str, str] = {}
    with (
        suppress(AbortError),
        event_batch(
            session, "redrive dead letters", _as_lines(connection, letters, payload)
        ) as batch,
    ):
        outcomes |= {
            name: f"still {reason}{f' ({field})' if field else ''}"
            for name, reason, field in batch.problems()
        }
        # Only now: somebody else may have done the same a moment ago.
        days = {letter["received_date"] for letter in letters}
        again = _letters(connection, days, _OF_IDS, [names])
        there = {letter["id"]: letter["redriven"] for letter in again}
        for name in names:
            if there.get(name, True):
                # Its file's version was retracted, or a replay took it for valid.
                outcomes[name] = "redriven before" if name in there else "no dead letter now"
        batch.leave_out(REDRIVE, list(outcomes))
        deltas = batch.apply().deltas
        conflicts = {
            name: f"still {CONFLICT} ({field})"
            for name, reason, field in batch.problems()
            if reason == CONFLICT and name in names
        }
        if conflicts:
            abort()
        apply_deltas(session, deltas)
        accepted = {
            delta.source_name for delta in deltas if delta.source == REDRIVE and delta.accepted > 0
        }
    if conflicts:
        others = [letter for letter in letters if letter["id"] not in conflicts]
        return conflicts | (_ingest(session, others, payload) if others else {})
    for name in names:
        outcomes.setdefault(name, "accepted" if name in accepted else "duplicate")
    return outcomes


def _as_lines(
    connection: duckdb.DuckDBPyConnection,
    letters: Sequence[dict[str, Any]],
    payload: str | None,
) -> tuple["pa.Table", "pa.Table"]:
    """Dead letters as lines of a batch, each a source of its own, and these sources."""
    import pyarrow as pa

    texts = [
        _as_it_is(connection, letter) if payload is None else _one_line(payload)
        for letter in letters
    ]
    numbers = pa.array(range(len(letters)), pa.int32())
    lines = (
        # Text of the command line that is no UTF-8 is validated as such.
        payloads_to_arrow([text.encode(errors="surrogateescape") for text in texts])
        .append_column("source_no", numbers)
        # A corrected event keeps its time of receipt.
        .append_column("position", pa.array([each["position"] for each in letters], pa.int64()))
        .append_column(
            "received_us", pa.array([each["received_us"] for each in letters], pa.int64())
        )
    )
    sources = pa.table(
        {
            "source_no": numbers,
            "received_date": [letter["received_date"] for letter in letters],
            "source": [REDRIVE] * len(letters),
            "source_name": [letter["id"] for letter in letters],
            "version": pa.array([1] * len(letters), pa.int64()),
        }
    )
    return lines, sources


def _as_it_is(connection: duckdb.DuckDBPyConnection, letter: dict[str, Any]) -> str:
    """The payload of a dead letter; if it conflicts, identified by its content."""
    payload: str = letter["payload"]
    if letter["reason"] != CONFLICT:
        return payload
    patch = json.dumps({"event_id": content_id(payload)})
    (patched,) = connection.execute(
        "SELECT json_merge_patch(?, ?)", [payload, patch]
    ).fetchone() or (payload,)
    return str(patched)


def _one_line(payload: str) -> str:
    """A payload may be written over several lines; an event is one."""
    return payload.strip().replace("\r\n", " ").replace("\n", " ")
