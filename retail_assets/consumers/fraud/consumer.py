"""The consumer of fraud: checks all orders of customers whose events have changed.

An order is scored by the newest model that existed when the day of its first event began. That
model was trained up to two days before, since a day's model is trained when the day is over. So a
rebuild gives the same scores. A model that a backfill adds later has the alerts rebuilt; see
`training`.
"""

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING

import duckdb
import narwhals as nw

from retail_assets import tables
from retail_assets.consumers.framework import Consumer
from retail_assets.consumers.fraud import model as fraud_model
from retail_assets.consumers.sql_cache import CompiledSql
from retail_assets.lake.sql import literal
from retail_assets.transforms import fraud

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.consumers.keyed.round import KeyedRound
    from retail_assets.settings import Settings

NAME = "fraud"

_EVENTS = f"lake.{tables.ENRICHED_EVENTS.name}"

MODELS_KEPT = 16
SCORES_KEPT = 100_000
"""How many models, and scores of orders by them, a worker caches: a round may need those of years,
which never change."""

MODEL_DELAY = timedelta(days=2)
"""A day's model is trained during the next day, and scores orders from the day after that."""

_log = logging.getLogger(__name__)


def rules(settings: "Settings") -> fraud.Rules:
    """The thresholds and weights that the settings name."""
    return fraud.Rules(
        window_minutes=settings.fraud_window_minutes,
        orders_in_window=settings.fraud_orders_in_window,
        values_in_window=settings.fraud_values_in_window,
        value_ratio=settings.fraud_value_ratio,
        value_gbp=settings.fraud_value_gbp,
        earlier_orders=settings.fraud_earlier_orders,
        model_share=settings.fraud_model_share,
        alert_score=settings.fraud_alert_score,
        weights={
            "many_orders": settings.fraud_weight_orders,
            "value_above_history": settings.fraud_weight_value,
            "many_cards": settings.fraud_weight_cards,
            "many_addresses": settings.fraud_weight_addresses,
            "away_from_home": settings.fraud_weight_region,
            "unusual_order": settings.fraud_weight_model,
        },
    )


def checked_orders(
    connection: duckdb.DuckDBPyConnection, settings: "Settings", where: str = "true"
) -> nw.LazyFrame:
    """Check the orders of some events by the rules, in a temporary table.

    Args:
        connection: a connection to the lake.
        settings: the rules, and the fields that hold cards and addresses.
        where: which rows of `enriched_events`: all of some customers, or all up to some day.

    Returns:
        The result of `transforms.fraud.check`.
    """
    _check_orders(connection, settings, f"{_EVENTS} WHERE {where}", CompiledSql())
    return _table(connection, "fraud_checked")


def _check_orders(
    connection: duckdb.DuckDBPyConnection, settings: "Settings", events: str, compiled: CompiledSql
) -> None:
    found = rules(settings)

    def orders() -> nw.LazyFrame:
        return fraud.orders(nw.from_native(connection.sql(_events(settings, events))))

    def checked() -> nw.LazyFrame:
        return fraud.check(fraud.with_history(_table(connection, "fraud_orders"), found), found)

    # Staged: each use of a frame would compute it again.
    _stage(connection, "fraud_orders", compiled.of(("orders", events), orders))
    _stage(connection, "fraud_checked", compiled.of("checked", checked))
    connection.execute("DROP TABLE temp.main.fraud_orders")


def _events(settings: "Settings", events: str) -> str:
    """The events for `transforms.fraud.orders`."""
    label = "lower(extra ->> '/is_fraud')"
    return f"""
        SELECT event_id, order_id, customer_id, received_date, position,
            coalesce(received_at, received_date::TIMESTAMPTZ) AS received_at, order_date,
            event_timestamp, region, home_region, order_value_gbp,
            epoch_us(coalesce(event_timestamp, order_date::TIMESTAMP::TIMESTAMPTZ)) AS moment,
            hour(event_timestamp) AS hour,
            {_first_field(settings.fraud_card_fields)} AS card,
            {_first_field(settings.fraud_address_fields)} AS address,
            CASE WHEN {label} IN ('true', '1') THEN 1::BIGINT
                WHEN {label} IN ('false', '0') THEN 0::BIGINT END AS is_fraud
        FROM {events}
    """


