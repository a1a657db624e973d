"""The invented orders of one export day, as parallel arrays and as the texts an export shows.

Random values are drawn day by day, from the seed and the day alone. Special cases (late orders, ids
that the reference lacks) come at fixed distances, so that small histories have them too.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from retail_assets.samples.local_time import (
    Integers,
    clock_texts,
    day_bounds,
    offset_suffix,
    utc_offsets,
)
from retail_assets.samples.reference import REGIONS, Reference, pounds

# one order in so many
LATE_EVERY = 40
UNKNOWN_PRODUCT_EVERY = 61
UNKNOWN_CUSTOMER_EVERY = 53

# RETAIL_LATE_DAYS as it is by default: the furthest back an order may be dated
LATE_DAYS = 7

STATUSES = ("completed", "pending", "cancelled", "returned", "refunded")
COMPLETED, PENDING, CANCELLED, RETURNED, REFUNDED = range(5)
_STATUS_SHARES = (0.82, 0.05, 0.05, 0.05, 0.03)
_SPELLINGS = [(status, status.upper(), status.title(), f" {status} ") for status in STATUSES]
_SPELLING_SHARES = (0.94, 0.02, 0.02, 0.02)

# how busy each hour of the business day is, midnight first
_HOUR_WEIGHTS = (2, 1, 1, 1, 1, 1, 2, 3, 5, 6, 7, 7, 8, 7, 6, 6, 6, 7, 8, 9, 8, 6, 4, 3)

# ways to write a timestamp: local, local with a blank for the T, with the business's offset, in
# UTC, and from a till five hours behind it, which in the small hours of the business still shows
# the day before
_LOCAL, _LOCAL_BLANK, _OFFSET, _UTC, _WEST = range(5)
_FORM_SHARES = (0.68, 0.10, 0.10, 0.09, 0.03)
_WEST_SECONDS = -5 * 3600

Row = dict[str, str]


@dataclass(frozen=True)
class DayOrders:
    """Orders of one export; every array has one entry an order.

    The first `good` are the export's new orders in the order of their time of day; the others lend
    their fields to rows that are bad on purpose. `instant` is in seconds since 1970, `offset` the
    seconds the business's clock is ahead of UTC then, `days_back` how many days before the export
    the order was made.
    """

    export_date: date
    start: int
    end: int
    first: int
    good: int
    customer: Integers
    product: Integers
    region: Integers
    status: Integers
    spelling: Integers
    quantity: Integers
    pence: Integers
    days_back: Integers
    instant: Integers
    offset: Integers
    form: Integers

    def __len__(self) -> int:
        return len(self.pence)

    def order_ids(self, chosen: Integers) -> list[str]:
        """The ids of some orders; an id is unique over the whole history."""
        prefix = f"ORD-{self.export_date:%Y%m%d}"
        return [f"{prefix}-{number:06d}" for number in (chosen + 1).tolist()]


@dataclass(frozen=True)
class DaySize:
    """How many orders a day has, and the position of its first one in the history."""

    index: int
    first: int
    good: int
    templates: int


def draw_orders(
    day: date, size: DaySize, reference: Reference, seed: int, zone: ZoneInfo
) -> DayOrders:
    """Draw one day's orders."""
    rng = np.random.default_rng([seed, 1, size.index])
    count = size.good + size.templates
    position = size.first + np.arange(count, dtype=np.int64)
    customer = _popular(rng, count, reference.known_customers)
    _sprinkle(
        customer,
        position,
        UNKNOWN_CUSTOMER_EVERY,
        reference.known_customers,
        len(reference.customer_ids),
    )
    product = _popular(rng, count, reference.known_products)
    _sprinkle(
        product,
        position,
        UNKNOWN_PRODUCT_EVERY,
        reference.known_products,
        len(reference.product_ids),
    )
    region = np.array(reference.home_regions, dtype=np.int64)[customer]
    away = rng.random(count) < 0.15
    region[away] = rng.integers(0, len(REGIONS), int(away.sum()))
    quantity = 1 + _choose(rng, count, (0.6, 0.2, 0.1, 0.06, 0.04))
    time_of_day = _times_of_day(rng, size.good, count)
    days_back = np.where(np.arange(count) < size.good, _days_back(position, size.index), 0)
    # a late order's time is of its own day, which may have another length or offset
    bounds = [day_bounds(day - timedelta(days=back), zone) for back in range(LATE_DAYS + 1)]
    starts, ends = np.array(bounds, dtype=np.int64)[days_back].T
    instant: Integers = starts + (time_of_day * (ends - starts)).astype(np.int64)
    return DayOrders(
        export_date=day,
        start=bounds[0][0],
        end=bounds[0][1],
        first=size.first,
        good=size.good,
        customer=customer,
        product=product,
        region=region,
        status=_choose(rng, count, _STATUS_SHARES),
        spelling=_choose(rng, count, _SPELLING_SHARES),
        quantity=quantity,
        pence=np.array(reference.product_pence, dtype=np.int64)[product] * quantity,
        days_back=days_back,
        instant=instant,
        offset=utc_offsets(instant, zone),
        form=_forms(rng, time_of_day),
    )


