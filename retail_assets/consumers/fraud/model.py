"""The fraud model: an isolation forest that learns which orders are usual.

It is stored in `fraud_models` in the format of skops, which, unlike a pickle, runs no code when it
is read.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from retail_assets.errors import RetailAssetsError
from retail_assets.transforms.fraud import MINUTE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Numbers = npt.NDArray[np.float64]

FEATURES = (
    "value",
    "ratio_to_mean",
    "earlier_orders",
    "orders_in_window",
    "minutes_since_previous",
    "hour",
    "away_from_home",
    "cards_in_window",
    "addresses_in_window",
)
"""The features of the model; values, ratios, counts of earlier orders and minutes by logarithm."""

COLUMNS = (
    "pence",
    "earlier_orders",
    "earlier_pence",
    "moment",
    "previous_moment",
    "hour",
    "orders_in_window",
    "away_from_home",
    "cards_in_window",
    "addresses_in_window",
)
"""The columns of checked orders that the features are computed from."""

TREES, ORDERS_PER_TREE, SEED = 64, 256, 20_261_005

NOON, MONTH_OF_MINUTES = 12.0, 30 * 24 * 60.0
"""The value of an unknown hour, and of the time since the previous order where there is none."""

SHARE_STEPS = 1_000

# scikit-learn does not check node indices: `_checked` does.
_TREE = "sklearn.tree._tree.Tree"


class ModelError(RetailAssetsError):
    """A stored model that cannot be used; the rules go on without it."""


@dataclass(frozen=True)
class Model:
    """A forest, and `SHARE_STEPS` + 1 quantiles of the anomaly scores of its training orders."""

    forest: Any
    quantiles: "Numbers"

    def shares(self, features: "Numbers") -> "Numbers":
        """The share of training orders less unusual than each row, in thousandths."""
        import numpy as np

        if not len(features):
            return np.empty(0)
        anomaly = -self.forest.score_samples(features)
        steps = np.searchsorted(self.quantiles, anomaly, side="right") - 1
        shares: Numbers = np.clip(steps, 0, SHARE_STEPS) / SHARE_STEPS
        return shares


def features(orders: "pa.Table") -> "Numbers":
    """The features of checked orders with the `COLUMNS`: a row for each, a column for each feature.

    An order without history has the ratio 1.
    """
    import numpy as np

    def column(name: str, missing: float = math.nan) -> "Numbers":
        values = orders[name].to_numpy(zero_copy_only=False).astype(np.float64)
        filled: Numbers = np.where(np.isnan(values), missing, values)
        return filled

    pence, earlier = column("pence"), column("earlier_orders")
    mean = column("earlier_pence") / np.maximum(earlier, 1)
    minutes = (column("moment") - column("previous_moment")) / MINUTE
    # Rounded: a logarithm may differ in its last bit with the number of rows.
    found: Numbers = np.column_stack(
        [
            np.log(pence),
            np.log(pence / np.where(earlier > 0, mean, pence)),
            np.log1p(earlier),
            column("orders_in_window"),
            np.log1p(np.where(np.isnan(minutes), MONTH_OF_MINUTES, minutes)),
            column("hour", NOON),
            column("away_from_home"),
            column("cards_in_window"),
            column("addresses_in_window"),
        ]
    ).round(6)
    return found


def train(rows: "Numbers") -> Model:
    """Train a model; the same rows in the same order give the same model."""
    import numpy as np
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(
        n_estimators=TREES, max_samples=min(ORDERS_PER_TREE, len(rows)), random_state=SEED
    ).fit(rows)
    anomaly = -forest.score_samples(rows)
    return Model(forest, np.quantile(anomaly, np.linspace(0, 1, SHARE_STEPS + 1)))


def library() -> str:
    """The library that trains and reads models: scikit-learn with its version.

    Raises:
        ModelError: if it is not installed.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"scikit-learn {installed('scikit-learn')}"
    except PackageNotFoundError:
        raise ModelError("scikit-learn is not installed: install retail-assets[stream]") from None


def version(trained_to: date, rows: "Numbers") -> str:
    """The day, and a hash of everything that determines a model trained on these rows."""
    about = json.dumps([FEATURES, TREES, ORDERS_PER_TREE, SEED, SHARE_STEPS, library()])
    digest = hashlib.sha256(about.encode())
    digest.update(rows.tobytes())
    return f"{trained_to}:{digest.hexdigest()[:12]}"


def dump(model: Model) -> bytes:
    """The model in the format of skops, compressed."""
    import zipfile

    import skops.io

    stored: bytes = skops.io.dumps(
        {"forest": model.forest, "quantiles": model.quantiles}, compression=zipfile.ZIP_DEFLATED
    )
    return stored


def evaluate(
    shares: "Numbers", labels: Mapping[str, "Numbers"], model_share: float
) -> dict[str, float]:
    """Evaluate a model on orders that it was not trained on.

    Args:
        shares: the model's share of each order.
        labels: sets of labels by name: 1 for fraud, 0 for none, NaN for unknown.
        model_share: the share from which on the model flags an order.

    Returns:
        `held_out`, the number of orders, and `share_flagged`; for each set of labels X with a known
        label `X`, the number of orders that are fraud, and unless all or none are,
        `average_precision_X` and `roc_auc_X`.
    """
    import numpy as np
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = {
        "held_out": len(shares),
        "share_flagged": round(float((shares >= model_share).mean()), 4),
    }
    for name, label in labels.items():
        said = ~np.isnan(label)
        is_fraud, of_these = label[said] == 1, shares[said]
        if said.any():
            found[name] = int(is_fraud.sum())
        if 0 < is_fraud.sum() < len(is_fraud):
            precision = average_precision_score(is_fraud, of_these)
            found[f"average_precision_{name}"] = round(float(precision), 4)
            found[f"roc_auc_{name}"] = round(float(roc_auc_score(is_fraud, of_these)), 4)
    return found


def load(blob: bytes, sha256: str, made_by: str, looks_at: str) -> Model:
    """Read a stored model.

    Args:
        blob: the model.
        sha256: the hash that it must have.
        made_by: the `library` of its training.
        looks_at: the features of its training.

    Raises:
        ModelError: if it is damaged, or was made by another version of scikit-learn or with other
            features.
    """
    if made_by != library():
        raise ModelError(f"was made by {made_by}, and here is {library()}")
    if looks_at != ",".join(FEATURES):
        raise ModelError(f"looks at other features: {looks_at}")
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise ModelError("is damaged: its bytes have another hash")
    import skops.io

    try:
        stored = skops.io.loads(blob, trusted=[_TREE])
    except Exception as error:
        # skops does not document the errors for bytes that are no model.
        raise ModelError(f"cannot be read: {str(error).splitlines()[0]}") from error
    return _checked(stored)


def _checked(stored: Any) -> Model:
    """Check the node indices of the trees, which scikit-learn follows unchecked."""
    import numpy as np
    from sklearn.ensemble import IsolationForest

    if not isinstance(stored, dict) or not isinstance(stored.get("forest"), IsolationForest):
        raise ModelError("is no isolation forest")
    for estimator in stored["forest"].estimators_:
        tree = estimator.tree_
        inner = tree.children_left != -1
        for children in (tree.children_left, tree.children_right):
            if np.any(children[inner] <= np.flatnonzero(inner)) or np.any(
                children >= tree.node_count
            ):
                raise ModelError("has a tree whose nodes lead nowhere")
        if np.any(tree.feature[inner] < 0) or np.any(tree.feature >= len(FEATURES)):
            raise ModelError("has a tree that looks at features that there are not")
    return Model(stored["forest"], stored["quantiles"])
