"""Rules of orders: which export rows can be used, and which orders count.

`tables/` has the columns of every table named here.
"""

from collections.abc import Mapping

import narwhals as nw

COMPLETED = "completed"
NOT_COUNTED = ("pending", "cancelled", "returned", "refunded")
STATUSES = (COMPLETED, *NOT_COUNTED)

UNKNOWN = "unknown"
"""The value of an attribute if the reference data lack the product or customer."""

RULES_VERSION = 2
"""Goes up with every change of the rules of export rows: exports are ingested again then."""

CURRENCY = "GBP"

NO_ID = (
    *("null", "(null)", "<null>", "\\n", "nil", "none", "nan", "<na>", "n/a", "undefined"),
    *("#n/a", "#null!", "#value!", "#ref!", "#name?", "#num!", "#div/0!"),
)
"""Texts that programs and spreadsheets write for a missing id, in lower case."""

LONGEST_NO_ID = max(map(len, NO_ID))

SHORTENED_NUMBER = r"^[0-9](?:[.,][0-9]+)?[eE]\+[0-9]{2,3}$"
"""A long number as spreadsheets save it, such as 1.23457E+15."""

REASONS: Mapping[str, str] = {
    "skipped_row": "A comment or a total, as the mapping's `skip_rows` has it: no order.",
    "malformed_row": "Not a record of the export's columns: too few or too many fields, a quote"
    " that does not close, or a line that is too long.",
    "not_utf8": "The record has bytes that are not UTF-8.",
    "missing_value": "A required field is blank, or an id is a text that stands for none, such as"
    " `NULL`, `None`, `NaN`, `#N/A` or `undefined`.",
    "mangled_order_id": "`order_id` is a number as a spreadsheet shortens it, such as"
    " `1.23457E+15`: several orders have the same one. Export ids as text.",
    "mangled_id": "`customer_id` or `product_id` is such a shortened number.",
    "invalid_number": "`order_value_gbp` is not a plain number with at most two decimals, or has"
    " more than ten digits before the point; or `line_number` is no whole number above zero; or a"
    " charge of the order is no such number. A mapping says how numbers are written: `decimal`,"
    " `thousands`, `signs` such as £, `negative`.",
    "invalid_timestamp": "`order_timestamp` is not a date and time as `2026-10-05 09:50:26`, with"
    " or without an offset, seconds, or AM and PM; 05/10/2026 could be two days. A mapping says how"
    " times are written: `format`.",
    "not_positive": "`order_value_gbp` is zero or less, or becomes so when the order's discount is"
    " spread over its lines. With `refunds` in the mapping, a negative value is a refund.",
    "refund_without_order": "A refund whose order has no other line in the same export: it would"
    " take the place of the whole order. Export the order with all its lines again.",
    "charges_differ": "The rows of the order have different `charges`: which of them is the order's"
    " is unknown.",
    "unknown_currency": "`currency` is another than GBP, and `reference/currency_rates.csv` has no"
    " rate of it for the order's day or the seven days before: the value is not counted as pounds."
    " The export is ingested again when there is a rate.",
    "unknown_status": f"`status` is none of {', '.join(f'`{status}`' for status in STATUSES)}.",
    "future_order": "The order's day lies after the export's date.",
    "too_late": "The order's day lies more than `RETAIL_LATE_DAYS` days before the export's date.",
    "duplicate_order": "A later row of the same export is the same line of the same order; that one"
    " is used. Rows are the same line if they have the same `line_number`. Without it, they are if"
    " the order has one product in all its rows, or by the same product and value: export"
    " `line_number` where an order may have the same product twice.",
}
"""Why an export row is rejected: the rule in words for each reason code."""

_IDS = ("order_id", "customer_id", "product_id")
_TEXT_FIELDS = (*_IDS, "region", "status")


