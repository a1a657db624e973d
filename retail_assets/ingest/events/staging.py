"""The temporary tables that event lines are staged in, and statements that are planned once.

To plan how lines are validated takes several times longer than to validate a hundred. So for small
batches statements are prepared, over tables that stay: a table that is made again would have them
planned again with every execution.
"""

import duckdb

from retail_assets.ingest.events.columns import LINE_COLUMNS, RANK_COLUMNS, RECEIPT_COLUMNS
from retail_assets.ingest.events.compiled_sql import (
    REFERENCE_KEYS,
    CompiledSql,
    as_sql,
    compiled_sql,
    enriched_types,
)
from retail_assets.mapping.model import EventMappings

STAGED = "temp.main.staged_lines"

REUSED_ROWS = 20_000
"""So many lines go through the same tables: DuckDB keeps the rows that were deleted from them."""

_ONLY_OF_CHANGES = ("removed_events", "retracted_versions")


class Staging:
    """The tables of a connection, made when they are needed, and its prepared statements."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, mappings: EventMappings = ()) -> None:
        self.connection = connection
        self._mappings = mappings
        self.sql: CompiledSql
        self._tables: dict[str, str] = {}
        self._used_rows = 0
        self._prepared: dict[str, str] = {}

    def open(self) -> None:
        """Outside of a transaction, make the tables, unless they are there, and empty."""
        if self._tables:
            return
        self.discard_plans()
        self.sql = compiled_sql(self._mappings)
        found = {
            "received_lines": LINE_COLUMNS,
            "staged_lines": self.sql.staged_columns,
            **{f"known_{table.name}": as_sql(table.types) for table in REFERENCE_KEYS},
            "entering_events": as_sql(enriched_types()),
            # The rows that leave enriched_events or dead_letter_events, by source.
            "removed_events": (
                f"event_id VARCHAR, {RECEIPT_COLUMNS}, accepted INTEGER, dead_lettered INTEGER"
            ),
            # Versions of files whose events were retracted, as `ORIGIN` has them.
            "retracted_versions": "origin VARCHAR",
            "stored_candidates": f"event_id VARCHAR, {RECEIPT_COLUMNS}, {RANK_COLUMNS}",
            "candidates": "event_id VARCHAR, line_no BIGINT, rank BIGINT",
        }
        for name, columns in found.items():
            self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
        self._tables, self._used_rows = found, 0

    def clear(self, *, changes_stored: bool) -> None:
        """Empty the tables after a batch; whether it has changed what is stored.

        After many rows altogether they are dropped instead, which gives their memory back.
        """
        # Tables that a failure leaves here are made again.
        tables, self._tables = self._tables, {}
        if self._used_rows >= REUSED_ROWS:
            for name in tables:
                self.connection.execute(f"DROP TABLE temp.main.{name}")
            return
        for name in tables:
            if "candidates" not in name and (changes_stored or name not in _ONLY_OF_CHANGES):
                self.connection.execute(f"TRUNCATE temp.main.{name}")
        self._tables = tables

    def validate(self, lines: str | None = None) -> None:
        """Stage the lines of a query with `LINE_COLUMNS`, or of `received_lines`."""
        insert = f"INSERT INTO {STAGED}"
        if lines is None:
            done = self.execute_prepared(f"{insert} {self.sql.validate}")
        else:
            done = self.connection.execute(
                f"{insert} WITH received_lines AS NOT MATERIALIZED ({lines}) {self.sql.validate}"
            )
        (count,) = done.fetchone() or (0,)
        self._used_rows += count

    def execute_prepared(self, sql: str) -> duckdb.DuckDBPyConnection:
        """Execute a statement over temporary tables, planned when it is first executed."""
        name = self._prepared.get(sql)
        if name is None:
            name = f"staged_{len(self._prepared)}"
            # By the statistics of today, a table that is empty now would be so for ever.
            self.connection.execute("SET disabled_optimizers = 'statistics_propagation'")
            try:
                self.connection.execute(f"PREPARE {name} AS {sql}")
            finally:
                self.connection.execute("RESET disabled_optimizers")
            self._prepared[sql] = name
        return self.connection.execute(f"EXECUTE {name}")

    def discard_plans(self) -> None:
        """After a change of the temporary catalog, have statements prepared again.

        Those from before would be planned again with every execution.
        """
        self._prepared.clear()