def _first_field(names: str) -> str:
    """The first of some fields that an event has, in lower case and trimmed."""
    pointers = [
        "/" + name.strip().replace("~", "~0").replace("/", "~1")
        for name in names.split(",")
        if name.strip()
    ]
    texts = [f"nullif(lower(trim(extra ->> {literal(pointer)})), '')" for pointer in pointers]
    return f"coalesce({', '.join([*texts, 'NULL::VARCHAR'])})"


def _alerts(
    connection: duckdb.DuckDBPyConnection,
    settings: "Settings",
    scorer: "Scorer",
    events: str,
    compiled: CompiledSql,
) -> str:
    """The rows of `fraud_alerts` for customers, by all of their events."""
    found = rules(settings)
    columns = ("event_id", "received_date", *fraud_model.COLUMNS)

    def to_be_scored() -> nw.LazyFrame:
        return fraud.to_be_scored(_table(connection, "fraud_checked"), found).select(*columns)

    def alerts() -> nw.LazyFrame:
        checked, scores = (_table(connection, name) for name in ("fraud_checked", "fraud_scores"))
        return fraud.alerts(checked, scores, found)

    _check_orders(connection, settings, events, compiled)
    orders = connection.execute(compiled.of("to be scored", to_be_scored)).to_arrow_table()
    connection.register("fraud_scores_found", scorer.score(connection, orders))
    _stage(connection, "fraud_scores", "FROM fraud_scores_found")
    connection.unregister("fraud_scores_found")
    return compiled.of("alerts", alerts)


def consumer(settings: "Settings", scorer: "Scorer | None" = None) -> Consumer:
    """The consumer that writes `fraud_alerts`; the scorer reports models that cannot be used."""
    scorer, compiled = scorer or Scorer(), CompiledSql()

    def compute(connection: duckdb.DuckDBPyConnection, keys: str | None) -> Mapping[str, str]:
        of_keys = "" if keys is None else f" WHERE customer_id IN (SELECT customer_id FROM {keys})"
        events = f"{_EVENTS}{of_keys}"
        return {tables.FRAUD_ALERTS.name: _alerts(connection, settings, scorer, events, compiled)}

    def follow(round_: "KeyedRound") -> None:
        customers = round_.keys("customer_id", tables.ENRICHED_EVENTS)
        if not customers:
            return
        events = round_.load(tables.ENRICHED_EVENTS, "customer_id", customers)
        found = _alerts(round_.connection, settings, scorer, events, compiled)
        own = round_.load(tables.FRAUD_ALERTS, "customer_id", customers)
        round_.compare(tables.FRAUD_ALERTS, found, own)

    staging = ("fraud_orders", "fraud_checked", "fraud_scores")
    return Consumer(
        NAME, "customer_id", (tables.FRAUD_ALERTS,), compute, staging=staging, follow=follow
    )


def _stage(connection: duckdb.DuckDBPyConnection, name: str, query: str) -> None:
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")


def _table(connection: duckdb.DuckDBPyConnection, name: str) -> nw.LazyFrame:
    return nw.from_native(connection.table(f"temp.main.{name}"))


@dataclass(frozen=True)
class _Stored:
    """A row of `fraud_models` without the model itself."""

    trained_to: date
    version: str
    library: str
    features: str
    sha256: str


