"""The commands of the event pipeline as users meet them: exit codes, tables, clear sentences."""

import gzip
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retail_assets.consumers import live_orders, registry
from retail_assets.ingest.event_files import load as event_files
from retail_assets.ingest.event_files.pending import MAX_ATTEMPTS
from retail_assets.ingest.ledgers import workers as heartbeat
from retail_assets.settings import Settings
from retail_assets.transforms import events
from retail_assets_tests.cli.test_cli import Command
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import EventLoader, event, write_events

DAY = "2026-10-12"
LETTER = f"file:{DAY}/b.jsonl:2"
RANGE = ("--start", DAY, "--end", "2026-10-31")


class Quiet(Command):
    """A progress bar that is not on a terminal leaves an empty line."""

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code, out, err = super().__call__(*arguments)
        return code, out, err.lstrip("\n")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Quiet(monkeypatch, capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, new_lake: NewLake) -> Path:
    """A data folder with three accepted events and two dead letters."""
    folder = tmp_path_factory.mktemp("ingested")
    new_lake(folder)
    with EventLoader.open(Settings(data_dir=folder)) as loader:
        loader.write(f"{DAY}/a.jsonl", [event(1), event(2, order_value_gbp=700)])
        loader.write(
            f"{DAY}/b.jsonl",
            [event(3), event(4, order_value_gbp=-4, customer_id="C9"), "null", event(1)],
        )
        loader.ingest()
    return folder


@pytest.fixture
def loader(settings: Settings, model: Path) -> Iterator[EventLoader]:
    """The same, the test's own."""
    shutil.copytree(model, settings.data_dir, dirs_exist_ok=True)
    with EventLoader.open(settings) as loader:
        yield loader


def cells(text: str) -> list[list[str]]:
    """The cells of a printed table."""
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith(("│", "┃"))
    ]


# --- ingest-events -------------------------------------------------------------------------------


def test_pending_event_files_are_ingested_and_counted(settings: Settings, command: Command) -> None:
    # What the names have in them steers no terminal, and adds no line to a message.
    odd, shown = f"{DAY}/c\n\x1b[31m[red].jsonl.gz", f"{DAY}/c\\n\\u001b[31m[red].jsonl.gz"
    write_events(settings, f"{DAY}/a [b].jsonl", [event(1), event(2, surprise=1), "null"])
    write_events(settings, odd, [event(2, surprise=1), event(3)])
    code, out, err = command("ingest-events")
    assert code == 0
    assert cells(out) == [
        ["file", "outcome", "lines", "accepted", "dead-lettered", "duplicate"],
        [f"{DAY}/a [b].jsonl", "new", "3", "2", "1", "0"],
        [shown, "new", "2", "1", "0", "1"],
        ["2 files", "", "5", "3", "1", "1"],
    ]
    assert "New field surprise (" in err
    code, out, _ = command("query", "SELECT sum(total_revenue) AS r FROM live_revenue", *JSON)
    assert (code, json.loads(out)) == (0, [{"r": "30.00"}])

    code, out, err = command("ingest-events")
    assert (code, err) == (0, "")
    assert cells(out)[1:] == [["0 files", "", "0", "0", "0", "0"]]

    write_events(settings, f"{DAY}/a [b].jsonl", [event(1), event(2, surprise=1), "null", event(4)])
    write_events(settings, odd, [event(5)])
    code, out, err = command("ingest-events")
    assert code == 0
    assert (
        f"{shown} got shorter or starts differently: 1 events and 0 dead letters of the"
        " version before stay" in err
    )
    assert cells(out)[1:] == [
        [f"{DAY}/a [b].jsonl", "grown", "1", "1", "0", "0"],
        [shown, "changed", "1", "1", "0", "0"],
        ["2 files", "", "2", "2", "0", "0"],
    ]

    code, _, err = command("events", "retract", odd)
    assert code == 0
    retracted = f"{shown}, version 1: 1 events and 0 dead letters were retracted"
    assert retracted in err
    code, out, _ = command("query", "SELECT sum(total_revenue) AS r FROM live_revenue", *JSON)
    assert (code, json.loads(out)) == (0, [{"r": "40.00"}])
    code, _, err = command("events", "retract", odd)
    assert code == 2
    assert shown in err
    assert "no earlier version" in err
    code, out, _ = command("status", *JSON)
    found = {row["figure"]: row["value"] for row in json.loads(out)}
    assert (found["event files that changed"], found["their earlier events taken back"]) == (1, 1)
    code, out, _ = command("status", "--all")
    assert re.search(r"their earlier events retracted\W+1\b", out)
    assert "keys quarantined by consumers" in out


JSON = ("--format", "json")


