"""Tables and views that follow the events: live revenue, stock, fraud, and their alerts."""

from dataclasses import replace

from retail_assets.tables.batch import (
    DAILY_REVENUE,
    DAILY_REVENUE_BY_CATEGORY,
    RAW_ORDERS,
    revenue_measures,
)
from retail_assets.tables.model import INSTANT, MONEY, TOTAL, Column, Table, View, from_column

DEAD_LETTER_COUNTS = Table(
    name="dead_letter_counts",
    description="How many events of each day were dead-lettered, by reason.",
    group="events",
    key=("received_date", "reason"),
    columns=(
        from_column("dead_letter_events.received_date", "DATE", "The day on which they landed."),
        from_column("dead_letter_events.reason", "VARCHAR", "Reason code."),
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
        for column, found in zip(revenue_measures(), sources, strict=True)
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
        from_column(
            "enriched_events.order_date", "DATE", "The business day of the order's first event."
        ),
        from_column(
            "enriched_events.region", "VARCHAR", "The region in which the orders were taken."
        ),
        *_live_measures(),
    ),
)

LIVE_REVENUE_BY_CATEGORY = Table(
    name="live_revenue_by_category",
    description="Revenue of each day, region and product category as the events have it. An order"
    " with lines of several categories counts once in each; one whose latest event names another"
    " value than its lines have is `unknown`.",
    group="events",
    day="order_date",
    key=("order_date", "region", "product_category"),
    measures=("total_revenue", "order_count"),
    columns=(
        *LIVE_REVENUE.columns[:2],
        Column(
            "product_category",
            "VARCHAR",
            "The category of the products, or `unknown`.",
            derived_from=("live_orders.product_category", "live_order_lines.product_category"),
        ),
        *LIVE_REVENUE.columns[2:],
    ),
)

