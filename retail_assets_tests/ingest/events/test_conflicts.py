"""Events of one event_id and other content: the first stays, the others are dead letters."""

import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.ingest.repair import dead_letters, replay
from retail_assets_tests.event_files import EventLoader, event

DAY, NEXT = date(2026, 10, 12), date(2026, 10, 13)
FIRST, SECOND = f"{DAY}/a.jsonl", f"{NEXT}/b.jsonl"
A_SECOND = 10**9


@pytest.fixture
def loader(settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as loader:
        yield loader


def conflicts(loader: EventLoader) -> list[str]:
    return sorted(
        letter["id"] for letter in dead_letters.find(loader.connection, reason="conflicting_event")
    )


def counts(loader: EventLoader) -> dict[str, tuple[int, ...]]:
    """Lines, accepted, dead-lettered and duplicates of each file."""
    rows = loader.rows("SELECT path, lines, accepted, dead_lettered, duplicate FROM event_files")
    return {path: tuple(numbers) for path, *numbers in rows}


def replayed(loader: EventLoader) -> bool:
    """Whether a replay of each day finds nothing to change, and changes nothing."""
    before = loader.tables()
    for day in (DAY, NEXT):
        assert not replay.check_day(loader.session, day)
        replay.replay_day(loader.session, day)
    return loader.tables() == before


def test_the_first_stays_and_other_content_becomes_a_dead_letter(loader):
    loader.write(FIRST, [event(1), event(1, order_value_gbp=11), event(2)])
    loader.ingest()
    loader.write(SECOND, [event(2, region="South"), event(1), event(1, extra=None), event(3)])
    loader.ingest()
    assert loader.events("event_id, order_value_gbp::VARCHAR, region") == [
        ("E1", "10.00", "North"), ("E2", "10.00", "North"), ("E3", "10.00", "North"),
    ]  # fmt: skip
    assert conflicts(loader) == [f"file:{FIRST}:2", f"file:{SECOND}:1"]
    assert counts(loader) == {FIRST: (3, 2, 1, 0), SECOND: (4, 1, 1, 2)}
    assert loader.rows("SELECT DISTINCT field FROM dead_letter_events") == [("event_id",)]
    assert replayed(loader)


def test_content_that_is_only_written_otherwise_is_a_duplicate(loader):
    first = event(1, order_value_gbp=10.0, note={"a": 1e2, "b": "\u00e9"})
    again = json.dumps(dict(reversed(json.loads(first).items())), ensure_ascii=False)
    loader.write(FIRST, [first])
    loader.ingest()
    loader.write(SECOND, [
        again, again.replace("10.0", "1e1").replace("100.0", "100"), again.replace("10.0", '"10"'),
    ])  # fmt: skip
    loader.ingest()
    assert conflicts(loader) == [f"file:{SECOND}:3"]
    assert counts(loader)[SECOND] == (3, 0, 1, 2)


def test_an_event_that_was_received_before_the_first_takes_its_place(loader):
    """What agreed with the former first does not any more, and the other way round."""
    loader.write(SECOND, [event(1), event(1), event(1, order_value_gbp=11)])
    loader.ingest()
    assert counts(loader) == {SECOND: (3, 1, 1, 1)}
    loader.write(FIRST, [event(1, order_value_gbp=11)], modified_ns=A_SECOND)
    loader.ingest()
    assert loader.events("source_name, order_value_gbp::VARCHAR") == [(FIRST, "11.00")]
    assert conflicts(loader) == [f"file:{SECOND}:1", f"file:{SECOND}:2"]
    assert counts(loader) == {FIRST: (1, 1, 0, 0), SECOND: (3, 0, 2, 1)}
    assert replayed(loader)


def test_a_redrive_takes_it_in_identified_by_its_content_and_once(loader):
    loader.write(FIRST, [event(1), *[event(1, order_value_gbp=11)] * 2])
    loader.ingest()
    one, other = conflicts(loader)
    done = dead_letters.redrive(loader.session, [one, other])
    assert sorted(item.outcome for item in done) == ["accepted", "duplicate"]
    (accepted,) = loader.events("event_id, order_value_gbp::VARCHAR, source")[1:]
    assert accepted[1:] == ("11.00", "redrive")
    assert accepted[0] == "E1" or accepted[0].startswith("content:")
    assert conflicts(loader) == [one, other], "they stay for ever"
    (again,) = dead_letters.redrive(loader.session, [one])
    assert again.outcome == "redriven before"
    assert counts(loader) == {FIRST: (3, 1, 2, 0)}
    assert replayed(loader)


def test_a_payload_that_conflicts_is_refused_and_changes_nothing(loader):
    loader.write(FIRST, [event(1), event(1, order_value_gbp=11)])
    loader.ingest()
    before = loader.tables()
    (letter,) = conflicts(loader)
    with pytest.raises(RetailAssetsError, match=r"still conflicting_event \(event_id\)"):
        dead_letters.redrive(loader.session, [letter], payload=event(1, order_value_gbp=12))
    assert loader.tables() == before
    (done,) = dead_letters.redrive(loader.session, [letter], payload=event(9))
    assert done.outcome == "accepted"


def test_of_several_redrives_one_that_conflicts_keeps_no_other_back(loader):
    messages = [event(1), event(1, order_value_gbp=11), event(5)]
    given_up = Received(
        "kafka", "orders:0", DAY, [1, 2, 3], [text.encode() for text in messages], 0.0,
        defect="not_taken",
    )  # fmt: skip
    ingest(loader.session, [given_up])
    ids = loader.letters()
    done = dead_letters.redrive(loader.session, ids)
    assert {item.id[-1]: item.outcome for item in done} == {
        "1": "accepted", "2": "still conflicting_event (event_id)", "3": "accepted",
    }  # fmt: skip
    assert loader.events() == [("E1",), ("E5",)]


lines = st.lists(
    st.tuples(st.integers(1, 3), st.integers(10, 12), st.booleans()), min_size=1, max_size=4
)


@settings(
    max_examples=4,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(files=st.lists(lines, min_size=3, max_size=4), order=st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_events_and_dead_letters(loader, files, order):
    """The first in time of each id counts; others are duplicates of it, or letters."""
    for table in ("raw_events", "enriched_events", "dead_letter_events", "event_files"):
        loader.connection.execute(f"DELETE FROM lake.{table}")
    for path in Path(loader.settings.events_location).glob("*.jsonl"):
        path.unlink()
    first: dict[int, tuple[int, tuple[str, int]]] = {}
    letters: set[str] = set()
    for number, file in enumerate(files):
        for position, (event_id, value, _) in enumerate(file, 1):
            place = (f"{number}.jsonl", position)
            if first.setdefault(event_id, (value, place))[0] != value:
                letters.add(f"file:{place[0]}:{position}")
    arrival = list(enumerate(files))
    order.shuffle(arrival)
    for number, file in arrival:
        loader.write(f"{number}.jsonl", spelled(file, number), modified_ns=(number + 1) * A_SECOND)
        loader.ingest()
    assert loader.events("event_id, order_value_gbp::INTEGER, source_name, position") == [
        (f"E{event_id}", value, *place) for event_id, (value, place) in sorted(first.items())
    ]
    assert set(conflicts(loader)) == letters
    assert sum(numbers[1] for numbers in counts(loader).values()) == len(first)
    assert sum(numbers[2] for numbers in counts(loader).values()) == len(letters) + len(files)
    live = loader.tables()
    for (day,) in loader.rows("SELECT DISTINCT received_date FROM raw_events"):
        assert not replay.check_day(loader.session, day)
    assert loader.tables() == live


def spelled(file: Sequence[tuple[int, int, bool]], number: int) -> list[str]:
    """The lines of a file, and one that no other file has: it is no copy of another."""
    return [
        *(
            event(event_id, order_value_gbp=float(value) if point else value)
            for event_id, value, point in file
        ),
        f"file {number}",
    ]
