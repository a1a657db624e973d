"""Any period: beside the one before or the year before, down to orders, rows, events and files."""

import csv
import io
from datetime import timedelta
from decimal import Decimal

import duckdb
import pytest

from retail_assets import tables
from retail_assets.dashboard.downloads import discard, period_rows, write_download
from retail_assets.dashboard.reading.amounts import Amount, change
from retail_assets.dashboard.reading.orders import (
    SHOWN_ORDERS,
    read_lineage,
    read_orders,
)
from retail_assets.dashboard.reading.period import (
    Question,
    choices,
    newest_days,
    read_period,
)
from retail_assets.errors import UsageError
from retail_assets.lake.connection import extension_path
from retail_assets_tests.conftest import HEADER, order_row, write_export_to
from retail_assets_tests.dashboard.rows import MONDAY, insert, published, streamed

TUESDAY = MONDAY - timedelta(days=6)


def answer(lake, question):
    with lake.connect(read_only=True) as connection:
        return read_period(connection, question)


@pytest.fixture
def shop(lake):
    published(
        lake,
        (MONDAY, "09:00", "North", "30.00"),
        (MONDAY, "09:00", "South", "10.00"),
        (TUESDAY, "09:00", "North", "20.00"),
        (TUESDAY - timedelta(days=7), "09:00", "North", "40.00"),
        (MONDAY - timedelta(weeks=52), "09:00", "South", "5.00"),
    )
    return lake


def test_a_period_adds_up_by_day_region_and_category_beside_the_one_before(shop):
    found = answer(shop, Question(TUESDAY, MONDAY))
    assert found.total.amount == Amount(Decimal("60.00"), 3)
    assert found.total.before == Amount(Decimal("40.00"), 1)
    assert found.total.change == 0.5
    assert {name: figure.amount.revenue for name, figure in found.regions.items()} == {
        "North": Decimal("50.00"),
        "South": Decimal("10.00"),
    }
    assert found.cells["North", "Kitchen"].before == Amount(Decimal("40.00"), 1)
    assert [(day, source) for day, source, _ in found.days][::6] == [
        (TUESDAY, "batch"),
        (MONDAY, "batch"),
    ]
    assert sum((figure.amount for _, _, figure in found.days), Amount()) == found.total.amount
    assert found.days[0][2].before == Amount(Decimal("40.00"), 1)


def test_the_year_before_begins_on_the_same_weekday(shop):
    question = Question(MONDAY, MONDAY, compare="year")
    assert question.before.first.weekday() == MONDAY.weekday()
    assert answer(shop, question).total.before == Amount(Decimal("5.00"), 1)
    assert answer(shop, Question(MONDAY, MONDAY, compare="none")).total.before is None


def test_chosen_regions_and_categories_narrow_all_of_it(shop):
    streamed(shop, (MONDAY - timedelta(days=1), "09:00", "North", "1.00"))
    insert(
        shop,
        tables.LIVE_REVENUE_BY_CATEGORY,
        *(
            {
                "order_date": MONDAY - timedelta(days=1),
                "region": "North",
                "product_category": category,
                "total_revenue": value,
            }
            for category, value in (("Kitchen", "0.25"), ("Lighting", "0.75"))
        ),
    )
    found = answer(shop, Question(TUESDAY, MONDAY, ("North",), ("Kitchen",)))
    assert found.total.amount.revenue == Decimal("50.25")
    assert set(found.regions) == {"North"}
    assert set(found.categories) == {"Kitchen"}
    with shop.connect(read_only=True) as connection:
        assert choices(connection, found.question) == {
            "regions": ["North", "South"],
            "categories": ["Kitchen", "Lighting"],
        }
        assert newest_days(connection, MONDAY + timedelta(days=9)).last == MONDAY


def test_a_link_says_all_of_a_question_whatever_regions_are_called():
    from urllib.parse import parse_qs

    question = Question(TUESDAY, MONDAY, ("North & 'South'", "a=b;c"), ("<b>",), "year")
    assert Question.from_link(parse_qs(question.link), Question(MONDAY, MONDAY)) == question
    assert Question.from_link({}, question) == Question(TUESDAY, MONDAY, (), (), "year")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"from": ["yesterday"]}, "no day such as"),
        ({"from": ["2026-12-01"], "to": ["2026-11-30"]}, "swap them"),
        ({"from": ["1926-12-01"]}, "at most"),
        ({"from": ["0001-01-01"], "to": ["0001-01-02"]}, "not a day of the years"),
        ({"compare": ["moon"]}, "none of period"),
    ],
)
def test_a_link_that_makes_no_sense_is_refused_in_a_sentence(values, says):
    with pytest.raises(UsageError, match=says):
        Question.from_link(values, Question(MONDAY, MONDAY))


def test_a_name_of_a_region_is_never_sql(shop):
    hostile = "x') UNION SELECT 1 --"
    found = answer(shop, Question(TUESDAY, MONDAY, (hostile,), (hostile,)))
    assert found.total.amount == Amount()


def test_a_change_from_nothing_or_from_refunds_is_no_nonsense():
    assert change(Decimal(5), Decimal(0)) is None
    assert change(Decimal(5), None) is None
    assert change(Decimal(0), Decimal(-10)) == 1.0


# Orders, and where they come from


