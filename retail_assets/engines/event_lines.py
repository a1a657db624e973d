"""Reads the `lines` of an event with DuckDB: a JSON list in, typed lines out, no error per line.

The first line that cannot be used is named, with the reason that `transforms.events` gives the
event.
"""

from retail_assets.engines.duckdb import BLANKS
from retail_assets.lake.sql import literal
from retail_assets.transforms.currency import OUT_OF_RANGE_GBP
from retail_assets.transforms.events import MAX_LINE_QUANTITY, MAX_LINES
from retail_assets.transforms.orders import NO_ID

NUMBER = r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"
WHOLE_NUMBER = r"-?[0-9]+(\.0+)?"

LINES = "lines"
"""The field of an event that has its lines."""

FIELDS = ("line_number", "product_id", "quantity", "order_value_gbp")
"""The known fields of a line; all others of a line are extra."""

STORED = {
    "line_number": "BIGINT",
    "product_id": "VARCHAR",
    "quantity": "BIGINT",
    "order_value_gbp": "DECIMAL(12,2)",
}
"""The types of a line's fields in `enriched_events.lines`."""


def with_lines(events: str, json: str) -> str:
    """Return a query that adds the columns of lines to those of events.

    Args:
        events: a query, with `product_id`, `quantity` and `has_quantity`.
        json: one of its columns, which the result does not have: the JSON of the field `lines`,
            null where the event has none.

    Returns:
        SQL for the other columns (an event without `quantity` has that of its lines) and

        - `has_lines` (BOOLEAN), `line_count` (UBIGINT, null if it is no list);
        - `line_fault` and `line_field` (VARCHAR): why the first line that cannot be used cannot,
          and the field, such as `lines[0].quantity`; null if all can;
        - `lines_numbered` (BOOLEAN): whether no line has a `line_number`, or each one of its own;
        - `lines_value` (DECIMAL(38,6)) and `lines_quantity` (BIGINT): their sums;
        - `product_in_lines` (BOOLEAN): whether the event's own product is one of theirs;
        - `lines` (VARCHAR): the lines as `enriched_events` has them, if all can be used.
    """
    numbers = _each("line_number")
    some = "CASE WHEN typed_lines IS NOT NULL THEN"
    # A CASE evaluates a branch only for the rows that need it, and a level its columns once.
    return f"""
        SELECT * EXCLUDE (typed_lines)
            REPLACE (CASE WHEN has_quantity THEN quantity ELSE lines_quantity END AS quantity),
            CASE WHEN line_fault IS NULL AND lines_numbered THEN {_stored()} END AS lines
        FROM (
            SELECT * EXCLUDE (fault), fault.reason AS line_fault, fault.field AS line_field,
                {some} len({numbers}) IN (0, line_count) AND len({numbers}) = list_unique({numbers})
                    END AS lines_numbered,
                {some} list_sum({_each("order_value")}) END AS lines_value,
                {some} CASE WHEN fault IS NULL THEN list_sum({_each("quantity")})::BIGINT END END
                    AS lines_quantity,
                {some} list_contains({_each("product_id")}, product_id) END AS product_in_lines
            FROM (
                SELECT *, {some} {_first_fault()} END AS fault
                FROM (
                    SELECT * EXCLUDE ({json}),
                        CASE WHEN line_count BETWEEN 1 AND {MAX_LINES} THEN {_typed(json)} END
                            AS typed_lines
                    FROM (
                        SELECT *, coalesce(json_type({json}) <> 'NULL', false) AS has_lines,
                            CASE WHEN has_lines THEN CASE WHEN json_type({json}) = 'ARRAY'
                                THEN json_array_length({json}) END END AS line_count
                        FROM ({events})
                    )
                )
            )
        )
    """


def unnested(table: str) -> str:
    """Return a query for the lines of `enriched_events` or `live_orders`, a row each.

    Args:
        table: a table or subquery with `order_id` and `lines`, as `enriched_events` has them.
    """
    types = ", ".join(f'"{name}": "{type_}"' for name, type_ in STORED.items())
    return (
        f"SELECT order_id, unnest(from_json(lines, '[{{{types}}}]'), recursive := true)"
        f" FROM {table} WHERE lines IS NOT NULL"
    )


def products(lines: str) -> str:
    """SQL for the products (VARCHAR[]) of lines as `enriched_events` has them."""
    return f"json_extract_string({lines}, '$[*].product_id')"


def values(lines: str) -> str:
    """SQL for the values (DECIMAL(12,2)[]) of lines as `enriched_events` has them."""
    return f"json_extract_string({lines}, '$[*].order_value_gbp')::DECIMAL(12,2)[]"


def with_values(lines: str, changed: str) -> str:
    """SQL for lines, as `enriched_events` has them, with other values.

    Args:
        lines: the lines (VARCHAR), null where there are none.
        changed: their values (DECIMAL(12,2)[]).
    """
    return (
        f"CASE WHEN {lines} IS NOT NULL THEN to_json(list_transform("
        f"json_transform({lines}, '[\"JSON\"]'), lambda line, place: json_merge_patch(line,"
        f" json_object('order_value_gbp', {changed}[place]))))::VARCHAR END"
    )


