"""Events by position: the rows and the offset that speaks of them are one, and only once there."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from functools import partial

import pytest

from retail_assets.ingest.events import staging as event_workspace
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.messages.load import Received, take
from retail_assets.ingest.repair import dead_letters, replay
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import STILL_NS, EventIntake, event
from retail_assets_tests.processes import finish, start

DAY = date(2026, 10, 12)
BAD = b'{"event_id": "bad"}'


@pytest.fixture(params=["querying the lake", "cached"])
def intake(request, settings, lake) -> Iterator[EventIntake]:
    with EventIntake.open(settings, cached=request.param == "cached") as intake:
        yield intake


def received(first: int, *payloads: str | bytes, part: str = "orders:0", **changed) -> Received:
    return Received(
        source="kafka",
        source_name=part,
        received_date=DAY,
        positions=range(first, first + len(payloads)),
        payloads=[text.encode() if isinstance(text, str) else text for text in payloads],
        offered_at=0.0,
        **changed,
    )


def ledger(intake: EventIntake) -> list[tuple]:
    return intake.rows(
        "SELECT name, part, max(position), sum(lines), sum(accepted), sum(dead_lettered),"
        " sum(duplicate) FROM stream_offsets GROUP BY ALL ORDER BY ALL"
    )


def must_balance(intake: EventIntake) -> None:
    held = intake.rows(
        "SELECT source, source_name, sum(raw), sum(accepted), sum(dead) FROM ("
        "SELECT source, source_name, 1 AS raw, 0 AS accepted, 0 AS dead FROM raw_events"
        " UNION ALL SELECT source, source_name, 0, 1, 0 FROM enriched_events"
        " UNION ALL SELECT source, source_name, 0, 0, 1 FROM dead_letter_events)"
        " WHERE source <> 'file' GROUP BY ALL ORDER BY ALL"
    )
    for _, _, _, lines, accepted, dead, duplicate in ledger(intake):
        assert lines == accepted + dead + duplicate
    assert held == [(name, part, n, a, d) for name, part, _, n, a, d, _ in ledger(intake)]


def test_rows_and_offset_are_committed_together(intake):
    taken = take(intake.session, [received(7, event(1), BAD, event(1))])["kafka"]
    assert (taken.lines, taken.accepted, taken.dead_lettered, taken.duplicate) == (3, 1, 1, 1)
    assert ledger(intake) == [("kafka", "orders:0", 10, 3, 1, 1, 1)]
    assert intake.events("source, source_name, position") == [("kafka", "orders:0", 7)]
    assert intake.letters() == ["kafka:orders:0:8"]
    assert offsets.next_positions(intake.connection, "kafka") == {"orders:0": 10}
    assert offsets.next_positions(intake.connection, "kafka", ["orders:1"]) == {}
    must_balance(intake)


def test_a_new_field_is_warned_about_once(intake, caplog):
    for first, changed in enumerate(({}, {"note": "x"}, {"note": "y"}, {"note": 1})):
        take(intake.session, [received(first, event(first, **changed))])
    assert [record.getMessage() for record in caplog.records] == [
        "Fields that no event had before: note (VARCHAR)",
        "Fields that no event had before: note (UBIGINT)",
    ]


@pytest.mark.parametrize("size", [50, 3_000], ids=["few", "many"])
def test_what_batches_staged_does_not_stay_in_memory(intake, size, monkeypatch):
    monkeypatch.setattr(event_workspace, "REUSED_ROWS", 3 * size)
    held = []
    for batch in range(12):
        first = batch * size
        events = [event(number, note="x" * 500) for number in range(first, first + size)]
        take(intake.session, [received(first, *events)])
        ((used,),) = intake.rows(
            "SELECT memory_usage_bytes FROM duckdb_memory() WHERE tag = 'IN_MEMORY_TABLE'"
        )
        held.append(used)

    assert max(held[6:]) <= 1.2 * max(held[:6])
    must_balance(intake)


@pytest.mark.parametrize("size", [2, 3_000], ids=["few", "many"])
def test_a_batch_leaves_no_setting_of_the_connection_behind(intake, size):
    settings = "SELECT name, value FROM duckdb_settings() ORDER BY ALL"
    before = intake.rows(settings)
    take(intake.session, [received(0, *map(event, range(size)))])
    assert intake.rows(settings) == before


def test_positions_that_the_ledger_has_change_nothing(intake):
    batch = [received(0, event(1), event(2))]
    take(intake.session, batch)
    before = intake.tables(), ledger(intake)
    assert take(intake.session, batch) == {}
    assert (intake.tables(), ledger(intake)) == before
    # A zombie that read one message further than the ledger.
    again = take(intake.session, [received(1, event(2), event(3))])
    assert again["kafka"].lines == 1
    assert ledger(intake) == [("kafka", "orders:0", 3, 3, 3, 0, 0)]
    must_balance(intake)


def test_a_batch_may_hold_several_parts_days_and_gaps(intake):
    later = replace(received(5, event(3)), received_date=date(2026, 10, 13))
    gap = replace(received(0, event(4), event(5), part="orders:1"), positions=[3, 9])
    take(intake.session, [received(0, event(1), event(2)), later, gap])
    assert ledger(intake) == [
        ("kafka", "orders:0", 6, 3, 3, 0, 0),
        ("kafka", "orders:1", 10, 2, 2, 0, 0),
    ]
    assert intake.events("event_id, received_date::VARCHAR, position")[2:] == [
        ("E3", "2026-10-13", 5),
        ("E4", "2026-10-12", 3),
        ("E5", "2026-10-12", 9),
    ]


def test_an_event_of_a_file_that_was_received_first_takes_the_place_of_kafkas(intake):
    after = (STILL_NS + 10**12) // 1000
    later = received(0, event(1), event(2), recorded_us=[after, after])
    take(intake.session, [later])
    intake.write(f"{DAY}/a.jsonl", [event(1)], modified_ns=STILL_NS)
    intake.take()
    assert intake.events("event_id, source") == [("E1", "file"), ("E2", "kafka")]
    assert ledger(intake) == [("kafka", "orders:0", 2, 2, 1, 0, 1)]
    intake.write(f"{DAY}/a.jsonl", [event(10)], modified_ns=STILL_NS + 10**9)
    intake.take()
    assert intake.events("event_id, source")[0] == ("E1", "kafka")
    assert ledger(intake) == [("kafka", "orders:0", 2, 2, 2, 0, 0)]
    must_balance(intake)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty_line"),
        (b'{"a":\n1', "not_json"),
        (b"\xff", "not_utf8"),
        (b"{\x00}", "nul_byte"),
        (b"x" * 1_000_001, "line_too_long"),
        (b"[" * 500_000, "not_json"),
        (b'{"order_id": "two\nlines"}', "not_json"),
    ],
)
def test_a_poison_message_is_one_dead_letter_among_good_events(intake, payload, reason):
    take(intake.session, [received(0, event(1), payload, event(2))])
    assert intake.events() == [("E1",), ("E2",)]
    assert intake.rows("SELECT position, reason FROM dead_letter_events") == [(1, reason)]
    must_balance(intake)


def test_an_event_over_several_lines_is_one_event(intake):
    pretty = event(1).replace(", ", ",\n")
    take(intake.session, [received(0, pretty)])
    assert intake.events() == [("E1",)]


def test_a_large_batch_goes_the_same_way_as_small_ones(intake):
    payloads = [event(n) if n % 10 else "{" for n in range(3_000)]
    take(intake.session, [received(0, *payloads)])
    large = intake.tables()
    intake.connection.execute("TRUNCATE lake.stream_offsets")
    for table in ("raw_events", "enriched_events", "dead_letter_events"):
        intake.connection.execute(f"DELETE FROM lake.{table}")
    if intake.session.cache:
        intake.session.cache.invalidate()
    for first in range(0, 3_000, 500):
        take(intake.session, [received(first, *payloads[first : first + 500])])
    assert intake.tables() == large


def test_a_dead_letter_of_kafka_can_be_redriven(intake):
    take(intake.session, [received(0, BAD)])
    (done,) = dead_letters.redrive(intake.session, ["kafka:orders:0:0"], payload=event(1))
    assert done.outcome == "accepted"
    assert intake.events("event_id, source") == [("E1", "redrive")]


def test_a_replay_gives_the_same_tables(intake):
    take(intake.session, [received(0, event(1), BAD, event(1), event(2))])
    before = intake.tables(), ledger(intake)
    replay.replay_day(intake.session, DAY)
    assert (intake.tables(), ledger(intake)) == before
    assert replay.check_day(intake.session, DAY) == []


def test_what_a_source_knows_to_be_no_event_is_a_dead_letter(intake):
    take(intake.session, [received(0, event(1), defect="not_taken")])
    assert intake.rows("SELECT reason FROM dead_letter_events") == [("not_taken",)]
    assert ledger(intake) == [("kafka", "orders:0", 1, 1, 0, 1, 0)]


def _die_at_commit(values: dict, after: bool) -> None:
    commit = lake_connection.commit

    def die(connection) -> None:
        if after:
            commit(connection)
        os.kill(os.getpid(), signal.SIGKILL)

    settings = Settings(**values)
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        lake_connection.commit = die
        take(EventSession(lake, connection), [received(0, event(1), BAD, event(2))])


@pytest.mark.processes
@pytest.mark.parametrize("after", [False, True])
def test_a_worker_killed_at_its_commit_loses_and_doubles_nothing(settings, lake, after):
    assert finish([start(_die_at_commit, settings.model_dump(), after)]) == [-signal.SIGKILL]
    with EventIntake.open(settings) as intake:
        taken = partial(take, intake.session)
        taken([received(0, event(1), BAD, event(2))])
        assert intake.events() == [("E1",), ("E2",)]
        assert ledger(intake) == [("kafka", "orders:0", 3, 3, 2, 1, 0)]
        must_balance(intake)
