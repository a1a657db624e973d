"""The fraud model itself: its features, its scores, and what is not read as a model."""

import hashlib
import pickle
import subprocess
import sys
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from retail_assets.consumers.fraud import model as fraud_model
from retail_assets.consumers.fraud.model import COLUMNS, FEATURES, Model, ModelError
from retail_assets.transforms.fraud import MINUTE

Numbers: TypeAlias = npt.NDArray[np.float64]

ORDER: dict[str, Any] = {
    "pence": 1000,
    "earlier_orders": 4,
    "earlier_pence": 2000,
    "moment": 90 * MINUTE,
    "previous_moment": 30 * MINUTE,
    "hour": 9,
    "orders_in_window": 1,
    "away_from_home": False,
    "cards_in_window": 0,
    "addresses_in_window": 0,
}


def features(*orders: dict[str, Any]) -> Numbers:
    types = {name: pa.bool_() if name == "away_from_home" else pa.int64() for name in COLUMNS}
    return fraud_model.features(pa.Table.from_pylist(list(orders), pa.schema(types)))


@pytest.fixture(scope="module")
def rows() -> Numbers:
    chance = np.random.default_rng(1)
    return chance.normal(size=(2000, len(FEATURES))).round(6)


@pytest.fixture(scope="module")
def model(rows: Numbers) -> Model:
    return fraud_model.train(rows)


def test_the_features_of_an_order() -> None:
    (row,) = features({**ORDER, "away_from_home": True})
    expected = [np.log(1000), np.log(2), np.log(5), 1, np.log(61), 9, 1, 0, 0]
    assert dict(zip(FEATURES, row, strict=True)) == pytest.approx(
        dict(zip(FEATURES, expected, strict=True)), abs=1e-6
    )


def test_what_an_order_does_not_have_is_ordinary() -> None:
    none = {"earlier_orders": 0, "earlier_pence": 0, "previous_moment": None, "hour": None}
    (row,) = features({**ORDER, **none})
    found = dict(zip(FEATURES, row, strict=True))
    assert (found["ratio_to_mean"], found["hour"]) == (0, 12)
    assert found["minutes_since_previous"] == pytest.approx(np.log(30 * 24 * 60 + 1), abs=1e-6)


def test_no_orders_have_no_features_and_no_scores(model: Model) -> None:
    assert features().shape == (0, len(FEATURES))
    assert model.shares(features()).shape == (0,)


def test_an_order_has_the_same_score_alone_as_among_many(model: Model, rows: Numbers) -> None:
    together = model.shares(rows)
    for number in range(0, len(rows), 97):
        assert model.shares(rows[number : number + 1])[0] == together[number]


def test_the_score_is_the_share_of_the_training_orders_that_are_less_unusual(
    model: Model, rows: Numbers
) -> None:
    shares = model.shares(rows)
    assert np.quantile(shares, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.002)
    assert model.shares(np.full((1, len(FEATURES)), 9.0))[0] > 0.99
    assert model.shares(np.zeros((1, len(FEATURES))))[0] < 0.2


@pytest.mark.processes
def test_the_same_rows_give_the_same_model_in_any_process(rows: Numbers) -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from retail_assets.consumers.fraud import model as m\n"
        "rows = np.random.default_rng(1).normal(size=(2000, len(m.FEATURES))).round(6)\n"
        "shares = m.train(rows).shares(rows)\n"
        "from datetime import date\n"
        "print(hashlib.sha256(shares).hexdigest(), m.version(date(2026, 10, 12), rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shares = fraud_model.train(rows).shares(rows)
    version = fraud_model.version(date(2026, 10, 12), rows)
    assert done.stdout.split() == [hashlib.sha256(shares).hexdigest(), version]
    assert fraud_model.version(date(2026, 10, 12), rows[1:]) != version


# Stored models


def load(blob: bytes, **changed: str) -> Model:
    about = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "made_by": fraud_model.library(),
        "looks_at": ",".join(FEATURES),
        **changed,
    }
    return fraud_model.load(blob, **about)


def dumps(stored: Any) -> bytes:
    import skops.io  # takes seconds, which each process that only collects tests would wait for

    blob: bytes = skops.io.dumps(stored)
    return blob


def test_a_model_that_was_stored_scores_as_before(model: Model, rows: Numbers) -> None:
    found = load(fraud_model.dump(model))
    assert (found.shares(rows) == model.shares(rows)).all()


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04", "cannot be read"),
        (pickle.dumps({"forest": 1}), "cannot be read"),
        ({"quantiles": np.zeros(3)}, "is no isolation forest"),
        ([1], "is no isolation forest"),
    ],
)
def test_what_is_no_model_is_not_read_as_one(stored: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load(stored if isinstance(stored, bytes) else dumps(stored))


class Untrusted:
    def __init__(self) -> None:
        self.value = 1


def test_types_that_a_model_does_not_need_are_not_loaded(model: Model) -> None:
    stored = {"forest": model.forest, "quantiles": model.quantiles, "more": Untrusted()}
    with pytest.raises(ModelError, match="Untrusted types"):
        load(dumps(stored))


@pytest.mark.parametrize(
    ("field", "value"),
    [("left_child", 10**6), ("right_child", 0), ("right_child", -7), ("feature", 99)],
)
def test_a_tree_whose_nodes_lead_nowhere_is_not_followed(
    rows: Numbers, field: str, value: int
) -> None:
    spoiled = fraud_model.train(rows[:300])
    tree = spoiled.forest.estimators_[-1].tree_
    state = tree.__getstate__()
    state["nodes"] = state["nodes"].copy()
    state["nodes"][field][0] = value
    tree.__setstate__(state)
    with pytest.raises(ModelError, match="has a tree"):
        load(fraud_model.dump(spoiled))


def test_a_model_of_another_library_or_of_other_features_or_bytes_is_refused(
    model: Model,
) -> None:
    blob = fraud_model.dump(model)
    for changed, said in (
        ({"made_by": "scikit-learn 0.1"}, "made by scikit-learn 0.1, and here is scikit-learn"),
        ({"looks_at": "hour"}, "other features: hour"),
        ({"sha256": "0" * 64}, "its bytes have another hash"),
    ):
        with pytest.raises(ModelError, match=said):
            load(blob, **changed)


def test_the_evaluation_says_nothing_of_labels_that_are_all_alike() -> None:
    shares = np.array([0.1, 0.95, 0.5, 0.99])
    unknown = np.full(4, np.nan)
    none, known = np.zeros(4), np.array([0, 1, np.nan, 0])
    found = fraud_model.evaluate(shares, {"a": none, "b": unknown, "c": known}, 0.95)
    assert found == {
        "held_out": 4,
        "share_flagged": 0.5,
        "a": 0,
        "c": 1,
        "average_precision_c": 0.5,
        "roc_auc_c": 0.5,
    }
