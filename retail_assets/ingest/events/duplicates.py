"""Which of the lines that claim one identity has it: among those staged, and those in the lake.

The one that was received first, see `FIRST_RECEIVED`. `candidates` ranks them: its `line_no` is the
rowid in `staged_lines`, null for the event that the lake has, which is in `stored_candidates`.
"""

from collections.abc import Sequence

import duckdb

from retail_assets.engines.event_content import same_content
from retail_assets.ingest.events.columns import FIRST_RECEIVED, RANK_FIELDS, RECEIPT, same_line
from retail_assets.mapping.json_path import json_path
from retail_assets.mapping.model import EventMappings

CONFLICT = "conflicting_event"


def rank(
    connection: duckdb.DuckDBPyConnection, repeated: Sequence[int], known: Sequence[int] | None
) -> None:
    """Rank the lines of each identity that several claim, or the lake has.

    Args:
        connection: a connection with staged lines.
        repeated: hashes of the identities that several valid lines have.
        known: hashes of the identities that the lake may have; None if it may have any.
    """
    execute = connection.execute
    for table in ("stored_candidates", "candidates"):
        execute(f"TRUNCATE temp.main.{table}")
    valid = "temp.main.staged_lines WHERE reason IS NULL"
    looked_up, parameters = f"SELECT own_id FROM {valid}", []
    if known is not None:
        looked_up += " AND hash(own_id) IN (SELECT unnest(?::UBIGINT[]))"
        parameters = [known]
    execute(
        f"INSERT INTO temp.main.stored_candidates BY NAME SELECT event_id, {RECEIPT}, {RANK_FIELDS}"
        f" FROM lake.enriched_events WHERE event_id IN ({looked_up})",
        parameters,
    )
    # Few are left to be ranked.
    claimed = (
        "hash(own_id) IN (SELECT unnest(?::UBIGINT[])"
        " UNION ALL SELECT hash(event_id) FROM temp.main.stored_candidates)"
    )
    execute(
        "INSERT INTO temp.main.candidates SELECT event_id, line_no, row_number() OVER"
        f" (PARTITION BY event_id ORDER BY {FIRST_RECEIVED}) AS rank FROM"
        f" (SELECT own_id AS event_id, rowid AS line_no, {RECEIPT}, {RANK_FIELDS}"
        f" FROM {valid} AND {claimed}"
        " UNION ALL BY NAME SELECT * FROM temp.main.stored_candidates)",
        [repeated],
    )


def remove_superseded(connection: duckdb.DuckDBPyConnection) -> bool:
    """Remove events from the lake that were received after a staged line; were there any?"""
    superseded = "SELECT event_id FROM temp.main.candidates WHERE line_no IS NULL AND rank > 1"
    if not connection.execute(f"{superseded} LIMIT 1").fetchone():
        return False
    connection.execute(
        f"INSERT INTO temp.main.removed_events SELECT event_id, {RECEIPT}, 1, 0"
        f" FROM temp.main.stored_candidates WHERE event_id IN ({superseded})"
    )
    connection.execute(f"DELETE FROM lake.enriched_events WHERE event_id IN ({superseded})")
    return True


def find_conflicts(connection: duckdb.DuckDBPyConnection, mappings: EventMappings) -> bool:
    """Make dead letters of lines with other content than the first of their identity; any?"""
    roots = [parts for each in mappings if (parts := json_path(each.root).parts)]
    pairs = connection.execute(
        f"WITH firsts AS ({_firsts(connection)})"
        " SELECT c.line_no, s.payload, f.payload FROM temp.main.candidates AS c"
        " JOIN temp.main.staged_lines AS s ON s.rowid = c.line_no JOIN firsts AS f"
        " ON f.event_id = c.event_id WHERE c.rank > 1 AND s.payload <> f.payload"
    ).fetchall()
    conflicts = [line_no for line_no, one, other in pairs if not same_content(one, other, roots)]
    if conflicts:
        connection.execute(
            f"UPDATE temp.main.staged_lines SET reason = '{CONFLICT}', field = 'event_id'"
            " WHERE rowid IN (SELECT unnest(?::BIGINT[]))",
            [conflicts],
        )
    return bool(conflicts)


def _firsts(connection: duckdb.DuckDBPyConnection) -> str:
    """The query for `event_id` and `payload` of the first of each identity with candidates.

    An identity that was made of the content has none of another content.
    """
    staged = (
        "SELECT c.event_id, s.payload FROM temp.main.candidates AS c"
        " JOIN temp.main.staged_lines AS s ON s.rowid = c.line_no"
        " WHERE c.rank = 1 AND c.event_id NOT LIKE 'content:%'"
    )
    # Constants, so that only the files that have these lines are read.
    days, least, most = connection.execute(
        "SELECT list(DISTINCT received_date::VARCHAR), min(position), max(position)"
        " FROM temp.main.stored_candidates"
    ).fetchone() or (None, 0, 0)
    if not days:
        return staged
    dates = ", ".join(f"DATE '{day}'" for day in days)
    return (
        f"{staged} UNION ALL SELECT c.event_id, raw_events.payload"
        " FROM temp.main.stored_candidates AS c"
        f" JOIN lake.raw_events ON {same_line('raw_events', 'c')}"
        f" WHERE raw_events.received_date IN ({dates})"
        f" AND raw_events.position BETWEEN {least} AND {most}"
        " AND c.event_id NOT LIKE 'content:%'"
    )


def drop_duplicates(connection: duckdb.DuckDBPyConnection) -> None:
    """Unstage the lines that do not have their identity, unless they are dead letters."""
    # Few: to leave them out of each query of the many others would take longer.
    connection.execute(
        "DELETE FROM temp.main.staged_lines WHERE rowid IN (SELECT line_no"
        " FROM temp.main.candidates WHERE line_no IS NOT NULL AND rank > 1)"
        " AND reason IS NULL"
    )
