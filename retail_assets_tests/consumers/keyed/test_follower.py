"""The keyed state beside the lake: lost, damaged, behind, ahead, of others, and used by two."""

import logging
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retail_assets.consumers import framework
from retail_assets.consumers.framework import ConsumerError
from retail_assets.consumers.keyed import follower, store
from retail_assets.consumers.keyed import round as keyed_round
from retail_assets.ingest.ledgers.offsets import consumer_offsets
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake, copy_data
from retail_assets_tests.consumers.keyed.shop import SOLD, Shop, opened

pytestmark = pytest.mark.slow

FOUND = {**SOLD, "order": 2, "product": None, "lines": [("A", 2, 3), ("B", 1, 4)], "minute": 60}
BACK = {**SOLD, "status": "returned", "minute": 900}


@pytest.fixture(scope="module")
def sold(new_lake: NewLake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two orders that are followed, of which one comes back, and one more that is not."""
    folder = tmp_path_factory.mktemp("sold")
    new_lake(folder)
    with opened(Settings(data_dir=folder)) as shop:
        shop.change("INSERT INTO lake.products VALUES ('A', 'n', 'Food', NULL, 7)")
        shop.insert("", [SOLD, FOUND])
        shop.follow()
        shop.insert("", [BACK])
        shop.follow()
        shop.insert("", [{**SOLD, "order": 3}])
    return folder


@pytest.fixture(scope="module")
def right(sold: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tables that follow from these orders."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("right"))
    copy_data(sold, settings)
    with opened(settings) as shop:
        return shop.rebuilt()


@pytest.fixture
def data(sold: Path, settings: Settings) -> Settings:
    """The same in a lake of its own."""
    copy_data(sold, settings)
    return settings


@pytest.fixture
def shop(data: Settings) -> Iterator[Shop]:
    with opened(data) as shop:
        yield shop


def elsewhere(settings: Settings, state: Path) -> Settings:
    """The same lake with another state."""
    return Settings(data_dir=settings.data_dir, consumer_state=str(state))


def built(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why the state was built, each time."""
    return [
        record.message.rpartition(": ")[2].rstrip(".")
        for record in caplog.records
        if "is built from the lake" in record.message
    ]


def is_right(shop: Shop) -> bool:
    shop.follow()
    return shop.tables() == shop.rebuilt()


def lost(path: Path) -> None:
    path.unlink()


def damaged(path: Path) -> None:
    path.write_bytes(b"\xff" * 100_000)


def damaged_inside(path: Path) -> None:
    """The first page is whole, those of the tables are not."""
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * (path.stat().st_size - 4096 * 3))


def of_another_version(path: Path) -> None:
    execute(path, "UPDATE position SET layout = 'older'")


def of_another_lake(path: Path) -> None:
    execute(path, "UPDATE position SET lake = 'another'")


def of_a_backup(path: Path) -> None:
    execute(path, "UPDATE position SET own_us = own_us - 1")


def ahead(path: Path) -> None:
    execute(path, "UPDATE position SET events = events + 100")


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lost, "there is none"),
        (damaged, "it is damaged, or something else"),
        (damaged_inside, "malformed"),
        (of_another_version, "it is of another version or opening day"),
        (of_another_lake, "it is of another lake"),
        (of_a_backup, "the lake does not have its snapshot"),
        (ahead, "it is ahead of the lake"),
    ],
)
def test_a_state_that_cannot_be_used_is_built_again(
    harm: Any, reason: str, shop: Shop, right: Any, caplog: pytest.LogCaptureFixture
) -> None:
    harm(shop.path)
    caplog.set_level(logging.INFO)
    shop.follow()
    assert shop.tables() == right
    assert [reason in why for why in built(caplog)] == [True]


