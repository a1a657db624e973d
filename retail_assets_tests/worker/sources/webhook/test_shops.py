"""Webhooks of shops, by the mappings of data/mappings: right rows, or a clear refusal."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retail_assets.consumers import live_revenue
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.messages import load as received
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.mapping.shops import SHOPIFY, STRIPE, WOOCOMMERCE, changed
from retail_assets_tests.worker.sources.webhook.webhooks import running_webhook

pytestmark = pytest.mark.processes

SECRET = "secret-of-the-tests"  # noqa: S105  # it opens nothing
MAPPINGS = Path(__file__).parents[4] / "data" / "mappings"


def _digest(signed: bytes) -> bytes:
    return hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()


def _stripe(body: bytes) -> str:
    seconds = int(time.time())
    return f"t={seconds},v1={_digest(f'{seconds}.'.encode() + body).hex()}"


Sign = Callable[[bytes], str]
SHOPS: Mapping[str, tuple[str, dict[str, Any], str, Sign]] = {
    "shopify": (
        "shopify-webhook",
        SHOPIFY,
        "X-Shopify-Hmac-Sha256",
        lambda body: base64.b64encode(_digest(body)).decode(),
    ),
    "woocommerce": (
        "woocommerce-webhook",
        WOOCOMMERCE,
        "X-WC-Webhook-Signature",
        lambda body: base64.b64encode(_digest(body)).decode(),
    ),
    "stripe": ("stripe-checkout", STRIPE, "Stripe-Signature", _stripe),
}


@pytest.fixture
def post(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, dict[str, Any]], Any]:
    """Post an order to the webhook as a shop does, and ingest it; gives what a query finds."""
    del settings

    def post_(shop: str, *orders: dict[str, Any]) -> Callable[[str], list[tuple[Any, ...]]]:
        file, _, header, sign = SHOPS[shop]
        monkeypatch.setenv("RETAIL_MAPPING", str(MAPPINGS / f"{file}.yaml"))
        mappings = Settings().source_mapping.events
        senders = {shop: {"scheme": shop, "secret": SECRET}}
        with (
            running_webhook(webhook_senders=senders) as webhook,
            ThreadPoolExecutor() as pool,
            lake.connect() as connection,
        ):
            session = EventSession(lake, connection, mappings)
            for order in orders:
                body = json.dumps(order, indent=1).encode()
                answer = pool.submit(
                    webhook.post, body, path=f"/events/{shop}", **{header: sign(body)}
                )
                batch = webhook.take()
                received.ingest(session, batch)
                for item in batch:
                    item.done()
                assert answer.result().status_code == 202
            live_revenue.refresh(lake, connection)

        def query(sql: str) -> list[tuple[Any, ...]]:
            with lake.connect(read_only=True) as connection:
                return connection.execute(sql).fetchall()

        return query

    return post_


ROW = (
    "SELECT order_id, customer_id, region, status, order_value_gbp::VARCHAR, order_date::VARCHAR"
    " FROM lake.enriched_events ORDER BY ALL"
)


@pytest.mark.parametrize(
    ("shop", "row", "lines"),
    [
        (
            "shopify",
            ("5726128734520", "207119551", "England", "44.95", "2026-11-02"),
            # What the order has beyond its lines is spread over them.
            [("MUG-1", 2, "16.86"), ("808950811", 1, "28.09")],
        ),
        (
            "woocommerce",
            ("4750", "bo@example.com", "GB", "28.00", "2026-07-02"),
            [("CUP-1", 2, "28.00")],
        ),
        (
            "stripe",
            ("cs_live_a1RMSyzQu5Mk2cZYoAYLOCV9", "cy@example.com", "GB", "19.99", "2026-11-02"),
            [],
        ),
    ],
)
def test_an_order_of_a_shop_is_in_live_revenue(
    post: Any, shop: str, row: tuple[str, ...], lines: list[tuple[str, int, str]]
):
    sample = SHOPS[shop][1]
    # A service sends again what it does not know to have arrived.
    again = changed(sample, pending_webhooks=2) if shop == "stripe" else sample
    query = post(shop, sample, again)
    order, customer, region, value, day = row
    assert query(ROW) == [(order, customer, region, "completed", value, day)]
    assert query("FROM lake.dead_letter_events") == []
    assert query(
        "SELECT order_date::VARCHAR, region, total_revenue::VARCHAR FROM lake.live_revenue"
    ) == [(day, region, value)]
    (text,) = query("SELECT coalesce(lines, '[]') FROM lake.enriched_events")[0]
    assert [
        (line["product_id"], line["quantity"], f"{line['order_value_gbp']:.2f}")
        for line in json.loads(text)
    ] == lines


WRONG: Mapping[str, list[tuple[dict[str, Any], str, str]]] = {
    # What is wrong in an order, and the reason and field of its dead letter.
    "shopify": [
        ({"currency": "USD"}, "unknown_currency", "currency"),
        ({"total_price": ...}, "missing_field", "order_value_gbp"),
        ({"customer": None, "email": ""}, "missing_field", "customer_id"),
        ({"financial_status": "paid twice"}, "unknown_status", "status"),
        ({"test": True}, "unmapped_event", "$.test: true"),
    ],
    "woocommerce": [
        ({"currency": "CLP"}, "unknown_currency", "currency"),
        ({"id": ...}, "missing_field", "order_id"),
        ({"status": "wc-lost"}, "unknown_status", "status"),
        ({"date_created_gmt": "02/07/2026"}, "invalid_timestamp", "event_timestamp"),
    ],
    "stripe": [
        ({"data__object__currency": "eur"}, "unknown_currency", "currency"),
        ({"data__object__amount_total": None}, "missing_field", "order_value_gbp"),
        ({"data__object__payment_status": "odd"}, "unknown_status", "status"),
        ({"data__object": ...}, "missing_field", "$.data.object"),
        (
            {"type": "charge.refunded"},
            "unmapped_event",
            "$.type: charge.refunded, $.livemode: true, $.data.object.currency: gbp",
        ),
        (
            {"livemode": False},
            "unmapped_event",
            "$.type: checkout.session.completed, $.livemode: false, $.data.object.currency: gbp",
        ),
    ],
}


@pytest.mark.parametrize("shop", WRONG)
def test_what_is_wrong_with_an_order_of_a_shop_is_named(post: Any, shop: str):
    query = post(shop, *(changed(SHOPS[shop][1], **wrong) for wrong, *_ in WRONG[shop]))
    found = query("SELECT reason, field FROM lake.dead_letter_events ORDER BY position")
    assert found == [(reason, field) for _, reason, field in WRONG[shop]]
    assert query("FROM lake.enriched_events") == []


def test_a_refunded_order_leaves_live_revenue(post: Any):
    query = post("shopify", SHOPIFY, changed(SHOPIFY, financial_status="refunded"))
    assert [row[3] for row in query(ROW)] == ["completed", "refunded"]
    assert query("FROM lake.live_revenue") == []
