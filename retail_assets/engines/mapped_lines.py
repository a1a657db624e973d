"""The lines of an order in the shape of other programs, as the `lines` that our own events have."""

from collections.abc import Iterable

from retail_assets.engines.json_text import text as json_text
from retail_assets.engines.mapped_fields import Spelling, text_of
from retail_assets.lake.sql import literal
from retail_assets.mapping.events import EventLines
from retail_assets.mapping.fields import NumberField, TextField
from retail_assets.mapping.json_path import json_path

_OWN = ("line_number", "product_id", "quantity", "order_value_gbp")
_WHOLE = r"[+-]?[0-9]{1,18}(\.0*)?"
_AMOUNT = r"[+-]?[0-9]{1,10}(\.[0-9]+)?"


def lines_json(json: str, lines: EventLines, spelling: Spelling) -> str:
    """SQL for the JSON of `lines` (VARCHAR); what is no list, or no object in it, stays as it is.

    Args:
        json: SQL for the JSON of the list; an event's `value_text` is a column beside it.
        lines: where its lines have their fields.
        spelling: how numbers are written.
    """
    texts = _texts(json, lines, spelling)
    if lines.spread:
        items = _spread(texts)
        found = (
            f"list_transform({items}, lambda item: to_json(list_transform(item.lines,"
            f" lambda line, place: {_result(lines, _share())}))::VARCHAR)[1]"
        )
    else:
        result = _result(lines, "line.order_value_gbp")
        found = f"to_json(list_transform({texts}, lambda line: {result}))::VARCHAR"
    return f"CASE WHEN {json} LIKE '[%' THEN {found} ELSE {json} END"


def _texts(json: str, lines: EventLines, spelling: Spelling) -> str:
    """SQL for a list of structs: a line's `element`, whether it `is_sound`, and its fields."""
    pointers: dict[str, int] = {}
    for _, field in lines.fields.named():
        for source in field.sources:
            pointers.setdefault(json_path(source).pointer, len(pointers) + 1)
    found = (
        f"list_transform(json_extract({json}, '$[*]'), lambda element: {{'element': element,"
        " 'is_sound': coalesce(json_type(element) = 'OBJECT', false)"
        " AND len(json_keys(element)) = list_unique(json_keys(element)),"
        f" 'found': json_extract(element, [{_list(pointers)}])}})"
    )
    scalars = ", ".join(
        f"'s{number}': {_scalar(f'item.found[{number}]')}" for number in pointers.values()
    )
    read = (
        f"list_transform({found}, lambda item: {{'element': item.element,"
        f" 'is_sound': item.is_sound, {scalars}}})"
    )
    fields = ", ".join(
        f"'{name}': {_text(field, pointers, spelling)}" for name, field in lines.fields.named()
    )
    return (
        f"list_transform({read}, lambda line: {{'element': line.element,"
        f" 'is_sound': line.is_sound, {fields}}})"
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(literal, names))


def _scalar(json: str) -> str:
    return json_text(
        json,
        other=f"CASE WHEN ({json}::VARCHAR)[1] NOT IN ('{{', '[', 'n') THEN {json}::VARCHAR END",
    )


def _text(field: TextField, pointers: dict[str, int], spelling: Spelling) -> str:
    def source(path: str) -> str:
        pointer = json_path(path).pointer
        found = f"nullif(line.s{pointers[pointer]}, '')"
        if isinstance(field, NumberField) and spelling.decimal != ".":
            # A number of JSON has a point.
            return (
                f"CASE WHEN json_type(line.element, {literal(pointer)}) = 'VARCHAR' THEN {found}"
                f" ELSE replace({found}, '.', {literal(spelling.decimal)}) END"
            )
        return found

    return text_of(field, source, spelling)


def _spread(texts: str) -> str:
    """SQL for a list of one struct, so that its parts are computed once.

    It has the `lines`, their `amounts`, the sum of these, and the `order` that is to be spread:
    null if it or one of the amounts is no number.
    """
    amounts = (
        "list_transform(item.lines, lambda line: CASE WHEN"
        f" regexp_full_match(line.order_value_gbp, {literal(_AMOUNT)})"
        " THEN TRY_CAST(line.order_value_gbp AS DECIMAL(18,6)) END)"
    )
    order = (
        f"CASE WHEN regexp_full_match(value_text, {literal(_AMOUNT)})"
        " AND len(list_filter(item.amounts, lambda one: one IS NULL)) = 0"
        " THEN TRY_CAST(value_text AS DECIMAL(12,2)) END"
    )
    return (
        f"list_transform(list_transform([{{'lines': {texts}}}],"
        f" lambda item: {{'lines': item.lines, 'amounts': {amounts}}}),"
        " lambda item: {'lines': item.lines, 'amounts': item.amounts,"
        f" 'total': list_sum(item.amounts)::DOUBLE, 'order': {order}}})"
    )


def _share() -> str:
    """SQL for a line's share of the order: that of all lines up to it, less that of all before.

    So the shares add up to the penny.
    """

    def upto(place: str) -> str:
        share = (
            f"CASE WHEN item.total = 0 THEN {place}::DOUBLE / len(item.lines)"
            f" ELSE list_sum(item.amounts[1:{place}])::DOUBLE / item.total END"
        )
        return f"round(item.order * ({share}), 2)::DECIMAL(14,2)"

    before = f"CASE WHEN place = 1 THEN 0 ELSE {upto('(place - 1)')} END"
    return (
        "CASE WHEN item.order IS NULL THEN line.order_value_gbp"
        f" ELSE ({upto('place')} - {before})::DECIMAL(14,2)::VARCHAR END"
    )


def _result(lines: EventLines, value: str) -> str:
    """SQL for the JSON of a line: its own fields, and ours in place of those they are read from."""
    ours = {
        "product_id": "to_json(line.product_id)",
        "quantity": _whole("line.quantity"),
        "order_value_gbp": f"to_json({value})",
    }
    if lines.fields.line_number:
        ours["line_number"] = _whole("line.line_number")
    paths = [json_path(each.source).parts for _, each in lines.fields.named() if each.source]
    names = dict.fromkeys([*_OWN, *(parts[0] for parts in paths if len(parts) == 1)])
    patch = ", ".join(f"{literal(name)}, {ours.get(name, 'NULL')}" for name in names)
    return (
        f"CASE WHEN line.is_sound THEN json_merge_patch(line.element, json_object({patch}))"
        " ELSE line.element END"
    )


def _whole(text: str) -> str:
    """SQL for the JSON of a whole number, of a text if it is none."""
    return (
        f"CASE WHEN regexp_full_match({text}, {literal(_WHOLE)})"
        f" THEN TRY_CAST({text} AS DECIMAL(19,0))::BIGINT::VARCHAR::JSON ELSE to_json({text}) END"
    )
