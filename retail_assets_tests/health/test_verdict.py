"""One verdict on the platform: the gravest issue first, in a sentence that says what to do."""

from datetime import timedelta

from retail_assets import business_days, tables
from retail_assets.health.verdict import Issue, Level, verdict
from retail_assets_tests.dashboard.rows import MONDAY, NOW, insert

PROBLEM = "orders_2026_11_21.csv lacks the column region: export it again"


def of(lake, settings, *more):
    with lake.connect(read_only=True) as connection:
        return verdict(connection, settings, NOW, more)


def test_an_empty_lake_has_not_failed(lake, settings):
    found = of(lake, settings)
    assert found.level is Level.well
    assert found.sentence == "Nothing has failed; no orders and no events have come yet."


def test_all_is_fresh_where_yesterday_is_published(lake, settings):
    day = business_days.last_complete_day(settings)
    insert(lake, tables.PUBLISHED_DAYS, {"table_name": "daily_revenue", "day": day})
    insert(lake, tables.EVENT_FILES, {"ingested_at": NOW - timedelta(seconds=3)})
    assert of(lake, settings).sentence == (
        f"Everything is fresh: revenue is published up to {day}, the newest events came 3 s ago."
    )


def test_a_day_that_failed_in_three_tables_is_one_failure_before_all_warnings(lake, settings):
    day = MONDAY - timedelta(days=9)
    insert(
        lake,
        tables.FAILED_DAYS,
        *(
            {"table_name": name, "day": day, "problem": problem}
            for name, problem in (
                ("raw_orders", PROBLEM),
                ("completed_orders", "raw_orders of the day failed"),
                ("daily_revenue", "completed_orders of the day failed"),
            )
        ),
    )
    insert(lake, tables.CONSUMER_DEAD_LETTERS, {"consumer": "inventory", "problem": "too large"})
    found = of(lake, settings, Issue(Level.warning, "waiting", "A file waits."))
    assert found.level is Level.failure
    assert found.sentence == f"{day} failed: {PROBLEM} (2 more below)"
    assert [issue.level.name for issue in found.issues] == ["failure", "warning", "warning"]
    assert "consumers rewind inventory" in found.issues[1].text


def test_a_worker_that_is_gone_is_a_failure_that_says_what_to_do(lake, settings):
    insert(
        lake,
        tables.STREAM_WORKERS,
        {
            "state": "running",
            "sources": "files",
            "figures": "{}",
            "heartbeat_at": NOW - timedelta(minutes=9),
        },
    )
    assert "Start it again" in of(lake, settings).sentence
