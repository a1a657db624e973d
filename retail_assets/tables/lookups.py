"""What APIs outside have said about fields of the events."""

from retail_assets.tables.model import INSTANT, Column, Table, View, from_column

API_LOOKUPS = Table(
    name="api_lookups",
    description=(
        "What an API has answered about a value of a field. No answer is ever changed: a later one"
        " is a row of its own, so that an event keeps the one that it had."
    ),
    group="events",
    key=("lookup", "value", "answered_at"),
    columns=(
        Column("lookup", "VARCHAR", "The name of the lookup in the mapping."),
        Column("field", "VARCHAR", "The field of events that is looked up."),
        Column("value", "VARCHAR", "The value that the API was asked about.", personal=True),
        Column(
            "state",
            "VARCHAR",
            "`answered`; `nobody` if the API does not know the value; `refused` if it cannot be"
            " asked for.",
        ),
        Column(
            "answer",
            "VARCHAR",
            "What the mapping keeps of the answer, as a JSON object.",
            nullable=True,
            personal=True,
        ),
        Column("answered_at", INSTANT, "When the answer came."),
        Column("valid_until", INSTANT, "How long it is good: events after that ask again."),
    ),
)

WAITING_LOOKUPS = Table(
    name="waiting_lookups",
    description="Ledger: the values that an API has still to be asked about. An answer removes the"
    " entry.",
    key=("lookup", "value"),
    columns=(
        Column("lookup", "VARCHAR", "The name of the lookup in the mapping."),
        Column("value", "VARCHAR", "The value.", personal=True),
        Column("since", INSTANT, "When it was first seen."),
        Column("attempts", "BIGINT", "How often the API was asked."),
        Column("next_attempt_at", INSTANT, "When it is asked next."),
        Column("problem", "VARCHAR", "Why the newest attempt failed.", nullable=True),
    ),
)

OWN_FIELDS = ("order_id", "customer_id", "product_id", "region", "status")
"""The fields that have a column of their own; others are in `extra`."""

_VALUE = " ".join(f"WHEN '{name}' THEN e.{name}" for name in OWN_FIELDS)

EVENT_LOOKUPS = View(
    name="event_lookups",
    description="What APIs have answered about each event: the first answer that was still good"
    " when the event was received.",
    columns=(
        from_column("enriched_events.received_date", "DATE", "The day on which it landed."),
        from_column("enriched_events.event_id", "VARCHAR", "Identifies the event."),
        from_column("enriched_events.order_id", "VARCHAR", "The order that the event is about."),
        from_column("api_lookups.lookup", "VARCHAR", "The name of the lookup in the mapping."),
        Column("value", "VARCHAR", "The event's value of its field.", personal=True),
        Column(
            "state",
            "VARCHAR",
            "As in api_lookups, or `unknown` as long as there is no answer.",
            derived_from=("api_lookups.state",),
        ),
        Column(
            "answer",
            "VARCHAR",
            "As in api_lookups.",
            nullable=True,
            derived_from=("api_lookups.answer",),
            personal=True,
        ),
        Column(
            "answered_at",
            INSTANT,
            "When the answer came.",
            nullable=True,
            derived_from=("api_lookups.answered_at",),
        ),
    ),
    query=f"""
        WITH lookups AS (
            SELECT DISTINCT split_part(name, ':', 2) AS lookup, split_part(name, ':', 3) AS field
            FROM lake.stream_offsets WHERE kind = 'consumer' AND name LIKE 'lookup:%'
        ), asked AS (
            SELECT e.received_date, e.event_id, e.order_id, l.lookup,
                CASE l.field {_VALUE} ELSE e.extra ->> l.field END AS value,
                coalesce(e.received_at, e.received_date::TIMESTAMPTZ) AS received_at
            FROM lake.enriched_events AS e CROSS JOIN lookups AS l
        )
        SELECT received_date, event_id, order_id, a.lookup, a.value,
            coalesce(f.state, 'unknown') AS state, f.answer, f.answered_at
        FROM (FROM asked WHERE value IS NOT NULL) AS a
        ASOF LEFT JOIN lake.api_lookups AS f
            ON a.lookup = f.lookup AND a.value = f.value AND a.received_at <= f.valid_until
    """,
)
