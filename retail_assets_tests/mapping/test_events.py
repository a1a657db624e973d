"""What the section `events` of a mapping may say, and what its errors say."""

from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
from pydantic import ValidationError

from retail_assets.engines.duckdb_events import parsed
from retail_assets.mapping import load
from retail_assets.mapping.events import EventMapping
from retail_assets.mapping.json_path import json_path

STRIPE = Path(__file__).parents[2] / "data" / "mappings" / "stripe-checkout.yaml"

FIELDS = {
    "order_id": "$.id",
    "customer_id": "$.customer",
    "region": {"constant": "North"},
    "order_value_gbp": "$.total",
}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("$", ()),
        ("$.customer.id", ("customer", "id")),
        ("$.lines[0].sku", ("lines", "0", "sku")),
        ("$['odd name']", ("odd name",)),
        ('$["it\'s"].b', ("it's", "b")),
        (r"$['it\'s a \\']", ("it's a \\",)),
        ("$['a.b']['*']['$']", ("a.b", "*", "$")),
        ("$.größe", ("größe",)),
    ],
)
def test_a_path_has_literal_names(text: str, parts: tuple[str, ...]):
    path = json_path(text)
    assert path.parts == parts
    assert json_path(str(path)) == path


@pytest.mark.parametrize(
    "text",
    [
        "id",
        "",
        "$.",
        "$..id",
        "$.*",
        "$[*]",
        "$[-1]",
        "$.a b",
        "$['a",
        "$[a]",
        "$.a[0",
        " $.a",
        "$$$.a",
    ],
)
def test_what_is_no_path_is_refused(text: str):
    with pytest.raises(ValueError, match="is no path such as"):
        json_path(text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"root": "data"}, "'data' is no path such as"),
        ({"when": {"path": "type", "is": "a"}}, "'type' is no path such as"),
        ({"fields": FIELDS | {"order_id": "id"}}, "order_id: 'id' is no path such as"),
        ({"fields": FIELDS | {"region": {"from": "$.r", "fill": "true"}}}, "region: `fill` is for"),
        ({"fields": {"order_id": "$.id"}}, "Field required"),
        ({"source": "ftp:shop"}, "'ftp' is none of webhook, kafka, sqs, file"),
        ({"source": "webhook:"}, "a source is a name"),
        ({"decimal": ",", "thousands": ","}, "are the same sign"),
        ({"signs": ["£", "€"]}, "`signs` has '€', but `currency` is not there"),
        (
            {
                "lines": {
                    "path": "$.items",
                    "fields": {
                        "product_id": "$$.sku",
                        "quantity": "$.q",
                        "order_value_gbp": "$.v",
                    },
                }
            },
            "product_id: a path of a line begins with one",
        ),
    ],
)
def test_what_cannot_be_used_is_said(changed: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        EventMapping.model_validate({"fields": FIELDS} | changed)


def test_stripe_has_no_cents_of_currencies_that_have_none():
    scales = {
        currency: mapping.fields.order_value_gbp.scale
        for mapping in reversed(load(STRIPE).events)
        for condition in mapping.when
        if condition.path == "$.data.object.currency"
        for currency in condition.is_
    }
    assert (scales["jpy"], scales["kwd"]) == (Decimal(1), Decimal("0.001"))
    *_, others = load(STRIPE).events
    assert others.fields.order_value_gbp.scale == Decimal("0.01")


def test_no_step_of_a_mapping_is_a_join_that_each_batch_has_to_set_up():
    """DuckDB makes one of an IN with five values: ten paths took a batch a quarter of a second."""
    kinds = [f"order.{kind}" for kind in ("made", "paid", "sent", "held", "back", "gone")]
    own = {"when": {"path": "$.type", "is": kinds}, "fields": FIELDS}
    mappings = [EventMapping.model_validate(own)]
    for path in sorted(STRIPE.parent.glob("*.yaml")):
        mappings += load(path).events
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE lines (received_date DATE, received_at TIMESTAMPTZ, payload VARCHAR,"
            " defect VARCHAR, source VARCHAR, source_name VARCHAR)"
        )
        plan = connection.execute(f"EXPLAIN {parsed('lines', mappings)}").fetchall()
    assert len(mappings) > 3
    assert "PROJECTION" in plan[0][1]
    assert "JOIN" not in plan[0][1]
