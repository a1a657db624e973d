"""Event lines into `raw_events`, `enriched_events` and `dead_letter_events`, each exactly once.

Whatever the source, its lines are staged and validated, then put into the tables in one transaction
with the caller's ledger entry.

Of events with one identity the one that was received first counts, by the time of receipt that its
source recorded, then by position, whichever was ingested first. So the tables follow from what was
received alone: any order of arrival gives the same ones. The others are duplicates if they have the
content of the first, and dead letters if not.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from retail_assets import tables
from retail_assets.ingest.events import duplicates, mapping_ledger
from retail_assets.ingest.events.columns import (
    ORIGIN,
    RECEIPT,
    STORED_LINE,
    origin_of,
    same_line,
)
from retail_assets.ingest.events.duplicates import CONFLICT
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.events.staging import STAGED
from retail_assets.ingest.events.strategies import Large, Small
from retail_assets.lake.rows import insert_columns
from retail_assets.lake.sql import literal
from retail_assets.transforms.events import UNKNOWN_CURRENCY

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

_REMOVED = (
    ("event_id", tables.ENRICHED_EVENTS, "1, 0"),
    ("NULL", tables.DEAD_LETTER_EVENTS, "0, 1"),
)
"""The identity of rows that leave a table, and what they count."""

_IDENTITY = f"CASE WHEN reason IS NULL OR reason = '{CONFLICT}' THEN own_id END"

_SURVEY = (
    f"SELECT hash(own_id) AS id, reason IS NULL AS valid, extra IS NOT NULL AS extra FROM {STAGED}"
)
_COUNT = (
    "SELECT source, source_name, version, sum(accepted)::BIGINT, sum(dead)::BIGINT,"
    " coalesce(sum(accepted) FILTER (is_new), 0)::BIGINT,"
    " coalesce(sum(dead) FILTER (is_new), 0)::BIGINT FROM"
    " (SELECT source, source_name, version, (reason IS NULL)::INTEGER AS accepted,"
    f" (reason IS NOT NULL)::INTEGER AS dead, NOT stored AS is_new FROM {STAGED}"
    " UNION ALL SELECT source, source_name, version, -accepted, -dead_lettered, false"
    " FROM temp.main.removed_events) GROUP BY ALL"
)

SMALL = 2_000
"""Up to so many lines a batch goes through prepared statements; more go straight from Arrow."""

MAX_FIELDS = 1_000
"""How many fields beyond the known ones are kept count of: their names may be made up."""


@dataclass(frozen=True)
class Delta:
    """The changes of a version of a source: rows that came to the tables less those that left.

    `new_accepted` and `new_dead_lettered` are those of them that were received now.
    """

    source: str
    source_name: str
    version: int = 1
    accepted: int = 0
    dead_lettered: int = 0
    new_accepted: int = 0
    new_dead_lettered: int = 0


@dataclass(frozen=True)
class BatchResult:
    """The changes of a batch of lines.

    `deltas` says it by source, and `new_fields` names the fields (with their JSON type) that no
    event had before.
    """

    deltas: tuple[Delta, ...]
    new_fields: tuple[tuple[str, str], ...]


class AbortError(Exception):
    """Ends a transaction without its changes."""


def abort() -> NoReturn:
    """End a transaction without its changes."""
    raise AbortError


@contextmanager
def event_batch(
    session: EventSession, message: str, received: "tuple[pa.Table, pa.Table] | None" = None
) -> Iterator["EventBatch"]:
    """A transaction of the lake with a batch in it, its lines staged; one at a time on a session.

    Args:
        session: whose connection is in no transaction.
        message: what the history of the lake says of the transaction.
        received: lines and sources, if any were received. Lines: `source_no` (integer), `position`
            (int64), `received_us` (int64: when the source recorded the receipt, in microseconds
            since 1970; null if it is not known), `payload` and `defect` (string); in several
            chunks, so that all cores have work. Sources: `source_no` (from 0, in order),
            `received_date` (date), `source` and `source_name` (string), `version` (int64).
    """
    rows = received[0].num_rows if received else 0
    kind = Small if 0 < rows <= SMALL else Large
    strategy = kind(session.staging, session.cache)
    is_small = isinstance(strategy, Small)
    batch = EventBatch(session, strategy)
    session.open(small=is_small)
    try:
        if received and not is_small:
            strategy.stage(*received)
        with session.transaction(message):
            if received and is_small:
                # Each statement outside would be a transaction of its own, which opens the
                # catalog: that takes longer than to validate these.
                strategy.stage(*received)
            # Only now: rates may have come a moment ago.
            strategy.convert()
            yield batch
        if session.cache and batch.applied:
            session.cache.mapping_is_noted = True
    finally:
        session.staging.clear(changes_stored=batch.changes_stored)


class EventBatch:
    """Staged lines on their way into the tables, in a transaction.

    Change what is stored, or leave lines out, then `apply`.
    """

    def __init__(self, session: EventSession, strategy: Large) -> None:
        self._connection, self._execute = session.connection, session.connection.execute
        self._cache = session.cache
        self._mappings = session.mappings
        self.applied = False
        self._strategy = strategy
        self.changes_stored = False
        """Whether rows left the tables, or stored lines are staged."""

    def problems(self) -> list[tuple[str, str, str | None]]:
        """The name of the source, the reason and the field of each line that is not valid."""
        return self._execute(
            f"SELECT source_name, reason, field FROM {STAGED} WHERE reason IS NOT NULL"
        ).fetchall()

    def leave_out(self, source: str, source_names: Collection[str]) -> None:
        """Unstage the lines of some sources."""
        if source_names:
            self._execute(
                f"DELETE FROM {STAGED} WHERE source = ?"
                " AND source_name IN (SELECT unnest(?::VARCHAR[]))",
                [source, list(source_names)],
            )

    def leave_out_before(self, source: str, source_name: str, position: int) -> None:
        """Unstage the lines of a source below a position."""
        self._execute(
            f"DELETE FROM {STAGED} WHERE source = ? AND source_name = ? AND position < ?",
            [source, source_name, position],
        )

    def leave_out_positions(
        self, source: str, source_name: str, positions: Collection[int]
    ) -> None:
        """Unstage certain lines of a source."""
        self._execute(
            f"DELETE FROM {STAGED} WHERE source = ? AND source_name = ?"
            " AND position IN (SELECT unnest(?::BIGINT[]))",
            [source, source_name, list(positions)],
        )

    def add_day(self, day: date) -> None:
        """Stage all lines of a day to be validated again, to replace their rows."""
        self.changes_stored = True
        self._strategy.stage_query(
            f"SELECT {STORED_LINE} FROM lake.raw_events"
            f" WHERE received_date = DATE '{day}' AND {self._not_retracted()}"
        )
        for id_, table, counts in _REMOVED:
            rows = f"FROM lake.{table.name} WHERE received_date = DATE '{day}'"
            self._execute(
                f"INSERT INTO temp.main.removed_events SELECT {id_}, {RECEIPT}, {counts} {rows}"
            )
            self._execute(f"DELETE {rows}")

    def add_lines(self, lines: str) -> None:
        """Stage some stored lines to be validated again, to replace their rows.

        Dead letters whose currency still has no rate stay as they are.

        Args:
            lines: a table with their keys.
        """
        self.changes_stored = True
        first, last = self._execute(
            f"SELECT min(received_date), max(received_date) FROM {lines}"
        ).fetchone() or (None, None)
        within = f"received_date BETWEEN DATE '{first}' AND DATE '{last}'"
        self._strategy.stage_query(
            f"SELECT {STORED_LINE} FROM lake.raw_events WHERE {within}"
            f" AND EXISTS (SELECT 1 FROM {lines} AS l WHERE {same_line('raw_events', 'l')})"
            f" AND {self._not_retracted()}"
        )
        self._execute(
            f"DELETE FROM {STAGED} WHERE reason = '{UNKNOWN_CURRENCY}' AND EXISTS (SELECT 1"
            f" FROM lake.dead_letter_events AS d WHERE d.reason = '{UNKNOWN_CURRENCY}' AND"
            f" d.{within} AND {same_line('staged_lines', 'd')})"
        )
        for id_, table, counts in _REMOVED:
            rows = (
                f"FROM lake.{table.name} WHERE {within} AND EXISTS"
                f" (SELECT 1 FROM {STAGED} AS s WHERE {same_line(table.name, 's')})"
            )
            self._execute(
                f"INSERT INTO temp.main.removed_events SELECT {id_}, {RECEIPT}, {counts} {rows}"
            )
            self._execute(f"DELETE {rows}")

    def stage_copy(
        self,
        source: str,
        owner: tuple[str, int],
        copy: tuple[str, int],
        received_date: date,
        received_us: int,
    ) -> None:
        """Stage the lines of a version of a file once more, as those of another.

        They were received at the one time that is known of the copy, in microseconds since 1970.
        """
        self.changes_stored = True
        self._strategy.stage_query(
            f"SELECT DATE '{received_date}' AS received_date, source, {literal(copy[0])} AS"
            f" source_name, {copy[1]}::BIGINT AS version, position,"
            f" make_timestamptz({received_us}) AS received_at, payload, defect, false AS stored,"
            " NULL::VARCHAR AS stored_id FROM lake.raw_events"
            f" WHERE source = {literal(source)} AND source_name = {literal(owner[0])}"
            f" AND version = {owner[1]}"
        )

    def retract(self, source: str, versions: Collection[tuple[str, int]]) -> None:
        """Remove the events and dead letters of versions of files, and redrives of the latter.

        `raw_events` keeps all lines. What they counted is not in the deltas: the ledger keeps it
        with the version.
        """
        if not versions:
            return
        names, numbers = zip(*versions, strict=True)
        self._execute(
            "INSERT INTO temp.main.retracted_versions SELECT"
            f" {origin_of('?', 'name', 'version')} FROM (SELECT unnest(?::VARCHAR[]) AS name,"
            " unnest(?::BIGINT[]) AS version)",
            [source, names, numbers],
        )
        self._remove(
            (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS),
            f"((source = ? AND source_name IN (SELECT unnest(?::VARCHAR[]))) OR source = 'redrive')"
            f" AND {ORIGIN} IN (FROM temp.main.retracted_versions)",
            [source, names],
        )

    def remove_copies(self, source: str, versions: Collection[tuple[str, int]]) -> None:
        """Remove all lines of versions of files: another file of the same content has them."""
        if versions:
            names, numbers = zip(*versions, strict=True)
            self._remove(
                (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS, tables.RAW_EVENTS),
                "source = ? AND (source_name, version) IN"
                " (SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[]))",
                [source, names, numbers],
            )

    def _remove(
        self, from_tables: Sequence[tables.Table], where: str, parameters: Sequence[object]
    ) -> None:
        self.changes_stored = True
        self._execute(
            f"INSERT INTO temp.main.removed_events SELECT event_id, {RECEIPT}, 0, 0"
            f" FROM lake.enriched_events WHERE {where}",
            parameters,
        )
        for table in from_tables:
            self._execute(f"DELETE FROM lake.{table.name} WHERE {where}", parameters)

    def apply(self) -> BatchResult:
        """Put what is staged into the tables."""
        if not (self._cache and self._cache.mapping_is_noted):
            mapping_ledger.note(self._connection, self._mappings)
        self.applied = True
        if self.changes_stored:
            self._stage_duplicates_of_removed()
        has_duplicates, survey = self._find_duplicates(self._survey())
        self._insert_lines(has_invalid=survey.has_invalid)
        new_fields = self._enter_new_fields() if survey.has_extra else ()
        if has_duplicates:
            duplicates.drop_duplicates(self._connection)
        self._strategy.insert_enriched()
        return BatchResult(self._deltas(), new_fields)

    def _stage_duplicates_of_removed(self) -> None:
        """Stage all stored lines with identities of removed events: one of them has it now."""
        removed = "SELECT event_id FROM temp.main.removed_events WHERE event_id IS NOT NULL"
        if not self._execute(f"{removed} LIMIT 1").fetchone():
            return
        self._strategy.stage_query(
            f"SELECT {STORED_LINE} FROM lake.raw_events WHERE event_id IN ({removed})"
            f" AND {self._not_retracted()}"
            f" AND NOT EXISTS (SELECT 1 FROM {STAGED} AS s"
            f" WHERE s.stored AND {same_line('raw_events', 's')})"
        )
        leaving = (
            f"lake.dead_letter_events WHERE reason = '{CONFLICT}' AND EXISTS"
            f" (SELECT 1 FROM {STAGED} AS s"
            f" WHERE s.stored AND {same_line('dead_letter_events', 's')})"
        )
        self._execute(
            f"INSERT INTO temp.main.removed_events SELECT NULL, {RECEIPT}, 0, 1 FROM {leaving}"
        )
        self._execute(f"DELETE FROM {leaving}")

    def _not_retracted(self) -> str:
        """The condition that leaves lines of retracted versions out."""
        self._execute(
            "INSERT INTO temp.main.retracted_versions SELECT"
            f" {origin_of(literal('file'), 'path', 'version')} FROM lake.event_files"
            " WHERE retracted_at IS NOT NULL"
        )
        return f"{ORIGIN} NOT IN (FROM temp.main.retracted_versions)"

    def _survey(self) -> "_Survey":
        """Look once at what is staged."""
        found = self._strategy.execute(_SURVEY).fetchnumpy()
        valid = np.asarray(found["valid"], np.bool_)
        return _Survey(
            identities=np.asarray(found["id"], np.uint64)[valid],
            has_invalid=not valid.all(),
            has_extra=bool(np.asarray(found["extra"], np.bool_)[valid].any()),
        )

    def _find_duplicates(self, survey: "_Survey") -> tuple[bool, "_Survey"]:
        """Find which of the lines that claim an identity has it.

        Returns:
            Whether any identity is claimed twice, and what is staged then.
        """
        connection, cache = self._connection, self._cache
        known: list[int] | None = None
        if cache:
            identities: list[int] = survey.identities.tolist()
            known = cache.known(identities)
            cache.add(identities)
        if known == [] and not survey.repeated():
            return False, survey
        duplicates.rank(connection, survey.repeated(), known)
        if duplicates.remove_superseded(connection):
            self.changes_stored = True
            self._stage_duplicates_of_removed()
            survey = self._survey()
            duplicates.rank(connection, survey.repeated(), known)
        has_conflicts = duplicates.find_conflicts(connection, self._mappings)
        return True, replace(survey, has_invalid=survey.has_invalid or has_conflicts)

    def _insert_lines(self, *, has_invalid: bool) -> None:
        """Insert raw lines and dead letters."""
        self._execute(
            f"INSERT INTO lake.raw_events BY NAME SELECT {RECEIPT}, payload, defect,"
            f" {_IDENTITY} AS event_id FROM {STAGED} WHERE NOT stored"
        )
        if self.changes_stored:
            self._update_stored()
        if has_invalid:
            self._execute(
                f"INSERT INTO lake.dead_letter_events BY NAME SELECT {RECEIPT}, reason, field,"
                f" payload, now() AS processed_at FROM {STAGED} WHERE reason IS NOT NULL"
            )

    def _update_stored(self) -> None:
        """Enter the identities of stored lines, where they have changed."""
        changed = f"{STAGED} AS s WHERE s.stored AND s.stored_id IS DISTINCT FROM ({_IDENTITY})"
        if self._execute(f"SELECT 1 FROM {changed} LIMIT 1").fetchone():
            self._execute(
                f"UPDATE lake.raw_events SET event_id = c.now FROM (SELECT {RECEIPT},"
                f" {_IDENTITY} AS now FROM {changed}) AS c WHERE {same_line('raw_events', 'c')}"
            )

    def _enter_new_fields(self) -> tuple[tuple[str, str], ...]:
        """Note which fields valid events have beyond the known ones; returns the new ones."""
        cache = self._cache
        if cache:
            found = self._strategy.execute(_list_fields()).fetchmany(MAX_FIELDS + 1)
            if set(found) <= cache.fields:
                return ()
        new = self._execute(
            f"FROM ({_list_fields()}) AS found"
            " WHERE NOT EXISTS (SELECT 1 FROM lake.event_fields AS known"
            " WHERE known.field = found.field AND known.type = found.type)"
            " ORDER BY ALL LIMIT greatest(0, ? - (SELECT count(*) FROM lake.event_fields))",
            [MAX_FIELDS],
        ).fetchall()
        if cache:
            # Before they are inserted: the transaction may not come to its end.
            known = self._execute("SELECT field, type FROM lake.event_fields").fetchall()
            cache.fields.update(known)
        if new:
            columns = {
                "field VARCHAR": [field for field, _ in new],
                "type VARCHAR": [type_ for _, type_ in new],
            }
            insert_columns(self._connection, "event_fields", columns, "now() AS first_seen_at")
        return tuple(new)

    def _deltas(self) -> tuple[Delta, ...]:
        rows = self._strategy.execute(_COUNT).fetchall()
        return tuple(Delta(*row) for row in rows)


@dataclass(frozen=True)
class _Survey:
    """Staged lines in short: hashes of the identities of valid ones, and whether some need care."""

    identities: "npt.NDArray[np.uint64]"
    has_invalid: bool
    has_extra: bool

    def repeated(self) -> list[int]:
        """The hashes that are there more than once."""
        # Many times faster than np.unique or GROUP BY.
        ordered = np.sort(self.identities)
        found: list[int] = ordered[1:][ordered[1:] == ordered[:-1]].tolist()
        return found


def _list_fields() -> str:
    """The query for `field` and `type` of what valid events have beyond the known fields.

    Of an event with more than `MAX_FIELDS` the first count. `json_each` would copy an event as
    often as it has fields.
    """
    return (
        "SELECT DISTINCT left(e.key, 200) AS field, coalesce(json_type(e.value), 'NULL') AS type"
        " FROM (SELECT unnest(map_entries(json_transform(extra, '\"MAP(VARCHAR, JSON)\"'))"
        f"[1:{MAX_FIELDS}]) AS e FROM {STAGED} WHERE extra IS NOT NULL AND reason IS NULL)"
    )
