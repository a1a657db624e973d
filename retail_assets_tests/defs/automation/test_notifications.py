"""Notifications: what people are told of, once, and in how many messages."""

import json
from datetime import datetime, timedelta, timezone

import pytest

from retail_assets.outbound.notifications.sending import Sent
from retail_assets_tests.defs.automation.offices import DAY, MINUTE, NOW, Office, with_settings
from retail_assets_tests.receiver import Receiver

pytestmark = [
    pytest.mark.filterwarnings(
        # apprise asks for a module of Python's that goes with 3.13.
        "ignore:'imghdr' is deprecated:DeprecationWarning"
    ),
    pytest.mark.processes,
]


# --- what people are told of ---------------------------------------------------------------------


def test_an_alert_is_told_once_and_names_no_customer(office: Office, receiver: Receiver) -> None:
    office.alert("O1")
    assert office.tell() == Sent(sent=1)
    assert office.tell() == Sent()
    ((_, payload, header),) = receiver.got
    assert payload["title"] == "Fraud alert"
    assert payload["message"] == (
        "order O1, order value 900.00, region North, score 0.88, reasons velocity,region"
        "\n\nReference: fraud_alert:O1"
    )
    assert payload["type"] == "warning"
    assert payload["idempotency_key"] == header == "fraud_alert:O1"
    assert "CUSTOMER" not in json.dumps(payload)


def test_low_stock_is_told_by_product(office: Office, receiver: Receiver) -> None:
    for number, crossed in enumerate((NOW, NOW - timedelta(hours=25))):
        office.change(
            "INSERT INTO lake.stock_alerts BY NAME SELECT ? AS event_id, ? AS product_id, 'O1' AS"
            " order_id, ?::TIMESTAMPTZ AS crossed_at, 9 AS stock, now() AS updated_at",
            *(f"E{number}", f"P{number}", crossed),
        )
    office.tell()
    office.tell()
    assert receiver.titles() == ["Low stock"]
    assert receiver.texts()[0].startswith("product P0, stock 9, order O1\n")


def test_low_stock_is_told_for_each_line_of_an_order(office: Office, receiver: Receiver) -> None:
    office.change(
        "INSERT INTO lake.stock_alerts BY NAME SELECT 'E1' AS event_id, unnest([1, 2])"
        " AS line_number, unnest(['P1', 'P2']) AS product_id, 'O1' AS order_id,"
        " ?::TIMESTAMPTZ AS crossed_at, 9 AS stock, now() AS updated_at",
        NOW,
    )
    office.tell()
    office.tell()
    assert [text.split(",")[0] for text in receiver.texts()] == ["product P1", "product P2"]


def test_an_alert_that_is_computed_again_is_not_told_again(
    office: Office, receiver: Receiver
) -> None:
    office.alert("O1", "O2")
    office.tell()
    office.change("DELETE FROM lake.fraud_alerts")
    office.tell()
    office.alert("O1", "O2")
    office.later()
    office.tell()
    assert receiver.titles() == ["Fraud alert", "Fraud alert"]


def test_a_long_history_is_not_told(office: Office, receiver: Receiver) -> None:
    old = NOW - timedelta(hours=25)
    office.alert(*(f"O{number}" for number in range(1_000)), happened=old)
    office.alert("young", happened=NOW - timedelta(hours=23))
    assert office.collect() == 1
    office.send()
    assert ["young" in text for text in receiver.texts()] == [True]


def test_an_alert_without_a_time_ages_from_the_end_of_its_business_day(office: Office) -> None:
    office.alert("O1", happened=None)
    # The business day ends at 23:00 UTC in summer.
    office.now = datetime(2026, 10, 15, 23, 1, tzinfo=timezone.utc)
    assert office.collect() == 0
    office.now = datetime(2026, 10, 15, 22, 59, tzinfo=timezone.utc)
    assert office.collect() == 1


