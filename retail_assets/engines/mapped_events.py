"""Reads events in the shape of other programs with DuckDB: their fields by the paths of a mapping.

The result has the columns that `duckdb_events.parsed` reads from events in our own shape, so all
that follows is the same. All paths of all mappings are read at once: that parses an event once,
and takes no longer than our own fields do.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial

from retail_assets.engines.duckdb import BLANKS
from retail_assets.engines.json_text import may_have, too_deep
from retail_assets.engines.json_text import text as json_text
from retail_assets.engines.mapped_fields import Spelling, text_of
from retail_assets.engines.mapped_lines import lines_json
from retail_assets.lake.sql import literal
from retail_assets.mapping.events import EventMapping
from retail_assets.mapping.fields import NumberField, TextField, TimeField
from retail_assets.mapping.json_path import JsonPath, json_path

ORIGIN = "if(source = 'redrive', source_name, concat(source, ':', source_name))"
"""Where an event came from, as `EventMapping.origins` has it."""

SHOWN = 100
"""Characters that are shown of a value that no mapping is for."""

_BASE64 = r"[A-Za-z0-9+/]*={0,2}"

CURRENCY = TextField(source="$.currency")
"""Where the currency stands if a mapping says nothing: no other is counted as pounds."""

_NAMES = {
    "order_value_gbp": "value_text",
    "quantity": "quantity_text",
    "event_timestamp": "time_text",
}
"""The columns of texts that are typed later."""

_REPEATS = "len(keys[1]) > list_unique(keys[1])"


class Reader:
    """The SQL for the events of some mappings.

    Args:
        mappings: the mappings; at least one.
        fields: the names of our own fields, for events of a source without a mapping.
    """

    def __init__(self, mappings: Sequence[EventMapping], fields: Sequence[str]) -> None:
        self._mappings = mappings
        self._fields = fields
        self._pointers: dict[str, int] = {}
        self.all_sources = any(each.origins is None for each in mappings)
        """Whether every event is of a source with a mapping."""
        self._with_truths = {
            self._number(path)
            for each in mappings
            for field in self._of(each).values()
            if field.values
            for path in self._paths(each, field)
        }
        for each in mappings:
            for condition in each.when:
                self._number(json_path(condition.path))
            for field in self._of(each).values():
                for path in self._paths(each, field):
                    self._number(path)
            if each.lines:
                self._number(self._path(each, each.lines.path))
        self._payload = "opened" if any(each.root_text for each in mappings) else "payload"

    @staticmethod
    def _of(mapping: EventMapping) -> dict[str, TextField]:
        return {"currency": CURRENCY, **dict(mapping.fields.named())}

    @staticmethod
    def _path(mapping: EventMapping, text: str) -> JsonPath:
        return json_path(text).from_root(json_path(mapping.root))

    def _paths(self, mapping: EventMapping, field: TextField) -> list[JsonPath]:
        return [self._path(mapping, source) for source in field.sources]

    def _number(self, path: JsonPath) -> int:
        """The number of a path in the list of all, from 1."""
        return self._pointers.setdefault(path.pointer, len(self._pointers) + 1)

    def query(self, formed: str, own_fields: str) -> str:
        """Return a query for the texts of events.

        Args:
            formed: a query with `payload`, `is_object`, `source` and `source_name`.
            own_fields: the schema of our own fields, as `json_transform` takes it.
        """
        pointers = ", ".join(map(literal, self._pointers))
        is_mapped = "true"
        if not self.all_sources:
            origins = "|".join(each.origins or "" for each in self._mappings)
            is_mapped = f"regexp_full_match({ORIGIN}, {literal(origins)})"
        found = ", ".join(
            f"found[{number}]::VARCHAR AS j{number}" for number in self._pointers.values()
        )
        scalars = ", ".join(
            f"{self._scalar(number)} AS s{number}" for number in self._pointers.values()
        )
        names = ("event_id", "order_id", "customer_id", "product_id", "region", "status")
        texts = ", ".join(
            f"{self._each(partial(self._text, name=name), _own(name))} AS {_NAMES.get(name, name)}"
            for name in (*names, *_NAMES, "currency")
        )
        has = ", ".join(
            self._each(partial(self._has, name=name), f"f.{name} IS NOT NULL", "NULL")
            + f" AS has_{name}"
            for name in self._fields
        )
        lines = self._each(
            self._lines,
            "CASE WHEN list_contains(keys[1], 'lines')"
            " THEN json_extract(payload, '/lines')::VARCHAR END",
        )
        irregular = self._each(
            self._irregular,
            "len(keys[1]) <> "
            + " + ".join(f"(f.{name} IS NOT NULL)::TINYINT" for name in self._fields),
            "NULL",
        )
        read = f"""
            SELECT *,
                CASE WHEN is_mapped THEN json_extract({self._payload}, [{pointers}]) END AS found,
                CASE WHEN is_object AND NOT is_mapped
                    THEN json_transform(payload, '{{{own_fields}}}') END AS f
            FROM ({self._opened(formed, is_mapped)})
        """
        own_keys = "[json_keys(payload)]"
        keys = self._each(self._keys, own_keys, own_keys)
        return f"""
            SELECT *, {irregular} AS irregular, {has}, {lines} AS lines_json,
                {self._fault()} AS mapping_fault, {self._fault_field()} AS mapping_field
            FROM (
                SELECT *, {texts}, {keys} AS keys
                FROM (
                    SELECT *, {scalars}
                    FROM (
                        SELECT *, {self._mapping()} AS mapping
                        FROM (
                            SELECT * EXCLUDE (found), {found}
                            FROM (
                                {read}
                            )
                        )
                    )
                )
            )
        """

    def _opened(self, formed: str, is_mapped: str) -> str:
        """The query that adds `opened`: the payload with objects in place of texts at roots."""
        query = f"SELECT *, is_object AND {is_mapped} AS is_mapped FROM ({formed})"
        wanted = dict.fromkeys(
            (each.root, each.root_text, each.origins) for each in self._mappings if each.root_text
        )
        if wanted:
            query = f"SELECT *, payload AS opened FROM ({query})"
        for root, written, origins in wanted:
            path = json_path(root)
            pointer = literal(JsonPath(path.parts).pointer)
            content = "content"
            if written == "base64":
                content = (
                    f"CASE WHEN regexp_full_match(content, {literal(_BASE64)})"
                    " AND length(content) % 4 = 0 THEN TRY(decode(from_base64(content))) END"
                )
            is_of_it = "is_mapped"
            if origins is not None:
                is_of_it = f"is_mapped AND regexp_full_match({ORIGIN}, {literal(origins)})"
            patch = "content::JSON"
            for name in reversed(path.parts):
                patch = f"json_object({literal(name)}, {patch})"
            # What is nested too deep must not be read, and a name that is repeated would be lost.
            query = f"""
                SELECT * EXCLUDE (content)
                    REPLACE (CASE WHEN content IS NOT NULL THEN CASE
                        WHEN len(json_keys(content)) = list_unique(json_keys(content))
                        THEN json_merge_patch(opened, {patch})::VARCHAR ELSE opened END
                        ELSE opened END AS opened)
                FROM (
                    SELECT * REPLACE (CASE WHEN content LIKE '{{%'
                        AND NOT contains(content, '\\u0000') THEN CASE
                        WHEN NOT {too_deep("content")} AND json_valid(content) THEN content END END
                        AS content)
                    FROM (
                        SELECT * REPLACE (ltrim({content}, {BLANKS}) AS content)
                        FROM (
                            SELECT *, CASE WHEN {is_of_it} THEN CASE
                                WHEN json_type(opened, {pointer}) = 'VARCHAR'
                                THEN json_extract_string(opened, {pointer}) END END AS content
                            FROM ({query})
                        )
                    )
                )
            """
        return query

    @property
    def columns(self) -> str:
        """The columns of `query` that nothing after it needs."""
        numbers = self._pointers.values()
        return ", ".join(
            ["f", "keys", "irregular", "is_mapped", "mapping"]
            + (["opened"] if self._payload == "opened" else [])
            + [f"j{number}, s{number}" for number in numbers]
        )

    def _each(
        self, of: Callable[[EventMapping], str], own: str, of_none: str = "NULL::VARCHAR"
    ) -> str:
        """SQL by the mapping of an event; `own` for events in our own shape."""
        cases = [f"WHEN {number} THEN {of(each)}" for number, each in enumerate(self._mappings, 1)]
        none = f" WHEN 0 THEN {of_none}"
        other = "NULL" if self.all_sources else f"CASE WHEN is_object THEN {own} END"
        return f"CASE mapping {' '.join(cases)}{none} ELSE {other} END"

    def _mapping(self) -> str:
        """SQL for the number of an event's mapping, 0 if none fits, null in our own shape."""
        cases = []
        for number, each in enumerate(self._mappings, 1):
            conditions = [self._is_of(each)]
            for condition in each.when:
                found = f"j{self._number(json_path(condition.path))}"
                values = [*map(_as_json, condition.is_), *condition.is_]
                conditions.append(
                    f"list_contains([{', '.join(map(literal, values))}], {found})"
                    if values
                    else f"({found} <> 'null')"
                )
            cases.append(f"WHEN {' AND '.join(conditions)} THEN {number}")
        return (
            f"CASE WHEN NOT is_mapped OR is_mapped IS NULL THEN NULL {' '.join(cases)} ELSE 0 END"
        )

    def _is_of(self, mapping: EventMapping) -> str:
        origins = mapping.origins
        alone = len({each.origins for each in self._mappings}) == 1
        if origins is None or alone:
            return "true"
        return f"regexp_full_match({ORIGIN}, {literal(origins)})"

    def _scalar(self, number: int) -> str:
        """SQL for the text of what a path has, if it is a text or number."""
        # No IN: DuckDB makes a join of a longer list, and sets it up for each batch.
        others = literal("{[n" if number in self._with_truths else "{[ntf")
        return json_text(
            f"j{number}",
            other=f"CASE WHEN NOT contains({others}, j{number}[1]) THEN j{number} END",
        )

    def _text(self, mapping: EventMapping, name: str) -> str:
        field = self._of(mapping).get(name)
        if field is None:
            return "NULL::VARCHAR"
        if field.source is None:
            sql = text_of(field, str, Spelling())
        else:
            sql = self._of_source(mapping, name, field)
        return {"status": f"lower({sql})", "currency": f"upper({sql})"}.get(name, sql)

    def _of_source(self, mapping: EventMapping, name: str, field: TextField) -> str:
        spelling = Spelling.of(mapping, mapping.timezone)

        def source(path: str) -> str:
            number = self._number(self._path(mapping, path))
            found = f"nullif(s{number}, '')"
            if isinstance(field, NumberField) and mapping.decimal != ".":
                # A number of JSON has a point.
                return (
                    f"CASE WHEN j{number} LIKE '\"%' THEN {found}"
                    f" ELSE replace(s{number}, '.', {literal(mapping.decimal)}) END"
                )
            return found

        number = self._number(self._path(mapping, field.source or ""))
        sql = text_of(field, source, spelling)
        if name == "currency":
            # What is no text is no pounds.
            return f"coalesce({sql}, s{number}, CASE WHEN j{number} <> 'null' THEN j{number} END)"
        is_plain = sql == source(field.source or "")
        keeps_blank = name not in ("quantity", "event_timestamp")
        if is_plain:
            return f"s{number}" if keeps_blank else sql
        if field.default is not None:
            # In place of nothing, not of what is no text.
            return f"CASE WHEN j{number}[1] IN ('{{', '[') THEN NULL ELSE {sql} END"
        return f"coalesce({sql}, s{number})" if keeps_blank else sql

    def _has(self, mapping: EventMapping, name: str) -> str:
        field = self._of(mapping).get(name)
        if field is None:
            return "false"
        if field.source is None:
            return "true"
        number = self._number(self._path(mapping, field.source))
        column = _NAMES.get(name, name)
        blank = ", '\"\"'" if isinstance(field, TimeField) or name == "quantity" else ""
        return (
            f"CASE WHEN {column} IS NOT NULL THEN true"
            f" ELSE coalesce(j{number} NOT IN ('null'{blank}), false) END"
        )

    def _parents(self, mapping: EventMapping) -> list[str]:
        """The objects that the paths of a mapping lead through: first the root, then all others."""
        root = JsonPath(json_path(mapping.root).parts, is_whole=True)
        paths = [
            path for field in self._of(mapping).values() for path in self._paths(mapping, field)
        ]
        paths += [json_path(condition.path).from_root(JsonPath(())) for condition in mapping.when]
        if mapping.lines:
            paths.append(self._path(mapping, mapping.lines.path))
        found = {root.pointer: None}
        for path in [root, *paths]:
            for length in range(len(path.parts)):
                found.setdefault(JsonPath(path.parts[:length], is_whole=True).pointer)
        return list(found)

    def _keys(self, mapping: EventMapping) -> str:
        return f"json_keys({self._payload}, [{', '.join(map(literal, self._parents(mapping)))}])"

    def _known(self, mapping: EventMapping) -> dict[str, int]:
        """The names within the root that are fields, with the number of each path."""
        root = json_path(mapping.root).parts
        paths = [
            self._path(mapping, field.source)
            for name, field in mapping.fields.named()
            if field.source is not None and name != "currency"
        ]
        if mapping.lines:
            paths.append(self._path(mapping, mapping.lines.path))
        return {
            path.parts[-1]: self._number(path)
            for path in paths
            if path.parts and path.parts[:-1] == root
        }

    def _irregular(self, mapping: EventMapping) -> str:
        there = [f"(j{number} IS NOT NULL)::TINYINT" for number in self._known(mapping).values()]
        return f"len(keys[1]) IS DISTINCT FROM {' + '.join(there) or '0'}"

    def repeated(self, own: str) -> str:
        """SQL for a name that stands twice in an object on the way to the fields.

        Args:
            own: the same for events in our own shape, of `keys[1]`.
        """

        def of(mapping: EventMapping) -> str:
            cases = [f"WHEN irregular AND {_REPEATS} THEN {_repeated('keys[1]')}"]
            cases += [
                f"WHEN len({keys}) > 1 AND len({keys}) > list_unique({keys}) THEN {_repeated(keys)}"
                for number in range(2, len(self._parents(mapping)) + 1)
                for keys in [f"keys[{number}]"]
            ]
            return f"CASE {' '.join(cases)} END"

        return self._each(
            of,
            own,
            of_none=f"CASE WHEN {_REPEATS} THEN {_repeated('keys[1]')} END",
        )

    def others(self, own: str) -> str:
        """SQL for all that the root has besides fields; `own` is for our own shape."""

        def of(mapping: EventMapping) -> str:
            root = json_path(mapping.root).parts
            known = list(self._known(mapping))
            nothing = "{" + ", ".join(f"{_as_json(name)}: null" for name in known) + "}"
            names = f"[{', '.join(map(literal, known))}]::VARCHAR[]"
            payload = self._payload
            if root:
                payload = f"json_extract({payload}, {literal(JsonPath(root).pointer)})"
            return (
                "CASE WHEN irregular AND mapping_fault IS NULL"
                f" AND NOT list_has_all({names}, keys[1])"
                f" THEN json_merge_patch({payload}, {literal(nothing)})::VARCHAR END"
            )

        return self._each(of, own)

    def _lines(self, mapping: EventMapping) -> str:
        if mapping.lines is None:
            return "NULL::VARCHAR"
        number = self._number(self._path(mapping, mapping.lines.path))
        spelling = Spelling.of(mapping, mapping.timezone)
        return lines_json(f"j{number}", mapping.lines, spelling)

    def _fault(self) -> str:
        """SQL for the reason why a mapping cannot be applied."""

        def of(mapping: EventMapping) -> str:
            root = json_path(mapping.root)
            if not root.parts:
                return "NULL::VARCHAR"
            kind = f"coalesce(json_type({self._payload}, {literal(root.pointer)}), 'NULL')"
            return (
                f"CASE WHEN len(keys[1]) > 0 THEN NULL ELSE CASE {kind} WHEN 'OBJECT' THEN NULL"
                " WHEN 'NULL' THEN 'missing_field' ELSE 'wrong_type' END END"
            )

        return self._each(of, "NULL::VARCHAR", of_none="'unmapped_event'")

    def _fault_field(self) -> str:
        paths = dict.fromkeys(
            (each.origins, condition.path) for each in self._mappings for condition in each.when
        )
        shown = []
        for origins, path in paths:
            number = self._number(json_path(path))
            value = f"coalesce(left(coalesce(s{number}, j{number}), {SHOWN}), 'nothing')"
            text = f"{literal(f'{path}: ')} || {value}"
            if origins is not None:
                text = f"CASE WHEN regexp_full_match({ORIGIN}, {literal(origins)}) THEN {text} END"
            shown.append(text)
        found = f"concat_ws(', ', {', '.join(shown)})" if shown else "NULL::VARCHAR"
        return self._each(lambda mapping: literal(mapping.root), "NULL::VARCHAR", of_none=found)


def _own(name: str) -> str:
    """SQL for the text of one of our own fields."""
    if name == "order_value_gbp":
        return json_text("f.order_value_gbp", other="f.order_value_gbp::VARCHAR")
    if name == "quantity":
        return "CASE WHEN f.quantity NOT LIKE '\"%' THEN f.quantity::VARCHAR END"
    if name == "currency":
        currency = f"upper(trim(payload ->> '$.currency', {BLANKS}))"
        return f"CASE WHEN {may_have('currency')} THEN {currency} END"
    return f"lower({json_text('f.status')})" if name == "status" else json_text(f"f.{name}")


def _repeated(keys: str) -> str:
    return f"list_filter(map_entries(list_histogram({keys})), lambda e: e.value > 1)[1].key"


def _as_json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
