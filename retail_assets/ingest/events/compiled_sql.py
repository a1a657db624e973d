"""The rules of events as SQL, compiled from `transforms.events` once a process."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.engines import duckdb_events as engine
from retail_assets.engines import event_lines
from retail_assets.ingest.events.columns import LINE_COLUMNS
from retail_assets.mapping.model import EventMappings
from retail_assets.transforms import events

REFERENCE_KEYS = {tables.PRODUCTS: "product_id", tables.CUSTOMERS: "customer_id"}
"""The tables that events are enriched from, each with its key."""

_TYPED_ONLY = (
    "form",
    "too_deep",
    "repeated",
    "nul",
    "finite",
    "whole_pence",
    "time_is_text",
    "days_ahead",
    "has_lines",
    "line_count",
    "line_fault",
    "line_field",
    "lines_numbered",
    "lines_value",
    "lines_quantity",
    "product_in_lines",
    *(f"has_{name}" for name in engine.FIELDS),
)
"""Columns of typed lines that only the rules read."""

_MAPPED_ONLY = ("mapping_fault", "mapping_field")
"""The same of lines that are read by mappings."""


@dataclass(frozen=True)
class CompiledSql:
    """Queries of tables that are named without a schema.

    So a WITH clause in front can give them other rows than those of the temporary tables.

    - `validate` reads `received_lines` (`LINE_COLUMNS`), and adds `reason` and `field` (null for
      valid events), the typed fields, and the identity `own_id` (null where it is to be made of the
      content). `staged_columns` are the names and types of all of these.
    - `convert` reads `staged_lines` of the reason `unknown_currency`, and `known_rates` (as
      `transforms.currency` takes them). It gives those that have a rate: `line_no` (their rowid),
      `currency`, `order_value` in it, `order_value_gbp`, `line_values` (a list of the values of
      their lines in GBP), `reason` and `field`.
    - `enrich` reads `staged_lines` (`staged_columns`), `known_products` and `known_customers`, and
      gives the valid ones the columns of enriched_events but for `processed_at`.
    """

    validate: str
    staged_columns: str
    convert: str
    enrich: str


@cache
def compiled_sql(mappings: EventMappings = ()) -> CompiledSql:
    """Compile the rules, which takes longer than to ingest a thousand events.

    Args:
        mappings: how events of other shapes are written.
    """
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(f"CREATE TABLE received_lines ({LINE_COLUMNS})")
        typed = nw.from_native(connection.sql(engine.parsed("received_lines", mappings)))
        helpers = (*_TYPED_ONLY, *(_MAPPED_ONLY if mappings else ()))
        validated = events.validate(typed).drop(*helpers).to_native().sql_query()
        # An identity that a lake has already stays, however today's rules would spell the content.
        staged = connection.sql(
            "SELECT * EXCLUDE (event_id), coalesce(nullif(event_id, ''),"
            f" CASE WHEN stored_id LIKE 'content:%' THEN stored_id END) AS own_id"
            f" FROM ({validated})"
        )
        columns = dict(zip(staged.columns, map(str, staged.types), strict=True))
        connection.execute(f"CREATE TABLE staged_lines ({as_sql(columns)})")
        for table in REFERENCE_KEYS:
            connection.execute(f"CREATE TABLE known_{table.name} ({as_sql(table.types)})")
        connection.execute(
            "CREATE TABLE known_rates (day DATE, currency VARCHAR, rate"
            f" {tables.RATE}, order_date DATE)"
        )
        converted = _converted(connection)
        valid = connection.sql(
            "SELECT * RENAME (own_id AS event_id) FROM staged_lines WHERE reason IS NULL"
        )
        enriched = events.enrich(
            nw.from_native(valid),
            nw.from_native(connection.sql("FROM known_products")),
            nw.from_native(connection.sql("FROM known_customers")),
        ).select(*enriched_types())
        return CompiledSql(
            staged.sql_query(),
            as_sql(columns),
            converted,
            enriched.to_native().sql_query(),
        )


def _converted(connection: duckdb.DuckDBPyConnection) -> str:
    """The query `convert`; lines are converted one by one, and an event is worth their sum."""
    foreign = (
        "SELECT rowid AS line_no, received_date, event_date, currency, order_value_gbp, lines"
        f" FROM staged_lines WHERE reason = '{events.UNKNOWN_CURRENCY}'"
    )
    amounts = connection.sql(
        f"SELECT * EXCLUDE (lines), 1 AS place FROM ({foreign}) WHERE lines IS NULL"
        " UNION ALL BY NAME SELECT * EXCLUDE (lines, line_values),"
        " unnest(line_values) AS order_value_gbp, generate_subscripts(line_values, 1) AS place"
        f" FROM (SELECT * EXCLUDE (order_value_gbp), {event_lines.values('lines')} AS line_values"
        f" FROM ({foreign}) WHERE lines IS NOT NULL)"
    )
    rates = connection.sql("FROM known_rates")
    converted = events.convert(nw.from_native(amounts), nw.from_native(rates))
    whole = connection.sql(
        "SELECT line_no, currency, sum(order_value) AS order_value,"
        " CASE WHEN bool_and(order_value_gbp IS NOT NULL) THEN sum(order_value_gbp) END"
        " AS order_value_gbp, list(order_value_gbp ORDER BY place) AS line_values"
        f" FROM ({converted.to_native().sql_query()}) GROUP BY line_no, currency"
    )
    query: str = events.validate_converted(nw.from_native(whole)).to_native().sql_query()
    return query


def enriched_types() -> dict[str, str]:
    """The columns of enriched_events but for `processed_at`, with their types."""
    types = tables.ENRICHED_EVENTS.types
    return {name: type_ for name, type_ in types.items() if name != "processed_at"}


def as_sql(types: Mapping[str, str]) -> str:
    """Columns as in the statement that creates a table."""
    return ", ".join(f"{name} {type_}" for name, type_ in types.items())
