"""The rules of events in plain Python, one event at a time: what is compared with the platform.

It repeats the rules on purpose, and imports nothing of the platform: it runs in an environment
where that is not installed.
"""

import csv
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

STATUSES = {"completed", "pending", "cancelled", "returned", "refunded"}
TEXTS = ("order_id", "customer_id", "region")
KNOWN = {*TEXTS, "event_id", "product_id", "status", "order_value_gbp", "quantity"} | {
    "event_timestamp"
}
LONDON = ZoneInfo("Europe/London")


class Rules:
    """Validates and enriches one event line after the other."""

    def __init__(self, reference: Path) -> None:
        with (reference / "products.csv").open() as file:
            self._products = {row["product_id"]: row for row in csv.DictReader(file)}
        with (reference / "customers.csv").open() as file:
            self._customers = {row["customer_id"]: row for row in csv.DictReader(file)}

    def validate(self, line: str) -> tuple[dict[str, Any] | None, str | None]:
        """The enriched event, or the reason why it is none."""
        try:
            event = json.loads(line)
        except ValueError:
            return None, "not_json"
        if not isinstance(event, dict):
            return None, "not_an_object"
        reason = self._reason(event)
        if reason is not None:
            return None, reason
        value = event["order_value_gbp"]
        product = self._products.get(event.get("product_id"), {})
        customer = self._customers.get(event["customer_id"], {})
        return {
            **{name: event.get(name) for name in KNOWN},
            "value_tier": "high" if value >= 500 else "mid" if value >= 100 else "low",
            "order_date": event.get("order_date"),
            "product_name": product.get("product_name", "unknown"),
            "product_category": product.get("product_category", "unknown"),
            "customer_segment": customer.get("customer_segment", "unknown"),
            "home_region": customer.get("home_region", "unknown"),
            "extra": {name: event[name] for name in event.keys() - KNOWN - {"order_date"}},
        }, None

    def _reason(self, event: dict[str, Any]) -> str | None:
        for name in TEXTS:
            text = event.get(name)
            if text is None:
                return "missing_field"
            if not isinstance(text, str):
                return "wrong_type"
            if not text.strip():
                return "blank_value"
        value = event.get("order_value_gbp")
        if value is None:
            return "missing_field"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "wrong_type"
        if not math.isfinite(value):
            return "not_finite"
        if value <= 0:
            return "not_positive"
        if event.get("status", "completed") not in STATUSES:
            return "unknown_status"
        if "event_timestamp" in event:
            try:
                when = datetime.fromisoformat(event["event_timestamp"])
            except (TypeError, ValueError):
                return "invalid_timestamp"
            if not 2000 <= when.year <= 2100:
                return "absurd_timestamp"
            event["order_date"] = str(when.astimezone(LONDON).date())
        return None
