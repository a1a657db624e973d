"""The mapping of events: JSON in the shape of other programs, such as webhooks and envelopes."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Self

from retail_assets.mapping.fields import (
    NumberField,
    Numbers,
    Scalar,
    Section,
    TextField,
    TimeField,
    Zone,
)
from retail_assets.mapping.json_path import WHOLE, json_path


def _a_path(value: str) -> str:
    json_path(value)
    return value


Path = Annotated[str, AfterValidator(_a_path)]
"""A JSON path."""


class _OneOrMore:
    """Tells editors that a list of one may be written without the brackets."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(core_schema)
        return {"anyOf": [found["items"], found]}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


AS_LIST, ONE_OR_MORE = BeforeValidator(_as_list), _OneOrMore()

KINDS = ("webhook", "kafka", "sqs", "file")
"""The sources that events come from, as `raw_events.source` has them."""


def _a_source(value: str) -> str:
    kind, colon, name = value.partition(":")
    if not value.strip() or (colon and not name):
        raise ValueError("a source is a name such as shop, or with its kind, webhook:shop")
    if colon and kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    return value


class Condition(Section):
    """What an event must have for a mapping to apply to it."""

    path: Path = Field(description="The JSON path, from the whole event.")
    is_: Annotated[tuple[Scalar, ...], AS_LIST, ONE_OR_MORE] = Field(
        default=(),
        alias="is",
        description="The values that it may have there; without, any but null.",
    )


class _Fields(Section):
    """Fields that are read by JSON paths."""

    @model_validator(mode="after")
    def _of_paths(self) -> Self:
        for name, field in self:
            if field is None:
                continue
            if field.fill:
                raise ValueError(f"{name}: `fill` is for the rows of exports")
            for source in field.sources:
                try:
                    json_path(source)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return self

    def named(self) -> Iterator[tuple[str, TextField]]:
        """The fields that it has, by name."""
        for name in type(self).model_fields:
            if (field := getattr(self, name)) is not None:
                yield name, field


class EventFields(_Fields):
    """The fields of an event, each with the JSON path that has it."""

    event_id: TextField | None = None
    order_id: TextField
    customer_id: TextField
    product_id: TextField | None = None
    region: TextField
    status: TextField | None = None
    order_value_gbp: NumberField
    quantity: NumberField | None = None
    event_timestamp: TimeField | None = None
    currency: TextField | None = None


class LineFields(_Fields):
    """The fields of a line of an order, each with the JSON path in the line that has it."""

    product_id: TextField
    quantity: NumberField
    order_value_gbp: NumberField
    line_number: NumberField | None = None

    @model_validator(mode="after")
    def _within_the_line(self) -> Self:
        for name, field in self.named():
            if any(source.startswith(WHOLE) for source in field.sources):
                raise ValueError(f"{name}: a path of a line begins with one $, which is the line")
        return self


class EventLines(Section):
    """The lines of an order."""

    path: Path = Field(description="The JSON path of the list.")
    fields: LineFields
    spread: bool = Field(
        default=False,
        description="Whether what the order's value has beyond its lines (shipping and tax, less"
        " discounts) is spread over these by their values. Without it they have to add up.",
    )


class EventMapping(Numbers):
    """How the events of a source are written, and which JSON path is which field."""

    source: Annotated[
        tuple[Annotated[str, AfterValidator(_a_source)], ...], AS_LIST, ONE_OR_MORE
    ] = Field(
        default=(),
        description="Where the events come from: the name of a webhook's sender, a Kafka topic, a"
        " queue, or a folder or pattern of event files such as `shop/*.jsonl`, if need be with its"
        " kind, such as `webhook:shop`. Without it, from anywhere.",
    )
    when: Annotated[tuple[Condition, ...], AS_LIST, ONE_OR_MORE] = Field(
        default=(),
        description="Which of these events it is for; the first mapping that fits is used, and an"
        " event that none fits becomes a dead letter, `unmapped_event`.",
    )
    root: Path = Field(
        default="$",
        description="The JSON path of the object that is the order. The paths of fields begin"
        " there; one that begins with `$$` begins at the whole event.",
    )
    root_text: Literal["json", "base64"] | None = Field(
        default=None,
        description="How the object of `root` is written if a text stands there: `json`, or"
        " `base64` of JSON. As it is where an object stands there.",
    )
    fields: EventFields
    lines: EventLines | None = Field(default=None, description="The lines of the order.")
    timezone: Zone | None = Field(
        default=None,
        description="The zone of times without an offset; without it the business time zone.",
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.fields.currency is None:
            self.need_currency()
        root = json_path(self.root)
        if self.root_text and (not root.parts or any(part.isdecimal() for part in root.parts)):
            raise ValueError("`root_text` needs a `root` of names alone, such as $.message.data")
        return self

    def __hash__(self) -> int:
        """By its content, so that what is compiled from it can be cached."""
        return hash(self.model_dump_json())

    @property
    def origins(self) -> str | None:
        """A regular expression for the whole origin of its events (`kind:name`); None for any."""
        if not self.source:
            return None
        return "|".join(f"(?:{_origins(each)})" for each in self.source)


def _origins(source: str) -> str:
    kind, colon, name = source.partition(":")
    kinds = (kind,) if colon else KINDS
    name = name if colon else source
    # A part of a source, such as a partition; and the place of a redriven dead letter.
    of_messages = rf"{re.escape(name)}(?:@\d+)?(?::.*)?"
    return "|".join(
        f"file:{_files(name)}" if each == "file" else f"{each}:{of_messages}" for each in kinds
    )


def _files(pattern: str) -> str:
    """A regular expression for paths of event files by a pattern, or in a folder."""
    pattern = pattern.strip("/")
    parts = []
    for each in re.split(r"(\*\*/?|\*|\?)", pattern):
        if each.startswith("**"):
            parts.append(".*")
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(each) or re.escape(each))
    return "".join(parts) + r"(?:/.*)?(?:@\d+)?(?::\d+)?"
