"""Every setting of the platform, read from `RETAIL_*` environment variables.

Longer than other modules: it is one list, which people search and `docs/settings.md` is made of.
"""

from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from retail_assets.errors import UsageError
from retail_assets.mapping import ExportMapping, Mapping, load
from retail_assets.mapping.fields import Zone
from retail_assets.secrets import protect
from retail_assets.setting_values import (
    AbsolutePath,
    KafkaOptions,
    MartUrl,
    Secrets,
    Senders,
    Urls,
    absolute,
)


class Settings(BaseSettings):
    """The settings of one data folder and its lake.

    Raises `pydantic.ValidationError` for a value that cannot be used; `load_settings` turns that
    into one sentence for a person.
    """

    model_config = SettingsConfigDict(env_prefix="RETAIL_", frozen=True)

    data_dir: AbsolutePath = Field(
        default=Path("data"),
        description="Folder with exports/, events/, reference/ and, by default, lake/.",
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
    timezone: Zone = Field(
        default="Europe/London",
        description="Business time zone, by its IANA name: every date is a day there.",
    )
    start_date: date = Field(
        default=date(2026, 10, 5), description="The first daily partition (YYYY-MM-DD)."
    )
    run_days: int | None = Field(
        default=None,
        ge=1,
        description="Days of one Dagster run: longer ranges are divided into several runs, which"
        " the workers of several hosts share, see [many hosts](cluster.md) (default: one run).",
    )
    mapping: AbsolutePath | None = Field(
        default=None,
        description="YAML file that says how the files and events of other programs are written,"
        " see [mapping](mapping.md) (default: as ours).",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="The shop's database, which `retail-assets extract` reads as the mapping's"
        " `database` says: `postgresql://USER:PASSWORD@HOST/DATABASE` or `mysql://…`, see"
        " [extract](extract.md).",
    )
    late_days: int = Field(
        default=7,
        ge=0,
        le=366,
        description="Days that an order may lie before its export; older orders are rejected"
        " (`too_late`).",
    )
    max_rejected_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of an export's rows that may be rejected, 0 to 1; a day above it is"
        " published with a warning.",
    )
    max_order_gbp: float = Field(
        default=100_000_000,
        gt=0,
        description="Largest plausible value of an order, in GBP. An export with a larger one"
        " fails its day by name: a decimal point may have been lost, or an id may stand in the"
        " column of values.",
    )
    reference_max_shrink: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the rows of `products` or `customers` that a new file may lack, 0"
        " to 1. Above it the table stays as it was until `retail-assets reference load TABLE"
        " --allow-shrink`.",
    )
    exports: str | None = Field(
        default=None,
        description="Where order exports land: a folder (default `exports` in the data folder) or"
        " an `s3://` prefix.",
    )
    events: str | None = Field(
        default=None,
        description="Where event files land: a folder (default `events` in the data folder) or an"
        " `s3://` prefix.",
    )
    events_listed: bool = Field(
        default=True,
        description="Whether the folder or bucket of event files is listed to find new ones."
        " `false` for a bucket of very many, whose new files the notifications of a queue name"
        " (`stream --sqs-files`): only files that could not be read are looked at again.",
    )
    changed_event_files: Literal["keep", "replace"] = Field(
        default="keep",
        description="The events of an event file that got shorter or starts"
        " differently: `keep` keeps them; `replace` retracts them, for corrected files that"
        " are delivered under the same name.",
    )
    event_settle_seconds: float = Field(
        default=5,
        ge=0,
        description="Seconds without a change after which a compressed event file is read, and"
        " a last line without a newline counts as complete.",
    )
    fraud_window_minutes: int = Field(
        default=30,
        ge=1,
        le=44_640,
        description="Length of the window in which a customer's orders, cards and addresses are"
        " counted, in minutes.",
    )
    fraud_orders_in_window: int = Field(
        default=4,
        ge=1,
        description="Orders of a customer within the window above which they are suspicious.",
    )
    fraud_values_in_window: int = Field(
        default=2,
        ge=1,
        description="Different cards, or addresses, of a customer within the window above which"
        " they are suspicious.",
    )
    fraud_card_fields: str = Field(
        default="card_id,card_hash,payment_card",
        description="Fields of events that name the payment card, separated by commas; the"
        " first that an event has is used.",
    )
    fraud_address_fields: str = Field(
        default="shipping_address,delivery_address",
        description="Fields of events that name the address, separated by commas; the first"
        " that an event has is used.",
    )
    fraud_value_ratio: float = Field(
        default=5,
        gt=1,
        description="An order is suspicious from this multiple of the mean of the customer's"
        " earlier orders on.",
    )
    fraud_value_gbp: float = Field(
        default=100,
        ge=0,
        description="Value below which RETAIL_FRAUD_VALUE_RATIO is not applied, in GBP.",
    )
    fraud_earlier_orders: int = Field(
        default=5,
        ge=1,
        description="Earlier orders that a customer needs before RETAIL_FRAUD_VALUE_RATIO is"
        " applied.",
    )
    fraud_weight_orders: float = Field(
        default=0.6, ge=0, le=1, description="Weight of many orders within the window, 0 to 1."
    )
    fraud_weight_value: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of a value above the customer's history, 0 to 1.",
    )
    fraud_weight_cards: float = Field(
        default=0.6, ge=0, le=1, description="Weight of many cards within the window, 0 to 1."
    )
    fraud_weight_addresses: float = Field(
        default=0.4, ge=0, le=1, description="Weight of many addresses within the window, 0 to 1."
    )
    fraud_weight_region: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Weight of a region that is not the customer's home, 0 to 1.",
    )
    fraud_weight_model: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="Weight of an order that the model finds unusual, 0 to 1.",
    )
    fraud_alert_score: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Score from which an order is an alert; the score is 1 - (1 - weight) * (1"
        " - weight) * … over the order's reasons.",
    )
    fraud_model_share: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="Share of its training orders that an order must exceed for the model to"
        " find it unusual, 0 to 1.",
    )
    fraud_training_days: int = Field(
        default=90, ge=1, description="Days of orders that a model is trained on."
    )
    fraud_training_orders: int = Field(
        default=1_000, ge=100, description="Orders below which no model is trained."
    )
    memory_limit: str = Field(
        default="512MB",
        pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$",
        description="Memory of one DuckDB connection before it spills to disk, for example 4GB.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="DuckDB threads of one process (default: all cores)."
    )
    umask: str = Field(
        default="077",
        pattern=r"^0?[0-7]{3}$",
        description="Permissions that files and folders made by the platform lack, in octal:"
        " 077 keeps them to their owner, 027 lets the group of the lake's folder read them.",
    )
    kafka_options: KafkaOptions = Field(
        default_factory=dict,
        repr=False,
        description="More options of librdkafka for every Kafka client, as a JSON object, such as"
        ' `{"security.protocol": "SASL_SSL"}`.',
    )
    sqs_envelope: Literal["none", "sns"] = Field(
        default="none",
        description="The envelope of the messages that `stream --sqs` reads: `none`, a body is"
        " events, or `sns`, as Amazon SNS delivers without raw message delivery.",
    )
    sqs_visibility_seconds: int = Field(
        default=60,
        ge=10,
        le=120,
        description="Seconds that Amazon SQS holds a message back for a worker, which extends them"
        " until the message is committed. After a crash it is delivered again so much later.",
    )
    stop_seconds: float = Field(
        default=100,
        gt=0,
        description="Seconds that a stopping worker has to commit what it received. After that"
        " it ends at once, and the next start reads again what was not committed.",
    )
    webhook_token: SecretStr | None = Field(
        default=None,
        description="Bearer token of the webhook: a long random text. Without it there is no"
        " webhook.",
    )
    webhook_senders: Senders = Field(
        default_factory=dict,
        repr=False,
        description="Senders that post to `/events/NAME`, as a JSON object by name: each has a"
        " `token`, or a `secret` and how its requests are signed, see"
        " [the webhook](stream.md#signed-requests).",
    )
    webhook_max_bytes: int = Field(
        default=1_000_000,
        ge=1,
        description="Largest body of a request to the webhook, in bytes. An event in it may"
        " have 1,000,000 bytes.",
    )
    webhook_body_seconds: float = Field(
        default=10,
        gt=0,
        description="Seconds that the head of a request may take to arrive, and then its body.",
    )
    webhook_connections: int = Field(
        default=100, ge=1, description="Connections to the webhook at the same time."
    )
    webhook_events_per_second: float = Field(
        default=2_000,
        gt=0,
        description="Events that the webhook accepts in a second, of all senders together.",
    )
    webhook_burst: int = Field(
        default=10_000,
        ge=1,
        description="Events that the webhook accepts at once after a quiet time, and in one"
        " request.",
    )
    lookup_secrets: Secrets = Field(
        default_factory=dict,
        repr=False,
        description="Secrets that the headers of lookups name, as a JSON object, see"
        " [lookups](mapping.md#lookups).",
    )
    notify_urls: Urls = Field(
        default=(),
        repr=False,
        description="Services that notifications go to: URLs that apprise knows, as a JSON list"
        " or separated by commas. Without it there are no notifications.",
    )
    notify_per_minute: int = Field(
        default=10,
        ge=1,
        description="Notifications in a minute; the rest is summarised.",
    )
    notify_attempts: int = Field(
        default=8, ge=1, description="Attempts after which a notification is abandoned."
    )
    notify_max_age_hours: float = Field(
        default=24,
        gt=0,
        description="Hours after which an event is too old for an alert about it to be sent.",
    )
    notify_worker_seconds: float = Field(
        default=60,
        gt=0,
        description="Seconds without a heartbeat after which a worker is reported dead.",
    )
    notify_event_age_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Minutes without an event after which that is reported (default: never).",
    )
    notify_missing_day_hour: int = Field(
        default=9,
        ge=0,
        le=23,
        description="Hour of the business day by which yesterday must be published; after it"
        " the missing day is reported.",
    )
    publish_bootstrap: str | None = Field(
        default=None, description="Kafka brokers that events and alerts are produced to."
    )
    publish_events_topic: str | None = Field(
        default=None, description="Topic for enriched events (default: none are produced)."
    )
    publish_alerts_topic: str | None = Field(
        default=None,
        description="Topic for fraud and stock alerts (default: none are produced).",
    )
    publish_from: Literal["now", "beginning"] = Field(
        default="now",
        description="The start of a new topic: `now`, changes from now on, or `beginning`,"
        " all rows of the lake.",
    )
    mart_url: MartUrl | None = Field(
        default=None,
        repr=False,
        description="Database that revenue is published to for other tools:"
        " `postgresql://user:password@host/database` or"
        " `mysql://user:password@host/database`, see [marts](marts.md).",
    )
    mart_schema: str | None = Field(
        default=None,
        pattern=r"^[^\x00]{1,63}$",
        description="Schema of the tables in PostgreSQL, made if there is none (default:"
        " `public`).",
    )
    mart_files: str | None = Field(
        default=None,
        description="Folder or `s3://` prefix that the same tables are published to as files,"
        " one for each day.",
    )
    mart_format: Literal["parquet", "csv"] = Field(
        default="parquet", description="Format of these files."
    )

    dashboard_host: str = Field(
        default="127.0.0.1",
        description="Address that the board listens on. Everybody who reaches it can read it:"
        " beyond this machine put a proxy with a login before it, see [the board](dashboard.md).",
    )
    dashboard_port: int = Field(
        default=3030, ge=1, le=65_535, description="Port that the board listens on."
    )
    dashboard_seconds: float = Field(
        default=1,
        ge=0.1,
        description="Seconds between two looks at the lake while a page of the board is open.",
    )
    dashboard_token: SecretStr | None = Field(
        default=None,
        description="Token with which people redrive dead letters, rewind consumers and see"
        " personal values on the board: a long random text. Without it the board only reads, and"
        " masks them.",
    )
    dashboard_dagster_url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="Address of the Dagster UI that the board links to (default: no links;"
        " `make ui` sets its own).",
    )
    consumer_state: str | None = Field(
        default=None,
        description="File of the worker's [keyed state](consumers.md#keyed-state), on its machine"
        " (default: `state.sqlite` in the lake's folder).",
    )
    stock_date: date | None = Field(
        default=None,
        description="Day at whose start the stock of `products.csv` was counted; orders from"
        " then on change it (default: RETAIL_START_DATE).",
    )
    low_stock_units: int = Field(
        default=10,
        ge=0,
        description="Units below which a stock is low; falling below it is an alert.",
    )

    @cached_property
    def marts_location(self) -> str | None:
        """Where the files of the marts lie: a folder or a bucket's prefix."""
        if self.mart_files is None or "://" in self.mart_files:
            return self.mart_files
        return absolute(self.mart_files)

    @property
    def opening_date(self) -> date:
        """The first day whose orders change the stock of the reference data."""
        return self.stock_date or self.start_date

    @property
    def source_mapping(self) -> Mapping:
        """What `RETAIL_MAPPING` says now; nothing, where it is not set.

        Raises:
            UsageError: if that file cannot be used.
        """
        return load(self.mapping) if self.mapping else Mapping()

    @property
    def export_mapping(self) -> ExportMapping:
        """How the exports of a day are called and written."""
        return self.source_mapping.exports.daily

    @cached_property
    def exports_location(self) -> str:
        """Where the nightly order exports land: a folder or a bucket's prefix."""
        if self.exports and "://" in self.exports:
            return self.exports
        return absolute(self.exports or self.data_dir / "exports")

    @property
    def exports_dir(self) -> Path:
        """The folder of this machine where the exports land.

        Raises:
            UsageError: if they land in a bucket.
        """
        if "://" in self.exports_location:
            raise UsageError(
                f"RETAIL_EXPORTS={self.exports_location} is a bucket, and this needs a folder of"
                " this machine: set RETAIL_EXPORTS to a folder for it, and copy the files."
            )
        return Path(self.exports_location)

    @cached_property
    def events_location(self) -> str:
        """Where event files land: a folder or a bucket's prefix."""
        if self.events and "://" in self.events:
            return self.events
        return absolute(self.events or self.data_dir / "events")

    @cached_property
    def reference_dir(self) -> Path:
        """Where the reference files lie."""
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
        return absolute(self.lake_catalog or self.lake_dir / "catalog.sqlite")

    @cached_property
    def data_path(self) -> str:
        """Where the lake's Parquet files lie."""
        if self.lake_data and "://" in self.lake_data:
            return self.lake_data
        return absolute(self.lake_data or self.lake_dir / "files")


def load_settings() -> Settings:
    """Read the settings from the environment; their secrets are masked in this process from now on.

    Raises:
        UsageError: naming the variable and what is wrong with it.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        raise UsageError(_what_is_wrong(error)) from _without_secrets(error)
    protect(settings)
    # A wrong mapping is said at once.
    _ = settings.source_mapping
    return settings


def _what_is_wrong(error: ValidationError) -> str:
    """A sentence about the first invalid value, without secrets."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    variable = f"RETAIL_{name.upper()}"
    if _is_secret(name):
        return f"{variable} cannot be used: {first['msg']}."
    return f"{variable}={first['input']!r} cannot be used: {first['msg']}."


def _is_secret(name: str) -> bool:
    """Whether a setting may hold a password and is never shown."""
    field = Settings.model_fields.get(name)
    return field is not None and not field.repr


def _without_secrets(error: ValidationError) -> ValidationError | None:
    """The error, which has the values in its text, unless one of them is a secret."""
    return None if any(_is_secret(str(each["loc"][0])) for each in error.errors()) else error