def test_a_failed_day_is_told_once_per_failure_and_so_is_its_end(
    office: Office, receiver: Receiver
) -> None:
    for problem in ("It broke.", "It broke again."):
        office.fail(DAY, problem=problem)
        office.tell()
        office.tell()
    assert receiver.titles() == ["A day failed"]
    assert "daily_revenue of 2026-10-12: It broke." in receiver.texts()[0]
    office.recover(DAY)
    office.tell()
    office.tell()
    assert receiver.titles() == ["A day failed", "Resolved: A day failed"]
    assert receiver.got[-1][1]["type"] == "success"
    office.later()
    office.fail(DAY)
    office.tell()
    assert receiver.titles()[2:] == ["A day failed"]
    assert len(set(receiver.keys())) == 3


def test_a_day_that_fails_in_two_tables_is_one_failure(office: Office, receiver: Receiver) -> None:
    office.fail(DAY)
    office.change(
        "INSERT INTO lake.failed_days"
        " SELECT * REPLACE ('raw_orders' AS table_name) FROM lake.failed_days"
    )
    office.tell()
    assert receiver.titles() == ["A day failed"]
    assert f"daily_revenue and raw_orders of {DAY}: " in receiver.texts()[0]


def test_many_failed_days_are_one_message(office: Office, receiver: Receiver) -> None:
    office.fail(*(DAY + timedelta(days=number) for number in range(100)))
    office.tell()
    assert receiver.titles() == ["100 failed days"]
    assert "… and 80 more." in receiver.texts()[0]


def test_a_file_that_cannot_be_read_is_told(office: Office, receiver: Receiver) -> None:
    office.change(
        "INSERT INTO lake.failed_event_files VALUES ('a.jsonl.gz', 1, 1, 'It is cut off.', 1,"
        " now())"
    )
    office.tell()
    assert receiver.titles() == ["An event file cannot be read"]
    assert "a.jsonl.gz: It is cut off." in receiver.texts()[0]


def test_a_mart_that_has_failed_for_some_minutes_is_told(
    office: Office, receiver: Receiver
) -> None:
    office.change(
        "INSERT INTO lake.failed_marts VALUES ('mart_tables', 'It is away.',"
        f" TIMESTAMPTZ '{NOW}', TIMESTAMPTZ '{NOW}')"
    )
    office.tell()
    assert receiver.titles() == []
    office.now = NOW + 5 * MINUTE
    office.tell()
    assert receiver.titles() == ["A mart cannot be published"]
    assert "mart_tables: It is away." in receiver.texts()[0]


def test_a_dead_worker_is_told_until_one_is_alive(office: Office, receiver: Receiver) -> None:
    office.worker("W1", NOW - timedelta(seconds=59))
    office.tell()
    assert receiver.titles() == []
    office.now = NOW + timedelta(seconds=2)
    office.tell()
    assert receiver.titles() == ["The stream worker is dead"]
    assert "W1 on shop was last seen at 2026-10-14 12:59:01 BST" in receiver.texts()[0]
    office.worker("W2", office.now)
    office.tell()
    assert receiver.titles()[1:] == ["Resolved: The stream worker is dead"]


def test_a_worker_that_was_stopped_is_not_dead(office: Office) -> None:
    office.worker("W1", NOW - timedelta(days=3))
    office.worker("W2", NOW - timedelta(days=2), state="stopped")
    assert office.collect() == 0


def test_a_source_whose_worker_is_dead_is_told_though_another_one_is_alive(
    office: Office, receiver: Receiver
) -> None:
    office.worker("W1", NOW - timedelta(seconds=61), sources="kafka")
    office.worker("W2", NOW)
    office.tell()
    assert receiver.titles() == ["The stream worker is dead"]
    assert "W1 on shop" in receiver.texts()[0]
    # Nobody wants that source any more.
    office.later(timedelta(days=1))
    office.worker("W2", office.now)
    office.tell()
    assert receiver.titles()[1:] == ["Resolved: The stream worker is dead"]


