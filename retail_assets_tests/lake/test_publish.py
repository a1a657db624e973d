"""Stage, audit, publish: what is published is right, and what is not leaves the rest as it was."""

# ruff: noqa: PT012 - what a transaction does when its body raises is the point

import shutil
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import narwhals as nw
import pandas as pd
import pyarrow as pa
import pytest

from retail_assets import tables
from retail_assets.errors import AuditError
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_days, replace_days
from retail_assets_tests.lake.revenue import (
    FIRST,
    SECOND,
    THIRD,
    entries_of,
    ledger_of,
    publish,
    read,
    revenue,
    rows_of,
)

OLD = [(FIRST, "North", Decimal("1.00")), (SECOND, "North", Decimal("2.00"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory, new_lake):
    """A lake with two published days, `OLD`."""
    data_dir = tmp_path_factory.mktemp("published")
    rows = [(FIRST, "North", "1.00"), (SECOND, "North", "2.00")]
    publish(new_lake(data_dir), rows, [FIRST, SECOND])
    return data_dir


@pytest.fixture
def published(model, settings):
    """The same, the test's own."""
    shutil.copytree(model, settings.data_dir, dirs_exist_ok=True)
    return Lake.from_settings(settings)


def snapshot_of(lake):
    with lake.connect(read_only=True) as connection:
        return lake_connection.current_snapshot(connection)


def state_of(connection):
    """Snapshot, rows and ledger."""
    connection.execute("BEGIN")
    snapshot = lake_connection.current_snapshot(connection)
    found = snapshot, rows_of(connection), entries_of(connection)
    connection.execute("COMMIT")
    return found


# --- what is published --------------------------------------------------------------------------


def test_the_days_asked_for_are_replaced_and_no_others(published):
    done = publish(published, [(SECOND, "South", "5.00"), (SECOND, "West", "6.00")], [SECOND])
    assert done.rows == {SECOND: 2}
    assert done.failed == {}
    assert done.measures == {SECOND: {"total_revenue": Decimal("11.00"), "order_count": 2}}
    assert read(published) == [
        OLD[0],
        (SECOND, "South", Decimal("5.00")),
        (SECOND, "West", Decimal("6.00")),
    ]
    assert done.snapshot == snapshot_of(published)
    assert ledger_of(published) == ([(FIRST, 1, 0), (SECOND, 2, 0)], [])


def test_publishing_the_same_twice_gives_the_same_rows(published):
    publish(published, [(SECOND, "North", "2.00")], [SECOND])
    assert read(published) == OLD


def test_a_day_without_rows_becomes_an_empty_published_day(published):
    assert publish(published, [], [SECOND, THIRD]).rows == {SECOND: 0, THIRD: 0}
    assert read(published) == OLD[:1]
    assert ledger_of(published)[0] == [(FIRST, 1, 0), (SECOND, 0, 0), (THIRD, 0, 0)]


def test_no_days_at_all_change_nothing(published):
    before = snapshot_of(published)
    done = publish(published, [], [])
    assert (done.rows, done.failed, done.snapshot) == ({}, {}, None)
    assert snapshot_of(published) == before


def test_large_days_are_inserted_one_after_the_other_and_whole(lake):
    rows = {FIRST: 70_000, SECOND: 60_000, THIRD: 10}
    with lake.connect() as connection:
        days = " UNION ALL ".join(f"SELECT DATE '{day}' FROM range({n})" for day, n in rows.items())
        connection.execute(
            "CREATE TEMP TABLE mixed AS SELECT order_date, 'North' AS region, 1 AS order_count,"
            " 1.00 AS total_revenue, 1.00 AS avg_order_value"
            f" FROM ({days}) AS t(order_date) ORDER BY random()"
        )
        with lake.transaction(connection, "large days"):
            replace_days(connection, tables.DAILY_REVENUE, "temp.main.mixed", rows, [])
        found = connection.execute(
            "SELECT order_date, count(*), min(rowid), max(rowid) FROM daily_revenue GROUP BY 1"
            " ORDER BY 1"
        ).fetchall()
    assert {day: count for day, count, *_ in found} == rows
    # The first two make a row group, and the third comes after it.
    assert found[2][2] > max(found[0][3], found[1][3])


def test_columns_are_matched_by_name_in_whatever_order_they_come(lake):
    rows = revenue([(FIRST, "North", "7.00")])
    columns = rows.column_names[::-1]
    publish(lake, rows.select(columns), [FIRST])
    with lake.connect(read_only=True) as connection:
        assert connection.execute("SELECT * FROM daily_revenue").fetchall() == [
            (FIRST, "North", Decimal("7.00"), 1, Decimal("7.00"))
        ]


def as_pandas(rows: pa.Table, connection) -> object:
    return rows.to_pandas()


def as_pandas_of_arrow(rows: pa.Table, connection) -> object:
    return rows.to_pandas(types_mapper=pd.ArrowDtype)


def as_arrow(rows: pa.Table, connection) -> object:
    return rows


def as_relation_of_a_table(rows: pa.Table, connection) -> object:
    connection.register("given", rows)
    connection.execute("CREATE OR REPLACE TEMP TABLE mine AS SELECT * FROM given")
    return connection.table("temp.main.mine")


def as_relation_of_a_frame(rows: pa.Table, connection) -> object:
    mine = rows.to_pandas()  # found by DuckDB under its name
    relation = connection.sql("SELECT * FROM mine")
    del mine
    return relation


FORMS = [
    as_pandas,
    as_pandas_of_arrow,
    as_arrow,
    as_relation_of_a_table,
    as_relation_of_a_frame,
]


@pytest.mark.parametrize("form", FORMS)
def test_frames_of_any_kind_give_the_same_rows(published, form):
    two = [(SECOND, "South", "12.00"), (SECOND, "West", "0.35")]
    with published.connect() as connection:
        for wrap in (lambda frame: frame, nw.from_native):
            for given in (two, []):
                frame = wrap(form(revenue(given), connection))
                done = publish_days(published, connection, tables.DAILY_REVENUE, frame, [SECOND])
                assert done.rows == {SECOND: len(given)}
                added = [(day, region, Decimal(value)) for day, region, value in given]
                assert rows_of(connection) == [OLD[0], *added]
                leftover = connection.execute(
                    "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '%staged%'"
                    " UNION ALL"
                    " SELECT view_name FROM duckdb_views() WHERE view_name LIKE '%staged%'"
                ).fetchall()
                assert leftover == []


def test_a_narrower_type_that_loses_nothing_is_taken(lake):
    whole = pd.DataFrame(
        {
            "order_date": [FIRST],
            "region": pd.Categorical(["North"]),
            "total_revenue": [Decimal(10)],
            "order_count": pd.array([1], dtype="int16"),
            "avg_order_value": [Decimal("10.5")],
        }
    )
    publish(lake, whole, [FIRST])
    with lake.connect(read_only=True) as connection:
        assert connection.execute("SELECT * FROM daily_revenue").fetchall() == [
            (FIRST, "North", Decimal("10.00"), 1, Decimal("10.50"))
        ]


def test_only_days_leaves_rows_of_other_days_out(published):
    rows = [(FIRST, "South", "8.00"), (SECOND, "South", "9.00"), (THIRD, "South", "9.00")]
    assert publish(published, rows, [SECOND], only_days=True).rows == {SECOND: 1}
    assert read(published) == [OLD[0], (SECOND, "South", Decimal("9.00"))]


# --- what is refused as a whole -----------------------------------------------------------------


def without(name):
    return lambda rows: rows.drop_columns([name])


def with_column(name, values, type_):
    def change(rows: pa.Table) -> pa.Table:
        column = pa.array(values, type_)
        if name not in rows.column_names:
            return rows.append_column(name, column)
        return rows.set_column(rows.column_names.index(name), name, column)

    return change


REFUSED = [
    (without("region"), "columns region are missing"),
    (with_column("margin", [1], pa.int64()), "columns margin are not in tables/"),
    (
        with_column("total_revenue", [1.5], pa.float64()),
        r"total_revenue is DOUBLE and not DECIMAL\(18,2\)",
    ),
    (
        with_column("total_revenue", [Decimal("1.005")], pa.decimal128(12, 3)),
        r"total_revenue is DECIMAL\(12,3\) and not DECIMAL\(18,2\)",
    ),
    (with_column("order_count", [Decimal("1.00")], pa.decimal128(12, 2)), "order_count is DEC"),
    (with_column("order_count", [1.0], pa.float64()), "order_count is DOUBLE and not BIGINT"),
    (with_column("region", [7], pa.int64()), "region is BIGINT and not VARCHAR"),
    (
        with_column("order_date", [datetime(2026, 10, 6)], pa.timestamp("us")),  # noqa: DTZ001
        "order_date is TIMESTAMP and not DATE",
    ),
    (with_column("order_date", ["2026-10-06"], pa.string()), "order_date is VARCHAR"),
    (
        with_column("order_date", [THIRD], pa.date32()),
        r"rows of days that were not asked for \(1 of 2026-10-07\)",
    ),
    (with_column("order_date", [None], pa.date32()), "not asked for"),
]
"""What is wrong with rows of a day, and what is said of it."""


def test_rows_that_cannot_be_published_leave_everything_as_it_was(published):
    with published.connect() as connection:
        before = state_of(connection)
        for change, says in REFUSED:
            rows = change(revenue([(SECOND, "South", "9.00")]))
            with pytest.raises(AuditError, match=says) as caught:
                publish_days(published, connection, tables.DAILY_REVENUE, rows, [SECOND])
            assert state_of(connection) == before
            assert "daily_revenue was not published" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert rows_of(connection) == OLD


def test_nanoseconds_are_not_cut_off_silently(lake):
    rows = pa.table({"day": [1]})
    times = pa.array([1_700_000_000_000_000_001], pa.timestamp("ns"))
    with lake.connect() as connection, pytest.raises(AuditError, match="TIMESTAMP_NS and not TIME"):
        publish_days(
            lake, connection, tables.RAW_ORDERS, rows.append_column("order_timestamp", times), []
        )


def test_a_frame_that_fails_half_way_leaves_a_connection_that_works(published):
    with published.connect() as connection:
        frame = connection.sql(
            f"SELECT DATE '{SECOND}' AS order_date, 'South' AS region, 1 AS order_count,"
            " CAST('x' || i AS DECIMAL(12,2)) AS total_revenue, 1.00 AS avg_order_value"
            " FROM range(3) AS t(i)"
        )
        done = publish_days(published, connection, tables.DAILY_REVENUE, frame, [SECOND])
        assert list(done.failed) == [SECOND]
        assert "Could not convert string" in done.failed[SECOND]
        assert rows_of(connection) == OLD
        publish_days(
            published, connection, tables.DAILY_REVENUE, revenue([(SECOND, "S", "9.00")]), [SECOND]
        )
    assert read(published) == [OLD[0], (SECOND, "S", Decimal("9.00"))]


# --- what fails a day ---------------------------------------------------------------------------


@pytest.mark.parametrize("only_days", [False, True])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("9999999999999999.99::DECIMAL(38,2) + i", "failed: value is out of range"),
        ("CAST('x' || i AS DECIMAL(18,2))", "Could not convert string"),
        ("1.00 + (9223372036854775807 + i)", "Overflow in addition"),
    ],
)
def test_a_value_that_does_not_fit_fails_its_day_alone_and_by_name(
    published, value, says, only_days
):
    """Within the frame as well as on its way into the table, and whatever days lie around it."""
    days = [FIRST + timedelta(days=n) for n in range(-3, 5)]
    bad = [SECOND, days[-1]]
    with published.connect() as connection:
        frame = connection.sql(
            "SELECT order_date, 'South' AS region, i AS order_count, 1.00 AS avg_order_value,"
            f" CASE WHEN order_date IN (DATE '{bad[0]}', DATE '{bad[1]}') THEN {value} ELSE 3.00"
            f" END AS total_revenue FROM (SELECT 1::BIGINT AS i, DATE '{days[0]}' + n::INTEGER AS"
            " order_date FROM range(8) AS t(n))"
        )
        done = publish_days(
            published, connection, tables.DAILY_REVENUE, frame, days, only_days=only_days
        )
        _, rows, (_, failed) = state_of(connection)
    assert list(done.failed) == bad
    assert done.failed[SECOND].startswith(
        f"daily_revenue of {SECOND} was not published, the previous rows stay: "
    )
    assert says in done.failed[SECOND]
    good = [day for day in days if day not in bad]
    assert done.rows == dict.fromkeys(good, 1)
    assert rows == sorted([*((day, "South", Decimal("3.00")) for day in good), OLD[1]])
    assert [day for day, _ in failed] == bad


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([(SECOND, None, "9.00")], 'lack a value that is required.*"region":null'),
        (
            [(SECOND, "South", "9.00"), (SECOND, "South", "8.00")],
            r"share their key \(order_date, region\), for example 2026-10-06 South",
        ),
    ],
)
def test_one_bad_day_fails_alone_and_by_name_and_keeps_its_rows(published, bad, says):
    given = [(FIRST, "West", "4.00"), *bad, (THIRD, "West", "5.00")]
    done = publish(published, given, [FIRST, SECOND, THIRD])
    assert done.rows == {FIRST: 1, THIRD: 1}
    assert list(done.failed) == [SECOND]
    assert (
        f"daily_revenue of {SECOND} was not published, the previous rows stay"
        in (done.failed[SECOND])
    )
    assert read(published) == [
        (FIRST, "West", Decimal("4.00")),
        OLD[1],
        (THIRD, "West", Decimal("5.00")),
    ]
    entries, failed = ledger_of(published)
    assert [day for day, _, _ in entries] == [FIRST, SECOND, THIRD]
    assert failed == [(SECOND, done.failed[SECOND])]
    with pytest.raises(AssertionError, match="not found"):
        assert_contains(done.failed[SECOND], "never said")
    assert_contains(done.failed[SECOND], says)

    publish(published, [(SECOND, "West", "6.00")], [SECOND])
    assert ledger_of(published)[1] == []


