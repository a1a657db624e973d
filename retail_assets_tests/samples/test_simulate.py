"""A simulated shop: events of known customers and products, some late, some bad, and a ring."""

import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from retail_assets.consumers.framework import consume
from retail_assets.consumers.fraud.consumer import consumer as fraud
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.samples.destinations import to_files, to_webhook
from retail_assets.samples.simulate import RING_CARDS, Shop, course, simulate
from retail_assets_tests.event_files import EventLoader
from retail_assets_tests.platform import write_reference
from tools.ports import free_port

ZONE = ZoneInfo("Europe/London")
NOW = datetime(2026, 10, 12, 12, 30, tzinfo=ZONE)
LINES = 240


@pytest.fixture
def shop(settings) -> Shop:
    write_reference(settings)
    return Shop(settings.reference_dir, ZONE, seed=1)


def test_its_events_are_ingested_and_the_bad_ones_are_dead_letters(shop, settings, lake):
    with EventLoader.open(settings) as loader:
        path = settings.data_dir / "events" / "2026-10-12" / "a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(
            "".join(f"{line}\n" for line in (*shop.lines(LINES, NOW), *shop.ring(NOW))).encode(
                errors="surrogateescape"
            )
        )
        (result,) = loader.ingest().files.values()
        assert (result.dead_lettered, result.duplicate) == (3, 2)
        assert result.accepted == LINES + RING_CARDS - 5
        consume(lake, loader.connection, fraud(settings))
        alerts = loader.connection.execute(
            "SELECT count(*) FROM lake.fraud_alerts WHERE contains(reasons, 'cards')"
        ).fetchall()
    assert alerts != [(0,)]


def test_late_events_happened_up_to_three_quarters_of_an_hour_ago(shop):
    events = [json.loads(line) for line in shop.ring(NOW) + shop.lines(50, NOW)[1:]]
    ages = [NOW - datetime.fromisoformat(each["event_timestamp"]) for each in events]
    assert sum(age > timedelta(0) for age in ages) in (1, 2)
    assert max(ages) < timedelta(minutes=45)


def test_the_day_is_busy_at_noon_and_quiet_at_night():
    assert course(12.5) > 5 * course(3)
    assert 0.9 < sum(course(hour / 4) for hour in range(96)) / 96 < 1.1


def test_it_sends_at_its_rate_until_the_time_is_over(shop, settings):
    send = to_files(settings.events_location, ZONE)
    sent = simulate(shop, send, rate=40, zone=ZONE, seconds=1, steady=True)
    files = sorted((settings.data_dir / "events").rglob("*"))
    lines = [line for file in files if file.is_file() for line in file.read_bytes().splitlines()]
    assert len(lines) == sent == 40
    assert {file.suffix for file in files if file.is_file()} == {".jsonl"}


def test_a_shop_without_customers_says_how_to_get_some(settings):
    with pytest.raises(UsageError, match="retail-assets generate"):
        Shop(settings.reference_dir, ZONE, seed=1)


def test_a_webhook_that_does_not_listen_is_one_sentence(shop):
    send = to_webhook(f"http://127.0.0.1:{free_port()}/events", "secret")
    with pytest.raises(RetailAssetsError, match="cannot be reached"):
        send(["{}"])
    with pytest.raises(UsageError, match="RETAIL_WEBHOOK_TOKEN"):
        to_webhook("http://127.0.0.1:1/events", None)