def test_workers_that_do_not_keep_up_are_told_until_they_do(
    office: Office, receiver: Receiver
) -> None:
    late = {"fraud_lag_seconds": 61}
    office.worker("W1", NOW, late_seconds=299, **late)
    office.worker("W2", NOW, sources="kafka, webhook", late_seconds=299, **late)
    office.tell()
    assert receiver.titles() == []
    office.worker("W1", NOW, late_seconds=301, **late)
    office.worker("W2", NOW, sources="kafka, webhook", late_seconds=900, **late)
    office.change("UPDATE lake.stream_workers SET problem = 'no broker' WHERE worker = 'W2'")
    office.tell()
    assert receiver.titles() == ["2 lagging stream workers"]
    said = set(receiver.texts()[0].splitlines())
    assert any(
        "W1 on shop has not kept up for 5 minutes: events, or consumers" in line for line in said
    )
    assert any("W2 on shop has not kept up for 15 minutes: no broker" in line for line in said)
    office.worker("W1", NOW, late_seconds=0)
    # Others take what W2 does not keep up with.
    office.worker("W3", NOW, sources="kafka")
    office.worker("W4", NOW, sources="webhook")
    office.tell()
    assert receiver.titles()[1:] == ["2 resolved lagging stream workers"]


def test_a_day_that_is_not_published_in_time_is_told_until_it_is(
    office: Office, receiver: Receiver
) -> None:
    office.publish(DAY)
    office.now = datetime(2026, 10, 14, 7, 59, tzinfo=timezone.utc)  # 8:59 in London
    assert office.collect() == 0
    office.now = datetime(2026, 10, 14, 8, 1, tzinfo=timezone.utc)
    office.tell()
    assert receiver.titles() == ["A day is not published"]
    assert "daily_revenue of 2026-10-13" in receiver.texts()[0]
    # After midnight another day is yesterday: this one is still missing.
    office.now = datetime(2026, 10, 15, 1, 0, tzinfo=timezone.utc)
    assert office.collect() == 0
    office.publish_late_orders(DAY + timedelta(days=1))
    assert office.collect() == 0, "its own export is missing still"
    office.publish(DAY + timedelta(days=1))
    office.tell()
    assert receiver.titles()[1:] == ["Resolved: A day is not published"]


def test_where_no_day_was_ever_published_none_is_missing(office: Office) -> None:
    assert office.collect() == 0


def test_events_that_stop_coming_are_told_if_asked_for(office: Office, receiver: Receiver) -> None:
    asked = with_settings(office, notify_event_age_minutes=10)
    assert asked.collect() == 0
    office.change(
        "INSERT INTO lake.stream_offsets VALUES ('source', 'kafka', 't:0', 1, 1, 1, 0, 0, ?, NULL)",
        NOW - timedelta(minutes=11),
    )
    assert office.collect() == 0
    asked.tell()
    assert receiver.titles() == ["No events come in"]


# --- how many ------------------------------------------------------------------------------------


def test_what_is_above_the_limit_shares_a_message(office: Office, receiver: Receiver) -> None:
    office = with_settings(office, notify_per_minute=3)
    office.alert(*(f"O{number:02}" for number in range(30)))
    assert office.tell().sent == 3
    assert receiver.titles() == ["Fraud alert", "Fraud alert", "28 more alerts: 28 fraud alerts"]
    text = receiver.texts()[2]
    assert all(f"order O{number:02}," in text for number in range(2, 22))
    assert "… and 8 more." in text
    office.alert("later")
    assert office.tell() == Sent()
    office.later()
    assert office.tell().sent == 1
    assert "order later" in receiver.texts()[3]


def test_after_an_outage_no_more_are_sent_in_a_minute_than_allowed(
    office: Office, receiver: Receiver
) -> None:
    office = with_settings(office, notify_per_minute=2)
    for number in range(3):
        office.alert(f"A{number}", f"B{number}", happened=office.now)
        office.collect()
        office.later()
    assert [office.send().sent, office.send().sent] == [2, 0]
    office.later()
    assert office.send() == Sent(sent=2, waiting=2)
    office.later()
    assert office.send() == Sent(sent=2)
    assert len(set(receiver.keys())) == 6
