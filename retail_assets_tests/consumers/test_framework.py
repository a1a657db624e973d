"""The frame of consumers, with a consumer whose rule can be told to fail."""

import threading
from collections.abc import Iterator
from itertools import chain

import pytest

from retail_assets.consumers import framework
from retail_assets.consumers.framework import ConsumerError
from retail_assets.ingest.ledgers import offsets
from retail_assets.ingest.ledgers.offsets import consumer_offset
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.consumers.spender import SPENT, Spender, buys
from retail_assets_tests.event_files import EventLoader


@pytest.fixture
def spender(lake: Lake, settings: Settings) -> Iterator[Spender]:
    with EventLoader.open(settings) as loader:
        columns = ", ".join(f"{column.name} {column.type}" for column in SPENT.columns)
        with loader.lake.transaction(loader.connection, "create a table"):
            loader.connection.execute(f"CREATE TABLE lake.spent ({columns})")
        yield Spender(loader)


def test_what_has_changed_is_recomputed_and_nothing_else(spender: Spender) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    first = spender.consume()
    assert first is not None
    assert (first.rebuilt, first.keys, first.inserted) == (True, ("C1", "C2"), {"spent": 2})
    assert spender.spent() == {"C1": 10, "C2": 5}

    spender.ingest("b", buys(3, "C2", 7), buys(4, "C3", 1))
    second = spender.consume()
    assert second is not None
    assert spender.computed[1:] == [["C2", "C3"]]
    assert (second.rebuilt, second.key_count, second.keys) == (False, 2, ("C2", "C3"))
    assert (second.deleted, second.inserted) == ({"spent": 1}, {"spent": 2})
    assert spender.spent() == {"C1": 10, "C2": 12, "C3": 1}


