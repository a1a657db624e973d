"""What is extracted from the shop's database: tables or queries, and the day of an order."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from retail_assets.mapping.fields import Section, Zone

_PART = r'"(?:[^"]|"")+"|[^."]+'
_TABLE = re.compile(rf"(?:{_PART})(?:\.(?:{_PART}))?")


def _table_name(value: str) -> str:
    if not _TABLE.fullmatch(value):
        raise ValueError(
            f"{value!r} is no table: write it as orders or shop.orders; a name with a dot in it"
            ' stands in double quotes, such as shop."new.orders"'
        )
    return value


def _one_query(value: str) -> str:
    query = value.strip().rstrip(";").rstrip()
    if not re.match(r"(?is)(\s|--[^\n]*\n|/\*.*?\*/|\()*(select|with|values|table)\b", query):
        raise ValueError("it is no query: it begins with SELECT or WITH")
    return query


def _clock(value: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError(f"{value!r} is no time of day, such as 02:00")
    return value


class SourceTable(Section):
    """Rows of the database, from a table, a view or a query."""

    table: Annotated[str, AfterValidator(_table_name)] | None = Field(
        default=None, description="The table or view, such as `orders` or `shop.orders`."
    )
    query: Annotated[str, AfterValidator(_one_query)] | None = Field(
        default=None, description="Instead of a table: a SELECT, each column with a name."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="The columns of the file, each with the column that it comes from. Without it"
        " all are written as they are called.",
    )

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("it needs either `table` or `query`")
        return self

    @property
    def table_parts(self) -> tuple[str, ...]:
        """The names in `table`: the table, or its schema and itself."""
        return tuple(
            part[1:-1].replace('""', '"') if part.startswith('"') else part
            for part in re.findall(_PART, self.table or "")
        )


class SourceOrders(SourceTable):
    """The orders: a row for each, or for each of its lines."""

    day: str = Field(
        description="The column that says when an order was placed: a date or a timestamp."
    )
    changed: str | None = Field(
        default=None,
        description="The column that says when an order was last changed. Orders that changed"
        " later than they were placed are exported again on that day.",
    )
    timezone: Zone | None = Field(
        default=None,
        description="The zone of timestamps without one, such as `UTC`; they are written with"
        " their offset then. Without it they are times of the business time zone.",
    )
    order_id: str | None = Field(
        default=None,
        description="The column that identifies an order; without it the one that `columns` has"
        " for `order_id`, or the one of that name.",
    )


class DatabaseMapping(Section):
    """What `retail-assets extract` reads from the database of `RETAIL_DATABASE_URL`."""

    orders: SourceOrders
    products: SourceTable | None = None
    customers: SourceTable | None = None
    currency_rates: SourceTable | None = None
    compress: bool = Field(
        default=False, description="Write order exports compressed, as `.csv.gz`."
    )
    nightly: Annotated[str, AfterValidator(_clock)] = Field(
        default="02:00",
        description="The time of day, in the business time zone, at which Dagster extracts.",
    )
    nightly_days: int = Field(
        default=2,
        ge=1,
        le=366,
        description="How many days up to yesterday are extracted then. More than one finds orders"
        " that were committed late; without `changed` it is as far as corrections are found.",
    )
    statement_timeout_seconds: int = Field(
        default=3600, ge=1, description="Seconds after which the server ends a query."
    )
    lock_timeout_seconds: int = Field(
        default=10, ge=1, description="Seconds that a query waits for a lock of somebody else."
    )

    @property
    def reference(self) -> dict[str, SourceTable]:
        """The reference tables that are declared, by the name of their table."""
        all_of_them = {
            "products": self.products,
            "customers": self.customers,
            "currency_rates": self.currency_rates,
        }
        return {name: source for name, source in all_of_them.items() if source is not None}