def validate(rows: nw.LazyFrame, *, late_days: int, refunds: bool = False) -> nw.LazyFrame:
    """Validate the rows of an export: say why a row cannot be used.

    Args:
        rows: the fields of `raw_orders` as a reader typed them. Text is trimmed, null where blank;
            status is in lower case, `currency` in upper case; `order_value_gbp`, `order_timestamp`
            and `line_number` are null where they cannot be read, and `has_order_value`,
            `has_order_timestamp` and `has_line_number` (Boolean) say whether there was anything to
            read; `days_late` (Int64) is `export_date - order_date` in days.
        late_days: how many days before its export an order may lie.
        refunds: whether a row of negative value is a refund, and so a line of its order.

    Returns:
        The same rows with `reason` and `field` (String), both null for a usable row. Rules are
        tried in the order of `REASONS`; the first that fails is the reason.
    """
    rules = [
        *((nw.col(name).is_null(), "missing_value", name) for name in _TEXT_FIELDS),
        *((stands_for_none(name), "missing_value", name) for name in _IDS),
        (~nw.col("has_order_value"), "missing_value", "order_value_gbp"),
        (~nw.col("has_order_timestamp"), "missing_value", "order_timestamp"),
        *(
            (_is_shortened(name), "mangled_order_id" if name == "order_id" else "mangled_id", name)
            for name in _IDS
        ),
        (nw.col("order_value_gbp").is_null(), "invalid_number", "order_value_gbp"),
        (_is_no_line_number(), "invalid_number", "line_number"),
        (nw.col("order_timestamp").is_null(), "invalid_timestamp", "order_timestamp"),
        (
            nw.col("order_value_gbp") == 0 if refunds else nw.col("order_value_gbp") <= 0,
            "not_positive",
            "order_value_gbp",
        ),
        (is_foreign("currency"), "unknown_currency", "currency"),
        (~nw.col("status").is_in(STATUSES), "unknown_status", "status"),
        (nw.col("days_late") < 0, "future_order", "order_timestamp"),
        (nw.col("days_late") > late_days, "too_late", "order_timestamp"),
    ]
    reason = field = nw.lit(None, dtype=nw.String)
    for broken, code, name in reversed(rules):
        reason = nw.when(broken).then(nw.lit(code)).otherwise(reason)
        field = nw.when(broken).then(nw.lit(name)).otherwise(field)
    return rows.with_columns(reason=reason, field=field)


def _is_no_line_number() -> nw.Expr:
    number = nw.col("line_number")
    return nw.col("has_line_number") & (number.is_null() | (number < 1))


def is_foreign(currency: str) -> nw.Expr:
    """Whether an amount is in another currency than pounds; null and blank are pounds."""
    return ~nw.col(currency).is_null() & ~nw.col(currency).is_in(("", CURRENCY))


def stands_for_none(name: str) -> nw.Expr:
    """Whether a text is one of `NO_ID`, whatever its case."""
    # The costly comparison runs for few rows: most ids are longer.
    text = nw.col(name)
    return (
        nw.when(text.str.len_chars() <= LONGEST_NO_ID)
        .then(text.str.to_lowercase().is_in(NO_ID))
        .otherwise(nw.lit(value=False))
    )


def _is_shortened(name: str) -> nw.Expr:
    text = nw.col(name)
    return (
        nw.when(text.str.contains("+", literal=True))
        .then(text.str.contains(SHORTENED_NUMBER))
        .otherwise(nw.lit(value=False))
    )


_LINE = ("export_date", "order_id", "line_number", "product_id", "pence")


def repeated(usable: nw.LazyFrame) -> nw.LazyFrame:
    """Find the rows of an export whose line of an order another row repeats later.

    Rows are the same line if they have the same `line_number`. Without one, they are lines if the
    order has several products, and the same line by the same product and value; an order of one
    product in several rows was corrected within the export.

    Args:
        usable: usable rows with `export_date`, `order_id`, `line_number` (Int64, null where the
            export has none), `product_id`, `order_value_gbp` and `row_number`.

    Returns:
        `export_date` and `row_number` of each such row.
    """
    product = nw.col("product_id")
    of_order = usable.with_columns(
        first_product=product.min().over("export_date", "order_id"),
        last_product=product.max().over("export_date", "order_id"),
    )
    by_content = nw.col("line_number").is_null() & (
        nw.col("first_product") != nw.col("last_product")
    )
    # Nulls are no group on some engines.
    keyed = of_order.with_columns(
        line_number=nw.col("line_number").fill_null(0),
        product_id=nw.when(by_content).then(product).otherwise(nw.lit("")),
        pence=nw.when(by_content).then(in_pence("order_value_gbp")).otherwise(nw.lit(0)),
    )
    return (
        keyed.with_columns(last_row_number=nw.col("row_number").max().over(*_LINE))
        .filter(nw.col("row_number") < nw.col("last_row_number"))
        .select("export_date", "row_number")
    )


