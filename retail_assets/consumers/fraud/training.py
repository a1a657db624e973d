"""Trains and stores the fraud model of a day, on the orders of the days up to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import duckdb

from retail_assets.consumers.fraud import consumer as fraud
from retail_assets.consumers.fraud import model as fraud_model
from retail_assets.ingest.ledgers.offsets import consumer_offset, rewind_consumer
from retail_assets.lake.connection import Lake
from retail_assets.tables import FRAUD_MODELS

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.settings import Settings

MOST_ORDERS = 200_000
"""Above it a fixed sample is used: each tree sees a few hundred orders anyway."""

HELD_OUT = 0.2
"""The share of orders, the last by time, that only the evaluation uses."""


@dataclass(frozen=True)
class Training:
    """The outcome of the training for a day.

    `version` is None where there is no model, and `problem` then says why. `changed` says whether
    the lake has another model of the day than before. `rebuilt` says whether all alerts are
    computed again, because orders that the model must score were checked without it.
    """

    trained_to: date
    trained_from: date
    orders: int
    version: str | None = None
    problem: str | None = None
    changed: bool = False
    rebuilt: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


def train_day(
    lake: Lake, connection: duckdb.DuckDBPyConnection, settings: "Settings", day: date
) -> Training:
    """Train and store the model of a day, from the events that were received up to it.

    The model learns from the orders of `fraud_training_days` days; earlier ones are their history.
    The same events give the same model, and then nothing changes.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        settings: the rules, and how much history a model needs.
        day: the last day that counts.
    """
    first = day - timedelta(days=settings.fraud_training_days - 1)
    orders = _orders(connection, settings, first, day)
    try:
        library = fraud_model.library()
    except fraud_model.ModelError as error:
        return Training(day, first, len(orders), problem=f"A fraud model {error}.")
    if len(orders) < settings.fraud_training_orders:
        problem = (
            f"{len(orders)} orders from {first} to {day} are too few to learn what is usual:"
            f" {settings.fraud_training_orders} are needed (RETAIL_FRAUD_TRAINING_ORDERS)."
        )
        changed, rebuilt = _store(lake, connection, day, None)
        return Training(day, first, len(orders), problem=problem, changed=changed, rebuilt=rebuilt)
    rows = fraud_model.features(orders)
    version = fraud_model.version(day, rows)
    metrics = _evaluate(orders, rows, settings)
    blob = fraud_model.dump(fraud_model.train(rows))
    stored = (
        *(day, version, first, len(orders), ",".join(fraud_model.FEATURES), library),
        *(json.dumps(metrics), blob, sha256(blob).hexdigest()),
    )
    changed, rebuilt = _store(lake, connection, day, stored)
    return Training(
        day, first, len(orders), version, changed=changed, rebuilt=rebuilt, metrics=metrics
    )


def _orders(
    connection: duckdb.DuckDBPyConnection, settings: "Settings", first: date, last: date
) -> "pa.Table":
    """The checked orders of some days, earliest first, as they were known on the last of them."""
    checked = fraud.checked_orders(connection, settings, f"received_date <= DATE '{last}'")
    columns = ", ".join(fraud_model.COLUMNS)
    query = checked.to_native().sql_query()
    return connection.execute(
        f"SELECT {columns}, rule_score, is_fraud FROM (SELECT * FROM ({query})"
        f" WHERE order_date BETWEEN ? AND ? ORDER BY md5(order_id), customer_id, order_id"
        f" LIMIT {MOST_ORDERS}) ORDER BY moment, customer_id, order_id",
        [first, last],
    ).to_arrow_table()


def _evaluate(
    orders: "pa.Table", rows: "fraud_model.Numbers", settings: "Settings"
) -> dict[str, float]:
    """Evaluate a model of the earlier orders on the later ones."""
    import numpy as np

    cut = int(len(rows) * (1 - HELD_OUT))
    suspected = orders["rule_score"].to_numpy() >= settings.fraud_alert_score
    known = orders["is_fraud"].to_numpy(zero_copy_only=False).astype(np.float64)
    return fraud_model.evaluate(
        fraud_model.train(rows[:cut]).shares(rows[cut:]),
        {"suspected_by_rules": suspected[cut:].astype(np.float64), "known_fraud": known[cut:]},
        settings.fraud_model_share,
    )


def _store(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    day: date,
    model: tuple[object, ...] | None,
) -> tuple[bool, bool]:
    """Replace the model of a day; returns whether it changed, and whether alerts are rebuilt."""
    columns = [name for name in FRAUD_MODELS.column_names if name != "trained_at"]
    with lake.transaction(connection, f"store fraud model of {day}"):
        if _intact(connection, day) == (model and model[columns.index("version")]):
            return False, False
        connection.execute("DELETE FROM lake.fraud_models WHERE trained_to = ?", [day])
        if model is not None:
            # DuckLake inlines few rows into the catalog; a model has half a megabyte.
            connection.execute(
                "CALL lake.set_option('data_inlining_row_limit', 0, table_name => ?)",
                [FRAUD_MODELS.name],
            )
            marks = ", ".join("?" for _ in columns)
            connection.execute(
                f"INSERT INTO lake.fraud_models ({', '.join(columns)}, trained_at)"
                f" VALUES ({marks}, now())",
                model,
            )
        return True, _rebuild(connection, day)


def _intact(connection: duckdb.DuckDBPyConnection, day: date) -> str | None:
    """The version of the day's model; "" if it cannot be used and has to be replaced."""
    row = connection.execute(
        "SELECT version, library, features, sha256(model) = sha256 FROM lake.fraud_models"
        " WHERE trained_to = ?",
        [day],
    ).fetchone()
    if row is None:
        return None
    about = (fraud_model.library(), ",".join(fraud_model.FEATURES), True)
    return str(row[0]) if row[1:] == about else ""


def _rebuild(connection: duckdb.DuckDBPyConnection, day: date) -> bool:
    """Rewind the consumer if it has checked orders that the model of this day must score."""
    too_late = connection.execute(
        "SELECT 1 FROM lake.enriched_events WHERE received_date >= ? LIMIT 1",
        [fraud.first_scored(day)],
    ).fetchone()
    if too_late is None or consumer_offset(connection, fraud.NAME) is None:
        return False
    rewind_consumer(connection, fraud.NAME)
    return True
