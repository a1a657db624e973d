"""Secrets that are planted in the settings are found in nothing that the platform writes."""

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from retail_assets import secrets, tables
from retail_assets.errors import RetailAssetsError
from retail_assets.lake.connection import Lake
from retail_assets.secrets import MASK, mask, protect
from retail_assets.settings import Settings
from retail_assets_tests.event_files import event, write_events
from tools.ports import free_port


@pytest.fixture(autouse=True)
def unprotected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `protect` changes is as it was before, afterwards."""
    for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    for where, name in (
        (secrets, "_known"),
        (sys, "excepthook"),
        (secrets.threading, "excepthook"),
    ):
        monkeypatch.setattr(where, name, getattr(where, name))
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def with_secret(secret: str) -> list[Settings]:
    """Settings with a secret in each place that may have one."""
    return [
        Settings(webhook_token=SecretStr(secret)),
        Settings(kafka_options={"sasl.password": secret}),
        Settings(
            kafka_options={
                "sasl.jaas.config": f"a.B required username=u password={quoted(secret)};"
            }
        ),
        Settings(notify_urls=(f"mailto://me:{quote(secret, safe='')}@example.com",)),
        Settings(notify_urls=(f"json://example.com/hook?key={quote(secret, safe='')}",)),
        Settings(lake_catalog=f"postgres:host=db user=me password={quoted(secret)} dbname=lake"),
        Settings(lake_catalog=f"postgres:postgresql://me:{quote(secret, safe='')}@db/lake"),
    ]


TEXTS = st.text(st.sampled_from("abcXYZ0189'\"\\/@:%& ;$#ü{}"), min_size=6, max_size=20).filter(
    lambda text: text == text.strip() and len(set(text)) > 4
)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
@example('it\'s a "secret" %41/\\@')
def test_no_log_error_or_traceback_has_a_secret(
    caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    spellings = {secret, quote(secret, safe=""), secret.replace("'", "''"), json.dumps(secret)}
    for settings in with_secret(secret):
        protect(settings)
        for spelling in spellings:
            caplog.clear()
            logger = logging.getLogger("retail_assets.test")
            logger.error("with %s and %d", spelling, 5)
            logger.error("in it: " + spelling)  # noqa: G003
            logger.error("%s", ValueError(spelling))
            try:
                raise ValueError(spelling)  # noqa: TRY301
            except ValueError:
                logger.exception("failed")
            assert secret not in caplog.text
            assert spelling.strip('"') not in caplog.text
            assert secret not in str(RetailAssetsError(f"It is {spelling}, mend it."))
            assert "mend it." in str(RetailAssetsError(f"It is {spelling}, mend it."))
        assert mask(mask(f"x {secret} y")) == mask(f"x {secret} y") == f"x {MASK} y"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("host=db password=s3cret port=1", f"host=db password={MASK} port=1"),
        ("host=db password='s3 \\'cret' port=1", f"host=db password={MASK} port=1"),
        ("postgresql://me:s3cret@db/lake", f"postgresql://me:{MASK}@db/lake"),
        ('{"sasl.password": "s3cret", "a": 1}', f'{{"sasl.password": {MASK}, "a": 1}}'),
        ("{'password': 's3cret'}", f"{{'password': {MASK}}}"),
        ("Authorization: Bearer abc0123456789", f"Authorization: Bearer {MASK}"),
        ("https://example.com/hook?token=s3cret&a=1", f"https://example.com/hook?token={MASK}&a=1"),
        # Words alone are none.
        ("the password of the user", "the password of the user"),
        ("Basic authentication, bearer of news", "Basic authentication, bearer of news"),
        ("http://127.0.0.1:3000/runs", "http://127.0.0.1:3000/runs"),
    ],
)
def test_what_looks_like_a_password_is_masked_though_nobody_knows_it(
    text: str, masked: str
) -> None:
    assert mask(text) == masked


def test_arguments_stay_apart_for_those_who_format_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    protect(Settings(webhook_token=SecretStr("s3cret-token")))
    logging.getLogger("x").error('%s - "%s %s" %d', "127.0.0.1", "GET", "/?t=s3cret-token", 200)
    [record] = caplog.records
    assert record.args == ("127.0.0.1", "GET", f"/?t={MASK}", 200)


def test_uncaught_errors_are_printed_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    protect(Settings(webhook_token=SecretStr("s3cret-token")))
    error = ValueError("It is s3cret-token.")
    sys.excepthook(ValueError, error, None)
    threading.excepthook(threading.ExceptHookArgs((ValueError, error, None, None)))
    assert capsys.readouterr().err == f"ValueError: It is {MASK}.\n" * 2


PLANTED = {
    "webhook": "Pl4nted-webhook-token",
    "kafka": "Pl4nted'kafka password",
    "notify": "Pl4ntedNotifyKey",
    "basic": "Pl4nted%basic",
    "aws": "Pl4ntedAwsSecret/key",
    "session": "Pl4ntedSessionToken",
}


LIBRARY = """
import logging, os, threading, time

