"""The temporary tables in which `EventBatch` judges lines, and the statements that do it.

To plan the judgement takes several times longer than to judge a hundred lines. So the text of the
statements is made once a process, and they are prepared once a connection, over tables that stay:
a table that is made again would have them planned again, and so would `now()` in a statement, with
every execution.
"""

from functools import lru_cache
from weakref import WeakKeyDictionary, WeakSet

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.engines import duckdb_events as engine
from retail_assets.transforms import events
from retail_assets.transforms.orders import COMPLETED

KEY = ("received_date", "source", "source_name", "version", "position")
"""What tells received lines apart."""

PLACE = f"{', '.join(KEY)}, received_at"
"""Where and when a line was received."""


def origin_of(source: str, name: str, version: str) -> str:
    """The text for a version of a source that ids of its dead letters begin with."""
    return f"concat({source}, ':', {name}, if({version} = 1, '', concat('@', {version})))"


ORIGIN = (
    "CASE WHEN source = 'redrive' THEN regexp_replace(source_name, ':[0-9]+$', '')"
    f" ELSE {origin_of('source', 'source_name', 'version')} END"
)
"""Where a line came from in the first place; of a redrive that is where its dead letter did."""

RANK_FIELDS = (
    "order_id, customer_id, region, order_value_gbp, event_timestamp, quantity, extra,"
    f" coalesce(nullif(status, ''), '{COMPLETED}') AS status, nullif(product_id, '') AS product_id"
)
"""The content that orders events received at the same time, of judged and of enriched ones."""

FIRST_RECEIVED = (
    "coalesce(received_at, received_date::TIMESTAMPTZ), position, order_id, customer_id, region,"
    " order_value_gbp, event_timestamp, quantity, extra, status, product_id,"
    " source, source_name, version"
)
"""Which of several events with one identity was first: by the time of receipt and the position.

Names come last, and only where nothing else differs."""

MAX_FIELDS = 1_000
"""How many fields beyond the known ones are kept count of: their names may be made up."""

REUSED_ROWS = 20_000
"""So many lines go through the same tables: DuckDB keeps the rows that were deleted from them."""

_used_rows: "WeakKeyDictionary[duckdb.DuckDBPyConnection, int]" = WeakKeyDictionary()
_planned: "WeakSet[duckdb.DuckDBPyConnection]" = WeakSet()

RECEIVED = '"temp".main.received_lines'
"""As DuckDB writes it when it gives a query back as text."""

_NOW, _ARGUMENT = "now()", "$1"

_PLACE_COLUMNS = (
    "received_date DATE, source VARCHAR, source_name VARCHAR, version BIGINT, position BIGINT,"
    " received_at TIMESTAMPTZ"
)
_RANK_COLUMNS = (
    "order_id VARCHAR, customer_id VARCHAR, region VARCHAR, order_value_gbp DECIMAL(18,6),"
    " event_timestamp TIMESTAMPTZ, quantity BIGINT, extra VARCHAR, status VARCHAR,"
    " product_id VARCHAR"
)

_TABLES = {
    "received_lines": f"""
        {_PLACE_COLUMNS}, payload VARCHAR, defect VARCHAR, stored BOOLEAN, stored_id VARCHAR""",
    # Rows that leave enriched_events or dead_letter_events, and what their source loses by it.
    "gone_events": f"""
        event_id VARCHAR, {_PLACE_COLUMNS}, accepted INTEGER, dead_lettered INTEGER""",
    # Versions of files whose events were taken back, as `ORIGIN` has them.
    "retracted_files": "origin VARCHAR",
    "current_events": f"event_id VARCHAR, {_PLACE_COLUMNS}, {_RANK_COLUMNS}",
    "rival_events": "event_id VARCHAR, line_no BIGINT, place BIGINT",
}

REFERENCE_KEYS = {tables.PRODUCTS.name: "product_id", tables.CUSTOMERS.name: "customer_id"}
"""The tables that events are enriched from, each with its key.

Of each, `known_TABLE` has the rows that a batch needs; `all_TABLE` has all of them, once
`EventMemory` has copied them.
"""

