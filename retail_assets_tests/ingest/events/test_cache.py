"""What a worker remembers of the lake changes nothing of what it takes in, whatever others do."""

import gc
import itertools
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import narwhals as nw
import pytest

from retail_assets import tables
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.events import batch as event_batch
from retail_assets.ingest.events import cache as event_cache
from retail_assets.ingest.events.cache import EventCache
from retail_assets.ingest.ledgers import event_files as event_ledger
from retail_assets.ingest.messages import load as received
from retail_assets.ingest.messages.load import Received, ingest, warm_session
from retail_assets.lake import connection as lake_connection
from retail_assets.lake import lock
from retail_assets.lake.publish import publish_table
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.event_files import EventLoader, event

DAY = date(2026, 10, 12)
PART = ("kafka", "orders:5")

# Each batch was received after those before it, and after all files.
_OFFERED = itertools.count(1_900_000_000)


def batch(first: int, *payloads: str, part: str = "orders:5") -> Received:
    texts = [text.encode() for text in payloads]
    positions = range(first, first + len(texts))
    return Received("kafka", part, DAY, positions, texts, offered_at=next(_OFFERED))


@pytest.fixture
def loaders(settings, lake) -> Iterator[Callable[[], EventLoader]]:
    """Opens sessions with a cache, as many as a test asks for."""
    with ExitStack() as stack:

        def opened() -> EventLoader:
            return stack.enter_context(EventLoader.open(settings, cached=True))

        yield opened


def cache_of(loader: EventLoader) -> EventCache:
    found = loader.session.cache
    assert found is not None
    return found


def accepted(loader: EventLoader, *items: Received) -> int:
    return sum(found.accepted for found in ingest(loader.session, items).values())


def test_what_others_ingest_is_known(loaders):
    mine, others = loaders(), loaders()
    assert accepted(mine, batch(0, event(1))) == 1
    # It counts where it was received first, which the name of the source does not decide.
    assert accepted(others, batch(0, event(1), event(2), part="orders:1")) == 1
    assert accepted(mine, batch(1, event(1), event(2), event(3))) == 1
    assert mine.events() == [("E1",), ("E2",), ("E3",)]


def test_positions_that_others_ingest_are_known(loaders):
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(1)))
    accepted(others, batch(0, event(1), event(2)))
    taken = ingest(mine.session, [batch(1, event(2), event(3))])["kafka"]
    assert (taken.lines, taken.accepted) == (1, 1)
    assert mine.rows("SELECT position FROM raw_events ORDER BY ALL") == [(0,), (1,), (2,)]


def test_what_was_there_before_is_known(loaders):
    accepted(loaders(), batch(0, event(1), event(2)))
    again = loaders()
    assert accepted(again, batch(2, event(1), event(3))) == 1
    assert again.events() == [("E1",), ("E2",), ("E3",)]


def test_an_event_that_was_removed_is_ingested_again(loaders):
    loader = loaders()
    loader.write(f"{DAY}/a.jsonl", [event(1)])
    loader.ingest()
    loader.write(f"{DAY}/a.jsonl", [event(20)])
    loader.ingest()
    assert accepted(loader, batch(0, event(1), event(20))) == 1
    assert loader.events("event_id, source") == [("E1", "kafka"), ("E20", "file")]


def test_reference_data_that_others_replace_are_picked_up(loaders, settings, lake):
    loader = loaders()
    accepted(loader, batch(0, event(1)))
    with lake.connect() as connection:
        product = connection.sql(
            "SELECT 'P1' AS product_id, 'Tea' AS product_name, 'Drinks' AS product_category,"
            " 3.5::DECIMAL(12,2) AS unit_price_gbp, 10::BIGINT AS stock_on_hand"
        )
        publish_table(lake, connection, tables.PRODUCTS, nw.from_native(product))
    accepted(loader, batch(1, event(2)))
    accepted(loader, batch(2, *map(event, range(3, 2_500))))
    found = loader.rows("SELECT event_id, product_name FROM enriched_events WHERE event_id <> 'E1'")
    assert {name for _, name in found} == {"Tea"}
    assert len(found) == 2_498