def test_many_keys_are_computed_piece_by_piece(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A key counts one more than its rows, of which each has two.
    monkeypatch.setattr(framework, "PIECE_ROWS", 9)
    customers = [f"C{number}" for number in range(7)]
    spender.ingest("a", *(buys(number, name, 1) for number, name in enumerate(customers)))
    spender.consume()
    assert spender.computed.pop() == customers

    spender.ingest("b", *(buys(10 + number, name, 2) for number, name in enumerate(customers)))
    breaks: list[int] = []
    consumed = spender.consume(between_pieces=lambda: breaks.append(len(spender.computed)))

    assert consumed is not None
    assert (consumed.key_count, consumed.inserted) == (7, {"spent": 7})
    assert breaks == [1, 2]
    assert sorted(map(len, spender.computed)) == [2, 2, 3]
    assert sorted(chain.from_iterable(spender.computed)) == customers
    assert spender.spent() == dict.fromkeys(customers, 3)


def test_a_consumer_may_ask_for_all_keys_at_once(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framework, "PIECE_ROWS", 1)
    spender.in_pieces = False
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    spender.ingest("b", buys(3, "C1", 10), buys(4, "C2", 5))
    spender.consume()
    assert spender.computed == [["C1", "C2"]] * 2


def test_a_key_of_many_rows_is_not_computed_with_as_many_others(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framework, "PIECE_ROWS", 12)
    customers = [f"C{number}" for number in range(7)]
    spender.ingest("a", *(buys(number, name, 1) for number, name in enumerate(customers)))
    spender.ingest("b", *(buys(10 + number, "C0", 1) for number in range(20)))
    spender.consume()
    spender.computed.clear()

    spender.ingest("c", *(buys(40 + number, name, 2) for number, name in enumerate(customers)))
    spender.consume()
    assert sorted(chain.from_iterable(spender.computed)) == customers
    assert len(spender.computed) > 1
    assert all(len(piece) == 1 for piece in spender.computed if "C0" in piece)
    assert all(len(piece) <= 4 for piece in spender.computed)
    assert spender.spent() == dict.fromkeys(customers, 3) | {"C0": 23}


def test_rows_of_keys_that_are_gone_go(spender: Spender) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    spender.ingest("a", buys(1, "C1", 10), buys(5, "C5", 50))
    consumed = spender.consume()
    assert consumed is not None
    assert spender.spent() == {"C1": 10, "C5": 50}


def test_rows_that_stay_the_same_are_not_written_again(spender: Spender) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    before = spender.rows()
    spender.ingest("a", buys(1, "C1", 10, region="South West"), buys(2, "C2", 5))
    consumed = spender.consume()
    assert consumed is not None
    assert consumed.key_count == 2
    assert (consumed.deleted, consumed.inserted) == ({"spent": 0}, {"spent": 0})
    assert spender.rows() == before


def test_where_nothing_has_changed_nothing_is_committed_except_that_the_offset_keeps_up(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framework, "PERSIST_AFTER", 3)
    spender.ingest("a", buys(1, "C1", 10))
    spender.consume()
    snapshot = spender.snapshot()
    offset = consumer_offset(spender.loader.connection, "spending")
    assert offset == snapshot - 1, "its own commit is not seen"
    assert spender.consume() is None
    spender.change("INSERT INTO lake.event_fields VALUES ('a', 'x', now())")
    assert spender.consume() is None
    assert spender.snapshot() == snapshot + 1
    assert consumer_offset(spender.loader.connection, "spending") == offset
    spender.change("INSERT INTO lake.event_fields VALUES ('b', 'x', now())")
    assert spender.consume() is None
    assert spender.snapshot() == snapshot + 3
    assert consumer_offset(spender.loader.connection, "spending") == snapshot + 2
    assert len(spender.computed) == 1


def test_an_offset_that_has_not_moved_for_long_moves(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    spender.ingest("a", buys(1, "C1", 10))
    spender.consume()
    monkeypatch.setattr(framework, "PERSIST_AGE", "INTERVAL 0 SECOND")
    seen = spender.snapshot()
    assert spender.consume() is None
    assert consumer_offset(spender.loader.connection, "spending") == seen


def test_offsets_are_compacted_and_say_the_same(spender: Spender) -> None:
    for number in range(3):
        spender.ingest(f"{number}", buys(number, "C1", 10))
        spender.consume()
    connection = spender.loader.connection
    before = consumer_offset(connection, "spending")
    positions = "SELECT position FROM stream_offsets WHERE kind = 'consumer' AND name = 'spending'"
    assert len(spender.loader.rows(positions)) == 3

    with spender.loader.lake.transaction(connection, "fold"):
        offsets.compact(connection)
    assert spender.loader.rows(positions) == [(before,)]
    assert consumer_offset(connection, "spending") == before
    assert spender.consume() is None


def test_offsets_are_compacted_once_they_are_many(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets, "COMPACT_ROWS", 2)
    for rows in (1, 2, 3):
        spender.ingest(f"{rows}", buys(rows, "C1", 10))
        spender.consume()
        # One of them stays.
        assert offsets.is_long(spender.loader.connection) == (rows > 2)


def test_an_empty_lake_is_followed_from_its_first_event_on(spender: Spender) -> None:
    assert spender.consume() is None
    spender.ingest("a", buys(1, "C1", 10))
    consumed = spender.consume()
    assert consumed is not None
    assert not consumed.rebuilt
    assert spender.spent() == {"C1": 10}


def test_a_rewind_gives_the_same_rows_and_mends_what_was_spoiled(spender: Spender) -> None:
    for line in (buys(1, "C1", 10), buys(2, "C2", 5), buys(3, "C2", 5)):
        spender.ingest(f"{len(spender.computed)}", line)
        spender.consume()
    before = spender.rows()
    spender.rewind()
    consumed = spender.consume()
    assert consumed is not None
    assert consumed.rebuilt
    assert spender.rows() == before

    spender.change("DELETE FROM lake.spent WHERE customer_id = 'C1'")
    spender.change("UPDATE lake.spent SET total = 1 WHERE customer_id = 'C2'")
    spender.change("INSERT INTO lake.spent VALUES ('C3', 4, now())")
    assert spender.consume() is None, "nobody else writes to its tables"
    spender.rewind()
    spender.consume()
    assert spender.spent() == {"C1": 10, "C2": 10}


def test_compaction_hides_no_change(spender: Spender) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    spender.ingest("b", *(buys(number, "C3", 1) for number in range(10, 30)))
    spender.ingest("c", *(buys(number, "C4", 1) for number in range(30, 50)))
    spender.ingest("a", buys(2, "C2", 5))
    for action in ("flush_inlined_data", "rewrite_data_files", "merge_adjacent_files"):
        spender.loader.connection.execute(f"CALL ducklake_{action}('lake')")
    consumed = spender.consume()
    assert consumed is not None
    assert not consumed.rebuilt
    assert spender.spent() == {"C2": 5, "C3": 20, "C4": 20}


def test_what_the_lake_has_forgotten_is_rebuilt(spender: Spender) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    spender.ingest("a", buys(2, "C2", 5))
    spender.ingest("b", buys(3, "C3", 7))
    old = list(range(spender.snapshot()))
    for call in (
        f"expire_snapshots('lake', versions => {old})",
        "cleanup_old_files('lake', cleanup_all => true)",
    ):
        spender.loader.connection.execute(f"CALL ducklake_{call}")
    consumed = spender.consume()
    assert consumed is not None
    assert consumed.rebuilt
    assert spender.spent() == {"C2": 5, "C3": 7}


def test_what_followed_an_offset_may_be_forgotten_though_its_own_snapshot_is_not(
    spender: Spender,
) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    spender.consume()
    offset = consumer_offset(spender.loader.connection, "spending")
    assert offset is not None
    spender.ingest("a", buys(2, "C2", 5))
    # As of an hour with many snapshots, of which the last of each minute is kept.
    spender.loader.connection.execute(
        "CALL ducklake_expire_snapshots('lake', versions => ?::UBIGINT[])", [[offset + 1]]
    )
    consumed = spender.consume()
    assert consumed is not None
    assert consumed.rebuilt
    assert spender.spent() == {"C2": 5}


def test_who_finds_that_another_worker_was_faster_steps_back(spender: Spender) -> None:
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 5))
    with EventLoader.open(spender.loader.settings) as loader:
        faster = Spender(loader)
        spender.meanwhile = faster.consume
        assert spender.consume() is None
    assert [len(computed) for computed in (spender.computed, faster.computed)] == [1, 1]
    assert spender.spent() == {"C1": 10, "C2": 5}
    assert spender.loader.rows("SELECT count(*) FROM spent") == [(2,)]


