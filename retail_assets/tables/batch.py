"""Tables of reference data and of the batch: from order exports to daily revenue."""

from retail_assets.tables.model import MONEY, RATE, TOTAL, Column, Table, View, from_column

PRODUCTS = Table(
    name="products",
    description="The products of the shop, as `reference/products.csv` has them now.",
    group="reference",
    key=("product_id",),
    columns=(
        Column("product_id", "VARCHAR", "Identifies the product."),
        Column("product_name", "VARCHAR", "The name of the product."),
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

CURRENCY_RATES = Table(
    name="currency_rates",
    description="What other currencies are worth in GBP, as `reference/currency_rates.csv` has it"
    " now. A rate counts for its day, and for the seven days after it until there is a newer one.",
    group="reference",
    key=("day", "currency"),
    columns=(
        Column("day", "DATE", "The business day of the rate."),
        Column("currency", "VARCHAR", "The code of the currency, such as EUR, in upper case."),
        Column(
            "rate",
            RATE,
            "GBP for one unit of the currency, above zero; further decimals are rounded.",
        ),
    ),
)

RAW_ORDERS = Table(
    name="raw_orders",
    description="Every usable line of an order as one export delivered it, typed.",
    group="batch",
    day="export_date",
    key=("export_date", "order_id", "line_number"),
    measures=("order_value_gbp",),
    columns=(
        Column("export_date", "DATE", "The date in the name of the export."),
        Column("order_date", "DATE", "The business day of the order, from its timestamp."),
        Column("order_id", "VARCHAR", "Identifies the order across exports."),
        Column(
            "line_number",
            "BIGINT",
            "The line of the order: the export's `line_number`; without it, lines are numbered"
            " from 1 in the order of the export's rows.",
            default="1",
            # Exports whose orders had lines, or that named a currency, are ingested again.
            when_added="UPDATE lake.export_files SET content_hash = '', modified_ns = 0"
            " WHERE export_date IN"
            " (SELECT export_date FROM lake.rejected_orders WHERE reason = 'unsupported_line_item'"
            " UNION SELECT export_date FROM lake.raw_orders"
            " WHERE regexp_matches(lower(extra), '\"(line_number|currency)\"'))",
        ),
        Column("customer_id", "VARCHAR", "The customer.", personal=True),
        Column("product_id", "VARCHAR", "The product."),
        Column("region", "VARCHAR", "The region in which the order was taken."),
        Column("status", "VARCHAR", "Status in lower case, as of this export."),
        Column(
            "order_value_gbp",
            MONEY,
            "Value of the line in GBP, converted if need be: above zero, or a refund.",
        ),
        Column(
            "order_timestamp",
            "TIMESTAMP",
            "When the order was taken: wall-clock time in the business time zone.",
        ),
        Column(
            "extra",
            "VARCHAR",
            "Columns that the export has beyond the required ones, as a JSON object. A converted"
            " row has its `currency` and, as `order_value`, its amount in that currency.",
            nullable=True,
            personal=True,
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
        Column("field", "VARCHAR", "The field that breaks the rule, if it is one.", nullable=True),
        Column(
            "raw_text",
            "VARCHAR",
            "The row: JSON of its fields, or the line if malformed.",
            personal=True,
        ),
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
    description="The lines of orders that count: latest version, status completed, with their"
    " product and customer.",
    group="batch",
    day="order_date",
    key=("order_id", "line_number"),
    measures=("order_value_gbp",),
    feed="orders",
    columns=(
        from_column("raw_orders.order_date", "DATE", "The business day of the order."),
        from_column("raw_orders.order_id", "VARCHAR", "Identifies the order."),
        Column(
            "line_number",
            "BIGINT",
            "The line of the order.",
            default="1",
            derived_from=("raw_orders.line_number",),
        ),
        from_column(
            "raw_orders.order_timestamp",
            "TIMESTAMP",
            "When the order was taken: wall-clock time in the business time zone.",
        ),
        from_column("raw_orders.region", "VARCHAR", "The region in which the order was taken."),
        from_column("raw_orders.order_value_gbp", MONEY, "Value of the line in GBP."),
        from_column("raw_orders.product_id", "VARCHAR", "The product."),
        from_column("products.product_name", "VARCHAR", "Its name, or `unknown`."),
        from_column("products.product_category", "VARCHAR", "Its category, or `unknown`."),
        from_column("raw_orders.customer_id", "VARCHAR", "The customer.", personal=True),
        from_column(
            "customers.customer_segment", "VARCHAR", "The customer's segment, or `unknown`."
        ),
        from_column(
            "customers.home_region", "VARCHAR", "The customer's home region, or `unknown`."
        ),
        from_column(
            "raw_orders.export_date",
            "DATE",
            "The export that this version of the order comes from.",
        ),
    ),
)


def revenue_measures() -> tuple[Column, ...]:
    """The measures of a day of completed orders."""
    value, order = "completed_orders.order_value_gbp", "completed_orders.order_id"
    return (
        Column(
            "total_revenue",
            TOTAL,
            "Sum of the values of the completed orders' lines, in GBP.",
            derived_from=(value,),
        ),
        Column(
            "order_count",
            "BIGINT",
            "Number of completed orders, whatever their lines.",
            derived_from=(order,),
        ),
        Column(
            "avg_order_value",
            MONEY,
            "total_revenue / order_count, in GBP, half a penny rounded up.",
            derived_from=(value, order),
        ),
    )


ORDER_CHARGES = View(
    name="order_charges",
    description="The charges of orders that count, such as discount, shipping and tax, where a"
    " mapping names them.",
    columns=(
        from_column("completed_orders.order_date", "DATE", "The business day of the order."),
        from_column("completed_orders.order_id", "VARCHAR", "Identifies the order."),
        Column("charge", "VARCHAR", "The name of the charge in the mapping."),
        Column("charge_gbp", MONEY, "Its value in GBP; below zero for a discount."),
    ),
    # Each row of an order may have them, or one alone.
    query=(
        "SELECT DISTINCT min(c.order_date) AS order_date, order_id, e.key AS charge,"
        f" TRY_CAST(e.value AS {MONEY}) AS charge_gbp"
        " FROM completed_orders AS c JOIN raw_orders AS r USING (export_date, order_id),"
        " json_each(r.extra, '$.order_charges') AS e"
        " WHERE contains(r.extra, '\"order_charges\"') AND e.type <> 'NULL' GROUP BY ALL"
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
        from_column("completed_orders.order_date", "DATE", "The business day."),
        from_column(
            "completed_orders.region", "VARCHAR", "The region in which the orders were taken."
        ),
        *revenue_measures(),
    ),
)

DAILY_REVENUE_BY_CATEGORY = Table(
    name="daily_revenue_by_category",
    description="Revenue, number of orders and average order value of each day, region and"
    " product category. An order with lines of several categories counts once in each.",
    group="batch",
    day="order_date",
    key=("order_date", "region", "product_category"),
    measures=("total_revenue", "order_count"),
    feed="orders",
    columns=(
        *DAILY_REVENUE.columns[:2],
        from_column(
            "completed_orders.product_category",
            "VARCHAR",
            "The category of the products, or `unknown`.",
        ),
        *revenue_measures(),
    ),
)
