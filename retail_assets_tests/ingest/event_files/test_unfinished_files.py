"""Event files that somebody still writes to, JSON documents, and runs that are stopped."""

import gzip
import json
import os
import time
from collections import Counter

import pytest

from retail_assets.ingest.event_files.load import ingest
from retail_assets.ingest.event_files.pending import MAX_ATTEMPTS, Pending, pending_event_files
from retail_assets.ingest.event_files.reader import ReadLimits
from retail_assets.ingest.events.session import EventSession
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import STILL_NS, event, write_events
from retail_assets_tests.ingest.event_files.conftest import BAD, Events, grow, outcomes

# Half-written files


def test_the_last_line_without_newline_waits_until_the_file_is_settled(events: Events) -> None:
    young = time.time_ns() + 3600 * 10**9
    content = f"{event(1)}\n{event(2)}".encode()
    file = write_events(events.settings, "a.jsonl", content, modified_ns=young)
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 1, 0, 0)}
    assert events.pending() == Pending({}, ("a.jsonl",), {})
    # Nobody has touched it since.
    os.utime(file, ns=(young - 7200 * 10**9,) * 2)
    assert list(events.pending().files) == ["a.jsonl"]
    assert outcomes(events.ingest()) == {"a.jsonl": ("grown", 1, 0, 0)}
    assert events.pending() == Pending({}, (), {})
    assert events.accepted() == [("E1", "a.jsonl", 1), ("E2", "a.jsonl", 2)]


def test_a_line_that_was_left_is_read_when_the_clock_alone_has_moved(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = 3600 * 10**9
    now = time.time_ns() + hour
    write_events(settings, "a.jsonl", event(1).encode(), modified_ns=now)
    with lake.connect() as connection:
        session = EventSession(lake, connection)
        first = ingest(session, settings, ["a.jsonl"])
        assert first.files["a.jsonl"].lines == 0
        assert list(pending_event_files(settings).files) == []
        monkeypatch.setattr(time, "time_ns", lambda: now + hour)
        assert list(pending_event_files(settings).files) == ["a.jsonl"]
        assert outcomes(ingest(session, settings, ["a.jsonl"])) == {"a.jsonl": ("grown", 1, 0, 0)}


def test_a_half_written_line_is_never_half_read(events: Events) -> None:
    young = time.time_ns() + 3600 * 10**9
    wide = event(2, region="?").replace("?", "é🎁")
    whole = f"{event(1)}\n{wide}\r\n{BAD}\n{event(3)}\n".encode()
    # Within a line, a character, the end of a line, and at an end; all of it.
    ends = (whole.index(b"O1"), whole.index("🎁".encode()) + 2, whole.index(b"\r") + 1)
    for size in (0, *ends, whole.index(BAD.encode() + b"\n") + 2, len(whole)):
        write_events(events.settings, "a.jsonl", whole[:size], modified_ns=young + size)
        assert events.ingest().failed == {}
        assert len(events.rows("FROM lake.raw_events")) == whole[:size].count(b"\n")
    assert [row[0] for row in events.accepted()] == ["E1", "E2", "E3"]
    assert events.dead() == [("a.jsonl", 3, "not_json")]
    assert events.rows("SELECT DISTINCT version FROM lake.event_files") == [(1,)]


def test_a_line_that_goes_on_after_it_was_taken_is_read_again(events: Events) -> None:
    line = event(1)
    file = write_events(events.settings, "a.jsonl", f"{event(0)}\n{line[:-5]}".encode())
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 1, 1, 0)}
    # Looking at it once more in between makes no difference.
    os.utime(file, ns=(file.stat().st_mtime_ns + 10**9,) * 2)
    assert outcomes(events.ingest()) == {"a.jsonl": ("unchanged", 0, 0, 0)}
    grow(file, f"{line[-5:]}\n{event(2)}\n")
    assert outcomes(events.ingest()) == {"a.jsonl": ("replaced", 3, 0, 0)}
    assert events.dead() == []


def test_a_compressed_file_is_left_until_it_is_settled(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    write_events(events.settings, "a.jsonl.gz", [event(1)], modified_ns=now)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now + 10**9)
        assert events.pending() == Pending({}, ("a.jsonl.gz",), {})
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    assert events.accepted() == []
    assert outcomes(events.ingest()) == {"a.jsonl.gz": ("new", 1, 0, 0)}