def test_a_cache_that_fails_to_warm_begins_again(loaders, monkeypatch, lake):
    loader = loaders()
    rows = {
        tables.PRODUCTS: "'P1' AS product_id, 'Tea' AS product_name, 'Drinks' AS product_category,"
        " 3.5::DECIMAL(12,2) AS unit_price_gbp, 10::BIGINT AS stock_on_hand",
        tables.CUSTOMERS: "'C1' AS customer_id, 'Loyal' AS customer_segment,"
        " 'North' AS home_region, DATE '2020-01-01' AS joined_on",
    }
    with lake.connect() as connection:
        for table, row in rows.items():
            publish_table(lake, connection, table, nw.from_native(connection.sql(f"SELECT {row}")))
    accepted(loader, batch(0, event(1)))
    count = EventCache._count

    def failing(self: EventCache, name: str) -> int:
        if name == tables.CUSTOMERS.name:
            raise duckdb.IOException("no such file")
        return count(self, name)

    monkeypatch.setattr(EventCache, "_count", failing)
    with pytest.raises(duckdb.IOException):
        accepted(loader, batch(1, event(2)))
    monkeypatch.setattr(EventCache, "_count", count)
    # The copy of the products was gone with the transaction.
    accepted(loader, batch(1, event(2)))
    assert loader.events("product_name, customer_segment") == [("Tea", "Loyal")] * 2
    assert cache_of(loader).copied_tables() == {*(table.name for table in rows), "currency_rates"}


def test_each_batch_says_when_it_was_ingested(loaders):
    loader = loaders()
    for number in range(3):
        accepted(loader, batch(number, event(number)))
    times = loader.rows("SELECT processed_at FROM enriched_events ORDER BY position")
    assert len(set(times)) == 3
    assert times == sorted(times)


def test_a_reference_table_that_is_too_large_to_be_copied_is_asked(loaders, monkeypatch, lake):
    monkeypatch.setattr(event_cache, "MOST_ROWS", 0)
    loader = loaders()
    with lake.connect() as connection:
        customer = connection.sql(
            "SELECT 'C1' AS customer_id, 'Loyal' AS customer_segment, 'North' AS home_region,"
            " DATE '2020-01-01' AS joined_on"
        )
        publish_table(lake, connection, tables.CUSTOMERS, nw.from_native(customer))
    # The first batch finds that the table has changed, the second might have a copy of it.
    for number in (0, 1):
        accepted(loader, batch(number, event(number)))
    assert tables.CUSTOMERS.name not in cache_of(loader).copied_tables()
    assert loader.events("customer_segment") == [("Loyal",), ("Loyal",)]


def test_a_history_that_was_forgotten_is_read_again(loaders):
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(1)))
    for number in range(2, 6):
        accepted(others, batch(number, event(number), part="orders:1"))
    others.connection.execute("CALL ducklake_expire_snapshots('lake', older_than => now())")
    assert accepted(mine, batch(1, event(4), event(9))) == 1
    # Now with what was read anew.
    assert accepted(mine, batch(3, event(5), event(9), event(10))) == 1
    assert cache_of(mine).known([1, 2]) == []
    assert mine.events() == [("E1",), ("E10",), ("E2",), ("E3",), ("E4",), ("E5",), ("E9",)]


def test_more_events_than_there_is_room_for_are_all_known(loaders, monkeypatch):
    monkeypatch.setattr(event_cache, "LEAST_EVENTS", 20)
    loader = loaders()
    for first in range(0, 200, 10):
        assert accepted(loader, batch(first, *map(event, range(first, first + 10)))) == 10
    assert accepted(loader, batch(200, *map(event, range(210)))) == 10
    assert cache_of(loader)._filters[tables.ENRICHED_EVENTS.name].room > 200