from retail_assets.outbound import kafka
from retail_assets.worker.sources.kafka import client

# No broker will answer: a short wait shows as much as a long one.
kafka.CONNECT_SECONDS = client.ANSWER_SECONDS = 0.5

def connect():
    while not logging.getLogger().handlers:
        time.sleep(0.05)
    logging.getLogger("library").warning("Connecting with %s", dict(os.environ))

threading.Thread(target=connect, daemon=True).start()
"""
"""Says all that it knows, as soon as the worker has a log."""


@pytest.mark.processes
def test_a_worker_whose_outside_is_away_writes_no_secret_anywhere(
    lake: Lake, settings: Settings, tmp_path: Path
) -> None:
    write_events(settings, "2026-10-12/a.jsonl", [event(1), "no event"])
    port = free_port()
    library = tmp_path / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(LIBRARY)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")]),
        "RETAIL_WEBHOOK_TOKEN": PLANTED["webhook"],
        "RETAIL_KAFKA_OPTIONS": json.dumps(
            {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanisms": "PLAIN",
                "sasl.username": "me",
                "sasl.password": PLANTED["kafka"],
            }
        ),
        "RETAIL_NOTIFY_URLS": json.dumps(
            [
                f"json://127.0.0.1:1/{PLANTED['notify']}",
                f"json://me:{quote(PLANTED['basic'])}@127.0.0.1:1/",
            ]
        ),
        "RETAIL_PUBLISH_BOOTSTRAP": "127.0.0.1:1",
        "RETAIL_PUBLISH_EVENTS_TOPIC": "events",
        "RETAIL_PUBLISH_FROM": "beginning",
        "RETAIL_NOTIFY_EVENT_AGE_MINUTES": "0.001",
        "AWS_SECRET_ACCESS_KEY": PLANTED["aws"],
        "AWS_SESSION_TOKEN": PLANTED["session"],
    }
    arguments = ["stream", "--http", f"127.0.0.1:{port}"]
    log = tmp_path / "worker.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "retail_assets", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as worker,
    ):
        try:
            health = wait_for_problem(worker, port, log)
            refused = ask(port, "/events", b"{}")
        finally:
            worker.send_signal(signal.SIGINT)
            worker.wait()
    written = [log.read_bytes(), health, refused, everything(lake)]
    assert b"Connecting with" in written[0]
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "retail_assets", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in (
            ["status", "--format", "json"],
            ["--debug", *arguments, "--kafka", "127.0.0.1:1", "--topic", "t"],
        )
    ]
    for done in commands:
        written += done.communicate()
    assert b"No Kafka broker answers" in written[-1]
    assert found_in(b"".join(written)) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [
        (path, found_in(path.read_bytes())) for path in files if found_in(path.read_bytes())
    ] == []


def wait_for_problem(worker: "subprocess.Popen[bytes]", port: int, log: Path) -> bytes:
    """What /healthz says once it knows that something is away."""
    for _ in range(600):
        assert worker.poll() is None, log.read_text()
        answer = ask(port, "/healthz")
        if answer and json.loads(answer).get("problem"):
            return answer
        time.sleep(0.2)
    raise AssertionError("the worker has no problem")


def ask(port: int, path: str, body: bytes | None = None) -> bytes:
    request = Request(  # of this machine
        f"http://127.0.0.1:{port}{path}", data=body, headers={"Authorization": "Bearer wrong"}
    )
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310
            return bytes(answer.read())
    except HTTPError as error:
        return error.read()
    except OSError:
        return b""


def everything(lake: Lake) -> bytes:
    """All rows of all tables, and the history of the lake."""
    with lake.connect(read_only=True) as connection:
        rows = [
            connection.execute(f"SELECT * FROM {table.name}").fetchall() for table in tables.ALL
        ]
        return repr([*rows, connection.execute("FROM lake.snapshots()").fetchall()]).encode()


def found_in(text: bytes) -> list[str]:
    """The planted secrets in a text, as they are or encoded."""
    return [
        name
        for name, secret in PLANTED.items()
        for spelling in (
            secret,
            quote(secret),
            quote(secret, safe=""),
            secret.replace("'", "''"),
            base64.b64encode(secret.encode()).decode(),
        )
        if spelling.encode() in text
    ]
