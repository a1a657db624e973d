"""What becomes of event files: which are new, and that each line of them counts exactly once."""

import gzip
import hashlib
import itertools
import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import IO, Any

import duckdb
import pytest
from typing_extensions import Self

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.event_files import json_documents, regular_files
from retail_assets.ingest.event_files.folder import EventFolder
from retail_assets.ingest.event_files.load import IngestResult, ingest
from retail_assets.ingest.event_files.pending import MAX_ATTEMPTS, Pending, pending_event_files
from retail_assets.ingest.event_files.plan import FileResult
from retail_assets.ingest.event_files.reader import LIMITS, ReadLimits
from retail_assets.ingest.event_files.retraction import Retracted, retract
from retail_assets.ingest.events import batch as event_batch
from retail_assets.ingest.events.batch import BatchResult, EventBatch
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages import faults as event_faults
from retail_assets.ingest.repair import dead_letters
from retail_assets.ingest.repair.replay import check_day
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.lake.schema import create_missing_tables
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import STILL_NS, OverSession, event, write_events

BAD = "{"


@dataclass(frozen=True)
class Events(OverSession):
    """A lake to take event files into, over one connection."""

    limits: ReadLimits = LIMITS

    @property
    def folder(self) -> Path:
        return Path(self.settings.events_location)

    def write(self, path: str, *lines: str) -> Path:
        return write_events(self.settings, path, lines)

    @property
    def replacing(self) -> "Events":
        """The same, where a corrected file is delivered under the same name."""
        settings = self.settings.model_copy(update={"changed_event_files": "replace"})
        return replace(self, settings=settings)

    def limited(self, **limits: int) -> "Events":
        """The same, with other limits of what is read and committed at once."""
        return replace(self, limits=ReadLimits(**limits))

    def pending(self) -> Pending:
        return pending_event_files(self.settings, self.connection)

    def ingest(self, *paths: str) -> IngestResult:
        """Take in these files, or all that are pending; the ledger must balance after it."""
        files = paths or tuple(self.pending().files)
        came = ingest(self.session, self.settings, files, limits=self.limits)
        self.must_balance()
        return came

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()

    def accepted(self) -> list[tuple[str, str, int]]:
        """Event, file and line of the enriched events."""
        return self.rows(
            "SELECT event_id, source_name, position FROM lake.enriched_events ORDER BY ALL"
        )

    def dead(self) -> list[tuple[str, int, str]]:
        return self.rows(
            "SELECT source_name, position, reason FROM lake.dead_letter_events ORDER BY ALL"
        )

    def ledger(self) -> dict[str, tuple[Any, ...]]:
        """Lines, accepted, dead-lettered, duplicate and copy of each file."""
        found = self.rows(
            "SELECT path, lines, accepted, dead_lettered, duplicate, copy_of FROM lake.event_files"
            " WHERE superseded_at IS NULL ORDER BY path"
        )
        return {path: tuple(rest) for path, *rest in found}

    def tables(self) -> list[list[tuple[Any, ...]]]:
        """Everything that follows from what was received."""
        return [
            self.rows(f"SELECT * EXCLUDE ({without}) FROM lake.{table} ORDER BY ALL")
            for table, without in (
                ("raw_events", "payload"),
                ("enriched_events", "processed_at"),
                ("dead_letter_events", "processed_at"),
                ("live_revenue", "order_date"),
            )
        ]

    def must_balance(self) -> None:
        """Each version of each file, also one that is not the current one."""
        found = self.rows(
            "SELECT 'raw', (source_name, version), event_id FROM lake.raw_events UNION ALL"
            " SELECT 'enriched', (source_name, version), event_id FROM lake.enriched_events"
            " UNION ALL SELECT 'dead', (source_name, version), NULL FROM lake.dead_letter_events"
        )
        raw, enriched, dead = (
            [row for table, *row in found if table == name] for name in ("raw", "enriched", "dead")
        )
        ledger = self.rows(
            "SELECT (path, version), lines, accepted, dead_lettered, duplicate, copy_of IS NULL,"
            " retracted_at IS NULL FROM lake.event_files"
        )
        held = [Counter(key for key, _ in rows) for rows in (raw, enriched, dead)]
        assert set().union(*held) <= {key for key, *_ in ledger}
        retracted = set()
        for key, lines, accepted, dead_lettered, duplicate, is_owner, counts in ledger:
            assert lines == accepted + dead_lettered + duplicate
            here = lines if is_owner else 0
            right = (here, accepted, dead_lettered) if counts else (here, 0, 0)
            # Of versions below 1 earlier releases have kept no lines.
            assert tuple(rows[key] for rows in held) == (right if key[1] > 0 else (0, 0, 0)), key
            if not counts:
                retracted.add(key)
        valid = {identity for key, identity in raw if key not in retracted} - {None}
        assert sorted(identity for _, identity in enriched) == sorted(valid), "each is there once"


@pytest.fixture
def events(lake: Lake, settings: Settings) -> Iterator[Events]:
    # Tables this small take longer with more threads.
    lake = Lake.from_settings(settings.model_copy(update={"threads": 1}))
    with lake.connect() as connection:
        yield Events(EventSession(lake, connection), settings)


def outcomes(came: IngestResult) -> dict[str, tuple[Any, ...]]:
    """Outcome, accepted, dead-lettered and duplicate lines of each file."""
    assert came.failed == {}
    return {
        path: (file.outcome, file.accepted, file.dead_lettered, file.duplicate)
        for path, file in came.files.items()
    }


def grow(file: Path, more: str) -> None:
    """Append, as a second later."""
    modified = file.stat().st_mtime_ns + 10**9
    file.write_bytes(file.read_bytes() + more.encode())
    os.utime(file, ns=(modified, modified))