_LIKE = {
    **{f"known_{table}": f"lake.{table}" for table in REFERENCE_KEYS},
    "entering_events": "lake.enriched_events",
}

_READING = (
    "form",
    "too_deep",
    "repeated",
    "nul",
    "finite",
    "whole_pence",
    "time_is_text",
    "days_ahead",
    *(f"has_{name}" for name in engine.FIELDS),
)
"""What only the judgement needs."""


_PLAIN = ("judged_events", *_LIKE)
"""What has rows after a batch of few lines none of which anybody else claims."""


def open_workspace(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables, unless they are there.

    The tables are empty: whoever used them has cleared them.
    """
    if connection not in _used_rows:
        create(connection)
        _used_rows[connection] = 0


def clear(connection: duckdb.DuckDBPyConnection, *, rows: int, plain: bool) -> None:
    """Empty the tables; where all went `plain`ly, those alone that have anything then.

    After many `rows` altogether they are dropped instead, which gives their memory back.
    """
    names = (*_TABLES, *_LIKE, "judged_events")
    _used_rows[connection] += rows
    if _used_rows[connection] < REUSED_ROWS:
        for name in _PLAIN if plain else names:
            connection.execute(f"TRUNCATE temp.main.{name}")
    else:
        # First: tables that a failure left are made again.
        del _used_rows[connection]
        for name in names:
            connection.execute(f"DROP TABLE temp.main.{name}")


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables, in place of those that are there."""
    execute = connection.execute
    forget_plans(connection)
    # A statement that is prepared over an empty table would find it empty for ever.
    execute("SET disabled_optimizers = 'statistics_propagation'")
    for name, columns in _TABLES.items():
        execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
    for name, table in _LIKE.items():
        execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM {table} LIMIT 0")
    for table in REFERENCE_KEYS:
        execute(f"CREATE TEMP TABLE IF NOT EXISTS all_{table} AS FROM lake.{table} LIMIT 0")
    if not texts():
        texts()["judged"] = _judged(connection)
    judged = texts()["judged"]
    execute(f"CREATE OR REPLACE TEMP TABLE judged_events AS {judged} LIMIT 0")
    if "enriched" not in texts():
        texts()["enriched"] = _enriched(connection)


def forget_plans(connection: duckdb.DuckDBPyConnection) -> None:
    """The temporary catalog changes, if only by a registered table.

    Statements that were prepared before would be planned again with every execution.
    """
    _planned.discard(connection)


def execute(
    connection: duckdb.DuckDBPyConnection, name: str, argument: str = "", *, prepared: bool = True
) -> duckdb.DuckDBPyConnection:
    """Execute one of the `statements`, with an argument in SQL.

    Statements are `prepared` where they are executed again and again over few lines.
    """
    if not prepared:
        return connection.execute(statements()[name].replace(_ARGUMENT, argument))
    if connection not in _planned:
        for each, text in statements().items():
            if _is_prepared(connection, each):
                connection.execute(f"DEALLOCATE PREPARE {each}")
            connection.execute(f"PREPARE {each} AS {text}")
        _planned.add(connection)
    return connection.execute(f"EXECUTE {name}" + (f"({argument})" if argument else ""))


def statements() -> dict[str, str]:
    """What a batch goes through, by name, with `$1` in place of the argument.

    - `judge_events`: of `received_lines`.
    - `find_unnamed(last)`: whether a valid line behind that rowid has no identity;
      `identify_events(last)` gives one to those of plain content, `read_unnamed(last)` has `rowid`
      and `payload` of the others.
    - `survey_events`: `id`, `valid` and `extra` of what was judged.
    - `list_fields`: the names and types of the extra fields of valid events.
    - `choose_products` and `choose_customers`: those that the events name, of the copies of
      `EventMemory`.
    - `enrich_events(processed_at)`.
    - `count_events`: the columns of `Delta` where nothing of a source leaves the tables.
    """
    judged = "temp.main.judged_events"
    unnamed = f"{judged} WHERE own_id IS NULL AND reason IS NULL AND rowid > {_ARGUMENT}"
    identified = engine.flat_content_ids(f"(SELECT rowid AS line_no, payload FROM {unnamed})")
    return {
        "judge_events": f"INSERT INTO {judged} {texts()['judged']}",
        "find_unnamed": f"SELECT 1 FROM {unnamed} LIMIT 1",
        "read_unnamed": f"SELECT rowid, payload FROM {unnamed}",
        "identify_events": (
            f"UPDATE {judged} SET own_id = c.event_id FROM ({identified}) AS c"
            " WHERE judged_events.rowid = c.line_no"
        ),
        "survey_events": (
            "SELECT hash(own_id) AS id, reason IS NULL AS valid, extra IS NOT NULL AS extra"
            f" FROM {judged}"
        ),
        "list_fields": fields_sql(),
        **{
            f"choose_{table}": choose_sql(table, f"temp.main.all_{table}")
            for table in REFERENCE_KEYS
        },
        "enrich_events": (
            "INSERT INTO temp.main.entering_events BY NAME "
            + enriched_sql().replace(_NOW, f"{_ARGUMENT}::TIMESTAMPTZ")
        ),
        "count_events": (
            "SELECT source, source_name, version, count(*) FILTER (reason IS NULL) AS accepted,"
            f" count(reason) AS dead_lettered, accepted, dead_lettered FROM {judged}"
            " GROUP BY source, source_name, version"
        ),
    }


def fields_sql() -> str:
    """The query for `field` and `type` of what valid events have beyond the known fields.

    Of an event with more than `MAX_FIELDS` the first count. `json_each` would copy an event as
    often as it has fields.
    """
    return (
        "SELECT DISTINCT left(e.key, 200) AS field, coalesce(json_type(e.value), 'NULL') AS type"
        " FROM (SELECT unnest(map_entries(json_transform(extra, '\"MAP(VARCHAR, JSON)\"'))"
        f"[1:{MAX_FIELDS}]) AS e FROM temp.main.judged_events"
        " WHERE extra IS NOT NULL AND reason IS NULL)"
    )


def choose_sql(table: str, rows: str) -> str:
    """The statement that takes those rows of a reference table that the judged lines name."""
    key = REFERENCE_KEYS[table]
    return (
        f"INSERT INTO temp.main.known_{table} SELECT * FROM {rows}"
        f" WHERE {key} IN (SELECT {key} FROM temp.main.judged_events)"
    )


def _is_prepared(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM duckdb_prepared_statements() WHERE name = ?", [name]
    ).fetchone()
    return found is not None


@lru_cache
def texts() -> dict[str, str]:
    """The SQL of the rules, once it was made."""
    return {}


def judged_sql(lines: str) -> str:
    """The query that judges the lines of a table or query."""
    return texts()["judged"].replace(RECEIVED, lines)


def enriched_sql() -> str:
    """The query that enriches the valid ones of the judged lines."""
    return texts()["enriched"]


def _judged(connection: duckdb.DuckDBPyConnection) -> str:
    rows = nw.from_native(connection.sql(engine.parsed(RECEIVED)))
    judged = events.judge(rows).drop(*_READING).to_native().sql_query()
    assert judged.count(RECEIVED) == 1
    # An identity that a lake has already stays, however today's rules would spell the content.
    return (
        "SELECT * EXCLUDE (event_id), coalesce(nullif(event_id, ''),"
        f" CASE WHEN stored_id LIKE 'content:%' THEN stored_id END) AS own_id FROM ({judged})"
    )


def _enriched(connection: duckdb.DuckDBPyConnection) -> str:
    entering = connection.sql(
        f"SELECT * RENAME (own_id AS event_id), {_NOW} AS processed_at"
        " FROM temp.main.judged_events WHERE reason IS NULL"
    )
    columns = connection.table("temp.main.entering_events").columns
    enriched = events.enrich(
        nw.from_native(entering),
        nw.from_native(connection.table("temp.main.known_products")),
        nw.from_native(connection.table("temp.main.known_customers")),
    ).select(*columns)
    query = str(enriched.to_native().sql_query())
    assert query.count(_NOW) == 1
    return query
