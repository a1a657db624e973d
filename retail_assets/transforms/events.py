"""Rules of events: which are valid, and how they are enriched.

A reader types the fields (`engines`): a value that it cannot read is null here.
"""

from collections.abc import Iterator, Mapping, Sequence

import narwhals as nw

from retail_assets.transforms.currency import OUT_OF_RANGE_GBP, in_gbp
from retail_assets.transforms.orders import (
    COMPLETED,
    STATUSES,
    is_foreign,
    stands_for_none,
    with_attributes,
)

HIGH_VALUE_GBP = 500
MID_VALUE_GBP = 100

EARLIEST_YEAR = 2000

UNKNOWN_CURRENCY = "unknown_currency"

MAX_LINES = 1_000
"""How many lines an event may have."""

MAX_LINE_QUANTITY = 999_999_999
"""The units of all lines have to be a number that the lake can hold."""

REQUIRED = ("order_id", "customer_id", "order_value_gbp", "region")

DEFECTS: Mapping[str, str] = {
    "utf16": "The message is UTF-16 or UTF-32: events are UTF-8.",
    "binary_frame": (
        "The message is a binary frame of a schema registry with no JSON in it: Avro, Protobuf."
    ),
    "tombstone": (
        "The message has no value, which deletes its key in a compacted topic: the key is kept."
    ),
    "several_events": (
        "The message or line is an array of objects, or several objects without a line each: it is"
        " kept whole."
    ),
    "no_envelope": (
        "The message is no envelope of Amazon SNS, as RETAIL_SQS_ENVELOPE says that it is."
    ),
    "no_notification": (
        "The message is no notification of Amazon S3, though the queue is one of these."
    ),
    "outside_events": (
        "The notification is about an object that does not lie in RETAIL_EVENTS: the queue gets"
        " those of another bucket or prefix, too."
    ),
    "line_too_long": (
        "The line has more than 1,000,000 bytes. A file keeps its first 1,000, a message keeps all."
    ),
    "nul_byte": "The line holds a NUL byte.",
    "not_utf8": "The line is not UTF-8 text.",
    "not_taken": (
        "The event alone made a transaction fail, again and again: the worker's log says why."
    ),
    "out_of_memory": (
        "The event alone needs more memory than there is, while others are ingested: raise"
        " RETAIL_MEMORY_LIMIT, then redrive it."
    ),
}
"""Faults of a line, file or message as such, before any rule reads it."""

REASONS: Mapping[str, str] = {
    **DEFECTS,
    "empty_line": "The line is empty or blank.",
    "not_json": "The line is not JSON.",
    "not_an_object": "The line is JSON, but no object: a list, a number, a text, `null`.",
    "too_complex": "Objects and lists are nested more than 100 deep.",
    "repeated_field": "A field stands twice: readers would disagree which one counts.",
    "unmapped_event": (
        "Its source has a mapping, and no `when` of it fits this event: `field` says what stands at"
        " their paths."
    ),
    "control_character": "A text of the event holds the escape of the character NUL.",
    "missing_field": (
        "A required field is not there or null: order_id, customer_id, order_value_gbp, region; in"
        " a line product_id, quantity, order_value_gbp; or the object of a mapping's"
        " `root`, by its path."
    ),
    "wrong_type": (
        "The value has another type than the field: ids, region, status and event_timestamp are"
        " texts, quantity and a line's line_number are whole numbers, order_value_gbp is a number"
        " or a text that is one, lines is a list of objects."
    ),
    "blank_value": (
        "The text of a required field is blank, or order_id, customer_id or a line's product_id is"
        " a text that stands for none, such as `NULL`, `None`, `NaN` or `undefined`."
    ),
    "not_finite": "order_value_gbp is NaN, Infinity, or as large as no double is, such as 1e400.",
    "not_positive": (
        "order_value_gbp or quantity is not above zero; of a line, order_value_gbp is below zero,"
        " or quantity or line_number not above it."
    ),
    "out_of_range": (
        "order_value_gbp is above 9,999,999,999.99, or a line's quantity above 999,999,999."
    ),
    "fraction_of_penny": (
        "order_value_gbp has more than two decimals; what binary numbers add from the seventh"
        " decimal on is ignored."
    ),
    "unknown_status": f"The status is none of {', '.join(STATUSES)}.",
    "invalid_timestamp": (
        "event_timestamp is no date and time such as 2026-10-05T09:30:00+01:00 or"
        " 2026-10-05 09:30:00 UTC; one without offset is in the business time zone, and 05/10/2026"
        " could be two days."
    ),
    "absurd_timestamp": (
        "event_timestamp lies before the year 2000, or more than a day after the event landed."
    ),
    "no_lines": (
        "lines is an empty list: leave it out where the event does not say what was ordered."
    ),
    "too_many_lines": f"lines has more than {MAX_LINES:,} lines.",
    "line_numbers": "Some lines have a line_number and some have none, or two have the same.",
    "lines_do_not_add_up": (
        "The values of the lines do not add up to the event's order_value_gbp, to the penny, or"
        " their quantities to the event's own quantity. Spread a discount over the values of the"
        " lines; shipping may be a line."
    ),
    "not_in_lines": "The event's own product_id is that of no line.",
    "unknown_currency": (
        "currency is another than GBP, and reference/currency_rates.csv has no rate of it for the"
        " order's day or the seven days before: the value is not counted as pounds. The event is"
        " validated again when there is a rate."
    ),
    "conflicting_event": (
        "An event of other content was received before under the same event_id. A redrive"
        " ingests it as an event of its own, identified by its content."
    ),
}
"""Why an event is dead-lettered. The rules are tried in this order, those of the event before those
of its lines, and the currency last; the first that fails counts."""

