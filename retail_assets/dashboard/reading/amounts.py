"""Amounts of money and orders, and how they compare."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

PENNY = Decimal("0.01")


@dataclass(frozen=True)
class Amount:
    """Revenue in GBP, and the orders that brought it."""

    revenue: Decimal = Decimal(0)
    orders: int = 0

    @property
    def average(self) -> Decimal | None:
        """Revenue per order in GBP, half a penny rounded up; None without orders."""
        if not self.orders:
            return None
        return (self.revenue / self.orders).quantize(PENNY, ROUND_HALF_UP)

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.revenue + other.revenue, self.orders + other.orders)


def total(amounts: "list[Amount]") -> Amount:
    """The sum of some amounts."""
    return sum(amounts, Amount())


def change(now: Decimal | int | None, before: Decimal | int | None) -> float | None:
    """The change from before to now as a share, such as 0.12; None where nothing can be divided.

    Refunds may make revenue negative: the share is of the size that it had.
    """
    if now is None or not before:
        return None
    return float((Decimal(now) - Decimal(before)) / abs(Decimal(before)))