def numbered(usable: nw.LazyFrame) -> nw.LazyFrame:
    """Number the lines of orders, where the export does not.

    Args:
        usable: usable rows as for `repeated`, all rows of each order.

    Returns:
        `export_date`, `row_number` and `line_number` (Int64): the export's own, and for rows
        without one the next numbers of their order, from 1, in the order of the rows.
    """
    order = ("export_date", "order_id")
    own = nw.col("line_number")
    counted = usable.select(*order, "row_number", "line_number").with_columns(
        known=own.fill_null(0), lacks=nw.when(own.is_null()).then(nw.lit(1)).otherwise(nw.lit(0))
    )
    following = nw.col("known").max().over(*order) + nw.col("lacks").cum_sum().over(
        *order, order_by="row_number"
    )
    return counted.select(
        "export_date",
        "row_number",
        line_number=nw.when(own.is_null()).then(following).otherwise(own).cast(nw.Int64),
    )


def spread(lines: nw.LazyFrame) -> nw.LazyFrame:
    """Spread the charges of orders over their lines, by value, to the penny.

    Args:
        lines: all lines of each order: `export_date`, `order_id`, `row_number`, `order_value_gbp`
            (Decimal, above zero) and `charge_gbp` (Decimal: the order's charge, null where a row
            has none, the same where it has one).

    Returns:
        `export_date`, `row_number` and `share_gbp` (Float64, whole pence) of each line; those of an
        order add up to its charge.
    """
    order = ("export_date", "order_id")
    known = lines.with_columns(
        pence=in_pence("order_value_gbp").cast(nw.Float64), charge=in_pence("charge_gbp")
    ).with_columns(
        charge=nw.col("charge").max().over(*order).fill_null(0).cast(nw.Float64),
        total=nw.col("pence").sum().over(*order),
        until=nw.col("pence").cum_sum().over(*order, order_by="row_number"),
    )

    def share(of: nw.Expr) -> nw.Expr:
        return (nw.col("charge") * (of / nw.col("total")) + 0.5).floor()

    # What the lines so far have, less what those before have: so no penny is lost.
    return known.select(
        "export_date",
        "row_number",
        share_gbp=(share(nw.col("until")) - share(nw.col("until") - nw.col("pence"))) / 100,
    )


def in_pence(name: str) -> nw.Expr:
    """An amount of GBP as whole pence (Int64); a double holds each of DECIMAL(12,2) exactly."""
    return (nw.col(name).cast(nw.Float64) * 100).round(0).cast(nw.Int64)


