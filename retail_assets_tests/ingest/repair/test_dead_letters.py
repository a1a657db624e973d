"""Dead letters: found by what is asked for, redriven once, and never twice an event."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pytest

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.ingest.repair import dead_letters, replay
from retail_assets.ingest.repair.dead_letters import Redriven
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.transforms import events
from retail_assets_tests.conftest import copy_data
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.processes import finish, start

DAY, NEXT = date(2026, 10, 12), date(2026, 10, 13)
FILE = f"{DAY}/a.jsonl"
DEAR, NEGATIVE, NUL, NULL = (f"file:{FILE}:{position}" for position in (2, 3, 4, 5))
LATER = f"file:{NEXT}/b.jsonl:1"


@pytest.fixture
def loader(settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as loader:
        yield loader


LINES = [event(1), event(2, order_value_gbp=900), event(3, order_value_gbp=-3), "\x00", "null"]


@pytest.fixture
def taken(settings, tmp_path_factory, request) -> Iterator[EventLoader]:
    """Letters of several reasons; one of them is valid by the rules as they are afterwards.

    A copy: to ingest them by other rules compiles these.
    """
    model = tmp_path_factory.getbasetemp() / "dead_letters"
    if not model.exists():
        request.getfixturevalue("rules_may_change")
        other = Settings(data_dir=model)
        request.getfixturevalue("new_lake")(model)
        with pytest.MonkeyPatch.context() as patch, EventLoader.open(other) as loader:
            patch.setattr(events, "OUT_OF_RANGE_GBP", 500)
            loader.write(FILE, LINES)
            loader.write(f"{NEXT}/b.jsonl", ["{"])
            loader.ingest()
            assert loader.events() == [("E1",)]
    copy_data(model, settings)
    with EventLoader.open(settings) as loader:
        yield loader


def test_a_day_is_found_without_its_history(loader):
    days = [date(2026, 11, 15), date(2026, 11, 14), date(2026, 11, 13), date(2026, 10, 13)]
    for day in days:
        loader.write(f"{day}/bad.jsonl", [f"{{{day}"])
    loader.ingest()
    loader.connection.execute("CALL ducklake_flush_inlined_data('lake')")
    ids = [f"file:{day}/bad.jsonl:1" for day in days]
    assert redrive(loader, ids[0], payload=event(1)) == {ids[0]: "accepted"}
    gone = [*Path(loader.lake.data_path).rglob("raw_events/**/month=10/*.parquet")]
    gone += Path(loader.lake.data_path).rglob("dead_letter_events/**/month=10/*.parquet")
    assert len(gone) == 2
    for file in gone[:1]:
        file.unlink()
    # What raw_events had of other days is not read; of the other table which days it has.
    assert find(loader, limit=2) == ids[:2]
    assert find(loader, limit=1, open_only=True) == ids[1:2]
    gone[1].unlink()
    assert find(loader, day=days[0]) == ids[:1]
    assert find(loader, day=days[0], open_only=True) == []
    with pytest.raises(duckdb.IOException):
        find(loader)


def redrive(loader: EventLoader, *ids: str, payload: str | None = None) -> dict[str, str]:
    done = dead_letters.redrive(loader.session, ids, payload=payload)
    return {item.id: item.outcome for item in done}


def find(loader: EventLoader, **options: object) -> list[str]:
    return [letter["id"] for letter in dead_letters.find(loader.connection, **options)]


def counts(loader: EventLoader) -> list[tuple[int, ...]]:
    """Lines, accepted, dead-lettered and duplicates of the file, in all its versions."""
    return loader.rows(
        "SELECT lines, accepted, dead_lettered, duplicate FROM event_files"
        " WHERE path = ? ORDER BY version",
        FILE,
    )


# --- looking at them -----------------------------------------------------------------------------


def test_dead_letters_are_found_by_id_reason_day_and_whether_they_are_open(taken):
    assert find(taken) == [LATER, DEAR, NEGATIVE, NUL, NULL]
    assert find(taken, limit=2) == [LATER, DEAR]
    assert find(taken, reason="not_positive") == [NEGATIVE]
    assert find(taken, day=NEXT) == [LATER]
    assert find(taken, ids=[NULL, DEAR]) == [DEAR, NULL]
    assert find(taken, reason="not_positive", day=NEXT) == []
    redrive(taken, DEAR)
    assert find(taken, open_only=True) == [LATER, NEGATIVE, NUL, NULL]
    assert find(taken) == [LATER, DEAR, NEGATIVE, NUL, NULL], "they stay for ever"


def test_a_dead_letter_says_what_is_wrong_with_it(taken):
    (letter,) = dead_letters.find(taken.connection, ids=[NEGATIVE])
    assert {name: letter[name] for name in ("reason", "field", "payload", "redriven")} == {
        "reason": "not_positive",
        "field": "order_value_gbp",
        "payload": LINES[2],
        "redriven": False,
    }
    (letter,) = dead_letters.find(taken.connection, ids=[NUL])
    assert (letter["defect"], letter["payload"]) == ("nul_byte", "\\x00")


# --- as they are ---------------------------------------------------------------------------------


def test_after_a_rule_has_changed_a_dead_letter_is_ingested_as_it_is_and_once(taken):
    assert redrive(taken, DEAR, NEGATIVE) == {
        DEAR: "accepted",
        NEGATIVE: "still not_positive (order_value_gbp)",
    }
    assert taken.events("event_id, order_value_gbp::VARCHAR, source, source_name, received_date")[
        1:
    ] == [("E2", "900.00", "redrive", DEAR, DAY)]
    assert counts(taken) == [(5, 1, 4, 0)], "the letter stays where it is"
    before = taken.tables()
    assert redrive(taken, DEAR) == {DEAR: "redriven before"}
    assert taken.tables() == before


def test_what_came_of_each_dead_letter_is_told_in_the_order_of_their_ids(taken):
    done = dead_letters.redrive(taken.session, [NULL, NUL, DEAR])
    assert done == [
        Redriven(DEAR, "accepted"),
        Redriven(NUL, "no event as it is (nul_byte): give it a payload"),
        Redriven(NULL, "still not_an_object"),
    ]


def test_what_the_lake_could_not_ingest_is_whole_and_is_redriven_as_it_is(taken):
    payloads = [event(number).encode() for number in (7, 8)]
    given_up = Received("kafka", "orders:0", DAY, [5, 6], payloads, 0.0, defect="not_taken")
    ingest(taken.session, [given_up])
    ids = find(taken, reason="not_taken")

    assert redrive(taken, *ids, NUL) == {
        "kafka:orders:0:5": "accepted",
        "kafka:orders:0:6": "accepted",
        NUL: "no event as it is (nul_byte): give it a payload",
    }
    assert taken.events() == [("E1",), ("E7",), ("E8",)]


def test_dead_letters_that_are_still_bad_leave_no_trace(taken):
    before = taken.tables()
    redrive(taken, NEGATIVE, NULL, LATER)
    assert taken.tables() == before


def test_nothing_to_redrive_is_nothing_done(taken):
    assert redrive(taken) == {}


# --- mended --------------------------------------------------------------------------------------


def test_a_corrected_dead_letter_is_an_event_of_the_day_on_which_it_was_received(taken):
    payload = '{\n  "event_id": "E3", "order_id": "O3", "customer_id": "C1",\n "region": "N",'
    assert redrive(taken, NEGATIVE, payload=payload + '\n"order_value_gbp": 3}\n') == {
        NEGATIVE: "accepted"
    }
    assert taken.events("event_id, region, order_value_gbp::VARCHAR, received_date")[1:] == [
        ("E3", "N", "3.00", DAY)
    ]
    (letter,) = dead_letters.find(taken.connection, ids=[NEGATIVE])
    assert (letter["payload"], letter["redriven"]) == (LINES[2], True)


def test_a_defective_dead_letter_can_be_corrected(taken):
    assert redrive(taken, NUL, payload=event(4)) == {NUL: "accepted"}
    assert taken.events() == [("E1",), ("E4",)]


def test_a_dead_letter_that_is_corrected_again_in_another_way_gives_no_second_event(taken):
    assert redrive(taken, NEGATIVE, payload=event(3)) == {NEGATIVE: "accepted"}
    before = taken.tables()
    assert redrive(taken, NEGATIVE, payload=event(30)) == {NEGATIVE: "redriven before"}
    assert redrive(taken, NEGATIVE, payload=event(3)) == {NEGATIVE: "redriven before"}
    assert redrive(taken, NEGATIVE) == {NEGATIVE: "redriven before"}
    assert taken.tables() == before


def test_an_event_that_is_known_already_is_a_duplicate(taken):
    assert redrive(taken, NEGATIVE, payload=event(1)) == {NEGATIVE: "duplicate"}
    assert taken.events("event_id, order_value_gbp::VARCHAR") == [("E1", "10.00")]
    assert redrive(taken, NEGATIVE, payload=event(3)) == {NEGATIVE: "redriven before"}


@pytest.mark.usefixtures("rules_may_change")
def test_dead_letters_with_the_same_event_in_them_give_it_once(loader, monkeypatch):
    loader.write(FILE, [event(2, order_value_gbp=900), event(2, order_value_gbp=900.0)])
    with monkeypatch.context() as patch:
        patch.setattr(events, "OUT_OF_RANGE_GBP", 500)
        loader.ingest()
    first, second = loader.letters()
    assert redrive(loader, first, second) == {first: "accepted", second: "duplicate"}
    assert loader.events("order_value_gbp::VARCHAR") == [("900.00",)]


def test_a_dead_letter_that_is_named_twice_is_redriven_once(taken):
    assert redrive(taken, DEAR, DEAR) == {DEAR: "accepted"}
    assert taken.events() == [("E1",), ("E2",)]


@pytest.mark.processes
@pytest.mark.slow
def test_several_that_correct_a_dead_letter_at_once_in_different_ways_give_one_event(
    taken, tmp_path
):
    started = tmp_path / "started"
    started.mkdir()
    values = taken.settings.model_dump()
    racers = [start(mend, values, NEGATIVE, event(n), str(started)) for n in (3, 30)]
    assert finish(racers) == [0, 0]
    outcomes = sorted(path.read_text() for path in started.iterdir())
    assert outcomes == ["accepted", "redriven before"]
    assert len(taken.events()) == 2
    assert taken.rows("SELECT count(*) FROM raw_events WHERE source = 'redrive'") == [(1,)]


def mend(values: dict[str, object], letter: str, payload: str, started: str) -> None:
    from pathlib import Path

    settings = Settings(**values)  # type: ignore[arg-type]
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        mine = Path(started, str(len(payload)))
        mine.touch()
        while len(list(mine.parent.iterdir())) < 2:
            pass
        (done,) = dead_letters.redrive(EventSession(lake, connection), [letter], payload=payload)
    mine.write_text(done.outcome)


# --- what happens to them afterwards -------------------------------------------------------------


def test_a_redriven_event_goes_with_its_file_when_that_is_replaced(taken):
    redrive(taken, DEAR)
    redrive(taken, NEGATIVE, payload=event(3))
    assert taken.events() == [("E1",), ("E2",), ("E3",)]
    taken.write(FILE, [event(7)])
    taken.ingest()
    assert taken.events() == [("E7",)]
    assert taken.letters() == [LATER]
    # What was received stays in the log, and is not replayed.
    for table, kept in (("raw_events", 2), ("enriched_events", 0)):
        found = taken.rows(f"SELECT count(*) FROM {table} WHERE source = 'redrive'")
        assert found == [(kept,)]
    assert replay.check_day(taken.session, DAY) == []


def test_a_redriven_event_stays_when_its_file_grows(taken):
    redrive(taken, NEGATIVE, payload=event(3))
    taken.write(FILE, [*LINES, event(7)])
    taken.ingest()
    assert taken.events() == [("E1",), ("E3",), ("E7",)]


def test_a_replay_keeps_redriven_events(taken):
    redrive(taken, DEAR)
    redrive(taken, NEGATIVE, payload=event(3))
    mended = taken.tables()
    replay.replay_day(taken.session, DAY)
    found = taken.events("event_id, order_value_gbp::VARCHAR")
    assert found == [("E1", "10.00"), ("E2", "900.00"), ("E3", "10.00")]
    # By today's rules the letter is a valid event itself, and it was received first.
    assert taken.letters() == [NEGATIVE, NUL, NULL, LATER]
    assert len(taken.tables()["raw_events"]) == len(mended["raw_events"])
    assert counts(taken) == [(5, 2, 3, 0)]


def test_the_same_event_in_another_file_later_is_a_duplicate_of_the_redriven_one(taken):
    redrive(taken, NEGATIVE, payload=event(3))
    taken.write(f"{NEXT}/c.jsonl", [event(3, order_value_gbp=33)])
    taken.ingest()
    assert taken.events("event_id, order_value_gbp::VARCHAR") == [("E1", "10.00"), ("E3", "10.00")]


# --- errors --------------------------------------------------------------------------------------


def test_a_dead_letter_that_is_not_there_is_named(taken):
    with pytest.raises(RetailAssetsError, match="There is no dead letter file:x:1: `dead-letters"):
        redrive(taken, DEAR, "file:x:1")
    assert taken.events() == [("E1",)], "nothing was done for the others either"


def test_a_payload_is_for_one_dead_letter(taken):
    with pytest.raises(UsageError, match="A payload corrects one dead letter: name one"):
        redrive(taken, DEAR, NEGATIVE, payload=event(3))


def test_a_payload_that_is_no_better_is_an_error_and_changes_nothing(taken):
    before = taken.tables()
    for payload, problem in (
        ("{", "not_json"),
        ("", "empty_line"),
        ("[]", "not_an_object"),
        (event(3, order_value_gbp=0), r"not_positive \(order_value_gbp\)"),
        ('{"a": 1, "a": 2}', r"repeated_field \(a\)"),
        (event(3, order_value_gbp=float("nan")), r"not_finite \(order_value_gbp\)"),
        ("\udcff", "not_utf8"),
        (event(3, note="\0"), "control_character"),
    ):
        with pytest.raises(RetailAssetsError, match=f"The payload is not valid: still {problem}"):
            redrive(taken, NEGATIVE, payload=payload)
    assert taken.tables() == before