_TEXTS = ("event_id", "order_id", "customer_id", "product_id", "region", "status")


def validate(parsed: nw.LazyFrame) -> nw.LazyFrame:
    """Validate event lines: say why a line is not a valid event.

    Args:
        parsed: event lines as the reader typed them; see `engines.duckdb_events.parsed`.

    Returns:
        The same rows with `reason` and `field` (String), both null for a valid event.
    """
    mapped = "mapping_fault" in parsed.collect_schema().names()
    rules, line_rules = list(_rules(mapped=mapped)), list(_line_rules())
    # The last one: an event that breaks no other rule is valid if its currency has a rate.
    foreign: _Rule = is_foreign("currency"), UNKNOWN_CURRENCY, "currency"
    all_rules = [*rules, *line_rules, foreign]
    none = len(all_rules)
    last = _first_broken([foreign], none - 1, nw.lit(none))
    first_broken = _first_broken(line_rules, len(rules), last)
    # Most events have no lines, and their rules are tried for no other.
    first_broken = nw.when(nw.col("has_lines")).then(first_broken).otherwise(last)
    first_broken = _first_broken(rules, 0, first_broken)
    reason = field = nw.lit(None, dtype=nw.String)
    for number, (_, code, name) in enumerate(all_rules):
        is_it = nw.col("rule") == number
        reason = nw.when(is_it).then(_expr(code)).otherwise(reason)
        if name is not None:
            field = nw.when(is_it).then(_expr(name)).otherwise(field)
    bad = nw.col("rule") < none
    nothing = nw.lit(None, dtype=nw.String)
    # Most events are valid, and need no reason.
    return (
        parsed.with_columns(rule=first_broken)
        .with_columns(
            reason=nw.when(bad).then(reason).otherwise(nothing),
            field=nw.when(bad).then(field).otherwise(nothing),
        )
        .drop("rule")
    )


_Rule = tuple[nw.Expr, str | nw.Expr, str | nw.Expr | None]


def _first_broken(rules: Sequence[_Rule], first: int, otherwise: nw.Expr) -> nw.Expr:
    """The number of the first rule that is broken, where they are numbered from `first` on."""
    for number, (broken, _, _) in reversed(list(enumerate(rules, first))):
        otherwise = nw.when(broken).then(nw.lit(number)).otherwise(otherwise)
    return otherwise


def _rules(*, mapped: bool) -> Iterator[_Rule]:
    """Conditions that make an event invalid, each with the reason code and the field.

    Args:
        mapped: whether some events are read by a mapping.
    """
    col, value = nw.col, nw.col("order_value_gbp")
    yield ~col("defect").is_null(), col("defect"), None
    yield col("form") == "empty", "empty_line", None
    yield col("form").is_null(), "not_json", None
    yield col("form") != "object", "not_an_object", None
    yield col("too_deep"), "too_complex", None
    yield ~col("repeated").is_null(), "repeated_field", col("repeated")
    yield col("nul"), "control_character", None
    if mapped:
        yield ~col("mapping_fault").is_null(), col("mapping_fault"), col("mapping_field")
    for name in REQUIRED:
        yield ~col(f"has_{name}"), "missing_field", name
    for name in _TEXTS:
        yield col(f"has_{name}") & col(name).is_null(), "wrong_type", name
    yield col("finite").is_null(), "wrong_type", "order_value_gbp"
    yield col("has_quantity") & col("quantity").is_null(), "wrong_type", "quantity"
    yield col("has_event_timestamp") & ~col("time_is_text"), "wrong_type", "event_timestamp"
    for name in ("order_id", "customer_id", "region"):
        yield col(name) == "", "blank_value", name
    for name in ("order_id", "customer_id"):
        yield stands_for_none(name), "blank_value", name
    yield ~col("finite"), "not_finite", "order_value_gbp"
    yield value <= 0, "not_positive", "order_value_gbp"
    yield value.is_null() | (value >= OUT_OF_RANGE_GBP), "out_of_range", "order_value_gbp"
    yield ~col("whole_pence"), "fraction_of_penny", "order_value_gbp"
    yield col("quantity") <= 0, "not_positive", "quantity"
    # A blank status counts as none.
    yield ~col("status").is_in((*STATUSES, "")), "unknown_status", "status"
    yield (
        col("has_event_timestamp") & col("event_date").is_null(),
        "invalid_timestamp",
        "event_timestamp",
    )
    absurd = (col("event_date").dt.year() < EARLIEST_YEAR) | (col("days_ahead") > 1)
    yield absurd, "absurd_timestamp", "event_timestamp"


