"""A shop that is open now: order events as they happen, some late, some bad, and a fraud ring.

Customers and products are those of the reference files, so that what is simulated is enriched, sold
from stock and checked like the rest.
"""

import csv
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from retail_assets.errors import UsageError
from retail_assets.samples.events import BAD_EVENT_KINDS, spoiled

BAD_EVERY, LATE_EVERY, DUPLICATE_EVERY = 60, 25, 90
"""One event in so many."""

LATE_MINUTES = 45
"""A late event happened up to so many minutes ago."""

RING_SECONDS = 60
"""How often the fraud ring orders: one customer, one order with each of its cards."""

RING_CARDS = 6

COMPLETED = "completed"
STATUSES = (COMPLETED,) * 17 + ("pending", "pending", "cancelled")

TICK_SECONDS = 0.5

Send = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class _Product:
    id: str
    price: float


class Shop:
    """Makes events of the customers and products of a folder of reference files.

    Args:
        folder: where products.csv and customers.csv lie.
        zone: the business time zone.
        seed: the same seed and times give the same events, but for the ids.

    Raises:
        UsageError: if the files are missing or have no rows.
    """

    def __init__(self, folder: Path, zone: ZoneInfo, seed: int) -> None:
        self._products = [
            _Product(row["product_id"], float(row.get("unit_price_gbp") or 20))
            for row in _rows(folder / "products.csv")
        ]
        self._customers = [
            (row["customer_id"], row.get("home_region") or "London")
            for row in _rows(folder / "customers.csv")
        ]
        self._zone = zone
        self._random = random.Random(seed)  # noqa: S311  # a simulation
        self._count = 0
        self._run = f"{time.time_ns() // 1_000_000:x}"
        self._last = ""

    def lines(self, count: int, now: datetime) -> list[str]:
        """So many lines of events that come in now; one in `DUPLICATE_EVERY` stands twice."""
        return [self._line(now) for _ in range(count)]

    def ring(self, now: datetime) -> list[str]:
        """The orders of one customer with many cards, within the same minute."""
        customer = self._random.choice(self._customers)
        return [
            json.dumps(self._event(now, customer) | {"card_id": f"RING-{n}", "status": COMPLETED})
            for n in range(RING_CARDS)
        ]

    def _line(self, now: datetime) -> str:
        if self._last and self._count % DUPLICATE_EVERY == DUPLICATE_EVERY - 1:
            self._count += 1
            return self._last
        late = self._random.random() * LATE_MINUTES if self._count % LATE_EVERY == 0 else 0
        happened = now - timedelta(minutes=late)
        line = json.dumps(self._event(happened, self._random.choice(self._customers)))
        turn, is_good = divmod(self._count, BAD_EVERY)
        if is_good:
            self._last = line
            return line
        return spoiled(BAD_EVENT_KINDS[turn % len(BAD_EVENT_KINDS)], line, turn)

    def _event(self, happened: datetime, customer: tuple[str, str]) -> dict[str, Any]:
        self._count += 1
        number, quantity = f"{self._run}-{self._count}", self._random.choice((1, 1, 1, 2, 3))
        product, (customer_id, region) = self._random.choice(self._products), customer
        return {
            "event_id": f"SIM-{number}",
            "order_id": f"SIM-{number}",
            "customer_id": customer_id,
            "product_id": product.id,
            "quantity": quantity,
            "order_value_gbp": round(product.price * quantity, 2),
            "region": region,
            "status": self._random.choice(STATUSES),
            "event_timestamp": happened.astimezone(self._zone).isoformat(timespec="milliseconds"),
            "card_id": f"CARD-{customer_id}",
        }


def course(clock: float) -> float:
    """How busy the shop is at an hour of the day, from 0 to 24: 1 is usual, nights are quiet."""
    noon = 2.2 * math.exp(-(((clock - 12.5) / 3) ** 2))
    evening = 1.95 * math.exp(-(((clock - 19.5) / 2.2) ** 2))
    return 0.2 + noon + evening


def simulate(
    shop: Shop,
    send: Send,
    *,
    rate: float,
    zone: ZoneInfo,
    seconds: float | None = None,
    steady: bool = False,
    said: Callable[[int], None] = lambda _: None,
) -> int:
    """Send events until the time is over or the caller is interrupted; returns how many lines.

    Args:
        shop: makes the events.
        send: gets the lines of each half second.
        rate: events a second at usual hours.
        zone: the time zone of the day's course.
        seconds: how long; None: for ever.
        steady: the same rate at all hours.
        said: called with the number of lines so far, after each half second.
    """
    started = time.monotonic()
    sent, owed, next_ring = 0, 0.0, 5.0
    while seconds is None or time.monotonic() - started < seconds:
        now = datetime.now(zone)
        owed += rate * TICK_SECONDS * (1 if steady else course(now.hour + now.minute / 60))
        lines = shop.lines(int(owed), now)
        owed -= len(lines)
        passed = time.monotonic() - started
        if passed >= next_ring:
            next_ring = passed + RING_SECONDS
            lines += shop.ring(now)
        if lines:
            send(lines)
        sent += len(lines)
        said(sent)
        # The next tick begins on time, however long sending took.
        time.sleep(TICK_SECONDS - (time.monotonic() - started) % TICK_SECONDS)
    return sent


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. `retail-assets generate` writes one."
        ) from error
    if not rows:
        raise UsageError(f"{path} has no rows: nobody orders. `retail-assets generate` writes one.")
    return rows
