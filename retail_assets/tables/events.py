"""Tables of events: every line as it came, the valid ones enriched, and dead letters."""

from retail_assets.tables.model import INSTANT, MONEY, Column, Table, from_column

POSITION = (
    Column(
        "source",
        "VARCHAR",
        "Its source: `file`, `kafka`, `webhook`, `sqs`, `sqs_files` for a notification that names"
        " no event file, or `redrive` for a redriven dead letter.",
    ),
    Column(
        "source_name",
        "VARCHAR",
        "The file, relative to the events folder; `topic:partition`; the start of the worker with"
        " the webhook, after the sender's name if it has one; the name of the queue and the start"
        " of the worker; for a redrive the dead letter that it redrives.",
    ),
    Column(
        "position",
        "BIGINT",
        "The line in the file, from 1; the offset in the partition; the number of the event that a"
        " webhook got, or a worker from a queue, from 1; for a redrive that of the dead letter.",
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
"""The position of an event and its time of receipt; no two events share the position."""

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
            "The day on which it landed, in the business time zone. For a file: the date in its"
            " path, else the day on which it was last written to; of Kafka: that of the message's"
            " timestamp, or of the message before it if that is later; of the webhook or a queue:"
            " the day on which it came there.",
        ),
        *POSITION,
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
            "The fault of the line as such, before any rule read it; or `not_taken` or"
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
        from_column("raw_events.received_date", "DATE", "The day on which it landed."),
        from_column("raw_events.event_id", "VARCHAR", "Identifies the event."),
        *(
            Column(name, type_, text, nullable, ("raw_events.payload",), personal)
            for name, type_, text, nullable, personal in (
                ("order_id", "VARCHAR", "The order that the event is about.", False, False),
                ("customer_id", "VARCHAR", "The customer.", False, True),
                ("product_id", "VARCHAR", "The product, if the event has one.", True, False),
                ("region", "VARCHAR", "The region in which the order was taken.", False, False),
                (
                    "status",
                    "VARCHAR",
                    "Status in lower case; `completed` where the event has none.",
                    False,
                    False,
                ),
                ("order_value_gbp", MONEY, "Value of the order in GBP, above zero.", False, False),
                (
                    "quantity",
                    "BIGINT",
                    "Units ordered, if the event or its lines say so.",
                    True,
                    False,
                ),
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
        from_column("products.product_name", "VARCHAR", "The product's name, or `unknown`."),
        from_column("products.product_category", "VARCHAR", "Its category, or `unknown`."),
        from_column(
            "customers.customer_segment", "VARCHAR", "The customer's segment, or `unknown`."
        ),
        from_column(
            "customers.home_region", "VARCHAR", "The customer's home region, or `unknown`."
        ),
        Column(
            "lines",
            "VARCHAR",
            "The lines of the order, if the event has them: a JSON list of objects with"
            " `line_number`, `product_id`, `quantity`, `order_value_gbp`, and in `extra` the line's"
            " other fields, if it has any.",
            nullable=True,
            derived_from=("raw_events.payload",),
            personal=True,
        ),
        Column(
            "extra",
            "VARCHAR",
            "All other fields of the event, as a JSON object.",
            nullable=True,
            derived_from=("raw_events.payload",),
            personal=True,
        ),
        *POSITION,
        Column(
            "processed_at",
            INSTANT,
            "When it was validated; products and customers that changed since are in it, too.",
        ),
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
        from_column("raw_events.received_date", "DATE", "The day on which it landed."),
        Column(
            "reason",
            "VARCHAR",
            "Reason code; explained below.",
            derived_from=("raw_events.payload", "raw_events.defect"),
        ),
        Column("field", "VARCHAR", "The field that breaks the rule, if it is one.", nullable=True),
        *POSITION,
        from_column("raw_events.payload", "VARCHAR", "The line, as in raw_events.", personal=True),
        Column("processed_at", INSTANT, "When it was validated."),
    ),
)
