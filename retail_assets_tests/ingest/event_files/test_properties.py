"""Whatever happens to event files and in whatever order: the tables follow from what was taken."""

import gzip
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from retail_assets.ingest.event_files.load import ingest
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.event_files.reader import LIMITS, ReadLimits
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.repair.replay import check_day
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example costs seconds: making it smaller would cost minutes."""

# The later a name stands in the alphabet, the earlier may its day be.
PATHS = {
    "2026-10-20/a.jsonl": date(2026, 10, 20),
    "2026-10-20/c.jsonl": date(2026, 10, 20),
    "a/2026-10-21.jsonl": date(2026, 10, 21),
    "b 2026-10-20.jsonl.gz": date(2026, 10, 20),
    "z'ü/2026-10-19.jsonl": date(2026, 10, 19),
}

REST = '"order_id":"O1","customer_id":"C1","region":"N","order_value_gbp":'

# Each line with the identity of its event; those with none, and all others, are dead letters.
LINES = {
    f'{{"event_id":"E1",{REST}1}}': "E1",
    f'{{"event_id":" E1 ",{REST}2.50,"note":"again"}}': "E1",
    f'{{"event_id":"E2",{REST}3}}': "E2",
    f"{{{REST}4}}": "four",
    '{"order_value_gbp": 4, "region": "N", "order_id": "O1", "customer_id": "C1"}': "four",
    f"{{{REST}5}}": "five",
    "{": None,
    '{"order_id":"O1"}': None,
    "": None,
}

contents = st.builds(
    lambda lines, end: ("\n".join(lines) + end).encode(),
    st.lists(st.sampled_from(sorted(LINES)), max_size=4),
    st.sampled_from(["\n", "\n", ""]),
)
paths = st.sampled_from(sorted(PATHS))


@dataclass(frozen=True)
class OnDisk:
    """A file as the model has it: its content, unpacked, and whether somebody still writes."""

    content: bytes
    settled: bool


def lines_of(content: bytes) -> list[str]:
    lines = content.decode().split("\n")
    return [event for line in (lines if lines[-1] else lines[:-1]) for event in events_of(line)]


def events_of(line: str) -> list[str]:
    """A line; if it is objects end to end, each of them, as where one went on without a newline."""
    events = line.replace("}{", "}\n{").split("\n")
    # The only ones that are no objects.
    return [line] if "{" in events else events


def taken_now(path: str, file: OnDisk, before: bytes | None) -> bytes | None:
    """What is taken of a file, all in all."""
    if file.settled:
        return file.content
    if path.endswith(".gz") or file.content == before:
        return before
    return file.content[: file.content.rfind(b"\n") + 1]


Key = tuple[str, int]

VALUE = re.compile(r"order_value_gbp\": ?([0-9.]+)")


@dataclass
class Version:
    """A version of a file as the model has it: what was taken of it, and whether another came."""

    content: bytes
    superseded: bool = False


def rank(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Which of the lines with one identity is first: time, position, content, then names."""
    path, version, position, received_at, payload = row
    value = VALUE.search(payload)
    return received_at, position, Decimal(value[1]) if value else 0, path, version


class Killed(BaseException):
    """Ends an ingest at a commit, as the end of its process would."""