def test_a_file_of_the_future_is_settled_once_it_was_the_same_twice(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = 3600 * 10**9
    now = time.time_ns()
    # However long it takes.
    monkeypatch.setattr(time, "time_ns", lambda: now)

    def lines(first: int) -> bytes:
        return f"{event(first)}\n{event(first + 1)}".encode()

    whole = {
        "open line.jsonl": lines(1),
        "packed.jsonl.gz": gzip.compress(lines(3) + b"\n"),
        "packed, not so named.jsonl": gzip.compress(lines(5) + b"\n"),
    }
    cut = {
        "open array.json": b"[" + event(7).encode() + b"," + event(8).encode()[:-1],
        "beginning of an array.json": b"[",
    }
    files = {
        path: write_events(events.settings, path, content, modified_ns=now + 24 * hour)
        for path, content in (whole | cut).items()
    }

    def counted() -> dict[str, int]:
        found = [path for _, path, _ in events.accepted()] + [path for path, *_ in events.dead()]
        return Counter(found)

    assert sorted(events.pending().files) == sorted(files)
    events.ingest(*files)
    assert max(counted().values()) < 2
    # Not yet, nor if somebody writes to it in between.
    assert events.pending() == Pending({}, tuple(sorted(files)), {})
    for file in files.values():
        os.utime(file, ns=(0, file.stat().st_mtime_ns + hour))
    assert {path: file.lines for path, file in events.ingest().files.items()} == dict.fromkeys(
        files, 0
    )
    assert sorted(events.pending().unsettled) == sorted(files)
    monkeypatch.setattr(time, "time_ns", lambda: now + hour)
    assert sorted(events.pending().files) == sorted(files)
    came = events.ingest()
    assert counted() == dict.fromkeys(whole, 2) | dict.fromkeys(cut, 1)
    assert came.failed.keys() == {"open array.json"}
    assert events.pending().files.keys() & whole.keys() == set()
    assert events.pending().unsettled == ()


def test_a_file_of_json_documents_counts_its_elements(events: Events) -> None:
    elements = [json.loads(event(number)) for number in (1, 2, 2)]
    events.write("array.json", json.dumps([*elements, {"order_id": 1}, 7], indent=2))
    events.write("objects.NDJSON", *(json.dumps(one, indent=1) for one in elements[1:]))
    assert outcomes(events.ingest()) == {
        "array.json": ("new", 2, 2, 1),
        "objects.NDJSON": ("new", 0, 0, 2),
    }
    assert events.accepted() == [("E1", "array.json", 1), ("E2", "array.json", 2)]
    assert events.dead() == [
        ("array.json", 4, "missing_field"),
        ("array.json", 5, "not_an_object"),
    ]


def test_a_line_of_several_events_counts_as_so_many_lines(events: Events) -> None:
    batch = f"[{event(2)}, {event(3, region=None)}]"
    file = events.write("a.jsonl", event(1), batch, f"{event(4)}{event(5)}", "[1, 2]")
    write_events(events.settings, "values.json", b"[\n  1,\n  2\n]\n")
    assert outcomes(events.ingest()) == {
        "a.jsonl": ("new", 4, 2, 0), "values.json": ("new", 0, 1, 0)
    }  # fmt: skip
    grow(file, f"[{event(6)}]\n")
    assert outcomes(events.ingest()) == {"a.jsonl": ("grown", 1, 0, 0)}
    assert events.accepted() == [
        ("E1", "a.jsonl", 1), ("E2", "a.jsonl", 2), ("E4", "a.jsonl", 4), ("E5", "a.jsonl", 5),
        ("E6", "a.jsonl", 7),
    ]  # fmt: skip
    assert events.dead() == [
        ("a.jsonl", 3, "missing_field"), ("a.jsonl", 6, "not_an_object"),
        ("values.json", 1, "not_an_object"),
    ]  # fmt: skip


def test_a_document_that_breaks_off_keeps_what_is_whole_and_is_left_alone_in_the_end(
    events: Events,
) -> None:
    content = json.dumps([json.loads(event(number)) for number in range(3)]).encode()
    write_events(events.settings, "a.json", content[:-10])
    for _ in range(MAX_ATTEMPTS):
        came = events.ingest()
        assert came.failed == {
            "a.json": "a.json cannot be read: its JSON breaks off after element 2: put it there"
            " again"
        }
        assert len(events.accepted()) == 2
        assert events.dead() == []
    assert list(events.pending().files) == []
    assert events.pending().left_alone["a.json"].startswith("failed 3 times")
    write_events(events.settings, "a.json", content)
    assert outcomes(events.ingest()) == {"a.json": ("grown", 1, 0, 0)}


def test_a_run_that_is_stopped_leaves_the_rest_for_another(events: Events) -> None:
    for path in ("a.jsonl", "b.jsonl"):
        events.write(path, *(event(n) for n in range(12)))
    asked = iter([False, False, True])
    came = ingest(
        events.session,
        events.settings,
        ["a.jsonl", "b.jsonl"],
        stop=lambda: next(asked, True),
        limits=ReadLimits(block_bytes=300, chunk_bytes=300),
    )
    assert came.files.keys() == {"a.jsonl"}
    assert 0 < came.files["a.jsonl"].lines < 12
    assert sorted(events.pending().files) == ["a.jsonl", "b.jsonl"]
    events.ingest()
    assert len(events.accepted()) == 12
    assert events.pending() == Pending({}, (), {})


def test_counts_are_those_at_the_end_though_a_later_transaction_took_events_away(
    events: Events,
) -> None:
    events = events.limited(chunk_bytes=100)
    for number, (path, lines) in enumerate(
        {
            "a.jsonl": [event(1), event(2), BAD],
            "b.jsonl": [event(4)],
            "c.jsonl": [event(2), event(1), event(3)],
            "d.jsonl": [event(4)],
            "e.jsonl": [event(2)],
        }.items()
    ):
        write_events(events.settings, path, lines, modified_ns=STILL_NS - number * 10**9)
    came = events.ingest()
    assert outcomes(came) == {
        "a.jsonl": ("new", 0, 1, 2),
        "b.jsonl": ("copy", 0, 0, 1),
        "c.jsonl": ("new", 2, 0, 1),
        "d.jsonl": ("new", 1, 0, 0),
        "e.jsonl": ("new", 1, 0, 0),
    }
    assert sum(file.accepted for file in came.files.values()) == len(events.accepted())