def assert_contains(text, pattern):
    import re

    assert re.search(pattern, text), f"{pattern} not found in {text}"


def test_an_audit_fails_the_days_that_it_returns_and_says_what_it_found(published):
    def no_large_ones(staged):
        return staged.filter(nw.col("total_revenue") > 100).select("order_date", "total_revenue")

    given = [(FIRST, "West", "4.00"), (SECOND, "West", "400.00")]
    done = publish(published, given, [FIRST, SECOND], audit=no_large_ones)
    assert done.rows == {FIRST: 1}
    assert done.failed == {
        SECOND: f"daily_revenue of {SECOND} was not published, the previous rows stay:"
        " it does not add up: total_revenue 400.00."
    }
    assert read(published) == [(FIRST, "West", Decimal("4.00")), OLD[1]]


def test_a_day_that_is_not_ready_fails_with_its_reason_and_its_rows_are_left_out(published):
    given = [(FIRST, "West", "4.00"), (SECOND, "West", "5.00")]
    done = publish(published, given, [FIRST, SECOND], not_ready={SECOND: "no export"})
    assert (done.rows, done.failed) == ({FIRST: 1}, {SECOND: "no export"})
    assert read(published) == [(FIRST, "West", Decimal("4.00")), OLD[1]]
    assert ledger_of(published)[1] == [(SECOND, "no export")]