def test_a_rewind_and_another_rebuild_in_the_middle_of_a_rebuild_double_nothing(
    spender: Spender,
) -> None:
    spender.ingest("a", buys(1, "C1", 10))
    spender.consume()
    spender.rewind()
    spender.change("DELETE FROM lake.spent")
    with EventLoader.open(spender.loader.settings) as loader:
        other = Spender(loader)

        def meanwhile() -> None:
            other.consume()
            other.rewind()

        spender.meanwhile = meanwhile
        assert spender.consume() is None
    assert spender.loader.rows("SELECT customer_id FROM spent") == [("C1",)]


def test_workers_that_follow_at_once_while_events_come_end_with_the_rows_of_one(
    spender: Spender,
) -> None:
    done = threading.Event()
    problems: list[Exception] = []

    def follow() -> None:
        try:
            with EventLoader.open(spender.loader.settings) as loader:
                worker = Spender(loader)
                last = False
                while not last:
                    last = done.is_set()
                    worker.consume()
        except Exception as error:  # noqa: BLE001  # a thread tells nobody
            problems.append(error)

    workers = [threading.Thread(target=follow) for _ in range(2)]
    for worker in workers:
        worker.start()
    for number in range(6):
        spender.ingest(f"f{number}", buys(number, f"C{number % 2}", 1), buys(50 + number, "C9", 2))
    done.set()
    for worker in workers:
        worker.join()
    assert problems == []
    assert spender.spent() == {"C0": 3, "C1": 3, "C9": 12}
    assert spender.loader.rows("SELECT count(*) FROM spent") == [(3,)]


def test_a_round_that_fails_says_whose_it_was_and_leaves_everything_as_it_was(
    spender: Spender,
) -> None:
    spender.ingest("a", buys(1, "C1", 10))
    spender.consume()
    spender.ingest("b", buys(2, "C1", 1), buys(3, "C2", 1))
    spender.poison = {"C2"}
    snapshot = spender.snapshot()
    for failures in range(framework.ATTEMPTS - 1):
        with pytest.raises(ConsumerError, match=r"spending .*Could not convert.*as they are") as e:
            spender.consume(failures=failures)
        assert e.value.consumer == "spending"
    assert (spender.spent(), spender.letters()) == ({"C1": 10}, {})
    assert spender.snapshot() == snapshot
    spender.poison = set()
    spender.consume()
    assert spender.spent() == {"C1": 11, "C2": 1}


