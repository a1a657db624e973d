"""The fraud consumer on a real lake: from events to alerts, by rules and by models."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from retail_assets.consumers import framework
from retail_assets.consumers.framework import Consumed
from retail_assets.consumers.fraud import consumer as fraud
from retail_assets.consumers.fraud import model as fraud_model
from retail_assets.consumers.fraud import training as fraud_training
from retail_assets.consumers.fraud.training import Training
from retail_assets.ingest.ledgers.offsets import consumer_offset
from retail_assets.lake.connection import current_snapshot
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake, copy_data
from retail_assets_tests.event_files import EventLoader, event

FIRST = date(2026, 10, 12)
TRAINED = FIRST + timedelta(days=2)
SCORED = TRAINED + timedelta(days=2)
"""The first day whose orders the model of `TRAINED` scores."""


@dataclass
class Watch:
    """The consumer of fraud over a lake of its own; a hundred orders make a model."""

    loader: EventLoader
    scorer: fraud.Scorer = field(default_factory=fraud.Scorer)

    @property
    def settings(self) -> Settings:
        return self.loader.settings

    def ingest(self, day: date, name: str, *lines: str) -> None:
        self.loader.write(f"{day}/{name}.jsonl", lines)
        self.loader.ingest()

    @cached_property
    def consumer(self) -> framework.Consumer:
        """That of a worker which goes on."""
        return fraud.consumer(self.settings, self.scorer)

    def follow(self) -> Consumed | None:
        return framework.consume(self.loader.lake, self.loader.connection, self.consumer)

    def checked(self) -> set[str]:
        """The customers whose orders were validated last."""
        rows = self.loader.rows("SELECT DISTINCT customer_id FROM temp.main.fraud_checked")
        return {customer for (customer,) in rows}

    def temporary_tables(self) -> list[tuple[Any, ...]]:
        return self.loader.rows("SELECT table_name FROM duckdb_tables() WHERE temporary ORDER BY 1")

    def rebuilt(self) -> list[tuple[Any, ...]]:
        """The alerts of a worker that remembers nothing."""
        consumer = fraud.consumer(self.settings)
        framework.rewind(self.loader.lake, self.loader.connection, consumer)
        framework.consume(self.loader.lake, self.loader.connection, consumer)
        return self.alerts()

    def alerts(self, columns: str = "*") -> list[tuple[Any, ...]]:
        return self.loader.rows(f"SELECT {columns} FROM fraud_alerts ORDER BY event_id")

    def train(self, day: date = TRAINED) -> Training:
        return fraud_training.train_day(
            self.loader.lake, self.loader.connection, self.settings, day
        )

    def change(self, sql: str, *parameters: Any) -> None:
        with self.loader.lake.transaction(self.loader.connection, "spoil"):
            self.loader.connection.execute(sql, parameters)


@contextmanager
def opened(settings: Settings) -> Iterator[Watch]:
    # So few orders are no measure of what is unusual.
    settings = settings.model_copy(update={"fraud_training_orders": 100, "fraud_model_share": 0.8})
    with EventLoader.open(settings) as loader:
        yield Watch(loader)


@pytest.fixture
def watch(settings: Settings, lake: object) -> Iterator[Watch]:
    with opened(settings) as watch:
        yield watch


@pytest.fixture(scope="module")
def history_data(new_lake: NewLake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the events of `history`."""
    folder = tmp_path_factory.mktemp("history")
    new_lake(folder)
    with opened(Settings(data_dir=folder)) as watch:
        for day, lines in history().items():
            watch.loader.write(f"{day}/history.jsonl", lines)
        watch.loader.ingest()
    return folder


