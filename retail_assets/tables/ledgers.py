"""Ledgers: what was ingested and published, how far, and what failed."""

from retail_assets.tables.model import INSTANT, RATE, Column, Table

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
        Column("bytes_taken", "BIGINT", "Bytes of its decompressed content that were ingested."),
        Column(
            "content_hash",
            "VARCHAR",
            "Hash of what was ingested, in hexadecimal: SHA-256, above 256 KiB chunk by"
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
            "`whole`; `open` if a line without newline was left; `taken` if it was ingested.",
        ),
        Column("lines", "BIGINT", "Lines ingested: accepted + dead-lettered + duplicate."),
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
            "When its first lines were received: the file's last write then. Lines that several"
            " files have count where they were received first.",
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
            "When its events and dead letters were retracted; null: they count, and the three"
            " counts are those of now.",
            nullable=True,
        ),
    ),
)

FAILED_EVENT_FILES = Table(
    name="failed_event_files",
    description="Ledger: the event files that could not be read, or ingested. A success removes the"
    " entry.",
    key=("path",),
    columns=(
        Column("path", "VARCHAR", "The file, relative to the events folder."),
        Column("size_bytes", "BIGINT", "Its size then, in bytes."),
        Column("modified_ns", "BIGINT", "Its modification time then, in ns since 1970."),
        Column("problem", "VARCHAR", "The problem, and what to do."),
        Column("attempts", "BIGINT", "How often it was tried as it is."),
        Column("failed_at", INSTANT, "When it was last tried."),
    ),
)

FAILED_MARTS = Table(
    name="failed_marts",
    description="Ledger: the marts that could not be published. A success removes the entry.",
    key=("mart",),
    columns=(
        Column("mart", "VARCHAR", "`mart_tables` or `mart_files`."),
        Column("problem", "VARCHAR", "The problem, and what to do."),
        Column("failed_since", INSTANT, "When it failed first, with whatever problem."),
        Column("failed_at", INSTANT, "When it was last tried, give or take ten minutes."),
    ),
)

EVENT_FIELDS = Table(
    name="event_fields",
    description="Ledger: the fields beyond the known ones that valid events have had, by type.",
    key=("field", "type"),
    columns=(
        Column("field", "VARCHAR", "The name of the field."),
        Column("type", "VARCHAR", "Its JSON type: VARCHAR, BOOLEAN, OBJECT, a number type, …"),
        Column("first_seen_at", INSTANT, "When an event with it was first ingested."),
    ),
)

EVENT_MAPPINGS = Table(
    name="event_mappings",
    description="Ledger: from when on events were validated with which mapping; before the first"
    " row, without one.",
    key=("since",),
    columns=(
        Column("since", INSTANT, "The `processed_at` of the first events it was used for."),
        Column("mapping", "VARCHAR", "Its section `events`, as JSON."),
    ),
)

STREAM_OFFSETS = Table(
    name="stream_offsets",
    description=(
        "Ledger: how far each source was ingested, and how far each consumer has come. A part of a"
        " source, or a consumer, may have several rows, which add up: the highest position counts."
    ),
    key=("kind", "name", "part", "position"),
    columns=(
        Column("kind", "VARCHAR", "`source`, `consumer`, or `topic` for each Kafka topic read."),
        Column("name", "VARCHAR", "`kafka`, `webhook`, `sqs`, `sqs_files`, or the consumer."),
        Column(
            "part",
            "VARCHAR",
            "The `source_name` of the events: topic and partition, or the start of a worker, after"
            " the name of its sender or queue; blank for consumers; of a topic its name.",
        ),
        Column(
            "position",
            "BIGINT",
            "The next position that is new; of a consumer the snapshot that it has seen; of a topic"
            " which one of its name it is: the second one's events are of `orders@2:0`.",
        ),
        Column("lines", "BIGINT", "Lines ingested: accepted + dead-lettered + duplicate."),
        Column("accepted", "BIGINT", "Lines whose event is in enriched_events from here."),
        Column("dead_lettered", "BIGINT", "Lines that are in dead_letter_events."),
        Column("duplicate", "BIGINT", "Lines whose event is there from elsewhere."),
        Column("updated_at", INSTANT, "When it last moved."),
        Column("topic_id", "VARCHAR", "The id that the broker gives a topic.", nullable=True),
    ),
)