def test_a_file_that_cannot_be_read_fails_by_name_and_the_others_are_ingested(
    settings: Settings, command: Command
) -> None:
    write_events(settings, f"{DAY}/good.jsonl", [event(1)])
    write_events(settings, f"{DAY}/bad.jsonl.gz", b"\x1f\x8b\x08")
    for attempt in range(MAX_ATTEMPTS):
        code, out, err = command("ingest-events")
        assert code == 1
        assert cells(out)[-1][0] == ("1 files" if attempt == 0 else "0 files")
        assert err.startswith(f"Error: {DAY}/bad.jsonl.gz cannot be read: it is no whole gzip file")
        assert "Traceback" not in err
    code, _, err = command("ingest-events")
    assert code == 0
    assert err.startswith(f"{DAY}/bad.jsonl.gz failed 3 times: ")


def test_a_link_is_named_and_not_followed(settings: Settings, command: Command) -> None:
    write_events(settings, f"{DAY}/a.jsonl", [event(1)])
    Path(settings.events_location, "link.jsonl").symlink_to(f"{DAY}/a.jsonl")
    code, out, err = command("ingest-events")
    assert (code, err) == (0, "link.jsonl is a link, which is not followed\n")
    assert cells(out)[-1] == ["1 files", "", "1", "1", "0", "0"]


