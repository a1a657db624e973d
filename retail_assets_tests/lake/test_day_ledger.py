"""The ledger of days: versions go up with each change, and what is behind is found."""

# ruff: noqa: PT012 - what a transaction does when its body raises is the point

import pytest

from retail_assets import tables
from retail_assets.lake import day_ledger as ledger
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD

RAW, REVENUE = tables.RAW_ORDERS, tables.DAILY_REVENUE


@pytest.fixture
def connection(lake):
    """A connection to an empty lake; the ledger works in the caller's transaction, or alone."""
    with lake.connect() as open_connection:
        yield open_connection


def test_a_change_raises_the_version_of_its_days_alone(connection):
    ledger.mark_changed(connection, "orders", [FIRST, SECOND, FIRST])
    ledger.mark_changed(connection, "orders", iter([SECOND, THIRD]))
    ledger.mark_changed(connection, "orders", [])
    found = ledger.versions(connection, "orders", [FIRST, SECOND, THIRD])
    assert found == {FIRST: 1, SECOND: 2, THIRD: 1}
    assert ledger.versions(connection, "orders", [SECOND]) == {SECOND: 2}
    assert ledger.versions(connection, "orders", []) == {}
    assert connection.execute("SELECT count(*) FROM changed_days").fetchone() == (3,)


def test_published_days_are_entered_once_with_their_newest_version(connection):
    ledger.mark_published(connection, REVENUE, {FIRST: 3, SECOND: 0}, {FIRST: 1})
    ledger.mark_published(connection, REVENUE, {FIRST: 4}, {FIRST: 2})
    ledger.mark_published(connection, REVENUE, {}, {})
    ledger.mark_published(connection, RAW, {FIRST: 9}, {})
    assert ledger.published(connection, REVENUE, [FIRST, SECOND, THIRD]) == {FIRST: 2, SECOND: 0}
    assert connection.execute(
        "SELECT table_name, day, row_count FROM published_days ORDER BY ALL"
    ).fetchall() == [
        ("daily_revenue", FIRST, 4),
        ("daily_revenue", SECOND, 0),
        ("raw_orders", FIRST, 9),
    ]


def test_a_failure_is_entered_once_and_a_success_removes_it(connection):
    ledger.mark_failed(connection, REVENUE, {FIRST: "no export", SECOND: "no export"})
    ledger.mark_failed(connection, REVENUE, {FIRST: "broken"})
    ledger.mark_failed(connection, RAW, {FIRST: "other"})
    ledger.mark_failed(connection, REVENUE, {})
    found = ledger.failures(connection, REVENUE, [FIRST, SECOND, THIRD])
    assert found == {FIRST: "broken", SECOND: "no export"}
    ledger.mark_published(connection, REVENUE, {FIRST: 1}, {})
    ledger.forget_failures(connection, REVENUE, [SECOND])
    assert ledger.failures(connection, REVENUE, [FIRST, SECOND]) == {}
    assert ledger.failures(connection, RAW, [FIRST]) == {FIRST: "other"}


def test_a_day_that_changed_is_stale_until_it_is_published_from_its_newest_version(connection):
    def stale():
        return ledger.stale_days(connection, REVENUE)

    ledger.mark_changed(connection, "orders", [FIRST, SECOND])
    assert stale() == [FIRST, SECOND]
    ledger.mark_published(connection, RAW, {THIRD: 1}, {})
    ledger.mark_published(connection, REVENUE, {FIRST: 1, SECOND: 1}, {FIRST: 1, SECOND: 1})
    assert stale() == []
    ledger.mark_changed(connection, "orders", [SECOND, THIRD])
    assert stale() == [SECOND, THIRD]
    ledger.mark_published(connection, REVENUE, {SECOND: 1}, {SECOND: 2})
    assert stale() == [THIRD]
    days = [FIRST, SECOND, THIRD]
    assert ledger.published_in_all(connection, (REVENUE,), days) == {FIRST, SECOND}
    assert ledger.published_in_all(connection, (REVENUE, RAW), days) == set()
    ledger.mark_published(connection, RAW, {SECOND: 0}, {})
    assert ledger.published_in_all(connection, (REVENUE, RAW), days) == {SECOND}


def test_entries_are_read_again_once_the_lake_has_changed(connection):
    ledger.mark_published(connection, REVENUE, {FIRST: 3}, {FIRST: 1})
    known = ledger.entries(connection, [FIRST, SECOND])
    assert ledger.entries(connection, [FIRST], known) is known
    assert ledger.entries(connection, [THIRD], known) is not known
    ledger.mark_failed(connection, REVENUE, {FIRST: "broken", THIRD: "broken"})
    ledger.mark_changed(connection, "orders", [SECOND])
    now = ledger.entries(connection, [FIRST, SECOND], known)
    assert (now.published, now.failed, now.changed) == (
        {REVENUE.name: {FIRST: 1}},
        {REVENUE.name: {FIRST: "broken"}},
        {"orders": {SECOND: 1}},
    )


def test_entries_of_a_transaction_that_fails_are_gone(lake, connection):
    with pytest.raises(KeyError), lake.transaction(connection, "broken"):
        ledger.mark_changed(connection, "orders", [FIRST])
        ledger.mark_published(connection, REVENUE, {FIRST: 1}, {FIRST: 1})
        ledger.mark_failed(connection, REVENUE, {SECOND: "broken"})
        raise KeyError
    assert ledger.versions(connection, "orders", [FIRST]) == {}
    assert ledger.published(connection, REVENUE, [FIRST]) == {}
    assert ledger.failures(connection, REVENUE, [SECOND]) == {}