def test_orders_of_a_published_day_come_in_pages_with_those_that_do_not_count(lake, settings):
    published(lake, *((MONDAY, "09:00", "North", "1.00") for _ in range(SHOWN_ORDERS + 1)))
    raw = {"order_date": MONDAY, "export_date": MONDAY, "region": "North", "order_value_gbp": "7"}
    later = MONDAY + timedelta(days=1)
    insert(
        lake,
        tables.RAW_ORDERS,
        {**raw, "order_id": "O1", "status": "cancelled"},
        {**raw, "order_id": "O2", "status": "completed", "row_number": 2},
        {**raw, "order_id": "O2", "status": "returned", "export_date": later},
    )
    insert(lake, tables.REJECTED_ORDERS, {"reason": "missing_value", "raw_text": "C-secret"})
    with lake.connect(read_only=True) as connection:
        first = read_orders(connection, settings, MONDAY)
        second = read_orders(connection, settings, MONDAY, "North", "Kitchen", page=1)
        unmasked = read_orders(connection, settings, MONDAY, unmasked=True)
    assert (len(first.lines), first.more, len(second.lines), second.more) == (100, True, 1, False)
    assert [(each.order_id, each.why) for each in first.excluded] == [
        ("O1", "cancelled"),
        ("O2", "returned"),
    ]
    (rejected,) = first.rejected
    assert unmasked.rejected[0].text == "C-secret"
    assert (rejected.text, rejected.rule[:16]) == (tables.MASKED, "A required field")


def test_orders_of_the_stream_have_their_lines(lake, settings):
    streamed(lake, (MONDAY, "09:00", "North", "10.00"))
    order = {"status": "completed", "region": "North"}
    insert(
        lake,
        tables.LIVE_ORDERS,
        {**order, "order_id": "A", "order_value_gbp": "3", "product_category": "Kitchen"},
        {**order, "order_id": "B", "order_value_gbp": "7"},
        {**order, "order_id": "C", "status": "cancelled", "product_category": "Kitchen"},
    )
    line = {**order, "order_id": "B", "product_category": "Lighting"}
    insert(
        lake,
        tables.LIVE_ORDER_LINES,
        {**line, "line_number": 1, "order_value_gbp": "5"},
        {**line, "line_number": 2, "order_value_gbp": "2"},
    )
    with lake.connect(read_only=True) as connection:
        found = read_orders(connection, settings, MONDAY)
        lighting = read_orders(connection, settings, MONDAY, "North", "Lighting")
    assert found.source == "stream"
    assert [(each.order_id, each.line_number, each.value_gbp) for each in found.lines] == [
        ("A", None, Decimal(3)),
        ("B", 1, Decimal(5)),
        ("B", 2, Decimal(2)),
    ]
    assert len(lighting.lines) == 2
    assert [each.order_id for each in found.excluded] == ["C"]


def test_an_order_leads_to_its_line_of_the_export_and_of_the_event_file(lake, settings):
    good = order_row("O2", MONDAY)
    text = "\n".join([HEADER, order_row("O1", MONDAY), "too,few", "", good, ""])
    write_export_to(settings.exports_dir, MONDAY, text)
    name = f"orders_{MONDAY:%Y_%m_%d}.csv"
    insert(lake, tables.REJECTED_ORDERS, {"reason": "malformed_row", "row_number": 3})
    insert(
        lake,
        tables.RAW_ORDERS,
        {"order_id": "O2", "row_number": 2, "source_file": name},
        {"order_id": "O3", "row_number": 1, "source_file": name},
    )
    where = {"source": "file", "source_name": "a.jsonl", "position": 17, "version": 2}
    insert(lake, tables.ENRICHED_EVENTS, {"order_id": "O2", "event_id": "E1", **where})
    insert(lake, tables.RAW_EVENTS, {"event_id": "E1", "payload": "{secret}", **where})
    with lake.connect(read_only=True) as connection:
        found = read_lineage(connection, settings, "O2", MONDAY)
        shown = read_lineage(connection, settings, "O2", MONDAY, unmasked=True)
        other = read_lineage(connection, settings, "O3", MONDAY)
    assert [(row.source_file, row.line, row.counts) for row in found.rows] == [(name, 5, True)]
    assert [(event.origin, event.payload) for event in found.events] == [
        ("a.jsonl, line 17, version 2", tables.MASKED)
    ]
    assert shown.events[0].payload == "{secret}"
    # The row has another order now: the file was replaced since.
    assert other.rows[0].line is None


# Downloads


def test_a_csv_download_is_safe_for_spreadsheets_and_leaves_nothing_behind(lake, settings):
    published(lake, (MONDAY, "09:00", "=cmd()", "10.00"))
    query = period_rows(Question(MONDAY, MONDAY))
    written = write_download(settings, query, "revenue", "csv")
    rows = list(csv.DictReader(io.StringIO(written.path.read_text())))
    assert [(row["region"], row["total_revenue"]) for row in rows] == [("'=cmd()", "10.00")]
    discard(written.path)
    assert not written.path.parent.exists()


def test_an_excel_download_has_numbers(lake, settings):
    published(lake, (MONDAY, "09:00", "North", "10.00"))
    written = write_download(settings, period_rows(Question(MONDAY, MONDAY)), "revenue", "xlsx")
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension_path('excel')}'")
        rows = connection.execute(f"SELECT total_revenue FROM read_xlsx('{written.path}')")
        assert rows.fetchall() == [(10.0,)]
    discard(written.path)


def test_another_ending_is_refused(settings):
    with pytest.raises(UsageError, match="none of csv, xlsx"):
        write_download(settings, "SELECT 1", "revenue", "exe")
