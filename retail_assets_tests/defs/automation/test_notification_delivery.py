"""Messages on their way: tried again, abandoned, and each sent once."""

import os
import signal
import threading
from collections import Counter
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import Any

import pytest

from retail_assets.lake.connection import Lake
from retail_assets.outbound.notifications import outbox
from retail_assets.outbound.notifications.sending import Sent, send
from retail_assets.settings import Settings
from retail_assets_tests import processes
from retail_assets_tests.defs.automation.offices import DAY, NOW, Office, with_settings
from retail_assets_tests.receiver import Receiver

pytestmark = [
    pytest.mark.filterwarnings(
        # apprise asks for a module of Python's that goes with 3.13.
        "ignore:'imghdr' is deprecated:DeprecationWarning"
    ),
    pytest.mark.processes,
]


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
    office.recover(DAY)
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
