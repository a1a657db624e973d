"""The sensor that sends notifications, its settings and its secrets."""

from collections.abc import Sequence
from datetime import datetime, timezone

import dagster as dg
import pytest

from retail_assets.defs.automation.notifications import notification_sensor
from retail_assets.errors import UsageError
from retail_assets.outbound.notifications.services import check_services, services
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.defs.automation.offices import DAY, Office, with_settings
from retail_assets_tests.receiver import Receiver

pytestmark = [
    pytest.mark.filterwarnings(
        # apprise asks for a module of Python's that goes with 3.13.
        "ignore:'imghdr' is deprecated:DeprecationWarning"
    ),
    pytest.mark.processes,
]


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
