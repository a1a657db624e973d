"""Every setting of the platform, read from `RETAIL_*` environment variables."""

import json
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from retail_assets.errors import UsageError


class Settings(BaseSettings):
    """The settings of one data folder and its lake.

    Raises `pydantic.ValidationError` for a value that cannot be used; `load_settings` turns that
    into one sentence for a person.
    """

    model_config = SettingsConfigDict(env_prefix="RETAIL_", frozen=True)

    data_dir: Path = Field(
        default=Path("data"),
        description="Folder that holds exports/, events/, reference/ and, by default, lake/.",
    )
    lake_catalog: str | None = Field(
        default=None,
        description=(
            "DuckLake catalog: the path of an SQLite file (default `lake/catalog.sqlite` in the"
            " data folder), or `postgres:` and a libpq connection string."
        ),
    )
    lake_data: str | None = Field(
        default=None,
        description="Where the lake keeps its Parquet files: a folder (default `lake/files` in the"
        " data folder) or an `s3://` prefix.",
    )
    timezone: str = Field(
        default="Europe/London", description="Business time zone: every date is a date there."
    )
    start_date: date = Field(
        default=date(2026, 10, 5), description="The first daily partition (YYYY-MM-DD)."
    )
    engine: Literal["duckdb"] = Field(
        default="duckdb", description="What runs the transforms. DuckDB is the one engine today."
    )
    late_days: int = Field(
        default=7,
        ge=0,
        le=366,
        description="How many days before its export an order may lie and still count for its day.",
    )
    events: str | None = Field(
        default=None,
        description="Where event files land: a folder (default `events` in the data folder) or an"
        " `s3://` prefix.",
    )
    event_settle_seconds: float = Field(
        default=5,
        ge=0,
        description="How long an event file must be still before its last line, if it has no"
        " newline, is taken for whole, and before a packed file is read.",
    )
    memory_limit: str = Field(
        default="512MB",
        pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$",
        description="What DuckDB may hold in memory before it spills to disk, for example 4GB.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="DuckDB threads of one process (default: all cores)."
    )
    kafka_options: Annotated[dict[str, str | int | float | bool], NoDecode] = Field(
        default_factory=dict,
        repr=False,
        description="More options of librdkafka for every Kafka client, as a JSON object, such as"
        ' `{"security.protocol": "SASL_SSL"}`.',
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            message = f"{value!r} is not a time zone of the IANA database, such as Europe/London"
            raise ValueError(message) from error
        return value

    @field_validator("kafka_options", mode="before")
    @classmethod
    def _kafka_options_of_json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            options = json.loads(value)
        except ValueError:
            options = None
        if not isinstance(options, dict):
            # The value is not shown: it may have a password.
            raise ValueError('it must be a JSON object, such as {"client.id": "shop"}')  # noqa: TRY004
        return options

    @cached_property
    def exports_dir(self) -> Path:
        """Where the nightly order exports land."""
        return self.data_dir / "exports"

    @cached_property
    def events_location(self) -> str:
        """Where event files land: a folder or a bucket's prefix."""
        if self.events and "://" in self.events:
            return self.events
        return _absolute(self.events or self.data_dir / "events")

    @cached_property
    def reference_dir(self) -> Path:
        """Where `products.csv` and `customers.csv` lie."""
        return self.data_dir / "reference"

    @cached_property
    def lake_dir(self) -> Path:
        """The lake's folder on this machine: catalog, files, locks and spilled data."""
        return self.data_dir / "lake"

    @cached_property
    def catalog(self) -> str:
        """The DuckLake catalog in use."""
        if self.lake_catalog and self.lake_catalog.startswith("postgres:"):
            return self.lake_catalog
        return _absolute(self.lake_catalog or self.lake_dir / "catalog.sqlite")

    @cached_property
    def data_path(self) -> str:
        """Where the lake's Parquet files lie."""
        if self.lake_data and "://" in self.lake_data:
            return self.lake_data
        return _absolute(self.lake_data or self.lake_dir / "files")


def _absolute(path: str | Path) -> str:
    """The same place for every process, wherever it was started."""
    return str(Path(path).expanduser().absolute())


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        UsageError: naming the variable and what is wrong with it.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise UsageError(_what_is_wrong(error)) from _without_secrets(error)


def _what_is_wrong(error: ValidationError) -> str:
    """One sentence about the first of the values that cannot be used, with no secret in it."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    variable = f"RETAIL_{name.upper()}"
    if _is_secret(name):
        return f"{variable} cannot be used: {first['msg']}."
    return f"{variable}={first['input']!r} cannot be used: {first['msg']}."


def _is_secret(name: str) -> bool:
    """Whether a setting may hold a password: such a one is not shown anywhere."""
    field = Settings.model_fields.get(name)
    return field is not None and not field.repr


def _without_secrets(error: ValidationError) -> ValidationError | None:
    """The error itself, which has the values in it, unless one of them is a secret."""
    return None if any(_is_secret(str(each["loc"][0])) for each in error.errors()) else error