def test_a_worker_that_starts_goes_on_with_the_state_that_it_left(
    shop: Shop, right: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shop.follow()
    assert shop.tables() == right
    assert built(caplog) == []


def test_what_others_wrote_meanwhile_reaches_the_state(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.consume()
    shop.insert("", [BACK, {**FOUND, "region": "North"}])
    caplog.set_level(logging.INFO)
    assert is_right(shop)
    assert built(caplog) == []


@pytest.mark.processes
def test_a_process_killed_between_both_commits_goes_on_without_a_rebuild(
    data: Settings, right: Any, caplog: pytest.LogCaptureFixture
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(data.data_dir)], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    caplog.set_level(logging.INFO)
    with opened(data) as shop:
        assert shop.loader.rows("SELECT count(*) FROM live_orders") == [(3,)]
        shop.ready()
        assert shop.follower._store is not None
        kept = shop.follower._store.db.execute("SELECT count(*) FROM live_orders").fetchone()
        assert kept == (2,), "the state is behind"
        shop.follow()
        assert shop.tables() == right
    assert built(caplog) == []


KILLED = f"""
import os, sys
from pathlib import Path
from retail_assets.consumers.framework import ConsumerError
from retail_assets.consumers.keyed import follower, store
from retail_assets.consumers.keyed import round as keyed_round
from retail_assets.settings import Settings
from retail_assets_tests.consumers.keyed.shop import opened

keyed_round.committed_snapshot = lambda _: os.kill(os.getpid(), {int(signal.SIGKILL)})
with opened(Settings(data_dir=Path(sys.argv[1]))) as shop:
    shop.follow()
"""


def test_late_and_new_sales_of_one_round_move_the_alerts_of_all_days_from_the_first(
    shop: Shop,
) -> None:
    shop.change("INSERT INTO lake.products VALUES ('C', 'n', 'Food', NULL, 12)")
    day, sale = 24 * 60, {**SOLD, "product": "C", "quantity": 8}
    shop.insert("", [{**sale, "order": 5, "minute": 2 * day}])
    shop.follow()
    alerts = "SELECT order_id FROM stock_alerts WHERE product_id = 'C'"
    assert shop.loader.rows(alerts) == [("5",)]
    shop.insert("", [{**sale, "order": 6, "minute": 1}, {**sale, "order": 7, "minute": 3 * day}])
    shop.follow()
    assert shop.loader.rows(alerts) == [("6",)]


def test_two_workers_with_a_state_each_end_with_the_tables_of_one(
    shop: Shop, data: Settings, tmp_path: Path
) -> None:
    with opened(elsewhere(data, tmp_path / "other.sqlite")) as other:
        for number, follows in enumerate((shop, other, shop, other)):
            follows.insert("", [{**SOLD, "order": number % 3, "value": number}, FOUND])
            follows.follow()
        assert is_right(other)
        assert is_right(shop)


def test_a_second_worker_leaves_the_state_to_the_first_and_reads_the_lake(
    shop: Shop, data: Settings, right: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shop.ready()
    with opened(data) as other:
        while other.follower.iterate(other.loader.connection):
            pass
        assert not other.follower.metrics["state_ready"]
        assert other.tables() == right
    assert "Another process uses" in caplog.text
    shop.follow()
    assert shop.tables() == right


def test_a_round_that_another_worker_beats_changes_neither_lake_nor_state(
    shop: Shop, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = keyed_round.KeyedRound._publish

    def beaten(round_: keyed_round.KeyedRound) -> None:
        monkeypatch.undo()
        with opened(elsewhere(shop.loader.settings, shop.path.with_name("other"))) as other:
            other.consume()
        publish(round_)

    monkeypatch.setattr(keyed_round.KeyedRound, "_publish", beaten)
    shop.follow()
    assert shop.tables() == right


def test_a_round_that_fails_is_left_to_what_reads_the_lake_which_finds_the_key(
    shop: Shop, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.ready()
    before = shop.tables()

    def fail(*_: object) -> None:
        raise ValueError("no stock")

    monkeypatch.setattr(follower, "BACKOFF_SECONDS", (3600.0,))
    with monkeypatch.context() as patch:
        patch.setattr(keyed_round.KeyedRound, "apply_stock", fail)
        with pytest.raises(ValueError, match="no stock"):
            shop.follower.iterate(shop.loader.connection)
        assert shop.follower.problems == {"consumers": "no stock"}
        assert shop.tables() == before
        # The state is not tried again at once.
        assert shop.follower.iterate(shop.loader.connection)
        assert shop.tables() == right


def test_a_consumer_that_fails_does_not_stop_the_others(
    shop: Shop, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    consume = follower.consume
    monkeypatch.setattr(follower, "BACKOFF_SECONDS", (3600.0,))

    def fail(lake: Any, connection: Any, consumer: Any, **options: Any) -> Any:
        if consumer.name == "live_orders":
            raise ConsumerError(consumer.name, "no orders")
        return consume(lake, connection, consumer, **options)

    shop.follower._failures["live_orders"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(follower, "consume", fail)
        with pytest.raises(ConsumerError, match="no orders"):
            shop.follower.iterate(shop.loader.connection)
        assert "no orders" in shop.follower.problems["live_orders"]
        assert not shop.follower.iterate(shop.loader.connection)
    assert shop.tables()["fraud_alerts"] == right["fraud_alerts"]
    offsets = consumer_offsets(shop.loader.connection)
    assert offsets["live_orders"] < offsets["fraud"]
    shop.follower._retry_at.clear()
    shop.follow()
    assert shop.tables() == right
    assert shop.follower.problems == {}


def test_a_consumer_that_was_rewound_is_rebuilt_from_the_lake_and_the_state_as_well(
    shop: Shop, right: Any
) -> None:
    shop.change("UPDATE lake.live_revenue SET total_revenue = 1")
    shop.ready()
    assert shop.follower._store is not None
    shop.follower._store.db.execute("DELETE FROM stock_days")
    framework.rewind(shop.loader.lake, shop.loader.connection, shop.slow[1])
    shop.follow()
    assert shop.tables() == right
    shop.insert("", [{**SOLD, "order": 4}])
    assert is_right(shop)


def test_all_consumers_of_a_round_are_one_commit(shop: Shop) -> None:
    shop.ready()
    snapshots = "SELECT count(*) FROM lake.snapshots()"
    [(before,)] = shop.loader.rows(snapshots)
    assert shop.follower.iterate(shop.loader.connection)
    assert shop.loader.rows(snapshots) == [(before + 1,)]
    offsets = consumer_offsets(shop.loader.connection)
    assert len(set(offsets.values())) == 1
    assert not shop.follower.iterate(shop.loader.connection)


class Statements:
    """A connection that lists what is executed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.executed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: Any) -> Any:
        self.executed.append(sql)
        return self._connection.execute(sql, *parameters)


def test_a_round_reads_no_table_of_the_lake_that_grows_with_its_events(shop: Shop) -> None:
    shop.ready()
    connection = Statements(shop.loader.connection)
    assert shop.follower.iterate(connection)  # type: ignore[arg-type]
    grow = ("enriched_events", *(t.name for each in shop.slow for t in each.tables))
    read = [
        sql
        for sql in connection.executed
        for name in grow
        if f"lake.{name}" in sql
        and not sql.startswith("INSERT INTO lake.")
        # Those of the orders, products and days that changed, whose files the days prune.
        and not (sql.startswith("DELETE FROM lake.") and " BETWEEN " in sql)
    ]
    small = ("inventory_levels",)
    assert [sql for sql in read if not any(name in sql for name in small)] == []


def test_many_events_at_once_are_followed_from_the_lake(
    shop: Shop, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_round, "MOST_EVENTS", 0)
    shop.follow()
    assert shop.tables() == right


def test_a_customer_of_too_many_orders_is_followed_from_the_lake(
    shop: Shop, right: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "MOST_LOADED", 2)
    caplog.set_level(logging.INFO)
    shop.follow()
    assert shop.tables() == right
    assert built(caplog) == []
    monkeypatch.undo()
    shop.insert("", [BACK])
    assert is_right(shop)


def test_a_state_that_is_far_behind_is_built_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop.insert("", [{**SOLD, "order": number} for number in range(20)])
    monkeypatch.setattr(keyed_round, "MOST_ROWS", 10)
    caplog.set_level(logging.INFO)
    assert is_right(shop)
    assert built(caplog)[0].endswith("rows behind")


def test_the_state_says_its_size_and_is_its_owners_alone(shop: Shop) -> None:
    shop.ready()
    metrics = shop.follower.metrics
    assert metrics["state_ready"] == 1
    assert metrics["state_bytes"] >= shop.path.stat().st_size > 0
    assert shop.path.stat().st_mode & 0o077 == 0


def test_a_database_of_something_else_is_left_alone(
    data: Settings, right: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(elsewhere(data, Path(data.catalog))) as shop:
        while shop.follower.iterate(shop.loader.connection):
            pass
        shop.follower.close()
        assert shop.tables() == right
    assert "is a database of something else: set RETAIL_CONSUMER_STATE" in caplog.text