def failed(spender: Spender) -> None:
    """Eight customers, of whom C2 and C5 could not be computed; C1 is there from before."""
    spender.ingest("a", buys(1, "C1", 10), buys(2, "C2", 10))
    spender.consume()
    spender.poison = {"C2", "C5"}
    spender.ingest("b", *(buys(10 + number, f"C{number}", 1) for number in range(8)))
    consumed = spender.consume(failures=framework.ATTEMPTS - 1)
    assert consumed is not None
    assert set(consumed.failed) == {"C2", "C5"}
    assert all("Could not convert" in problem for problem in consumed.failed.values())


def test_failing_keys_are_quarantined_and_the_others_published(spender: Spender) -> None:
    failed(spender)
    fine = {"C0": 1, "C1": 11, "C3": 1, "C4": 1, "C6": 1, "C7": 1}
    assert spender.spent() == fine | {"C2": 10}, "what it was before"
    assert spender.letters() == {"C2": 3, "C5": 3}
    assert spender.consume() is None


def test_a_quarantined_key_that_changes_again_does_not_stop_the_others(spender: Spender) -> None:
    failed(spender)
    spender.ingest("c", buys(30, "C5", 1), buys(31, "C6", 1))
    consumed = spender.consume()
    assert consumed is not None
    assert set(consumed.failed) == {"C5"}
    assert spender.spent()["C6"] == 2
    assert spender.letters() == {"C2": 3, "C5": 4}


def test_a_key_that_can_be_computed_again_is_no_dead_letter_any_more(spender: Spender) -> None:
    failed(spender)
    spender.poison = {"C5"}
    spender.ingest("c", buys(30, "C2", 1))
    spender.consume()
    assert spender.letters() == {"C5": 3}
    assert spender.spent()["C2"] == 12


def test_quarantined_keys_are_tried_again_after_a_while(spender: Spender) -> None:
    failed(spender)
    spender.poison = set()
    ago = f"now() - {framework.RETRY_AFTER} - INTERVAL 1 SECOND"
    spender.change(f"UPDATE lake.consumer_dead_letters SET failed_at = {ago} WHERE key = 'C5'")
    consumed = spender.consume()
    assert consumed is not None
    assert consumed.keys == ("C5",)
    assert spender.letters() == {"C2": 3}
    assert (spender.spent()["C5"], spender.spent()["C2"]) == (1, 10)


def test_a_rebuild_keeps_the_rows_of_failing_keys(spender: Spender) -> None:
    failed(spender)
    before = spender.spent()
    spender.rewind()
    consumed = spender.consume()
    assert consumed is not None
    assert (consumed.rebuilt, set(consumed.failed)) == (True, {"C2", "C5"})
    assert spender.spent() == before
    spender.poison = set()
    spender.rewind()
    spender.consume()
    assert spender.letters() == {}
    assert (spender.spent()["C2"], spender.spent()["C5"]) == (11, 1)


def test_where_all_keys_fail_it_is_not_for_the_keys(
    spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framework, "MOST_QUARANTINED", 3)
    spender.poison = {f"C{number}" for number in range(8)}
    spender.ingest("a", *(buys(number, f"C{number}", 1) for number in range(8)))
    with pytest.raises(ConsumerError):
        spender.consume(failures=framework.ATTEMPTS - 1)
    assert spender.letters() == {}
    assert len(spender.computed) < 12


def test_the_lag_counts_the_commits_to_the_sources(spender: Spender) -> None:
    connection = spender.loader.connection

    def lag() -> int:
        return framework.lag(connection, spender.consumer).snapshots

    assert framework.lag(connection, spender.consumer) == framework.Lag(0, 0.0)
    spender.ingest("a", *(buys(number, "C1", 10) for number in range(20)))
    assert lag() == 1
    spender.change("INSERT INTO lake.event_fields VALUES ('a', 'x', now())")
    spender.ingest("b", buys(20, "C2", 1))
    assert lag() == 2
    assert 0 < framework.lag(connection, spender.consumer).seconds < 3600
    spender.consume()
    assert framework.lag(connection, spender.consumer) == framework.Lag(0, 0.0)
