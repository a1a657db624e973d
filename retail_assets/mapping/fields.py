"""Where the values of a field stand in a source, and how they are written there."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Self, override

EPOCHS = {"epoch": 1_000_000, "epoch_ms": 1_000}
"""Formats of times that are numbers since 1970 in UTC: microseconds of a unit."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError) as error:
        message = f"{value!r} is not a time zone of the IANA database, such as Europe/London"
        raise ValueError(message) from error
    return value


_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

Names = Annotated[tuple[str, ...], BeforeValidator(_as_list), WithJsonSchema(_ONE_OR_MORE)]
"""One name, or a list of names."""


def _known_format(value: str) -> str:
    parts = re.findall(r"%-?(.)", value)
    unknown = [part for part in parts if part not in _DIRECTIVES]
    if unknown:
        raise ValueError(f"%{unknown[0]} is no part of a time that is known here")
    if value not in EPOCHS and not all(set(each) & set(parts) for each in ("yY", "mbB", "d")):
        raise ValueError(
            f"{value!r} lacks the year, month or day: write it such as %d.%m.%Y %H:%M, epoch, or"
            " epoch_ms"
        )
    return value


_DIRECTIVES = "YymbBdaAHIpMSfzZ%"

Format = Annotated[str, AfterValidator(_known_format)]
"""How a time is written: as for `strptime`, or one of `EPOCHS`."""

POUNDS = ("£", "GBP", "UKL")
"""Signs of amounts in pounds."""


def _a_sign(value: str) -> str:
    sign = value.strip()
    if not sign or re.search(r"[0-9.,'()+-]", sign):
        raise ValueError(f"{value!r} is no sign of a currency, such as £ or EUR")
    return sign


Sign = Annotated[str, AfterValidator(_a_sign)]
"""A text before or after an amount."""

Scalar = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]
"""A text, which YAML may have without quotes."""

Zone = Annotated[str, AfterValidator(_known_zone)]
"""The name of a time zone."""


class Section(BaseModel):
    """A part of a mapping file: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class TextField(Section):
    """A text: where it stands, and what stands for what."""

    source: str | None = Field(
        default=None,
        alias="from",
        min_length=1,
        description="The column (of files), or the JSON path such as `$.customer.id` (of events).",
    )
    alternatives: Names = Field(
        default=(),
        alias="or",
        description="Columns or paths to read where `from` has nothing: the first that has a value"
        " counts.",
    )
    constant: Scalar | None = Field(default=None, description="The value of every row or event.")
    default: Scalar | None = Field(
        default=None, description="The value where the source has none, or a blank one."
    )
    values: dict[str, Scalar] = Field(
        default_factory=dict,
        description="What the source's values stand for, such as `paid: completed`; letter case"
        " does not matter. Other values stay as they are.",
    )
    other: Scalar | None = Field(
        default=None, description="The value in place of any that `values` does not have."
    )
    fill: bool = Field(
        default=False,
        description="Rows without a value take that of the other rows of their order (exports).",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.source is None) == (self.constant is None):
            raise ValueError("it needs either `from` or `constant`")
        more = self.values or self.fill or self.alternatives or self.default is not None
        if self.constant is not None and more:
            raise ValueError("a `constant` has no `or`, `default`, `values` or `fill`")
        if self.other is not None and not self.values:
            raise ValueError("`other` needs `values`")
        folded = [each.strip().casefold() for each in self.values]
        if len(set(folded)) < len(folded):
            raise ValueError("`values` has a value twice, in other letters")
        return self

    @classmethod
    @override
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core_schema)]}

    @property
    def sources(self) -> tuple[str, ...]:
        """Every column or path that the field reads."""
        return () if self.source is None else (self.source, *self.alternatives)


class NumberField(TextField):
    """A number: its unit, and what is multiplied, added or taken off."""

    scale: Decimal = Field(
        default=Decimal(1),
        ge=-9999,
        le=9999,
        decimal_places=6,
        description="What it is multiplied by: 0.01 for pence, -1 for another sign.",
    )
    times: str | None = Field(
        default=None, description="The column or path to multiply by, such as the quantity."
    )
    plus: Names = Field(default=(), description="Columns or paths to add; blank ones are 0.")
    minus: Names = Field(default=(), description="Columns or paths to take off; blank ones are 0.")

    @property
    def sources(self) -> tuple[str, ...]:
        """Every column or path that the field reads."""
        more = () if self.times is None else (self.times,)
        return (*super().sources, *more, *self.plus, *self.minus)

    @property
    def computed(self) -> bool:
        """Whether the number is another than the one that stands in the source."""
        return self.scale != 1 or len(self.sources) > 1 + len(self.alternatives)


class ChargeField(NumberField):
    """An amount of an order as a whole, such as its shipping."""

    spread: bool = Field(
        default=False,
        description="Add it to the order's lines, by their value; otherwise it is kept apart.",
    )
    total: bool = Field(
        default=False,
        description="It is what the order's lines add up to: the difference is spread over them.",
    )


class TimeField(TextField):
    """A time: its formats and its zone.

    `format` is tried on the text of `from`, a blank, and that of `time`, if there is one.
    """

    time: str | None = Field(
        default=None,
        min_length=1,
        description="The column or path that has the time of day, where `from` has the day alone:"
        " `format` is that of both, with a blank between them.",
    )
    zones: dict[str, Zone] = Field(
        default_factory=dict,
        description="What short names of zones at `%Z` stand for, such as `PDT:"
        " America/Los_Angeles`: only UTC, GMT and names such as Europe/London are known without.",
    )

    format: Annotated[
        tuple[Format, ...], BeforeValidator(_as_list), WithJsonSchema(_ONE_OR_MORE)
    ] = Field(
        default=(),
        description="How it is written: formats such as `%d.%m.%Y %H:%M`, the first that fits, or"
        " `epoch` or `epoch_ms`. Without: ISO 8601.",
    )
    timezone: Zone | None = Field(
        default=None,
        description="The zone of times without an offset; without it the business time zone.",
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """Every column or path that the field reads."""
        return (*super().sources, *(() if self.time is None else (self.time,)))


class Numbers(Section):
    """How numbers are written."""

    decimal: Literal[".", ","] = Field(default=".", description="The decimal sign of numbers.")
    thousands: Literal["", ".", ",", " ", "'"] = Field(
        default="", description="The sign between thousands, if numbers have one."
    )
    signs: Annotated[tuple[Sign, ...], BeforeValidator(_as_list), WithJsonSchema(_ONE_OR_MORE)] = (
        Field(
            default=(),
            description="Texts before or after a number that are passed over, such as `£` or `EUR`."
            " The currency is not told by them, but by `currency`.",
        )
    )
    negative: Literal["before", "after", "parentheses"] = Field(
        default="before",
        description="Where the minus of a negative number stands: `after` as in 12.50-, or in its"
        " place `parentheses` as in (12.50).",
    )

    @model_validator(mode="after")
    def _tells_signs_apart(self) -> Self:
        if self.thousands == self.decimal:
            raise ValueError("`decimal` and `thousands` are the same sign")
        return self

    @property
    def other_signs(self) -> tuple[str, ...]:
        """Signs of other currencies than pounds."""
        return tuple(sign for sign in self.signs if sign.upper() not in POUNDS)

    def need_currency(self) -> None:
        """Refuse signs of other currencies where nothing says which currency amounts are in.

        Raises:
            ValueError: if there are any.
        """
        if self.other_signs:
            raise ValueError(
                f"`signs` has {self.other_signs[0]!r}, but `currency` is not there: it says which"
                " currency the amounts are in, such as {constant: EUR}"
            )
