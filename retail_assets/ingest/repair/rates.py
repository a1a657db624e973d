"""Events whose currency got another rate, or one at last: validated again, as a replay would."""

import duckdb

from retail_assets.ingest.events.batch import EventBatch
from retail_assets.ingest.events.columns import KEY
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.events.strategies import Large
from retail_assets.ingest.ledgers.event_files import apply_deltas
from retail_assets.ingest.rates import PAIR, RATES, counting, differing
from retail_assets.transforms.currency import MAX_RATE_AGE_DAYS
from retail_assets.transforms.events import UNKNOWN_CURRENCY


def restate(session: EventSession, staged: str, changed: str) -> None:
    """In the transaction that replaces the rates, validate the events again that it concerns.

    Args:
        session: whose connection is in that transaction.
        staged: the table of the rates to come.
        changed: one with the `currency` and `day` of each rate that is new, gone or different.
    """
    connection = session.connection
    if not _find_lines(connection, staged, changed):
        return
    session.staging.open()
    strategy = Large(session.staging)
    strategy.rates = staged
    batch = EventBatch(session, strategy)
    try:
        batch.add_lines("temp.main.restated_lines")
        apply_deltas(session, batch.apply().deltas)
    finally:
        session.staging.clear(changes_stored=True)
    connection.execute("DROP TABLE temp.main.restated_lines")


def _find_lines(connection: duckdb.DuckDBPyConnection, staged: str, changed: str) -> bool:
    """List the lines that may have another value now in a temporary table; are there any?"""
    first, last = connection.execute(
        f"SELECT min(day), max(day) + {MAX_RATE_AGE_DAYS} FROM {changed}"
    ).fetchone() or (None, None)
    keys = ", ".join(KEY)
    converted = (
        f"(SELECT {keys}, order_date, CASE WHEN contains(extra, '\"currency\"')"
        " THEN extra ->> '$.currency' END AS currency FROM lake.enriched_events"
        f" WHERE order_date BETWEEN DATE '{first}' AND DATE '{last}' AND extra IS NOT NULL)"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE converted_events AS SELECT * FROM {converted}"
        f" WHERE currency IN (SELECT currency FROM {changed})"
    )
    pairs = f"(SELECT DISTINCT {PAIR} FROM temp.main.converted_events)"
    # The rates that they were converted with are those that the lake has until now.
    before = f"({counting(connection, pairs, RATES)})"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE restated_lines AS SELECT {keys} FROM"
        f" temp.main.converted_events JOIN ({differing(connection, before, staged)})"
        f" USING ({PAIR})"
        # An event lands at most a day before the day of its order.
        f" UNION ALL SELECT {keys} FROM lake.dead_letter_events"
        f" WHERE reason = '{UNKNOWN_CURRENCY}' AND received_date >= DATE '{first}' - 1"
    )
    connection.execute("DROP TABLE temp.main.converted_events")
    return bool(connection.execute("FROM temp.main.restated_lines LIMIT 1").fetchone())