@pytest.fixture(scope="module")
def trained_data(history_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the model of `TRAINED`."""
    folder = tmp_path_factory.mktemp("trained")
    copy_data(history_data, Settings(data_dir=folder))
    with opened(Settings(data_dir=folder)) as watch:
        watch.train()
    return folder


@pytest.fixture
def after_history(settings: Settings, history_data: Path) -> Iterator[Watch]:
    copy_data(history_data, settings)
    with opened(settings) as watch:
        yield watch


@pytest.fixture
def trained(settings: Settings, trained_data: Path) -> Iterator[Watch]:
    copy_data(trained_data, settings)
    with opened(settings) as watch:
        yield watch


def at(day: date, minute: float) -> str:
    start = datetime(day.year, day.month, day.day, 9, tzinfo=timezone.utc)
    return (start + timedelta(minutes=minute)).isoformat()


def order(number: int, day: date, minute: float, **changed: Any) -> str:
    return event(number, event_timestamp=at(day, minute), **changed)


def history(days: int = 3) -> dict[date, list[str]]:
    """Forty orders a day of eight customers, of about ten pounds."""
    chance = random.Random(1)  # noqa: S311
    return {
        FIRST + timedelta(days=n): [
            order(
                100 * n + k,
                FIRST + timedelta(days=n),
                12 * k,
                customer_id=f"C{k % 8}",
                order_value_gbp=chance.randint(800, 1200) / 100,
            )
            for k in range(40)
        ]
        for n in range(days)
    }


BURST = [order(500 + n, FIRST, n, card_id=f"card {n % 4}") for n in range(6)]


# Rules


def test_only_the_orders_of_the_customers_concerned_are_checked(after_history: Watch) -> None:
    watch = after_history
    connection = watch.loader.connection
    watch.consumer.compute(connection, None)
    assert watch.checked() == {f"C{number}" for number in range(8)}
    for name in ("C3", "C5"):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE keys AS SELECT '{name}' AS customer_id")
        watch.consumer.compute(connection, "temp.main.keys")
        assert watch.checked() == {name}


def test_alerts_follow_the_events(watch: Watch) -> None:
    watch.ingest(FIRST, "a", *BURST[:2], order(600, FIRST, 0, customer_id="C2"))
    consumed = watch.follow()
    assert consumed is not None
    assert watch.alerts() == []
    watch.ingest(FIRST, "b", *BURST[2:])
    consumed = watch.follow()
    assert consumed is not None
    assert consumed.keys == ("C1",)
    assert watch.alerts("order_id, reasons, score, explanation") == [
        ("O502", "many_cards", 0.6, "3 cards within 30 minutes"),
        ("O503", "many_cards", 0.6, "4 cards within 30 minutes"),
        (
            *("O504", "many_orders,many_cards", 0.84),
            "5 orders within 30 minutes; 4 cards within 30 minutes",
        ),
        (
            *("O505", "many_orders,many_cards", 0.84),
            "6 orders within 30 minutes; 4 cards within 30 minutes",
        ),
    ]
    assert watch.follow() is None


def test_a_round_leaves_nothing_of_what_it_computed_in_memory(after_history: Watch) -> None:
    watch = after_history
    watch.ingest(FIRST, "burst", *BURST)
    before = watch.temporary_tables()
    watch.follow()
    assert watch.alerts()
    assert watch.temporary_tables() == before


def test_an_event_that_is_gone_takes_its_alerts_with_it(watch: Watch) -> None:
    watch.ingest(FIRST, "a", *BURST)
    watch.follow()
    watch.ingest(FIRST, "a", *BURST[:2])
    watch.follow()
    assert watch.alerts() == []


def test_neither_the_order_of_arrival_nor_a_rebuild_changes_the_alerts(
    settings: Settings, watch: Watch
) -> None:
    lines = [
        *BURST,
        event(503, event_id="E503b", order_value_gbp=900, card_id="x"),
        *history(1)[FIRST],
    ]
    chance = random.Random(2)  # noqa: S311
    found = []
    for _ in range(2):
        chance.shuffle(lines)
        cut = chance.randint(1, len(lines) - 1)
        for name, part in (("a", lines[:cut]), ("b", lines[cut:])):
            watch.ingest(FIRST, name, *part)
            watch.follow()
        found.append(watch.alerts())
    assert found[0]
    assert found == [found[0]] * 2
    assert watch.rebuilt() == found[0]


@pytest.mark.parametrize(
    ("fields", "cards"),
    [
        ([{"card_id": "A"}, {"card_id": " a "}, {"card_hash": "a"}], 1),
        ([{"card_id": "a", "card_hash": "b"}, {"card_hash": "b"}], 2),
        ([{"card_id": " ", "card_hash": "b"}, {"card_hash": "b"}], 1),
        ([{"card_id": None}, {"card_id": 5}, {"card_id": "5"}], 1),
        ([{"payment_card": {"last": 1}}, {"payment_card": {"last": 2}}], 2),
        ([{"card": "a"}, {"it/em~x": "b"}, {"it/em~x": "c"}], 2),
        ([{"card": "a"}, {}], 0),
    ],
)
def test_a_card_is_the_first_of_the_fields_that_the_settings_name(
    watch: Watch, fields: list[dict[str, Any]], cards: int
) -> None:
    names = "card_id, card_hash,payment_card,it/em~x,"
    settings = watch.settings.model_copy(update={"fraud_card_fields": names})
    watch.ingest(FIRST, "a", *(order(n, FIRST, n, **more) for n, more in enumerate(fields)))
    validated = fraud.checked_orders(watch.loader.connection, settings)
    counts = validated.to_native().max("cards_in_window").fetchone()
    assert counts == (cards,)


def test_an_event_without_a_time_counts_at_the_start_of_its_business_day(watch: Watch) -> None:
    # In summer the day begins in London when it is eleven in the evening in Greenwich.
    summer, winter = date(2026, 10, 24), date(2026, 10, 26)
    for number, day in enumerate((summer, winter)):
        watch.ingest(day, "a", event(number))
    validated = fraud.checked_orders(watch.loader.connection, watch.settings)
    rows = validated.to_native().order("moment").project("moment, hour").fetchall()
    starts = [
        datetime(2026, 10, 23, 23, tzinfo=timezone.utc),
        datetime(2026, 10, 26, tzinfo=timezone.utc),
    ]
    assert rows == [(start.timestamp() * 1_000_000, None) for start in starts]


# Models


def test_an_order_is_scored_by_the_newest_model_that_was_there_when_its_day_began(
    after_history: Watch,
) -> None:
    watch = after_history
    for n, day in enumerate((SCORED - timedelta(days=1), SCORED)):
        watch.ingest(day, "a", order(900 + n, day, 0, order_value_gbp=5000, region="South"))
    assert watch.train().changed
    watch.follow()
    later = watch.train(SCORED - timedelta(days=1))
    version = watch.train().version
    watch.follow()
    assert watch.alerts("order_id, reasons, score, model_version") == [
        ("O901", "value_above_history,unusual_order", 0.7, version)
    ]
    assert later.version != version
    found = watch.alerts()
    assert watch.rebuilt() == found
    watch.train(SCORED)
    watch.follow()
    assert watch.alerts() == found, "a model that is too young changed what was scored"


def test_a_model_that_comes_late_has_the_alerts_rebuilt(after_history: Watch) -> None:
    watch = after_history
    watch.ingest(SCORED, "a", order(900, SCORED, 0, order_value_gbp=5000))
    watch.follow()
    assert watch.alerts() == []
    training = watch.train()
    assert (training.changed, training.rebuilt) == (True, True)
    consumed = watch.follow()
    assert consumed is not None
    assert consumed.rebuilt
    assert watch.alerts("order_id") == [("O900",)]


def test_a_model_that_comes_in_time_has_nothing_rebuilt(after_history: Watch) -> None:
    watch = after_history
    watch.follow()
    assert watch.train().rebuilt is False
    assert watch.follow() is None


def test_the_same_history_gives_the_same_model_and_changes_nothing(after_history: Watch) -> None:
    watch = after_history
    first = watch.train()
    snapshot = current_snapshot(watch.loader.connection)
    again = watch.train()
    assert (again.version, again.metrics) == (first.version, first.metrics)
    assert (first.changed, again.changed) == (True, False)
    assert current_snapshot(watch.loader.connection) == snapshot
    watch.ingest(SCORED, "late", order(800, FIRST, 5))
    assert watch.train().version == first.version, "it was received when the day was over"
    watch.ingest(TRAINED, "late", order(801, FIRST, 5))
    assert watch.train().version != first.version
    assert watch.loader.rows("SELECT count(*) FROM fraud_models") == [(1,)]


def test_a_model_learns_from_the_days_before_and_knows_what_came_before_them(
    after_history: Watch,
) -> None:
    watch = after_history
    settings = watch.settings.model_copy(update={"fraud_training_days": 2})
    settings = settings.model_copy(update={"fraud_training_orders": 80})
    loader = watch.loader
    training = fraud_training.train_day(loader.lake, loader.connection, settings, TRAINED)
    assert (training.orders, training.trained_from) == (80, FIRST + timedelta(days=1))
    orders = fraud_training._orders(loader.connection, settings, training.trained_from, TRAINED)
    assert min(orders["earlier_orders"].to_pylist()) == 5


def test_too_little_history_gives_no_model_and_says_why(after_history: Watch) -> None:
    watch = after_history
    first = watch.train(FIRST)
    assert (first.version, first.orders, first.changed) == (None, 40, False)
    assert first.problem == (
        "40 orders from 2026-07-15 to 2026-10-12 are too few to learn what is usual: 100 are"
        " needed (RETAIL_FRAUD_TRAINING_ORDERS)."
    )
    assert watch.train().version
    watch.ingest(TRAINED, "history", order(1, TRAINED, 1))
    assert watch.train().changed
    assert watch.loader.rows("FROM fraud_models") == [], "of a history that is gone"


def test_a_model_is_evaluated_on_the_last_orders_by_rules_and_by_what_is_known(
    watch: Watch,
) -> None:
    lines = history()
    last = lines[TRAINED]
    last[-2:] = [
        order(n, TRAINED, 470 + n, customer_id="C1", order_value_gbp=900, is_fraud=n == 290)
        for n in (290, 291)
    ]
    for day, of_day in lines.items():
        watch.loader.write(f"{day}/history.jsonl", of_day)
    watch.loader.ingest()
    settings = watch.settings.model_copy(update={"fraud_alert_score": 0.5})
    loader = watch.loader
    metrics = fraud_training.train_day(loader.lake, loader.connection, settings, TRAINED).metrics
    assert metrics["held_out"] == 24
    assert metrics["suspected_by_rules"] == 2
    assert metrics["average_precision_suspected_by_rules"] == 1.0
    assert metrics["roc_auc_suspected_by_rules"] == 1.0
    assert metrics["known_fraud"] == 1
    assert 0 < metrics["roc_auc_known_fraud"] <= 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("UPDATE lake.fraud_models SET library = 'scikit-learn 0.1'", "made by scikit-learn 0.1"),
        ("UPDATE lake.fraud_models SET features = 'value,hour'", "other features: value,hour"),
        ("UPDATE lake.fraud_models SET sha256 = repeat('0', 64)", "is damaged"),
        ("UPDATE lake.fraud_models SET model = model || 'x'::BLOB", "is damaged"),
    ],
)
def test_the_rules_go_on_without_a_model_that_cannot_be_used(
    trained: Watch, spoil: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = trained
    watch.change(spoil)
    watch.ingest(
        SCORED,
        "a",
        order(900, SCORED, 0, order_value_gbp=5000),
        *(order(901 + n, SCORED, 60 + n, card_id=f"card {n}") for n in range(3)),
    )
    watch.follow()
    assert watch.alerts("order_id, model_score") == [("O903", None)]
    (problem,) = watch.scorer.problems.values()
    assert said in problem
    assert "materialize fraud_model of that day again" in problem
    assert [record.message for record in caplog.records if record.name == fraud.__name__] == [
        problem
    ]
    assert fraud.newest_problem(watch.loader.connection) == (1, problem)
    training = watch.train()
    assert (training.changed, training.rebuilt) == (True, True)
    watch.follow()
    assert watch.alerts("order_id, model_version") == [
        ("O900", training.version),
        ("O903", training.version),
    ]
    assert watch.scorer.problems == {}
    assert fraud.newest_problem(watch.loader.connection) == (1, None)


def test_what_is_cached_of_models_is_bounded(
    trained: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fraud, "SCORES_KEPT", 1)
    monkeypatch.setattr(fraud, "MODELS_KEPT", 1)
    watch = trained
    watch.train(TRAINED + timedelta(days=1))
    for n, day in enumerate((SCORED, SCORED + timedelta(days=1))):
        lines = [order(900 + 2 * n + k, day, k, order_value_gbp=5000 + k) for k in range(2)]
        watch.ingest(day, "a", *lines)
    watch.follow()
    assert len(watch.scorer._models) == 1
    assert len(watch.scorer._scores) <= 2
    versions = {version for (version,) in watch.alerts("model_version")}
    assert len(versions) == 2
    assert watch.rebuilt() == watch.alerts()


def test_an_offset_that_was_never_set_is_not_invented_by_a_training(after_history: Watch) -> None:
    watch = after_history
    watch.ingest(SCORED, "a", order(900, SCORED, 0))
    assert watch.train().rebuilt is False
    assert consumer_offset(watch.loader.connection, fraud.NAME) is None


def test_a_model_is_kept_in_a_file_and_not_in_the_catalog(trained: Watch) -> None:
    files = trained.loader.rows(
        "SELECT sum(file_size_bytes) FROM ducklake_table_info('lake')"
        " WHERE table_name = 'fraud_models'"
    )
    ((stored, sha256),) = trained.loader.rows("SELECT model, sha256 FROM fraud_models")
    assert files[0][0] > 10_000
    assert hashlib.sha256(stored).hexdigest() == sha256
    assert fraud_model.load(
        stored, sha256, fraud_model.library(), ",".join(fraud_model.FEATURES)
    ).quantiles.shape == (1001,)
