"""The mapping of order exports and reference files: text files with a column for each field."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, StringConstraints, model_validator
from typing_extensions import Self

from retail_assets.mapping.fields import (
    ChargeField,
    NumberField,
    Numbers,
    Section,
    TextField,
    TimeField,
    Zone,
)
from retail_assets.mapping.file_name import NATIVE, FileName


def _known_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError as error:
        raise ValueError(f"{value!r} is no encoding, such as utf-8 or cp1252") from error
    return value


ChargeName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,30}$")]


def _one_character(value: str) -> str:
    value = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if len(value) != 1 or not value.isascii() or value in "\r\n\"'":
        raise ValueError("it is one character, such as ; or | or tab")
    return value


class FileLayout(Numbers):
    """How a text file is written."""

    delimiter: Annotated[str, AfterValidator(_one_character)] = Field(
        default=",", description="The character between fields; `tab` for a tab."
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] = Field(
        default="utf-8", description="The encoding of its text, such as cp1252 or utf-16."
    )
    header_line: int = Field(
        default=1, ge=1, le=1000, description="The line that has the column names, from 1."
    )
    skip_rows: tuple[str, ...] = Field(
        default=(),
        description="What comment and total rows begin with, such as `#` or `Total`: they are"
        " rejected as `skipped_row`.",
    )
    timezone: Zone | None = Field(
        default=None,
        description="The zone of times without an offset; without it the business time zone.",
    )

    @model_validator(mode="after")
    def _skips_some_rows(self) -> Self:
        if any(not each.strip() for each in self.skip_rows):
            raise ValueError("a text of `skip_rows` is blank: every row begins with it")
        return self


CURRENCY = "currency"
"""The column that has the currency of amounts unless a mapping says otherwise."""


class ExportFields(Section):
    """The fields of an order, each with the column that has it."""

    order_id: TextField
    customer_id: TextField
    product_id: TextField
    region: TextField
    status: TextField
    order_value_gbp: NumberField
    order_timestamp: TimeField
    line_number: NumberField | None = None
    currency: TextField = Field(
        default=TextField(source=CURRENCY),
        description="Without it, the column `currency` if there is one.",
    )

    @property
    def says_currency(self) -> bool:
        """Whether the mapping says which column has the currency, or which one it is."""
        return "currency" in self.model_fields_set


class ExportMapping(FileLayout):
    """How order exports are called and written, and which column is which field."""

    file: str = Field(
        default=NATIVE.pattern,
        description="The name of the files, with the export's date as `%Y`, `%m` and `%d`, and `*`"
        " for any text. A name without a date: the files have orders of many days, and are split"
        " by the day of `order_timestamp`.",
    )
    lines: Literal["products", "rows"] = Field(
        default="products",
        description="Without `line_number`: `rows`, each row of an order is a line of its own;"
        " `products`, rows of one product alone are corrections, the last of which counts.",
    )
    refunds: Literal["reject", "order_day", "refund_day"] = Field(
        default="reject",
        description="Rows of negative value: `reject` them, or take them as lines of their order,"
        " of the day of its other lines (`order_day`) or of their own (`refund_day`).",
    )
    charges: dict[ChargeName, ChargeField] = Field(
        default_factory=dict,
        description="Amounts of an order as a whole, such as discount, shipping and tax, by name:"
        " in one of its rows, or the same in all.",
    )
    fields: ExportFields

    @model_validator(mode="after")
    def _usable(self) -> Self:
        FileName(self.file)
        if self.fields.order_id.source is None:
            raise ValueError("`order_id` is the same in every row: name the column that has it")
        if not FileName(self.file).has_date and self.fields.order_timestamp.source is None:
            raise ValueError(
                "files without a date in their names are split by `order_timestamp`:"
                " name the column that has it"
            )
        if self.refunds != "reject" and self.lines != "rows" and not self.fields.line_number:
            raise ValueError("`refunds` needs `lines: rows` or a `line_number`")
        if not self.fields.says_currency:
            self.need_currency()
        if self.lines == "rows" and self.fields.line_number:
            raise ValueError("`lines: rows` numbers the lines; `line_number` does, too")
        return self

    @property
    def file_name(self) -> FileName:
        """What the files are called."""
        return FileName(self.file)

    @property
    def daily(self) -> "ExportMapping":
        """The mapping of a day's file: where files of many days are split, of what is made of them.

        These have our own names, commas and UTF-8, and the columns of the files that were split.
        """
        if self.file_name.has_date:
            return self
        native = {name: getattr(NATIVE_EXPORTS, name) for name in _WRITTEN_ANEW}
        skip_rows = tuple(
            each.replace(self.delimiter, NATIVE_EXPORTS.delimiter) for each in self.skip_rows
        )
        return self.model_copy(update={**native, "skip_rows": skip_rows})

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that the files must have, each once."""
        fields = (*self.mapped.values(), *self.charges.values())
        return tuple(dict.fromkeys(name for each in fields for name in each.sources))

    @property
    def columns(self) -> dict[str, str]:
        """The column of each field that stands in one."""
        return {name: field.source for name, field in self.mapped.items() if field.source}

    def shown(self, field: str) -> str:
        """A field for people, with the column that it stands in."""
        column = self.columns.get(field, field)
        return field if column == field else f"{column} ({field})"

    @property
    def used_up(self) -> frozenset[str]:
        """The columns whose values the fields have as they are: not kept as extra ones."""
        return frozenset(
            each.source
            for each in self.mapped.values()
            if each.source is not None
            and each is not self.fields.currency
            and not each.values
            and not (isinstance(each, NumberField) and each.computed)
        )

    @property
    def fills(self) -> frozenset[str]:
        """The columns whose blanks have the value of the order's other rows."""
        fields = self.mapped.values()
        return frozenset(name for each in fields if each.fill for name in each.sources)

    @property
    def mapped(self) -> dict[str, TextField]:
        """The fields that the mapping has, by name."""
        fields = ((name, getattr(self.fields, name)) for name in ExportFields.model_fields)
        return {name: field for name, field in fields if field is not None}


