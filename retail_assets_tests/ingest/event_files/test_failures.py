"""Event files that cannot be read, or whose transaction fails: by name, and beside the others."""

import gzip
import os
import time
from dataclasses import replace
from typing import IO, Any

import duckdb
import pytest
from typing_extensions import Self

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files import json_documents
from retail_assets.ingest.event_files.folder import EventFolder
from retail_assets.ingest.event_files.load import ingest
from retail_assets.ingest.event_files.pending import MAX_ATTEMPTS
from retail_assets.ingest.event_files.plan import FileResult
from retail_assets.ingest.events.batch import BatchResult, EventBatch
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages import faults as event_faults
from retail_assets.ingest.repair import dead_letters
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets_tests.event_files import event, write_events
from retail_assets_tests.ingest.event_files.conftest import BAD, Events, outcomes

# Files that cannot be read


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths that may not be read: a superuser may read all files."""
    paths: set[str] = set()
    opened = EventFolder.open

    def refuse(folder: EventFolder, path: str) -> IO[bytes]:
        if path in paths:
            raise PermissionError(13, "Permission denied", path)
        return opened(folder, path)

    monkeypatch.setattr(EventFolder, "open", refuse)
    return paths


def test_a_file_that_cannot_be_read_fails_by_name_and_stops_no_other(
    events: Events, locked: set[str]
) -> None:
    for path in ("a.jsonl", "b.jsonl", "c.jsonl"):
        events.write(path, event(ord(path[0])))
    locked.add("b.jsonl")
    came = events.ingest()
    assert came.failed == {
        "b.jsonl": "b.jsonl cannot be read: [Errno 13] Permission denied: 'b.jsonl'"
    }
    assert came.files.keys() == {"a.jsonl", "c.jsonl"}
    assert events.rows("SELECT path, attempts FROM lake.failed_event_files") == [("b.jsonl", 1)]


def test_a_file_that_cannot_be_read_is_tried_three_times_as_it_is_and_each_hour(
    events: Events, locked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events.write("a.jsonl", event(1))
    locked.add("a.jsonl")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert list(events.pending().files) == ["a.jsonl"]
        events.ingest()
        assert events.rows("SELECT attempts FROM lake.failed_event_files") == [(attempt,)]
    pending = events.pending()
    assert pending.files == {}
    assert pending.left_alone["a.jsonl"].startswith("failed 3 times: a.jsonl cannot be read")
    # A disk that was away for an hour may be there again.
    now = time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now + 3600 * 10**9)
        assert list(events.pending().files) == ["a.jsonl"]
    # Another version is another chance, and others go on.
    events.write("b.jsonl", event(2))
    events.write("a.jsonl", event(1), event(3))
    assert list(events.pending().files) == ["a.jsonl", "b.jsonl"]
    events.ingest()
    assert events.rows("SELECT attempts FROM lake.failed_event_files") == [(1,)]
    locked.clear()
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 2, 0, 0)}
    assert events.rows("FROM lake.failed_event_files") == []


def test_a_file_that_cannot_be_read_is_forgotten_once_it_is_gone(
    events: Events, locked: set[str]
) -> None:
    events.write("a.jsonl", event(1))
    events.write("b.jsonl", event(2))
    locked |= {"a.jsonl", "b.jsonl"}
    events.ingest()
    (events.folder / "a.jsonl").unlink()
    events.write("c.jsonl", event(3))
    events.ingest("c.jsonl")
    assert events.rows("SELECT path FROM lake.failed_event_files") == [("b.jsonl",)]


def test_a_file_of_which_the_rest_cannot_be_read_keeps_what_was_taken(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = events.limited(block_bytes=300, chunk_bytes=300)
    monkeypatch.setattr(json_documents, "HEAD_BYTES", 300)
    events.write("a.jsonl", *(event(n) for n in range(10)))
    opened = EventFolder.open

    class Breaking:
        def __init__(self, stream: IO[bytes]) -> None:
            self.stream, self.blocks = stream, 4

        def read(self, size: int) -> bytes:
            self.blocks -= 1
            if self.blocks < 0:
                raise OSError(5, "Input/output error")
            return self.stream.read(size)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    with monkeypatch.context() as patch:
        patch.setattr(EventFolder, "open", lambda *args: Breaking(opened(*args)))
        came = events.ingest()
    assert came.failed.keys() == {"a.jsonl"}
    taken = len(events.accepted())
    assert 0 < taken < 10
    came = events.ingest()
    assert outcomes(came) == {"a.jsonl": ("grown", 10 - taken, 0, 0)}
    assert len(events.accepted()) == 10


def test_that_the_lake_is_busy_is_no_fault_of_a_file(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = events.limited(block_bytes=100, chunk_bytes=100)
    for path in ("a.jsonl", "b.jsonl"):
        events.write(path, *(event(n) for n in range(2)))

    begin, faults = Lake.transaction, ["The lake is busy: try again."]

    def busy(*arguments: Any) -> Any:
        if faults:
            raise RetailAssetsError(faults.pop())
        return begin(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "transaction", busy)
        with pytest.raises(RetailAssetsError, match="busy"):
            events.ingest()
    assert events.rows("FROM lake.failed_event_files") == []
    assert list(events.pending().files) == ["a.jsonl", "b.jsonl"]
    events.ingest()
    assert len(events.accepted()) == 2


def test_a_compressed_file_that_breaks_off_gives_nothing_until_it_is_whole(events: Events) -> None:
    whole = gzip.compress(b"".join(f"{event(n)}\n".encode() for n in range(500)))
    file = events.folder / "a.jsonl.gz"
    events.write("b.jsonl", event(1000))
    for size in (10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        os.utime(file, (1_791_800_000, 1_791_800_000 + size))
        came = events.ingest("a.jsonl.gz", "b.jsonl")
        assert "no whole gzip file" in came.failed["a.jsonl.gz"]
    assert len(events.accepted()) == 1
    file.write_bytes(whole)
    os.utime(file, (1_791_900_000, 1_791_900_000))
    assert outcomes(events.ingest()) == {"a.jsonl.gz": ("new", 500, 0, 0)}
    assert events.rows("FROM lake.failed_event_files") == []


def test_a_file_that_is_gone_when_it_is_read_fails_by_name(events: Events) -> None:
    events.write("a.jsonl", event(1))
    came = events.ingest("a.jsonl", "gone.jsonl")
    assert came.failed.keys() == {"gone.jsonl"}
    assert len(events.accepted()) == 1


# Files that fail their transaction


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What a transaction meets that has a line with the word in it: the last of these, if any.

    With `venom` it only meets that while the line is not refused.
    """
    faults: list[Exception] = [duckdb.InternalException("it met something odd")]
    apply = EventBatch.apply

    def breaking(batch: EventBatch) -> BatchResult:
        found = batch._connection.execute(
            "SELECT 1 FROM temp.main.staged_lines WHERE payload LIKE '%poison%'"
            " OR (payload LIKE '%venom%' AND defect IS NULL)"
        )
        if found.fetchone() and faults:
            raise faults[-1]
        return apply(batch)

    monkeypatch.setattr(EventBatch, "apply", breaking)
    # It fails with every attempt.
    monkeypatch.setattr(event_faults, "ATTEMPTS", 1)
    return faults


