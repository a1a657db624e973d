"""What is shown: numbers as people read them, and outside text as nothing but text."""

from datetime import timedelta
from decimal import Decimal

import pytest

from retail_assets.dashboard import charts, render
from retail_assets.dashboard.reading.events import EventsOfDay, FeedEvent
from retail_assets.dashboard.reading.today import read_revenue
from retail_assets_tests.dashboard.rows import MONDAY, NOW, published, week_before

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x1b[31m"


def test_no_text_from_outside_is_markup_or_turns_the_text_around(settings):
    event = FeedEvent(NOW, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, Decimal(1), HOSTILE)
    events = EventsOfDay(1, 0, [event], [], [], 0)
    shown = render.Renderer(settings).macro("today", "feed", {"events": events, "day": MONDAY})
    assert "<script" not in shown
    assert not set(shown) & {"\u202e", "\x1b"}
    assert shown.count("&lt;script&gt;") == 6
    assert 'href="/order?id=%3Cscript%3E' in shown


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (render.money(Decimal("-1234.5")), "\u2212£1,234.50"),
        (render.money(None), "\u2013"),
        (render.delta(0.1234), '<span class="delta up">▲ +12.3 %</span> '),
        (render.delta(-0.5, "than"), '<span class="delta down">▼ \u221250.0 %</span> than'),
        (render.delta(0.0001), '<span class="delta same">= 0.0 %</span> '),
        (render.delta(None), '<span class="delta same">\u2013</span> '),
        (render.minute(5 * 60 + 7), "05:07"),
        (render.day(MONDAY), "Mon 30 Nov 2026"),
        (render.seconds(0.26), "0.3 s"),
        (render.seconds(7300), "2 h"),
        (render.seconds(1e6), "12 days"),
        (render.size(1_500_000), "2 MB"),
    ],
)
def test_numbers_are_shown_as_people_read_them(shown, text):
    assert str(shown) == text


def test_times_are_those_of_the_business(settings):
    renderer = render.Renderer(settings.model_copy(update={"timezone": "Asia/Tokyo"}))
    assert renderer.moment(NOW) == "Mon 30 Nov 2026 19:00:00"
    # The wall clock's own time stays.
    assert renderer.clock(NOW.replace(tzinfo=None)) == "10:00:00"


def test_the_chart_of_the_day_ends_now_and_has_the_band_of_earlier_weeks(lake, settings):
    published(
        lake,
        (MONDAY, "09:00", "North", "10.00"),
        (week_before(1), "08:00", "North", "5.00"),
        (week_before(2), "08:00", "North", "15.00"),
    )
    with lake.connect(read_only=True) as connection:
        found = read_revenue(connection, settings, NOW + timedelta(minutes=5))
    options = charts.course(found)
    series = {each["name"]: each["data"] for each in options["series"]}
    assert len(options["xAxis"]["data"]) == len(series["usual"]) == 144
    assert series["this day"][-1] == 10.0
    assert len(series["this day"]) == 61  # until 10:10
    assert series["least of earlier weeks"][48] == 5.0
    assert series["range of earlier weeks"][48] == 10.0
    assert series["usual"][48] == 10.0
    hours = charts.course_points(found)
    assert hours[8] == ("09:00", Decimal(0), Decimal(5), Decimal(10))
    assert hours[-1] == ("24:00", None, Decimal(5), Decimal(10))