def test_files_just_written_are_waited_for(
    settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_EVENT_SETTLE_SECONDS", "0.5")
    write_events(settings, f"{DAY}/a.jsonl.gz", [event(1)]).touch()
    tomorrow = time.time_ns() + 24 * 3600 * 10**9
    lines = f"{event(2)}\n{event(3)}".encode()
    write_events(settings, f"{DAY}/b.jsonl", lines, modified_ns=tomorrow)
    write_events(settings, f"{DAY}/c.JSON.GZ", gzip.compress(lines), modified_ns=tomorrow)
    code, out, err = command("ingest-events")
    assert (code, err) == (0, "")
    assert cells(out)[-1] == ["3 files", "", "5", "3", "0", "2"]


def test_files_with_other_endings_are_counted_and_named(
    settings: Settings, command: Command
) -> None:
    for name in ("orders.jsonl.1", "firehose-1-abc", "orders.csv", ".hidden"):
        write_events(settings, name, [event(1)])
    write_events(settings, "orders.JSON", [event(1)])
    code, out, err = command("ingest-events")
    assert code == 0
    assert cells(out)[-1] == ["1 files", "", "1", "1", "0", "0"]
    assert err == (
        "3 files are not read, since their names do not end in .jsonl, .ndjson or .json (or these"
        " with .gz or .zst): firehose-1-abc, orders.csv, orders.jsonl.1\n"
    )
    _, out, _ = command("status", *JSON)
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["event files not read"] == 3
    assert figures["not read, first"] == "firehose-1-abc, orders.csv, orders.jsonl.1"


def test_status_tells_what_a_living_worker_says_but_not_what_it_last_saw_of_the_folder(
    settings: Settings, loader: EventLoader, command: Command
) -> None:
    write_events(settings, f"{DAY}/c.jsonl", [event(5)])
    said = {"pending_event_files": 0, "latency_p99_ms": 120.5, "fraud_lag_seconds": 9, "late": None}
    with loader.lake.transaction(loader.connection, "heartbeat"):
        now = datetime.now(timezone.utc)
        heartbeat.beat(loader.connection, "W1", ["kafka"], "running", "no broker", said, now)
    _, out, _ = command("status", *JSON)
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["stream worker"].startswith("W1 on ")
    assert figures["stream worker"].endswith(": lagging")
    assert figures["worker's problem"] == "no broker"
    assert figures["pending event files"] == 1
    assert {name: value for name, value in figures.items() if name.startswith("worker: ")} == {
        "worker: latency p99 ms": 120.5
    }
    loader.connection.execute(
        "UPDATE lake.stream_workers SET heartbeat_at = heartbeat_at - INTERVAL 1 HOUR"
    )
    _, out, _ = command("status", *JSON)
    assert '"W1 on ' in out
    assert ": dead" in out
    assert "worker: " not in out


def test_status_tells_of_pending_event_files_and_of_dead_letters(
    settings: Settings, loader: EventLoader, command: Command
) -> None:
    file = write_events(settings, f"{DAY}/c.jsonl", [event(5)])
    write_events(settings, f"{DAY}/bad.jsonl.gz", b"\x1f\x8b\x08")
    for _ in range(MAX_ATTEMPTS):
        event_files.ingest(loader.session, settings, [f"{DAY}/bad.jsonl.gz"])
    code, out, _ = command("status", *JSON)
    assert code == 0
    figures = {row["figure"]: row["value"] for row in json.loads(out)}
    assert figures["pending event files"] == 1
    assert figures["pending event bytes"] == file.stat().st_size
    assert figures["oldest pending event file, seconds"] > 3600
    assert figures["event files left alone"] == 1
    assert "failed 3 times" in figures[f"left alone: {DAY}/bad.jsonl.gz"]
    assert figures["event lines"] == 6
    assert figures["dead-letter rate"] == round(2 / 6, 6)


# --- consumers -----------------------------------------------------------------------------------


def test_consumers_are_listed_and_rewound(loader: EventLoader, command: Command) -> None:
    def listed(name: str) -> dict[str, Any]:
        code, out, _ = command("consumers", "list", *JSON)
        assert code == 0
        return next(row for row in json.loads(out) if row["consumer"] == name)

    assert listed("live_orders")["snapshot"] is None
    assert listed("live_orders")["commits_behind"] > 0
    code, out, _ = command("consumers", "rewind", "live_orders")
    assert (code, out) == (0, "live_orders is recomputed: 3 rows were inserted or deleted.\n")
    assert listed("live_orders")["commits_behind"] == 0
    loader.connection.execute("DELETE FROM lake.live_orders")
    assert command("consumers", "rewind", "live_orders")[:2] == (0, out)
    assert loader.rows("SELECT count(*) FROM live_orders") == [(3,)]


def test_who_rewinds_a_consumer_is_told_what_is_quarantined(
    loader: EventLoader, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        if keys is None or connection.execute(f"FROM {keys} WHERE order_id = 'O1'").fetchone():
            raise ValueError("It does not add up.")
        return live_orders.CONSUMER.compute(connection, keys)

    consumers = [replace(live_orders.CONSUMER, compute=compute)]
    monkeypatch.setattr(registry, "all_consumers", lambda _: consumers)
    code, out, err = command("consumers", "rewind", "live_orders")
    assert (code, out) == (0, "live_orders is recomputed: 2 rows were inserted or deleted.\n")
    assert err == "live_orders quarantined O1: ValueError: It does not add up.\n"


def test_a_consumer_that_there_is_not_is_named_with_those_that_there_are(
    loader: EventLoader, command: Command
) -> None:
    code, _, err = command("consumers", "rewind", "nobody")
    assert code == 2
    assert "no consumer nobody: choose from live_orders, " in err


# --- replay --------------------------------------------------------------------------------------


def test_a_replay_says_how_many_days_it_has_recomputed(
    loader: EventLoader, command: Command
) -> None:
    assert command("replay", *RANGE) == (0, "1 days with events are recomputed.\n", "")
    assert command("replay", *RANGE, "--check") == (0, "1 days with events would not change.\n", "")
    nothing = ("--start", "2026-10-13", "--end", "2026-10-31")
    assert command("replay", *nothing) == (0, "0 days with events are recomputed.\n", "")


@pytest.mark.usefixtures("rules_may_change")
def test_a_check_that_finds_differences_exits_with_one_and_names_them(
    loader: EventLoader, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "OUT_OF_RANGE_GBP", 500)
    code, out, err = command("replay", *RANGE, "--check")
    assert (code, out) == (1, "")
    assert err == (
        f"Error: {DAY}: a replay would delete 1 rows of enriched_events and insert 0, for example"
        f" file:{DAY}/a.jsonl:2\n"
        f"{DAY}: a replay would delete 0 rows of dead_letter_events and insert 1, for example"
        f" file:{DAY}/a.jsonl:2\n"
    )
    assert command("replay", *RANGE)[0] == 0
    assert command("replay", *RANGE, "--check")[0] == 0


@pytest.mark.parametrize("arguments", [["--start", DAY], ["--start", DAY, "--end", "soon"]])
def test_a_replay_without_days_is_wrong_usage(
    settings: Settings, command: Command, arguments: list[str]
) -> None:
    code, out, err = command("replay", *arguments)
    assert (code, out) == (2, "")
    assert "--end" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", *RANGE],
        ["dead-letters", "list"],
        ["dead-letters", "show", LETTER],
        ["dead-letters", "redrive", LETTER],
        ["dead-letters", "redrive", "--reason", "not_json"],
    ],
)
def test_without_a_lake_there_is_one_sentence(
    settings: Settings, command: Command, arguments: list[str]
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("Error: There is no lake at ")
    assert not settings.lake_dir.exists(), "and none was made"


# --- dead-letters --------------------------------------------------------------------------------


def test_dead_letters_are_listed_by_what_is_asked_for(
    loader: EventLoader, command: Command
) -> None:
    code, out, err = command("dead-letters", "list", *JSON)
    assert (code, err) == (0, "")
    assert [(row["id"], row["reason"], row["field"]) for row in json.loads(out)] == [
        (LETTER, "not_positive", "order_value_gbp"),
        (f"file:{DAY}/b.jsonl:3", "not_an_object", None),
    ]
    for arguments, expected in (
        (["--reason", "not_an_object"], 1),
        (["--day", "2026-10-13"], 0),
        (["--limit", "1"], 1),
    ):
        code, out, _ = command("dead-letters", "list", *JSON, *arguments)
        assert (code, len(json.loads(out))) == (0, expected), arguments
    code, out, _ = command("dead-letters", "list")
    assert cells(out)[1] == [LETTER, DAY, "not_positive", "order_value_gbp", "False"]
    assert "C9" not in out


def test_a_dead_letter_is_shown_whole(loader: EventLoader, command: Command) -> None:
    code, out, err = command("dead-letters", "show", LETTER)
    assert (code, err) == (0, "")
    shown = dict(row for row in cells(out) if row[0])
    assert (shown["id"], shown["reason"]) == (LETTER, "not_positive")
    assert '"customer_id": "C9"' in shown["payload"]


def test_a_dead_letter_that_is_not_there_is_one_sentence(
    loader: EventLoader, command: Command
) -> None:
    for name in ("show", "redrive"):
        code, out, err = command("dead-letters", name, "file:none:1")
        assert (code, out) == (1, "")
        assert err.startswith("Error: There is no dead letter file:none:1: `dead-letters list`")
        assert "Traceback" not in err


def test_dead_letters_are_redriven_as_they_are(loader: EventLoader, command: Command) -> None:
    code, out, err = command("dead-letters", "redrive", LETTER, f"file:{DAY}/b.jsonl:3")
    assert (code, err) == (0, "")
    assert cells(out)[1:] == [
        [LETTER, "still not_positive (order_value_gbp)"],
        [f"file:{DAY}/b.jsonl:3", "still not_an_object"],
    ]
    code, out, _ = command("dead-letters", "redrive", "--reason", "not_positive")
    assert (code, cells(out)[1:]) == (0, [[LETTER, "still not_positive (order_value_gbp)"]])


def test_a_reason_that_no_open_dead_letter_has_redrives_nothing(
    loader: EventLoader, command: Command
) -> None:
    code, out, err = command("dead-letters", "redrive", "--reason", "not_json")
    assert (code, err) == (0, "")
    assert cells(out)[1:] == []


def test_a_dead_letter_is_corrected_with_a_payload_from_the_line_or_from_a_file(
    loader: EventLoader, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "mended.json"
    file.write_text(json.dumps(json.loads(event(4, order_value_gbp=44)), indent=2) + "\n")
    code, out, err = command("dead-letters", "redrive", LETTER, "--payload", f"@{file}")
    assert (code, err) == (0, "")
    assert cells(out)[1:] == [[LETTER, "accepted"]]
    sql = "SELECT order_value_gbp AS value FROM enriched_events WHERE event_id = 'E4'"
    assert json.loads(command("query", sql, *JSON)[1]) == [{"value": "44.00"}]
    sql = "SELECT sum(total_revenue) AS value FROM live_revenue"
    assert json.loads(command("query", sql, *JSON)[1]) == [{"value": "764.00"}]

    code, out, _ = command("dead-letters", "redrive", LETTER, "--payload", event(5))
    assert (code, cells(out)[1:]) == (0, [[LETTER, "redriven before"]])
    assert len(json.loads(command("dead-letters", "list", *JSON)[1])) == 1
    assert len(json.loads(command("dead-letters", "list", "--all", *JSON)[1])) == 2


def test_a_payload_that_is_not_valid_is_one_sentence(loader: EventLoader, command: Command) -> None:
    code, out, err = command("dead-letters", "redrive", LETTER, "--payload", "{}")
    assert (code, out) == (1, "")
    assert err == "Error: The payload is not valid: still missing_field (order_id).\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Error: Name dead letters, or give a --reason."),
        ([LETTER, "--reason", "not_json"], "Error: Name dead letters, or give a --reason."),
        ([LETTER, "b", "--payload", "{}"], "Error: A payload corrects one dead letter: name one."),
        ([LETTER, "--payload", "@nowhere.json"], "Error: nowhere.json cannot be read: "),
    ],
)
def test_wrong_usage_of_redrive_exits_with_two(
    loader: EventLoader, command: Command, arguments: list[str], message: str
) -> None:
    code, out, err = command("dead-letters", "redrive", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)


def test_the_commands_of_the_event_pipeline_have_help(command: Command) -> None:
    for name in ("ingest-events", "replay", "dead-letters", "dead-letters redrive"):
        code, out, _ = command(*name.split(), "--help")
        assert code == 0
        assert f"Usage: retail-assets {name} " in " ".join(out.split())