def convert(foreign: nw.LazyFrame, rates: nw.LazyFrame) -> nw.LazyFrame:
    """Convert the amounts of events that break no rule but that their currency is another than GBP.

    Args:
        foreign: the amounts: of events without lines their value, of others that of each line.
        rates: as for `currency.rates_on`.

    Returns:
        The amounts that have a rate, as `currency.in_gbp` gives them.
    """
    return in_gbp(foreign.with_columns(order_date=order_day()), rates)


def validate_converted(events: nw.LazyFrame) -> nw.LazyFrame:
    """Validate events again whose value was converted.

    Args:
        events: events with `order_value_gbp` (Decimal), the sum of their amounts in GBP; null if
            one of these is too large.

    Returns:
        The same rows with `reason` and `field`, both null for a valid event.
    """
    value, nothing = nw.col("order_value_gbp"), nw.lit(None, dtype=nw.String)
    zero = nw.when(value <= 0).then(nw.lit("not_positive")).otherwise(nothing)
    too_large = value.is_null() | (value >= OUT_OF_RANGE_GBP)
    reason = nw.when(too_large).then(nw.lit("out_of_range")).otherwise(zero)
    valid = nw.col("reason").is_null()
    return events.with_columns(reason=reason).with_columns(
        field=nw.when(valid).then(nothing).otherwise(nw.lit("order_value_gbp")),
        order_value_gbp=nw.when(~too_large).then(value).cast(nw.Decimal(12, 2)),
    )


def order_day() -> nw.Expr:
    """The business day of an event: that of its time, else the day on which it landed."""
    return (
        nw.when(nw.col("event_date").is_null())
        .then(nw.col("received_date"))
        .otherwise(nw.col("event_date"))
    )


def _line_rules() -> Iterator[_Rule]:
    """The same for events with lines; a reader has looked at the fields of each line."""
    col, count = nw.col, nw.col("line_count")
    yield count.is_null(), "wrong_type", "lines"
    yield count == 0, "no_lines", "lines"
    yield count > MAX_LINES, "too_many_lines", "lines"
    yield ~col("line_fault").is_null(), col("line_fault"), col("line_field")
    yield ~col("lines_numbered"), "line_numbers", "lines"
    yield col("lines_value") != col("order_value_gbp"), "lines_do_not_add_up", "order_value_gbp"
    yield col("lines_quantity") != col("quantity"), "lines_do_not_add_up", "quantity"
    has_product = col("has_product_id") & (col("product_id") != "")
    yield has_product & ~col("product_in_lines"), "not_in_lines", "product_id"


def _expr(value: str | nw.Expr) -> nw.Expr:
    return nw.lit(value) if isinstance(value, str) else value


def enrich(valid: nw.LazyFrame, products: nw.LazyFrame, customers: nw.LazyFrame) -> nw.LazyFrame:
    """Add the day, the status, the tier, and the attributes of the product and customer.

    Args:
        valid: valid events as the reader typed them.
        products: all of `products`.
        customers: all of `customers`.

    Returns:
        The same rows with `status` (`completed` where the event has none), `order_date` (Date),
        `value_tier` and the attributes, `unknown` where there are none; blank optional texts are
        null.
    """
    value = nw.col("order_value_gbp")
    blank = nw.col("status").is_null() | (nw.col("status") == "")
    return with_attributes(valid, products, customers).with_columns(
        status=nw.when(blank).then(nw.lit(COMPLETED)).otherwise(nw.col("status")),
        product_id=nw.when(nw.col("product_id") == "")
        .then(nw.lit(None, dtype=nw.String))
        .otherwise(nw.col("product_id")),
        order_date=order_day(),
        value_tier=nw.when(value >= HIGH_VALUE_GBP)
        .then(nw.lit("high"))
        .otherwise(nw.when(value >= MID_VALUE_GBP).then(nw.lit("mid")).otherwise(nw.lit("low"))),
    )


def dead_letter_counts(dead_letters: nw.LazyFrame) -> nw.LazyFrame:
    """Return `dead_letter_counts` of the days in `dead_letter_events`."""
    return (
        dead_letters.group_by("received_date", "reason")
        .agg(dead_letters=nw.len())
        .with_columns(nw.col("dead_letters").cast(nw.Int64))
    )