def test_the_audit_sees_what_the_rows_were_made_from_whatever_is_committed_meanwhile(lake):
    publish(lake, [(FIRST, "North", "1.00")], [FIRST])
    seen = []
    with lake.connect() as connection:
        source = connection.table("lake.daily_revenue")

        def compare(staged):
            publish(lake, [(FIRST, "North", "99.00")], [FIRST])
            seen.extend(source.project("total_revenue").fetchall())
            return staged.filter(nw.col("total_revenue") > 1).select("order_date")

        publish_days(lake, connection, tables.DAILY_REVENUE, source, [FIRST], audit=compare)
    assert seen == [(Decimal("1.00"),)]


# --- failures of the commit ---------------------------------------------------------------------


def test_a_commit_that_fails_leaves_the_previous_rows_whole(published, monkeypatch):
    def fail(connection):
        message = "the disk is full"
        raise OSError(message)

    before, entries = snapshot_of(published), ledger_of(published)
    with published.connect() as connection:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
            patch.setattr(lake_connection, "commit", fail)
            publish_days(
                published,
                connection,
                tables.DAILY_REVENUE,
                revenue([(FIRST, "West", "4.00"), (SECOND, "West", "5.00")]),
                [FIRST, SECOND],
            )
        assert rows_of(connection) == OLD
        assert (read(published), ledger_of(published)) == (OLD, entries)
        assert snapshot_of(published) == before
        publish_days(
            published,
            connection,
            tables.DAILY_REVENUE,
            revenue([(SECOND, "West", "5.00")]),
            [SECOND],
        )
    assert read(published) == [OLD[0], (SECOND, "West", Decimal("5.00"))]


def test_readers_see_all_of_a_publication_or_nothing(published, monkeypatch):
    seen = []
    real = lake_connection.commit

    def look(connection):
        seen.append(read(published))
        real(connection)

    monkeypatch.setattr(lake_connection, "commit", look)
    publish(published, [(FIRST, "West", "4.00"), (SECOND, "West", "5.00")], [FIRST, SECOND])
    assert seen == [OLD]
    assert read(published) == [
        (FIRST, "West", Decimal("4.00")),
        (SECOND, "West", Decimal("5.00")),
    ]


def test_a_publication_can_be_read_again_as_it_was(published):
    before = datetime.now(timezone.utc)
    publish(published, [(FIRST, "North", "100.00")], [FIRST])
    assert read(published, before) == OLD
