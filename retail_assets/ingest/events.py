"""Event lines into `raw_events`, `enriched_events` and `dead_letter_events`, each exactly once.

Whatever the source, its lines are staged, typed and judged outside of any transaction; `settle`
then puts them into the tables within the caller's, together with the caller's ledger entry.

Of events with one identity the one that was received first counts, by day, source, name and
position, whichever was taken in first. So the tables follow from what was received alone: any order
of arrival gives the same ones.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw
from typing_extensions import Self

from retail_assets import tables
from retail_assets.engines import duckdb_events as engine
from retail_assets.lake import days as ledger
from retail_assets.lake.rows import insert_columns
from retail_assets.sql import literal
from retail_assets.transforms import events

if TYPE_CHECKING:
    import pyarrow as pa

PLACE = "received_date, source, source_name, position"
"""What tells received lines apart, and which of two was first."""

MAX_FIELDS = 1_000
"""How many fields beyond the known ones are kept count of: their names may be made up."""

_GONE = """
    event_id VARCHAR, order_id VARCHAR, order_date DATE, received_date DATE, source VARCHAR,
    source_name VARCHAR, position BIGINT, accepted INTEGER, dead_lettered INTEGER
"""
"""Rows that leave enriched_events or dead_letter_events, and what their source loses by it."""

_ENTERING = "reason IS NULL AND rowid NOT IN (SELECT line_no FROM temp.main.beaten_events)"

_IDENTITY = "CASE WHEN reason IS NULL THEN own_id END"

_STAGED = (
    "judged_events",
    "gone_events",
    "current_events",
    "rival_events",
    "beaten_events",
)


@dataclass(frozen=True)
class Delta:
    """What changed for one source: rows that came to the tables less rows that left them.

    `taken` and `taken_dead` are those of them that were received now: they came by no change
    elsewhere.
    """

    source: str
    source_name: str
    accepted: int = 0
    dead_lettered: int = 0
    taken: int = 0
    taken_dead: int = 0


@dataclass(frozen=True)
class Settled:
    """What a batch of lines has changed.

    `deltas` says it by source, `days` names the received days concerned, and `new_fields` the
    fields (with their JSON type) that no event had before.
    """

    deltas: tuple[Delta, ...]
    days: frozenset[date]
    new_fields: tuple[tuple[str, str], ...]


class EventBatch:
    """Lines on their way into the tables; one at a time on a connection.

    `add` lines outside of a transaction; in one, `retract` what is replaced, then `settle`.
    As a context manager it drops what it staged.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        self._drop()
        execute = self._connection.execute
        execute(f"CREATE TEMP TABLE gone_events ({_GONE})")
        nothing = f"SELECT {_stored(replayed=False)} FROM lake.raw_events LIMIT 0"
        execute(f"CREATE TEMP TABLE judged_events AS {self._judged_lines(nothing)}")
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def _drop(self) -> None:
        for name in _STAGED:
            self._connection.execute(f"DROP TABLE IF EXISTS temp.main.{name}")

    def add(self, lines: "pa.Table", sources: "pa.Table") -> None:
        """Stage and judge lines as they were received.

        Args:
            lines: `source_no` (integer), `position` (int64), `payload` and `defect` (string); in
                several chunks, so that all cores have work.
            sources: `source_no`, `received_date` (date), `source` and `source_name` (string).
        """
        for name, table in (("arrow_lines", lines), ("arrow_sources", sources)):
            self._connection.register(name, table)
        try:
            self._judge(
                "SELECT s.received_date, s.source, s.source_name, l.position, l.payload, l.defect,"
                " false AS stored, NULL::VARCHAR AS stored_id, false AS replayed"
                " FROM arrow_lines AS l JOIN arrow_sources AS s USING (source_no)"
            )
        finally:
            for name in ("arrow_lines", "arrow_sources"):
                self._connection.unregister(name)

    def add_day(self, day: date) -> None:
        """In a transaction, stage all lines of a day to be judged anew, in place of the old."""
        execute = self._connection.execute
        self._judge(
            f"SELECT {_stored(replayed=True)} FROM lake.raw_events"
            f" WHERE received_date = DATE '{day}'"
        )
        execute(
            f"INSERT INTO temp.main.gone_events SELECT event_id, order_id, order_date, {PLACE},"
            " 1, 0 FROM lake.enriched_events WHERE received_date = ?",
            [day],
        )
        execute(
            f"INSERT INTO temp.main.gone_events SELECT NULL, NULL, NULL, {PLACE}, 0, 1"
            " FROM lake.dead_letter_events WHERE received_date = ?",
            [day],
        )
        for table in (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS):
            execute(f"DELETE FROM lake.{table.name} WHERE received_date = ?", [day])

    def _judge(self, lines: str) -> None:
        """Type and judge lines, and stage them."""
        execute = self._connection.execute
        first = self._staged()
        execute(f"INSERT INTO temp.main.judged_events {self._judged_lines(lines)}")
        unnamed = (
            "(SELECT rowid AS line_no, payload FROM temp.main.judged_events"
            f" WHERE own_id IS NULL AND reason IS NULL AND rowid >= {first})"
        )
        if execute(f"SELECT 1 FROM {unnamed} LIMIT 1").fetchone():
            execute(
                "UPDATE temp.main.judged_events SET own_id = c.event_id"
                f" FROM ({engine.content_ids(unnamed)}) AS c"
                " WHERE judged_events.rowid = c.line_no"
            )

    def _staged(self) -> int:
        (count,) = self._connection.execute(
            "SELECT coalesce(max(rowid), -1) + 1 FROM temp.main.judged_events"
        ).fetchone() or (0,)
        return int(count)

    def _judged_lines(self, lines: str) -> str:
        rows = nw.from_native(self._connection.sql(engine.parsed(f"({lines})")))
        judged = events.judge(rows).drop(*_READING).to_native().sql_query()
        return f"SELECT *, nullif(event_id, '') AS own_id FROM ({judged})"

    def problems(self) -> list[tuple[str, str, str | None]]:
        """The name of the source, the reason and the field of each line that is not valid."""
        return self._connection.execute(
            "SELECT source_name, reason, field FROM temp.main.judged_events"
            " WHERE reason IS NOT NULL"
        ).fetchall()

    def retract(self, source: str, source_names: Collection[str], *, redrives: bool = True) -> None:
        """In a transaction, take all lines of some sources out of the tables again.

        So are, unless told otherwise, the redrives of their dead letters. What they counted is not
        in the deltas: the ledger keeps it with the version that is gone.
        """
        if not source_names:
            return
        letters = [f"{source}:{name}" for name in source_names] if redrives else []
        names = [source, list(source_names), letters]
        where = (
            "WHERE (source = ? AND source_name IN (SELECT unnest(?::VARCHAR[])))"
            " OR (source = 'redrive' AND regexp_replace(source_name, ':[0-9]+$', '')"
            " IN (SELECT unnest(?::VARCHAR[])))"
        )
        self._connection.execute(
            f"INSERT INTO temp.main.gone_events SELECT event_id, order_id, order_date, {PLACE},"
            f" 0, 0 FROM lake.enriched_events {where}",
            names,
        )
        for table in (tables.RAW_EVENTS, tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS):
            self._connection.execute(f"DELETE FROM lake.{table.name} {where}", names)

    def leave_out(self, source: str, source_names: Collection[str]) -> None:
        """Forget what was staged of some sources."""
        if source_names:
            self._connection.execute(
                "DELETE FROM temp.main.judged_events WHERE source = ?"
                " AND source_name IN (SELECT unnest(?::VARCHAR[]))",
                [source, list(source_names)],
            )

    def inherit(self, source: str, source_name: str, heir: str, received_date: date) -> None:
        """In a transaction, stage what is stored of a source once more, as lines of another."""
        self._judge(
            f"SELECT DATE '{received_date}' AS received_date, source, {literal(heir)} AS"
            " source_name, position, payload, defect, false AS stored, NULL::VARCHAR AS stored_id,"
            f" false AS replayed FROM lake.raw_events WHERE source = {literal(source)}"
            f" AND source_name = {literal(source_name)}"
        )

    def settle(self) -> Settled:
        """In a transaction, put what was judged into the tables."""
        self._promote()
        self._pick()
        self._insert()
        return Settled(self._deltas(), self._days(), self._fields())

    def _promote(self) -> None:
        """Stage the duplicates of what is gone: one of them counts in its place."""
        gone = "SELECT event_id FROM temp.main.gone_events WHERE event_id IS NOT NULL"
        if not self._connection.execute(f"{gone} LIMIT 1").fetchone():
            return
        self._judge(
            f"SELECT {_stored(replayed=False)} FROM lake.raw_events WHERE event_id IN ({gone})"
            " AND NOT EXISTS (SELECT 1 FROM temp.main.judged_events AS j"
            " WHERE j.stored AND j.received_date = raw_events.received_date"
            " AND j.source = raw_events.source AND j.source_name = raw_events.source_name"
            " AND j.position = raw_events.position)"
        )

    def _pick(self) -> None:
        """Find which of the lines that claim an identity has it, and who loses it."""
        execute = self._connection.execute
        valid = "temp.main.judged_events WHERE reason IS NULL"
        execute(
            f"CREATE OR REPLACE TEMP TABLE current_events AS SELECT event_id, order_id,"
            f" order_date, {PLACE} FROM lake.enriched_events"
            f" WHERE event_id IN (SELECT own_id FROM {valid})"
        )
        # Groups of hashes cost a third of groups of texts; few are left to be ranked.
        twins = (
            f"hash(own_id) IN (SELECT hash(own_id) FROM {valid} GROUP BY ALL HAVING count(*) > 1"
            " UNION ALL SELECT hash(event_id) FROM temp.main.current_events)"
        )
        execute(
            "CREATE OR REPLACE TEMP TABLE rival_events AS SELECT *, row_number() OVER"
            f" (PARTITION BY event_id ORDER BY {PLACE}) AS place FROM"
            f" (SELECT own_id AS event_id, rowid AS line_no, {PLACE} FROM {valid} AND {twins}"
            f" UNION ALL SELECT event_id, NULL, {PLACE} FROM temp.main.current_events)"
        )
        demoted = "SELECT event_id FROM temp.main.rival_events WHERE line_no IS NULL AND place > 1"
        if execute(f"{demoted} LIMIT 1").fetchone():
            execute(
                f"INSERT INTO temp.main.gone_events SELECT event_id, order_id, order_date, {PLACE},"
                f" 1, 0 FROM temp.main.current_events WHERE event_id IN ({demoted})"
            )
            execute(f"DELETE FROM lake.enriched_events WHERE event_id IN ({demoted})")
        # Few: those of the many others enter.
        execute(
            "CREATE OR REPLACE TEMP TABLE beaten_events AS SELECT line_no"
            " FROM temp.main.rival_events WHERE line_no IS NOT NULL AND place > 1"
        )

    def _insert(self) -> None:
        execute, table = self._connection.execute, self._connection.table
        judged = "temp.main.judged_events"
        execute(
            f"INSERT INTO lake.raw_events BY NAME SELECT {PLACE}, payload, defect,"
            f" {_IDENTITY} AS event_id FROM {judged} WHERE NOT stored"
        )
        changed = f"{judged} AS j WHERE j.replayed AND j.stored_id IS DISTINCT FROM ({_IDENTITY})"
        if execute(f"SELECT 1 FROM {changed} LIMIT 1").fetchone():
            execute(
                f"UPDATE lake.raw_events SET event_id = c.now FROM (SELECT {PLACE},"
                f" {_IDENTITY} AS now FROM {changed}) AS c WHERE "
                + " AND ".join(f"raw_events.{name} = c.{name}" for name in PLACE.split(", "))
            )
        execute(
            f"INSERT INTO lake.dead_letter_events BY NAME SELECT {PLACE}, reason, field, payload,"
            f" now() AS processed_at FROM {judged}"
            " WHERE reason IS NOT NULL AND (replayed OR NOT stored)"
        )
        entering = self._connection.sql(
            f"SELECT * EXCLUDE (event_id), own_id AS event_id, now() AS processed_at FROM {judged}"
            f" WHERE {_ENTERING}"
        )
        enriched = events.enrich(
            nw.from_native(entering),
            nw.from_native(table("lake.products")),
            nw.from_native(table("lake.customers")),
        ).select(*tables.ENRICHED_EVENTS.column_names)
        execute(
            "INSERT INTO lake.enriched_events BY NAME"
            f" SELECT * FROM ({enriched.to_native().sql_query()})"
        )
        orders = (
            f"SELECT order_id FROM {judged} WHERE {_ENTERING}"
            " UNION ALL SELECT order_id FROM temp.main.gone_events"
        )
        changed_days = execute(
            f"SELECT DISTINCT order_date FROM lake.enriched_events WHERE order_id IN ({orders})"
            " UNION SELECT DISTINCT order_date FROM temp.main.gone_events"
            " WHERE order_date IS NOT NULL"
        ).fetchall()
        ledger.mark_changed(self._connection, "events", [day for (day,) in changed_days])

    def _deltas(self) -> tuple[Delta, ...]:
        rows = self._connection.execute(
            "SELECT source, source_name, sum(accepted), sum(dead_lettered),"
            " coalesce(sum(accepted) FILTER (taken), 0),"
            " coalesce(sum(dead_lettered) FILTER (taken), 0) FROM"
            " (SELECT source, source_name, 1 AS accepted, 0 AS dead_lettered, NOT stored AS taken"
            f" FROM temp.main.judged_events WHERE {_ENTERING}"
            " UNION ALL SELECT source, source_name, 0, 1, NOT stored FROM temp.main.judged_events"
            " WHERE reason IS NOT NULL AND (replayed OR NOT stored)"
            " UNION ALL SELECT source, source_name, -accepted, -dead_lettered, false"
            " FROM temp.main.gone_events) GROUP BY ALL"
        ).fetchall()
        return tuple(Delta(*row) for row in rows)

    def _days(self) -> frozenset[date]:
        rows = self._connection.execute(
            "SELECT DISTINCT received_date FROM temp.main.judged_events"
            " UNION SELECT DISTINCT received_date FROM temp.main.gone_events"
        ).fetchall()
        return frozenset(day for (day,) in rows)

    def _fields(self) -> tuple[tuple[str, str], ...]:
        """Note which fields valid events have beyond the known ones; returns the new ones."""
        execute = self._connection.execute
        extras = (
            "SELECT extra FROM temp.main.judged_events WHERE extra IS NOT NULL AND reason IS NULL"
        )
        if not execute(f"{extras} LIMIT 1").fetchone():
            return ()
        found = execute(
            "SELECT DISTINCT left(e.key, 200) AS field, e.type"
            f" FROM ({extras}) AS x, json_each(x.extra) AS e"
            " WHERE NOT EXISTS (SELECT 1 FROM lake.event_fields AS known"
            " WHERE known.field = left(e.key, 200) AND known.type = e.type)"
            " ORDER BY ALL LIMIT greatest(0, ? - (SELECT count(*) FROM lake.event_fields))",
            [MAX_FIELDS],
        ).fetchall()
        if found:
            columns = {
                "field VARCHAR": [field for field, _ in found],
                "type VARCHAR": [type_ for _, type_ in found],
            }
            insert_columns(self._connection, "event_fields", columns, "now() AS first_seen_at")
        return tuple(found)


def _stored(*, replayed: bool) -> str:
    """Lines of raw_events as `EventBatch` stages them."""
    return (
        f"{PLACE}, payload, defect, true AS stored, event_id AS stored_id, {replayed} AS replayed"
    )


_READING = (
    "form",
    "crowded",
    "repeated",
    "nul",
    "finite",
    "whole_pence",
    "time_is_text",
    "days_ahead",
    *(f"has_{name}" for name in engine.FIELDS),
)
"""What only the judgement needs."""
