"""Versions of days, which keep older data from replacing newer ones, and tables without days."""

from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest

from retail_assets import tables
from retail_assets.errors import AuditError
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.publish import publish_days, publish_table
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets_tests.lake.revenue import (
    FIRST,
    SECOND,
    ledger_of,
    publish,
    read,
    revenue,
    rows_of,
)


def change(lake, day):
    with lake.connect() as connection, lake.transaction(connection, "change"):
        ledger.mark_changed(connection, "orders", [day])


def test_somebody_who_read_older_data_does_not_overwrite_newer(lake):
    change(lake, FIRST)
    change(lake, SECOND)
    with lake.connect() as slow:
        older = SnapshotRead(slow)
        older.begin()
        assert rows_of(slow) == []
        change(lake, FIRST)
        publish(lake, [(FIRST, "North", "2.00")], [FIRST])
        publish_days(
            lake,
            slow,
            tables.DAILY_REVENUE,
            revenue([(FIRST, "North", "1.00"), (SECOND, "North", "1.00")]),
            [FIRST, SECOND],
            read=older,
        )
    assert read(lake) == [
        (FIRST, "North", Decimal("2.00")),
        (SECOND, "North", Decimal("1.00")),
    ]
    assert ledger_of(lake)[0] == [(FIRST, 1, 2), (SECOND, 1, 1)]


def test_nothing_is_committed_where_others_have_published_all_days_from_newer_data(lake):
    change(lake, FIRST)
    with lake.connect() as slow, SnapshotRead(slow) as older:
        assert rows_of(slow) == []
        change(lake, FIRST)
        published = publish(lake, [(FIRST, "North", "2.00")], [FIRST])
        frame = revenue([(FIRST, "North", "1.00")])
        done = publish_days(lake, slow, tables.DAILY_REVENUE, frame, [FIRST], read=older)
    assert done.snapshot == published.snapshot
    assert read(lake) == [(FIRST, "North", Decimal("2.00"))]


def test_what_is_changed_while_a_frame_is_computed_leaves_the_day_behind(lake, monkeypatch):
    """Without a transaction of the caller's, frame and version could be of different snapshots."""
    change(lake, FIRST)
    publish(lake, [(FIRST, "North", "1.00")], [FIRST])
    real = ledger.entries

    def late(connection, days, known):
        monkeypatch.undo()
        change(lake, FIRST)
        return real(connection, days, known)

    with lake.connect() as connection:
        frame = connection.table("lake.daily_revenue")
        monkeypatch.setattr(ledger, "entries", late)
        publish_days(lake, connection, tables.DAILY_REVENUE, frame, [FIRST])
        assert ledger.versions(connection, "orders", [FIRST]) == {FIRST: 2}
        assert ledger.published(connection, tables.DAILY_REVENUE, [FIRST]) == {FIRST: 1}


def test_what_is_made_from_a_day_that_is_behind_is_behind_as_well(lake):
    """Else revenue made between an ingest and the new completed orders would stay old for ever."""
    change(lake, FIRST)
    with lake.connect() as connection, lake.transaction(connection, "publish"):
        for table in (tables.RAW_ORDERS, tables.COMPLETED_ORDERS):
            ledger.mark_published(connection, table, {FIRST: 1}, {FIRST: 1})
    change(lake, FIRST)
    publish(lake, [(FIRST, "North", "1.00")], [FIRST], sources=[tables.COMPLETED_ORDERS])
    with lake.connect(read_only=True) as connection:
        assert ledger.published(connection, tables.DAILY_REVENUE, [FIRST]) == {FIRST: 1}
        assert ledger.stale_days(connection, tables.DAILY_REVENUE) == [FIRST]


# --- tables without days ------------------------------------------------------------------------

PRODUCTS = pa.table(
    {
        "product_id": ["P1", "P2"],
        "product_name": ["Tea", "Jam"],
        "product_category": ["Drinks", "Food"],
        "unit_price_gbp": pa.array([Decimal("1.00"), None], pa.decimal128(12, 2)),
        "stock_on_hand": pa.array([1, None], pa.int64()),
    }
)


def products(lake):
    with lake.connect(read_only=True) as connection:
        return connection.execute(
            "SELECT product_id, product_name FROM products ORDER BY 1"
        ).fetchall()


def test_a_table_without_days_is_replaced_whole_and_only_if_it_differs(lake):
    with lake.connect() as connection:
        count, first = publish_table(lake, connection, tables.PRODUCTS, PRODUCTS)
        assert (count, products(lake)) == (2, [("P1", "Tea"), ("P2", "Jam")])
        again = publish_table(lake, connection, tables.PRODUCTS, PRODUCTS.slice(0))
        assert again == (2, first)
        count, snapshot = publish_table(lake, connection, tables.PRODUCTS, PRODUCTS.slice(1))
    assert (count, snapshot) == (1, first + 1)
    assert products(lake) == [("P2", "Jam")]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (pa.concat_tables([PRODUCTS, PRODUCTS.slice(1)]), r"share their key \(product_id\).*P2"),
        (
            PRODUCTS.set_column(1, "product_name", pa.array(["Tea", None])),
            'lack a value.*"product_id":"P2"',
        ),
    ],
)
def test_a_bad_table_without_days_keeps_its_rows(lake, rows, says):
    with lake.connect() as connection:
        publish_table(lake, connection, tables.PRODUCTS, PRODUCTS)
        with pytest.raises(AuditError, match=says):
            publish_table(lake, connection, tables.PRODUCTS, rows)
        with pytest.raises(duckdb.TransactionException):
            connection.execute("COMMIT")
    assert products(lake) == [("P1", "Tea"), ("P2", "Jam")]


def test_what_is_done_before_the_swap_is_committed_with_it_or_not_at_all(lake):
    def mark(connection, staged):
        ledger.mark_changed(connection, "orders", [FIRST])
        if connection.execute(f"SELECT count(*) FROM {staged}").fetchone() == (1,):
            raise ValueError

    with lake.connect() as connection:
        publish_table(lake, connection, tables.PRODUCTS, PRODUCTS, before_swap=mark)
        with pytest.raises(ValueError):  # noqa: PT011
            publish_table(lake, connection, tables.PRODUCTS, PRODUCTS.slice(1), before_swap=mark)
        assert ledger.versions(connection, "orders", [FIRST]) == {FIRST: 1}
    assert products(lake) == [("P1", "Tea"), ("P2", "Jam")]