def test_the_lake_is_queried_when_the_cache_is_full(loaders, monkeypatch):
    monkeypatch.setattr(event_cache, "MOST_EVENTS", 1)
    accepted(loaders(), batch(0, event(1), event(2)))
    loader = loaders()
    assert cache_of(loader).known([1]) is None
    assert accepted(loader, batch(2, event(2), event(3))) == 1


def test_a_false_positive_is_no_duplicate(loaders, monkeypatch):
    loader = loaders()
    monkeypatch.setattr(EventCache, "known", lambda _, identities: list(identities))
    assert accepted(loader, batch(0, event(1), event(2))) == 2


def test_new_fields_are_counted_once_whoever_saw_them_first(loaders):
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(1, note="a")))
    accepted(others, batch(0, event(2, note="b", colour="red"), part="orders:1"))
    accepted(mine, batch(1, event(3, colour="blue", size=1)))
    assert mine.rows("SELECT field FROM event_fields ORDER BY ALL") == [
        ("colour",),
        ("note",),
        ("size",),
    ]


def test_a_connection_that_nobody_has_any_more_leaves_nothing_in_memory(lake):
    connection = lake.open()
    session = warm_session(lake, connection, ())
    connection.close()
    left = [weakref.ref(connection), weakref.ref(session.cache)]
    del connection, session
    gc.collect()
    assert [each() for each in left] == [None, None]


def test_positions_that_others_ingest_while_all_is_read_again_are_known(loaders):
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(1)))
    cache_of(mine)._seen.clear()
    accepted(others, batch(0, event(1), event(2)))
    taken = ingest(mine.session, [batch(1, event(2), event(3))])
    assert taken["kafka"].lines == 1


@pytest.fixture
def fetched(monkeypatch, lake) -> dict[bool, int]:
    """How many rows a memory has read, while all who write wait and while they do not."""
    rows = {True: 0, False: 0}
    batches = event_cache._batches

    def counted(*query) -> Iterator:
        for each in batches(*query):
            rows[lake.catalog in lock._held.catalogs] += each.num_rows
            yield each

    monkeypatch.setattr(event_cache, "_batches", counted)
    return rows


def test_much_that_others_ingested_is_not_read_while_all_wait(loaders, monkeypatch, fetched):
    monkeypatch.setattr(event_cache, "MOST_NEW", 5)
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(0)))
    for first in (1, 11, 21):
        accepted(others, batch(first, *map(event, range(first, first + 10)), part="orders:1"))
    fetched.update({True: 0, False: 0})
    before = mine.rows("SELECT id FROM lake.current_snapshot()")
    assert accepted(mine, batch(1, event(7), event(30), event(31))) == 1
    assert fetched[False] == 30
    assert fetched[True] <= 6
    assert not cache_of(mine).is_behind
    # That it stepped aside leaves nothing in the history.
    assert mine.rows("SELECT id - 1 FROM lake.current_snapshot()") == before


def test_little_that_others_ingested_is_picked_up_at_once(loaders, monkeypatch, fetched):
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(0)))
    accepted(others, batch(1, event(1), event(2), part="orders:1"))
    fetched.update({True: 0, False: 0})
    executed = []
    monkeypatch.setattr(lake_connection, "commit", lambda c: executed.append(c.execute("COMMIT")))
    assert accepted(mine, batch(1, event(2), event(3))) == 1
    assert fetched == {True: 2, False: 0}
    assert len(executed) == 1


