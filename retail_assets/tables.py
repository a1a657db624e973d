"""Every table of the lake: columns, types, descriptions and keys.

The single source for DDL, Dagster column schemas and lineage, audits, asset checks and the data
dictionary in `docs/`. No SQL identifier comes from anywhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

MONEY = "DECIMAL(12,2)"
TOTAL = "DECIMAL(18,2)"
"""A sum of money: wider than its rows, so that a day of many or of huge values fits."""
INSTANT = "TIMESTAMP WITH TIME ZONE"

Feed = Literal["orders"]


@dataclass(frozen=True)
class Column:
    """A column: its SQL type, what it means, and from which columns it is made.

    `derived_from` holds `table.column` names; `personal` marks what identifies a customer and is
    masked wherever rows are shown outside the lake. `default` is what rows have that were written
    before the table had the column, in SQL; without one they have null. `when_added` is a statement
    to execute once such a table was given the column.
    """

    name: str
    type: str
    description: str
    nullable: bool = False
    derived_from: tuple[str, ...] = ()
    personal: bool = False
    default: str | None = None
    when_added: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of the lake.

    `day` is the column of the daily partition (physically the table is partitioned by its month),
    `key` what no two rows share, `measures` the columns whose sums say most about a day, `feed` the
    outside data whose change makes a published day stale, and `followed` says that each change is
    acted upon, so that none may be listed that is none; see `lake.compaction`.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    day: str | None = None
    measures: tuple[str, ...] = ()
    feed: Feed | None = None
    group: str = "ledger"
    followed: bool = False

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def types(self) -> Mapping[str, str]:
        """The SQL type of each column."""
        return {column.name: column.type for column in self.columns}

    @property
    def day_column(self) -> str:
        """The partition column of a table that has one.

        Raises:
            TypeError: for a table that has none.
        """
        if self.day is None:
            raise TypeError(f"{self.name} is not partitioned by day")
        return self.day


PRODUCTS = Table(
    name="products",
    description="The products of the shop, as `reference/products.csv` has them now.",
    group="reference",
    key=("product_id",),
    columns=(
        Column("product_id", "VARCHAR", "Identifies the product."),
        Column("product_name", "VARCHAR", "What the product is called."),
        Column("product_category", "VARCHAR", "The category that revenue is reported by."),
        Column("unit_price_gbp", MONEY, "List price of one unit, in GBP.", nullable=True),
        Column("stock_on_hand", "BIGINT", "Units in stock when the file was made.", nullable=True),
    ),
)

CUSTOMERS = Table(
    name="customers",
    description="The customers of the shop, as `reference/customers.csv` has them now.",
    group="reference",
    key=("customer_id",),
    columns=(
        Column("customer_id", "VARCHAR", "Identifies the customer.", personal=True),
        Column("customer_segment", "VARCHAR", "The marketing segment of the customer."),
        Column("home_region", "VARCHAR", "The region where the customer lives."),
        Column("joined_on", "DATE", "The day on which the customer joined.", nullable=True),
    ),
)

RAW_ORDERS = Table(
    name="raw_orders",
    description="Every usable order as one export delivered it, typed.",
    group="batch",
    day="export_date",
    key=("export_date", "order_id"),
    measures=("order_value_gbp",),
    columns=(
        Column("export_date", "DATE", "The date in the name of the export."),
        Column("order_date", "DATE", "The business day of the order, from its timestamp."),
        Column("order_id", "VARCHAR", "Identifies the order across exports."),
        Column("customer_id", "VARCHAR", "Who ordered.", personal=True),
        Column("product_id", "VARCHAR", "What was ordered."),
        Column("region", "VARCHAR", "The region in which the order was taken."),
        Column("status", "VARCHAR", "Status in lower case, as of this export."),
        Column("order_value_gbp", MONEY, "Value of the order in GBP, above zero."),
        Column(
            "order_timestamp",
            "TIMESTAMP",
            "When the order was taken: wall-clock time in the business time zone.",
        ),
        Column(
            "extra",
            "VARCHAR",
            "Columns that the export has beyond the required ones, as a JSON object.",
            nullable=True,
        ),
        Column("source_file", "VARCHAR", "The export, relative to the exports folder."),
        Column(
            "row_number",
            "BIGINT",
            "Position among the well-formed rows of the export, from 1, header not counted.",
        ),
    ),
)

REJECTED_ORDERS = Table(
    name="rejected_orders",
    description="Every export row that could not be used, with the reason.",
    group="batch",
    day="export_date",
    key=("export_date", "row_number"),
    columns=(
        Column("export_date", "DATE", "The date in the name of the export."),
        Column("reason", "VARCHAR", "Reason code; `docs/data-dictionary.md` explains each."),
        Column("field", "VARCHAR", "The field that is at fault, if it is one.", nullable=True),
        Column("raw_text", "VARCHAR", "The row: JSON of its fields, or the line if malformed."),
        Column("source_file", "VARCHAR", "The export, relative to the exports folder."),
        Column(
            "row_number",
            "BIGINT",
            "Position among all records of the export; the header is record 1.",
        ),
    ),
)

COMPLETED_ORDERS = Table(
    name="completed_orders",
    description="The orders that count: latest version, status completed, with their product"
    " and customer.",
    group="batch",
    day="order_date",
    key=("order_id",),
    measures=("order_value_gbp",),
    feed="orders",
    columns=(
        Column(
            "order_date",
            "DATE",
            "The business day of the order.",
            derived_from=("raw_orders.order_date",),
        ),
        Column(
            "order_id", "VARCHAR", "Identifies the order.", derived_from=("raw_orders.order_id",)
        ),
        Column(
            "order_timestamp",
            "TIMESTAMP",
            "When the order was taken: wall-clock time in the business time zone.",
            derived_from=("raw_orders.order_timestamp",),
        ),
        Column(
            "region",
            "VARCHAR",
            "The region in which the order was taken.",
            derived_from=("raw_orders.region",),
        ),
        Column(
            "order_value_gbp",
            MONEY,
            "Value of the order in GBP.",
            derived_from=("raw_orders.order_value_gbp",),
        ),
        Column(
            "product_id",
            "VARCHAR",
            "What was ordered.",
            derived_from=("raw_orders.product_id",),
        ),
        Column(
            "product_name",
            "VARCHAR",
            "Its name, or `unknown`.",
            derived_from=("products.product_name",),
        ),
        Column(
            "product_category",
            "VARCHAR",
            "Its category, or `unknown`.",
            derived_from=("products.product_category",),
        ),
        Column(
            "customer_id",
            "VARCHAR",
            "Who ordered.",
            derived_from=("raw_orders.customer_id",),
            personal=True,
        ),
        Column(
            "customer_segment",
            "VARCHAR",
            "The customer's segment, or `unknown`.",
            derived_from=("customers.customer_segment",),
        ),
        Column(
            "home_region",
            "VARCHAR",
            "The customer's home region, or `unknown`.",
            derived_from=("customers.home_region",),
        ),
        Column(
            "export_date",
            "DATE",
            "The export that this version of the order comes from.",
            derived_from=("raw_orders.export_date",),
        ),
    ),
)


def _measures() -> tuple[Column, ...]:
    value, order = "completed_orders.order_value_gbp", "completed_orders.order_id"
    return (
        Column(
            "total_revenue",
            TOTAL,
            "Sum of the completed orders' values, in GBP.",
            derived_from=(value,),
        ),
        Column("order_count", "BIGINT", "Number of completed orders.", derived_from=(order,)),
        Column(
            "avg_order_value",
            MONEY,
            "total_revenue / order_count, in GBP, half a penny rounded up.",
            derived_from=(value, order),
        ),
    )


DAILY_REVENUE = Table(
    name="daily_revenue",
    description="Revenue, number of orders and average order value of each day and region.",
    group="batch",
    day="order_date",
    key=("order_date", "region"),
    measures=("total_revenue", "order_count"),
    feed="orders",
    columns=(
        Column(
            "order_date",
            "DATE",
            "The business day.",
            derived_from=("completed_orders.order_date",),
        ),
        Column(
            "region",
            "VARCHAR",
            "The region in which the orders were taken.",
            derived_from=("completed_orders.region",),
        ),
        *_measures(),
    ),
)

DAILY_REVENUE_BY_CATEGORY = Table(
    name="daily_revenue_by_category",
    description="Revenue, number of orders and average order value of each day, region and"
    " product category.",
    group="batch",
    day="order_date",
    key=("order_date", "region", "product_category"),
    measures=("total_revenue", "order_count"),
    feed="orders",
    columns=(
        *DAILY_REVENUE.columns[:2],
        Column(
            "product_category",
            "VARCHAR",
            "The category of the products, or `unknown`.",
            derived_from=("completed_orders.product_category",),
        ),
        *_measures(),
    ),
)

_POSITION = (
    Column(
        "source",
        "VARCHAR",
        "How it came: `file`, `kafka`, `webhook`, or `redrive` for a mended dead letter.",
    ),
    Column(
        "source_name",
        "VARCHAR",
        "The file, relative to the events folder; `topic:partition`; the start of the worker with"
        " the webhook; of a redrive the dead letter that it mends.",
    ),
    Column(
        "position",
        "BIGINT",
        "The line in the file, from 1; the offset in the partition; the number of the event that a"
        " webhook got, from 1; of a redrive that of the dead letter that it mends.",
    ),
    Column(
        "version",
        "BIGINT",
        "The version of the event file, from 1, as in event_files; 1 for all other sources.",
        default="1",
    ),
    Column(
        "received_at",
        INSTANT,
        "When it was received, as its source recorded it: the last write of the file when the line"
        " was read, the timestamp of the Kafka message, the arrival at the webhook; of a redrive"
        " that of the dead letter. Null in rows of earlier releases: the start of received_date"
        " counts.",
        nullable=True,
    ),
)
"""Where and when an event was received: no two events share source, name, version and position."""

RAW_EVENTS = Table(
    name="raw_events",
    description="Every event line as it was received, good, bad or seen before: the replay log.",
    group="events",
    day="received_date",
    key=("source", "source_name", "version", "position"),
    columns=(
        Column(
            "received_date",
            "DATE",
            "The day on which it landed, in the business time zone. Of a file: the date in its"
            " path, else the day on which it was last written to; of Kafka: that of the message's"
            " timestamp, or of the message before it if that is later; of the webhook: the day on"
            " which it came.",
        ),
        *_POSITION,
        Column(
            "payload",
            "VARCHAR",
            "The line. Bytes that are no text stand as `\\xNN`; a line of a file that is too long"
            " is cut, a message never. `dead-letters show --raw` gives the bytes.",
            personal=True,
        ),
        Column(
            "defect",
            "VARCHAR",
            "What was wrong with the line as such, before any rule read it; or `not_taken` or"
            " `out_of_memory`, where the lake could not ingest it.",
            nullable=True,
        ),
        Column(
            "event_id",
            "VARCHAR",
            "The identity of a valid event: its `event_id`, or `content:` and the hash of its"
            " content.",
            nullable=True,
        ),
    ),
)

ENRICHED_EVENTS = Table(
    name="enriched_events",
    description="Every valid event once, with what is known of its product and customer.",
    group="events",
    followed=True,
    day="received_date",
    key=("event_id",),
    measures=("order_value_gbp",),
    columns=(
        Column(
            "received_date",
            "DATE",
            "The day on which it landed.",
            derived_from=("raw_events.received_date",),
        ),
        Column(
            "event_id",
            "VARCHAR",
            "Identifies the event.",
            derived_from=("raw_events.event_id",),
        ),
        *(
            Column(name, type_, text, nullable, ("raw_events.payload",), personal)
            for name, type_, text, nullable, personal in (
                ("order_id", "VARCHAR", "The order that the event is about.", False, False),
                ("customer_id", "VARCHAR", "Who ordered.", False, True),
                ("product_id", "VARCHAR", "What was ordered, if the event says so.", True, False),
                ("region", "VARCHAR", "The region in which the order was taken.", False, False),
                (
                    "status",
                    "VARCHAR",
                    "Status in lower case; `completed` where the event has none.",
                    False,
                    False,
                ),
                ("order_value_gbp", MONEY, "Value of the order in GBP, above zero.", False, False),
                ("quantity", "BIGINT", "Units ordered, if the event says so.", True, False),
                (
                    "event_timestamp",
                    INSTANT,
                    "When it happened, if the event says so.",
                    True,
                    False,
                ),
                (
                    "order_date",
                    "DATE",
                    "The business day of event_timestamp, else received_date.",
                    False,
                    False,
                ),
            )
        ),
        Column(
            "value_tier",
            "VARCHAR",
            "`high` from 500 GBP, `mid` from 100 GBP, else `low`.",
            derived_from=("raw_events.payload",),
        ),
        Column(
            "product_name",
            "VARCHAR",
            "The product's name, or `unknown`.",
            derived_from=("products.product_name",),
        ),
        Column(
            "product_category",
            "VARCHAR",
            "Its category, or `unknown`.",
            derived_from=("products.product_category",),
        ),
        Column(
            "customer_segment",
            "VARCHAR",
            "The customer's segment, or `unknown`.",
            derived_from=("customers.customer_segment",),
        ),
        Column(
            "home_region",
            "VARCHAR",
            "The customer's home region, or `unknown`.",
            derived_from=("customers.home_region",),
        ),
        Column(
            "extra",
            "VARCHAR",
            "All other fields of the event, as a JSON object.",
            nullable=True,
            derived_from=("raw_events.payload",),
            personal=True,
        ),
        *_POSITION,
        Column("processed_at", INSTANT, "When it was judged and enriched."),
    ),
)

DEAD_LETTER_EVENTS = Table(
    name="dead_letter_events",
    description="Every event line that is not valid, with the reason.",
    group="events",
    followed=True,
    day="received_date",
    key=("source", "source_name", "version", "position"),
    columns=(
        Column(
            "received_date",
            "DATE",
            "The day on which it landed.",
            derived_from=("raw_events.received_date",),
        ),
        Column(
            "reason",
            "VARCHAR",
            "Reason code; explained below.",
            derived_from=("raw_events.payload", "raw_events.defect"),
        ),
        Column("field", "VARCHAR", "The field that is at fault, if it is one.", nullable=True),
        *_POSITION,
        Column(
            "payload",
            "VARCHAR",
            "The line, as in raw_events.",
            derived_from=("raw_events.payload",),
            personal=True,
        ),
        Column("processed_at", INSTANT, "When it was judged."),
    ),
)


DEAD_LETTER_COUNTS = Table(
    name="dead_letter_counts",
    description="How many events of each day were dead-lettered, by reason.",
    group="events",
    key=("received_date", "reason"),
    columns=(
        Column(
            "received_date",
            "DATE",
            "The day on which they landed.",
            derived_from=("dead_letter_events.received_date",),
        ),
        Column("reason", "VARCHAR", "Reason code.", derived_from=("dead_letter_events.reason",)),
        Column(
            "dead_letters",
            "BIGINT",
            "Number of dead letters.",
            derived_from=("dead_letter_events.position",),
        ),
    ),
)


def _live_measures() -> tuple[Column, ...]:
    value, order = "enriched_events.order_value_gbp", "enriched_events.order_id"
    sources = ((value,), (order,), (value, order))
    return tuple(
        replace(column, derived_from=found)
        for column, found in zip(_measures(), sources, strict=True)
    )


LIVE_REVENUE = Table(
    name="live_revenue",
    description="Revenue of each day and region as the events have it: of each order the latest"
    " event, on the day of its first.",
    group="events",
    day="order_date",
    key=("order_date", "region"),
    measures=("total_revenue", "order_count"),
    columns=(
        Column(
            "order_date",
            "DATE",
            "The business day of the order's first event.",
            derived_from=("enriched_events.order_date",),
        ),
        Column(
            "region",
            "VARCHAR",
            "The region in which the orders were taken.",
            derived_from=("enriched_events.region",),
        ),
        *_live_measures(),
    ),
)

EVENT_FILES = Table(
    name="event_files",
    description="Ledger: each version of an event file that was ingested, and how far.",
    key=("path", "version"),
    columns=(
        Column("path", "VARCHAR", "The file, relative to the events folder."),
        Column(
            "version",
            "BIGINT",
            "From 1; one more when the file got shorter or starts differently. Versions below 1 are"
            " of earlier releases, which kept no lines of them.",
        ),
        Column("received_date", "DATE", "The day of its first lines."),
        Column("size_bytes", "BIGINT", "Size of the file when it was last looked at, in bytes."),
        Column("modified_ns", "BIGINT", "Its modification time then, in ns since 1970."),
        Column("bytes_taken", "BIGINT", "How much of its content, unpacked, was taken in."),
        Column(
            "content_hash",
            "VARCHAR",
            "Hash of what was taken in, in hexadecimal: SHA-256, of more than 256 KiB chunk by"
            " chunk (of earlier releases always of the whole).",
        ),
        Column(
            "checkpoint",
            "VARCHAR",
            "Where the hash can be continued: bytes, hash of the first chunk, hash up to there."
            " `documents` if the file was split into elements, `values` if arrays were such. Null"
            " of short files, and of those that are always read whole.",
            nullable=True,
        ),
        Column(
            "last_line",
            "VARCHAR",
            "`whole`; `open` if a line without newline was left; `taken` if it was taken in.",
        ),
        Column("lines", "BIGINT", "Lines taken in: accepted + dead-lettered + duplicate."),
        Column("accepted", "BIGINT", "Lines whose event is in enriched_events from here."),
        Column("dead_lettered", "BIGINT", "Lines that are in dead_letter_events."),
        Column("duplicate", "BIGINT", "Lines whose event is there from elsewhere."),
        Column(
            "copy_of",
            "VARCHAR",
            "The file with the same content; its lines count there, here all are duplicates.",
            nullable=True,
        ),
        Column("ingested_at", INSTANT, "When its last lines were committed."),
        Column(
            "received_at",
            INSTANT,
            "When its first lines were received: the file's last write then. Of files with the same"
            " content the lines count where they were received first.",
            nullable=True,
        ),
        Column(
            "superseded_at",
            INSTANT,
            "When a later version of the file came; null: this is the current one.",
            nullable=True,
            when_added="UPDATE lake.event_files SET superseded_at = retracted_at,"
            " version = version - c.latest + 1 FROM (SELECT path AS changed, max(version) AS latest"
            " FROM lake.event_files GROUP BY path) AS c WHERE path = c.changed AND c.latest > 1",
        ),
        Column(
            "retracted_at",
            INSTANT,
            "When its events and dead letters were taken back; null: they count, and the three"
            " counts are those of now.",
            nullable=True,
        ),
    ),
)

FAILED_EVENT_FILES = Table(
    name="failed_event_files",
    description="Ledger: the event files that could not be read, or taken in. A success removes the"
    " entry.",
    key=("path",),
    columns=(
        Column("path", "VARCHAR", "The file, relative to the events folder."),
        Column("size_bytes", "BIGINT", "Its size then, in bytes."),
        Column("modified_ns", "BIGINT", "Its modification time then, in ns since 1970."),
        Column("problem", "VARCHAR", "What was wrong, and what to do."),
        Column("attempts", "BIGINT", "How often it was tried as it is."),
        Column("failed_at", INSTANT, "When it was last tried."),
    ),
)

EVENT_FIELDS = Table(
    name="event_fields",
    description="Ledger: the fields beyond the known ones that valid events have had, by type.",
    key=("field", "type"),
    columns=(
        Column("field", "VARCHAR", "The name of the field."),
        Column("type", "VARCHAR", "Its JSON type: VARCHAR, BOOLEAN, OBJECT, a number type, …"),
        Column("first_seen_at", INSTANT, "When an event with it was first taken in."),
    ),
)

STREAM_OFFSETS = Table(
    name="stream_offsets",
    description=(
        "Ledger: how far each source was taken in, and how far each consumer has come. A part of a"
        " source, or a consumer, may have several rows, which add up: the highest position counts."
    ),
    key=("kind", "name", "part", "position"),
    columns=(
        Column("kind", "VARCHAR", "`source`, `consumer`, or `topic` for each Kafka topic read."),
        Column("name", "VARCHAR", "`kafka`, `webhook`, or the consumer."),
        Column(
            "part",
            "VARCHAR",
            "The `source_name` of the events: topic and partition, or the start of a worker; blank"
            " for consumers; of a topic its name.",
        ),
        Column(
            "position",
            "BIGINT",
            "The next position that is new; of a consumer the snapshot that it has seen; of a topic"
            " which one of its name it is: the second one's events are of `orders@2:0`.",
        ),
        Column("lines", "BIGINT", "Lines taken in: accepted + dead-lettered + duplicate."),
        Column("accepted", "BIGINT", "Lines whose event is in enriched_events from here."),
        Column("dead_lettered", "BIGINT", "Lines that are in dead_letter_events."),
        Column("duplicate", "BIGINT", "Lines whose event is there from elsewhere."),
        Column("updated_at", INSTANT, "When it last moved."),
        Column("topic_id", "VARCHAR", "The id that the broker gives a topic.", nullable=True),
    ),
)

STREAM_WORKERS = Table(
    name="stream_workers",
    description=(
        "Ledger: the starts of `retail-assets stream`, with a heartbeat while they live. Of a start"
        " that has not ended in order there may be several rows: the newest counts."
    ),
    key=("worker", "heartbeat_at"),
    columns=(
        Column("worker", "VARCHAR", "Identifies this start of a worker."),
        Column("host", "VARCHAR", "The machine that it runs on."),
        Column("process_id", "BIGINT", "Its process there."),
        Column("sources", "VARCHAR", "What it takes events from: files, kafka, webhook."),
        Column("state", "VARCHAR", "`running`, or `stopped` once it has ended in order."),
        Column("problem", "VARCHAR", "What was wrong at the last heartbeat.", nullable=True),
        Column("figures", "VARCHAR", "What it has done and how fast, as a JSON object."),
        Column("started_at", INSTANT, "When it started."),
        Column("heartbeat_at", INSTANT, "When it last said that it lives."),
    ),
)

NOTIFICATIONS = Table(
    name="notifications",
    description="Ledger: the messages to people, one row for each service that is to get it.",
    key=("key", "service"),
    columns=(
        Column(
            "key",
            "VARCHAR",
            "Identifies the message; sent along, so that who gets it twice can tell.",
        ),
        Column(
            "service",
            "VARCHAR",
            "The scheme of the service's URL, and the start of the SHA-256 of the URL.",
        ),
        Column("kind", "VARCHAR", "What it is about, as in notified."),
        Column("severity", "VARCHAR", "`warning`, `failure` or `success`."),
        Column("title", "VARCHAR", "One line."),
        Column("body", "VARCHAR", "The text."),
        Column("created_at", INSTANT, "When it was written."),
        Column("next_attempt_at", INSTANT, "When it is tried next, unless sent or given up."),
        Column("attempts", "BIGINT", "How often it was tried."),
        Column("sent_at", INSTANT, "When the service accepted it.", nullable=True),
        Column("given_up_at", INSTANT, "When the last attempt failed.", nullable=True),
        Column("problem", "VARCHAR", "Why the newest attempt failed.", nullable=True),
    ),
)

NOTIFIED = Table(
    name="notified",
    description="Ledger: the alerts and failures that messages were written about.",
    key=("kind", "subject", "opened_at"),
    columns=(
        Column(
            "kind",
            "VARCHAR",
            "`fraud_alert`, `stock_alert`, `failed_day`, `failed_event_file`, `dead_worker`,"
            " `late_worker`, `no_events` or `missing_day`.",
        ),
        Column("subject", "VARCHAR", "The alert, day, file or worker."),
        Column("message", "VARCHAR", "The key of the message about it."),
        Column("opened_at", INSTANT, "When it was seen first."),
        Column(
            "resolved_at",
            INSTANT,
            "When it was seen to be over; of an alert, when it was seen.",
            nullable=True,
        ),
    ),
)

FRAUD_ALERTS = Table(
    name="fraud_alerts",
    description="Orders that look wrong, with what speaks against each.",
    group="events",
    followed=True,
    key=("event_id",),
    columns=(
        Column(
            "event_id",
            "VARCHAR",
            "The first event of the order.",
            derived_from=("enriched_events.event_id",),
        ),
        Column(
            "customer_id",
            "VARCHAR",
            "Who ordered.",
            derived_from=("enriched_events.customer_id",),
            personal=True,
        ),
        Column(
            "order_id",
            "VARCHAR",
            "The order.",
            derived_from=("enriched_events.order_id",),
        ),
        Column(
            "order_date",
            "DATE",
            "The business day of the order's first event.",
            derived_from=("enriched_events.order_date",),
        ),
        Column(
            "event_timestamp",
            INSTANT,
            "When that event happened, if it says so.",
            nullable=True,
            derived_from=("enriched_events.event_timestamp",),
        ),
        Column(
            "received_date",
            "DATE",
            "The day on which the order was first heard of.",
            derived_from=("enriched_events.received_date",),
        ),
        Column(
            "region",
            "VARCHAR",
            "The region in which the order was taken.",
            derived_from=("enriched_events.region",),
        ),
        Column(
            "order_value_gbp",
            MONEY,
            "Value of the order in GBP, as its latest event has it.",
            derived_from=("enriched_events.order_value_gbp",),
        ),
        Column(
            "reasons",
            "VARCHAR",
            "What speaks against it: reason codes, separated by commas.",
            derived_from=("enriched_events.extra", "enriched_events.home_region"),
        ),
        Column("rule_score", "DOUBLE", "How sure the rules are, from 0 to 1."),
        Column(
            "model_score",
            "DOUBLE",
            "The share of the orders it was trained on that the model finds less unusual; null if"
            " no model looked at it.",
            nullable=True,
            derived_from=("fraud_models.model",),
        ),
        Column("score", "DOUBLE", "How sure rules and model are together, from 0 to 1."),
        Column(
            "model_version",
            "VARCHAR",
            "The model.",
            nullable=True,
            derived_from=("fraud_models.version",),
        ),
        Column("explanation", "VARCHAR", "The reasons in words, with their figures."),
    ),
)

FRAUD_MODELS = Table(
    name="fraud_models",
    description="What finds unusual orders: one model for each day, trained on the days up to it.",
    group="events",
    key=("trained_to",),
    columns=(
        Column("trained_to", "DATE", "The last day whose events it knows."),
        Column(
            "version",
            "VARCHAR",
            "The day and a hash of all that the model follows from: the same history gives the"
            " same version.",
        ),
        Column("trained_from", "DATE", "The first order date that it was trained on."),
        Column("orders", "BIGINT", "How many orders it was trained on."),
        Column("features", "VARCHAR", "What it looks at: names, separated by commas."),
        Column("library", "VARCHAR", "What made it, and can read it: scikit-learn's version."),
        Column("metrics", "VARCHAR", "How it did on orders that it had not seen, as JSON."),
        Column("model", "BLOB", "The model, in the format of skops."),
        Column("sha256", "VARCHAR", "SHA-256 of `model`, in hexadecimal."),
        Column("trained_at", INSTANT, "When it was stored."),
    ),
)

LIVE_ORDERS = Table(
    name="live_orders",
    description="Every order as its events have it: its latest event, on the day of its first.",
    group="events",
    day="order_date",
    key=("order_id",),
    measures=("order_value_gbp",),
    columns=(
        Column(
            "order_date",
            "DATE",
            "The business day of the order's first event.",
            derived_from=("enriched_events.order_date",),
        ),
        Column(
            "order_id",
            "VARCHAR",
            "Identifies the order.",
            derived_from=("enriched_events.order_id",),
        ),
        Column(
            "ordered_at",
            INSTANT,
            "The earliest time of its events, of which one that says none counts as of the start of"
            " its day.",
            derived_from=("enriched_events.event_timestamp", "enriched_events.order_date"),
        ),
        Column(
            "minute",
            "TIMESTAMP",
            "The minute of that: wall-clock time in the business time zone.",
            derived_from=("enriched_events.event_timestamp", "enriched_events.order_date"),
        ),
        *(
            Column(name, type_, text, nullable, (f"enriched_events.{name}",))
            for name, type_, text, nullable in (
                ("region", "VARCHAR", "The region in which the order was taken.", False),
                ("status", "VARCHAR", "Status in lower case; only `completed` counts.", False),
                ("order_value_gbp", MONEY, "Value of the order in GBP.", False),
                ("product_id", "VARCHAR", "What was ordered, if an event says so.", True),
            )
        ),
        *(
            Column(name, type_, text, nullable, derived_from=("enriched_events.status", source))
            for name, type_, text, nullable, source in (
                ("sold", "BIGINT", "Units sold.", False, "enriched_events.quantity"),
                (
                    "sold_at",
                    INSTANT,
                    "When it was first completed, if units were sold.",
                    True,
                    "enriched_events.event_timestamp",
                ),
                (
                    "sold_event_id",
                    "VARCHAR",
                    "The event that first completed it, if units were sold.",
                    True,
                    "enriched_events.event_id",
                ),
                ("returned", "BIGINT", "Units given back.", False, "enriched_events.quantity"),
                (
                    "returned_at",
                    INSTANT,
                    "When it was returned, if it was.",
                    True,
                    "enriched_events.event_timestamp",
                ),
            )
        ),
        Column("updated_at", INSTANT, "When the row last changed."),
    ),
)

LIVE_REVENUE_MINUTES = Table(
    name="live_revenue_minutes",
    description="Revenue of each minute and region as the events have it; the minutes of a day add"
    " up to its live_revenue.",
    group="events",
    day="order_date",
    key=("order_date", "minute", "region"),
    measures=("total_revenue", "order_count"),
    columns=(
        LIVE_REVENUE.columns[0],
        Column(
            "minute",
            "TIMESTAMP",
            "The minute of the order, that of the earliest of its events, as wall-clock time in the"
            " business time zone: midnight if one of that day says no time.",
            derived_from=("live_orders.minute",),
        ),
        *LIVE_REVENUE.columns[1:4],
    ),
)

INVENTORY_LEVELS = Table(
    name="inventory_levels",
    description="The stock of each product: its opening stock less what was sold, plus what was"
    " returned, as the events have it.",
    group="events",
    key=("product_id",),
    columns=(
        Column(
            "product_id",
            "VARCHAR",
            "Identifies the product.",
            derived_from=("products.product_id", "live_orders.product_id"),
        ),
        Column(
            "stock_on_hand",
            "BIGINT",
            "Units in stock at the start of `RETAIL_STOCK_DATE`, if the reference data say so.",
            nullable=True,
            derived_from=("products.stock_on_hand",),
        ),
        Column("sold", "BIGINT", "Units sold since.", derived_from=("live_orders.sold",)),
        Column(
            "returned", "BIGINT", "Units given back since.", derived_from=("live_orders.returned",)
        ),
        Column(
            "stock",
            "BIGINT",
            "stock_on_hand - sold + returned, if the opening stock is known.",
            nullable=True,
            derived_from=("products.stock_on_hand", "live_orders.sold", "live_orders.returned"),
        ),
        Column(
            "below",
            "BOOLEAN",
            "Whether the stock is known to be less than `RETAIL_LOW_STOCK_UNITS`.",
            derived_from=("products.stock_on_hand", "live_orders.sold", "live_orders.returned"),
        ),
        Column("updated_at", INSTANT, "When the row last changed."),
    ),
)

STOCK_ALERTS = Table(
    name="stock_alerts",
    description="The sales that took a product's stock below `RETAIL_LOW_STOCK_UNITS`, one for each"
    " crossing, by the times of the events. One that proves wrong goes.",
    group="events",
    followed=True,
    key=("event_id",),
    columns=(
        Column(
            "event_id",
            "VARCHAR",
            "The event of the sale.",
            derived_from=("live_orders.sold_event_id",),
        ),
        Column("product_id", "VARCHAR", "What runs out.", derived_from=("live_orders.product_id",)),
        Column("order_id", "VARCHAR", "The order.", derived_from=("live_orders.order_id",)),
        Column("crossed_at", INSTANT, "When it was sold.", derived_from=("live_orders.sold_at",)),
        Column(
            "stock",
            "BIGINT",
            "Units left after the sale.",
            derived_from=("products.stock_on_hand", "live_orders.sold", "live_orders.returned"),
        ),
        Column("updated_at", INSTANT, "When the row last changed."),
    ),
)

CONSUMER_DEAD_LETTERS = Table(
    name="consumer_dead_letters",
    description="The keys that a consumer could not recompute and went on without: their rows are"
    " as they were before. A success removes the entry.",
    key=("consumer", "key"),
    columns=(
        Column("consumer", "VARCHAR", "The consumer."),
        Column("key", "VARCHAR", "What it could not recompute: an order, a product, a day, …"),
        Column("problem", "VARCHAR", "What went wrong."),
        Column("snapshot", "BIGINT", "The snapshot of the lake that it was tried at."),
        Column("attempts", "BIGINT", "How often it was tried."),
        Column("failed_at", INSTANT, "When it was last tried."),
    ),
)

EXPORT_FILES = Table(
    name="export_files",
    description="Ledger: the export that each day's raw orders come from.",
    key=("export_date",),
    columns=(
        Column("export_date", "DATE", "The date in the name of the export."),
        Column("source_file", "VARCHAR", "The export, relative to the exports folder."),
        Column("size_bytes", "BIGINT", "Size of the file, in bytes."),
        Column("modified_ns", "BIGINT", "Its modification time, in ns since 1970."),
        Column("content_hash", "VARCHAR", "SHA-256 of its bytes, in hexadecimal."),
        Column("rows_in", "BIGINT", "Records in the file, header not counted."),
        Column("raw_rows", "BIGINT", "Rows that went to raw_orders."),
        Column("rejected_rows", "BIGINT", "Rows that went to rejected_orders."),
        Column("ingested_at", INSTANT, "When the rows were committed."),
        Column(
            "rules_version",
            "BIGINT",
            "The version of the rules that the rows were validated with.",
            nullable=True,
        ),
        Column("timezone", "VARCHAR", "RETAIL_TIMEZONE at that time.", nullable=True),
        Column("late_days", "BIGINT", "RETAIL_LATE_DAYS at that time.", nullable=True),
        Column(
            "max_days_late",
            "BIGINT",
            "How many days before its export the earliest order lies, rejected ones included.",
            nullable=True,
        ),
    ),
)

CHANGED_DAYS = Table(
    name="changed_days",
    description="Ledger: how often outside data has changed a day. A published day that was"
    " computed from an earlier version is stale.",
    key=("feed", "day"),
    columns=(
        Column("feed", "VARCHAR", "The outside data: `orders`."),
        Column("day", "DATE", "The business day that was changed."),
        Column("version", "BIGINT", "Goes up by one with each change."),
        Column("changed_at", INSTANT, "When it last changed."),
    ),
)

PUBLISHED_DAYS = Table(
    name="published_days",
    description="Ledger: the days of each table that are published.",
    key=("table_name", "day"),
    columns=(
        Column("table_name", "VARCHAR", "The table."),
        Column("day", "DATE", "The daily partition."),
        Column("version", "BIGINT", "The version in changed_days that it was computed from."),
        Column("row_count", "BIGINT", "Rows of the partition."),
        Column("published_at", INSTANT, "When the rows were committed."),
    ),
)

FAILED_DAYS = Table(
    name="failed_days",
    description="Ledger: the days whose last attempt failed, and why. A success removes the entry.",
    key=("table_name", "day"),
    columns=(
        Column("table_name", "VARCHAR", "The table that was to be published."),
        Column("day", "DATE", "The daily partition."),
        Column("problem", "VARCHAR", "What was wrong, where, and what to do."),
        Column("failed_at", INSTANT, "When the attempt failed."),
    ),
)

ALL = (
    PRODUCTS,
    CUSTOMERS,
    RAW_ORDERS,
    REJECTED_ORDERS,
    COMPLETED_ORDERS,
    DAILY_REVENUE,
    DAILY_REVENUE_BY_CATEGORY,
    RAW_EVENTS,
    ENRICHED_EVENTS,
    DEAD_LETTER_EVENTS,
    DEAD_LETTER_COUNTS,
    LIVE_REVENUE,
    STREAM_OFFSETS,
    STREAM_WORKERS,
    NOTIFICATIONS,
    NOTIFIED,
    FRAUD_ALERTS,
    FRAUD_MODELS,
    LIVE_ORDERS,
    LIVE_REVENUE_MINUTES,
    INVENTORY_LEVELS,
    STOCK_ALERTS,
    CONSUMER_DEAD_LETTERS,
    EXPORT_FILES,
    EVENT_FILES,
    FAILED_EVENT_FILES,
    EVENT_FIELDS,
    CHANGED_DAYS,
    PUBLISHED_DAYS,
    FAILED_DAYS,
)

BY_NAME: Mapping[str, Table] = {table.name: table for table in ALL}


@dataclass(frozen=True)
class View:
    """A view of the lake: its columns, and the query that it stands for."""

    name: str
    description: str
    columns: tuple[Column, ...]
    query: str


WHOLE_DAYS = (
    f"SELECT day FROM published_days WHERE table_name IN ('{RAW_ORDERS.name}',"
    f" '{DAILY_REVENUE.name}') GROUP BY day HAVING count(*) = 2"
)
"""The days whose own export is in their published revenue, and not late orders of others alone."""

REVENUE_NOW = View(
    name="revenue_now",
    description="The best revenue there is of each day and region: the batch's where the day is"
    " published from its own export, else the stream's, and where the stream has no such day what"
    " other exports brought of it.",
    columns=(
        *DAILY_REVENUE.columns,
        Column("source", "VARCHAR", "`batch` or `stream`."),
    ),
    query=(
        "SELECT order_date, region, total_revenue, order_count, avg_order_value,"
        f" 'batch' AS source FROM daily_revenue WHERE order_date IN ({WHOLE_DAYS})"
        " OR order_date NOT IN (SELECT order_date FROM live_revenue)"
        " UNION ALL SELECT order_date, region, total_revenue, order_count, avg_order_value,"
        f" 'stream' FROM live_revenue WHERE order_date NOT IN ({WHOLE_DAYS})"
    ),
)

REVENUE_BY_MINUTE = View(
    name="revenue_by_minute",
    description="How each day's revenue grows minute by minute, as the events have it: for each"
    " region that has orders in the minute, the minute's and the day's until then.",
    columns=(
        *LIVE_REVENUE_MINUTES.columns,
        Column("revenue_so_far", TOTAL, "The day's revenue of the region until then, in GBP."),
        Column("orders_so_far", "BIGINT", "The day's completed orders of the region until then."),
    ),
    query=(
        f"SELECT *, CAST(sum(total_revenue) OVER so_far AS {TOTAL}) AS revenue_so_far,"
        " CAST(sum(order_count) OVER so_far AS BIGINT) AS orders_so_far FROM live_revenue_minutes"
        " WINDOW so_far AS (PARTITION BY order_date, region ORDER BY minute)"
    ),
)

VIEWS = (REVENUE_NOW, REVENUE_BY_MINUTE)
