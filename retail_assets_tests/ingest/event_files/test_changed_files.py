"""Event files that change, are copied or replaced: each event counts once, and stays or goes."""

import hashlib
import itertools
import shutil
from collections.abc import Sequence

import pytest

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files.retraction import Retracted, retract
from retail_assets.ingest.repair import dead_letters
from retail_assets.ingest.repair.replay import check_day
from retail_assets.lake.schema import create_missing_tables
from retail_assets_tests.event_files import STILL_NS, event, write_events
from retail_assets_tests.ingest.event_files.conftest import BAD, Events, grow, outcomes

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
