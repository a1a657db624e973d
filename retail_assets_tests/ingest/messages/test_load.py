"""Events by position: the rows and the offset that speaks of them are one, and only once there."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from functools import partial

import pytest

from retail_assets.ingest.events import batch as event_batch
from retail_assets.ingest.events import staging as event_workspace
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.messages.load import Received, ingest
from retail_assets.ingest.repair import dead_letters, replay
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import STILL_NS, EventLoader, event
from retail_assets_tests.processes import finish, start

DAY = date(2026, 10, 12)
BAD = b'{"event_id": "bad"}'


@pytest.fixture(params=["querying the lake", "cached"])
def loader(request, settings, lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings, cached=request.param == "cached") as loader:
        yield loader


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


def ledger(loader: EventLoader) -> list[tuple]:
    return loader.rows(
        "SELECT name, part, max(position), sum(lines), sum(accepted), sum(dead_lettered),"
        " sum(duplicate) FROM stream_offsets GROUP BY ALL ORDER BY ALL"
    )


def must_balance(loader: EventLoader) -> None:
    held = loader.rows(
        "SELECT source, source_name, sum(raw), sum(accepted), sum(dead) FROM ("
        "SELECT source, source_name, 1 AS raw, 0 AS accepted, 0 AS dead FROM raw_events"
        " UNION ALL SELECT source, source_name, 0, 1, 0 FROM enriched_events"
        " UNION ALL SELECT source, source_name, 0, 0, 1 FROM dead_letter_events)"
        " WHERE source <> 'file' GROUP BY ALL ORDER BY ALL"
    )
    for _, _, _, lines, accepted, dead, duplicate in ledger(loader):
        assert lines == accepted + dead + duplicate
    assert held == [(name, part, n, a, d) for name, part, _, n, a, d, _ in ledger(loader)]


def test_rows_and_offset_are_committed_together(loader):
    taken = ingest(loader.session, [received(7, event(1), BAD, event(1))])["kafka"]
    assert (taken.lines, taken.accepted, taken.dead_lettered, taken.duplicate) == (3, 1, 1, 1)
    assert ledger(loader) == [("kafka", "orders:0", 10, 3, 1, 1, 1)]
    assert loader.events("source, source_name, position") == [("kafka", "orders:0", 7)]
    assert loader.letters() == ["kafka:orders:0:8"]
    assert offsets.next_positions(loader.connection, "kafka") == {"orders:0": 10}
    assert offsets.next_positions(loader.connection, "kafka", ["orders:1"]) == {}
    must_balance(loader)


def test_a_new_field_is_warned_about_once(loader, caplog):
    for first, changed in enumerate(({}, {"note": "x"}, {"note": "y"}, {"note": 1})):
        ingest(loader.session, [received(first, event(first, **changed))])
    assert [record.getMessage() for record in caplog.records] == [
        "Fields that no event had before: note (VARCHAR)",
        "Fields that no event had before: note (UBIGINT)",
    ]


@pytest.fixture
def few(monkeypatch) -> int:
    """The most lines of a small batch."""
    monkeypatch.setattr(event_batch, "SMALL", 150)
    return 150


@pytest.mark.parametrize("times", [1, 2], ids=["few", "many"])
def test_what_batches_staged_does_not_stay_in_memory(loader, few, times, monkeypatch):
    size = times * few
    monkeypatch.setattr(event_workspace, "REUSED_ROWS", 2 * size)
    held = []
    for batch in range(8):
        first = batch * size
        events = [event(number, note="x" * 500) for number in range(first, first + size)]
        ingest(loader.session, [received(first, *events)])
        ((used,),) = loader.rows(
            "SELECT memory_usage_bytes FROM duckdb_memory() WHERE tag = 'IN_MEMORY_TABLE'"
        )
        held.append(used)

    assert max(held[4:]) <= 1.2 * max(held[:4])
    must_balance(loader)


@pytest.mark.parametrize("more", [0, 1], ids=["few", "many"])
def test_a_batch_leaves_no_setting_of_the_connection_behind(loader, few, more):
    settings = "SELECT name, value FROM duckdb_settings() ORDER BY ALL"
    before = loader.rows(settings)
    ingest(loader.session, [received(0, *map(event, range(few + more)))])
    assert loader.rows(settings) == before


def test_positions_that_the_ledger_has_change_nothing(loader):
    batch = [received(0, event(1), event(2))]
    ingest(loader.session, batch)
    before = loader.tables(), ledger(loader)
    assert ingest(loader.session, batch) == {}
    assert (loader.tables(), ledger(loader)) == before
    # A zombie that read one message further than the ledger.
    again = ingest(loader.session, [received(1, event(2), event(3))])
    assert again["kafka"].lines == 1
    assert ledger(loader) == [("kafka", "orders:0", 3, 3, 3, 0, 0)]
    must_balance(loader)


def test_a_batch_may_hold_several_parts_days_and_gaps(loader):
    later = replace(received(5, event(3)), received_date=date(2026, 10, 13))
    gap = replace(received(0, event(4), event(5), part="orders:1"), positions=[3, 9])
    ingest(loader.session, [received(0, event(1), event(2)), later, gap])
    assert ledger(loader) == [
        ("kafka", "orders:0", 6, 3, 3, 0, 0),
        ("kafka", "orders:1", 10, 2, 2, 0, 0),
    ]
    assert loader.events("event_id, received_date::VARCHAR, position")[2:] == [
        ("E3", "2026-10-13", 5),
        ("E4", "2026-10-12", 3),
        ("E5", "2026-10-12", 9),
    ]


def test_an_event_of_a_file_that_was_received_first_takes_the_place_of_kafkas(loader):
    after = (STILL_NS + 10**12) // 1000
    later = received(0, event(1), event(2), recorded_us=[after, after])
    ingest(loader.session, [later])
    loader.write(f"{DAY}/a.jsonl", [event(1)], modified_ns=STILL_NS)
    loader.ingest()
    assert loader.events("event_id, source") == [("E1", "file"), ("E2", "kafka")]
    assert ledger(loader) == [("kafka", "orders:0", 2, 2, 1, 0, 1)]
    loader.write(f"{DAY}/a.jsonl", [event(10)], modified_ns=STILL_NS + 10**9)
    loader.ingest()
    assert loader.events("event_id, source")[0] == ("E1", "kafka")
    assert ledger(loader) == [("kafka", "orders:0", 2, 2, 2, 0, 0)]
    must_balance(loader)


POISON = [
    (b"", "empty_line"),
    (b'{"a":\n1', "not_json"),
    (b"\xff", "not_utf8"),
    (b"{\x00}", "nul_byte"),
    (b"x" * 1_000_001, "line_too_long"),
    (b"[" * 500_000, "not_json"),
    (b'{"order_id": "two\nlines"}', "not_json"),
]


def test_a_poison_message_is_one_dead_letter_among_good_events(loader):
    good = [event(n) for n in range(len(POISON))]
    messages = [text for event, (bad, _) in zip(good, POISON, strict=True) for text in (event, bad)]
    ingest(loader.session, [received(0, *messages)])
    assert loader.events() == [(f"E{n}",) for n in range(len(POISON))]
    assert loader.rows("SELECT position, reason FROM dead_letter_events ORDER BY ALL") == [
        (2 * n + 1, reason) for n, (_, reason) in enumerate(POISON)
    ]
    must_balance(loader)


def test_an_event_over_several_lines_is_one_event(loader):
    pretty = event(1).replace(", ", ",\n")
    ingest(loader.session, [received(0, pretty)])
    assert loader.events() == [("E1",)]


def test_a_large_batch_goes_the_same_way_as_small_ones(loader, few):
    payloads = [event(n) if n % 10 else "{" for n in range(3 * few)]
    ingest(loader.session, [received(0, *payloads)])
    large = loader.tables()
    loader.connection.execute("TRUNCATE lake.stream_offsets")
    for table in ("raw_events", "enriched_events", "dead_letter_events"):
        loader.connection.execute(f"DELETE FROM lake.{table}")
    if loader.session.cache:
        loader.session.cache.invalidate()
    for first in range(0, 3 * few, few):
        ingest(loader.session, [received(first, *payloads[first : first + few])])
    assert loader.tables() == large


def test_a_dead_letter_of_kafka_can_be_redriven(loader):
    ingest(loader.session, [received(0, BAD)])
    (done,) = dead_letters.redrive(loader.session, ["kafka:orders:0:0"], payload=event(1))
    assert done.outcome == "accepted"
    assert loader.events("event_id, source") == [("E1", "redrive")]


def test_a_replay_gives_the_same_tables(loader):
    ingest(loader.session, [received(0, event(1), BAD, event(1), event(2))])
    before = loader.tables(), ledger(loader)
    replay.replay_day(loader.session, DAY)
    assert (loader.tables(), ledger(loader)) == before
    assert replay.check_day(loader.session, DAY) == []


def test_what_a_source_knows_to_be_no_event_is_a_dead_letter(loader):
    ingest(loader.session, [received(0, event(1), defect="not_taken")])
    assert loader.rows("SELECT reason FROM dead_letter_events") == [("not_taken",)]
    assert ledger(loader) == [("kafka", "orders:0", 1, 1, 0, 1, 0)]


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
        ingest(EventSession(lake, connection), [received(0, event(1), BAD, event(2))])


@pytest.mark.processes
@pytest.mark.parametrize("after", [False, True])
def test_a_worker_killed_at_its_commit_loses_and_doubles_nothing(settings, lake, after):
    assert finish([start(_die_at_commit, settings.model_dump(), after)]) == [-signal.SIGKILL]
    with EventLoader.open(settings) as loader:
        taken = partial(ingest, loader.session)
        taken([received(0, event(1), BAD, event(2))])
        assert loader.events() == [("E1",), ("E2",)]
        assert ledger(loader) == [("kafka", "orders:0", 3, 3, 2, 1, 0)]
        must_balance(loader)
