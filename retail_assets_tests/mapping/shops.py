"""Orders as webhooks of shops send them: made up, in the shape of the vendors' documentation."""

import copy
from typing import Any

SHOPIFY: dict[str, Any] = {
    "id": 5726128734520,
    "admin_graphql_api_id": "gid://shopify/Order/5726128734520",
    "cancel_reason": None,
    "cancelled_at": None,
    "confirmed": True,
    "created_at": "2026-11-02T10:15:30-05:00",
    "currency": "GBP",
    "email": "ada@example.com",
    "financial_status": "paid",
    "name": "#1001",
    "order_number": 1001,
    "test": False,
    "total_discounts": "5.00",
    "total_line_items_price": "45.00",
    "subtotal_price": "40.00",
    "total_price": "44.95",
    "total_tax": "0.00",
    "customer": {"id": 207119551, "email": "ada@example.com", "first_name": "Ada"},
    "shipping_address": {"city": "Leeds", "country": "United Kingdom", "province": "England"},
    "billing_address": {"city": "Leeds", "country": "United Kingdom", "province": "England"},
    "line_items": [
        {
            "id": 866550311766439020,
            "product_id": 632910392,
            "variant_id": 808950810,
            "sku": "MUG-1",
            "title": "Mug",
            "quantity": 2,
            "price": "10.00",
            "total_discount": "5.00",
            "price_set": {"shop_money": {"amount": "10.00", "currency_code": "GBP"}},
        },
        {
            "id": 141249953214522974,
            "product_id": 632910393,
            "variant_id": 808950811,
            "sku": "",
            "title": "Tea",
            "quantity": 1,
            "price": "25.00",
            "total_discount": "0.00",
        },
    ],
    "shipping_lines": [{"id": 271878346596884015, "title": "Post", "price": "4.95"}],
    "refunds": [],
}

WOOCOMMERCE: dict[str, Any] = {
    "id": 4750,
    "parent_id": 0,
    "number": "4750",
    "order_key": "wc_order_Q6tuhq12KJOel",
    "status": "processing",
    "currency": "GBP",
    "date_created": "2026-07-02T00:30:00",
    "date_created_gmt": "2026-07-01T23:30:00",
    "discount_total": "0.00",
    "shipping_total": "4.00",
    "total": "28.00",
    "total_tax": "4.00",
    "prices_include_tax": False,
    "customer_id": 0,
    "billing": {"first_name": "Bo", "email": "bo@example.com", "state": "", "country": "GB"},
    "shipping": {"first_name": "Bo", "state": "", "country": "GB"},
    "payment_method": "bacs",
    "line_items": [
        {
            "id": 315,
            "name": "Cup",
            "product_id": 93,
            "variation_id": 0,
            "quantity": 2,
            "subtotal": "20.00",
            "total": "20.00",
            "total_tax": "4.00",
            "sku": "CUP-1",
            "price": 10,
            "meta_data": [],
        }
    ],
    "shipping_lines": [{"id": 316, "method_title": "Flat rate", "total": "4.00"}],
    "refunds": [],
}

STRIPE: dict[str, Any] = {
    "id": "evt_1RgRPrEEXQJo9EEOWggvNEHe",
    "object": "event",
    "api_version": "2026-01-28.clover",
    "created": 1793613600,
    "data": {
        "object": {
            "id": "cs_live_a1RMSyzQu5Mk2cZYoAYLOCV9",
            "object": "checkout.session",
            "amount_subtotal": 1999,
            "amount_total": 1999,
            "client_reference_id": None,
            "created": 1793613590,
            "currency": "gbp",
            "customer": None,
            "customer_details": {
                "address": {"city": "Hull", "country": "GB", "line1": None, "state": None},
                "email": "cy@example.com",
                "name": "Cy",
            },
            "livemode": True,
            "metadata": {},
            "mode": "payment",
            "payment_status": "paid",
            "status": "complete",
        }
    },
    "livemode": True,
    "pending_webhooks": 1,
    "request": {"id": None, "idempotency_key": None},
    "type": "checkout.session.completed",
}


def changed(sample: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy with other values; `a__b` is b of a."""
    result = copy.deepcopy(sample)
    for name, value in values.items():
        *parents, last = name.split("__")
        found = result
        for parent in parents:
            found = found[parent]
        if value is ...:
            del found[last]
        else:
            found[last] = value
    return result