def test_a_file_that_fails_its_transaction_is_named_and_the_others_go_on(
    events: Events, poison: list[Exception]
) -> None:
    for number in range(5):
        note = "poison" if number in {1, 2} else "good"
        events.write(f"{number}.jsonl", event(number, note=note), BAD)
    write_events(events.settings, "broken.jsonl.gz", b"no gzip")
    came = events.ingest()
    bad = {f"{number}.jsonl" for number in (1, 2)}
    assert came.failed.keys() == bad | {"broken.jsonl.gz"}
    assert came.failed["2.jsonl"] == "2.jsonl cannot be ingested: it met something odd"
    assert came.files == {
        path: FileResult(path, "new", lines=2, accepted=1, dead_lettered=1)
        for path in (f"{number}.jsonl" for number in (0, 3, 4))
    }
    assert len(events.accepted()) == 3
    assert events.rows("SELECT path, attempts FROM lake.failed_event_files ORDER BY ALL") == [
        (path, 1) for path in sorted(came.failed)
    ]


def test_a_line_that_fails_every_transaction_is_refused_alone_and_kept_whole(
    events: Events, poison: list[Exception]
) -> None:
    events = events.limited(chunk_lines=3)
    poison[:] = [duckdb.ConversionException("Could not convert 'no space left on device, timeout'")]
    notes = ["", "venom", "", "venom", "sound venom", ""]
    lines = [event(n, note=note) for n, note in enumerate(notes)]
    events.write("a.jsonl", *lines)
    events.write("b.jsonl", event(20))
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 3, 3, 0), "b.jsonl": ("new", 1, 0, 0)}
    assert events.rows(
        "SELECT position, reason, payload FROM dead_letter_events ORDER BY position"
    ) == [(n + 1, "not_taken", lines[n]) for n in (1, 3, 4)]
    assert events.rows("FROM lake.failed_event_files") == []
    assert events.pending().files == {}
    poison.clear()
    ids = [letter["id"] for letter in dead_letters.find(events.connection)]
    redriven = dead_letters.redrive(events.session, ids)
    assert {one.outcome for one in redriven} == {"accepted"}


def test_a_line_that_needs_more_memory_than_there_is_stops_no_other(events: Events) -> None:
    wide = event(2, **{f"field_{number:05d}": number for number in range(44_000)})
    events.write("a.jsonl", event(1), wide, event(3))
    lake = replace(events.lake, memory_limit="48MB")
    with lake.connect() as connection:
        ingest(EventSession(lake, connection), events.settings, ["a.jsonl"])
    assert events.accepted() == [("E1", "a.jsonl", 1), ("E3", "a.jsonl", 3)]
    assert events.rows("SELECT position, reason, payload FROM dead_letter_events") == [
        (2, "out_of_memory", wide)
    ]
    assert events.rows("FROM lake.failed_event_files") == []