def export_columns(
    orders: DayOrders, reference: Reference, chosen: Integers
) -> dict[str, list[str]]:
    """The required export columns of the chosen orders, as the export shows them."""
    return {
        "order_id": orders.order_ids(chosen),
        "customer_id": [reference.customer_ids[i] for i in orders.customer[chosen].tolist()],
        "product_id": [reference.product_ids[i] for i in orders.product[chosen].tolist()],
        "region": [REGIONS[i] for i in orders.region[chosen].tolist()],
        "status": [
            _SPELLINGS[status][spelling]
            for status, spelling in zip(
                orders.status[chosen].tolist(), orders.spelling[chosen].tolist(), strict=True
            )
        ],
        "order_value_gbp": [pounds(pence) for pence in orders.pence[chosen].tolist()],
        "order_timestamp": _timestamps(orders, chosen),
    }


def export_rows(orders: DayOrders, reference: Reference, chosen: list[int]) -> list[Row]:
    """The required export columns of the chosen orders, one row each."""
    columns = export_columns(orders, reference, np.array(chosen, dtype=np.int64))
    return [dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True)]


def _timestamps(orders: DayOrders, chosen: Integers) -> list[str]:
    form, offset = orders.form[chosen], orders.offset[chosen]
    shift = np.where(form == _UTC, 0, np.where(form == _WEST, _WEST_SECONDS, offset))
    texts = clock_texts(orders.instant[chosen] + shift)
    for i in np.flatnonzero(form != _LOCAL).tolist():
        if form[i] == _LOCAL_BLANK:
            texts[i] = texts[i].replace("T", " ")
        else:
            texts[i] += "Z" if form[i] == _UTC else offset_suffix(int(shift[i]))
    return texts


def _forms(rng: np.random.Generator, time_of_day: npt.NDArray[np.float64]) -> Integers:
    form = _choose(rng, len(time_of_day), _FORM_SHARES)
    # half of the first hour's orders: in summer their UTC date is the day before
    form[(time_of_day < 1 / 24) & (rng.random(len(form)) < 0.5)] = _UTC
    return form


def _days_back(position: Integers, day_index: int) -> Integers:
    late = position % LATE_EVERY == LATE_EVERY - 1
    back = np.where(late, 1 + position // LATE_EVERY % LATE_DAYS, 0)
    # nothing is dated before the first export
    return np.where(back <= day_index, back, 0)


def _times_of_day(rng: np.random.Generator, good: int, count: int) -> npt.NDArray[np.float64]:
    """Fractions of the day, those of the good orders ascending."""
    hours = _choose(rng, count, np.array(_HOUR_WEIGHTS) / sum(_HOUR_WEIGHTS))
    fractions: npt.NDArray[np.float64] = (hours + rng.random(count)) / 24
    fractions[:good].sort()
    return fractions


def _choose(rng: np.random.Generator, count: int, shares: npt.ArrayLike) -> Integers:
    """Indices drawn with these shares, which sum to one."""
    bounds = np.cumsum(shares)[:-1]
    return np.searchsorted(bounds, rng.random(count), side="right").astype(np.int64)


def _popular(rng: np.random.Generator, count: int, known: int) -> Integers:
    """Indices below `known`, the low ones far oftener than the high ones."""
    return (rng.random(count) ** 2 * known).astype(np.int64)


def _sprinkle(indices: Integers, position: Integers, every: int, begin: int, end: int) -> None:
    """Put the indices from `begin` up to `end`, in turn, at one in `every` positions."""
    chosen = position % every == every // 2
    indices[chosen] = begin + position[chosen] // every % (end - begin)
