"""What becomes of event files: which are new, and that each line of them counts exactly once."""

import gzip
import os
import shutil
import socket
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self

from retail_assets.errors import UsageError
from retail_assets.ingest.event_files import regular_files
from retail_assets.ingest.event_files.folder import EventFolder
from retail_assets.ingest.event_files.pending import Pending
from retail_assets.ingest.events import batch as event_batch
from retail_assets.ingest.events.session import EventSession
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import STILL_NS, event, write_events
from retail_assets_tests.ingest.event_files.conftest import BAD, Events, grow, outcomes

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


def commits(events: Events) -> int:
    """How often event files were ingested."""
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