# What a file gives


def test_each_line_is_accepted_a_dead_letter_or_a_duplicate(events: Events) -> None:
    events.write("a.jsonl", event(1), "", BAD, event(2), event(1), "null", event(3, region=None))
    came = events.ingest()
    assert outcomes(came) == {"a.jsonl": ("new", 2, 4, 1)}
    assert events.accepted() == [("E1", "a.jsonl", 1), ("E2", "a.jsonl", 4)]
    assert events.dead() == [
        ("a.jsonl", 2, "empty_line"), ("a.jsonl", 3, "not_json"),
        ("a.jsonl", 6, "not_an_object"), ("a.jsonl", 7, "missing_field"),
    ]  # fmt: skip
    assert events.ledger() == {"a.jsonl": (7, 2, 4, 1, None)}


def test_raw_events_hold_every_line_as_it_was(events: Events) -> None:
    lines = [event(1), event(1), " ", "{'", '"\u2028 🎁"', event(2, note="é")]
    events.write("a.jsonl", *lines)
    events.ingest()
    found = events.rows("SELECT position, payload, event_id FROM lake.raw_events ORDER BY ALL")
    assert [row[:2] for row in found] == list(enumerate(lines, start=1))
    assert [row[2] for row in found] == ["E1", "E1", None, None, None, "E2"]


def test_events_without_an_id_are_told_apart_by_their_content(events: Events) -> None:
    one = event(1, event_id=None)
    turned = "{" + ", ".join(reversed(one.strip("{}").split(", "))) + "}"
    events.write("a.jsonl", one, turned, event(2, event_id=None), event(1, event_id=" "), one)
    # A blank id is one that is not there, but it is another content.
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 3, 0, 2)}


def test_an_empty_folder_and_one_that_is_not_there_have_nothing_new(events: Events) -> None:
    assert events.pending() == Pending({}, (), {})
    events.folder.mkdir()
    assert events.pending() == Pending({}, (), {})
    assert events.ingest().files == {}


def test_an_empty_file_is_in_the_ledger_and_gives_nothing(events: Events) -> None:
    for path in ("a.jsonl", "b.jsonl", "c.jsonl.gz"):
        write_events(events.settings, path, b"")
    assert outcomes(events.ingest()) == dict.fromkeys(
        ("a.jsonl", "b.jsonl", "c.jsonl.gz"), ("new", 0, 0, 0)
    )
    assert events.pending().files == {}
    events.write("b.jsonl", event(1))
    assert outcomes(events.ingest()) == {"b.jsonl": ("grown", 1, 0, 0)}


def test_a_compressed_file_gives_its_lines(events: Events) -> None:
    events.write("a.jsonl.gz", event(1), BAD)
    events.write("b.ndjson.gz", event(2))
    events.write("c.ndjson", event(3))
    assert {path: one[1] for path, one in outcomes(events.ingest()).items()} == {
        "a.jsonl.gz": 1, "b.ndjson.gz": 1, "c.ndjson": 1,
    }  # fmt: skip


NAMES = [
    "with space.jsonl", "ünï/日本 🎁.jsonl", "it's \"quoted\"; DROP.jsonl", "%s ? $1 {x}.jsonl",
    "a/b/c/d/e.jsonl", "new\nline.jsonl", "back\\slash.jsonl", "-.jsonl", "100%.jsonl.gz",
    "x.jsonl/y.jsonl", "file:1:2.jsonl",
]  # fmt: skip


def test_files_may_be_called_anything_and_lie_in_any_folder(events: Events) -> None:
    for number, name in enumerate(NAMES):
        events.write(name, event(number), BAD)
    came = events.ingest()
    assert outcomes(came) == dict.fromkeys(NAMES, ("new", 1, 1, 0))
    # They are found again, whether they grow, are replaced or copied.
    for number, name in enumerate(NAMES):
        events.write(name, event(number), BAD, event(100 + number))
    assert {path: one[:2] for path, one in outcomes(events.ingest()).items()} == dict.fromkeys(
        NAMES, ("grown", 1)
    )
    for number, name in enumerate(NAMES):
        events.write(name, event(200 + number))
        events.write(f"copies/{name}", event(200 + number))
    assert {one[0] for one in outcomes(events.ingest()).values()} <= {"changed", "new", "copy"}
    assert len(events.accepted()) == 3 * len(NAMES)


def test_a_name_that_is_no_text_is_left_alone_and_stops_no_other(events: Events) -> None:
    events.write("a.jsonl", event(1))
    name = os.fsdecode(b"caf\xe9.jsonl")
    (events.folder / name).write_text(event(2))
    pending = events.pending()
    assert list(pending.files) == ["a.jsonl"]
    assert pending.left_alone == {"caf\\xe9.jsonl": "has a name that is not UTF-8 text: rename it"}


def test_hidden_files_are_left_alone_and_other_endings_and_pipes_named(events: Events) -> None:
    for path in (".a.jsonl", ".hidden/a.jsonl", "a/.b/c.jsonl"):
        events.write(path, event(1))
    others = ["a.csv", "a.gz", "a.jsonl.1", "a.jsonl.part", "a.jsonl.tmp", "firehose-1", "jsonl"]
    for path in others:
        events.write(path, event(1))
    (events.folder / "folder.jsonl").mkdir()
    os.mkfifo(events.folder / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(events.folder / "socket.json"))
    not_ordinary = "is no ordinary file but a pipe, a socket or a device"
    pending = events.pending()
    assert pending == Pending(
        {}, (), dict.fromkeys(("pipe.jsonl", "socket.json"), not_ordinary), tuple(others)
    )
    assert pending.about_not_read().endswith(
        "7 files are not read, since their names do not end in .jsonl, .ndjson or .json (or these"
        " with .gz or .zst): a.csv, a.gz, a.jsonl.1, a.jsonl.part, a.jsonl.tmp, …"
    )


