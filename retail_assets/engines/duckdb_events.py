"""Reads event lines with DuckDB: JSON text in, typed fields out, no error per line.

Values that cannot be read are null; `transforms.events` decides whether that matters. `parsed` is
long because it is one statement of SQL: each level needs the columns of the one below.
"""

from collections.abc import Sequence

from retail_assets.engines.duckdb import BLANKS
from retail_assets.engines.event_lines import LINES, NUMBER, WHOLE_NUMBER, with_lines
from retail_assets.engines.json_text import is_unusual, too_deep
from retail_assets.engines.json_text import text as _text
from retail_assets.engines.mapped_events import Reader
from retail_assets.engines.timestamps import instant
from retail_assets.lake.sql import literal
from retail_assets.mapping.events import EventMapping

TEXTS = ("event_id", "order_id", "customer_id", "product_id", "region", "status")
"""The fields that are text."""

FIELDS = (*TEXTS, "order_value_gbp", "quantity", "event_timestamp")
"""The known fields but for `lines`; all others of an event are extra."""

_NOT_FLAT = (
    r"(?s)[{\[].*[{\[]"
    # An exponent, or a number with more digits than a binary number holds.
    r"|[:,\s]-?(?:[0-9.]*[0-9][eE]|[0-9.]{16}|0\.00000)"
    r"|[:,\s]-?(?:[nN][aA][nN]|[iI][nN][fF])"
)
"""Matches events that are not flat or not plainly spelled, and some others."""


def parsed(lines: str, mappings: Sequence[EventMapping] = ()) -> str:
    """Return a query for the typed fields of event lines.

    Args:
        lines: a table or subquery with `received_date` (DATE), `received_at` (TIMESTAMPTZ: when
            they landed; null where that is not known), `payload` (VARCHAR) and `defect` (VARCHAR),
            and any other columns, which are kept; with mappings, also `source` and `source_name`.
        mappings: how events of other shapes are written.

    Returns:
        SQL for those columns and

        - `form`: `object`, `empty` or `other`, null if not JSON;
        - `too_deep`: whether objects and lists are nested deeper than `json_text.MAX_DEPTH`;
        - `repeated`: a key that stands twice;
        - `has_X` (BOOLEAN) for each of `FIELDS`: whether it is there and not null;
        - `event_id`, `order_id`, `customer_id`, `product_id`, `region`, `status`: without blanks
          around them, null if not text;
        - `order_value_gbp` (DECIMAL(18,6)), `finite` (BOOLEAN: false for NaN and infinities, null
          where there is no number), `whole_pence` (BOOLEAN), `quantity` (BIGINT),
          `event_timestamp` (TIMESTAMPTZ), `event_date` (DATE, in the session's time zone) and
          `days_ahead` (BIGINT: of that date, to the day on which the line landed): null if
          unreadable;
        - `currency`: the extra field of that name, in upper case and without blanks around it;
        - `time_is_text` (BOOLEAN), `nul` (BOOLEAN: whether a text may have the character NUL);
        - `has_lines` and the others of `event_lines.with_lines`;
        - `extra`: all other fields, as JSON, null if none;
        - with mappings, `mapping_fault` and `mapping_field` (VARCHAR): why none applies, if so.
    """
    formed = _formed(lines)
    schema = ", ".join(f'"{name}": "JSON"' for name in FIELDS)
    known = ", ".join(literal(name) for name in (*FIELDS, LINES))
    nothing = ", ".join(f'"{name}": null' for name in (*FIELDS, LINES))
    keys = "keys[1]" if mappings else "keys"
    repeated = f"""CASE WHEN irregular THEN CASE WHEN len({keys}) > list_unique({keys}) THEN
                list_filter(map_entries(list_histogram({keys})), lambda e: e.value > 1)[1].key
                END END"""
    extra = f"""CASE WHEN irregular THEN CASE WHEN NOT list_has_all([{known}], {keys})
                THEN json_merge_patch(payload, '{{{nothing}}}')::VARCHAR END END"""
    lines_json = f"""CASE WHEN irregular THEN CASE WHEN list_contains(keys, '{LINES}')
                THEN json_extract(payload, '/{LINES}') END END AS lines_json,"""
    helpers = "f, keys, irregular"
    if mappings:
        reader = Reader(mappings, FIELDS)
        texts = f"SELECT *, {_NUMBER_TEXT} FROM ({reader.query(formed, schema)})"
        repeated, extra = reader.repeated(repeated), reader.others(extra)
        helpers, lines_json = reader.columns, ""
    else:
        texts = _own_texts(formed, schema)
    # A CASE, unlike AND, evaluates a branch only for the rows that need it.
    events = f"""
        SELECT * EXCLUDE (
                {helpers}, unusual, value_text, time_text, quantity_text, is_object, number),
            TRY_CAST(number AS DECIMAL(18,6)) AS order_value_gbp,
            CASE WHEN order_value_gbp IS NOT NULL THEN true
                WHEN number IS NOT NULL THEN isfinite(TRY_CAST(number AS DOUBLE))
                WHEN lower(ltrim(value_text, '+-')) IN ('nan', 'inf', 'infinity') THEN false
                END AS finite,
            order_value_gbp = round(order_value_gbp, 2) AS whole_pence,
            TRY_CAST(CASE WHEN regexp_full_match(quantity_text, {literal(WHOLE_NUMBER)})
                THEN quantity_text END AS BIGINT) AS quantity,
            time_text IS NOT NULL AS time_is_text,
            CASE WHEN length(time_text) > {len("2026-10-20")} THEN {instant("time_text")} END
                AS event_timestamp,
            event_timestamp::DATE AS event_date,
            CASE WHEN event_date > received_date
                THEN event_date - greatest(received_at::DATE, received_date)
                ELSE event_date - received_date END AS days_ahead,
            {repeated} AS repeated,
            {lines_json}
            {extra} AS extra
        FROM ({texts})
    """
    return with_lines(events, "lines_json")