FRAUD_ALERTS = Table(
    name="fraud_alerts",
    description="Orders that look wrong, each with its reasons.",
    group="events",
    followed=True,
    key=("event_id",),
    columns=(
        from_column("enriched_events.event_id", "VARCHAR", "The first event of the order."),
        from_column("enriched_events.customer_id", "VARCHAR", "The customer.", personal=True),
        from_column("enriched_events.order_id", "VARCHAR", "The order."),
        from_column(
            "enriched_events.order_date", "DATE", "The business day of the order's first event."
        ),
        from_column(
            "enriched_events.event_timestamp",
            INSTANT,
            "When that event happened, if it says so.",
            nullable=True,
        ),
        from_column(
            "enriched_events.received_date", "DATE", "The day on which the order was first seen."
        ),
        from_column(
            "enriched_events.region", "VARCHAR", "The region in which the order was taken."
        ),
        from_column(
            "enriched_events.order_value_gbp",
            MONEY,
            "Value of the order in GBP, as its latest event has it.",
        ),
        Column(
            "reasons",
            "VARCHAR",
            "Reason codes, separated by commas.",
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
    description="Models that find unusual orders: one for each day, trained on the days up to it.",
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
        Column("features", "VARCHAR", "The names of its features, separated by commas."),
        Column("library", "VARCHAR", "The version of scikit-learn that made it, and can read it."),
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
        from_column(
            "enriched_events.order_date", "DATE", "The business day of the order's first event."
        ),
        from_column("enriched_events.order_id", "VARCHAR", "Identifies the order."),
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
                (
                    "product_id",
                    "VARCHAR",
                    "The product, if an event has one and the order has no lines.",
                    True,
                ),
            )
        ),
        Column(
            "product_category",
            "VARCHAR",
            "Its category, or `unknown`; null if the order has lines that add up to its value:"
            " live_order_lines has their categories.",
            nullable=True,
            derived_from=("enriched_events.product_category",),
            # As the consumer has it: live_revenue_by_category follows from there.
            when_added="UPDATE lake.live_orders SET product_category = coalesce((SELECT"
            " products.product_category FROM lake.products"
            " WHERE products.product_id = live_orders.product_id), 'unknown')",
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

LIVE_ORDER_LINES = Table(
    name="live_order_lines",
    description="Every line of the orders whose events have lines, as the order's latest event with"
    " lines has them. An order whose events name a product is in live_orders alone.",
    group="events",
    day="order_date",
    key=("order_id", "line_number"),
    measures=("order_value_gbp",),
    columns=(
        *LIVE_ORDERS.columns[:2],
        *(
            Column(name, type_, text, derived_from=("enriched_events.lines",))
            for name, type_, text in (
                ("line_number", "BIGINT", "The line's own number, or else its place, from 1."),
                ("product_id", "VARCHAR", "The product."),
                ("order_value_gbp", MONEY, "Value of the line in GBP."),
            )
        ),
        from_column("products.product_category", "VARCHAR", "Its category, or `unknown`."),
        *(
            column
            for column in LIVE_ORDERS.columns
            if column.name
            in ("region", "status", "sold", "sold_at", "sold_event_id", "returned", "returned_at")
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
        from_column(
            "live_orders.minute",
            "TIMESTAMP",
            "The minute of the order, that of the earliest of its events, as wall-clock time in the"
            " business time zone: midnight if one of that day says no time.",
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
            derived_from=(
                "products.product_id",
                "live_orders.product_id",
                "live_order_lines.product_id",
            ),
        ),
        from_column(
            "products.stock_on_hand",
            "BIGINT",
            "Units in stock at the start of `RETAIL_STOCK_DATE`, if the reference data say so.",
            nullable=True,
        ),
        from_column("live_orders.sold", "BIGINT", "Units sold since."),
        from_column("live_orders.returned", "BIGINT", "Units given back since."),
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
    key=("event_id", "line_number"),
    columns=(
        Column(
            "event_id",
            "VARCHAR",
            "The event of the sale.",
            derived_from=("live_orders.sold_event_id",),
        ),
        from_column(
            "live_order_lines.line_number",
            "BIGINT",
            "The first line of the order with the product, if it has lines.",
            nullable=True,
        ),
        Column(
            "product_id",
            "VARCHAR",
            "The product that runs out.",
            derived_from=("live_orders.product_id", "live_order_lines.product_id"),
        ),
        from_column("live_orders.order_id", "VARCHAR", "The order."),
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
    description="The quarantined keys of consumers, which they could not recompute: their rows are"
    " as they were before. A success removes the entry.",
    key=("consumer", "key"),
    columns=(
        Column("consumer", "VARCHAR", "The consumer."),
        Column(
            "key", "VARCHAR", "The key that it could not recompute: an order, a product, a day, …"
        ),
        Column("problem", "VARCHAR", "The error."),
        Column("snapshot", "BIGINT", "The snapshot of the lake that it was tried at."),
        Column("attempts", "BIGINT", "How often it was tried."),
        Column("failed_at", INSTANT, "When it was last tried."),
    ),
)


def whole_days(table: Table, days: str = "true") -> str:
    """The query for the days of a table of the batch that have their own export.

    Others may have nothing but the late orders of other exports. `days` is a condition on `day`.
    """
    return (
        f"SELECT day FROM published_days WHERE table_name IN ('{RAW_ORDERS.name}',"
        f" '{table.name}') AND {days} GROUP BY day HAVING count(*) = 2"
    )


def best_revenue(batch: Table, stream: Table, days: str = "true") -> str:
    """The query for the best revenue there is, from the batch or the stream, day by day.

    `days` is a condition on `order_date`: then the cost follows these days.
    """
    columns = ", ".join(batch.column_names)
    whole = whole_days(batch, days.replace("order_date", "day"))
    published, live = (f"(SELECT * FROM {table.name} WHERE {days})" for table in (batch, stream))
    return (
        f"SELECT {columns}, 'batch' AS source FROM {published} WHERE order_date IN ({whole})"
        f" OR order_date NOT IN (SELECT order_date FROM {live})"
        f" UNION ALL SELECT {columns}, 'stream' FROM {live} WHERE order_date NOT IN ({whole})"
    )


REVENUE_NOW = View(
    name="revenue_now",
    description="The best revenue there is of each day and region: the batch's where the day is"
    " published from its own export, else the stream's, and where the stream has no such day what"
    " other exports brought of it.",
    columns=(
        *DAILY_REVENUE.columns,
        Column("source", "VARCHAR", "`batch` or `stream`."),
    ),
    query=best_revenue(DAILY_REVENUE, LIVE_REVENUE),
)

REVENUE_BY_CATEGORY_NOW = View(
    name="revenue_by_category_now",
    description="The best revenue there is of each day, region and product category, as in"
    " revenue_now. The stream knows the categories of orders whose events name products.",
    columns=(
        *DAILY_REVENUE_BY_CATEGORY.columns,
        Column("source", "VARCHAR", "`batch` or `stream`."),
    ),
    query=best_revenue(DAILY_REVENUE_BY_CATEGORY, LIVE_REVENUE_BY_CATEGORY),
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
