"""Notifications: what people are told of, once, and what becomes of messages on their way."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from queue import SimpleQueue
from typing import Any

import dagster as dg
import duckdb
import pytest

from retail_assets import tables
from retail_assets.defs.automation.notifications import notification_sensor
from retail_assets.errors import UsageError
from retail_assets.lake import day_ledger as days
from retail_assets.lake.connection import Lake
from retail_assets.outbound.notifications import outbox
from retail_assets.outbound.notifications.outbox import collect
from retail_assets.outbound.notifications.sending import Sent, send
from retail_assets.outbound.notifications.services import check_services, services
from retail_assets.settings import Settings, load_settings
from retail_assets_tests import processes
from retail_assets_tests.receiver import Receiver, running_receiver

pytestmark = [
    pytest.mark.filterwarnings(
        # apprise asks for a module of Python's that goes with 3.13.
        "ignore:'imghdr' is deprecated:DeprecationWarning"
    ),
    pytest.mark.processes,
]

NOW = datetime(2026, 10, 14, 12, 0, tzinfo=timezone.utc)
DAY = date(2026, 10, 12)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@dataclass
class Office:
    """A lake, and who is told of what happens there."""

    settings: Settings
    lake: Lake
    connection: duckdb.DuckDBPyConnection
    now: datetime = NOW

    def collect(self) -> int:
        return collect(self.lake, self.connection, self.settings, self.now)

    def send(self) -> Sent:
        return send(self.lake, self.connection, self.settings, self.now)

    def tell(self) -> Sent:
        """Look and send, once."""
        self.collect()
        return self.send()

    def later(self, time: timedelta = MINUTE) -> None:
        self.now += time + timedelta(seconds=1)

    def change(self, sql: str, *parameters: Any) -> None:
        with self.lake.transaction(self.connection, "a test"):
            self.connection.execute(sql, parameters)

    def fail(self, *failed: date, problem: str = "It broke.") -> None:
        with self.lake.transaction(self.connection, "a test"):
            days.mark_failed(self.connection, tables.DAILY_REVENUE, dict.fromkeys(failed, problem))

    def mend(self, *mended: date) -> None:
        with self.lake.transaction(self.connection, "a test"):
            days.forget_failures(self.connection, tables.DAILY_REVENUE, list(mended))

    def publish(self, *published: date) -> None:
        with self.lake.transaction(self.connection, "a test"):
            for table in (tables.RAW_ORDERS, tables.DAILY_REVENUE):
                days.mark_published(self.connection, table, dict.fromkeys(published, 1), {})

    def publish_late_orders(self, *published: date) -> None:
        """Publish days that have no export of their own."""
        with self.lake.transaction(self.connection, "a test"):
            days.mark_published(
                self.connection, tables.DAILY_REVENUE, dict.fromkeys(published, 1), {}
            )

    def alert(self, *orders: str, happened: datetime | None = NOW) -> None:
        """Fraud alerts about orders of a customer whose name must not go anywhere."""
        self.change(
            "INSERT INTO lake.fraud_alerts BY NAME SELECT unnest(?::VARCHAR[]) AS order_id,"
            " 'E-' || order_id AS event_id, 'CUSTOMER-7' AS customer_id, 'North' AS region,"
            " ?::TIMESTAMPTZ AS event_timestamp, DATE '2026-10-14' AS order_date,"
            " DATE '2026-10-14' AS received_date, 900 AS order_value_gbp,"
            " 'velocity,region' AS reasons, 0.875 AS rule_score, 0.875 AS score,"
            " 'CUSTOMER-7 ordered five times' AS explanation",
            *(list(orders), happened),
        )

    def worker(
        self,
        name: str,
        heartbeat: datetime,
        state: str = "running",
        sources: str = "files",
        **figures: float,
    ) -> None:
        self.change("DELETE FROM lake.stream_workers WHERE worker = ?", name)
        self.change(
            "INSERT INTO lake.stream_workers BY NAME SELECT ? AS worker, 'shop' AS host,"
            " 1 AS process_id, ? AS sources, ? AS state, ? AS figures,"
            " ?::TIMESTAMPTZ AS started_at, ?::TIMESTAMPTZ AS heartbeat_at",
            *(name, sources, state, json.dumps(figures), heartbeat, heartbeat),
        )

    def rows(self, columns: str, table: str = "notifications") -> list[tuple[Any, ...]]:
        return self.connection.execute(
            f"SELECT {columns} FROM lake.{table} ORDER BY ALL"
        ).fetchall()


@pytest.fixture
def office(settings: Settings, lake: Lake, receiver: Receiver) -> Iterator[Office]:
    settings = settings.model_copy(update={"notify_urls": (receiver.url(),), "threads": 1})
    with lake.connect() as connection:
        yield Office(settings, lake, connection)


def with_settings(office: Office, **changed: Any) -> Office:
    return Office(
        office.settings.model_copy(update=changed), office.lake, office.connection, office.now
    )


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
    office.mend(DAY)
    office.tell()
    office.tell()
    assert receiver.titles() == ["A day failed", "Resolved: A day failed"]
    assert receiver.got[-1][1]["type"] == "success"
    office.later()
    office.fail(DAY)
    office.tell()
    assert receiver.titles()[2:] == ["A day failed"]
    assert len(set(receiver.keys())) == 3


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


# --- on the way ----------------------------------------------------------------------------------


def test_a_message_is_tried_again_ever_later_and_then_abandoned_visibly(
    office: Office, receiver: Receiver
) -> None:
    office = with_settings(office, notify_attempts=3)
    receiver.answers["/hook"] = 503
    office.alert("O1")
    first = office.tell()
    assert (first.sent, first.failed, first.waiting) == (0, 1, 1)
    assert "503" in str(first.problem)
    assert office.send() == Sent(waiting=1)
    office.later()
    assert office.send().failed == 1
    office.later()
    assert office.send() == Sent(waiting=1)
    office.later()
    last = office.send()
    assert (last.failed, last.abandoned, last.waiting) == (1, 1, 0)
    office.later(timedelta(days=1))
    assert office.send() == Sent()
    assert receiver.keys() == ["fraud_alert:O1"] * 3
    ((attempts, given_up, problem),) = office.rows("attempts, given_up_at, problem")
    assert (attempts, given_up) == (3, NOW + 3 * timedelta(seconds=61))
    assert "503" in problem


def test_a_message_that_is_refused_holds_up_no_other(office: Office, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 400
    office.alert("O1")
    assert office.tell().failed == 1
    receiver.answers.clear()
    office.alert("O2")
    assert office.tell() == Sent(sent=1, waiting=1)
    office.later()
    assert office.send() == Sent(sent=1)
    assert receiver.keys() == ["fraud_alert:O1", "fraud_alert:O2", "fraud_alert:O1"]


def test_a_service_that_is_away_does_not_hold_up_another(
    office: Office, receiver: Receiver
) -> None:
    urls = (receiver.url("/away"), receiver.url("/here"))
    office = with_settings(office, notify_urls=urls)
    receiver.answers["/away"] = 500
    office.alert("O1", "O2")
    first = office.tell()
    assert (first.sent, first.failed, first.waiting) == (2, 1, 2)
    assert len(receiver.titles("/here")) == 2
    receiver.answers.clear()
    office.later()
    assert office.send() == Sent(sent=2)
    assert len(receiver.titles("/here")) == 2
    assert Counter(receiver.keys()) == {"fraud_alert:O1": 3, "fraud_alert:O2": 2}


def send_in_a_process(settings: Settings, now: datetime) -> None:
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        send(lake, connection, settings, now)


def test_a_process_killed_between_sending_and_marking_is_made_up_for_with_the_same_key(
    office: Office, receiver: Receiver
) -> None:
    office.alert("O1", "O2")
    office.collect()
    started: SimpleQueue[int] = SimpleQueue()

    def kill() -> None:
        receiver.before_answer = None
        os.kill(started.get(), signal.SIGKILL)

    receiver.before_answer = kill
    process = processes.start(send_in_a_process, office.settings, office.now)
    started.put(process.pid)
    assert processes.finish([process]) == [-signal.SIGKILL]
    assert receiver.keys() == ["fraud_alert:O1"]
    # The first not at once: it might still be on its way.
    assert office.send() == Sent(sent=1, waiting=1)
    office.later()
    assert office.send() == Sent(sent=1)
    assert receiver.keys() == ["fraud_alert:O1", "fraud_alert:O2", "fraud_alert:O1"]
    assert office.send() == Sent()


def test_a_crash_while_messages_are_written_leaves_none_and_forgets_none(
    office: Office, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    office.alert("O1")
    with monkeypatch.context() as patch:
        patch.setattr("retail_assets.lake.connection.commit", crash)
        with pytest.raises(KeyboardInterrupt):
            office.collect()
    assert office.rows("key") == []
    office.tell()
    assert receiver.keys() == ["fraud_alert:O1"]


def test_two_processes_at_once_send_each_message_once(office: Office, receiver: Receiver) -> None:
    office.alert(*(f"O{number}" for number in range(5)))
    barrier = threading.Barrier(2)

    def work() -> None:
        with office.lake.connect() as connection:
            other = Office(office.settings, office.lake, connection)
            barrier.wait()
            for _ in range(5):
                other.tell()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receiver.keys()) == [f"fraud_alert:O{number}" for number in range(5)]


def test_of_two_processes_that_look_at_once_one_writes(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = outbox._has_old

    def meanwhile(*arguments: Any) -> bool:
        monkeypatch.setattr(outbox, "_has_old", look)
        with office.lake.connect() as connection:
            assert Office(office.settings, office.lake, connection).collect() == 1
        return look(*arguments)

    office.alert("O1")
    monkeypatch.setattr(outbox, "_has_old", meanwhile)
    assert office.collect() == 0
    assert office.rows("key") == [("fraud_alert:O1",)]


def test_messages_to_a_service_that_is_gone_are_abandoned(
    office: Office, receiver: Receiver
) -> None:
    office.alert("O1")
    office.collect()
    elsewhere = with_settings(office, notify_urls=(receiver.url("/new"),))
    # Somebody who was started with these settings may still send them.
    assert elsewhere.send() == Sent(waiting=1)
    elsewhere.later(timedelta(days=1))
    assert elsewhere.send() == Sent(abandoned=1)
    assert office.rows("problem") == [("RETAIL_NOTIFY_URLS does not have this service.",)]


def test_what_is_long_over_is_forgotten_but_no_young_alert(office: Office) -> None:
    office = with_settings(office, notify_max_age_hours=24 * 365)
    office.alert("O1")
    office.fail(DAY)
    office.tell()
    office.mend(DAY)
    office.tell()
    office.later(outbox.KEPT)
    office.alert("O2", happened=office.now)
    office.tell()
    assert office.rows("key") == [("fraud_alert:O2",)]
    assert office.rows("kind, subject", "notified") == [
        ("fraud_alert", "O1"),
        ("fraud_alert", "O2"),
    ]
    office.later()
    assert office.collect() == 0


# --- secrets and settings ------------------------------------------------------------------------


def test_no_secret_of_a_url_gets_anywhere(
    office: Office, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"json://user:passw0rd@127.0.0.1:{receiver.port}/t0ken?+X-Api=k3yk3y"
    receiver.answers["/t0ken"] = 401
    office = with_settings(office, notify_urls=(url, "json://u:passw0rd@127.0.0.1:1/t0ken"))
    office.alert("O1")
    with caplog.at_level("INFO"):
        sent = office.tell()
    assert sent.failed == 2
    shown = [
        *(repr(office.settings), repr(sent), repr(services(office.settings)), caplog.text),
        *(str(row) for row in office.rows("*")),
    ]
    for secret in ("passw0rd", "t0ken", "k3yk3y"):
        assert [text for text in shown if secret in text] == []


def test_a_url_that_is_none_is_named_by_its_number(settings: Settings, receiver: Receiver) -> None:
    bad = settings.model_copy(
        update={"notify_urls": (receiver.url(), "slack://s3cret-is-no-token")}
    )
    with pytest.raises(UsageError, match=r"URL 2 of RETAIL_NOTIFY_URLS \(slack-") as raised:
        check_services(bad)
    assert "s3cret" not in str(raised.value)
    check_services(settings.model_copy(update={"notify_urls": (receiver.url(),)}))


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("", []),
        ("json://a/b", ["json://a/b"]),
        ("json://a/b?x=1,2, mailto://u:p@x.org?to=a@b.c,d@e.f", None),
        ('["json://a/,b", "form://c"]', ["json://a/,b", "form://c"]),
    ],
)
def test_urls_are_a_json_list_or_have_commas_between(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, text: str, urls: Sequence[str] | None
) -> None:
    monkeypatch.setenv("RETAIL_NOTIFY_URLS", text)
    expected = ["json://a/b?x=1,2", "mailto://u:p@x.org?to=a@b.c,d@e.f"] if urls is None else urls
    assert list(load_settings().notify_urls) == expected


def test_a_broken_list_of_urls_is_not_shown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_NOTIFY_URLS", '["json://u:passw0rd@a')
    with pytest.raises(UsageError, match="RETAIL_NOTIFY_URLS cannot be used") as raised:
        load_settings()
    assert "passw0rd" not in str(raised.value)


def test_without_a_url_nothing_is_written(office: Office) -> None:
    office.alert("O1")
    silent = with_settings(office, notify_urls=())
    assert silent.collect() == 0
    assert office.rows("key") == []


# --- the sensor ----------------------------------------------------------------------------------


def tick(settings: Settings) -> str:
    sensor = notification_sensor(settings)
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    skipped = sensor(dg.build_sensor_context())
    assert isinstance(skipped, dg.SkipReason)
    return skipped.skip_message or ""


def test_the_sensor_sends_each_message_once(office: Office, receiver: Receiver) -> None:
    office.fail(DAY)
    assert tick(office.settings) == "1 notifications sent."
    assert receiver.titles() == ["A day failed"]
    assert tick(office.settings) == "0 notifications sent."


def test_the_sensor_sends_what_a_worker_that_is_alive_does_not(
    office: Office, receiver: Receiver
) -> None:
    office.worker("without consumers", datetime.now(timezone.utc))
    office.fail(DAY)
    assert tick(office.settings) == "1 notifications sent."
    assert receiver.titles() == ["A day failed"]


def test_the_sensor_says_what_failed(office: Office, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 500
    office.fail(DAY)
    said = tick(office.settings)
    assert said.startswith("0 notifications sent; 1 failed (json-")
    assert "error=500" in said
    assert said.endswith("; 1 waiting.")


def test_the_sensor_makes_no_lake(settings: Settings) -> None:
    assert tick(settings) == "RETAIL_NOTIFY_URLS names no service."
    named = settings.model_copy(update={"notify_urls": ("json://127.0.0.1:1",)})
    assert tick(named) == "There is no lake yet."
    assert not settings.lake_dir.exists()