_NUMBER_TEXT = (
    f"CASE WHEN regexp_full_match(value_text, {literal(NUMBER)}) THEN value_text END AS number"
)


def _formed(lines: str) -> str:
    """The query that adds what a payload is as a whole."""
    return f"""
        SELECT *, form = 'object' AND NOT too_deep AS is_object
        FROM (
            SELECT *,
                CASE WHEN defect IS NOT NULL THEN NULL
                    WHEN NOT json_valid(payload) THEN
                        CASE WHEN trim(payload, {BLANKS}) = '' THEN 'empty' END
                    WHEN payload LIKE '{{%' THEN 'object'
                    WHEN ltrim(payload, {BLANKS}) LIKE '{{%' THEN 'object'
                    ELSE 'other' END AS form,
                {too_deep("payload")} AS too_deep,
                {is_unusual("payload")} AS unusual,
                CASE WHEN unusual THEN contains(payload, '\\u0000') ELSE false END AS nul
            FROM {lines}
        )
    """


def _own_texts(formed: str, schema: str) -> str:
    """The query that adds the texts of the fields of events in our own shape."""

    def text(name: str, other: str = "NULL") -> str:
        return _text(f"f.{name}", other=other, unusual="unusual")

    texts = ", ".join(f"{text(name)} AS {name}" for name in TEXTS if name != "status")
    has = ", ".join(f"f.{name} IS NOT NULL AS has_{name}" for name in FIELDS)
    there = " + ".join(f"has_{name}::TINYINT" for name in FIELDS)
    value = text("order_value_gbp", "f.order_value_gbp::VARCHAR")
    return f"""
        SELECT *, len(keys) <> {there} AS irregular, {texts},
            lower({text("status")}) AS status,
            CASE WHEN irregular THEN CASE WHEN list_contains(keys, 'currency')
                THEN upper(trim(payload ->> '$.currency', {BLANKS})) END END AS currency,
            {value} AS value_text, {text("event_timestamp")} AS time_text, {_NUMBER_TEXT},
            CASE WHEN f.quantity NOT LIKE '"%' THEN f.quantity::VARCHAR END AS quantity_text
        FROM (
            SELECT *, {has}
            FROM (
                SELECT *,
                    CASE WHEN is_object THEN json_transform(payload, '{{{schema}}}') END AS f,
                    CASE WHEN is_object THEN json_keys(payload) END AS keys
                FROM ({formed})
            )
        )
    """


def flat_content_ids(events: str) -> str:
    """Return a query for the identity of events by their content: `line_no` and `event_id`.

    It has the events without objects and lists, and without unusual spellings of numbers or keys:
    `event_content.content_id` is for the others, and defines the identity.

    Args:
        events: a table or subquery with `line_no` and `payload`, a valid event each.
    """
    # Materialized, so that the few events among many come in full vectors.
    return f"""
        WITH events AS MATERIALIZED (SELECT line_no, payload FROM {events}),
        flat AS MATERIALIZED (
            SELECT line_no, payload FROM (SELECT *, json_keys(payload) AS keys FROM events)
            WHERE NOT regexp_matches(payload, {literal(_NOT_FLAT)})
                AND NOT regexp_matches(array_to_string(keys, ''), '[.\\[\\s"]')
        )
        SELECT line_no, 'content:' || sha256('$ OBJECT' || array_to_string(
            list_transform(list_sort(map_entries(entries)), lambda entry: concat_ws(' ',
                chr(10) || '$.' || entry.key, {_type_and_value("entry.value::VARCHAR")})), ''))
            AS event_id
        FROM (SELECT line_no, json_transform(payload, '"MAP(VARCHAR, JSON)"') AS entries FROM flat)
    """


def _type_and_value(json: str) -> str:
    """SQL for the type and value of JSON that is no object or list.

    A number such as 10.0 is a whole number.
    """
    whole = f"regexp_replace({json}, '\\.0$', '')"
    return (
        f"CASE WHEN {json} IS NULL THEN 'NULL' WHEN {json} LIKE '\"%' THEN 'VARCHAR ' || {json}"
        f" WHEN {json} IN ('true', 'false') THEN 'BOOLEAN ' || {json}"
        f" WHEN regexp_full_match({json}, '-?0(\\.0)?') THEN 'UBIGINT 0'"
        f" WHEN regexp_full_match({json}, '-[0-9]+(\\.0)?') THEN 'BIGINT ' || {whole}"
        f" WHEN regexp_full_match({json}, '[0-9]+(\\.0)?') THEN 'UBIGINT ' || {whole}"
        f" ELSE 'DOUBLE ' || {json} END"
    )
