"""What events are enriched with, and which of them say what is so of an order."""

from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from retail_assets.tables import CUSTOMERS, DEAD_LETTER_EVENTS, PRODUCTS
from retail_assets.transforms import events, live_orders
from retail_assets_tests.transforms.conftest import HAPPENED, Engine, Rows, arrow, result

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)


def valid(**changed: Any) -> dict[str, Any]:
    """A valid event as the reader typed it."""
    return {
        "order_id": "O1",
        "customer_id": "C1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal("10.00"),
        "received_date": DAY,
        "event_date": DAY,
        **changed,
    }


def valid_table(rows: Rows) -> Any:
    import pyarrow as pa

    texts = ("order_id", "customer_id", "product_id", "region", "status")
    return pa.Table.from_pylist(
        list(rows),
        pa.schema(
            {
                **dict.fromkeys(texts, pa.string()),
                "order_value_gbp": pa.decimal128(18, 6),
                "received_date": pa.date32(),
                "event_date": pa.date32(),
            }
        ),
    )


PRODUCT = {"product_id": "P1", "product_name": "Tea", "product_category": "Drinks"}
CUSTOMER = {"customer_id": "C1", "customer_segment": "Retail", "home_region": "South"}


def enriched(engine: Engine, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return result(
        events.enrich(
            engine(valid_table(rows)),
            engine(arrow(PRODUCTS, [PRODUCT, {**PRODUCT, "product_id": ""}])),
            engine(arrow(CUSTOMERS, [CUSTOMER])),
        )
    )


def test_what_is_known_of_product_and_customer_is_added(engine: Engine) -> None:
    (row,) = enriched(engine, valid())
    assert (row["product_name"], row["product_category"]) == ("Tea", "Drinks")
    assert (row["customer_segment"], row["home_region"]) == ("Retail", "South")


def test_what_is_not_known_is_said_to_be_unknown(engine: Engine) -> None:
    changes: dict[str, dict[str, Any]] = {
        "no product": {"product_id": None},
        "another product": {"product_id": "P9"},
        "another customer": {"customer_id": "C9"},
    }
    rows = enriched(engine, *(valid(order_id=name, **each) for name, each in changes.items()))
    tea, retail, unknown = ("Tea", "Drinks"), ("Retail", "South"), ("unknown", "unknown")
    assert {
        row["order_id"]: (
            (row["product_name"], row["product_category"]),
            (row["customer_segment"], row["home_region"]),
        )
        for row in rows
    } == {
        "no product": (unknown, retail),
        "another product": (unknown, retail),
        "another customer": (tea, unknown),
    }


def test_the_value_tier_changes_at_100_and_500_pounds(engine: Engine) -> None:
    tiers = {
        "0.01": "low", "99.99": "low", "100.00": "mid", "499.99": "mid", "500.00": "high",
        "9999999999.99": "high",
    }  # fmt: skip
    rows = enriched(
        engine, *(valid(order_id=value, order_value_gbp=Decimal(value)) for value in tiers)
    )
    assert {row["order_id"]: row["value_tier"] for row in rows} == tiers


def test_an_event_without_a_status_is_of_a_completed_order(engine: Engine) -> None:
    rows = [valid(order_id=str(n), status=status) for n, status in enumerate([None, "", "pending"])]
    found = {row["order_id"]: row["status"] for row in enriched(engine, *rows)}
    assert found == {"0": "completed", "1": "completed", "2": "pending"}


def test_a_blank_product_is_none(engine: Engine) -> None:
    (row,) = enriched(engine, valid(product_id=""))
    assert row["product_id"] is None


def test_the_day_of_an_order_is_that_of_its_event_else_the_day_on_which_it_landed(
    engine: Engine,
) -> None:
    days = [enriched(engine, valid(event_date=day))[0]["order_date"] for day in (DAY - A_DAY, None)]
    assert days == [DAY - A_DAY, DAY]


# Live orders and counts

NINE = datetime(2026, 10, 20, 8, 0, tzinfo=timezone.utc)


def stored(order_id: str = "O1", **changed: Any) -> dict[str, Any]:
    return {
        "received_date": DAY,
        "order_id": order_id,
        "region": "North",
        "status": "completed",
        "order_value_gbp": Decimal("10.00"),
        "event_timestamp": NINE,
        "order_date": DAY,
        "received_at": NINE,
        "event_id": "E5",
        "source": "file",
        "source_name": "a.jsonl",
        "version": 1,
        "position": 1,
        **changed,
    }


def live(engine: Engine, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    orders = live_orders.completed(live_orders.live_orders(engine(arrow(HAPPENED, rows))))
    return result(orders.select("order_id", "region", "order_value_gbp", "order_date"))


def of_orders(orders: Mapping[str, Rows]) -> Iterator[dict[str, Any]]:
    """The events of several orders, each in its order of arrival."""
    for order_id, rows in orders.items():
        yield from ({**row, "order_id": order_id} for row in rows)


def test_an_order_is_what_its_latest_event_says_on_the_day_of_its_first(engine: Engine) -> None:
    first = stored(position=2)
    later = stored(
        event_timestamp=NINE + A_DAY, order_date=DAY + A_DAY, order_value_gbp=Decimal("8.00"),
        region="South",
    )  # fmt: skip
    expected = [
        {
            "order_id": "O1", "region": "South", "order_value_gbp": Decimal("8.00"),
            "order_date": DAY,
        }
    ]  # fmt: skip
    assert live(engine, first, later) == live(engine, later, first) == expected


@pytest.mark.parametrize("status", ["pending", "cancelled", "returned", "refunded"])
def test_an_order_whose_latest_event_is_not_of_a_completed_one_does_not_count(
    engine: Engine, status: str
) -> None:
    later = stored(event_timestamp=NINE + timedelta(seconds=1), status=status)
    earlier = {**later, "event_timestamp": NINE - A_DAY}
    orders = {
        "now": [stored(), later],
        "of another order": [stored()],
        "before": [earlier, stored()],
    }
    found = live(engine, *of_orders(orders), {**later, "order_id": "that order"})
    assert {row["order_id"] for row in found} == {"of another order", "before"}


def test_an_event_without_a_time_takes_the_time_of_its_receipt(engine: Engine) -> None:
    later, earlier = (
        stored(event_timestamp=None, received_at=at, status="returned")
        for at in (NINE + A_DAY, NINE - A_DAY)
    )
    orders = {
        "returned": [stored(), later],
        "returned, read first": [later, stored()],
        "completed": [stored(), earlier],
        "completed, read last": [earlier, stored()],
    }
    found = live(engine, *of_orders(orders))
    assert {row["order_id"] for row in found} == {"completed", "completed, read last"}


@pytest.mark.parametrize("when", [NINE, None])
def test_of_events_at_the_same_time_the_one_received_last_is_the_latest(
    engine: Engine, when: datetime | None
) -> None:
    changes: list[dict[str, Any]] = [
        # Neither the day, which may be a date in a name, nor any name decides.
        {"received_at": NINE + A_DAY, "received_date": DAY - A_DAY, "position": 0},
        {"received_at": NINE + A_DAY, "source": "a", "source_name": "0", "position": 0},
        {"position": 2, "source": "a", "source_name": "a", "event_id": "E1"},
        {"event_id": "E6", "source": "a", "source_name": "a"},
    ]
    orders: dict[str, Rows] = {}
    for n, change in enumerate(changes):
        one = stored(event_timestamp=when, order_value_gbp=Decimal("1.00"))
        last = {**one, **change, "order_value_gbp": Decimal("2.00")}
        orders |= {f"{n}": [one, last], f"{n}, the other way": [last, one]}
    found = {row["order_id"]: row["order_value_gbp"] for row in live(engine, *of_orders(orders))}
    assert found == dict.fromkeys(orders, Decimal("2.00"))


def test_dead_letters_are_counted_by_day_and_reason(engine: Engine) -> None:
    rows = [
        {"received_date": day, "reason": reason}
        for day, reason in [(DAY, "a"), (DAY, "a"), (DAY, "b"), (DAY + A_DAY, "a")]
    ]
    assert result(events.dead_letter_counts(engine(arrow(DEAD_LETTER_EVENTS, rows)))) == [
        {"received_date": DAY, "reason": "a", "dead_letters": 2},
        {"received_date": DAY, "reason": "b", "dead_letters": 1},
        {"received_date": DAY + A_DAY, "reason": "a", "dead_letters": 1},
    ]