@dataclass
class Scorer:
    """Scores orders with the models of the lake, and caches models and scores.

    `problems` has, by version, why models could not be used; their orders have no score.
    """

    problems: dict[str, str] = field(default_factory=dict)
    _models: OrderedDict[str, fraud_model.Model] = field(default_factory=OrderedDict)
    _scores: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def score(self, connection: duckdb.DuckDBPyConnection, orders: "pa.Table") -> "pa.Table":
        """Score orders, each with the model of the day on which it was first seen.

        Args:
            connection: a connection to the lake.
            orders: `event_id`, `received_date` and `fraud_model.COLUMNS`.

        Returns:
            `event_id`, `model_score` and `model_version` of those that a model scored.
        """
        import pyarrow as pa

        scored: list[tuple[str, float, str]] = []
        for stored, of_model in _by_model(connection, orders):
            try:
                scores = self._scores_of(connection, stored, of_model)
            except fraud_model.ModelError as error:
                self._say(stored.version, _unusable(stored, error))
                continue
            self.problems.pop(stored.version, None)
            ids = of_model["event_id"].to_pylist()
            scored += [(id_, score, stored.version) for id_, score in zip(ids, scores, strict=True)]
        columns = list(zip(*scored, strict=True)) or [(), (), ()]
        types = (pa.string(), pa.float64(), pa.string())
        return pa.table(
            [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)],
            names=["event_id", "model_score", "model_version"],
        )

    def _say(self, version: str, problem: str) -> None:
        if self.problems.get(version) != problem:
            _log.warning("%s", problem)
            self.problems[version] = problem

    def _scores_of(
        self, connection: duckdb.DuckDBPyConnection, stored: _Stored, orders: "pa.Table"
    ) -> list[float]:
        rows = fraud_model.features(orders)
        keys = [(stored.sha256, row.tobytes()) for row in rows]
        new = [number for number, key in enumerate(keys) if key not in self._scores]
        if len(self._scores) + len(new) > SCORES_KEPT:
            self._scores.clear()
            new = list(range(len(keys)))
        if new:
            scores = self._model(connection, stored).shares(rows[new]).tolist()
            self._scores.update(zip((keys[number] for number in new), scores, strict=True))
        return [self._scores[key] for key in keys]

    def _model(self, connection: duckdb.DuckDBPyConnection, stored: _Stored) -> fraud_model.Model:
        if stored.sha256 not in self._models:
            self._models[stored.sha256] = _load(connection, stored)
            if len(self._models) > MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(stored.sha256)
        return self._models[stored.sha256]


def _by_model(
    connection: duckdb.DuckDBPyConnection, orders: "pa.Table"
) -> Iterator[tuple[_Stored, "pa.Table"]]:
    """The orders of each model; those of days before the first model have none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stored = _stored(connection) if len(orders) else []
    first_days = [first_scored(model.trained_to) for model in stored]
    days: dict[int, list[date]] = {}
    for day in pc.unique(orders["received_date"]).to_pylist():
        days.setdefault(bisect_right(first_days, day) - 1, []).append(day)
    for number, of_model in sorted(days.items()):
        if number >= 0:
            chosen = pc.is_in(orders["received_date"], pa.array(of_model, pa.date32()))
            yield stored[number], orders.filter(chosen)


def newest_problem(connection: duckdb.DuckDBPyConnection) -> tuple[int, str | None]:
    """How many models the lake has, and what is wrong with the newest, if anything is."""
    stored = _stored(connection)
    try:
        if stored:
            _load(connection, stored[-1])
    except fraud_model.ModelError as error:
        return len(stored), _unusable(stored[-1], error)
    return len(stored), None


def _stored(connection: duckdb.DuckDBPyConnection) -> list[_Stored]:
    """The models that the lake has, oldest first."""
    rows = connection.execute(
        "SELECT trained_to, version, library, features, sha256 FROM lake.fraud_models"
        " ORDER BY trained_to"
    ).fetchall()
    return [_Stored(*row) for row in rows]


def _load(connection: duckdb.DuckDBPyConnection, stored: _Stored) -> fraud_model.Model:
    row = connection.execute(
        "SELECT model FROM lake.fraud_models WHERE trained_to = ?", [stored.trained_to]
    ).fetchone()
    assert row is not None
    return fraud_model.load(row[0], stored.sha256, stored.library, stored.features)


def _unusable(stored: _Stored, error: fraud_model.ModelError) -> str:
    return (
        f"The fraud model of {stored.trained_to} {error}. Its orders are scored by the rules alone:"
        " materialize fraud_model of that day again."
    )


def first_scored(trained_to: date) -> date:
    """The first day whose orders a model scores."""
    return trained_to + MODEL_DELAY