def _typed(json: str) -> str:
    """SQL for the lines as a list of structs."""
    schema = ", ".join(f'"{name}": "JSON"' for name in FIELDS)
    has = {name: f"item[1].{name} IS NOT NULL" for name in FIELDS}
    nothing = ", ".join(f'"{name}": null' for name in FIELDS)
    known = " + ".join(f"({there})::TINYINT" for there in has.values())
    value = "item[1].order_value_gbp"
    # One call for all lines is many times faster than one for each.
    items = (
        f"list_zip(json_transform({json}, '[{{{schema}}}]'), json_keys({json}, '$[*]'),"
        f" json_type({json}, '$[*]'), json_extract({json}, '$[*]'))"
    )
    texts = (
        f"list_transform({items}, lambda item: {{"
        + ", ".join(f"'has_{name}': {there}" for name, there in has.items())
        + f""", 'is_object': item[3] = 'OBJECT',
        'is_repeated': len(item[2]) > len(list_distinct(item[2])),
        'product_id': {_text("item[1].product_id")},
        'quantity': {_whole_number("item[1].quantity")},
        'line_number': {_whole_number("item[1].line_number")},
        'value_text': {_text(value, other=f"{value}::VARCHAR")},
        'extra': CASE WHEN len(item[2]) > {known}
            THEN json_merge_patch(item[4], '{{{nothing}}}') END}})"""
    )
    number = (
        f"CASE WHEN regexp_full_match(read.value_text, {literal(NUMBER)}) THEN read.value_text END"
    )
    return (
        f"list_transform({texts}, lambda read: struct_insert(read, number := {number},"
        f" order_value := TRY_CAST({number} AS DECIMAL(18,6))))"
    )


def _text(json: str, *, other: str = "NULL") -> str:
    return (
        f"CASE WHEN {json} LIKE '\"%' THEN trim(json_extract_string({json}, '$'), {BLANKS})"
        f" ELSE {other} END"
    )


def _whole_number(json: str) -> str:
    """SQL for a whole number (BIGINT); null if it is none, a text for example."""
    return (
        f"TRY_CAST(CASE WHEN regexp_full_match({json}::VARCHAR, {literal(WHOLE_NUMBER)})"
        f" THEN {json}::VARCHAR END AS BIGINT)"
    )


def _each(field: str) -> str:
    """SQL for the list of a field of all lines that have it."""
    return (
        f"list_filter(list_transform(typed_lines, lambda line: line.{field}),"
        " lambda found: found IS NOT NULL)"
    )


def _first_fault() -> str:
    """SQL for the struct of `reason` and `field` of the first line that cannot be used."""
    none = ", ".join(map(literal, NO_ID))
    text = "lower(ltrim(line.value_text, '+-'))"
    faults = (
        ("NOT line.is_object", "wrong_type", None),
        ("line.is_repeated", "repeated_field", None),
        ("NOT line.has_product_id", "missing_field", "product_id"),
        ("NOT line.has_quantity", "missing_field", "quantity"),
        ("NOT line.has_order_value_gbp", "missing_field", "order_value_gbp"),
        ("line.product_id IS NULL", "wrong_type", "product_id"),
        (f"lower(line.product_id) IN ('', {none})", "blank_value", "product_id"),
        ("line.quantity IS NULL", "wrong_type", "quantity"),
        ("line.quantity <= 0", "not_positive", "quantity"),
        (f"line.quantity > {MAX_LINE_QUANTITY}", "out_of_range", "quantity"),
        (f"{text} IN ('nan', 'inf', 'infinity')", "not_finite", "order_value_gbp"),
        ("line.number IS NULL", "wrong_type", "order_value_gbp"),
        ("isinf(TRY_CAST(line.number AS DOUBLE))", "not_finite", "order_value_gbp"),
        ("line.order_value < 0", "not_positive", "order_value_gbp"),
        (
            f"line.order_value IS NULL OR line.order_value >= {OUT_OF_RANGE_GBP}",
            "out_of_range",
            "order_value_gbp",
        ),
        ("line.order_value <> round(line.order_value, 2)", "fraction_of_penny", "order_value_gbp"),
        ("line.has_line_number AND line.line_number IS NULL", "wrong_type", "line_number"),
        ("line.line_number <= 0", "not_positive", "line_number"),
    )
    cases = " ".join(
        f"WHEN {condition} THEN {{'reason': {literal(reason)}, 'field':"
        f" concat('lines[', place - 1, ']{f'.{field}' if field else ''}')}}"
        for condition, reason, field in faults
    )
    return (
        f"list_filter(list_transform(typed_lines, lambda line, place: CASE {cases} END),"
        " lambda fault: fault IS NOT NULL)[1]"
    )


def _stored() -> str:
    """SQL for the lines as `enriched_events` has them: JSON text, numbered."""
    fields = (
        "line_number := coalesce(line.line_number, place), product_id := line.product_id,"
        " quantity := line.quantity, order_value_gbp := line.order_value::DECIMAL(12,2)"
    )
    return (
        "to_json(list_transform(typed_lines, lambda line, place: CASE WHEN line.extra IS NULL"
        f" THEN to_json(struct_pack({fields}))"
        f" ELSE to_json(struct_pack({fields}, extra := line.extra)) END))::VARCHAR"
    )
