"""What belongs to an order as a whole: its charges, and refunds of its lines.

Works on the staged rows of exports, once each row has been validated by itself.
"""

import duckdb
import narwhals as nw

from retail_assets.lake.sql import literal
from retail_assets.mapping import ExportMapping
from retail_assets.transforms import orders

_MONEY = "DECIMAL(12,2)"


def settle_orders(
    connection: duckdb.DuckDBPyConnection, mapping: ExportMapping, days: str, raw_text: str
) -> None:
    """Settle the charges and refunds of staged orders, as the mapping says.

    Args:
        connection: where `export_rows` and `rejected_rows` are.
        mapping: which charges there are, and what becomes of refunds.
        days: SQL for the days of the rows, separated by commas.
        raw_text: SQL for the original fields of a row.
    """
    parts = _OrderParts(connection, days, raw_text)
    if mapping.refunds != "reject":
        parts.check_refunds()
    if mapping.charges:
        parts.check_charges()
        added = [name for name, charge in mapping.charges.items() if charge.spread]
        totals = [name for name, charge in mapping.charges.items() if charge.total]
        if added or totals:
            parts.spread(added, totals)
        parts.keep_charges()


def date_refunds(connection: duckdb.DuckDBPyConnection, days: str) -> None:
    """Give refunds the day of their order, which they belong to with `refunds: order_day`.

    Before rows are validated: a refund may lie days after its order, and after its export's date.

    Args:
        connection: where `export_rows` are.
        days: SQL for the days of the rows, separated by commas.
    """
    connection.execute(
        "UPDATE export_rows SET order_timestamp = placed, order_date = placed::DATE,"
        " days_late = export_date - placed::DATE FROM (SELECT export_date AS day,"
        " order_id AS order_no, min(order_timestamp) AS placed FROM export_rows"
        f" WHERE export_date IN ({days}) AND order_value_gbp > 0 GROUP BY ALL)"
        " WHERE order_value_gbp < 0 AND order_timestamp IS NOT NULL AND placed IS NOT NULL"
        " AND day = export_date AND order_no = order_id"
    )


def gather_charges(connection: duckdb.DuckDBPyConnection, days: str) -> None:
    """Put aside which charges each row has, whether it can be used or not, in `charges_of_rows`.

    A charge is the order's: the row that has it may be one of no value, such as a gift.

    Args:
        connection: where `export_rows` are.
        days: SQL for the days of the rows, separated by commas.
    """
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE charges_of_rows AS SELECT rowid AS row_id,"
        " export_date AS day, order_id AS order_no, charges AS its_charges,"
        " unreadable_charge AS unreadable"
        f" FROM export_rows WHERE export_date IN ({days})"
        " AND (charges IS NOT NULL OR unreadable_charge IS NOT NULL)"
    )


class _OrderParts:
    def __init__(self, connection: duckdb.DuckDBPyConnection, days: str, raw_text: str) -> None:
        self._connection, self._raw_text = connection, raw_text
        self._rows = f"(SELECT *, rowid AS id FROM export_rows WHERE export_date IN ({days}))"
        self._days = days

    def _reject(self, which: str, reason: str, field: str) -> None:
        self._connection.execute(
            f"INSERT INTO rejected_rows SELECT rowid, export_date, {literal(reason)}, {field},"
            f" {self._raw_text} FROM export_rows WHERE export_date IN ({self._days}) AND {which}"
        )
        self._connection.execute(
            "DELETE FROM export_rows WHERE rowid IN (SELECT row_id FROM rejected_rows)"
        )

    def check_refunds(self) -> None:
        """Reject refunds without their order."""
        self._reject(
            "order_value_gbp < 0 AND (export_date, order_id) NOT IN (SELECT (export_date, order_id)"
            f" FROM {self._rows} WHERE order_value_gbp > 0)",
            "refund_without_order",
            "'order_id'",
        )

    def check_charges(self) -> None:
        """Reject orders with a charge that is no number, or whose rows have different ones.

        Each row of any other order has its charges afterwards.
        """
        of_order = "day = export_date AND order_no = order_id"
        unreadable = f"(SELECT min(unreadable) FROM charges_of_rows WHERE {of_order})"
        self._reject(f"{unreadable} IS NOT NULL", "invalid_number", unreadable)
        self._reject(
            "(export_date, order_id) IN (SELECT (day, order_no) FROM charges_of_rows"
            " GROUP BY day, order_no HAVING count(DISTINCT its_charges) > 1)",
            "charges_differ",
            "NULL",
        )
        self._connection.execute(
            "UPDATE export_rows SET charges = its_charges FROM charges_of_rows"
            f" WHERE charges IS NULL AND {of_order} AND row_id NOT IN"
            f" (SELECT id FROM {self._rows})"
        )

    def spread(self, added: list[str], totals: list[str]) -> None:
        """Add charges to the lines of their orders, or what these lack of a total."""
        amount = {
            name: f"(charges ->> {literal(f'$.{name}')})::{_MONEY}" for name in (*added, *totals)
        }
        lines_add_up_to = "sum(order_value_gbp) OVER (PARTITION BY export_date, order_id)"
        charge = " + ".join(
            [
                *(f"coalesce({amount[name]}, 0)" for name in added),
                *(f"coalesce({amount[name]} - {lines_add_up_to}, 0)" for name in totals),
            ]
        )
        lines = self._connection.sql(
            f"SELECT export_date, order_id, id AS row_number, order_value_gbp,"
            f" CASE WHEN charges IS NOT NULL THEN ({charge})::DECIMAL(18,2) END AS charge_gbp"
            f" FROM {self._rows} WHERE order_value_gbp > 0 AND (export_date, order_id) IN"
            f" (SELECT (export_date, order_id) FROM {self._rows} WHERE charges IS NOT NULL)"
        )
        shares = orders.spread(nw.from_native(lines)).to_native().sql_query()
        self._connection.execute(
            "CREATE OR REPLACE TEMP TABLE charge_shares AS SELECT row_number,"
            f" round(share_gbp, 2)::DECIMAL(18,2) AS share_gbp FROM ({shares})"
        )
        self._connection.execute(
            "UPDATE export_rows SET order_value_gbp ="
            f" TRY_CAST(order_value_gbp::DECIMAL(18,2) + share_gbp AS {_MONEY})"
            " FROM charge_shares WHERE export_rows.rowid = row_number"
        )
        spread = "rowid IN (SELECT row_number FROM charge_shares)"
        self._reject(f"{spread} AND order_value_gbp IS NULL", "invalid_number", "'order_value_gbp'")
        self._reject(f"{spread} AND order_value_gbp <= 0", "not_positive", "'order_value_gbp'")
        self._connection.execute("DROP TABLE temp.main.charge_shares")

    def keep_charges(self) -> None:
        """Keep the charges of orders among their extra fields."""
        self._connection.execute(
            "UPDATE export_rows SET extra = json_merge_patch(coalesce(extra, '{}'),"
            " json_object('order_charges', charges::JSON))::VARCHAR"
            f" WHERE charges IS NOT NULL AND export_date IN ({self._days})"
        )