QUEUE_MESSAGES = Table(
    name="queue_messages",
    description=(
        "Ledger: the messages of queues that were ingested and may be delivered again. An entry"
        " leaves five minutes after its message was deleted from the queue, or once the queue can"
        " have it no longer."
    ),
    key=("source", "queue", "message_id", "events"),
    columns=(
        Column("source", "VARCHAR", "`sqs` or `sqs_files`."),
        Column("queue", "VARCHAR", "The URL of the queue."),
        Column("message_id", "VARCHAR", "The id that the queue gave the message."),
        Column(
            "events",
            "BIGINT",
            "How many of its events, from the first, were ingested; of several entries of a message"
            " the highest counts.",
        ),
        Column("sent_at", INSTANT, "When it was sent."),
        Column("ingested_at", INSTANT, "When its events were committed."),
        Column(
            "deleted_at",
            INSTANT,
            "When it was known to be deleted from the queue; null: it may come again.",
            nullable=True,
        ),
    ),
)

STREAM_WORKERS = Table(
    name="stream_workers",
    description=(
        "Ledger: the starts of `retail-assets stream`, with a heartbeat while they are alive. A"
        " start that has not ended in order may have several rows: the newest counts."
    ),
    key=("worker", "heartbeat_at"),
    columns=(
        Column("worker", "VARCHAR", "Identifies this start of a worker."),
        Column("host", "VARCHAR", "The machine that it runs on."),
        Column("process_id", "BIGINT", "Its process there."),
        Column("sources", "VARCHAR", "Its sources: files, kafka, webhook, sqs, sqs_files."),
        Column("state", "VARCHAR", "`running`, or `stopped` once it has ended in order."),
        Column("problem", "VARCHAR", "The problem at the last heartbeat.", nullable=True),
        Column("figures", "VARCHAR", "Its metrics, as a JSON object."),
        Column("started_at", INSTANT, "When it started."),
        Column("heartbeat_at", INSTANT, "When it was last seen."),
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
            "Identifies the message; sent along, so that receivers recognise a repeat.",
        ),
        Column(
            "service",
            "VARCHAR",
            "The scheme of the service's URL, and the start of the SHA-256 of the URL.",
        ),
        Column("kind", "VARCHAR", "Its kind, as in notified."),
        Column("severity", "VARCHAR", "`warning`, `failure` or `success`."),
        Column("title", "VARCHAR", "One line."),
        Column("body", "VARCHAR", "The text."),
        Column("created_at", INSTANT, "When it was written."),
        Column("next_attempt_at", INSTANT, "When it is tried next, unless sent or abandoned."),
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
        Column(
            "mapping_hash",
            "VARCHAR",
            "The hash of the mapping (RETAIL_MAPPING) of exports at that time, null without one.",
            nullable=True,
        ),
    ),
)

EXPORT_CURRENCIES = Table(
    name="export_currencies",
    description="Ledger: the amounts in other currencies than GBP of each export, and the rate that"
    " they were converted with. Where rates change this, the export is ingested again.",
    key=("export_date", "order_date", "currency"),
    columns=(
        Column("export_date", "DATE", "The date in the name of the export."),
        Column("order_date", "DATE", "The business day of the orders."),
        Column("currency", "VARCHAR", "The currency, in upper case."),
        Column("row_count", "BIGINT", "Rows of the export, those that were rejected included."),
        Column(
            "rate",
            RATE,
            "GBP for one unit, as currency_rates had it; null: no rate was known.",
            nullable=True,
        ),
    ),
)

EXTRACTED_FILES = Table(
    name="extracted_files",
    description="Ledger: the export and reference files that `retail-assets extract` wrote, each"
    " content once: the newest of a file is the one that was written last.",
    key=("file", "content_hash"),
    columns=(
        Column("file", "VARCHAR", "The file, relative to the data folder."),
        Column("content_hash", "VARCHAR", "SHA-256 of its bytes, in hexadecimal."),
        Column(
            "export_date", "DATE", "The day of an order export; null: reference.", nullable=True
        ),
        Column("size_bytes", "BIGINT", "Size of the file, in bytes."),
        Column("row_count", "BIGINT", "Its rows, header not counted."),
        Column("late_rows", "BIGINT", "Rows among them of orders of earlier days, or of none."),
        Column(
            "origin",
            "VARCHAR",
            "The database and what identifies its snapshot, as a JSON object.",
        ),
        Column("extracted_at", INSTANT, "When it was entered, just before it had its name."),
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
        Column("problem", "VARCHAR", "The problem, where, and what to do."),
        Column("failed_at", INSTANT, "When the attempt failed."),
    ),
)