def test_a_file_of_too_many_failing_lines_fails_by_name(
    events: Events, poison: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_faults, "MAX_LINES", 1)
    poison[:] = [duckdb.ConversionException("it met something odd")]
    events.write("a.jsonl", *(event(n, note="venom") for n in range(2)))
    events.write("b.jsonl", event(20))
    assert events.ingest().failed.keys() == {"a.jsonl"}
    assert events.accepted() == [("E20", "b.jsonl", 1)]


def test_a_file_that_fails_its_transaction_is_tried_three_times_as_it_is(
    events: Events, poison: list[Exception]
) -> None:
    events.write("a.jsonl", event(1, note="poison"))
    events.write("b.jsonl", event(11))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert "a.jsonl" in events.pending().files
        events.ingest()
        assert events.rows("SELECT path, attempts FROM lake.failed_event_files") == [
            ("a.jsonl", attempt)
        ]
    assert events.pending().files == {}
    assert events.pending().left_alone == {
        "a.jsonl": "failed 3 times: a.jsonl cannot be ingested: it met something odd"
    }
    events.write("a.jsonl", event(1), event(2))
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 2, 0, 0)}
    assert events.rows("FROM lake.failed_event_files") == []
    assert events.pending().left_alone == {}


def test_of_a_file_that_fails_a_transaction_what_was_before_is_kept_and_the_rest_left(
    events: Events, poison: list[Exception]
) -> None:
    events = events.limited(chunk_lines=2)
    notes = ["", "", "", "poison", *[""] * 6]
    events.write("a.jsonl", *(event(n, note=note) for n, note in enumerate(notes)))
    events.write("b.jsonl", event(30))
    came = events.ingest()
    assert came.failed.keys() == {"a.jsonl"}
    assert events.accepted() == [
        ("E0", "a.jsonl", 1), ("E1", "a.jsonl", 2), ("E30", "b.jsonl", 1),
    ]  # fmt: skip
    assert events.rows("SELECT path, attempts FROM lake.failed_event_files") == [("a.jsonl", 1)]
    poison.clear()
    assert list(events.pending().files) == ["a.jsonl"]
    assert outcomes(events.ingest()) == {"a.jsonl": ("grown", 8, 0, 0)}
    assert events.rows("FROM lake.failed_event_files") == []


def test_a_transaction_that_fails_once_is_no_fault_of_a_file_and_counts_nothing_twice(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        events.write(f"{number}.jsonl", event(number, note="new"), BAD)
    commit, faults = lake_connection.commit, [duckdb.TransactionException("it failed to commit")]

    def failing(connection: duckdb.DuckDBPyConnection) -> None:
        if faults:
            connection.execute("ROLLBACK")
            raise faults.pop()
        commit(connection)

    monkeypatch.setattr(lake_connection, "commit", failing)
    came = events.ingest()
    assert not faults
    assert outcomes(came) == {f"{number}.jsonl": ("new", 1, 1, 0) for number in range(4)}
    assert came.new_fields == [("note", "VARCHAR")]
    assert events.rows("FROM lake.failed_event_files") == []


@pytest.mark.parametrize("error", [duckdb.IOException, OSError, RetailAssetsError])
def test_that_a_disk_is_full_is_no_fault_of_a_file(
    events: Events, poison: list[Exception], error: type[Exception]
) -> None:
    poison.append(error("no space left on device"))
    events.write("a.jsonl", event(1, note="poison"))
    events.write("b.jsonl", event(2))
    with pytest.raises(error, match="no space left"):
        events.ingest()
    assert events.rows("FROM lake.failed_event_files") == []
    poison.clear()
    events.ingest()
    assert len(events.accepted()) == 2


def test_while_nothing_can_be_committed_no_file_is_blamed(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        events.write(f"{number}.jsonl", event(number))

    def failing(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("ROLLBACK")
        raise duckdb.TransactionException("it failed to commit")

    with monkeypatch.context() as patch:
        patch.setattr(lake_connection, "commit", failing)
        with pytest.raises(duckdb.TransactionException):
            events.ingest()
    assert events.rows("FROM lake.failed_event_files") == []
    events.ingest()
    assert len(events.accepted()) == 2


def test_a_full_disk_is_no_fault_of_the_file_that_met_it(
    events: Events, poison: list[Exception]
) -> None:
    # What the catalog says when its disk is full while it commits.
    poison.append(
        duckdb.TransactionException("Failed to commit: Failed to execute: disk I/O error")
    )
    events.write("a.jsonl", event(1, note="poison"))
    events.write("b.jsonl", event(2))
    with pytest.raises(duckdb.TransactionException, match="disk I/O error"):
        events.ingest()
    assert events.rows("FROM lake.failed_event_files") == []
    assert events.accepted() == [("E2", "b.jsonl", 1)]
    poison.clear()
    events.ingest()
    assert len(events.accepted()) == 2