def with_exclusion(raw_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Add why a raw order does not count.

    An order seen again in a later export supersedes all lines of the earlier version, whatever its
    day.

    Args:
        raw_orders: rows of `raw_orders`; all exports from the days of interest on.

    Returns:
        The same rows with `exclusion` (String): null for an order that counts, `superseded` for an
        earlier version, else the status that does not count.
    """
    versions = (
        raw_orders.group_by("order_id")
        .agg(
            first_export_date=nw.col("export_date").min(),
            last_export_date=nw.col("export_date").max(),
        )
        .filter(nw.col("first_export_date") < nw.col("last_export_date"))
        .select("order_id", "last_export_date")
    )
    return (
        raw_orders.join(versions, on="order_id", how="left")
        .with_columns(
            exclusion=nw.when(nw.col("export_date") < nw.col("last_export_date"))
            .then(nw.lit("superseded"))
            .otherwise(
                nw.when(nw.col("status") != COMPLETED)
                .then(nw.col("status"))
                .otherwise(nw.lit(None, dtype=nw.String))
            )
        )
        .drop("last_export_date")
    )


def counted(raw_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Return the lines of raw orders that count: of the latest version of each, where completed.

    Args:
        raw_orders: rows of `raw_orders`: all versions of the orders of interest.
    """
    return with_exclusion(raw_orders).filter(nw.col("exclusion").is_null()).drop("exclusion")


def completed_orders(
    raw_orders: nw.LazyFrame, products: nw.LazyFrame, customers: nw.LazyFrame
) -> nw.LazyFrame:
    """Return the lines of orders that count, with the attributes of their product and customer.

    Args:
        raw_orders: rows of `raw_orders`; all exports from the days of interest on.
        products: all of `products`.
        customers: all of `customers`.

    Returns:
        The columns of `completed_orders`; attributes of an unknown product or customer are
        `unknown`.
    """
    return with_attributes(counted(raw_orders), products, customers).select(
        "order_date",
        "order_id",
        "line_number",
        "order_timestamp",
        "region",
        "order_value_gbp",
        "product_id",
        "product_name",
        "product_category",
        "customer_id",
        "customer_segment",
        "home_region",
        "export_date",
    )


def with_attributes(
    rows: nw.LazyFrame, products: nw.LazyFrame, customers: nw.LazyFrame
) -> nw.LazyFrame:
    """Look up the attributes of the product and customer of orders or events.

    Args:
        rows: rows with `product_id` and `customer_id`.
        products: all of `products`.
        customers: all of `customers`.

    Returns:
        The same rows with `product_name`, `product_category`, `customer_segment` and `home_region`
        (String), `unknown` where there is no such product or customer.
    """
    of_product, of_customer = (
        ("product_name", "product_category"),
        ("customer_segment", "home_region"),
    )
    return (
        rows.join(products.select("product_id", *of_product), on="product_id", how="left")
        .join(customers.select("customer_id", *of_customer), on="customer_id", how="left")
        .with_columns(nw.col(*of_product, *of_customer).fill_null(UNKNOWN))
    )


def exclusions(raw_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Count the lines of raw orders of each day that do not count, by reason.

    Args:
        raw_orders: rows of `raw_orders`; all exports from the days of interest on.

    Returns:
        `order_date`, `exclusion` (null: the lines that count), `lines` (Int64) and
        `value_gbp` (Decimal).
    """
    return (
        with_exclusion(raw_orders)
        .group_by("order_date", "exclusion")
        .agg(lines=nw.len(), value_gbp=nw.col("order_value_gbp").sum())
    )


def unreconciled_days(completed: nw.LazyFrame, raw_orders: nw.LazyFrame) -> nw.LazyFrame:
    """Find the days on which raw is not completed + excluded, in lines or in money.

    Args:
        completed: rows of `completed_orders`.
        raw_orders: the raw orders that they were computed from.

    Returns:
        `order_date`, `raw_count`, `raw_value_gbp`, `excluded_count`, `excluded_value_gbp`,
        `completed_count` and `completed_value_gbp` of each such day.
    """
    raw = raw_orders.group_by("order_date").agg(
        raw_count=nw.len(), raw_value_gbp=nw.col("order_value_gbp").sum()
    )
    excluded = (
        exclusions(raw_orders)
        .filter(~nw.col("exclusion").is_null())
        .group_by("order_date")
        .agg(excluded_count=nw.col("lines").sum(), excluded_value_gbp=nw.col("value_gbp").sum())
    )
    counted = completed.group_by("order_date").agg(
        completed_count=nw.len(), completed_value_gbp=nw.col("order_value_gbp").sum()
    )
    measures = (
        "raw_count",
        "raw_value_gbp",
        "excluded_count",
        "excluded_value_gbp",
        "completed_count",
        "completed_value_gbp",
    )
    return (
        raw.join(excluded, on="order_date", how="left")
        .join(counted, on="order_date", how="full")
        .select(
            nw.coalesce("order_date", "order_date_right").alias("order_date"),
            *(
                nw.when(nw.col(name).is_null()).then(nw.lit(0)).otherwise(nw.col(name)).alias(name)
                for name in measures
            ),
        )
        .filter(
            (nw.col("raw_count") != nw.col("excluded_count") + nw.col("completed_count"))
            | (
                nw.col("raw_value_gbp")
                != nw.col("excluded_value_gbp") + nw.col("completed_value_gbp")
            )
        )
    )