def test_while_others_ingest_too_much_again_and_again_the_lake_is_queried(loaders, monkeypatch):
    monkeypatch.setattr(event_cache, "MOST_NEW", 5)
    mine, others = loaders(), loaders()
    accepted(mine, batch(0, event(0)))
    warm = EventCache.warm
    theirs = iter(
        [batch(first, *map(event, range(first, first + 10)), part="orders:1") for first in (10, 20)]
    )

    def overtaken(self: EventCache) -> None:
        warm(self)
        if self is cache_of(mine) and (received := next(theirs, None)):
            accepted(others, received)

    monkeypatch.setattr(EventCache, "warm", overtaken)
    assert accepted(mine, batch(1, event(15), event(25), event(30))) == 1
    assert cache_of(mine).is_behind
    assert cache_of(mine).known([1]) is None
    assert accepted(mine, batch(4, event(16), event(26), event(30), event(31))) == 1
    assert not cache_of(mine).is_behind
    assert cache_of(mine).known([1]) == []


@pytest.mark.parametrize("committed", [False, True])
def test_whoever_does_not_know_whether_he_committed_asks(loaders, monkeypatch, committed):
    loader = loaders()
    accepted(loader, batch(0, event(1)))
    commit = lake_connection.commit

    def broken(connection: duckdb.DuckDBPyConnection) -> None:
        if committed:
            commit(connection)
        raise ConnectionError

    monkeypatch.setattr(lake_connection, "commit", broken)
    with pytest.raises(ConnectionError):
        accepted(loader, batch(1, event(2)))
    monkeypatch.setattr(lake_connection, "commit", commit)
    taken = ingest(loader.session, [batch(1, event(2))])
    assert [found.lines for found in taken.values()] == ([] if committed else [1])
    assert loader.rows("SELECT position FROM raw_events ORDER BY ALL") == [(0,), (1,)]
    assert loader.events() == [("E1",), ("E2",)]


def test_the_lake_is_queried_for_little(loaders, monkeypatch):
    loader = loaders()
    accepted(loader, batch(0, event(1)))
    monkeypatch.setattr(received.offsets, "next_positions", None)
    assert accepted(loader, batch(1, event(2))) == 1
    assert cache_of(loader).positions == {PART: 2}


def test_for_new_files_the_ledger_is_not_asked(loaders, monkeypatch):
    loader = loaders()
    for name in "ab":
        loader.write(f"{DAY}/{name}.jsonl", [event(ord(name))])
        loader.ingest()
    monkeypatch.setattr(event_ledger, "_read", None)
    loader.write(f"{DAY}/c.jsonl", [event(1), event(2)])
    loader.ingest([f"{DAY}/c.jsonl"], unknown=[f"{DAY}/c.jsonl"])
    assert loader.rows("SELECT count(*) FROM event_files") == [(3,)]


def test_a_file_that_another_has_just_ingested_is_known(loaders):
    mine, others = loaders(), loaders()
    for name in "abc":
        mine.write(f"{DAY}/{name}.jsonl", [event(ord(name))])
        (others if name == "c" else mine).ingest()
    mine.write(f"{DAY}/d.jsonl", [event(ord("c"))])
    assert mine.ingest().files[f"{DAY}/d.jsonl"].outcome == "copy"


def test_a_file_that_another_could_not_read_is_known(loaders):
    mine, others = loaders(), loaders()
    for name in "ab":
        mine.write(f"{DAY}/{name}.jsonl", [event(ord(name))])
        mine.ingest()
    mine.write(f"{DAY}/c.jsonl.gz", b"nonsense")
    assert others.ingest().failed
    mine.write(f"{DAY}/c.jsonl.gz", [event(1)])
    mine.ingest()
    assert mine.rows("SELECT path FROM failed_event_files") == []
    assert mine.events() == [("E1",), ("E97",), ("E98",)]


Step: TypeAlias = tuple[str, list[str] | bytes, int, int, bool]