class Events(RuleBasedStateMachine):
    """Files land, grow, are replaced, renamed, deleted and sent again, and are ingested."""

    def __init__(self, new_lake: NewLake, changed: str, limits: ReadLimits = LIMITS) -> None:
        super().__init__()
        self.limits = limits
        self.replacing = changed == "replace"
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.settings = Settings(data_dir=Path(folder), changed_event_files=changed)
        new_lake(self.settings.data_dir)
        # Tables this small take longer with more threads.
        self.lake = Lake.from_settings(self.settings.model_copy(update={"threads": 1}))
        self.connection = self.stack.enter_context(self.lake.connect())
        self.session = EventSession(self.lake, self.connection)
        self.folder = Path(self.settings.events_location)
        self.on_disk: dict[str, OnDisk] = {}
        self.taken: dict[str, bytes] = {}
        self.versions: dict[Key, Version] = {}
        # Versions in whose place another came that has all their lines, the last one whole.
        self.resumed: set[Key] = set()
        self.clock = 1_791_800_000
        self.ingested = self.checked = True

    def teardown(self) -> None:
        try:
            if not self.ingested:
                self.ingest_events()
            self.the_tables_follow_from_what_was_taken()
            for day in sorted(set(PATHS.values())):
                assert check_day(self.session, day) == []
        finally:
            self.stack.close()

    def write(self, path: str, file: OnDisk) -> None:
        self.on_disk[path] = file
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        compressed = path.endswith(".gz")
        place.write_bytes(gzip.compress(file.content) if compressed else file.content)
        self.clock += 1
        # A file of the future stays young, however slow the machine is.
        modified = self.clock if file.settled else int(time.time()) + 1_000_000 + self.clock
        os.utime(place, (modified, modified))
        self.ingested = False

    @initialize(content=contents)
    def start(self, content: bytes) -> None:
        self.write("2026-10-20/c.jsonl", OnDisk(content, settled=True))

    @rule(path=paths, content=contents, settled=st.booleans())
    def land_or_replace(self, path: str, content: bytes, settled: bool) -> None:
        self.write(path, OnDisk(content, settled))

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data(), more=contents, settled=st.booleans())
    def append(self, data: st.DataObject, more: bytes, settled: bool) -> None:
        path = data.draw(st.sampled_from(sorted(self.on_disk)))
        self.write(path, OnDisk(self.on_disk[path].content + more, settled))

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data(), other=paths, keep=st.booleans())
    def send_again_or_rename(self, data: st.DataObject, other: str, keep: bool) -> None:
        path = data.draw(st.sampled_from(sorted(self.on_disk)))
        file = self.on_disk[path]
        if not keep:
            self.delete(path)
        self.write(other, OnDisk(file.content, settled=True))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), other=paths)
    def land_what_was_taken(self, data: st.DataObject, other: str) -> None:
        path = data.draw(st.sampled_from(sorted(self.taken)))
        self.write(other, OnDisk(self.taken[path], settled=True))

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data())
    def cut_off(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.on_disk)))
        content = self.on_disk[path].content
        kept = data.draw(st.sampled_from(range(content.count(b"\n") + 1)))
        shorter = b"".join(content.splitlines(keepends=True)[:kept])
        self.write(path, OnDisk(shorter, settled=True))

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.on_disk)))
        self.write(path, OnDisk(self.on_disk[path].content, settled=True))

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data())
    def delete_one(self, data: st.DataObject) -> None:
        self.delete(data.draw(st.sampled_from(sorted(self.on_disk))))

    def delete(self, path: str) -> None:
        del self.on_disk[path]
        (self.folder / path).unlink()

    @precondition(lambda self: not self.ingested)
    @rule()
    def ingest_events(self) -> None:
        pending = pending_event_files(self.settings, self.connection)
        assert pending.left_alone == {}
        came = ingest(self.session, self.settings, pending.files, limits=self.limits)
        assert came.failed == {}
        for file in came.files.values():
            assert min(file.lines, file.accepted, file.dead_lettered, file.duplicate) >= 0, file
        assert pending_event_files(self.settings, self.connection).files == {}
        for path, file in self.on_disk.items():
            after = taken_now(path, file, self.taken.get(path))
            if after is not None:
                self.note(path, self.taken.get(path), after)
                self.taken[path] = after
        self.ingested, self.checked = True, False

    def note(self, path: str, before: bytes | None, after: bytes) -> None:
        """Note what was taken of a file now, and whether that made a further version."""
        number = max((version for name, version in self.versions if name == path), default=0)
        if before is None:
            number = 1
        elif after != before:
            begins = after.startswith(before)
            if not begins or (before and not before.endswith(b"\n")):
                self.versions[path, number].superseded = True
                if begins:
                    self.resumed.add((path, number))
                number += 1
        self.versions[path, number] = Version(after)

    @precondition(lambda self: not self.ingested)
    @rule(at=st.integers(0, 3), after=st.booleans())
    def take_in_killed_and_started_again(self, at: int, after: bool) -> None:
        commit, passed = lake_connection.commit, 0

        def killed(connection: duckdb.DuckDBPyConnection) -> None:
            nonlocal passed
            passed += 1
            if passed <= at or after:
                commit(connection)
            if passed > at:
                raise Killed

        pending = pending_event_files(self.settings, self.connection)
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(lake_connection, "commit", killed)
            ingest(self.session, self.settings, pending.files, limits=self.limits)
        # What the process had staged is gone with it.
        self.connection.close()
        self.connection = self.stack.enter_context(self.lake.connect())
        self.session = EventSession(self.lake, self.connection)
        self.ingest_events()

    @precondition(lambda self: self.ingested)
    @rule()
    def take_in_again(self) -> None:
        ledger = "SELECT * EXCLUDE (ingested_at) FROM lake.event_files ORDER BY ALL"
        before = self.rows(ledger)
        came = ingest(self.session, self.settings, sorted(self.on_disk), limits=self.limits)
        assert {file.outcome for file in came.files.values()} <= {"unchanged"}
        assert self.rows(ledger) == before

    @invariant()
    def the_tables_follow_from_what_was_taken(self) -> None:
        if self.checked:
            return
        self.checked = True
        ledger = {
            (path, version): tuple(rest)
            for path, version, *rest in self.rows(
                "SELECT path, version, received_date, bytes_taken, lines, accepted, dead_lettered,"
                " duplicate, copy_of, superseded_at IS NOT NULL, retracted_at IS NOT NULL"
                " FROM lake.event_files"
            )
        }
        assert ledger.keys() == self.versions.keys()
        raw = self.rows(
            "SELECT source_name, version, position, received_at, payload FROM lake.raw_events"
        )
        counting = [row for row in raw if not self.is_retracted((row[0], row[1]))]
        winners: dict[str, Any] = {}
        for row in sorted(counting, key=rank):
            identity = LINES.get(row[4])
            if identity is not None:
                winners.setdefault(identity, row)
        enriched = {row[:3] for row in winners.values()}
        dead = {row[:3] for row in counting if LINES.get(row[4]) is None}
        # What says something else under the same event_id.
        dead |= {
            row[:3] for row in counting if LINES.get(row[4]) == "E1" and row[4] != winners["E1"][4]
        }
        place = "source_name, version, position"
        assert self.rows(f"SELECT {place} FROM lake.enriched_events ORDER BY ALL") == sorted(
            enriched
        )
        assert self.rows(f"SELECT {place} FROM lake.dead_letter_events ORDER BY ALL") == sorted(
            dead
        )
        owners: dict[bytes, Key] = {}
        for key, version in self.versions.items():
            lines = lines_of(version.content)
            day, size, count, accepted, dead_lettered, duplicate, copy_of, *state = ledger[key]
            assert (day, size, count) == (PATHS[key[0]], len(version.content), len(lines))
            assert state == [version.superseded, self.is_retracted(key)]
            assert count == accepted + dead_lettered + duplicate
            held = sorted((row[2], row[4]) for row in raw if (row[0], row[1]) == key)
            if copy_of is not None:
                # A copy has no lines of its own, and is of a file with the same content.
                assert (held, accepted, dead_lettered) == ([], 0, 0)
                continue
            assert held == list(enumerate(lines, start=1))
            if state[1]:
                continue
            assert owners.setdefault(version.content or repr(key).encode(), key) == key
            assert accepted == sum(place[:2] == key for place in enriched)
            assert dead_lettered == sum(place[:2] == key for place in dead)
        for key, version in self.versions.items():
            copy_of = ledger[key][6]
            if copy_of is not None and not self.is_retracted(key):
                assert owners[version.content][0] == copy_of
        identities = self.rows("SELECT DISTINCT payload, event_id FROM lake.raw_events")
        ids = {(LINES.get(payload), event_id) for payload, event_id in identities}
        assert len(ids) == len({ours for ours, _ in ids}) == len({theirs for _, theirs in ids})

    def is_retracted(self, key: Key) -> bool:
        return key in self.resumed or (self.replacing and self.versions[key].superseded)

    def rows(self, query: str) -> list[Any]:
        return self.connection.execute(query).fetchall()


def run(machine: Callable[[], RuleBasedStateMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=12, phases=NO_SHRINKING),
    )


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["keep", "replace"])
def test_the_tables_follow_from_what_was_taken_of_each_file(
    new_lake: NewLake, changed: str
) -> None:
    run(lambda: Events(new_lake, changed), examples=4)


@pytest.mark.slow
def test_the_tables_are_the_same_when_files_are_ingested_in_chunks(new_lake: NewLake) -> None:
    limits = ReadLimits(block_bytes=64, chunk_bytes=100)
    run(lambda: Events(new_lake, "keep", limits), examples=3)
