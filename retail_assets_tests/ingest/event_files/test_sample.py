"""What `mapping check` says of a sample of events."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retail_assets.cli.app import app
from retail_assets.errors import UsageError
from retail_assets.ingest.event_files.sample import check_events
from retail_assets.mapping import load
from retail_assets.settings import Settings
from retail_assets_tests.mapping.shops import SHOPIFY, changed

SHOPIFY_MAPPING = Path(__file__).parents[3] / "data" / "mappings" / "shopify-webhook.yaml"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Orders as Shopify sends them, most of them wrong."""
    orders = [
        SHOPIFY,
        changed(SHOPIFY, id=2, financial_status="lost"),
        changed(SHOPIFY, id=3, financial_status="lost"),
        changed(SHOPIFY, id=4, total_price=...),
        changed(SHOPIFY, id=5, test=True),
    ]
    path = tmp_path / "orders.txt"
    path.write_text("".join(f"{json.dumps(order)}\n" for order in orders))
    return path


def test_each_field_is_shown_with_what_it_becomes(settings: Settings, sample: Path):
    found = check_events(settings, sample, load(SHOPIFY_MAPPING).events)
    cells: dict[str, Any] = {field: found.cells(field) for field in found.fields}
    assert found.usable == 1
    assert found.columns["customer_id"] == "$.customer.id or $.email or $.phone"
    assert cells["status"] == ["paid", "completed"]
    assert [str(cell) for cell in cells["order_value_gbp"]] == ["44.95", "44.95"]
    assert cells["order_id"] == ["5726128734520", "5726128734520"]


def test_each_thing_that_is_wrong_is_one_sentence(
    settings: Settings, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    del settings
    monkeypatch.setenv("COLUMNS", "300")
    for name, value in (("LAKE_CATALOG", "c.sqlite"), ("LAKE_DATA", "files"), ("EVENTS", "e")):
        monkeypatch.setenv(f"RETAIL_{name}", str(tmp_path / value))
    done = CliRunner().invoke(
        app, ["mapping", "check", str(SHOPIFY_MAPPING), "--sample", str(sample)]
    )
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == [sample]
    assert "1 events can be used, 4 are rejected." in done.stdout
    for said in (
        "unknown_status in status (from $.financial_status): 2 events, first number 2: 'lost'.",
        "missing_field in order_value_gbp (from $.total_price): 1 event, first number 4.",
        "unmapped_event in $.test: true: 1 event, first number 5.",
    ):
        assert said in done.output.replace("\n", "")


def test_a_mapping_of_several_sources_asks_which_one(
    settings: Settings, sample: Path, tmp_path: Path
):
    text = SHOPIFY_MAPPING.read_text()
    both = tmp_path / "both.yaml"
    other = text.partition("events:\n")[2].replace("webhook:shopify", "kafka:orders")
    both.write_text(f"{text}{other}")
    mappings = load(both).events
    with pytest.raises(UsageError, match=r"--source \(kafka:orders, webhook:shopify\)"):
        check_events(settings, sample, mappings)
    assert check_events(settings, sample, mappings, "kafka:orders").usable == 1
    with pytest.raises(UsageError, match="no events of a source webhook:x"):
        check_events(settings, sample, mappings, "webhook:x")
