"""How a batch goes through the staging tables: a small and a large strategy.

A small batch goes through statements that are planned once a session, a large one through such as
are planned for it, and read its lines where they are.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

import duckdb
from typing_extensions import override

from retail_assets import tables
from retail_assets.engines import duckdb_events as engine
from retail_assets.engines import event_lines
from retail_assets.engines.event_content import content_id
from retail_assets.ingest.events.cache import EventCache
from retail_assets.ingest.events.compiled_sql import REFERENCE_KEYS
from retail_assets.ingest.events.staging import STAGED, Staging
from retail_assets.ingest.rates import RATES, applicable
from retail_assets.transforms.events import UNKNOWN_CURRENCY

if TYPE_CHECKING:
    import pyarrow as pa

_RATES = tables.CURRENCY_RATES.name

_UNIDENTIFIED = f"{STAGED} WHERE own_id IS NULL AND reason IS NULL"
_SURVEY = (
    "SELECT coalesce(bool_or(own_id IS NULL AND reason IS NULL), false),"
    f" coalesce(bool_or(reason = '{UNKNOWN_CURRENCY}'), false) FROM {STAGED}"
)
_READ_UNIDENTIFIED = f"SELECT rowid, payload FROM {_UNIDENTIFIED}"
_IDENTIFY_FLAT = (
    f"UPDATE {STAGED} SET own_id = c.event_id FROM"
    f" ({engine.flat_content_ids(f'(SELECT rowid AS line_no, payload FROM {_UNIDENTIFIED})')}) AS c"
    " WHERE staged_lines.rowid = c.line_no"
)


class Large:
    """Lines from Arrow, and from staging straight into the lake."""

    def __init__(self, staging: Staging, cache: EventCache | None = None) -> None:
        self._staging = staging
        self._cache = cache
        self._connection = staging.connection
        self._has_foreign = False
        self.rates = RATES
        """The table of the rates that amounts in other currencies are converted with."""

    def execute(self, sql: str) -> duckdb.DuckDBPyConnection:
        """Execute a statement over temporary tables alone."""
        return self._connection.execute(sql)

    def stage(self, lines: "pa.Table", sources: "pa.Table") -> None:
        """Stage and validate lines in the form of `event_batch`."""
        self._validate(lines, sources)
        self._identify()

    def stage_query(self, lines: str) -> None:
        """In a transaction, stage and validate the lines of a query, with `LINE_COLUMNS`."""
        self._staging.validate(lines)
        self._identify()
        self.convert()

    def convert(self) -> None:
        """In a transaction, convert the values of staged lines whose currency has a rate."""
        if not self._has_foreign:
            return
        foreign = f"(SELECT currency FROM {STAGED} WHERE reason = '{UNKNOWN_CURRENCY}')"
        is_copied = self.rates == RATES and _RATES in self._copied()
        source = f"temp.main.copied_{_RATES}" if is_copied else self.rates
        sql = (
            f"UPDATE {STAGED} SET order_value_gbp = c.order_value_gbp, reason = c.reason,"
            " field = c.field, extra = json_merge_patch(coalesce(extra, '{}'), json_object("
            "'currency', c.currency, 'order_value', c.order_value)), lines ="
            f" {event_lines.with_values('lines', 'c.line_values')}"
            f" FROM (WITH known_rates AS ({applicable(source, foreign)})"
            f" {self._staging.sql.convert}) AS c WHERE staged_lines.rowid = c.line_no"
        )
        if is_copied:
            self.execute(sql)
        else:
            self._connection.execute(sql)
        self._identify()

    def _identify(self) -> None:
        """Give valid lines without an identity one by their content."""
        unidentified, self._has_foreign = self.execute(_SURVEY).fetchone() or (False, False)
        if not unidentified:
            return
        self.execute(_IDENTIFY_FLAT)
        found = self.execute(_READ_UNIDENTIFIED).fetchall()
        if found:
            ids = [content_id(payload) for _, payload in found]
            self._connection.execute(
                f"UPDATE {STAGED} SET own_id = c.id FROM"
                " (SELECT unnest(?::BIGINT[]) AS line_no, unnest(?::VARCHAR[]) AS id) AS c"
                " WHERE staged_lines.rowid = c.line_no",
                [[line_no for line_no, _ in found], ids],
            )

    def _validate(self, lines: "pa.Table", sources: "pa.Table") -> None:
        self._staging.discard_plans()
        arrow = {"arrow_lines": lines, "arrow_sources": sources}
        for name, table in arrow.items():
            self._connection.register(name, table)
        try:
            self._staging.validate(
                "SELECT s.received_date, s.source, s.source_name, s.version, l.position,"
                " make_timestamptz(l.received_us) AS received_at, l.payload, l.defect,"
                " false AS stored, NULL::VARCHAR AS stored_id"
                " FROM arrow_lines AS l JOIN arrow_sources AS s USING (source_no)"
            )
        finally:
            for name in arrow:
                self._connection.unregister(name)

    def _copied(self) -> Collection[str]:
        """The reference tables of which temp.main.copied_TABLE has all rows."""
        return self._cache.copied_tables() if self._cache else ()

    def insert_enriched(self) -> None:
        """Insert valid lines into enriched_events."""
        known = ", ".join(
            f"known_{table.name} AS NOT MATERIALIZED ({self._known(table, key)})"
            for table, key in REFERENCE_KEYS.items()
        )
        self._connection.execute(
            f"INSERT INTO lake.enriched_events BY NAME WITH {known}"
            f" SELECT *, now() AS processed_at FROM ({self._staging.sql.enrich})"
        )

    def _known(self, table: tables.Table, key: str) -> str:
        """The query for the rows of a reference table that staged lines need, or more."""
        if table.name in self._copied():
            return f"FROM temp.main.copied_{table.name}"
        (is_small,) = self._connection.execute(
            f"SELECT (SELECT count(*) FROM lake.{table.name}) <= (SELECT count(*) FROM {STAGED})"
        ).fetchone() or (False,)
        # To choose among few takes longer than the join with all.
        needed = "" if is_small else f" WHERE {key} IN (SELECT {key} FROM {STAGED})"
        return f"FROM lake.{table.name}{needed}"


class Small(Large):
    """Lines as parameters, and prepared statements from one temporary table to the next."""

    @override
    def execute(self, sql: str) -> duckdb.DuckDBPyConnection:
        return self._staging.execute_prepared(sql)

    @override
    def _validate(self, lines: "pa.Table", sources: "pa.Table") -> None:
        # To register a table would change the temporary catalog.
        by_line = sources.take(lines["source_no"].combine_chunks()).drop_columns(["source_no"])
        columns = [
            *(by_line[name] for name in ("received_date", "source", "source_name", "version")),
            *(lines[name] for name in ("position", "received_us", "payload", "defect")),
        ]
        self._connection.execute(
            "INSERT INTO temp.main.received_lines SELECT unnest(?::DATE[]), unnest(?::VARCHAR[]),"
            " unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::BIGINT[]),"
            " make_timestamptz(unnest(?::BIGINT[])), unnest(?::VARCHAR[]), unnest(?::VARCHAR[]),"
            " false, NULL",
            [column.to_pylist() for column in columns],
        )
        self._staging.validate()

    @override
    def insert_enriched(self) -> None:
        copied = self._copied()
        for table, key in REFERENCE_KEYS.items():
            rows = f"WHERE {key} IN (SELECT {key} FROM {STAGED})"
            insert = f"INSERT INTO temp.main.known_{table.name}"
            if table.name in copied:
                self.execute(f"{insert} FROM temp.main.copied_{table.name} {rows}")
            else:
                self._connection.execute(f"{insert} FROM lake.{table.name} {rows}")
        self.execute(f"INSERT INTO temp.main.entering_events {self._staging.sql.enrich}")
        self._connection.execute(
            "INSERT INTO lake.enriched_events BY NAME"
            " SELECT *, now() AS processed_at FROM temp.main.entering_events"
        )