@pytest.fixture(scope="module")
def steps(new_lake: NewLake, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Step, Any]]:
    """Files that come and change, each with the tables that one without a cache has after it."""
    chance = random.Random(0)  # noqa: S311
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("one without a cache"), start_date=date(2026, 1, 1)
    )
    new_lake(settings.data_dir)
    found: list[tuple[Step, Any]] = []
    with EventLoader.open(settings) as one:
        for turn in range(12):
            path = f"{DAY}/{chance.choice('abcdef')}.jsonl{chance.choice(('', '', '.gz'))}"
            # Of few contents, so that many are copies; some cannot be read.
            first = chance.randrange(3)
            content = [event(first + number) for number in range(chance.choice((0, 2, 2, 2)))]
            lines = b"nonsense" if path.endswith("gz") and chance.random() < 0.4 else content
            # Each file differs in time, if not in size.
            written = (1_791_800_000 + turn) * 10**9
            one.write(path, lines, modified_ns=written)
            one.ingest([path])
            step = path, lines, written, chance.randrange(2), chance.random() < 0.5
            found.append((step, files_of(one)))
    return found


def files_of(loader: EventLoader) -> list[list[tuple[Any, ...]]]:
    return [
        loader.rows(f"SELECT {columns} FROM {table} ORDER BY ALL")
        for table, columns in (
            ("enriched_events", "* EXCLUDE (processed_at)"),
            ("event_files", "* EXCLUDE (ingested_at, superseded_at, retracted_at)"),
            ("failed_event_files", "path"),
        )
    ]


@pytest.mark.parametrize(("least", "most"), [(1, 100), (100, 100), (100, 0)])
def test_files_that_two_ingest_give_the_tables_of_one_without_a_cache(
    loaders, steps, least, most, monkeypatch
):
    monkeypatch.setattr(event_cache, "LEAST_FILES", least)
    monkeypatch.setattr(event_cache, "MOST_NEW", most)
    workers = [loaders(), loaders()]
    for (path, lines, written, number, is_known), expected in steps:
        worker = workers[number]
        worker.write(path, lines, modified_ns=written)
        if is_known:
            worker.ingest([path])
        else:
            # Of one that the ledger has, nothing is ingested: a scan finds it then.
            worker.ingest([path], unknown=[path])
            if path in pending_event_files(worker.settings, worker.connection).files:
                worker.ingest([path])
        assert files_of(worker) == expected
    copies = workers[0].rows("SELECT count(*) FROM event_files WHERE copy_of IS NOT NULL")
    assert copies != [(0,)]


@pytest.mark.parametrize(("seed", "most"), [(6, 500_000), (2, 2)])
def test_any_mix_of_workers_and_files_gives_the_tables_of_one_without_a_cache(
    loaders, seed, most, monkeypatch, new_lake, tmp_path: Path
):
    monkeypatch.setattr(event_cache, "MOST_NEW", most)
    # Batches of a few lines and of more go different ways.
    monkeypatch.setattr(event_batch, "SMALL", 20)
    chance = random.Random(seed)  # noqa: S311
    workers = [loaders(), loaders()]
    positions = [0, 0]
    received_: list[Received] = []
    files: list[tuple[str, list[str], int]] = []
    for turn in range(10):
        lines = [event(chance.randrange(30), note=turn) for _ in range(chance.choice((1, 3, 60)))]
        number = chance.randrange(3)
        worker = workers[number % 2]
        if number == 2:
            # Some of them in place of what was there before.
            path, written = f"{DAY}/{chance.randrange(3)}.jsonl", (1_791_800_000 + turn) * 10**9
            files.append((path, lines[:5], written))
            worker.write(path, lines[:5], modified_ns=written)
            worker.ingest()
        else:
            item = batch(positions[number], *lines, part=f"orders:{number}")
            positions[number] += len(lines)
            received_.append(item)
            accepted(worker, item)
    other = Settings(data_dir=tmp_path / "other", start_date=date(2026, 1, 1))
    new_lake(other.data_dir)
    with EventLoader.open(other) as one:
        for path, lines, written in files:
            one.write(path, lines, modified_ns=written)
        one.ingest()
        for item in received_:
            accepted(one, item)
        # It has seen the last version of each file alone.
        sources = "SELECT * EXCLUDE (processed_at, version) FROM enriched_events ORDER BY ALL"
        assert workers[0].rows(sources) == one.rows(sources)