_WRITTEN_ANEW = ("file", "delimiter", "encoding", "header_line")

NATIVE_EXPORTS = ExportMapping(
    fields=ExportFields.model_validate({name: name for name in ExportFields.model_fields})
)
"""What exports are without a mapping: each field in a column of its name."""

OPTIONAL = ("line_number", CURRENCY)
"""The columns that such an export may lack."""


class ProductFields(Section):
    """The fields of a product."""

    product_id: TextField
    product_name: TextField
    product_category: TextField
    unit_price_gbp: NumberField | None = None
    stock_on_hand: NumberField | None = None


class CustomerFields(Section):
    """The fields of a customer."""

    customer_id: TextField
    customer_segment: TextField
    home_region: TextField
    joined_on: TimeField | None = None


class TableMapping(FileLayout):
    """How the file of a table is written, and which column is which field."""

    fields: SerializeAsAny[Section] | dict[str, TextField]

    @model_validator(mode="after")
    def _in_pounds(self) -> Self:
        if self.other_signs:
            raise ValueError(f"`signs` has {self.other_signs[0]!r}: reference files are in pounds")
        return self

    def field(self, name: str) -> TextField | None:
        """Where a field stands; None if the file does not have it."""
        if isinstance(self.fields, dict):
            return self.fields.get(name)
        found: TextField | None = getattr(self.fields, name, None)
        return found

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that the file must have, each once."""
        names = self.fields if isinstance(self.fields, dict) else type(self.fields).model_fields
        fields = [field for name in names if (field := self.field(name))]
        return tuple(dict.fromkeys(source for field in fields for source in field.sources))


def native_mapping(columns: Iterable[str]) -> TableMapping:
    """The mapping of a file that has each field in a column of its name."""
    return TableMapping(fields={name: TextField(source=name) for name in columns})


class ProductsMapping(TableMapping):
    """How `products.csv` is written, and which column is which field."""

    fields: ProductFields


class CustomersMapping(TableMapping):
    """How `customers.csv` is written, and which column is which field."""

    fields: CustomerFields


class ReferenceMapping(Section):
    """The reference files."""

    products: ProductsMapping | None = None
    customers: CustomersMapping | None = None

    def of(self, table: str) -> TableMapping | None:
        """The mapping of a table's file; None if its columns have our own names."""
        found: TableMapping | None = getattr(self, table, None)
        return found
