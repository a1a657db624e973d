"""Event lines into `raw_events`, `enriched_events` and `dead_letter_events`, each exactly once.

Whatever the source, its lines are staged, typed and judged outside of any transaction; `settle`
then puts them into the tables within the caller's, together with the caller's ledger entry.

Of events with one identity the one that was received first counts, by the time of receipt that its
source recorded, then by position, whichever was ingested first. So the tables follow from what was
received alone: any order of arrival gives the same ones. The others are duplicates if they have the
content of the first, and dead letters if not.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import duckdb
import numpy as np
from typing_extensions import Self

from retail_assets import tables
from retail_assets.engines.event_content import content_id, same_content
from retail_assets.ingest.events import staging as workspace
from retail_assets.ingest.events.cache import memory_of
from retail_assets.ingest.events.staging import (
    FIRST_RECEIVED,
    KEY,
    ORIGIN,
    PLACE,
    RANK_FIELDS,
    judged_sql,
    origin_of,
)
from retail_assets.lake.connection import Lake
from retail_assets.lake.rows import insert_columns
from retail_assets.lake.sql import literal

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

_SOURCE_COLUMNS = ("received_date", "source", "source_name", "version")
_LINE_COLUMNS = ("position", "received_us", "payload", "defect")

CONFLICT = "conflicting_event"

_STORED = f"{PLACE}, payload, defect, true AS stored, event_id AS stored_id"
"""Lines of raw_events as `EventBatch` stages them."""

_IDENTITY = f"CASE WHEN reason IS NULL OR reason = '{CONFLICT}' THEN own_id END"

SMALL = 2_000
"""Up to so many lines a batch goes through prepared statements, one row after the other; more go
straight from where they are."""


@dataclass(frozen=True)
class Delta:
    """What changed for a version of a source: rows that came to the tables less those that left.

    `taken` and `taken_dead` are those of them that were received now: they came by no change
    elsewhere.
    """

    source: str
    source_name: str
    version: int = 1
    accepted: int = 0
    dead_lettered: int = 0
    taken: int = 0
    taken_dead: int = 0


@dataclass(frozen=True)
class Settled:
    """What a batch of lines has changed.

    `deltas` says it by source, and `new_fields` names the fields (with their JSON type) that no
    event had before.
    """

    deltas: tuple[Delta, ...]
    new_fields: tuple[tuple[str, str], ...]


class AbortError(Exception):
    """Ends a transaction without its changes."""


class EventBatch:
    """Lines on their way into the tables; one at a time on a connection.

    `add` lines outside of a transaction, unless they are few; in one, `retract` what is replaced,
    then `settle`.
    As a context manager it drops what it staged.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._memory = memory_of(connection)
        self._remembers = False
        self._small = True
        self._staged = False
        self._rows = 0
        # Nothing was staged but what was received now, and nobody claims its identities.
        self._fresh, self._unrivalled = True, False
        self._identities = np.empty(0, np.uint64)
        self._has_invalid = self._has_extra = True

    def __enter__(self) -> Self:
        workspace.open_workspace(self._connection)
        if self._memory:
            self._memory.prepare(self._connection)
        return self

    def __exit__(self, *_: object) -> None:
        plain = self._small and self._fresh and self._unrivalled
        workspace.clear(self._connection, rows=self._rows, plain=plain)

    @contextmanager
    def transaction(
        self, lake: Lake, message: str, received: "tuple[pa.Table, pa.Table] | None"
    ) -> Iterator[None]:
        """A transaction of the lake, with lines as `add` takes them staged already, if any.

        The memory of the connection is up to date in it. While it has much to take up for that,
        it is in no transaction.
        """
        few = received is not None and received[0].num_rows <= SMALL
        if received is not None and not few:
            self.add(*received)
        with ExitStack() as stack:
            stack.enter_context(lake.transaction(self._connection, message))
            self._remember()
            if self._memory and self._memory.is_behind:
                # To take up so much would hold up all who write.
                stack.close()
                self._memory.prepare(self._connection)
                stack.enter_context(lake.transaction(self._connection, message))
                self._memory.refresh(self._connection)
            if received is not None and few:
                # Each statement outside would be a transaction of its own, which opens the
                # catalog: that takes longer than to judge these.
                self.add(*received)
            yield

    def add(self, lines: "pa.Table", sources: "pa.Table") -> None:
        """Stage and judge lines as they were received.

        Args:
            lines: `source_no` (integer), `position` (int64), `received_us` (int64: when the source
                recorded the receipt, in microseconds since 1970; null if it is not known),
                `payload` and `defect` (string); in several chunks, so that all cores have work.
            sources: `source_no` (from 0, in order), `received_date` (date), `source` and
                `source_name` (string), `version` (int64).
        """
        self._rows += lines.num_rows
        self._small = self._small and lines.num_rows <= SMALL
        if self._memory:
            self._memory.use_one_thread(self._connection, only=self._small)
        if lines.num_rows <= SMALL:
            self._add_few(lines, sources)
            return
        workspace.forget_plans(self._connection)
        for name, table in (("arrow_lines", lines), ("arrow_sources", sources)):
            self._connection.register(name, table)
        try:
            self._judge(
                "SELECT s.received_date, s.source, s.source_name, s.version, l.position,"
                " make_timestamptz(l.received_us) AS received_at, l.payload, l.defect,"
                " false AS stored, NULL::VARCHAR AS stored_id"
                " FROM arrow_lines AS l JOIN arrow_sources AS s USING (source_no)"
            )
        finally:
            for name in ("arrow_lines", "arrow_sources"):
                self._connection.unregister(name)

    def _add_few(self, lines: "pa.Table", sources: "pa.Table") -> None:
        # To register a table would change the catalog, and spoil the prepared statements.
        places = sources.take(lines["source_no"].combine_chunks())
        values = [
            *(places[name].to_pylist() for name in _SOURCE_COLUMNS),
            *(lines[name].to_pylist() for name in _LINE_COLUMNS),
        ]
        self._connection.execute(
            "INSERT INTO temp.main.received_lines SELECT unnest(?::DATE[]), unnest(?::VARCHAR[]),"
            " unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::BIGINT[]),"
            " make_timestamptz(unnest(?::BIGINT[])), unnest(?::VARCHAR[]), unnest(?::VARCHAR[]),"
            " false, NULL",
            values,
        )
        self._stage(None)
        self._connection.execute("TRUNCATE temp.main.received_lines")

    def add_day(self, day: date) -> None:
        """In a transaction, stage all lines of a day to be judged anew, in place of the old."""
        self._small = self._fresh = False
        execute = self._connection.execute
        self._judge(
            f"SELECT {_STORED} FROM lake.raw_events"
            f" WHERE received_date = DATE '{day}' AND {self._not_retracted()}"
        )
        execute(
            f"INSERT INTO temp.main.gone_events SELECT event_id, {PLACE},"
            " 1, 0 FROM lake.enriched_events WHERE received_date = ?",
            [day],
        )
        execute(
            f"INSERT INTO temp.main.gone_events SELECT NULL, {PLACE}, 0, 1"
            " FROM lake.dead_letter_events WHERE received_date = ?",
            [day],
        )
        for table in (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS):
            execute(f"DELETE FROM lake.{table.name} WHERE received_date = ?", [day])

    def _judge(self, lines: str) -> None:
        """Type and judge the lines of a query, and stage them."""
        self._stage(f"INSERT INTO temp.main.judged_events {judged_sql(f'({lines})')}")

    def _stage(self, statement: str | None) -> None:
        """Stage judged lines, by a statement or the prepared one; give those without id one."""
        execute = self._connection.execute
        last = -1
        if self._staged:
            found = execute("SELECT max(rowid) FROM temp.main.judged_events").fetchone()
            last = -1 if found is None or found[0] is None else found[0]
        self._staged = True
        if statement is None:
            self._execute("judge_events")
        else:
            execute(statement)
        if self._execute("find_unnamed", f"{last}").fetchone():
            self._execute("identify_events", f"{last}")
            self._identify_others(last)

    def _identify_others(self, last: int) -> None:
        """Give an identity to lines whose content is not plain."""
        found = self._execute("read_unnamed", f"{last}").fetchall()
        if found:
            ids = [content_id(payload) for _, payload in found]
            self._connection.execute(
                "UPDATE temp.main.judged_events SET own_id = c.id FROM"
                " (SELECT unnest(?::BIGINT[]) AS line_no, unnest(?::VARCHAR[]) AS id) AS c"
                " WHERE judged_events.rowid = c.line_no",
                [[line_no for line_no, _ in found], ids],
            )

    def _execute(self, name: str, argument: str = "") -> duckdb.DuckDBPyConnection:
        return workspace.execute(self._connection, name, argument, prepared=self._small)

    def problems(self) -> list[tuple[str, str, str | None]]:
        """The name of the source, the reason and the field of each line that is not valid."""
        return self._connection.execute(
            "SELECT source_name, reason, field FROM temp.main.judged_events"
            " WHERE reason IS NOT NULL"
        ).fetchall()

    def retract(self, source: str, versions: Collection[tuple[str, int]]) -> None:
        """In a transaction, take the events and dead letters of versions of files back.

        So are the redrives of their dead letters; `raw_events` keeps all lines. What they counted
        is not in the deltas: the ledger keeps it with the version.
        """
        if not versions:
            return
        self._fresh = False
        names, numbers = zip(*versions, strict=True)
        self._connection.execute(
            "INSERT INTO temp.main.retracted_files SELECT"
            f" {origin_of('?', 'name', 'version')} FROM (SELECT unnest(?::VARCHAR[]) AS name,"
            " unnest(?::BIGINT[]) AS version)",
            [source, names, numbers],
        )
        self._remove(
            (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS),
            f"((source = ? AND source_name IN (SELECT unnest(?::VARCHAR[]))) OR source = 'redrive')"
            f" AND {ORIGIN} IN (FROM temp.main.retracted_files)",
            [source, names],
        )

    def displace(self, source: str, versions: Collection[tuple[str, int]]) -> None:
        """In a transaction, take all lines of versions of files out of the tables.

        They are there as lines of another file with the same content.
        """
        if versions:
            self._fresh = False
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
        self._connection.execute(
            f"INSERT INTO temp.main.gone_events SELECT event_id, {PLACE}, 0, 0"
            f" FROM lake.enriched_events WHERE {where}",
            parameters,
        )
        for table in from_tables:
            self._connection.execute(f"DELETE FROM lake.{table.name} WHERE {where}", parameters)

    def leave_out(self, source: str, source_names: Collection[str]) -> None:
        """Forget what was staged of some sources."""
        if source_names:
            self._connection.execute(
                "DELETE FROM temp.main.judged_events WHERE source = ?"
                " AND source_name IN (SELECT unnest(?::VARCHAR[]))",
                [source, list(source_names)],
            )

    def leave_out_before(self, source: str, source_name: str, position: int) -> None:
        """Forget what was staged of a source below a position."""
        self._connection.execute(
            "DELETE FROM temp.main.judged_events WHERE source = ? AND source_name = ?"
            " AND position < ?",
            [source, source_name, position],
        )

    def inherit(
        self,
        source: str,
        owner: tuple[str, int],
        heir: tuple[str, int],
        received_date: date,
        received_us: int,
    ) -> None:
        """In a transaction, stage the lines of a version of a file once more, as those of another.

        They were received at the one time that is known of the heir, in microseconds since 1970.
        """
        self._fresh = False
        self._judge(
            f"SELECT DATE '{received_date}' AS received_date, source, {literal(heir[0])} AS"
            f" source_name, {heir[1]}::BIGINT AS version, position,"
            f" make_timestamptz({received_us}) AS received_at, payload, defect, false AS stored,"
            " NULL::VARCHAR AS stored_id FROM lake.raw_events"
            f" WHERE source = {literal(source)} AND source_name = {literal(owner[0])}"
            f" AND version = {owner[1]}"
        )

    def settle(self) -> Settled:
        """In a transaction, put what was judged into the tables."""
        self._remember()
        if not self._fresh:
            self._promote()
        self._survey()
        self._pick()
        self._insert()
        new_fields = self._fields()
        self._drop_beaten()
        self._enrich()
        return Settled(self._deltas(), new_fields)

    def _remember(self) -> None:
        """In a transaction, bring the memory up to date, once."""
        if self._memory and not self._remembers:
            self._memory.refresh(self._connection)
            self._remembers = True

    def _promote(self) -> None:
        """Stage what else claims the identities that are gone: it is compared with another now."""
        gone = "SELECT event_id FROM temp.main.gone_events WHERE event_id IS NOT NULL"
        if not self._connection.execute(f"{gone} LIMIT 1").fetchone():
            return
        self._judge(
            f"SELECT {_STORED} FROM lake.raw_events WHERE event_id IN ({gone})"
            f" AND {self._not_retracted()}"
            " AND NOT EXISTS (SELECT 1 FROM temp.main.judged_events AS j"
            f" WHERE j.stored AND {_same_place('raw_events', 'j')})"
        )
        letters = (
            f"lake.dead_letter_events WHERE reason = '{CONFLICT}' AND EXISTS"
            " (SELECT 1 FROM temp.main.judged_events AS j"
            f" WHERE j.stored AND {_same_place('dead_letter_events', 'j')})"
        )
        self._connection.execute(
            f"INSERT INTO temp.main.gone_events SELECT NULL, {PLACE}, 0, 1 FROM {letters}"
        )
        self._connection.execute(f"DELETE FROM {letters}")

    def _not_retracted(self) -> str:
        """The condition that leaves lines of retracted versions out."""
        self._connection.execute(
            "INSERT INTO temp.main.retracted_files SELECT"
            f" {origin_of(literal('file'), 'path', 'version')} FROM lake.event_files"
            " WHERE retracted_at IS NOT NULL"
        )
        return f"{ORIGIN} NOT IN (FROM temp.main.retracted_files)"

    def _survey(self) -> None:
        """Look once at what was judged."""
        found = self._execute("survey_events").fetchnumpy()
        valid = np.asarray(found["valid"], np.bool_)
        self._rows = max(self._rows, len(valid))
        self._identities = np.asarray(found["id"], np.uint64)[valid]
        self._has_invalid = not valid.all()
        self._has_extra = bool(np.asarray(found["extra"], np.bool_)[valid].any())

    def _pick(self) -> None:
        """Find which of the lines that claim an identity has it, and what becomes of the others."""
        known: list[int] | None = None
        if self._memory:
            identities: list[int] = self._identities.tolist()
            known = self._memory.known(identities)
            self._memory.add(identities)
        if known == [] and not _twins(self._identities):
            self._unrivalled = True
            return
        self._rank(known)
        if self._demote():
            self._promote()
            self._survey()
            self._rank(known)
        self._find_conflicts()

    def _rank(self, known: list[int] | None) -> None:
        """Rank the lines of each identity that several claim, or the lake has.

        Args:
            known: hashes of the identities that the lake may have; None if it may have any.
        """
        execute = self._connection.execute
        for table in ("current_events", "rival_events"):
            execute(f"TRUNCATE temp.main.{table}")
        valid = "temp.main.judged_events WHERE reason IS NULL"
        looked_up, parameters = f"SELECT own_id FROM {valid}", []
        if known is not None:
            looked_up += " AND hash(own_id) IN (SELECT unnest(?::UBIGINT[]))"
            parameters = [known]
        execute(
            f"INSERT INTO temp.main.current_events BY NAME SELECT event_id, {PLACE}, {RANK_FIELDS}"
            f" FROM lake.enriched_events WHERE event_id IN ({looked_up})",
            parameters,
        )
        # Few are left to be ranked.
        rivals = (
            "hash(own_id) IN (SELECT unnest(?::UBIGINT[])"
            " UNION ALL SELECT hash(event_id) FROM temp.main.current_events)"
        )
        execute(
            "INSERT INTO temp.main.rival_events SELECT event_id, line_no, row_number() OVER"
            f" (PARTITION BY event_id ORDER BY {FIRST_RECEIVED}) AS place FROM"
            f" (SELECT own_id AS event_id, rowid AS line_no, {PLACE}, {RANK_FIELDS}"
            f" FROM {valid} AND {rivals}"
            " UNION ALL BY NAME SELECT * FROM temp.main.current_events)",
            [_twins(self._identities)],
        )

    def _demote(self) -> bool:
        """Take events out of the tables that were received after a line that comes now."""
        execute = self._connection.execute
        demoted = "SELECT event_id FROM temp.main.rival_events WHERE line_no IS NULL AND place > 1"
        if not execute(f"{demoted} LIMIT 1").fetchone():
            return False
        self._fresh = False
        execute(
            f"INSERT INTO temp.main.gone_events SELECT event_id, {PLACE},"
            f" 1, 0 FROM temp.main.current_events WHERE event_id IN ({demoted})"
        )
        execute(f"DELETE FROM lake.enriched_events WHERE event_id IN ({demoted})")
        return True

    def _find_conflicts(self) -> None:
        """Make dead letters of lines that say something else than the first of their identity."""
        pairs = self._connection.execute(
            f"WITH firsts AS ({self._firsts()})"
            " SELECT r.line_no, j.payload, f.payload FROM temp.main.rival_events AS r"
            " JOIN temp.main.judged_events AS j ON j.rowid = r.line_no JOIN firsts AS f"
            " ON f.event_id = r.event_id WHERE r.place > 1 AND j.payload <> f.payload"
        ).fetchall()
        conflicts = [line_no for line_no, one, other in pairs if not same_content(one, other)]
        if conflicts:
            self._has_invalid = True
            self._connection.execute(
                f"UPDATE temp.main.judged_events SET reason = '{CONFLICT}', field = 'event_id'"
                " WHERE rowid IN (SELECT unnest(?::BIGINT[]))",
                [conflicts],
            )

    def _firsts(self) -> str:
        """The query for `event_id` and `payload` of the first of each identity that has rivals.

        An identity that was made of the content has none of another content.
        """
        staged = (
            "SELECT r.event_id, j.payload FROM temp.main.rival_events AS r"
            " JOIN temp.main.judged_events AS j ON j.rowid = r.line_no"
            " WHERE r.place = 1 AND r.event_id NOT LIKE 'content:%'"
        )
        # Constants, so that only the files that have these lines are read.
        days, least, most = self._connection.execute(
            "SELECT list(DISTINCT received_date::VARCHAR), min(position), max(position)"
            " FROM temp.main.current_events"
        ).fetchone() or (None, 0, 0)
        if not days:
            return staged
        dates = ", ".join(f"DATE '{day}'" for day in days)
        return (
            f"{staged} UNION ALL SELECT c.event_id, raw_events.payload"
            " FROM temp.main.current_events AS c"
            f" JOIN lake.raw_events ON {_same_place('raw_events', 'c')}"
            f" WHERE raw_events.received_date IN ({dates})"
            f" AND raw_events.position BETWEEN {least} AND {most}"
            " AND c.event_id NOT LIKE 'content:%'"
        )

    def _insert(self) -> None:
        execute = self._connection.execute
        judged = "temp.main.judged_events"
        execute(
            f"INSERT INTO lake.raw_events BY NAME SELECT {PLACE}, payload, defect,"
            f" {_IDENTITY} AS event_id FROM {judged} WHERE NOT stored"
        )
        if not self._fresh:
            self._update_stored()
        if self._has_invalid:
            execute(
                f"INSERT INTO lake.dead_letter_events BY NAME SELECT {PLACE}, reason, field,"
                f" payload, now() AS processed_at FROM {judged}"
                " WHERE reason IS NOT NULL"
            )

    def _update_stored(self) -> None:
        """Enter the identities of lines that are there already, where they have changed."""
        execute = self._connection.execute
        changed = (
            "temp.main.judged_events AS j"
            f" WHERE j.stored AND j.stored_id IS DISTINCT FROM ({_IDENTITY})"
        )
        if execute(f"SELECT 1 FROM {changed} LIMIT 1").fetchone():
            execute(
                f"UPDATE lake.raw_events SET event_id = c.now FROM (SELECT {PLACE},"
                f" {_IDENTITY} AS now FROM {changed}) AS c WHERE " + _same_place("raw_events", "c")
            )

    def _drop_beaten(self) -> None:
        """Forget the lines that lost their identity to another: they have all that they get."""
        if not self._unrivalled:
            # Few: to leave them out of each query of the many others would take longer.
            self._connection.execute(
                "DELETE FROM temp.main.judged_events WHERE rowid IN (SELECT line_no"
                " FROM temp.main.rival_events WHERE line_no IS NOT NULL AND place > 1)"
                " AND reason IS NULL"
            )

    def _enrich(self) -> None:
        execute = self._connection.execute
        source = workspace.enriched_sql()
        for table in workspace.REFERENCE_KEYS:
            copied = self._memory is not None and self._memory.holds(table)
            if not copied:
                execute(workspace.choose_sql(table, f"lake.{table}"))
            elif self._small:
                self._execute(f"choose_{table}")
            else:
                # To choose the rows that are needed takes as long as the join with all.
                source = source.replace(f"known_{table}", f"all_{table}")
        if self._small:
            self._execute("enrich_events", "now()")
            source = "SELECT * FROM temp.main.entering_events"
        execute(f"INSERT INTO lake.enriched_events BY NAME {source}")

    def _deltas(self) -> tuple[Delta, ...]:
        if self._fresh and self._unrivalled:
            return tuple(Delta(*row) for row in self._execute("count_events").fetchall())
        rows = self._connection.execute(
            "SELECT source, source_name, version, sum(accepted), sum(dead_lettered),"
            " coalesce(sum(accepted) FILTER (taken), 0),"
            " coalesce(sum(dead_lettered) FILTER (taken), 0) FROM"
            " (SELECT source, source_name, version, 1 AS accepted, 0 AS dead_lettered,"
            " NOT stored AS taken"
            " FROM temp.main.judged_events WHERE reason IS NULL"
            " UNION ALL SELECT source, source_name, version, 0, 1, NOT stored"
            " FROM temp.main.judged_events WHERE reason IS NOT NULL"
            " UNION ALL SELECT source, source_name, version, -accepted, -dead_lettered, false"
            " FROM temp.main.gone_events) GROUP BY ALL"
        ).fetchall()
        return tuple(Delta(*row) for row in rows)

    def _fields(self) -> tuple[tuple[str, str], ...]:
        """Note which fields valid events have beyond the known ones; returns the new ones."""
        execute = self._connection.execute
        if not self._has_extra:
            return ()
        if self._memory and self._small:
            there = set(self._execute("list_fields").fetchall())
            if there <= self._memory.fields:
                return ()
            self._memory.fields.update(
                execute("SELECT field, type FROM lake.event_fields").fetchall()
            )
            if there <= self._memory.fields:
                return ()
        found = execute(
            f"FROM ({workspace.fields_sql()}) AS found"
            " WHERE NOT EXISTS (SELECT 1 FROM lake.event_fields AS known"
            " WHERE known.field = found.field AND known.type = found.type)"
            " ORDER BY ALL LIMIT greatest(0, ? - (SELECT count(*) FROM lake.event_fields))",
            [workspace.MAX_FIELDS],
        ).fetchall()
        if found:
            columns = {
                "field VARCHAR": [field for field, _ in found],
                "type VARCHAR": [type_ for _, type_ in found],
            }
            insert_columns(self._connection, "event_fields", columns, "now() AS first_seen_at")
        return tuple(found)


def _twins(identities: "npt.NDArray[np.uint64]") -> list[int]:
    """Those of some hashes that are there more than once."""
    # Many times faster than np.unique or GROUP BY.
    ordered = np.sort(identities)
    twins: list[int] = ordered[1:][ordered[1:] == ordered[:-1]].tolist()
    return twins


def _same_place(one: str, other: str) -> str:
    """Whether rows of two tables are of the same line."""
    return " AND ".join(f"{other}.{name} = {one}.{name}" for name in KEY)