@pytest.mark.parametrize("link", [False, True])
def test_what_became_a_pipe_or_a_link_after_it_was_seen_is_refused_when_it_is_opened(
    link: bool, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = events.write("sub/a.jsonl", event(1))
    secret = events.settings.data_dir / "secret.jsonl"
    secret.write_text(f"{event(2)}\n")
    look = regular_files._regular

    def swap(*args: Any) -> None:
        look(*args)
        file.unlink(missing_ok=True)
        file.symlink_to(secret) if link else os.mkfifo(file)

    opened = EventFolder(events.settings.events_location)
    with monkeypatch.context() as patch:
        patch.setattr(regular_files, "_regular", swap)
        with pytest.raises(OSError if link else UsageError):  # ELOOP
            opened.open("sub/a.jsonl")
    assert events.ingest("sub/a.jsonl").failed.keys() == {"sub/a.jsonl"}
    assert events.accepted() == []


def test_a_folder_that_became_a_link_is_refused(events: Events, tmp_path: Path) -> None:
    events.write("sub/deep/a.jsonl", event(1))
    (events.folder / "sub").rename(tmp_path / "sub")
    (events.folder / "sub").symlink_to(tmp_path / "sub")
    with pytest.raises(UsageError, match="sub is a link"):
        EventFolder(events.settings.events_location).open("sub/deep/a.jsonl")


@pytest.mark.parametrize(
    ("refused", "name", "taken"),
    [("shut", "shut", ["a.jsonl"]), ("", ".", []), ("open/shut", "open/shut", ["a.jsonl"])],
)
def test_a_folder_that_cannot_be_listed_is_named_and_stops_no_other(
    events: Events, refused: str, name: str, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events.write("a.jsonl", event(1))
    events.write(f"{refused or 'shut'}/b.jsonl", event(2))
    scandir, shut = os.scandir, os.path.join(events.folder, refused)  # noqa: PTH118

    def refuse(path: str) -> Any:
        # A superuser may list all folders.
        if path == shut:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        pending = events.pending()
    assert list(pending.files) == taken
    assert pending.left_alone == {name: "cannot be listed: Permission denied"}
    assert len(events.pending().files) == 2
    assert events.pending().left_alone == {}


def test_an_events_folder_that_is_a_file_is_named(events: Events) -> None:
    events.folder.write_text(event(1))
    assert events.pending() == Pending({}, (), {".": "cannot be listed: Not a directory"})


def test_a_file_that_cannot_be_looked_at_is_named(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("a.jsonl", "b.jsonl"):
        events.write(path, event(1))
    scandir = os.scandir

    class Shut:
        """An entry of a folder whose names may be read, and nothing else."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self._entry = entry

        def __getattr__(self, name: str) -> Any:
            return getattr(self._entry, name)

        def stat(self) -> os.stat_result:
            raise PermissionError(13, "Permission denied", self._entry.path)

    class Entries(list[Any]):
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

    def shut(path: str) -> Entries:
        with scandir(path) as entries:
            return Entries(Shut(entry) if entry.name == "b.jsonl" else entry for entry in entries)

    monkeypatch.setattr(os, "scandir", shut)
    pending = events.pending()
    assert list(pending.files) == ["a.jsonl"]
    assert pending.left_alone == {"b.jsonl": "cannot be looked at: Permission denied"}


# Links, and paths that leave the folder


def test_links_are_named_and_not_followed(events: Events, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jsonl").write_text(event(1))
    events.write("real.jsonl", event(2))
    (events.folder / "file.jsonl").symlink_to(outside / "secret.jsonl")
    (events.folder / "folder").symlink_to(outside)
    (events.folder / "own.jsonl").symlink_to(events.folder / "real.jsonl")
    (events.folder / "dangling.jsonl").symlink_to(outside / "none")
    pending = events.pending()
    assert list(pending.files) == ["real.jsonl"]
    assert pending.left_alone.keys() == {"file.jsonl", "folder", "own.jsonl", "dangling.jsonl"}
    came = events.ingest("file.jsonl", "folder/secret.jsonl", "own.jsonl", "real.jsonl")
    assert came.failed.keys() == {"file.jsonl", "folder/secret.jsonl", "own.jsonl"}
    assert all("is a link" in problem for problem in came.failed.values())
    assert events.accepted() == [("E2", "real.jsonl", 1)]


def test_a_path_that_leaves_the_folder_is_refused(events: Events) -> None:
    paths = ("../secret.jsonl", "a/../../secret.jsonl", "/etc/secret.jsonl", "..", "", ".")
    (events.settings.data_dir / "secret.jsonl").write_text(event(1))
    events.write("real.jsonl", event(2))
    came = events.ingest(*paths, "real.jsonl")
    assert came.failed.keys() == set(paths)
    assert events.accepted() == [("E2", "real.jsonl", 1)]
    for path in paths:
        with pytest.raises(UsageError, match="leaves the events folder"):
            EventFolder(events.settings.events_location).open(path)


# The day on which a file landed


LANDED = [
    ("2026-10-08/a.jsonl", "2026-10-12T12:00:00", date(2026, 10, 8)),
    ("orders_2026_10_08.jsonl", "2026-10-12T12:00:00", date(2026, 10, 8)),
    ("2026-10-08/orders-2026-10-09.jsonl", "2026-10-12T12:00:00", date(2026, 10, 9)),
    ("2026-10-08/2026-02-30.jsonl", "2026-10-12T12:00:00", date(2026, 10, 8)),
    # Not among the partitions.
    ("2026-10-01/a.jsonl", "2026-10-12T12:00:00", date(2026, 10, 12)),
    ("2999-10-01/a.jsonl", "2026-10-12T12:00:00", date(2026, 10, 12)),
    ("12026-10-08.jsonl", "2026-10-12T12:00:00", date(2026, 10, 12)),
    # In the business time zone.
    ("a.jsonl", "2026-10-12T22:59:59", date(2026, 10, 12)),
    ("b.jsonl", "2026-10-12T23:00:00", date(2026, 10, 13)),
    ("c.jsonl", "2026-10-25T23:59:59", date(2026, 10, 25)),
]


def test_the_received_day_is_named_by_the_path_else_by_the_time_of_the_file(events: Events) -> None:
    for number, (path, modified, _) in enumerate(LANDED):
        written = datetime.fromisoformat(modified).replace(tzinfo=timezone.utc)
        write_events(
            events.settings,
            path,
            [event(number), BAD],
            modified_ns=int(written.timestamp()) * 10**9,
        )
    events.ingest()
    for table in ("raw_events", "enriched_events", "dead_letter_events", "event_files"):
        path = "path" if table == "event_files" else "source_name"
        found = events.rows(f"SELECT DISTINCT {path}, received_date FROM lake.{table}")
        assert sorted(found) == sorted((path, day) for path, _, day in LANDED)


def test_a_file_from_before_the_first_partition_landed_today(events: Events) -> None:
    write_events(events.settings, "a.jsonl", [event(1)], modified_ns=10**9)
    before = datetime.now(timezone.utc).date()
    events.ingest()
    [(day,)] = events.rows("SELECT received_date FROM lake.raw_events")
    assert 0 <= (day - before).days <= 1


# Which files are new


def test_a_file_that_is_there_again_is_unchanged(events: Events) -> None:
    file = events.write("a.jsonl", event(1), BAD)
    events.ingest()
    before = events.tables()
    assert events.pending().files == {}
    shutil.copyfile(file, file.with_suffix(".tmp"))
    file.unlink()
    shutil.move(file.with_suffix(".tmp"), file)
    assert list(events.pending().files) == ["a.jsonl"]
    assert outcomes(events.ingest()) == {"a.jsonl": ("unchanged", 0, 0, 0)}
    assert events.tables() == before
    assert outcomes(events.ingest("a.jsonl")) == {"a.jsonl": ("unchanged", 0, 0, 0)}
    assert events.rows("SELECT version FROM lake.event_files") == [(1,)]


def test_a_file_that_is_compressed_otherwise_is_unchanged(events: Events) -> None:
    file = events.write("a.jsonl.gz", event(1))
    events.ingest()
    file.write_bytes(gzip.compress(f"{event(1)}\n".encode(), 1, mtime=1))
    os.utime(file, (1_791_900_000, 1_791_900_000))
    assert outcomes(events.ingest()) == {"a.jsonl.gz": ("unchanged", 0, 0, 0)}


def test_late_files_and_files_of_one_time_are_all_new_the_newest_day_first(events: Events) -> None:
    """Neither a clock nor a cursor decides."""
    now = 1_791_800_000 * 10**9
    write_events(events.settings, "m.jsonl", [event(1)], modified_ns=now)
    events.ingest()
    write_events(events.settings, "a.jsonl", [event(2)], modified_ns=now)
    write_events(events.settings, "z.jsonl", [event(3)], modified_ns=now)
    write_events(events.settings, "b.jsonl", [event(4)], modified_ns=now - 5 * 86_400 * 10**9)
    assert list(events.pending().files) == ["a.jsonl", "z.jsonl", "b.jsonl"]
    events.ingest()
    assert len(events.accepted()) == 4


def test_a_file_that_is_deleted_keeps_what_it_gave(events: Events) -> None:
    file = events.write("a.jsonl", event(1))
    events.ingest()
    file.unlink()
    events.write("b.jsonl", event(1), event(2))
    assert outcomes(events.ingest()) == {"b.jsonl": ("new", 1, 0, 1)}
    assert events.accepted() == [("E1", "a.jsonl", 1), ("E2", "b.jsonl", 2)]


def test_of_a_file_that_grew_only_the_new_lines_are_taken(events: Events) -> None:
    file = events.write("a.jsonl", event(1), BAD)
    events.ingest()
    grow(file, f"{event(2)}\n{event(1)}\n{BAD}\n")
    assert outcomes(events.ingest()) == {"a.jsonl": ("grown", 1, 1, 1)}
    assert events.ledger() == {"a.jsonl": (5, 2, 2, 1, None)}
    assert events.dead() == [("a.jsonl", 2, "not_json"), ("a.jsonl", 5, "not_json")]


VERSIONS = (
    "SELECT version, lines, accepted, dead_lettered, duplicate, superseded_at IS NOT NULL,"
    " retracted_at IS NOT NULL FROM lake.event_files ORDER BY version"
)


def test_the_events_of_a_file_that_changed_stay_and_are_named(events: Events, caplog) -> None:
    events.write("a.jsonl", event(1), BAD, event(2), BAD)
    events.ingest()
    events.write("a.jsonl", event(2), event(3), BAD)
    came = events.ingest()
    assert outcomes(came) == {"a.jsonl": ("changed", 1, 1, 1)}
    (file,) = came.files.values()
    assert (file.events_before, file.dead_letters_before) == (2, 2)
    assert "2 events and 2 dead letters of the version before stay" in caplog.text
    assert events.accepted() == [("E1", "a.jsonl", 1), ("E2", "a.jsonl", 3), ("E3", "a.jsonl", 2)]
    assert events.rows("SELECT version, position FROM lake.dead_letter_events ORDER BY ALL") == [
        (1, 2), (1, 4), (2, 3),
    ]  # fmt: skip
    assert events.rows(VERSIONS) == [(1, 4, 2, 2, 0, True, False), (2, 3, 1, 1, 1, False, False)]
    assert outcomes(events.ingest("a.jsonl")) == {"a.jsonl": ("unchanged", 0, 0, 0)}


def test_where_files_are_replaced_their_earlier_events_are_retracted(
    events: Events, caplog
) -> None:
    events = events.replacing
    events.write("a.jsonl", event(1), BAD, event(2), BAD)
    events.ingest()
    events.write("a.jsonl", event(2), event(3), "null")
    assert outcomes(events.ingest()) == {"a.jsonl": ("replaced", 2, 1, 0)}
    assert "2 events and 2 dead letters of the version before were retracted" in caplog.text
    assert events.accepted() == [("E2", "a.jsonl", 1), ("E3", "a.jsonl", 2)]
    assert events.dead() == [("a.jsonl", 3, "not_an_object")]
    assert events.rows(VERSIONS) == [(1, 4, 2, 2, 0, True, True), (2, 3, 2, 1, 0, False, False)]
    # Nothing that was received is gone.
    raw = events.rows("SELECT version, count(*) FROM lake.raw_events GROUP BY 1 ORDER BY 1")
    assert raw == [(1, 4), (2, 3)]


def test_a_file_that_was_emptied_gives_nothing_any_more_where_files_are_replaced(
    events: Events,
) -> None:
    events = events.replacing
    events.write("a.jsonl", event(1), BAD)
    events.write("b.jsonl", event(1))
    events.ingest()
    events.write("a.jsonl")
    assert outcomes(events.ingest()) == {"a.jsonl": ("replaced", 0, 0, 0)}
    assert events.accepted() == [("E1", "b.jsonl", 1)]
    assert events.dead() == []


@pytest.mark.parametrize("way", ["copytruncate", "rename"])
def test_a_log_that_rotates_loses_nothing_and_gives_nothing_twice(events: Events, way: str) -> None:
    file = events.write("app.jsonl", event(1), BAD, event(2))
    events.ingest()
    rotated = events.folder / "app-2026-11-01.jsonl"
    if way == "rename":
        file.rename(rotated)
    else:
        shutil.copy2(file, rotated)
    events.write("app.jsonl", event(3), event(4))
    came = events.ingest()
    assert outcomes(came) == {
        "app.jsonl": ("changed", 2, 0, 0),
        "app-2026-11-01.jsonl": ("copy", 0, 0, 3),
    }
    assert [row[0] for row in events.accepted()] == ["E1", "E2", "E3", "E4"]
    assert events.dead() == [("app.jsonl", 2, "not_json")]
    events.write("app.jsonl", event(5))
    assert outcomes(events.ingest()) == {"app.jsonl": ("changed", 1, 0, 0)}
    assert len(events.accepted()) == 5


def test_a_copy_has_the_rows_once_its_owner_is_retracted(events: Events) -> None:
    events.write("a.jsonl", event(1), BAD)
    events.write("b.jsonl", event(1), BAD)
    events.ingest()
    events.write("a.jsonl", event(2))
    events.ingest()
    assert events.ledger()["b.jsonl"] == (2, 0, 0, 2, "a.jsonl")
    done = retract(events.session, events.settings, "a.jsonl")
    assert done == [Retracted("a.jsonl", 1, 1, 1)]
    events.must_balance()
    assert events.ledger()["b.jsonl"] == (2, 1, 1, 0, None)
    assert events.accepted() == [("E1", "b.jsonl", 1), ("E2", "a.jsonl", 1)]
    assert events.dead() == [("b.jsonl", 2, "not_json")]


def test_a_retraction_brings_duplicates_forward_and_lasts(events: Events) -> None:
    events.write("a.jsonl", event(1), event(2))
    events.write("b.jsonl", event(1, note="b"))
    events.ingest()
    settings = events.settings
    with pytest.raises(RetailAssetsError, match="no earlier version"):
        retract(events.session, settings, "a.jsonl")
    with pytest.raises(RetailAssetsError, match="still lies in the events folder"):
        retract(events.session, settings, "a.jsonl", 1)
    with pytest.raises(RetailAssetsError, match="no events of a file c"):
        retract(events.session, settings, "c.jsonl")
    content = (events.folder / "a.jsonl").read_bytes()
    (events.folder / "a.jsonl").unlink()
    done = retract(events.session, settings, "a.jsonl", 1)
    assert done == [Retracted("a.jsonl", 1, 2, 0)]
    events.must_balance()
    assert events.accepted() == [("E1", "b.jsonl", 1)]
    assert len(events.rows("FROM lake.raw_events")) == 3
    (day,) = {day for (day,) in events.rows("SELECT received_date FROM lake.raw_events")}
    assert check_day(events.session, day) == []
    # What comes again counts again, as a version of its own.
    write_events(events.settings, "a.jsonl", content)
    assert outcomes(events.ingest()) == {"a.jsonl": ("changed", 2, 0, 0)}
    assert events.accepted() == [("E1", "a.jsonl", 1), ("E2", "a.jsonl", 2)]


def test_a_duplicate_elsewhere_comes_forward_when_its_event_is_gone(events: Events) -> None:
    events = events.replacing
    events.write("a.jsonl", event(1), event(2))
    events.write("b.jsonl", event(1, region="South"), event(2))
    events.write("c.jsonl", event(1, region="West"))
    events.ingest()
    assert [row[1] for row in events.accepted()] == ["a.jsonl", "a.jsonl"]
    events.write("a.jsonl", event(2))
    events.ingest()
    # What is written anew is received anew.
    assert events.accepted() == [("E1", "b.jsonl", 1), ("E2", "b.jsonl", 2)]
    assert events.rows("SELECT region FROM lake.enriched_events WHERE event_id = 'E1'") == [
        ("South",)
    ]
    assert events.ledger()["b.jsonl"] == (2, 2, 0, 0, None)
    assert events.ledger()["c.jsonl"] == (1, 0, 1, 0, None)


@pytest.mark.parametrize(
    "first", ["z/2026-10-13.jsonl", "batch_10.jsonl"], ids=["later day in its name", "any name"]
)
def test_the_event_that_was_received_first_counts_though_it_was_ingested_later(
    events: Events, first: str
) -> None:
    events.write("m/2026-10-12.jsonl", event(1, region="late"), event(2))
    events.ingest()
    lines = f"{event(3)}\n{event(1, region='first')}\n".encode()
    write_events(events.settings, first, lines, modified_ns=STILL_NS - 10**9)
    came = events.ingest()
    assert outcomes(came) == {first: ("new", 2, 0, 0)}
    assert ("E1", first, 2) in events.accepted()
    assert events.ledger()["m/2026-10-12.jsonl"] == (2, 1, 1, 0, None)


def test_a_lake_of_an_earlier_release_goes_on_where_it_was(events: Events) -> None:
    file = events.write("a.jsonl", event(1), BAD)
    events.ingest()
    execute = events.connection.execute
    (before,) = events.rows("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
    # As it was: no versions of lines, and none but the last version has any.
    for table in ("raw_events", "enriched_events", "dead_letter_events"):
        for column in ("version", "received_at"):
            execute(f"ALTER TABLE lake.{table} DROP COLUMN {column}")
    for column in ("received_at", "superseded_at"):
        execute(f"ALTER TABLE lake.event_files DROP COLUMN {column}")
    execute("UPDATE lake.event_files SET version = 2")
    execute(
        "INSERT INTO lake.event_files SELECT * REPLACE (1 AS version, now() AS retracted_at)"
        " FROM lake.event_files"
    )
    create_missing_tables(events.lake, events.connection)
    assert events.rows(
        "SELECT version, superseded_at IS NULL, retracted_at IS NULL FROM lake.event_files"
        " ORDER BY version"
    ) == [(0, False, False), (1, True, True)]
    for table in ("raw_events", "enriched_events", "dead_letter_events"):
        found = events.rows(f"SELECT DISTINCT version, received_at FROM lake.{table}")
        assert found == [(1, None)]
    assert [letter["id"] for letter in dead_letters.find(events.connection)] == ["file:a.jsonl:2"]
    (day,) = {day for (day,) in events.rows("SELECT received_date FROM lake.raw_events")}
    assert check_day(events.session, day) == []
    grow(file, f"{event(2)}\n")
    assert outcomes(events.ingest()) == {"a.jsonl": ("grown", 1, 0, 0)}
    events.write("a.jsonl", event(3))
    assert outcomes(events.ingest()) == {"a.jsonl": ("changed", 1, 0, 0)}
    assert [row[0] for row in events.accepted()] == ["E1", "E2", "E3"]
    assert events.rows(f"FROM lake.raw_events AT (VERSION => {before[0]})")


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


# Copies


def test_a_copy_is_counted_as_duplicates_under_its_name(events: Events) -> None:
    for path in ("a.jsonl", "b.jsonl", "c/copy.jsonl.gz"):
        events.write(path, event(1), BAD, event(1))
    came = events.ingest()
    assert outcomes(came) == {
        "a.jsonl": ("new", 1, 1, 1),
        "b.jsonl": ("copy", 0, 0, 3),
        "c/copy.jsonl.gz": ("copy", 0, 0, 3),
    }
    assert events.ledger() == {
        "a.jsonl": (3, 1, 1, 1, None),
        "b.jsonl": (3, 0, 0, 3, "a.jsonl"),
        "c/copy.jsonl.gz": (3, 0, 0, 3, "a.jsonl"),
    }
    assert events.dead() == [("a.jsonl", 2, "not_json")]


def test_a_renamed_file_is_a_copy_of_what_it_was(events: Events) -> None:
    file = events.write("b.jsonl", event(1), BAD)
    events.ingest()
    file.rename(events.folder / "c.jsonl")
    assert outcomes(events.ingest()) == {"c.jsonl": ("copy", 0, 0, 2)}
    assert events.ledger()["c.jsonl"] == (2, 0, 0, 2, "b.jsonl")


def test_a_large_file_of_an_earlier_release_has_copies_too(events: Events) -> None:
    lines = [event(1, note="x" * 200_000), BAD, event(2, note="y" * 200_000)]
    content = "".join(f"{line}\n" for line in lines).encode()
    for path in ("a.jsonl", "b.jsonl"):
        events.write(path, *lines)
    events.ingest()
    # What a lake has that was made before hashes could go on.
    events.connection.execute(
        "UPDATE lake.event_files SET checkpoint = NULL, content_hash = ?",
        [hashlib.sha256(content).hexdigest()],
    )
    for path in ("c.jsonl", "d.jsonl.gz"):
        events.write(path, *lines)
    other = [lines[0].replace("x", "z"), *lines[1:]]
    events.write("other.jsonl", *other)
    assert outcomes(events.ingest()) == {
        "c.jsonl": ("copy", 0, 0, 3),
        "d.jsonl.gz": ("copy", 0, 0, 3),
        "other.jsonl": ("new", 0, 2, 1),
    }
    assert events.dead() == [
        ("a.jsonl", 2, "not_json"), ("other.jsonl", 1, "conflicting_event"),
        ("other.jsonl", 2, "not_json"),
    ]  # fmt: skip
    for path, owner in itertools.pairwise(("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl.gz")):
        retract_all(events, path)
        assert events.accepted() == [("E1", owner, 1), ("E2", owner, 3)]


def retract_all(events: Events, path: str) -> None:
    (events.folder / path).unlink()
    retract(events.session, events.settings, path, 1)
    events.must_balance()


def test_the_copy_that_was_received_first_has_the_rows_whenever_it_comes(events: Events) -> None:
    for number, path in enumerate(("c.jsonl", "d.jsonl", "a.jsonl", "b.jsonl")):
        lines = [event(1), BAD]
        write_events(events.settings, path, lines, modified_ns=STILL_NS - number * 10**9)
        events.ingest()
    assert events.accepted() == [("E1", "b.jsonl", 1)]
    assert events.dead() == [("b.jsonl", 2, "not_json")]
    assert events.ledger() == {
        "b.jsonl": (2, 1, 1, 0, None),
        **dict.fromkeys(("a.jsonl", "c.jsonl", "d.jsonl"), (2, 0, 0, 2, "b.jsonl")),
    }


@pytest.mark.parametrize("now", [[event(9)], [event(1), BAD, event(9)]], ids=["replaced", "grown"])
def test_when_the_holder_changes_the_next_copy_has_the_rows(
    events: Events, now: Sequence[str]
) -> None:
    events = events.replacing
    for path in ("a.jsonl", "b.jsonl", "c.jsonl"):
        events.write(path, event(1), BAD)
    events.ingest()
    events.write("a.jsonl", *now)
    events.ingest()
    grown = len(now) > 1
    assert events.ledger() == {
        "a.jsonl": (3, 2, 1, 0, None) if grown else (1, 1, 0, 0, None),
        "b.jsonl": (2, 0, 1, 1, None) if grown else (2, 1, 1, 0, None),
        "c.jsonl": (2, 0, 0, 2, "b.jsonl"),
    }


def test_a_copy_that_goes_on_counts_from_then_on_for_itself(events: Events) -> None:
    events.write("a.jsonl", event(1), BAD)
    copy = events.write("b.jsonl", event(1), BAD)
    events.ingest()
    grow(copy, f"{event(2)}\n")
    assert outcomes(events.ingest()) == {"b.jsonl": ("grown", 1, 1, 1)}
    assert events.ledger() == {"a.jsonl": (2, 1, 1, 0, None), "b.jsonl": (3, 1, 1, 1, None)}


def test_a_file_that_grew_into_a_copy_is_one(events: Events) -> None:
    """However a file came to its content."""
    events.write("a.jsonl", event(1), BAD, event(2))
    file = events.write("b.jsonl", event(1), BAD)
    events.ingest()
    assert len(events.dead()) == 2
    grow(file, f"{event(2)}\n")
    assert outcomes(events.ingest()) == {"b.jsonl": ("copy", 0, 0, 1)}
    assert events.ledger()["b.jsonl"] == (3, 0, 0, 3, "a.jsonl")
    assert events.dead() == [("a.jsonl", 2, "not_json")]


def test_a_file_that_lands_while_its_holder_changes_joins_the_copies(events: Events) -> None:
    events = events.replacing
    events.write("a.jsonl", event(1), BAD)
    events.write("b.jsonl", event(1), BAD)
    events.ingest()
    events.write("a.jsonl", event(2))
    events.write("c.jsonl", event(1), BAD)
    events.ingest()
    assert events.ledger() == {
        "a.jsonl": (1, 1, 0, 0, None),
        "b.jsonl": (2, 1, 1, 0, None),
        "c.jsonl": (2, 0, 0, 2, "b.jsonl"),
    }


@pytest.mark.parametrize("kept", [True, False])
def test_two_files_that_change_places_are_counted_as_they_are(
    events: Events,
    kept: bool,
) -> None:
    events.write("a.jsonl", event(1), BAD)
    events.write("b.jsonl", event(2), "null")
    events.ingest()
    events.write("a.jsonl", event(2), "null")
    events.write("b.jsonl", event(1), BAD)
    (events if kept else events.replacing).ingest()
    if kept:
        assert events.accepted() == [("E1", "a.jsonl", 1), ("E2", "b.jsonl", 1)]
        assert events.dead() == [("a.jsonl", 2, "not_json"), ("b.jsonl", 2, "not_an_object")]
        assert [row[-1] for row in events.ledger().values()] == ["b.jsonl", "a.jsonl"]
        return
    assert events.accepted() == [("E1", "b.jsonl", 1), ("E2", "a.jsonl", 1)]
    assert events.dead() == [("a.jsonl", 2, "not_an_object"), ("b.jsonl", 2, "not_json")]


def test_the_copy_of_a_file_of_many_chunks_is_one(events: Events) -> None:
    lines = [text for n in range(5) for text in (event(n), BAD)]
    events = events.limited(block_bytes=100, chunk_bytes=300)
    events.write("b.jsonl", *lines)
    assert outcomes(events.ingest()) == {"b.jsonl": ("new", 5, 5, 0)}
    assert len(events.rows("FROM ducklake_snapshots('lake')")) > 3
    events.write("c.jsonl", *lines)
    assert outcomes(events.ingest()) == {"c.jsonl": ("copy", 0, 0, 10)}
    write_events(events.settings, "a.jsonl", lines, modified_ns=STILL_NS - 10**9)
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 5, 5, 0)}
    assert {path: row[-1] for path, row in events.ledger().items()} == {
        "a.jsonl": None, "b.jsonl": "a.jsonl", "c.jsonl": "a.jsonl",
    }  # fmt: skip


def commits(events: Events) -> int:
    """How often event files were taken in."""
    found = events.rows(
        "SELECT count(*) FROM ducklake_snapshots('lake')"
        " WHERE commit_message = 'ingest event files'"
    )
    return int(found[0][0])


def test_of_short_lines_so_many_are_ingested_at_once_and_keep_their_numbers(
    events: Events,
) -> None:
    events = events.limited(chunk_lines=4)
    lines = [event(1), *[""] * 8, event(2), event(3)]
    file = events.write("a.jsonl", *lines)
    assert outcomes(events.ingest()) == {"a.jsonl": ("new", 3, 8, 0)}
    assert commits(events) == 3
    grow(file, "\n" * 5 + f"{event(4)}\n")
    assert outcomes(events.ingest()) == {"a.jsonl": ("grown", 1, 5, 0)}
    assert commits(events) == 5
    assert events.accepted() == [
        (f"E{n}", "a.jsonl", line) for n, line in enumerate((1, 10, 11, 17), 1)
    ]
    assert [line for _, line, _ in events.dead()] == [*range(2, 10), *range(12, 17)]


def test_short_lines_of_many_files_weigh_more_than_their_bytes(events: Events) -> None:
    events = events.limited(chunk_bytes=1000)
    for number in range(30):
        events.write(f"{number:02}.jsonl", str(number))
    events.ingest()
    assert len(events.dead()) == 30
    assert commits(events) == 3


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


# New fields


def test_a_new_field_is_reported_once_and_so_is_a_new_type_of_it(events: Events) -> None:
    events.write("a.jsonl", event(1, note="x", odd={"a": 1}), event(2, note="y"), event(3))
    assert sorted(events.ingest().new_fields) == [("note", "VARCHAR"), ("odd", "OBJECT")]
    events.write("b.jsonl", event(4, note="z")[:-1] + ', "": null}')
    assert events.ingest().new_fields == [("", "NULL")]
    events.write("c.jsonl", event(5, note=1), event(6, note=[1]), event(7, note="x"))
    assert sorted(events.ingest().new_fields) == [("note", "ARRAY"), ("note", "UBIGINT")]
    events.write("a.jsonl", event(1, note="other"))
    assert events.ingest().new_fields == []
    assert events.rows("SELECT count(*), count(DISTINCT first_seen_at) FROM lake.event_fields") == [
        (5, 3)
    ]


def test_fields_of_events_that_are_not_valid_are_no_news(events: Events) -> None:
    events.write("a.jsonl", event(1, region=None, note="x"))
    assert events.ingest().new_fields == []


def test_made_up_field_names_do_not_fill_the_ledger(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batch, "MAX_FIELDS", 10)
    events.write("a.jsonl", event(1, **{f"field{n}": n for n in range(100)}))
    events.write("b.jsonl", event(2, **{"x" * 100_000: 1}))
    assert len(events.ingest().new_fields) == 10
    events.write("c.jsonl", event(3, another=1))
    assert events.ingest().new_fields == []
    assert events.rows("SELECT max(length(extra)) > 100000 FROM lake.enriched_events") == [(True,)]


# The order of arrival


def test_the_order_of_arrival_makes_no_difference(
    events: Events, new_lake: NewLake, tmp_path: Path
) -> None:
    """Whether files come together or one by one, each received before those that came earlier.

    The properties of event files try other orders.
    """
    contents = {
        "2026-10-11/z.jsonl": [event(1), event(2, event_id=None), BAD],
        "2026-10-12/a.jsonl": [event(1, region="a"), event(2), event(3)],
        "2026-10-12/b.jsonl": [event(3, region="b"), event(2, event_id=None), BAD, BAD],
        "2026-10-12/copy.jsonl.gz": [event(1), event(2, event_id=None), BAD],
        "2026-10-13/a.jsonl": [event(4, event_id="E1"), event(3), ""],
        "late/2026-10-11.jsonl": [event(3, region="late"), event(5)],
    }
    # Two were last written to at the same time.
    times = {path: STILL_NS + number // 2 * 10**9 for number, path in enumerate(contents)}
    for path, lines in contents.items():
        write_events(events.settings, path, lines, modified_ns=times[path])
    events.ingest()
    together, ledger = events.tables(), events.ledger()
    other = Settings(data_dir=tmp_path / "other", threads=1)
    new_lake(other.data_dir)
    lake = Lake.from_settings(other)
    with lake.connect() as connection:
        one_by_one = Events(EventSession(lake, connection), other)
        # The last received first: each of them takes rows away from those before it.
        for path in reversed(contents):
            write_events(other, path, contents[path], modified_ns=times[path])
            one_by_one.ingest()
        assert one_by_one.tables() == together
        assert one_by_one.ledger() == ledger


def test_running_it_again_changes_nothing(events: Events) -> None:
    events.write("a.jsonl", event(1), BAD, event(1))
    events.write("b.jsonl", event(1), event(2, note=1))
    events.write("c.jsonl", event(1), BAD, event(1))
    events.ingest()
    before = events.tables(), events.ledger()
    again = events.ingest("a.jsonl", "b.jsonl", "c.jsonl")
    assert {one[0] for one in outcomes(again).values()} == {"unchanged"}
    assert (events.tables(), events.ledger()) == before
